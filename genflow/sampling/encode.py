"""Latents are a dataset: the encoder of an autoencoder maps every training picture to its latents, once.

    z = (mean of q(z | x) - latent mean) / latent deviation      stored as float16; each channel has deviation 1 or so

The latents of a row are a function of its picture. They are computed in fp32 and in batches of one size, for the size
of a batch may change how sums are rounded; so any process may write any shard in any order, with the same bytes.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)   https://arxiv.org/abs/2112.10752
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genflow import build
from genflow.data.shard_format import FACTS, shard_ranges, write_index, write_shard
from genflow.data.shards import Dataset, map_stream
from genflow.errors import DataError, UsageError
from genflow.families.autoencoder import STATISTICS_ROWS
from genflow.maths.rng import SampleRng
from genflow.recipe.schema import Recipe
from genflow.sampling import autoencoders, diffusers_folder
from genflow.sampling.engine import AUTOENCODER, Engine
from genflow.specs import DataSpec
from genflow.storage.files import replacing
from genflow.storage.store import Artifact, Store
from genflow.system import source_hash
from genflow.system.source_hash import digest

SHARD = 1024  # rows in each shard, a multiple of every batch size
MAX_BATCH, BATCH_PIXELS = 64, 2**18  # at most so many rows and pixels: a large encoder then takes about 1 GB
PIECE = 2**18  # positions that are measured at once
DEVIATIONS = (0.5, 2.0)  # outside of them a channel is warned about
LISTED = 4  # channels that a warning lists


@dataclass(frozen=True)
class EncodePlan:
    """Latents that may not exist yet.

    Args:
        id: `<name>-<content address>`.
        name: the name without the hash; by default that of the dataset.
        dataset: of the pictures.
        source: the autoencoder's run or diffusers folder.
        pictures: the facts of the pictures.
        facts: the facts of the latents, without a fingerprint.
        flip: whether the second half of the rows is of the mirrored pictures.
    """

    id: str
    name: str
    dataset: Artifact
    source: Artifact | Path
    pictures: DataSpec
    facts: DataSpec
    flip: bool

    @property
    def count(self) -> int:
        """The number of rows."""
        return self.facts.splits["train"]

    @property
    def shards(self) -> list[tuple[str, int, int]]:
        """(file, first row, last row + 1) of each shard."""
        return shard_ranges(self.count, SHARD, "train/")

    @property
    def parents(self) -> list[str]:
        """The ids of the artifacts that the latents are made from: the dataset, and the run."""
        return [self.dataset.id, *([self.source.id] if isinstance(self.source, Artifact) else [])]


def plan(store: Store, autoencoder: str, recipe: Recipe) -> EncodePlan:
    """Check that the autoencoder fits the pictures, and derive the id of the latents.

    Args:
        store: holds the dataset.
        autoencoder: a run, or a folder of diffusers.
        recipe: `data.name` is the dataset, `name` that of the latents, and `encode` has the options.

    Raises:
        UsageError: one of them does not exist, or they do not fit.
        DataError: a file of the autoencoder is damaged.
    """
    dataset = store.find("datasets", recipe.data.name)
    pictures = DataSpec.from_json(dataset.file(FACTS).read_text(encoding="utf-8"))
    if not pictures.bounded:
        raise UsageError(f"dataset {dataset.id} contains points, not pictures", "genflow data ls lists the datasets")
    source = autoencoders.find(store, autoencoder)
    loaded = autoencoders.load(source, pictures, dataset.name)
    times = 2 if recipe.encode.flip else 1
    C, H, W = loaded.family.code_shape
    facts = pictures.of_latents((C, H, W), loaded.id, times)
    name = recipe.name or dataset.name
    deciding = {
        "data": [dataset.id, pictures.fingerprint],  # the fingerprint covers labels and captions
        "autoencoder": loaded.deciding,
        "options": {"flip": recipe.encode.flip},
        "code": source_hash.code_of("genflow/sampling/encode.py", *build.source_files(loaded.recipe, pictures)),
    }
    return EncodePlan(f"{name}-{digest(deciding)}", name, dataset, source, pictures, facts, recipe.encode.flip)


def copy_autoencoder(task: EncodePlan, folder: Path) -> list[Path]:
    """Copy the autoencoder into the folder of the latents, unless an earlier attempt did; return the copy's files."""
    files = autoencoders.files(folder / AUTOENCODER)
    if not all(file.is_file() for file in files):
        loaded = autoencoders.load(task.source, task.pictures, task.dataset.name)
        if not loaded.scaled:
            split, size = Dataset.open(task.dataset, verify=False).splits["train"], batch_size(task.pictures)
            rows = spread_rows(len(split))
            batches = [rows[start : start + size] for start in range(0, len(rows), size)]
            loaded.family.finish(lambda number: split.batch(batches[number], torch.device("cpu")))
        autoencoders.write(loaded, task.pictures, folder / AUTOENCODER)
    return files


