"""Draw the samples that are measured: the same noise and labels for every run, in timed batches.

Samples are drawn in shares of 512, in this process or on workers. The process that draws a share also converts it to
features and classes, because most metrics need nothing else. A share depends only on its seeds and labels, so no metric
depends on the number of workers. Only a few pictures are kept, so memory hardly grows with the number of samples.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from genflow.data.shards import Dataset, Split
from genflow.data.texts import Texts
from genflow.evaluation.features.caption_pool import words
from genflow.evaluation.features.extractor import DataSplits, Embed, Emit, FeatureReference
from genflow.maths.rng import key
from genflow.sampling.engine import Engine, SampleBatch
from genflow.storage.store import Store
from genflow.system.peak_memory import peak

BATCH = 64
SHARE = 8 * BATCH  # samples per share
REPEATS, PATIENCE_S = 8, 0.25  # single samples to time; after so many seconds, three are enough


@dataclass(frozen=True)
class Sample:
    """Drawn records, their labels and their cost.

    Args:
        records: in the format of a split, (N, H, W, C) or (N, 1, 1, 2).
        labels: (N,).
        nfe: network evaluations per sample.
        ms: median milliseconds per sample, in batches of 64.
    """

    records: np.ndarray
    labels: np.ndarray
    nfe: int
    ms: float


@dataclass(frozen=True)
class Share:
    """A set of samples that one process draws and converts to features.

    Args:
        seeds: (N,).
        labels: (N,) class numbers; the number of classes means no label.
        keep: number of records to keep, from the first on.
        prompts: (N,) captions, for a family that reads captions.
    """

    seeds: Sequence[int]
    labels: np.ndarray
    keep: int
    prompts: Sequence[str] | None = None


@dataclass(frozen=True)
class DrawnFeatures:
    """Features of samples, with only the first records.

    Args:
        records: the first K samples, in the format of `Sample`.
        features: (N, D).
        classes: (N,) predicted by the classifier of the features; None if they have none.
        labels: (N,).
        nfe: network evaluations per sample.
        ms: median milliseconds per sample in batches of 64, of the samples drawn in this process.
        memory_mb: peak memory of this process while sampling.
        prompts: (N,) as in `Share`.
    """

    records: np.ndarray
    features: np.ndarray
    classes: np.ndarray | None
    labels: np.ndarray
    nfe: int
    ms: float
    memory_mb: float
    prompts: Sequence[str] | None = None


class Reconstructions(Engine):
    """An engine whose samples are an autoencoder's reconstructions of training rows; the seeds are their numbers.

    Args:
        engine: of the autoencoder.
        train: the training split; a larger number starts again from its first row.
    """

    def __init__(self, engine: Engine, train: Split) -> None:
        super().__init__(engine.family, engine.recipe, engine.step, engine.device)
        self.options = engine.options
        self._train = train

    def draw(self, seeds: Sequence[int], labels: Sequence[int] | None = None, **options: Any) -> SampleBatch:
        """One reconstruction for each row; the labels and options change nothing."""
        started = time.perf_counter()
        images = self.reconstruct(self._train.take(np.asarray([seed % len(self._train) for seed in seeds])))
        chosen = np.full(len(seeds), self.facts.classes) if labels is None else np.asarray(labels, np.int64)
        return SampleBatch(images, chosen, 1, time.perf_counter() - started)


Executor = Callable[[Sequence[Share]], Iterable[DrawnFeatures]]
"""Draws shares on workers and returns them in order."""


def seeds(seed: int, count: int, purpose: str = "evaluate") -> list[int]:
    """The seeds of samples 0..count-1: they depend only on the evaluation's seed, so all runs share the noise."""
    return [key(purpose, seed, index) for index in range(count)]


def seeds_of(engine: Engine, real: DataSplits, seed: int, count: int) -> list[int]:
    """The seeds of measured samples; those of an autoencoder's engine are the floor's rows, which it reconstructs."""
    return real.floor[:count].tolist() if isinstance(engine, Reconstructions) else seeds(seed, count)


def measured(engine: Engine, data: Dataset) -> Engine:
    """The engine whose samples are measured: `Reconstructions` of an autoencoder's engine, else the engine itself."""
    return Reconstructions(engine, data.splits["train"]) if engine.family.is_autoencoder else engine


def with_captions(engine: Engine, store: Store) -> Engine:
    """The engine, which needs no text encoder for captions of the dataset if the store has the embeddings of these."""
    made = store.get("texts", engine.recipe.data.text) if engine.prompts and engine.recipe.data.text else None
    if made and engine.prompts:
        engine.prompts.more = Texts.of(made)
    return engine


def labels(data: Dataset, real: DataSplits, count: int) -> np.ndarray:
    """The labels to sample: those of the floor's rows, so that samples and floor have the same class balance."""
    return data.splits["train"].labels_of(real.floor[:count])


