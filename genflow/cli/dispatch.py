"""What commands share: compose a recipe, send a job, show a plan, and find runs."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genflow.cli import console
from genflow.errors import UsageError, nearest

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.recipe.schema import Recipe
    from genflow.storage.store import Artifact, Store

Document = dict[str, Any]


def is_verbose() -> bool:
    """Whether -v was given."""
    return bool(os.environ.get("GENFLOW_VERBOSE"))


def compose_recipe(
    family: str | None, files: Sequence[Document], sets: list[str], flags: dict[str, Any]
) -> "Recipe":  # fmt: skip
    """The recipe of a command, later layers over earlier ones: the family's preset, files, --set, flags.

    Args:
        family: None for a job that trains nothing.
        files: what was read from the files of --config.
        sets: KEY=VALUE each.
        flags: by the recipe's keys; None and "" are flags that were not given.

    Raises:
        UsageError: a key or a value is wrong.
    """
    from genflow.recipe.compose import assignments, compose

    return compose(family, *files, assignments(sets), nest_flags(flags))


def nest_flags(flags: dict[str, Any]) -> Document:
    """Flags that were given, as sections: `{"train.steps": 10}` as `{"train": {"steps": 10}}`."""
    from genflow.recipe.compose import merge

    document: Document = {}
    for key, value in flags.items():
        section, _, name = key.partition(".")
        if value not in (None, ""):
            document = merge(document, {section: {name: value} if name else value})
    return document


def send(
    stage: str, document: Document, store: "Store", cluster: bool, address: str,
    *, json: bool, hear: Callable[[Document], None] | None = None,
) -> Document:  # fmt: skip
    """Send a job, draw its progress, and return its result; a job that was left to itself ends the command.

    Args:
        stage: the job.
        document: what it is told.
        store: of this machine.
        cluster: whether it runs on a Ray cluster, rather than in a child process of this machine.
        address: of the cluster's dashboard; empty: the usual Ray variables, or 127.0.0.1:8265.
        json: whether one document is printed, and nothing else.
        hear: told every event, besides the progress.
    """
    from genflow.launch import local, remote

    with console.Progress() as progress:

        def told(event: Document) -> None:
            progress(event)
            if hear:
                hear(event)

        if cluster:
            done = remote.run_on_cluster(stage, document, store, told, address=address, verbose=is_verbose())
        else:
            done = local.run_local(stage, document, store, told, verbose=is_verbose())
    if done.get("schema") == "genflow.job/1":
        if json:
            console.document(done)
        raise SystemExit(0)
    return done


def show_plan(recipe: "Recipe | Document", stages: list[tuple[str, str, str]], json: bool) -> None:
    """Print a recipe, whole, and what would be done with it."""
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
    """A run by id, prefix, name, `latest`, `best:METRIC` (fd, kid: the smallest; others: the largest), or MLflow's name
    for it, `models:/NAME@ALIAS`.

    Raises:
        UsageError: there is none, or nothing was measured.
    """
    if reference.startswith("models:/"):
        from genflow.tracking import model_registry

        return store.find("runs", model_registry.run_of(store, reference))
    if not reference.startswith("best:"):
        return store.find("runs", reference)
    from genflow.evaluation.report.table import best_run

    return best_run(store, reference.removeprefix("best:"))


def require_family(family: str) -> None:
    """Raises UsageError, with the nearest, where there is no such family."""
    from genflow.families import kinds

    known = kinds()
    if family not in known:
        raise UsageError(f"unknown family {family!r}{nearest(family, known)}", f"families: {', '.join(known)}")


def require_dataset(recipe: "Recipe", store: "Store") -> None:
    """Raises UsageError, with those that there are, where the recipe names no dataset."""
    if not recipe.data.name:
        names = dict.fromkeys(a.name for a in store.artifacts("datasets"))
        have = f"there are: {', '.join(names)}" if names else "there is none yet: genflow prepare digits"
        raise UsageError("no dataset was named", f"--data NAME; {have}")


def check_output_path(out: Path | None) -> None:
    """Raises UsageError where no file can be written, before hours of work end there."""
    if out is None:
        return
    folder = out.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"--out {out}: there is no folder {folder}", f"mkdir -p {folder}")
    if out.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"--out {out}: no file can be written there", "name another file")


def absolute_if_path(source: str) -> str:
    """A path as an absolute one, so that the job finds it from anywhere; names stay."""
    expanded = Path(source).expanduser()
    return str(expanded.absolute()) if expanded.exists() or os.sep in source else source


def resolve_features(spec: str, store: "Store") -> str:
    """What a job is told of `evaluate.features`: a name, or a path that it finds from anywhere.

    Raises:
        SetupError: "imagenet", and its package is not installed.
    """
    if spec == "imagenet":
        from genflow.evaluation.features import imagenet  # torch, which no other command line waits for

        return str(imagenet.module(store))
    return spec if spec in ("classifier", "random") else absolute_if_path(spec)


def remove(kind: str, reference: str, yes: bool) -> None:
    """Delete a run or a dataset, after asking."""
    from genflow.storage.store import Store

    store = Store()
    artifact = find_run(store, reference) if kind == "runs" else store.find(kind, reference)
    console.confirm(f"delete {artifact.id} from {store.url}? [y/N] ", f"{artifact.id} would be deleted", yes)
    store.remove(artifact)
    print(f"deleted  {artifact.id}")
