"""Reading shuffled batches: from genflow's shards, by other loaders, and a copy of the same bytes in memory."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.bench.page import Row, Table
from benchmarks.bench.pairs import Turn, ratio, take_turns
from benchmarks.bench.precision import FORMAT
from benchmarks.bench.prepared import as_folder, made_up
from benchmarks.bench.steps import Genflow
from genflow.data.stream import Stream
from genflow.storage.store import Store

SHAPE, ROWS, BATCH, BATCHES, ROUNDS = (3, 32, 32), 4096, 64, 16, 20  # batches of a turn, turns of each contestant
NETS = ("unet", "dit")
TEXT = f"""Shuffled batches of {BATCH} colour pictures of 32 x 32 pixels with their labels, as tensors of numbers
between -1 and 1, from {ROWS:,} pictures on disk, in one process on one thread. The file cache is warm. `ImageFolder`
stands for PNG files that Pillow decodes in a `DataLoader` of PyTorch; `datasets` reads the very files that genflow has
written, without decoding. `memcpy` copies a batch of bytes from memory to memory. **Above 1.00 genflow is faster.**
"""
SHARE = f"""The time to read a batch of {BATCH} pictures of 32 x 32 pixels, as a share of a training step on them. The
nets compute in {FORMAT}.
"""
Batches = Callable[[], tuple[Tensor, Tensor]]


def tables(rounds: int = ROUNDS) -> Iterator[Table]:
    """Genflow's shards against other loaders, and against a training step.

    Args:
        rounds: turns of each contestant.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = made_up(Store(str(Path(folder) / "store")), SHAPE, ROWS, shards=2)
        as_folder(data, Path(folder) / "png")
        stream, ours = Stream(data.splits["train"], BATCH, 0), "genflow's shards"
        steps = iter(range(10**9))

        def read() -> tuple[Tensor, Tensor]:
            batch = stream(next(steps))
            return batch.x, batch.label  # type: ignore[return-value]

        loaders: dict[str, Batches] = {ours: read, "`ImageFolder`, Pillow": image_folder(Path(folder) / "png")}
        missing = []
        try:
            loaders |= arrow(data.artifact.path)
        except ImportError as error:
            missing.append(f"datasets ({error.name or error} is not installed)")
        for loader in loaders.values():
            check(*loader())
        turns = {name: _turn(loader) for name, loader in loaders.items()} | {"memcpy": _turn(copies(data))}
        seconds = take_turns(turns, rounds)
        rows = [Row(ours, name, ratio(seconds[name], seconds[ours]), 1e6 / BATCHES) for name in turns if name != ours]
        yield Table("Data: batches", TEXT, "µs a batch", rows, missing)
        shares = []
        for net in NETS:
            training = Genflow(SHAPE, BATCH, net={"kind": net})
            seconds = take_turns({"step": lambda t=training: t.steps(1), "data": _turn(read)}, rounds)  # type: ignore[misc]
            share = ratio([each / BATCHES for each in seconds["data"]], seconds["step"])
            shares.append(Row(f"a step of `{net}`", "a batch", share, 1000))
        yield Table("Data: the share of a step", SHARE, "ms", shares, heads=("step", "data"), form=".2%")


def check(x: Tensor, labels: Tensor) -> None:
    """Check that a loader returns what a training reads."""
    assert x.shape == (BATCH, *SHAPE), x.shape
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert -1 <= float(x.min()) < -0.9 < 0.9 < float(x.max()) <= 1
    assert labels.shape == (BATCH,), labels.shape
    assert labels.dtype == torch.int64


class _Folder(Dataset[tuple[Tensor, int]]):
    """PNG files of a folder for each class, as torchvision's `ImageFolder` with `ToTensor` and `Normalize`."""

    def __init__(self, folder: Path) -> None:
        self._files = [(entry.path, int(of.name)) for of in os.scandir(folder) for entry in os.scandir(of.path)]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        path, label = self._files[row]
        with open(path, "rb") as file, Image.open(file) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB")))
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255).sub_(0.5).div_(0.5), label


def image_folder(folder: Path) -> Batches:
    """Batches of a `DataLoader`."""
    return _endless(DataLoader(_Folder(folder), BATCH, shuffle=True, drop_last=True))


def arrow(folder: Path) -> dict[str, Batches]:
    """Batches of Hugging Face `datasets` from genflow's own files: by a `DataLoader`, and by lists of rows.

    Raises:
        ImportError: `datasets` is not installed.
    """
    import datasets

    datasets.disable_progress_bars()
    C, H, W = SHAPE
    columns = ["image", "label"]
    rows: Any = datasets.load_from_disk(str(folder))["train"]
    loader = DataLoader(rows.with_format("torch", columns=columns), BATCH, shuffle=True, drop_last=True)
    pull = _endless(loader)
    arrays, rng = rows.with_format("numpy", columns=columns), np.random.default_rng(0)

    def converted(image: Tensor) -> Tensor:
        x = image.view(-1, H, W, C).permute(0, 3, 1, 2).to(torch.float32)
        return x.mul_(2 / 255).sub_(1).contiguous()

    def loaded() -> tuple[Tensor, Tensor]:
        found: Any = pull()
        return converted(found["image"]), found["label"]

    def listed() -> tuple[Tensor, Tensor]:
        found = arrays[rng.integers(0, len(arrays), BATCH)]
        return converted(torch.from_numpy(found["image"])), torch.from_numpy(found["label"])

    return {"`datasets`, `DataLoader`": loaded, "`datasets`, lists of rows": listed}


def copies(data: Any) -> Batches:
    """Copies of a batch of bytes."""
    source = data.splits["train"].take(np.arange(BATCH))
    target, nothing = np.empty_like(source), torch.empty(0)

    def copy() -> tuple[Tensor, Tensor]:
        np.copyto(target, source)
        return nothing, nothing

    return copy


def _endless(loader: Any) -> Batches:
    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    return batches().__next__


def _turn(batches: Batches) -> Turn:
    def turn() -> None:
        for _ in range(BATCHES):
            batches()

    return turn
