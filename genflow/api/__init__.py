"""The Python API: what the commands do, for notebooks and scripts. `genflow.load` is `genflow.api.load`, and so on.

    import genflow

    pictures = genflow.prepare("~/my_pictures", size=32)
    run = genflow.train("flow_matching", data=pictures, minutes=3)
    run.sample(16, label="flags", seed=0)      # a picture in a notebook, an array for NumPy, images of Pillow

Functions send the same jobs as the commands, with the same defaults, and raise the exceptions of `genflow.errors`.
Progress and notes are printed on standard error. Every function takes `store=`, a folder or URL; the default is
GENFLOW_STORE, or `.genflow` in the current folder.

tables      rows with thumbnails: shown as HTML, converted to pandas, Arrow and polars
pictures    pictures and samples
datasets    the rows of a dataset, as arrays, tensors and Arrow
drawing     what a run draws, encodes and decodes
run         a trained run, and measured runs
search      a finished search
jobs        prepare, train, tune, evaluate, compare
stores      what a store holds: load, runs, datasets, data
"""

from genflow.api.datasets import Data, Row
from genflow.api.jobs import compare, evaluate, prepare, train, tune
from genflow.api.pictures import Pictures, Samples
from genflow.api.run import Comparison, Run
from genflow.api.search import Search
from genflow.api.stores import data, datasets, load, runs
from genflow.api.tables import Table

__all__ = [
    "Comparison", "Data", "Pictures", "Row", "Run", "Samples", "Search", "Table", "compare", "data", "datasets",
    "evaluate", "load", "prepare", "runs", "train", "tune",
]  # fmt: skip
