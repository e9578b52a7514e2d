"""The identity of a run and its folder: the id is the content address of recipe, data and code.

The same recipe on the same data with the same code is the same run: a finished run is found, and an interrupted run
resumes. The number of workers and the logging interval are not part of the id, because they change no result.
"""

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genflow import build, families
from genflow.data.pairs import Pairs
from genflow.data.shards import Dataset, Split
from genflow.errors import GenflowError, UsageError
from genflow.families.base import Family
from genflow.maths.rng import key
from genflow.recipe.files import dump, read
from genflow.recipe.schema import Recipe, flatten, parse
from genflow.sampling.engine import Engine
from genflow.specs import DataSpec
from genflow.storage.files import explain_disk_errors, write_atomically
from genflow.storage.store import Artifact, Store
from genflow.system import source_hash
from genflow.system.source_hash import digest
from genflow.training.checkpoint import Checkpoints

# With their imports, and the files of the run's family and nets, these decide the result of a run.
SOURCES = (
    "genflow/build.py", "genflow/training/loop.py", "genflow/data/stream.py", "genflow/data/shards.py",
    "genflow/data/pairs.py",
)  # fmt: skip
DIVERGED = "diverged.json"  # the error of a run that diverged
MAX_DIFFERENCES = 8  # that one line names
NOT_HASHED = {"log_every", "checkpoint_every", "threads"}


@dataclass(frozen=True)
class RunPlan:
    """A run that may not exist yet.

    Args:
        id: `<name>-<hash>`.
        name: the name without the hash.
        recipe: the resolved recipe.
        dataset: the training data.
        facts: the specification of the dataset.
        init: the run whose weights it starts from, if any.
    """

    id: str
    name: str
    recipe: Recipe
    dataset: Artifact
    facts: DataSpec
    init: Artifact | None = None


def plan(store: Store, recipe: Recipe) -> RunPlan:
    """Resolve a recipe against the store, and compute the id of its run.

    Args:
        store: contains the dataset, and the run that this one starts from.
        recipe: names both.

    Raises:
        UsageError: one of them does not exist, or does not fit the recipe.
    """
    recipe = recipe.replace(tune={})  # settings of a search do not change a run
    dataset = store.find("datasets", recipe.data.name)
    recipe = recipe.replace(data={**recipe.data.model_dump(mode="json"), "name": dataset.id})  # names change
    facts = DataSpec.from_json(dataset.file("facts.json").read_text(encoding="utf-8"))
    if recipe.data.flip and facts.is_points:
        raise UsageError(f"data.flip: {dataset.name} contains points, not pictures", "--set data.flip=false")
    init = store.find("runs", recipe.init) if recipe.init else None
    if recipe.data.pairs:
        pairs = _pairs(store, recipe, dataset).id
        recipe = recipe.replace(data={**recipe.data.model_dump(mode="json"), "pairs": pairs})
    if init:
        recipe = recipe.replace(init=init.id)
        theirs = parse(read(init.file("recipe.yaml")))
        on = DataSpec.from_json(init.file("facts.json").read_text(encoding="utf-8"))
        recipe = build.resolve(recipe, facts, theirs, on)
    else:
        recipe = build.resolve(recipe, facts)
    family = families.family_class(recipe.family["kind"])
    if recipe.cluster.strategy == "fsdp" and not family.shardable:
        raise UsageError(
            f"cluster.strategy=fsdp: the nets of a {family.title} cannot be sharded", "--set cluster.strategy=ddp"
        )
    name = recipe.name or f"{recipe.family['kind']}-{dataset.name}"
    return RunPlan(f"{name}-{address(recipe, facts)}", name, recipe, dataset, facts, init)


def _pairs(store: Store, recipe: Recipe, dataset: Artifact) -> Artifact:
    pairs = store.find("pairs", recipe.data.pairs)
    if pairs.meta["dataset"] != dataset.id:
        theirs = pairs.meta["dataset"]
        message = f"the teacher of the pairs {pairs.id} was trained on {theirs}, not on {dataset.id}"
        raise UsageError(message, f"--data {theirs}")
    return pairs


def address(recipe: Recipe, facts: DataSpec) -> str:
    """The content address of a run: a hash of all that decides its result."""
    return digest(deciding(recipe, facts))


def deciding(recipe: Recipe, facts: DataSpec) -> dict[str, Any]:
    """All that decides a run's result: sections of its recipe, its data and the code."""
    document = recipe.model_dump(mode="json")
    train = {key: value for key, value in document["train"].items() if key not in NOT_HASHED}
    return {
        "net": document["net"],
        "family": document["family"],
        "train": train,
        "sample": document["sample"],
        "data": facts.fingerprint,
        **({"pairs": recipe.data.pairs} if recipe.data.pairs else {}),
        **({"flip": True} if recipe.data.flip and not recipe.data.pairs else {}),  # pairs are never flipped
        **({"init": recipe.init} if recipe.init else {}),
        "code": source_hash.code_of(*SOURCES, *build.source_files(recipe, facts)),
    }


def initial_family(store: Store, recipe: Recipe, facts: DataSpec) -> Family:
    """The family at the start of a run: weights initialised by seed, or copied from the run that it starts from."""
    torch.manual_seed(key(recipe.train.seed, "weights"))
    family = build.family_of(recipe, facts)
    if recipe.init:
        family.init_from(Engine.load(store.find("runs", recipe.init)).family)
    return family


