"""The identity of a run and its folder: the id is the content address of recipe, data and code.

The same recipe on the same data with the same code is the same run: a finished run is found, and an interrupted run
resumes. The number of workers and the logging interval are not part of the id, because they change no result.
"""

import contextlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genflow import build, families, nets
from genflow.data.pairs import Pairs
from genflow.data.shard_format import FACTS
from genflow.data.shards import Dataset, Split
from genflow.data.texts import Texts
from genflow.errors import GenflowError, UsageError
from genflow.families.base import Family
from genflow.maths.rng import key
from genflow.recipe.files import dump, read
from genflow.recipe.schema import Recipe, flatten, parse
from genflow.sampling.engine import AUTOENCODER, RECIPE, TEXT, Engine
from genflow.sampling.prompts import Prompts
from genflow.specs import DataSpec
from genflow.storage.files import explain_disk_errors, link_or_copy, write_atomically
from genflow.storage.references import inherited
from genflow.storage.store import Artifact, Store
from genflow.system import source_hash
from genflow.system.source_hash import digest
from genflow.training.checkpoint_folders import Checkpoints

# With their imports, and the files of the run's family and nets, these decide the result of a run.
SOURCES = (
    "genflow/build.py", "genflow/training/loop.py", "genflow/data/stream.py", "genflow/data/shards.py",
    "genflow/data/pairs.py",
)  # fmt: skip
DIVERGED = "diverged.json"  # the error of a run that diverged
SUGGESTED = 64  # captions of held-out rows that a run keeps, for samples without a prompt
MAX_DIFFERENCES = 8  # that one line names
NOT_HASHED = {"log_every", "checkpoint_every", "threads", "accumulate", "checkpoint_activations"}


@dataclass(frozen=True)
class RunPlan:
    """A run that may not exist yet.

    Args:
        id: `<name>-<hash>`.
        name: the name without the hash.
        recipe: the resolved recipe.
        dataset: the pictures or points.
        facts: the specification of what the family learns: of the dataset, or of its latents, and of its captions.
        init: the run whose weights it starts from, if any.
        latents: of the dataset, if the run learns these.
        texts: the text embeddings of its captions, if the run reads these.
    """

    id: str
    name: str
    recipe: Recipe
    dataset: Artifact
    facts: DataSpec
    init: Artifact | None = None
    latents: Artifact | None = None
    texts: Artifact | None = None

    @property
    def data_facts(self) -> DataSpec:
        """The specification of the dataset, also if the family learns its latents."""
        return DataSpec.from_json(self.dataset.file(FACTS).read_text(encoding="utf-8"))


def plan(store: Store, recipe: Recipe) -> RunPlan:
    """Resolve a recipe against the store, and compute the id of its run.

    Args:
        store: contains the dataset, and the run that this one starts from.
        recipe: names both.

    Raises:
        UsageError: one of them does not exist, or does not fit the recipe.
    """
    recipe = recipe.replace(tune={})  # settings of a search do not change a run
    pairs = store.find("pairs", recipe.data.pairs) if recipe.data.pairs else None
    init = store.find("runs", recipe.init) if recipe.init else None
    latents = _find_data(store, "latents", recipe.data.latents, pairs, init)
    texts = _find_data(store, "texts", recipe.data.text, pairs, init)
    named = recipe.data.name or next((made.meta["dataset"] for made in (latents, texts) if made), "")
    dataset = store.find("datasets", named)
    names = {"name": dataset.id, "latents": latents.id if latents else "", "text": texts.id if texts else ""}
    recipe = recipe.replace(data={**recipe.data.model_dump(mode="json"), **names})  # names change
    for made, what in ((latents, "latents"), (texts, "text embeddings")):
        if made and (theirs := made.meta["dataset"]) != dataset.id:
            raise UsageError(f"{made.id} are {what} of {theirs}, not of {dataset.id}", f"--data {theirs}")
    facts = DataSpec.from_json((latents or dataset).file(FACTS).read_text(encoding="utf-8"))
    if texts:
        facts = replace(facts, text=Texts.of(texts, verify=False).spec)
    if recipe.data.flip and latents:
        again = f"genflow encode {dataset.id} --autoencoder {latents.meta['autoencoder']} --flip"
        raise UsageError("data.flip: latents cannot be mirrored like pictures", again)
    if recipe.data.flip and facts.is_points:
        raise UsageError(f"data.flip: {dataset.name} contains points, not pictures", "--set data.flip=false")
    if pairs:
        _require_fitting(pairs, dataset, latents, texts)
        recipe = recipe.replace(data={**recipe.data.model_dump(mode="json"), "pairs": pairs.id})
    if init:
        recipe = recipe.replace(init=init.id)
        theirs, on = parse(read(init.file(RECIPE))), DataSpec.from_json(init.file(FACTS).read_text(encoding="utf-8"))
        recipe = build.resolve(recipe, facts, theirs, on)
    else:
        recipe = build.resolve(recipe, facts)
    family = families.family_class(recipe.family["kind"])
    if recipe.cluster.strategy == "fsdp" and not family.shardable:
        raise UsageError(
            f"cluster.strategy=fsdp: the nets of a {family.title} cannot be sharded", "--set cluster.strategy=ddp"
        )
    name = recipe.name or f"{recipe.family['kind']}-{dataset.name}"
    return RunPlan(f"{name}-{address(recipe, facts)}", name, recipe, dataset, facts, init, latents, texts)


