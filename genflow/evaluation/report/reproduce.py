"""How to reproduce a comparison: the commands, and the recipe keys in which its runs differ."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from genflow import build
from genflow.data.shard_format import FACTS
from genflow.errors import GenflowError
from genflow.families import AUTOENCODERS
from genflow.recipe.compose import compose
from genflow.recipe.files import read
from genflow.recipe.schema import Data, Evaluate, Recipe, flatten, parse
from genflow.specs import DataSpec
from genflow.storage.store import Artifact, Store

NOT_OF_THE_RUN = ("name", "data.", "evaluate.", "cluster.", "reflow.")  # keys that do not change the weights


def commands(store: Store, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """`genflow prepare`, `train` for every run, and `compare`, with the settings that differ from the presets.

    Runs on latents come after the training of their autoencoder and `genflow encode`.

    Args:
        store: holds the dataset and the runs.
        rows: `genflow.evaluate/1` documents.
    """
    dataset = store.find("datasets", rows[0]["dataset"])
    runs = [store.find("runs", row["run"]) for row in rows]
    lines = [_line("prepare", dataset.meta["options"]["source"], "--name", dataset.name, *_prepare(dataset))]
    trained = _lineage(store, runs)
    # The id of the dataset, because its name may mean another one later; a run's name, if no other run has it.
    names = [run.name for run in store.artifacts("runs")]
    name_by_run = {run.id: run.name if names.count(run.name) == 1 else run.id for run in trained}
    encoded: set[str] = set()
    for run in trained:
        latents = store.get("latents", run.meta.get("latents") or "")
        if latents and latents.id not in encoded:
            encoded.add(latents.id)
            lines.append(_encode(latents, name_by_run))
        if run.meta.get("folder"):  # no training made it: the trainings that start from it name its folder
            continue
        settings = _train(store, run, latents.name if latents else "", name_by_run)
        lines.append(_line("train", run.meta["family"], "--data", dataset.id, *settings))
    named = [name_by_run[run.id] for run in runs]
    defaults = Evaluate().model_dump(mode="json")
    sets = _sets({f"evaluate.{key}": value for key, value in rows[0]["evaluate"].items() if value != defaults[key]})
    sets += _sets({f"sample.{key}": value for key, value in rows[0].get("sample", {}).items()})
    return [*lines, _line("compare", *named, *sets)]


def _prepare(dataset: Artifact) -> list[str]:
    defaults = Data().model_dump(mode="json")
    changed = {key: value for key, value in dataset.meta["options"].items() if key not in ("source", "name")}
    return _sets({f"data.{key}": value for key, value in changed.items() if value != defaults.get(key)})


def _lineage(store: Store, runs: Sequence[Artifact]) -> list[Artifact]:
    """The runs, and the runs that they start from or whose latents they learn, each after these.

    Runs that are no longer in the store are left out.
    """
    found: dict[str, Artifact] = {}

    def add(run: Artifact) -> None:
        latents = store.get("latents", run.meta.get("latents") or "")
        for source in (latents.meta["autoencoder"] if latents else "", run.meta.get("init") or ""):
            if source and source not in found and (earlier := store.get("runs", source)):
                add(earlier)
        found.setdefault(run.id, run)

    for run in runs:
        add(run)
    return list(found.values())


def _encode(latents: Artifact, name_by_run: dict[str, str]) -> str:
    autoencoder = latents.meta["autoencoder"]
    flip = ["--flip"] if latents.meta["flip"] else []
    named = ["--autoencoder", name_by_run.get(autoencoder, autoencoder), "--name", latents.name]
    return _line("encode", latents.meta["dataset"], *named, *flip)


def _train(store: Store, run: Artifact, latents: str, name_by_run: dict[str, str]) -> list[str]:
    """The options that turn the family's preset into the run's recipe.

    Args:
        store: holds the run that it starts from.
        run: the run.
        latents: the name of the latents that it learned; empty for others, or if they are no longer in the store.
        name_by_run: names by id.
    """
    recipe = recipe_of(run)
    facts = DataSpec.from_json(run.file(FACTS).read_text(encoding="utf-8"))  # of what it learned
    kind, net = recipe.family["kind"], recipe.net["kind"]
    source = store.get("runs", recipe.init) if recipe.init else None
    init = recipe_of(source) if source else None
    try:
        own = {"family": {"kind": kind}, "data": {"latents": recipe.data.latents}}
        preset = build.resolve(compose(kind, own), facts, init)
        other_net = preset.net["kind"] != net
        if other_net:
            preset = build.resolve(compose(kind, own, {"net": {"kind": net}}), facts, init)
        base = flatten(preset.model_dump(mode="json"))
        if other_net:
            del base["net.kind"]
    except GenflowError:  # the preset no longer exists or is invalid: state every setting
        base = {"family.kind": kind}
    changed = {key: value for key, value in _deciding_settings(recipe).items() if key not in base or base[key] != value}
    changed.pop("init", None)
    folder = source.meta.get("folder") if source else None
    start = ["--init", folder or name_by_run.get(recipe.init, recipe.init)] if recipe.init else []
    texts = store.get("texts", recipe.data.text)
    text = ["--text", texts.meta["encoder"] if texts else recipe.data.text] if recipe.data.text else []
    name = ["--name", recipe.name] if recipe.name else []
    default = "none" if facts.is_large and not (recipe.init or recipe.data.pairs or kind in AUTOENCODERS) else ""
    learned = latents or recipe.data.latents or default
    on = ["--latents", learned] if learned else []
    return [*on, *text, *start, *name, *_sets(changed)]


def recipe_of(run: Artifact) -> Recipe:
    """The resolved recipe of a run."""
    path = run.file("recipe.yaml")
    return parse(read(path), str(path))


def differences(recipes: Sequence[Recipe]) -> list[tuple[str, list[str]]]:
    """The keys in which recipes differ, with one value per recipe, or a dash if it lacks the key.

    Keys that only one recipe has are omitted (see `unique_settings`).
    """
    flat = [_deciding_settings(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for values in flat for key in values if sum(key in other for other in flat) > 1)
    found = [(key, [_text(values[key]) if key in values else "–" for values in flat]) for key in keys]
    return [(key, values) for key, values in found if len(set(values)) > 1]


def unique_settings(recipes: Sequence[Recipe]) -> list[list[str]]:
    """For each recipe, the settings whose keys no other recipe has, as `key=value`."""
    flat = [_deciding_settings(recipe) for recipe in recipes]
    return [
        [f"{key}={_text(values[key])}" for key in values if sum(key in other for other in flat) == 1]
        for values in flat
    ]


def _deciding_settings(recipe: Recipe) -> dict[str, Any]:
    values = flatten(recipe.model_dump(mode="json"))
    pairs = {"data.pairs": recipe.data.pairs} if recipe.data.pairs else {}
    return {key: value for key, value in values.items() if not key.startswith(NOT_OF_THE_RUN)} | pairs


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _sets(values: dict[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={_text(value)}")]


def _line(*words: str) -> str:
    return shlex.join(["genflow", *words])
