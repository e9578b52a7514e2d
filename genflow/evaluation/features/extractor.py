"""Feature extractors: they map pictures to vectors, between which distances are measured.

    <dataset>-scales@1a2b3c4d    those of `multiscale.py`, by a classifier of the labels of the dataset; the default
    rotation-scales@1a2b3c4d     the same, for data without labels
    random-cnn@1a2b3c4d          the last hidden layer of the network of `classifier.py` with fixed random weights
                                 (`evaluate.features=random`), for any data
    <file>@1a2b3c4d              any TorchScript module (N, C, H, W) in [-1, 1] -> (N, D); or a safetensors file with
                                 the weights of `multiscale.py`, such as that of another dataset
    coordinates                  the coordinates of points in the plane

The name ends with a hash of the weights, so equal names mean equal features. Values for different names are never
compared. The Fréchet distance is called `fd`. It is called FID only for a module by path whose name contains
"inception" and that has 2,048 features, like the network of the published FID. The network and the features of the real
rows of a dataset are stored as an artifact.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_weights
from safetensors.torch import save_file as save_weights

from genflow.data.shards import Dataset
from genflow.data.values import to_display
from genflow.errors import DataError, UsageError
from genflow.evaluation.features import classifier
from genflow.evaluation.features.multiscale import FIT_ROWS, Multiscale
from genflow.maths.rng import key
from genflow.specs import DataSpec
from genflow.storage.store import Artifact, Store
from genflow.system import source_hash
from genflow.system.source_hash import digest

BUILT_IN = ("classifier", "random")
INCEPTION = 2048  # number of features of the network that defines FID
ROWS, MIN_ROWS = 10_000, 8  # largest and smallest number of rows, of the reference and of the floor
FAR = 1e6  # replaces coordinates that are not finite, so that such points are far from all data
WEIGHTS, VECTORS, DOCUMENT = "classifier.safetensors", "features.safetensors", "judge.json"
T = TypeVar("T")
Emit = Callable[..., None]
Embed = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class DataSplits:
    """The roles of real rows, as row indices in a fixed random order; no row has two roles.

    The features of rows that a network was trained on are further apart than those of unseen rows. Therefore the
    extractor is trained neither on the rows of the reference nor on those of the floor.

    Args:
        split: the split that samples are compared with.
        reference: rows of that split.
        floor: rows of the training split that are measured like samples, to get the floor of a metric.
        training: rows of the training split that the extractor is trained on.
    """

    split: str
    reference: np.ndarray
    floor: np.ndarray
    training: np.ndarray

    @classmethod
    def of(cls, data: Dataset) -> "DataSplits":
        """Assign the rows of a dataset; without a held-out split, the reference is a third of the training split."""
        split = data.reference
        order = np.random.default_rng(0).permutation(len(data.splits["train"]))
        if split == "train":
            reference, order = np.split(order, [min(ROWS, len(order) // 3)])
        else:
            reference = np.random.default_rng(1).permutation(len(data.splits[split]))[:ROWS]
        floor, training = np.split(order, [min(ROWS, len(order) // 2)])
        return cls(split, reference, floor, training)


@dataclass(frozen=True)
class FeatureReference:
    """A feature extractor for one dataset, with the features of its real rows.

    Args:
        artifact: the artifact that stores it.
        real: the roles of real rows.
        reference: features of the reference rows (M, D) float64.
        floor: features of the floor's rows (F, D) float64.
        labels: labels of the floor's rows (F,).
        embed: maps records in the format of a split to features (N, D) and predicted classes (N,), or None instead of
            classes if the network does not predict labels.
        about: name, kind, accuracy.
    """

    artifact: Artifact
    real: DataSplits
    reference: np.ndarray
    floor: np.ndarray
    labels: np.ndarray
    embed: Embed
    about: dict[str, Any]
    _cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def cached(self, make: Callable[[np.ndarray], T]) -> T:
        """`make(reference)`, computed on the first call and cached."""
        if make not in self._cache:
            self._cache[make] = make(self.reference)
        found: T = self._cache[make]
        return found

    def once(self, name: str, make: Callable[[], T]) -> T:
        """`make()`, computed on the first call with this name and cached: for what several metrics of a run need."""
        if name not in self._cache:
            self._cache[name] = make()
        found: T = self._cache[name]
        return found

    @property
    def name(self) -> str:
        """The name of the features, which every metric states."""
        return str(self.about["name"])


def address(dataset: Artifact, facts: DataSpec, spec: str) -> str:
    """The id of the artifact of a feature extractor, which need not exist yet.

    Args:
        dataset: the dataset.
        facts: the specification of its data.
        spec: "classifier", "random", or the path of a module.

    Raises:
        UsageError: there is no such file.
    """
    what = "coordinates" if facts.is_points else spec
    if what not in ("coordinates", *BUILT_IN):
        what = _hash(_module_path(spec))
    made_by = source_hash.code_of("genflow/evaluation/features/extractor.py")
    return f"{dataset.name}-{digest([facts.fingerprint, what, made_by])}"


def load_features(store: Store, data: Dataset, spec: str, emit: Emit) -> FeatureReference:
    """The feature extractor of a dataset; it is made and stored on the first call.

    Args:
        store: holds its artifact.
        data: the dataset.
        spec: "classifier", "random", or the path of a module.
        emit: receives progress events.

    Raises:
        UsageError: the module cannot be read, or does not return one vector per picture.
        DataError: the data has too few rows.
    """
    id, real = address(data.artifact, data.facts, spec), DataSplits.of(data)
    if min(len(real.reference), len(real.floor)) < MIN_ROWS:
        have = ", ".join(f"{rows} {name}" for name, rows in data.facts.splits.items())
        raise DataError(
            f"dataset {data.artifact.name} has too few rows to measure against ({have}; reference and floor need "
            f"{MIN_ROWS} each)",
            "prepare it again with more pictures, or a larger --val",
        )
    artifact = store.get("features", id)
    if artifact is None:
        with store.lock("features", id, uses=[data.artifact.id]):
            artifact = store.get("features", id) or _make(store, id, data, real, spec, emit)
    artifact.verify()
    about = json.loads(artifact.file(DOCUMENT).read_text(encoding="utf-8"))
    vectors = {name: v.astype(np.float64) for name, v in load_file(artifact.file(VECTORS)).items()}
    embed = _embedder(artifact.path, data.facts, about, spec)
    labels = data.splits["train"].labels_of(real.floor)
    return FeatureReference(artifact, real, vectors["reference"], vectors["floor"], labels, embed, about)


def _make(store: Store, id: str, data: Dataset, real: DataSplits, spec: str, emit: Emit) -> Artifact:
    facts = data.facts
    with store.stage("features", id, name=data.artifact.name) as staged:
        if facts.is_points:
            about: dict[str, Any] = {"name": "coordinates", "kind": "coordinates"}
        elif spec == "classifier":
            about = _train(staged.path, data, real, emit)
        elif spec == "random":
            save_weights(_random(facts).state_dict(), staged.path / WEIGHTS)
            about = {"name": f"random-cnn@{_hash(staged.path / WEIGHTS)[:8]}", "kind": "random"}
        else:
            path = _module_path(spec)
            kind = "weights" if path.suffix == ".safetensors" else "torchscript"
            about = {"name": f"{path.stem}@{_hash(path)[:8]}", "kind": kind}
        embed = _embedder(staged.path, facts, about, spec)
        vectors = {
            "reference": embed(data.splits[real.split].take(real.reference))[0],
            "floor": embed(data.splits["train"].take(real.floor))[0],
        }
        dims = int(vectors["floor"].shape[1])
        about |= {"dims": dims, "split": real.split, "distance": _distance(about, dims)}
        save_file({name: v.astype(np.float32) for name, v in vectors.items()}, staged.path / VECTORS)
        (staged.path / DOCUMENT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        return staged.commit(parents=[data.artifact.id], meta=about)


def _distance(about: dict[str, Any], dims: int) -> str:
    """The name of the Fréchet distance on these features."""
    is_inception = about["kind"] == "torchscript" and "inception" in about["name"].lower() and dims == INCEPTION
    return "FID" if is_inception else "fd"


def _random(facts: DataSpec) -> classifier.Classifier:
    """The network with random weights that depend only on its shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key("random features"))
        return classifier.Classifier(facts.shape, 2)