def prompts(engine: Engine, data: Dataset, real: DataSplits, count: int) -> list[str] | None:
    """The captions to sample: those of the floor's rows; None for a family that reads labels."""
    return captions_of(data.splits["train"], real.floor[:count]) if engine.prompts else None


def unseen(data: Dataset, extractor: FeatureReference) -> np.ndarray:
    """The reference rows whose captions no training row has; none without a held-out split, or without captions."""
    return extractor.once("unseen captions", lambda: _unseen(data, extractor.real))


def _unseen(data: Dataset, real: DataSplits) -> np.ndarray:
    if real.split == "train" or not data.facts.captions:
        return real.reference[:0]
    known = {words(caption) for caption in {caption for own in data.splits["train"].captions for caption in own}}
    asked = captions_of(data.splits[real.split], real.reference)
    return real.reference[[caption.strip() != "" and words(caption) not in known for caption in asked]]


def captions_of(split: Split, rows: np.ndarray) -> list[str]:
    """The first caption of each row; the empty one for a row without captions."""
    return [own[0] if own else "" for own in split.column("captions", rows)]


def draw(
    engine: Engine, seeds: Sequence[int], labels: np.ndarray, progress: Emit, prompts: Sequence[str] | None = None,
    **options: Any,
) -> Sample:  # fmt: skip
    """Draw one sample per seed, in batches of 64, each of which is timed.

    Args:
        engine: the engine of the run.
        seeds: (N,).
        labels: (N,) class numbers; the number of classes means no label.
        progress: called with the number of samples of each batch.
        prompts: (N,) captions, for a family that reads captions.
        options: options of the family's `sample`.

    Raises:
        UsageError: the family rejects the options.
    """
    records, took, nfe = [], [], 0
    for start in range(0, len(seeds), BATCH):
        chosen = labels[start : start + BATCH]
        words = None if prompts is None else prompts[start : start + BATCH]
        drawn = engine.draw(seeds[start : start + BATCH], chosen.tolist(), prompts=words, batch=BATCH, **options)
        records.append(drawn.images)
        nfe = drawn.nfe
        took.append(1000 * drawn.seconds / len(chosen))
        progress(len(chosen))
    whole = [ms for ms, part in zip(took, records, strict=True) if len(part) == BATCH] or took
    return Sample(np.concatenate(records), labels, nfe, median(whole[1:] or whole))  # the first batch warms up


def draw_features(
    engine: Engine, embed: Embed, seeds: Sequence[int], labels: np.ndarray, keep: int, progress: Emit,
    executor: Executor | None = None, prompts: Sequence[str] | None = None,
) -> DrawnFeatures:  # fmt: skip
    """Draw one sample per seed and convert it to features. This process draws and times the first share.

    Args:
        engine: the engine of the run.
        embed: the feature extractor.
        seeds: (N,).
        labels: (N,).
        keep: number of records to keep, from the first on.
        progress: called with the number of drawn samples.
        executor: draws the other shares; None: this process draws them one after the other.
        prompts: (N,) captions, for a family that reads captions.
    """
    shares = [
        Share(
            seeds[start : start + SHARE], labels[start : start + SHARE], max(0, keep - start),
            None if prompts is None else prompts[start : start + SHARE],
        )
        for start in range(0, len(seeds), SHARE)
    ]
    parts = [draw_share(engine, embed, shares[0], progress)]
    if executor is None:
        parts += [draw_share(engine, embed, share, progress) for share in shares[1:]]
        here = parts
    else:
        here = parts[:1]
        for part in executor(shares[1:]) if shares[1:] else ():
            parts.append(part)
            progress(len(part.labels))
    seen = [part.classes for part in parts if part.classes is not None]
    return DrawnFeatures(
        np.concatenate([part.records for part in parts]),
        np.concatenate([part.features for part in parts]),
        np.concatenate(seen) if seen else None,
        labels,
        parts[0].nfe,
        median(part.ms for part in here if len(part.labels) == SHARE or len(here) == 1),
        max(part.memory_mb for part in here),
        prompts,
    )


def draw_share(engine: Engine, embed: Embed, share: Share, progress: Emit) -> DrawnFeatures:
    """Draw a share and convert it to features."""
    with peak(engine.device) as memory:
        drawn = draw(engine, share.seeds, share.labels, progress, share.prompts)
    features, classes = embed(drawn.records)
    return DrawnFeatures(
        drawn.records[: share.keep], features, classes, share.labels, drawn.nfe, drawn.ms, memory.mb, share.prompts
    )


def single_sample_ms(engine: Engine, label: int, **options: Any) -> float:
    """Median milliseconds to draw a single sample; the engine fills its batch as always (see `nets.rows`)."""
    took, start = [], time.perf_counter()
    for index in range(REPEATS):
        took.append(1000 * engine.draw([index], [label], **options).seconds)
        if index >= 2 and time.perf_counter() - start > PATIENCE_S:
            break
    return median(took[1:] or took)
