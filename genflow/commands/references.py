"""Find what a command names: runs, datasets, latents, features; and check that it exists."""

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from genflow.commands import starting
from genflow.errors import UsageError, similar
from genflow.specs import LATENTS_FROM, DataSpec
from genflow.system.documents import Json
from genflow.system.streams import note

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.recipe.schema import Recipe
    from genflow.storage.store import Artifact, Store

MAX_LISTED = 3  # artifacts of one name that a line names


def find_run(store: "Store", reference: str) -> "Artifact":
    """Find a run by id, id prefix, name, `latest`, `best:METRIC` or MLflow's `models:/NAME@ALIAS`.

    `best:fd` and `best:kid` choose the smallest value, `best:` of other metrics the largest, of runs that were measured
    on the same number of samples; a line on standard error names the others. A name of several runs is the newest, and
    a line says so.

    Raises:
        UsageError: there is no such run, or no run was measured.
    """
    if reference.startswith("models:/"):
        from genflow.tracking import model_registry

        return store.find("runs", model_registry.run_of(store, reference))
    if not reference.startswith("best:"):
        return find_named(store, "runs", reference)
    from genflow.evaluation.report.table import best_run

    found, remark = best_run(store, reference.removeprefix("best:"))
    if remark:
        note(remark)
    return found


def find_named(store: "Store", kind: str, reference: str, dataset: str = "") -> "Artifact":
    """`Store.find`; if the reference is the name of several artifacts, print which one it means.

    Args:
        store: holds the artifacts.
        kind: of the artifact.
        reference: an id, a prefix of it, a name, or `latest`.
        dataset: the id of a dataset; a name means the newest artifact that is made from it, if there is one.
    """
    found = store.find(kind, reference)
    if reference not in (found.id, "latest") and reference == found.name and (others := store.same_name(found)):
        which = "prepared last" if kind == "datasets" else "the newest"
        own = [a for a in others if a.meta.get("dataset") == dataset]
        if own and found.meta.get("dataset") != dataset:
            others, found = [a for a in (*others, found) if a.id != own[-1].id], own[-1]
            which = f"{which} of {dataset}"
        listed = ", ".join(other.id for other in others[-MAX_LISTED:])
        more = f" and {len(others) - MAX_LISTED} more" if len(others) > MAX_LISTED else ""
        note(f"note: {reference} means {found.id}, {which}; the name also belongs to {listed}{more}")
    return found


def find_latents(store: "Store", reference: str, dataset: "Artifact | None" = None) -> "Artifact":
    """Find latents by id, a prefix of it, or name; the name of a dataset finds the newest latents of it.

    Args:
        store: holds the latents.
        reference: as given with --latents.
        dataset: the one that they must be of.

    Raises:
        UsageError: there are none, or they are of another dataset.
    """
    try:
        found = find_named(store, "latents", reference, dataset.id if dataset else "")
    except UsageError:
        pictures = next((a for a in store.artifacts("datasets") if reference in (a.id, a.name)), None)
        if pictures is None:
            raise
        own = [a for a in store.artifacts("latents") if a.meta["dataset"] == pictures.id]
        if not own:
            cure = f"--data {store.reference(pictures)} --latents auto, or: genflow encode {store.reference(pictures)}"
            raise UsageError(f"the dataset {pictures.id} has no latents", cure) from None
        found = own[-1]
    if dataset and (theirs := found.meta["dataset"]) != dataset.id:
        cure = f"--data {theirs}, or --latents auto"
        raise UsageError(f"{found.id} are latents of {theirs}, not of {dataset.id}", cure)
    return found


def find_data(store: "Store", recipe: "Recipe") -> "Recipe":
    """Find the dataset and the other artifacts that a recipe names, print the dataset, and write the ids into it.

    Raises:
        UsageError: the recipe names no dataset, or one of them does not exist.
    """
    named, reference = {}, recipe.data.latents
    is_named = reference not in ("", "auto", "none")
    if not (recipe.data.name or is_named) and (own := store.get("texts", recipe.data.text)):
        recipe = recipe.replace(data={**recipe.data.model_dump(mode="json"), "name": own.meta["dataset"]})
    if is_named and not recipe.data.name:
        latents = find_latents(store, reference)
        named = {"latents": latents.id, "name": latents.meta["dataset"]}
        recipe = recipe.replace(data={**recipe.data.model_dump(mode="json"), **named})
    require_dataset(recipe, store)
    dataset = find_named(store, "datasets", recipe.data.name)
    named["name"] = dataset.id
    if is_named:
        named["latents"] = find_latents(store, recipe.data.latents, dataset).id
    if recipe.data.pairs:
        named["pairs"] = find_named(store, "pairs", recipe.data.pairs).id
    recipe = recipe.replace(data={**recipe.data.model_dump(mode="json"), **named})
    if recipe.init and not starting.is_folder(recipe.init):
        recipe = recipe.replace(init=find_run(store, recipe.init).id)
    show_dataset(dataset)
    return recipe


