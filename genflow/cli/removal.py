"""Delete runs, datasets and latents: what uses one now is a reason to refuse, what was made from it one to ask."""

from typing import TYPE_CHECKING

from genflow.cli import console
from genflow.commands.references import MAX_LISTED, find_run
from genflow.errors import UsageError

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.storage.store import Store

MADE = ("runs", "pairs", "latents", "texts")  # kinds of artifacts that are made from datasets and runs
NOUN = {"runs": "run", "datasets": "dataset", "latents": "latents", "texts": "text embeddings"}


def remove(kind: str, reference: str, yes: bool) -> None:
    """Delete a run, a dataset or latents after confirmation, finished or not.

    Raises:
        UsageError: it does not exist, several have the name, or a process makes or uses it now.
    """
    from genflow.storage.store import Store

    store = Store()
    id = find_any(store, kind, reference)
    if process := store.holder(kind, id):
        raise UsageError(f"{NOUN[kind]} {id} is being made by process {process}", "stop it first, or wait for it")
    if users := store.users(id):
        used = ", ".join(f"{name.replace('-', '/', 1)} (process {process})" for name, process in users)
        raise UsageError(f"{NOUN[kind]} {id} is used now by {used}", "wait for it, or stop that process")
    what = f"{id} from {store.url}{_consequences(store, kind, id)}"
    console.confirm(f"delete {what}? [y/N] ", f"this would delete {what}", yes)
    if yes:
        console.note(f"deleting {what}")
    store.delete(kind, id)
    print(f"deleted  {id}")


def find_any(store: "Store", kind: str, reference: str) -> str:
    """The id of an artifact, finished or not.

    Raises:
        UsageError: there is none, or the reference is a name or a prefix of several, of which none is deleted silently.
    """
    ids = store.names(kind)
    finished = {artifact.id: artifact.name for artifact in store.artifacts(kind)}
    if reference in ids:
        return reference
    named = [id for id in ids if finished.get(id, id.rpartition("-")[0]) == reference]
    if len(named) > 1:
        raise UsageError(f"{len(named)} {kind} are named {reference}: {', '.join(named)}", "give an id, not the name")
    if named:
        return named[0]
    unfinished = [id for id in ids if id not in finished and reference and id.startswith(reference)]
    if len(unfinished) == 1 and not any(id.startswith(reference) for id in finished):
        return unfinished[0]
    return (find_run(store, reference) if kind == "runs" else store.find(kind, reference)).id


def _consequences(store: "Store", kind: str, id: str) -> str:
    """What other artifacts lose if this one is deleted."""
    made = [a.id for of in MADE for a in store.artifacts(of) if id in a.manifest.get("parents", [])]
    parts = []
    if made:
        lost = "evaluated" if kind == "datasets" else "made again"
        parts.append(f"{_listed(made)} came from it and can then not be {lost}")
    finished = {run.id for run in store.artifacts("runs")}
    if unfinished := [run for run in store.names("runs") if run not in finished and run != id]:
        import genflow.runs as runs  # imports torch, which is slow

        if waiting := [run for run in unfinished if id in runs.sources_of(store, run)]:
            parts.append(f"{_listed(waiting)} began on it and can then not resume")
    return f": {'; '.join(parts)}" if parts else ""


def _listed(ids: list[str]) -> str:
    more = f" and {len(ids) - MAX_LISTED} more" if len(ids) > MAX_LISTED else ""
    return ", ".join(ids[:MAX_LISTED]) + more
