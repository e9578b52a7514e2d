"""A dataset of made-up pictures: in a store, as genflow prepares it, and as a folder of PNG files per class."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.bench.steps import CLASSES
from genflow.data.shard_format import shard_name, write_index, write_shard
from genflow.data.shards import Dataset
from genflow.specs import DataSpec
from genflow.storage.store import Store

NAME = "made"


def made_up(store: Store, shape: tuple[int, int, int], rows: int, shards: int = 1) -> Dataset:
    """The dataset `made` of smooth pictures with noise, whose PNG files are as large as those of photographs.

    Args:
        store: receives it.
        shape: (C, H, W) of a picture.
        rows: number of pictures.
        shards: number of files.
    """
    C, H, W = shape
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (rows, -(-H // 8), -(-W // 8), C)).repeat(8, 1).repeat(8, 2)[:, :H, :W]
    pictures = (coarse + rng.normal(0, 4, (rows, H, W, C))).clip(0, 255).astype(np.uint8)
    facts = DataSpec(
        shape, 256, tuple(map(str, range(CLASSES))), {"train": rows}, fingerprint=f"{rows}-{C}-{H}-{W}-{shards}"
    )
    with store.stage("datasets", f"{NAME}-{facts.fingerprint}-0", name=NAME) as staged:
        (staged.path / "train").mkdir()
        files = {}
        for number, chosen in enumerate(np.array_split(np.arange(rows), shards)):
            files[name := shard_name(number, shards)] = len(chosen)
            ids, labels = [str(row) for row in chosen], chosen % CLASSES
            write_shard(staged.path / "train" / name, facts, pictures[chosen], ids, labels)
        write_index(staged.path, facts, {"train": files})
        artifact = staged.commit(meta={"facts": facts.to_json()})
    return Dataset.open(artifact)


def as_folder(data: Dataset, folder: Path) -> None:
    """Write the pictures as CLASS/NUMBER.png."""
    split = data.splits["train"]
    for row, picture in enumerate(split.take(np.arange(len(split)))):
        path = folder / str(row % CLASSES) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.squeeze()).save(path)