def size_of(run: RunPlan) -> str:
    """What the size of a run decides, in one line."""
    recipe, train = run.recipe, run.recipe.train
    weights = sum(p.numel() for p in build.outline_of(recipe, run.facts).parameters())
    defaults = build.bind("net", nets.builder(recipe.net["kind"]), {}, recipe.net["kind"])
    net = [f"{key} {value}" for key, value in recipe.net.items() if key == "kind" or value != defaults[key]]
    return (
        f"size {recipe.size}: {weights / 1e6:,.1f} million weights ({', '.join(net).removeprefix('kind ')}); "
        f"{train.steps:,} steps of {train.batch:,}, {train.optimizer} with lr {train.lr:g}, "
        f"average over {train.ema:g} of the training, precision {train.precision}"
    )


def _find_data(
    store: Store, kind: str, reference: str, pairs: Artifact | None, init: Artifact | None
) -> Artifact | None:
    """The latents or texts that a recipe names; without a name those of the pairs, or of the initial run."""
    if reference == "none":
        return None
    named = reference or inherited(kind, pairs, init)
    return store.find(kind, named) if named else None


def _require_fitting(
    pairs: Artifact, dataset: Artifact, latents: Artifact | None, texts: Artifact | None
) -> None:
    """Check that the teacher of pairs learned the same data.

    Raises:
        UsageError: it did not.
    """
    if pairs.meta["dataset"] != dataset.id:
        theirs = pairs.meta["dataset"]
        message = f"the teacher of the pairs {pairs.id} was trained on {theirs}, not on {dataset.id}"
        raise UsageError(message, f"--data {theirs}")
    if (theirs := pairs.meta.get("latents", "")) != (latents.id if latents else ""):
        learned = f"the latents {theirs}" if theirs else "pictures, not latents"
        raise UsageError(f"the teacher of the pairs {pairs.id} learned {learned}", "omit --latents")
    if (theirs := pairs.meta.get("texts", "")) != (texts.id if texts else ""):
        read = f"the captions {theirs}" if theirs else "no captions"
        raise UsageError(f"the teacher of the pairs {pairs.id} read {read}", "omit --text")


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
        **({"latents": recipe.data.latents} if recipe.data.latents else {}),
        **({"text": recipe.data.text} if recipe.data.text else {}),
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


def training_data(store: Store, recipe: Recipe) -> Dataset:
    """What a run learns: the dataset of a resolved recipe, or its latents.

    Raises:
        UsageError: it does not exist.
        DataError: a file is missing or corrupt.
    """
    kind, id = ("latents", recipe.data.latents) if recipe.data.latents else ("datasets", recipe.data.name)
    data, texts = Dataset.open(store.find(kind, id)), texts_of(store, recipe)
    return replace(data, facts=replace(data.facts, text=texts.spec)) if texts else data


def texts_of(store: Store, recipe: Recipe) -> Texts | None:
    """The text embeddings that a run reads; None for a run of classes, or without a condition.

    Raises:
        UsageError: they do not exist.
        DataError: a file is missing or corrupt.
    """
    if not recipe.data.text:
        return None
    return Texts.of(store.find("texts", recipe.data.text))