def latents_for(store: "Store", recipe: "Recipe") -> str:
    """What a run learns: `auto` or the id of latents; `none` or empty for pictures.

    By default a run learns what its initial run or its pairs are of, and large pictures are learned as latents.

    Raises:
        UsageError: an autoencoder is to learn latents.
    """
    from genflow.families import AUTOENCODERS
    from genflow.storage.references import inherited

    asked, data = recipe.data.latents, recipe.data
    is_autoencoder = recipe.family["kind"] in AUTOENCODERS
    if is_autoencoder and asked not in ("", "none"):
        raise UsageError("--latents: an autoencoder learns pictures", "omit --latents, or name another family")
    if is_autoencoder or asked:
        return asked
    if data.pairs or recipe.init:
        init = "" if starting.is_folder(recipe.init) else recipe.init
        made = [store.get(kind, id) for kind, id in (("pairs", data.pairs), ("runs", init)) if id]
        return inherited("latents", *made)
    return default_latents(store.find("datasets", data.name))


def default_latents(dataset: "Artifact") -> str:
    """`auto` for large pictures, with a line that says so; else empty."""
    facts = DataSpec.from_json(dataset.meta["facts"])
    if not facts.is_large:
        return ""
    least = LATENTS_FROM[facts.colour]
    note(f"latents  {facts.colour} pictures of {least} pixels and more are learned as latents; --latents none: pixels")
    return "auto"


def show_dataset(dataset: "Artifact") -> None:
    """Print a dataset's id, rows and shape on standard error, before a job uses it."""
    facts = dataset.meta.get("facts", {})
    rows = " + ".join(f"{rows:,} {split}" for split, rows in facts.get("splits", {}).items())
    note(f"data     {dataset.id}: {rows} rows · {shape_text(facts)}")


def shape_text(facts: Json) -> str:
    """The shape of a dataset's rows as text: C×H×W, or points."""
    shape = "×".join(str(n) for n in facts.get("shape", ()))
    return "points in the plane" if facts.get("levels", 0) is None else f"{shape} (C×H×W)"


def require_family(family: str) -> None:
    """Raise UsageError for an unknown family, and name a similar family."""
    from genflow.families import kinds

    known = kinds()
    if family not in known:
        raise UsageError(f"unknown family {family!r}{similar(family, known)}", f"choose one of: {', '.join(known)}")


def require_dataset(recipe: "Recipe", store: "Store") -> None:
    """Raise UsageError if the recipe names no dataset; the hint lists the datasets in the store."""
    if not recipe.data.name:
        known = store.artifacts("datasets")
        count = Counter(dataset.name for dataset in known)
        names = dict.fromkeys(d.name if count[d.name] == 1 else d.id for d in known)
        if not names:
            raise UsageError(
                "no dataset given, and the store has none", "genflow prepare digits, then add --data digits"
            )
        raise UsageError("no dataset given", f"add --data NAME; datasets in the store: {', '.join(names)}")


def absolute_if_path(source: str) -> str:
    """Make a path absolute, so that a job with another working folder finds it; leave a name as it is."""
    expanded = Path(source).expanduser()
    return str(expanded.absolute()) if expanded.exists() or os.sep in source else source


def resolve_features(spec: str, store: "Store") -> str:
    """Resolve `evaluate.features` to a built-in name or an absolute path.

    Raises:
        SetupError: the features are "imagenet", and the package for them is not installed.
    """
    if spec == "imagenet":
        from genflow.evaluation.features import imagenet  # imports torch, which is slow

        return str(imagenet.module(store))
    return spec if spec in ("classifier", "random") else absolute_if_path(spec)


def kind_of_data(store: "Store", reference: str) -> str:
    """The kind of a reference: latents or texts by id, or by a name that no dataset has; else a dataset."""
    made = ("latents", "texts")
    if kind := next((kind for kind in made if reference in store.names(kind)), ""):
        return kind
    named = {kind: {artifact.name for artifact in store.artifacts(kind)} for kind in ("datasets", *made)}
    return next((kind for kind in made if reference in named[kind] - named["datasets"]), "datasets")
