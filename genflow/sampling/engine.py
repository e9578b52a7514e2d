"""The engine: requests -> noise by seed -> family.sample -> images. Knows no HTTP, no Ray, no training.

A family that learned latents has an autoencoder in its folder, and the engine decodes: all others see pictures.

A sample is a function of its seed, to the bit: its noise, and every random draw of its sampler, come from its own
generator. Kernels choose the order of sums by the batch size and the number of threads, so the engine chooses both for
each batch (see `nets.rows`). On a GPU that is not enough: see `devices.is_deterministic`.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow import build
from genflow.data.shard_format import FACTS, shard_name
from genflow.data.texts import CAPTIONS, INDEX, Texts
from genflow.data.values import from_x, to_x
from genflow.errors import DataError, UsageError, similar
from genflow.families.base import Family, Watcher
from genflow.maths import tf32
from genflow.maths.rng import SampleRng
from genflow.maths.slerp import slerp
from genflow.maths.wide import wide_type
from genflow.nets.rows import VECTORS, fit, least, make_equal, restored_threads
from genflow.recipe.files import read as read_recipe
from genflow.recipe.schema import Recipe, parse
from genflow.sampling.prompts import Prompts
from genflow.specs import DataSpec
from genflow.storage.manifest import read_manifest, verify_file
from genflow.storage.store import Artifact
from genflow.system import devices
from genflow.text import Label
from genflow.training import checkpoint, checkpoint_folders

RECIPE = "recipe.yaml"
AUTOENCODER = "autoencoder"  # folder of the autoencoder in the folder of a run that learned latents
TEXT = "text"  # folder of the embeddings of some captions in the folder of a run that reads captions
_READ = (RECIPE, FACTS, *checkpoint.READ_BY_SAMPLING)
_TEXT = (INDEX, CAPTIONS, shard_name(0, 1))
# The files of a folder that `Engine.from_folder` reads.
READ = (*_READ, *(f"{AUTOENCODER}/{name}" for name in _READ), *(f"{TEXT}/{name}" for name in _TEXT))


@dataclass(frozen=True)
class SampleBatch:
    """Samples and their cost.

    Args:
        images: (N, H, W, C) uint8 grey levels 0..K-1, or (N, 1, 1, 2) float32 points.
        labels: (N,) the requested labels.
        nfe: network evaluations of each sample.
        seconds: wall-clock seconds for all samples.
        prompts: (N,) the captions that were asked for; empty for a family that reads labels.
        rows: that the net was evaluated on: the samples, and those that fill batches; 0: not counted.
    """

    images: np.ndarray
    labels: np.ndarray
    nfe: int
    seconds: float
    prompts: tuple[str, ...] = ()
    rows: int = 0


class Engine:
    """A trained family, ready to sample.

    Args:
        family: with the weights to use.
        recipe: resolved.
        step: the training step of the weights.
        device: a torch device's name.
        frozen: put the family into eval mode without gradients; False: leave a family in training unchanged.
        autoencoder: of a family that learned latents; None: the family draws pictures or points.
        prompts: of a family that reads captions; None: the family reads labels.

    Attributes:
        facts: of the pictures or points that the engine draws; those of latents are `family.facts`.
    """

    def __init__(
        self,
        family: Family,
        recipe: Recipe,
        step: int = 0,
        device: str = "cpu",
        *,
        frozen: bool = True,
        autoencoder: Family | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        if frozen:
            tf32.forbid()
        self.family = _frozen(family, device) if frozen else family
        self.autoencoder = _frozen(autoencoder, device) if autoencoder else None
        self._frozen = frozen
        self.prompts = prompts
        self.recipe, self.step, self.device = recipe, step, device
        self.facts: DataSpec = autoencoder.facts if autoencoder else family.facts
        self.options: dict[str, Any] = dict(recipe.sample)

    @classmethod
    def load(cls, run: Artifact, *, average: bool = True, device: str = "cpu") -> "Engine":
        """The engine of a finished run.

        Raises:
            DataError: a file that it reads is missing or differs from the run's manifest.
        """
        folder = run.file(RECIPE).parent
        for name in (FACTS, *run.files(f"{AUTOENCODER}/*"), *run.files(f"{TEXT}/*")):
            run.file(name)
        return cls.from_folder(folder, checkpoint_folders.of_run(run), average=average, device=device)

    @classmethod
    def from_folder(
        cls, folder: Path, weights: Path | None = None, *, average: bool = True, device: str = "cpu"
    ) -> "Engine":
        """The engine of a folder with recipe.yaml and facts.json; the weights may be in another folder.

        Raises:
            DataError: the folder has a manifest, such as an export, and a file that is read differs from it; or this
                version of genflow lacks an option of the recipe.
        """
        if weights is None and (manifest := read_manifest(folder)):
            for name in manifest["files"]:
                if name in READ:
                    verify_file(folder, name, manifest)
        for name in (FACTS, RECIPE):
            if not (folder / name).is_file():
                raise DataError(f"{folder / name} is missing", "export the run again")
        facts = DataSpec.from_json(json.loads((folder / FACTS).read_text(encoding="utf-8")))
        recipe = parse(read_recipe(folder / RECIPE), str(folder / RECIPE))
        try:
            build.check_options(recipe)
        except UsageError as error:
            cure = "draw with the version of genflow that trained it, or train it again with this one"
            raise DataError(f"{folder / RECIPE}: {error}", cure) from error
        family = build.family_of(recipe, facts)
        state = checkpoint.load_weights(weights or folder, family, average=average)
        autoencoder = cls.from_folder(folder / AUTOENCODER).family if facts.is_latents else None
        prompts = Prompts(Texts.open(folder / TEXT)) if facts.text else None
        return cls(family, recipe, int(state["step"]), device, autoencoder=autoencoder, prompts=prompts)

    @restored_threads()
    def draw(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        negative: Sequence[str] | str = "",
        toward: Sequence[tuple[int, float]] | None = None,
        toward_prompts: Sequence[tuple[str, float]] | None = None,
        batch: int = 64,
        padded: bool = True,
        watch: Watcher | None = None,
        on_step: Callable[[], None] | None = None,
        **options: Any,
    ) -> SampleBatch:
        """One sample for each seed.

        Args:
            seeds: any integers.
            labels: one class for each sample, `classes` for no label; None: no labels. A family that reads captions
                does not read them.
            prompts: one caption for each sample, "" for none; None: no captions.
            negative: what guidance leads away from in the place of the empty caption: for all samples, or for each.
            toward: for each sample a second seed and a share s in [0, 1]: the noise is the spherical interpolation
                (slerp) from the first seed's noise at s = 0 to the second seed's at s = 1.
            toward_prompts: for each sample a second caption and a share: the condition is `Text.between` both.
            batch: batch size; it changes no sample.
            padded: fill the last batch (see `nets.rows`); without it, samples may differ by rounding.
            watch: called at every evaluation with x_t and the estimate of x_0 (see `Family.show`), decoded if they are
                latents; an exception that it raises ends the sampling.
            on_step: called at every evaluation before `watch`, and likewise ends the sampling; it decodes nothing.
            options: of the family's `sample`; they override the recipe's.

        Raises:
            UsageError: an unknown option, a label out of range, or prompts for a family that reads labels.
        """
        checked = build.sample_options(self.family, {**self.options, **options})
        checked_labels = self._labels(labels, len(seeds))
        self._require_prompts(prompts, negative, len(seeds))
        images, nfe, evaluated, start = [], 0, 0, time.perf_counter()
        for rows, padded_rows in self._batches(len(seeds), batch, padded):
            rng = SampleRng([seeds[row] for row in padded_rows], "sample", self.device)
            noise = rng.normal((len(padded_rows), *self.family.noise_shape))
            if toward is not None:
                noise = self._interpolate(noise, [toward[row] for row in padded_rows])
            condition = self.condition(checked_labels, prompts, negative, padded_rows, toward_prompts)
            with self.family.watched(self._watcher(watch, on_step)):
                samples = self.family.sample(noise, condition, rng, **checked)
            images.append(from_x(self._decoded(samples.x)[: len(rows)], self.facts))
            nfe, evaluated = samples.nfe, evaluated + len(padded_rows)
        return self._to_batch(images, checked_labels, nfe, start, tuple(prompts or ()), evaluated)

    @restored_threads()
    def encode(
        self, images: np.ndarray, labels: Sequence[int] | None, seeds: Sequence[int], watch: Watcher | None = None,
        *, prompts: Sequence[str] | None = None, on_step: Callable[[], None] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """The codes of real records; `decode` turns them back into the records.

        Args:
            images: (N, H, W, C) grey levels 0..K-1, or (N, 1, 1, 2) points.
            labels: (N,) as in `draw`.
            seeds: (N,) of the random draws of encoding, such as dequantization noise within a grey level.
            watch, prompts, on_step: as in `draw`.

        Returns:
            (N, ...) float32, in the shape of the noise or of the latent space.

        Raises:
            UsageError: the family has no encoder.
        """
        checked_labels, codes = self._labels(labels, len(images)), []
        for rows, padded_rows in self._batches(len(images)):
            rng = SampleRng([seeds[row] for row in padded_rows], "code", self.device)
            with self.family.watched(self._watcher(watch, on_step)):
                x = self._encoded(self.to_x(images[padded_rows]))
                code = self.family.encode(x, self.condition(checked_labels, prompts, rows=padded_rows), rng)
            codes.append(code[: len(rows)].float().cpu().numpy())
        return np.concatenate(codes)

    @restored_threads()
    def decode(
        self, codes: np.ndarray, labels: Sequence[int] | None, seeds: Sequence[int], watch: Watcher | None = None,
        *, prompts: Sequence[str] | None = None, on_step: Callable[[], None] | None = None,
    ) -> SampleBatch:  # fmt: skip
        """The records of codes (N, ...) that `encode` returned; the other arguments are those of `encode`."""
        checked_labels, images, start = self._labels(labels, len(codes)), [], time.perf_counter()
        for rows, padded_rows in self._batches(len(codes)):
            rng = SampleRng([seeds[row] for row in padded_rows], "sample", self.device)
            code = torch.from_numpy(codes[padded_rows]).clone(memory_format=torch.contiguous_format).to(self.device)
            with self.family.watched(self._watcher(watch, on_step)):
                x = self.family.decode(code, self.condition(checked_labels, prompts, rows=padded_rows), rng)
            images.append(from_x(self._decoded(x)[: len(rows)], self.facts))
        return self._to_batch(images, checked_labels, 0, start)

    @cached_property
    def unit(self) -> int:
        """On one thread batches are filled up to a multiple of so many rows."""
        nets = [self.family, self.autoencoder] if self.autoencoder else [self.family]
        found = max(self.family.rows, *(least(net, self.device) for net in nets))
        return found if self._frozen else max(found, VECTORS)

    def _batches(self, n: int, batch: int = 64, padded: bool = True) -> Iterator[tuple[range, list[int]]]:
        """The rows of each batch, and the same rows filled up by repeating the last row.

        Before each batch on a CPU torch's number of threads is set. With deterministic kernels all batches are whole.
        """
        on_cpu, unit = torch.device(self.device).type == "cpu", self.unit
        allowed = torch.get_num_threads() if on_cpu else 1
        for first in range(0, n, batch):
            own = range(first, min(first + batch, n))
            count = len(own)
            if padded:
                count = batch if devices.is_deterministic() else count
                count, threads = fit(count, unit, allowed)
                if on_cpu:
                    torch.set_num_threads(threads)
            yield own, [*own, *[own[-1]] * (count - len(own))]

    def _labels(self, labels: Sequence[int] | None, n: int) -> np.ndarray:
        """Check the labels, and return them as an array (N,).

        Raises:
            UsageError: a label is out of range, or their number is not n.
        """
        classes = self.facts.classes
        checked_labels = np.full(n, classes) if labels is None else np.asarray(labels, np.int64)
        if len(checked_labels) != n:
            raise UsageError(f"{len(checked_labels)} labels for {n} seeds")
        if len(checked_labels) and not (checked_labels.min() >= 0 and checked_labels.max() <= classes):
            names = ", ".join(f"{i}={name}" for i, name in enumerate(self.facts.class_names))
            wrong = int(checked_labels[(checked_labels < 0) | (checked_labels > classes)][0])
            raise UsageError(f"label {wrong} is out of range", names or "this model has no classes")
        return checked_labels

    def _require_prompts(self, prompts: Sequence[str] | None, negative: Sequence[str] | str, n: int) -> None:
        """Check that prompts fit the family and the number of samples.

        Raises:
            UsageError: they do not.
        """
        if self.prompts is None and (prompts is not None or negative):
            cure = f"labels: {', '.join(self.facts.class_names[:20])}" if self.facts.classes else "omit the prompt"
            raise UsageError("this model has no captions, so it reads no prompt", cure)
        if prompts is not None and len(prompts) != n:
            raise UsageError(f"{len(prompts)} prompts for {n} seeds")
        if not isinstance(negative, str) and len(negative) != n:
            raise UsageError(f"{len(negative)} negative prompts for {n} seeds")

    def condition(
        self, labels: np.ndarray, prompts: Sequence[str] | None = None, negative: Sequence[str] | str = "",
        rows: Sequence[int] | None = None, toward_prompts: Sequence[tuple[str, float]] | None = None,
    ) -> Label:  # fmt: skip
        """What the net reads for some rows: their labels, or their captions.

        Args:
            labels: (N,) classes.
            prompts, negative, toward_prompts: as in `draw`.
            rows: of the N; None: all.
        """
        rows = range(len(labels)) if rows is None else rows
        if self.prompts is None:
            return torch.from_numpy(labels[list(rows)]).to(self.device)
        words = [prompts[row] for row in rows] if prompts is not None else [""] * len(rows)
        others = negative if isinstance(negative, str) else [negative[row] for row in rows]
        text = self.prompts.text(words, others, self.device)
        if toward_prompts is None:
            return text
        ends, shares = zip(*(toward_prompts[row] for row in rows), strict=True)
        return text.between(self.prompts.text(ends, device=self.device), torch.tensor(shares))

    def _to_batch(
        self, images: list[np.ndarray], labels: np.ndarray, nfe: int, start: float, prompts: tuple[str, ...] = (),
        evaluated: int = 0,
    ) -> SampleBatch:  # fmt: skip
        C, H, W = self.facts.shape
        stacked = np.concatenate(images) if images else np.zeros((0, H, W, C), np.uint8)
        return SampleBatch(stacked, labels, nfe, time.perf_counter() - start, prompts, evaluated)

    def _interpolate(self, noise: Tensor, toward: Sequence[tuple[int, float]]) -> Tensor:
        """Interpolate from the noises to those of other seeds; at 0 and 1 they are the seeds' own noises to the bit."""
        others = SampleRng([seed for seed, _ in toward], "sample", self.device).normal(noise.shape)
        share = torch.tensor([share for _, share in toward], dtype=wide_type(noise.device), device=noise.device)
        s = share.reshape(-1, *[1] * (noise.ndim - 1))
        return torch.where(s == 0, noise, torch.where(s == 1, others, slerp(noise, others, share)))

    def to_x(self, images: np.ndarray) -> Tensor:
        """Convert grey levels (B, H, W, C) to pictures x (B, C, H, W), on the engine's device."""
        return to_x(images, self.facts).to(self.device)

    @restored_threads()
    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """The pictures (N, H, W, C) after encoding and decoding them: what the autoencoder keeps of them.

        It is the engine's autoencoder, or the engine's family if that is one.

        Raises:
            UsageError: the family learned pictures or points.
        """
        autoencoder = self.autoencoder or (self.family if self.family.is_autoencoder else None)
        if autoencoder is None:
            raise UsageError(f"{self.family.title} on {self.recipe.data.name} has no autoencoder")
        parts = []
        for rows, padded_rows in self._batches(len(images)):
            x = _decode(autoencoder, latents_of(autoencoder, self.to_x(images[padded_rows])))
            parts.append(from_x(x[: len(rows)], self.facts))
        return np.concatenate(parts)

    def _encoded(self, x: Tensor) -> Tensor:
        """Pictures x as the family's input: their latents if it learned latents."""
        return latents_of(self.autoencoder, x) if self.autoencoder else x

    def _decoded(self, x: Tensor) -> Tensor:
        """The family's output as pictures."""
        return _decode(self.autoencoder, x) if self.autoencoder else x

    def _watcher(self, watch: Watcher | None, on_step: Callable[[], None] | None) -> Watcher | None:
        """A watcher for the family, which decodes latents for `watch`."""

        def watcher(x: Tensor, guess: Tensor) -> None:
            if on_step:
                on_step()
            if watch:
                watch(self._decoded(x), self._decoded(guess))

        return watcher if watch or on_step else None


