"""Code shared by commands: compose a recipe, send a job, show a plan, find runs, and check arguments."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genflow.cli import console, starting
from genflow.errors import UsageError, similar
from genflow.specs import LATENTS_FROM, DataSpec
from genflow.system.documents import Json

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.pipeline.graph import Pipeline
    from genflow.recipe.schema import Recipe
    from genflow.storage.store import Artifact, Store


MAX_LISTED = 3  # artifacts of one name that a line names


def is_verbose() -> bool:
    """Whether -v was given."""
    return bool(os.environ.get("GENFLOW_VERBOSE"))


def read_config(path: Path) -> Json:
    """The content of a --config file.

    Raises:
        UsageError: it is missing or not a recipe.
        DataError: it is part of an artifact, such as the best.yaml of a search, and differs from its manifest.
    """
    from genflow.recipe.files import read
    from genflow.storage.manifest import verify_if_listed

    verify_if_listed(path)
    return read(path)


def compose_recipe(
    family: str | None, files: Sequence[Json], sets: list[str], flags: dict[str, Any]
) -> "Recipe":  # fmt: skip
    """Compose the recipe of a command from layers; later ones override: the family's preset, files, --set, flags.

    Args:
        family: None for a job without training.
        files: contents of the --config files.
        sets: KEY=VALUE strings from --set.
        flags: values by recipe key; None and "" mean that the flag was not given.

    Raises:
        UsageError: a key or a value is invalid.
    """
    from genflow.recipe.compose import assignments, compose

    return compose(family, *files, assignments(sets), nest_flags(flags))


def nest_flags(flags: dict[str, Any]) -> Json:
    """Nest the given flags by section: `{"train.steps": 10}` becomes `{"train": {"steps": 10}}`."""
    from genflow.recipe.compose import merge

    document: Json = {}
    for key, value in flags.items():
        section, _, name = key.partition(".")
        if value not in (None, ""):
            document = merge(document, {section: {name: value} if name else value})
    return document


def send(
    stage: str, document: Json, store: "Store", cluster: bool, address: str,
    *, json: bool, on_event: Callable[[Json], None] | None = None,
) -> Json:  # fmt: skip
    """Send a job, show its progress, and return its result. If the user detaches with Ctrl-C, the command exits.

    Args:
        stage: name of the job.
        document: recipe and inputs of the job.
        store: store of this machine.
        cluster: True runs the job on a Ray cluster, False in a child process on this machine.
        address: address of the cluster's dashboard; empty uses RAY_API_SERVER_ADDRESS, RAY_ADDRESS or 127.0.0.1:8265.
        json: whether to print one JSON document for a detached job.
        on_event: an additional callback for every event.
    """
    from genflow.launch import local, remote

    with console.Progress() as progress:

        def handle(event: Json) -> None:
            progress(event)
            if on_event:
                on_event(event)

        if cluster:
            done = remote.run_on_cluster(stage, document, store, handle, address=address, verbose=is_verbose())
        else:
            done = local.run_local(stage, document, store, handle, verbose=is_verbose())
    if done.get("schema") == "genflow.job/1":
        if json:
            console.document(done)
        raise SystemExit(0)
    return done


def show_plan(recipe: "Recipe | Json", stages: list[tuple[str, str, str]], json: bool) -> None:
    """Print the complete recipe, and the jobs that would run: (job, artifact, state)."""
    from genflow.recipe.files import dump

    document = recipe if isinstance(recipe, dict) else recipe.model_dump(mode="json")
    if json:
        rows = [{"job": job, "artifact": artifact, "state": state} for job, artifact, state in stages]
        console.document({"schema": "genflow.plan/1", "recipe": document, "stages": rows})
        return
    print(dump(document).rstrip())
    for job, artifact, state in stages:
        print(f"# {job} {artifact}: {state}")


def find_run(store: "Store", reference: str) -> "Artifact":
    """Find a run by id, id prefix, name, `latest`, `best:METRIC` or MLflow's `models:/NAME@ALIAS`.

    `best:fd` and `best:kid` choose the smallest value, `best:` of other metrics the largest. A name of several runs is
    the newest, and a line on standard error says so.

    Raises:
        UsageError: there is no such run, or no run was measured.
    """
    if reference.startswith("models:/"):
        from genflow.tracking import model_registry

        return store.find("runs", model_registry.run_of(store, reference))
    if not reference.startswith("best:"):
        return find_named(store, "runs", reference)
    from genflow.evaluation.report.table import best_run

    return best_run(store, reference.removeprefix("best:"))


def use_of(run: str, family: str | None, dataset: str | None, command: str = "") -> str:
    """The command that uses a run: `encode` of an autoencoder; else `command`, by default `sample RUN`."""
    from genflow.families import AUTOENCODERS

    encode = f"encode {dataset or 'DATASET'} --autoencoder {run}"
    return f"genflow {encode if family in AUTOENCODERS else command or f'sample {run}'}"


def training_of(dataset: str, facts: Json) -> str:
    """The command that trains on a dataset; of large pictures, on their latents."""
    latents = " --latents auto" if DataSpec.from_json(facts).is_large else ""
    return f"genflow train flow_matching --data {dataset}{latents}"


def show_stages(pipeline: "Pipeline", json: bool) -> None:
    """Print the plan of a dry run: the state of each stage, as far as it is known before the pipeline runs."""
    from genflow.pipeline.plan import dry_run
    from genflow.storage.store import Store

    rows = dry_run(pipeline, Store())
    if json:
        console.document({"schema": "genflow.plan/1", "pipeline": pipeline.name, "stages": rows})
        return
    table = [(row["stage"], row["job"], ", ".join(row["needs"]), row["artifact"], row["state"]) for row in rows]
    print(console.table(("stage", "job", "needs", "artifact", "state"), table, left=5))


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
        console.note(f"note: {reference} means {found.id}, {which}; the name also belongs to {listed}{more}")
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


def make_texts(
    store: "Store", recipe: "Recipe", cluster: bool, address: str, *, dry_run: bool, json: bool
) -> "Recipe | None":
    """The recipe with `data.text` as an id. If it names a text encoder, the captions are embedded first.

    Returns:
        The recipe; None if a dry run has shown that the captions are to be embedded.

    Raises:
        UsageError: there is neither such a text encoder nor such an artifact, or the data has no captions.
    """
    from genflow.text_encoders.registry import NAMES

    reference, data = recipe.data.text, recipe.data.model_dump(mode="json")
    if reference in ("", "none"):
        return recipe
    parts = reference.split("+")
    if not (any(part in NAMES for part in parts) or os.sep in reference or Path(reference).is_dir()):
        if not store.artifacts("texts"):
            from genflow import text_encoders

            text_encoders.find(reference)  # raises: the name is unknown
        found = find_named(store, "texts", reference, store.find("datasets", recipe.data.name).id)
        return recipe.replace(data={**data, "text": found.id})
    from genflow.recipe.schema import parse
    from genflow.sampling import encode_text

    asked = parse({"data": {"name": recipe.data.name}, "encode": {"text": reference}})
    task = encode_text.plan(store, asked)
    if store.get("texts", task.id) is None:
        if dry_run:
            show_plan(asked, [("encode_text", task.id, "to do, then the rest")], json)
            return None
        document = {"recipe": asked.model_dump(mode="json"), "inputs": {}}
        done = send("encode_text", document, store, cluster, address, json=json)
        took = console.duration(done["seconds"])
        console.note(f"captions {done['captions']:,} embedded by {done['encoder']} in {took}")
    return recipe.replace(data={**data, "text": task.id})


def import_init(store: "Store", recipe: "Recipe", *, dry_run: bool, json: bool) -> "Recipe | None":
    """The recipe with `init` as the id of a run. If it names a folder of Stable Diffusion 3, this becomes a run first.

    Returns:
        The recipe; None if a dry run has shown that the run is to be made.

    Raises:
        UsageError, DataError: the folder is none, is damaged, or does not fit the recipe's data.
    """
    if not starting.is_folder(recipe.init):
        return recipe
    recipe, missing = starting.import_folder(store, recipe, dry_run=dry_run)
    if missing:
        show_plan(recipe, [("import", missing, "to do, then the rest")], json)
        return None
    return recipe


def decide_latents(store: "Store", recipe: "Recipe") -> "Recipe":
    """The recipe with `data.latents` decided: by default, large pictures are learned as latents.

    Raises:
        UsageError: an autoencoder is to learn latents.
    """
    from genflow.families import AUTOENCODERS

    asked, data = recipe.data.latents, recipe.data
    if asked == "none":
        return recipe.replace(data={**data.model_dump(mode="json"), "latents": ""})
    if asked and recipe.family["kind"] in AUTOENCODERS:
        raise UsageError("--latents: an autoencoder learns pictures", "omit --latents, or name another family")
    if asked or data.pairs or recipe.init or recipe.family["kind"] in AUTOENCODERS:
        return recipe
    latents = default_latents(store.find("datasets", data.name))
    return recipe.replace(data={**data.model_dump(mode="json"), "latents": latents})


def default_latents(dataset: "Artifact") -> str:
    """`auto` for large pictures, with a line that says so; else empty."""
    if not DataSpec.from_json(dataset.meta["facts"]).is_large:
        return ""
    console.note(f"latents  pictures of {LATENTS_FROM} pixels and more are learned as latents; --latents none: pixels")
    return "auto"


def show_dataset(dataset: "Artifact") -> None:
    """Print a dataset's id, rows and shape on standard error, before a job uses it."""
    facts = dataset.meta.get("facts", {})
    rows = " + ".join(f"{rows:,} {split}" for split, rows in facts.get("splits", {}).items())
    console.note(f"data     {dataset.id}: {rows} rows · {shape_text(facts)}")


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


def check_output_path(out: Path | None) -> None:
    """Raise UsageError if --out cannot be written, so that a long job does not fail at its end."""
    if out is None:
        return
    folder = out.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"--out {out}: folder {folder} does not exist", f"mkdir -p {folder}")
    if out.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"--out {out}: this file cannot be written", "choose another file")


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