def spread_rows(count: int) -> np.ndarray:
    """Up to `STATISTICS_ROWS` rows of `count`, evenly spaced, because the rows may be sorted by class."""
    return np.linspace(0, count, min(count, STATISTICS_ROWS), endpoint=False, dtype=np.int64)


def batch_size(pictures: DataSpec) -> int:
    """The rows that are encoded at once: a power of two, so that it divides a shard."""
    _, H, W = pictures.shape
    return 1 << max(1, min(MAX_BATCH, BATCH_PIXELS // (H * W))).bit_length() - 1


class Encoder:
    """An encoder that writes latents.

    Args:
        task: the plan.
        folder: of the latents, with the copy of the autoencoder.
        device: a torch device's name.
    """

    def __init__(self, task: EncodePlan, folder: Path, device: str = "cpu") -> None:
        self.task = task
        self.engine = Engine.from_folder(folder / AUTOENCODER, device=device)
        self._split = Dataset.open(task.dataset, verify=False).splits["train"]
        self.batch = batch_size(task.pictures)

    @torch.no_grad()
    def latents(self, rows: np.ndarray) -> np.ndarray:
        """The latents of at most `batch` rows, (B, h, w, c) float16.

        Raises:
            DataError: latents are not finite, or too large for float16; the message names the row.
        """
        filled = np.concatenate([rows, np.repeat(rows[-1:], self.batch - len(rows))])
        pictures = self._split.take(filled % len(self._split))
        mirrored = filled >= len(self._split)
        pictures[mirrored] = pictures[mirrored, :, ::-1]
        label = torch.full((self.batch,), self.task.pictures.classes, device=self.engine.device)
        rng = SampleRng(filled.tolist(), "code", self.engine.device)
        z = self.engine.family.encode(self.engine.to_x(pictures), label, rng)
        z = z[: len(rows)].permute(0, 2, 3, 1).float().cpu()
        stored = z.to(torch.float16)
        self._require_finite(rows, z, stored)
        return stored.numpy()

    def _require_finite(self, rows: np.ndarray, z: torch.Tensor, stored: torch.Tensor) -> None:
        finite = stored.isfinite().flatten(1).all(1)
        if finite.all():
            return
        bad = int((~finite).nonzero()[0, 0])
        row = rows[bad : bad + 1] % len(self._split)
        what = f"row {row[0]} of {self.task.dataset.id} ({self._split.column('id', row)[0]})"
        problem = "its latents are not finite"
        if z[bad].isfinite().all():
            problem = f"its largest latent, {z[bad].abs().max():.3g}, does not fit float16, which ends at 65504"
        name = self.task.dataset.name
        raise DataError(f"{what}: {problem}", f"use another autoencoder: genflow train autoencoder --data {name}")

    def write(self, path: Path, first: int, last: int) -> None:
        """Write a shard atomically."""
        rows, facts = np.arange(first, last), self.task.facts
        parts = [self.latents(rows[a : a + self.batch]) for a in range(0, len(rows), self.batch)]
        pictures = rows % len(self._split)
        with replacing(path) as attempt:
            write_shard(
                attempt, facts, np.concatenate(parts), self._split.column("id", pictures),
                self._split.labels_of(pictures),
                captions=self._split.column("captions", pictures) if facts.captions else (),
            )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What the finished shards are.

    Args:
        facts: the complete facts of the latents.
        mean, deviation: of each channel, over all rows and positions.
        warnings: what a user should know, one sentence each.
    """

    facts: DataSpec
    mean: list[float]
    deviation: list[float]
    warnings: list[str]


def finish(task: EncodePlan, folder: Path) -> Measured:
    """Read all shards, measure them, and write the index that makes the folder a dataset.

    Raises:
        DataError: a shard is damaged.
    """
    channels = task.facts.shape[0]
    hashes, sums = hashlib.sha256(), np.zeros((2, channels))
    for file, _, _ in task.shards:
        try:
            column = map_stream(folder / file).column(0)
        except DataError as error:
            raise DataError(error.message, f"rm {folder / file}, then run the same command again") from error
        for values in column.chunks:
            numbers = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, channels)
            for start in range(0, len(numbers), PIECE):
                piece = numbers[start : start + PIECE].astype(np.float64)
                sums += piece.sum(0), np.square(piece).sum(0)
        with open(folder / file, "rb") as content:
            hashes.update(hashlib.file_digest(content, "sha256").hexdigest().encode())
    mean, square = sums / (task.count * task.facts.shape[1] * task.facts.shape[2])
    deviation = np.sqrt(np.maximum(square - np.square(mean), 0))
    facts = replace(task.facts, fingerprint=hashes.hexdigest())
    rows = {Path(file).name: last - first for file, first, last in task.shards}
    write_index(folder, facts, {"train": rows})
    warnings = [*_about_strips(task), *_about_scale(task), *_about_deviation(task, deviation)]
    return Measured(facts, mean.round(4).tolist(), deviation.round(4).tolist(), warnings)


def _about_strips(task: EncodePlan) -> list[str]:
    if not task.pictures.strip:
        return []
    return [f"{task.dataset.name} has pictures for random crops; the latents are of their centre crops"]


def _about_scale(task: EncodePlan) -> list[str]:
    note = "" if isinstance(task.source, Artifact) else diffusers_folder.scale_of(task.source).note
    return [note] if note else []


def _about_deviation(task: EncodePlan, deviation: np.ndarray) -> list[str]:
    low, high = DEVIATIONS
    outside = [n for n, value in enumerate(deviation) if not low <= value <= high]
    if not outside:
        return []
    listed = ", ".join(f"{deviation[n]:.3g} in channel {n}" for n in outside[:LISTED])
    why = "the autoencoder was measured on other pictures"
    if isinstance(task.source, Path):
        why = "scaling_factor and shift_factor in its config.json do not fit these pictures"
    more = f", and {len(outside) - LISTED} more" if len(outside) > LISTED else ""
    return [
        f"the deviation of the latents is outside {low:g} to {high:g} in {len(outside)} of {len(deviation)} channels: "
        f"{listed}{more}. Models expect 1, and {why}"
    ]


def describe(task: EncodePlan, measured: Measured) -> dict[str, Any]:
    """The metadata of the latents for their manifest, without the time that they took."""
    return {
        "dataset": task.dataset.id,
        "autoencoder": task.facts.autoencoder,
        "run": task.source.id if isinstance(task.source, Artifact) else "",
        "rows": task.count,
        "shape": list(task.facts.shape),
        "flip": task.flip,
        "facts": measured.facts.to_json(),
        "mean": measured.mean,
        "deviation": measured.deviation,
        "warnings": measured.warnings,
    }