def _frozen(family: Family, device: str) -> Family:
    family = family.to(device).eval().requires_grad_(False)
    make_equal(family)
    return family


def latents_of(autoencoder: Family, x: Tensor) -> Tensor:
    """The latents of pictures x (B, C, H, W), which a family learns in their place."""
    return autoencoder.encode(x, _no_label(x, autoencoder), _NO_DRAWS)


def _decode(autoencoder: Family, z: Tensor) -> Tensor:
    return autoencoder.decode(z.float(), _no_label(z, autoencoder), _NO_DRAWS)


def _no_label(x: Tensor, family: Family) -> Tensor:
    return torch.full((len(x),), family.facts.classes, device=x.device)


_NO_DRAWS = SampleRng([], "autoencoder")  # an autoencoder draws nothing when it encodes and decodes


def picture_facts(run: Artifact) -> DataSpec:
    """The specification of what a run draws: of its data or, for latents, of the pictures that they decode to.

    Raises:
        DataError: facts.json is missing or differs from the run's manifest.
    """
    facts = DataSpec.from_json(run.file(FACTS).read_text(encoding="utf-8"))
    if not facts.is_latents:
        return facts
    return DataSpec.from_json(run.file(f"{AUTOENCODER}/{FACTS}").read_text(encoding="utf-8"))


def labels_for(label: str, n: int, facts: DataSpec) -> list[int] | None:
    """The labels of n samples: a class by name or number, `all` to cycle through the classes, or `none`.

    Raises:
        UsageError: there is no such class.
    """
    names = list(facts.class_names)
    if label == "none" or (label == "all" and not names):
        return None
    if label == "all":
        return [i % len(names) for i in range(n)]
    if label in names:
        return [names.index(label)] * n
    if label.isdecimal() and len(label) < 10 and int(label) < len(names):
        return [int(label)] * n
    if not names:
        raise UsageError(f"label {label}: this model has no classes", "omit the label")
    known = ", ".join(f"{i}={name}" for i, name in enumerate(names[:20]))
    raise UsageError(f"label {label}: no such class{similar(label, names)}", f"classes: {known}")