def _loaded(path: Path, facts: DataSpec) -> Multiscale:
    """The features with weights from a file.

    Raises:
        UsageError: the weights are not those of features for pictures of this shape.
    """
    try:
        weights = load_weights(path)
        net = classifier.Classifier(facts.shape, len(weights["net.head.bias"]))
        made = Multiscale(net, facts.shape)
        made.load_state_dict(weights)
    except (SafetensorError, KeyError, RuntimeError) as error:
        shape = " × ".join(map(str, facts.shape))
        raise UsageError(
            f"{path} does not hold features of genflow for pictures of {shape} (C × H × W)",
            "use the classifier.safetensors of a feature extractor for pictures of that shape, or a TorchScript module",
        ) from error
    return made


def _train(folder: Path, data: Dataset, real: DataSplits, emit: Emit) -> dict[str, Any]:
    facts, split = data.facts, data.splits["train"]
    task = classifier.Task.of(facts.classes, facts.shape)

    def display(rows: np.ndarray) -> np.ndarray:
        return to_display(split.take(real.training[rows]), facts)

    def progress(step: int, steps: int) -> None:
        what = "training the feature extractor"
        emit("progress", stage="features", dataset=data.artifact.id, step=step, steps=steps, what=what)

    net = classifier.train(display, split.labels_of(real.training), task, facts.shape, progress=progress)
    made = Multiscale(net, facts.shape).eval()
    made.fit(display(np.arange(min(FIT_ROWS, len(real.training)))))
    save_weights(made.state_dict(), folder / WEIGHTS)
    held_out = data.splits[real.split]
    pictures, labels = to_display(held_out.take(real.reference), facts), held_out.labels_of(real.reference)
    name = f"{data.artifact.name}-scales" if task.kind == "labels" else "rotation-scales"
    return {
        "name": f"{name}@{_hash(folder / WEIGHTS)[:8]}",
        "kind": "classifier",
        "task": task.kind,
        "classes": task.classes,
        "accuracy": classifier.accuracy(net, pictures, labels, task),
    }


