"""The judge of captions: a small network that maps a picture to the text embedding of its caption.

It has the layers of `classifier.py`, with the pooled embedding of the run's text encoder as its output. Training is
contrastive: of the captions of a batch of real pictures and further ones, each picture is to find its own.

    loss = -log softmax_j(20 cos(f(x_i), t_j))_i     t: text embeddings, less their mean, which stay as they are

Pictures are shifted, blurred and covered with noise in training, so that the slight blur of a generator does not count
as a wrong subject. They are not mirrored and keep their colours, because captions name sides and colours.

The text embeddings are frozen, so the judge has an answer for captions that it was not trained on. It is trained
neither on the rows whose captions are asked for nor on held-out rows, and is stored as an artifact, one for each
dataset and text encoder.

References:
    Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021), for the loss
    https://arxiv.org/abs/2103.00020
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from genflow.data.shards import Dataset
from genflow.data.values import to_display
from genflow.evaluation.features import ASKED, classifier
from genflow.evaluation.features.caption_pool import CaptionPool
from genflow.maths.rng import key
from genflow.specs import DataSpec
from genflow.storage.store import Artifact, Store
from genflow.system import source_hash
from genflow.system.source_hash import digest

if TYPE_CHECKING:
    from genflow.evaluation.features.extractor import DataSplits, Emit

SCALE = 20.0  # of cosines
CANDIDATES = 2048  # captions that a training step compares with
MAX_TRAINING_ROWS = 64_000
MIN_ROWS = 8  # fewest rows to train on and to measure
SHIFT, NOISE = 16, 0.2  # a sixteenth of a side; largest standard deviation
WEIGHTS, DOCUMENT = "judge.safetensors", "judge.json"
_pools: dict[str, CaptionPool] = {}  # by the fingerprint of the data
Pooled = Callable[[Sequence[str]], np.ndarray]
"""Captions -> their pooled text embeddings (N, P)."""


@dataclass(frozen=True)
class Roles:
    """Row indices (N,) of the training split: rows that are asked for, and rows that the judge is trained on."""

    asked: np.ndarray
    training: np.ndarray

    @classmethod
    def of(cls, real: "DataSplits") -> "Roles":
        """The first of the floor's rows, whose captions samples have; and all others but the reference."""
        count = min(ASKED, len(real.floor) // 2)
        return cls(real.floor[:count], np.concatenate([real.training, real.floor[count:]])[:MAX_TRAINING_ROWS])


@dataclass(frozen=True)
class CaptionJudge:
    """The judge of a dataset's captions.

    Args:
        artifact: stores it.
        name: with a hash of its weights.
        facts: of the pictures.
        pool: the captions of the dataset.
        net: pictures -> embeddings.
        centre: (P,) the mean embedding of the captions that it was trained on.
        pooled: embeds captions.
    """

    artifact: Artifact
    name: str
    facts: DataSpec
    pool: CaptionPool
    net: classifier.Classifier
    centre: Tensor
    pooled: Pooled

    @torch.no_grad()
    def pictures(self, records: np.ndarray) -> np.ndarray:
        """Unit vectors (N, P) of records in the format of a split, (N, H, W, C)."""
        found = []
        for start in range(0, len(records), classifier.EMBED_BATCH):
            shown = to_display(records[start : start + classifier.EMBED_BATCH], self.facts)
            found.append(F.normalize(self.net(classifier.to_input(shown)), dim=1).numpy())
        return np.concatenate(found)

    def captions(self, numbers: np.ndarray) -> np.ndarray:
        """Unit vectors (N, P) of captions of the pool."""
        embedded = self.pooled([self.pool.captions[number] for number in numbers])
        return F.normalize(torch.from_numpy(embedded) - self.centre, dim=1).numpy()


def load_judge(
    store: Store, data: Dataset, real: "DataSplits", encoder: str, pooled: Pooled, emit: "Emit"
) -> CaptionJudge | None:
    """The judge of a dataset's captions, trained and stored on the first call; None with too few captions or rows.

    Args:
        store: holds its artifact.
        data: the dataset.
        real: the roles of its rows.
        encoder: the id of the text encoder.
        pooled: embeds captions by this encoder.
        emit: receives progress events.
    """
    pool, split = _pool_of(data), data.splits["train"]
    rows = Roles.of(real).training
    rows = rows[np.array([any(caption.strip() for caption in own) for own in split.column("captions", rows)], bool)]
    if len(pool.captions) < 2 or len(rows) < MIN_ROWS:
        return None
    code = source_hash.code_of("genflow/evaluation/features/caption_judge.py", also=("genflow/text_encoders",))
    id = f"{data.artifact.name}-captions-{digest([data.facts.fingerprint, encoder, code])}"
    artifact = store.get("features", id)
    if artifact is None:
        with store.lock("features", id, uses=[data.artifact.id]):
            artifact = store.get("features", id)
            if artifact is None:
                net, centre = _train(data, rows, pool, pooled, emit)
                artifact = _write(store, id, data, encoder, net, centre, len(rows))
    artifact.verify()
    weights = load_file(artifact.file(WEIGHTS))
    centre = weights.pop("centre")
    net = classifier.Classifier(data.facts.shape, len(centre))
    net.load_state_dict(weights)
    about = json.loads(artifact.file(DOCUMENT).read_text(encoding="utf-8"))
    return CaptionJudge(
        artifact, about["name"], data.facts, pool, net.eval().requires_grad_(False), centre, pooled
    )


def _pool_of(data: Dataset) -> CaptionPool:
    """The pool, of which that of the latest dataset stays in memory."""
    if data.facts.fingerprint not in _pools:
        _pools.clear()
        _pools[data.facts.fingerprint] = CaptionPool.of(data)
    return _pools[data.facts.fingerprint]


def _write(
    store: Store, id: str, data: Dataset, encoder: str, net: classifier.Classifier, centre: Tensor, rows: int
) -> Artifact:
    with store.stage("features", id, name=data.artifact.name) as staged:
        save_file({**net.state_dict(), "centre": centre}, staged.path / WEIGHTS)
        hashed = hashlib.sha256((staged.path / WEIGHTS).read_bytes()).hexdigest()
        name = f"{data.artifact.name}-captions@{hashed[:8]}"
        about: dict[str, Any] = {"name": name, "kind": "captions", "encoder": encoder, "rows": rows}
        (staged.path / DOCUMENT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        return staged.commit(parents=[data.artifact.id], meta=about)


def _train(
    data: Dataset, rows: np.ndarray, pool: CaptionPool, pooled: Pooled, emit: "Emit"
) -> tuple[classifier.Classifier, Tensor]:
    """The network, and the mean of the embeddings of the captions that it was trained on."""
    split, facts = data.splits["train"], data.facts
    own = [pool.find(caption for caption in captions if caption.strip()) for captions in split.column("captions", rows)]
    known = np.unique(np.concatenate(own))  # no caption that only other rows have
    embedded = torch.from_numpy(pooled([pool.captions[number] for number in known]))
    centre = embedded.mean(0)
    targets = F.normalize(embedded - centre, dim=1)
    generator = torch.Generator().manual_seed(key("judge of captions"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key("weights of the judge of captions"))
        net = classifier.Classifier(facts.shape, len(centre))

    def loss(places: Tensor) -> Tensor:
        drawn = torch.rand(len(places), generator=generator).tolist()  # one of the captions of each row
        asked = np.array([own[i][int(u * len(own[i]))] for i, u in zip(places.tolist(), drawn, strict=True)])
        more = torch.randperm(len(known), generator=generator)[:CANDIDATES].numpy()
        candidates = np.union1d(np.searchsorted(known, asked), more)  # places among the known
        x = classifier.to_input(to_display(split.take(rows[places.numpy()]), facts))
        cosines = F.normalize(net(augmented(x, generator)), dim=1) @ targets[candidates].T
        numbers = known[candidates]
        also_right = np.stack([np.isin(numbers, pool.same(int(number))) & (numbers != number) for number in asked])
        logits = (SCALE * cosines).masked_fill(torch.from_numpy(also_right), -torch.inf)
        return F.cross_entropy(logits, torch.from_numpy(np.searchsorted(numbers, asked)))

    def progress(step: int, steps: int) -> None:
        what = "training the judge of captions"
        emit("progress", stage="features", dataset=data.artifact.id, step=step, steps=steps, what=what)

    steps = classifier.default_steps(len(rows))
    return classifier.optimize(net, loss, len(rows), generator, steps, progress), centre


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures x (B, C, H, W), each shifted by up to a sixteenth of a side, half of them blurred, all with noise."""
    B, _, H, W = x.shape
    most = max(1, max(H, W) // SHIFT)
    padded = F.pad(x, (most,) * 4, mode="replicate")
    corners = torch.randint(2 * most + 1, (B, 2), generator=generator).tolist()
    x = torch.stack([own[:, top : top + H, left : left + W] for own, (top, left) in zip(padded, corners, strict=True)])
    blurred = F.avg_pool2d(F.pad(x, (1,) * 4, mode="replicate"), 3, 1)
    x = torch.where(torch.rand(B, 1, 1, 1, generator=generator) < 0.5, blurred, x)
    deviation = NOISE * torch.rand(B, 1, 1, 1, generator=generator)
    return x + deviation * torch.randn(x.shape, generator=generator)
