"""How often do runs of the emoji's captions draw the subject and the background that a prompt asks for?

    python -m benchmarks.combinations RUN... [-n 256] [--set sample.guidance=1] [--out FILE.md]

The runs differ in nothing but their seed. Prompts are captions of training rows, and captions of held-out rows, whose
subject and background no training row has together. The subject is the class that the features' classifier sees. The
background is the named colour nearest to the mean colour of the picture's border. Both are also measured on the real
pictures.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from genflow.cli import console
from genflow.data.shards import Dataset
from genflow.data.sources.emoji import BACKGROUNDS
from genflow.errors import UsageError
from genflow.evaluation import samples
from genflow.evaluation.features.extractor import FeatureReference, load_features
from genflow.evaluation.interval import proportion
from genflow.maths.rng import key
from genflow.recipe.compose import assignments
from genflow.sampling.engine import Engine
from genflow.storage.files import write_atomically
from genflow.storage.store import Store

BORDER = 2  # pixels


def background(records: np.ndarray) -> list[str]:
    """The named colour nearest to the mean colour of each picture's border, for pictures (N, H, W, 3)."""
    inside = np.zeros(records.shape[1:3], bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    mean = records[:, ~inside].astype(np.float64).mean(1)
    colours = np.array(list(BACKGROUNDS.values()))
    return [list(BACKGROUNDS)[i] for i in np.square(mean[:, None] - colours).sum(2).argmin(1)]


def asked(data: Dataset, split: str, n: int) -> np.ndarray:
    """The rows of the captions that are asked for: the same n random rows for every run."""
    rows = np.random.default_rng(key("combinations", split)).permutation(len(data.splits[split]))[:n]
    return np.sort(rows)


def hits(records: np.ndarray, captions: list[str], labels: np.ndarray, features: FeatureReference) -> np.ndarray:
    """Whether the subject is right, the background is right, and both: (3, N)."""
    _, seen = features.embed(records)
    assert seen is not None
    wanted = [caption.rsplit(" background", 1)[0].rsplit(" ", 1)[-1] for caption in captions]
    ground = np.array(background(records)) == wanted
    return np.stack([seen == labels, ground, (seen == labels) & ground])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("-n", type=int, default=256, help="prompts of each kind, and pictures of each run")
    parser.add_argument("--set", action="append", default=[], metavar="sample.KEY=VALUE")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    store = Store()
    runs = [store.find("runs", reference) for reference in given.runs]
    engines = [samples.with_captions(Engine.load(run), store) for run in runs]
    if any(engine.prompts is None for engine in engines):
        raise UsageError("a run reads no captions", "name runs of text to image")
    options = assignments(given.set).get("sample", {})
    data = Dataset.open(store.find("datasets", runs[0].meta["dataset"]))
    features = load_features(store, data, "classifier", lambda event, **fields: None)
    lines = []
    for title, split in (("seen", "train"), ("unseen", data.reference)):
        rows = asked(data, split, given.n)
        captions, labels = samples.captions_of(data.splits[split], rows), data.splits[split].labels_of(rows)
        real = hits(data.splits[split].take(rows), captions, labels, features)
        lines.append(f"| {title} | real pictures | {len(rows)} | {_shares(real)} |")
        every = []
        for run, engine in zip(runs, engines, strict=True):
            drawn = engine.draw(samples.seeds(0, len(captions), "combinations"), prompts=captions, **options).images
            every.append(hits(drawn, captions, labels, features))
            lines.append(f"| {title} | {run.id} | {len(rows)} | {_shares(every[-1])} |")
            console.note(lines[-1])
        lines.append(f"| {title} | all runs | {len(rows) * len(runs)} | {_shares(np.concatenate(every, 1))} |")
    head = ["| combinations | pictures of | n | subject | background | both |", "|---|---|---|---|---|---|"]
    page = "\n".join([*head, *lines])
    print(page)
    if given.out:
        made_by = f"<!-- Written by `python -m benchmarks.combinations {' '.join(sys.argv[1:])}`. -->"
        write_atomically(given.out, f"{made_by}\n{page}\n")


def _shares(found: np.ndarray) -> str:
    """The shares with their 95 % intervals, over pictures."""
    shares = [proportion(row) for row in found]
    return " | ".join(f"{100 * s.value:.1f} % ({100 * s.low:.1f}–{100 * s.high:.1f})" for s in shares)


if __name__ == "__main__":
    main()
