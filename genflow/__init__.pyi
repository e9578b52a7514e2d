# The types of the functions that `__init__.py` imports on first use. Type checkers read this file in its place.
from genflow import errors as errors
from genflow.api import compare as compare
from genflow.api import data as data
from genflow.api import datasets as datasets
from genflow.api import evaluate as evaluate
from genflow.api import load as load
from genflow.api import prepare as prepare
from genflow.api import runs as runs
from genflow.api import train as train
from genflow.api import tune as tune

__version__: str
__all__ = ["compare", "data", "datasets", "errors", "evaluate", "load", "prepare", "runs", "train", "tune"]
