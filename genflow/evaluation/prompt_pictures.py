"""Prompts with their pictures: captions of held-out rows, a sample of each, and the pictures to compare it with.

    prompts.png            a column for each caption: the sample, its nearest training picture, the held-out picture
    prompts/0-sample.png   the same pictures one by one, with 0-nearest.png and 0-real.png
    prompts/prompts.json   the same as a table, in the format in which MLflow shows tables of pictures

The captions are unseen if there are any: no training row has them, so a sample that equals its nearest training picture
is a copy that ignores a part of its prompt.
"""

import json
from dataclasses import dataclass

import numpy as np

from genflow.data import preview
from genflow.data.shards import Dataset
from genflow.evaluation import samples
from genflow.evaluation.features.extractor import FeatureReference
from genflow.evaluation.metrics.memorization import downscale, neighbours
from genflow.sampling.engine import Engine
from genflow.specs import DataSpec

COUNT = 8
FOLDER = "prompts"  # of the table in the evaluation
IN_MLFLOW = f"evaluation/{FOLDER}"
TABLE = "prompts.json"
COLUMNS = {"sample": "sample", "nearest": "nearest training picture", "real": "held-out picture"}


@dataclass(frozen=True)
class PromptPictures:
    """Captions and their pictures, in the format of a split.

    Args:
        captions: (N,) of held-out rows.
        unseen: whether no training row has them.
        pictures: (N, H, W, C) by the keys of `COLUMNS`.
    """

    captions: list[str]
    unseen: bool
    pictures: dict[str, np.ndarray]

    def files(self, facts: DataSpec) -> dict[str, bytes]:
        """The contents of the files by name."""
        whole = np.concatenate([self.pictures[name] for name in COLUMNS])
        found = {"prompts.png": preview.render(whole, facts, len(self.captions))}
        table = []
        for row, caption in enumerate(self.captions):
            cells: list[object] = [caption]
            for name in COLUMNS:
                file = f"{row}-{name}.png"
                found[f"{FOLDER}/{file}"] = preview.render(self.pictures[name][row : row + 1], facts, 1)
                path = f"{IN_MLFLOW}/{file}"
                cells.append({"type": "image", "filepath": path, "compressed_filepath": path})
            table.append(cells)
        document = {"columns": ["prompt", *COLUMNS.values()], "data": table}
        return {**found, f"{FOLDER}/{TABLE}": json.dumps(document).encode()}


def draw(engine: Engine, data: Dataset, extractor: FeatureReference, seed: int) -> PromptPictures | None:
    """Samples of a few captions; None for a run that reads none, or without captions of held-out rows."""
    real = extractor.real
    if engine.prompts is None or data.facts.is_points:
        return None
    split, rows = data.splits[real.split], samples.unseen(data, extractor)[:COUNT]
    unseen = len(rows) > 0
    if not unseen:
        rows = real.reference
        rows = rows[[caption.strip() != "" for caption in samples.captions_of(split, rows)]][:COUNT]
    if not len(rows):
        return None
    captions = samples.captions_of(split, rows)
    seeds = samples.seeds(seed, len(rows), "prompts shown")
    drawn = engine.draw(seeds, split.labels_of(rows).tolist(), prompts=captions).images
    train = data.splits["train"]
    _, _, nearest = neighbours(downscale(drawn, data.facts), train)
    pictures = {"sample": drawn, "nearest": train.take(nearest), "real": split.take(rows)}
    return PromptPictures(captions, unseen, pictures)