def training_rows(store: Store, recipe: Recipe, data: Dataset) -> Split | Pairs:
    """The training data of a run: the training split, or a teacher's pairs."""
    if recipe.data.pairs:
        return Pairs.open(store.find("pairs", recipe.data.pairs), data.facts)
    return data.splits["train"]


def cpu_seconds(store: Store, run: Artifact) -> list[float]:
    """CPU seconds of the run that it starts from, of its teacher's pairs, and, last, of its own training."""
    _, *sources = run.manifest["parents"]  # the dataset is the first
    made = [store.get("runs", source) or store.get("pairs", source) for source in sources]
    return [source.meta["cpu_seconds"] for source in made if source] + [run.meta["cpu_seconds"]]


def create_folder(store: Store, run: RunPlan) -> None:
    """Create the run's folder with its recipe and facts, and delete partial files. The caller holds the run's lock."""
    folder = store.folder("runs", run.id)
    with explain_disk_errors(folder):
        Checkpoints(folder / "checkpoints").tidy()
        for partial in sorted(folder.rglob("*.tmp-*"), reverse=True):  # left by a killed attempt
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)
        write_atomically(folder / "recipe.yaml", dump(run.recipe))
        write_atomically(folder / "facts.json", run.dataset.file("facts.json").read_bytes())
    store.upload(folder / "recipe.yaml", folder / "facts.json")


def record_divergence(store: Store, run: RunPlan, error: GenflowError) -> None:
    """Store the error of a run that diverged, so that a study counts it and does not train the run again."""
    failure = {"message": error.message, "hint": error.hint, "code": error.code, "kind": type(error).__name__}
    store.upload(write_atomically(store.folder("runs", run.id) / DIVERGED, json.dumps(failure)))


def divergence(store: Store, run: RunPlan) -> dict[str, Any] | None:
    """The error {message, hint, code, kind} of a run that diverged and has not finished since; else None."""
    with contextlib.suppress(OSError, ValueError):
        file = store.folder("runs", run.id) / DIVERGED
        if not store.available(file):
            return None
        failure: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return None if store.get("runs", run.id) else failure
    return None


def difference(store: Store, run: RunPlan) -> str:
    """One line if a run is new although its name is not: what differs from the newest run of that name; else "".

    An unfinished run counts, because its user may expect that it resumes.
    """
    folders = store.root / "runs"
    if run.id in store.names("runs"):
        return ""
    finished = [a for a in store.artifacts("runs") if a.name == run.name]
    unfinished = [id for id in unfinished_ids(store) if id.rpartition("-")[0] == run.name]
    if not finished and not unfinished:
        return ""
    old = finished[-1].id if finished else max(unfinished, key=lambda other: _modified(folders / other))
    count = len(finished) + len(unfinished)
    known = f"{run.id} is a new run; " + (
        f"the name {run.name} has {count} others, the last is {old}" if count > 1 else f"{old} has the same name"
    )
    return f"{known}{'' if finished else ', unfinished'}. It differs in {_differences(store, run, old)}"


def dataset_of(store: Store, id: str) -> str:
    """The id of the dataset of an unfinished run; empty if it is unknown."""
    with contextlib.suppress(GenflowError, OSError, ValueError, KeyError, TypeError):
        folder = store.folder("runs", id)
        if all(store.available(folder / name) for name in ("recipe.yaml", "facts.json")):
            name = parse(read(folder / "recipe.yaml")).data.name
            if store.get("datasets", name):
                return name
            # a run of an older version
            fingerprint = json.loads((folder / "facts.json").read_text(encoding="utf-8"))["fingerprint"]
            same = [d for d in store.artifacts("datasets") if d.meta.get("facts", {}).get("fingerprint") == fingerprint]
            return same[0].id if same else ""
    return ""


def _modified(folder: Path) -> float:
    """When a folder was modified; 0 if only a bucket has it."""
    return folder.stat().st_mtime if folder.exists() else 0.0


def unfinished_ids(store: Store) -> list[str]:
    """The ids of runs that began and are not finished."""
    finished = {run.id for run in store.artifacts("runs")}
    return [id for id in store.names("runs") if id not in finished]


def _differences(store: Store, run: RunPlan, old: str) -> str:
    """What decides a run and is not the same in another run, as text."""
    try:
        folder = store.folder("runs", old)
        for file in ("recipe.yaml", "facts.json"):
            if not store.available(folder / file):
                return f"an unknown part, because {folder / file} is missing"
        recipe = parse(read(folder / "recipe.yaml"))
        facts = DataSpec.from_json((folder / "facts.json").read_text(encoding="utf-8"))
        theirs, ours = (flatten(deciding(*pair)) for pair in ((recipe, facts), (run.recipe, run.facts)))
    except (GenflowError, OSError, ValueError, KeyError, TypeError):
        return "the version of genflow that began it"
    data = (theirs.pop("data"), ours.pop("data"))
    del theirs["code"], ours["code"]  # both of today's code
    names = {"data": (recipe.data.name, run.recipe.data.name)} if data[0] != data[1] else {}
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    changed = names | {key: (theirs.get(key, "none"), ours.get(key, "none")) for key in keys}
    texts = [f"{key} {before} -> {after}" for key, (before, after) in changed.items()]
    if address(recipe, facts) != old.rpartition("-")[2]:
        texts.append("the code of genflow")
    more = [f"{len(texts) - MAX_DIFFERENCES} more"] if len(texts) > MAX_DIFFERENCES else []
    return ", ".join([*texts[:MAX_DIFFERENCES], *more]) or "nothing that genflow records"