def _embedder(folder: Path, facts: DataSpec, about: dict[str, Any], spec: str) -> Embed:
    match about["kind"]:
        case "coordinates":
            return lambda points: (_finite(points.reshape(len(points), -1).astype(np.float64)), None)
        case "random":
            random = _random(facts).eval().requires_grad_(False)
            return lambda records: (classifier.embed(random, to_display(records, facts))[0], None)
        case "classifier" | "weights":
            made = _loaded(_module_path(spec) if about["kind"] == "weights" else folder / WEIGHTS, facts)
            made.eval().requires_grad_(False)
            predicts_labels = about.get("task") == "labels"

            def embed(records: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
                features, classes = made.embed(to_display(records, facts))
                return features, classes if predicts_labels else None

            return embed
        case _:
            return _scripted(_module_path(spec), facts)


def _scripted(path: Path, facts: DataSpec) -> Embed:
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"{path} is not a TorchScript module", "save one with torch.jit.script(module).save(path)"
        ) from error

    @torch.no_grad()
    def embed(records: np.ndarray) -> tuple[np.ndarray, None]:
        found = []
        for start in range(0, len(records), classifier.EMBED_BATCH):
            x = classifier.to_input(to_display(records[start : start + classifier.EMBED_BATCH], facts))
            try:
                answer = module(x)
            except RuntimeError as error:
                last = str(error).strip().splitlines()[-1]
                raise UsageError(f"{path.name} fails on pictures of shape {tuple(x.shape)}: {last}") from error
            if not isinstance(answer, torch.Tensor) or answer.dim() != 2 or len(answer) != len(x):
                shape = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
                raise UsageError(f"{path.name} returns {shape} for {tuple(x.shape)}, not one vector per picture")
            found.append(answer.double().numpy())
        return np.concatenate(found), None

    return embed


def _finite(points: np.ndarray) -> np.ndarray:
    return np.nan_to_num(points, nan=FAR, posinf=FAR, neginf=-FAR)


def _module_path(spec: str) -> Path:
    path = Path(spec).expanduser()
    if not path.is_file():
        raise UsageError(
            f"evaluate.features: no file {spec}", "use classifier, random, or the path of a TorchScript module"
        )
    return path


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
