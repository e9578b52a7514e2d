"""Prepare a dataset: from the source that a user named to a committed artifact.

The work is a list of independent tasks, and an `Executor` runs them: Ray in a job (`jobs/prepare.py`), or `in_process`,
which runs them one after the other.
"""

import csv
import io
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from genflow.data import plan
from genflow.data.shard_writer import ShardResults
from genflow.data.shards import write_index
from genflow.data.sources.base import BadRecord, ImageSummary, Source, printable
from genflow.data.sources.find import find as find_source
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import NAME, Data
from genflow.storage.files import write_atomically
from genflow.storage.store import Artifact, Store

BAD = "bad.csv"  # the unreadable records: path and reason

Emit = Callable[..., None]
Executor = Callable[[str, list[Any]], Iterator[tuple[int, Any]]]
"""`execute(method, tasks)` calls the method of every task; yields (task number, result) in order of completion."""


def in_process() -> AbstractContextManager[Executor]:
    """An executor that runs the tasks in this process."""
    return nullcontext(lambda method, tasks: ((n, getattr(task, method)()) for n, task in enumerate(tasks)))


def prepare(
    store: Store, data: Data, workers: Callable[[], AbstractContextManager[Executor]], emit: Emit
) -> tuple[Artifact, bool]:
    """Find or prepare the dataset that `data` describes.

    Args:
        store: stores the dataset.
        data: the source and the options.
        workers: context manager that yields the executor; entered only if the dataset is not in the store.
        emit: receives events.

    Returns:
        The dataset, and whether it was in the store already.

    Raises:
        UsageError: the source does not exist.
        DataError: more than `max_bad` records cannot be read, or the source is damaged.
    """
    source = find_source(data)
    name, id = identity(source, data)
    artifact = store.get("datasets", id)
    if artifact is None:
        with store.lock("datasets", id):
            artifact = store.get("datasets", id)  # the previous holder of the lock may have made it
            if artifact is None:
                source.class_names()  # finds a damaged source before any worker starts
                with workers() as execute:
                    return _make(store, id, name, source, data, execute, emit), False
    rows = sum(artifact.meta["facts"]["splits"].values())
    if bad := artifact.meta["bad"]:
        check_bad_count(artifact.file(BAD), bad, rows + bad, data)
    return artifact, True


def identity(source: Source, data: Data) -> tuple[str, str]:
    """The dataset's name, and its id: the content address of source, options and code.

    Raises:
        UsageError: the name has invalid characters or is too long.
    """
    name = data.name or source.name
    if not NAME.fullmatch(name):
        raise UsageError(f"data.name {name!r} is invalid", "use at most 80 letters, digits, '.', '_' and '-'")
    return name, f"{name}-{plan.address_hash(source, data)}"


def find(store: Store, data: Data) -> Artifact | None:
    """The dataset that `data` describes, if it is in the store and has at most `max_bad` unreadable records."""
    artifact = store.get("datasets", identity(find_source(data), data)[1])
    return artifact if artifact and artifact.meta["bad"] <= data.max_bad else None


def _make(store: Store, id: str, name: str, source: Source, data: Data, execute: Executor, emit: Emit) -> Artifact:
    """Decode the records, write the shards and commit the dataset."""
    progress = Progress(emit, name)
    for killed in store.folder("datasets", id).parent.glob(f"{id}.tmp-*"):  # the lock excludes a live writer
        shutil.rmtree(killed, ignore_errors=True)
    with store.stage("datasets", id, name=name) as staged:
        summary = source.summarize(data)
        if summary is None:
            parts = plan.summary_parts(source)
            sizes = [len(part) for part in parts]
            summary = ImageSummary.merge(progress.collect(execute("summarize", parts), "headers", sizes))
        spec = plan.image_spec(source, data, summary)
        shards = plan.plan_shards(source, data, spec, staged.path)
        sizes = [len(shard.part) for shard in shards]
        written = progress.collect(execute("write", shards), "images", sizes)
        results = ShardResults(plan.initial_spec(source, spec), written)
        bad_list = store.folder("datasets", f"{name}.{BAD}")
        bad_list.unlink(missing_ok=True)
        if results.bad:
            write_bad_list(bad_list, results.bad)
            check_bad_count(bad_list, len(results.bad), sum(sizes), data)
            bad_list.rename(staged.path / BAD)
        facts = results.dataset_spec(source.about["path"])
        for leftover in staged.path.glob("*/*.tmp-*"):  # left by a worker that died
            leftover.unlink()
        write_index(staged.path, facts, results.files(shards))
        for note in source.notes:
            emit("warning", message=note)
        options = data.model_dump(mode="json", include={"source", "size", "channels", "val", "samples", "seed"})
        meta = {
            "facts": facts.to_json(),
            "options": options,
            "source": source.about,
            "skipped": source.skipped,
            "bad": len(results.bad),
        }
        return staged.commit(meta=meta)


def write_bad_list(path: Path, bad: list[BadRecord]) -> None:
    """List unreadable records as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *bad])
    write_atomically(path, text.getvalue())


def check_bad_count(listed: Path, bad: int, total: int, data: Data) -> None:
    """Raise if there are more unreadable records than `max_bad`.

    Args:
        listed: the CSV file that lists them.
        bad: unreadable records.
        total: all records.
        data: the source, and `max_bad`.

    Raises:
        DataError: there are more; it names the first three and the file that lists all.
    """
    if bad <= data.max_bad:
        return
    with open(listed, newline="", encoding="utf-8") as file:
        first = [f"{id!r}: {reason}" for id, reason in list(csv.reader(file))[1:4]]
    raise DataError(
        f"{bad} of {total} pictures in {printable(data.source)} cannot be read, and --max-bad is {data.max_bad} "
        f"({'; '.join(first)}{'; ...' if bad > 3 else ''}); the full list is in {listed}",
        f"repair or remove these pictures, or skip them with --max-bad {bad}",
    )


class Progress:
    """Reports progress, at most four times a second.

    Args:
        emit: receives events.
        dataset: the dataset's name.
    """

    def __init__(self, emit: Emit, dataset: str) -> None:
        self._emit, self._dataset = emit, dataset

    def collect(self, results: Iterator[tuple[int, Any]], what: str, sizes: list[int]) -> list[Any]:
        """Collect the results in the order of their tasks, and emit progress events as they arrive.

        Args:
            results: (task number, result), in any order.
            what: the unit, "headers" or "images".
            sizes: units in each task.
        """
        ordered: dict[int, Any] = {}
        started = reported = time.monotonic()
        done, total = 0, sum(sizes)
        for number, result in results:
            ordered[number] = result
            done += sizes[number]
            now = time.monotonic()
            if now - reported < 0.25 and done < total:
                continue
            reported, rate = now, round(done / max(now - started, 1e-9), 1)
            self._emit(
                "progress", stage="prepare", dataset=self._dataset, step=done, steps=total, what=what, rate=rate
            )
        return [ordered[number] for number in sorted(ordered)]