def autoencoder_of(run: Path, facts: DataSpec) -> Family | None:
    """The autoencoder in the folder of a run that learns latents, with frozen weights; None for other runs."""
    return Engine.from_folder(run / AUTOENCODER).family if facts.is_latents else None


def prompts_of(run: Path, facts: DataSpec) -> Prompts | None:
    """The embeddings of prompts in the folder of a run that reads captions; None for other runs."""
    return Prompts(Texts.open(run / TEXT)) if facts.text else None


def training_rows(store: Store, recipe: Recipe, data: Dataset) -> Split | Pairs:
    """The training data of a run: the training split, or a teacher's pairs."""
    if recipe.data.pairs:
        return Pairs.open(store.find("pairs", recipe.data.pairs), data.facts)
    return data.splits["train"]


def cpu_seconds(store: Store, run: Artifact) -> list[float]:
    """CPU seconds of all that a run needs: its autoencoder and latents, its teacher and pairs, and, last, itself."""
    _, *sources = run.manifest["parents"]  # the dataset is the first
    seconds = []
    for source in sources:
        made = next((a for kind in ("runs", "pairs", "latents", "texts") if (a := store.get(kind, source))), None)
        if made and made.kind == "latents":
            seconds += latents_cpu_seconds(store, made)
        elif made:
            seconds.append(made.meta.get("cpu_seconds") or 0)
    return [*seconds, run.meta.get("cpu_seconds") or 0]


def latents_cpu_seconds(store: Store, latents: Artifact) -> list[float]:
    """CPU seconds of the autoencoder's training, if it is a run in the store, and of encoding."""
    autoencoder = store.get("runs", latents.meta["autoencoder"])
    return [made.meta.get("cpu_seconds") or 0 for made in (autoencoder, latents) if made]


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
        files = write_description(folder, run)
    store.upload(*files)


def write_description(folder: Path, run: RunPlan) -> list[Path]:
    """Write what sampling needs in addition to the weights: recipe, facts, and the autoencoder and some captions."""
    learned = run.latents or run.dataset
    facts = learned.file(FACTS).read_bytes()
    if run.texts:
        facts = json.dumps(run.facts.to_json(), indent=1).encode()
    files = [write_atomically(folder / RECIPE, dump(run.recipe)), write_atomically(folder / FACTS, facts)]
    if run.texts:
        texts = Texts.of(run.texts)
        files += texts.write(folder / TEXT, _held_out_captions(Dataset.open(run.dataset, verify=False)))
    for name in learned.files(f"{AUTOENCODER}/*"):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        files.append(link_or_copy(learned.file(name), target))
    return files


def _held_out_captions(dataset: Dataset) -> list[str]:
    """The first captions of up to `SUGGESTED` rows, evenly spaced, because the rows may be sorted by class."""
    split = dataset.splits[dataset.reference]
    rows = np.unique(np.linspace(0, len(split) - 1, min(SUGGESTED, len(split))).astype(int))
    return [captions[0] for captions in split.column("captions", rows) if captions]


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
        if all(store.available(folder / name) for name in (RECIPE, FACTS)):
            name = parse(read(folder / RECIPE)).data.name
            if store.get("datasets", name):
                return name
            fingerprint = json.loads((folder / FACTS).read_bytes())["fingerprint"]  # a run of an older version
            same = [d for d in store.artifacts("datasets") if d.meta.get("facts", {}).get("fingerprint") == fingerprint]
            return same[0].id if same else ""
    return ""


def sources_of(store: Store, id: str) -> set[str]:
    """The ids of what an unfinished run needs to resume: its dataset, latents, pairs and initial run."""
    sources = {dataset_of(store, id)}
    with contextlib.suppress(GenflowError, OSError):
        recipe = parse(read(store.folder("runs", id) / RECIPE))
        sources |= {recipe.data.latents, recipe.data.text, recipe.data.pairs, recipe.init}
    return sources - {""}


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
        for file in (RECIPE, FACTS):
            if not store.available(folder / file):
                return f"an unknown part, because {folder / file} is missing"
        recipe = parse(read(folder / RECIPE))
        facts = DataSpec.from_json((folder / FACTS).read_text(encoding="utf-8"))
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
