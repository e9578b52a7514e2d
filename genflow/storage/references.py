"""Which artifact a user means: by its id, a prefix of it, its name, or `latest`."""

from collections.abc import Callable

from genflow.errors import DataError, UsageError
from genflow.storage.artifact import COMMAND_FOR, NOUNS, Artifact
from genflow.storage.names import Record, meaning


def inherited(kind: str, *made: Artifact | None) -> str:
    """The id of the latents or texts that the first of some runs and pairs learned; empty if none did."""
    return next((str(id) for each in made if each and (id := each.meta.get(kind))), "")


def resolve(
    kind: str, reference: str, every: list[Artifact], damaged: dict[str, DataError],
    records: Callable[[str], dict[str, Record]], url: str,
) -> Artifact:  # fmt: skip
    """The artifact that a reference means; see `Store.find`.

    Args:
        kind: the artifact's.
        reference: an id, a prefix of it, a name, or `latest`.
        every: the finished artifacts of this kind, oldest first.
        damaged: the errors of those whose manifest is damaged, by id.
        records: reads what commands recorded about a name of datasets.
        url: the store's, for messages.

    Raises:
        UsageError: no artifact or several match.
        DataError: the manifest of an artifact whose id begins with the reference is damaged.
    """
    noun = NOUNS.get(kind, kind[:-1])
    if not reference:
        raise UsageError(f"no {noun} was named", f"genflow {'data' if kind == 'datasets' else kind} ls")
    if reference == "latest" and every:
        return every[-1]
    if exact := [a for a in every if a.id == reference]:
        return exact[0]
    if named := [a for a in every if a.name == reference]:
        return _meant(reference, named, records(reference)) if kind == "datasets" and len(named) > 1 else named[-1]
    close = [a for a in every if a.id.startswith(reference) or a.id.rpartition("-")[2].startswith(reference)]
    if len(close) == 1:
        return close[0]
    if close:
        raise UsageError(f"{noun} {reference!r} is ambiguous: {', '.join(a.id for a in close)}")
    for id, error in damaged.items():
        if id.startswith(reference):
            raise error
    names = list(dict.fromkeys(a.name for a in reversed(every)))
    known = f"; there are: {', '.join(names[:12])}" if names else f"; the store {url} has none"
    raise UsageError(f"no {noun} {reference!r}{known}", COMMAND_FOR[kind])


def _meant(name: str, named: list[Artifact], known: dict[str, Record]) -> Artifact:
    """The dataset that a name of several means.

    Raises:
        UsageError: the records do not decide it.
    """
    ids = {artifact.id: artifact for artifact in named}
    records = [record for record in known.values() if record.id in ids]
    if id := meaning(records, set(ids)):
        return ids[id]
    why = "no record tells which one genflow prepare made last"
    if records:
        by_time = sorted(records, key=lambda record: record.time)
        why = "the last one is " + ", ".join(f"{r.id} on {r.machine}" for r in by_time)
    raise UsageError(
        f"{len(named)} datasets are named {name}: {', '.join(ids)}; {why}",
        "use an id instead of the name; or repeat genflow prepare, and the name means that dataset",
    )
