"""Prepare a dataset: from the source that a user named to a committed artifact.

The work is a list of independent tasks, and an `Executor` runs them: Ray in a job (`jobs/prepare.py`), or `in_process`,
which runs them one after the other.
"""

import csv
import io
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from genflow.data import checks, encoding, plan
from genflow.data.images import SUPPORTED
from genflow.data.shard_format import write_index
from genflow.data.shard_writer import ShardResult, ShardResults, ShardTask
from genflow.data.skipped import CURES, describe
from genflow.data.sources.base import BadRecord, ImageSpec, ImageSummary, Source, printable
from genflow.data.sources.find import find as find_source
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import NAME, Data
from genflow.storage.files import write_atomically
from genflow.storage.store import Artifact, Store

MOST_BAD = 0.5  # above this fraction of unreadable records, the error proposes no larger --max-bad
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
    if source.skipped != artifact.meta["skipped"] and source.skipped:
        message = f"{printable(data.source)} now has other files that are skipped: {describe(source.skipped)}"
        emit("warning", message=message)
    rows = sum(artifact.meta["facts"]["splits"].values())
    if bad := artifact.meta["bad"]:
        check_bad_count(artifact.file(BAD), bad, rows + bad, data)
    return artifact, True


def identity(source: Source, data: Data) -> tuple[str, str]:
    """The dataset's name, and its id: the content address of source, options and code.

    Raises:
        UsageError: the name has invalid characters or is too long, or the data cannot be encoded.
    """
    encoding.require(data.encoding, source.levels, printable(data.source))
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
        if (groups := plan.groups_of_copies(source, written)) is not None:
            shards, written = _write_again(source, data, spec, staged.path, groups, written, execute, progress)
        results = ShardResults(plan.initial_spec(source, data, spec), written)
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
        warnings = [*source.notes, *checks.check(facts, data, spec, summary, written, staged.path)]
        for warning in warnings:
            emit("warning", message=warning)
        of_run = {"name", "pairs", "latents", "text", "max_bad", "flip"}
        options = data.model_dump(mode="json", exclude=of_run)
        meta = {
            "facts": facts.to_json(),
            "options": options,
            "source": source.about,
            "skipped": source.skipped,
            "bad": len(results.bad),
            "warnings": warnings,
        }
        return staged.commit(meta=meta)


def _write_again(
    source: Source, data: Data, spec: ImageSpec, folder: Path, groups: np.ndarray, written: list[ShardResult],
    execute: Executor, progress: "Progress",
) -> tuple[list[ShardTask], list[ShardResult]]:  # fmt: skip
    """Write train and val with another assignment of rows, which holds out whole groups of copies.

    The copies are only known after decoding, so a dataset with copies in both splits is decoded twice.
    """
    for split in ("train", "val"):
        shutil.rmtree(folder / split)
    shards = plan.plan_shards(source, data, spec, folder, groups)
    again = [shard for shard in shards if shard.split in ("train", "val")]
    results = progress.collect(execute("write", again), "images", [len(shard.part) for shard in again])
    return shards, results + [shard for shard in written if shard.split == "test"]


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
        every = list(csv.reader(file))[1:]
    first = [f"{id!r}: {reason}" for id, reason in every[:3]]
    reason = Counter(reason for _, reason in every).most_common(1)[0][0]
    raise DataError(
        f"{bad} of {total} pictures in {printable(data.source)} cannot be read, and --max-bad is {data.max_bad} "
        f"({'; '.join(first)}{'; ...' if bad > 3 else ''}); the full list is in {listed}",
        _bad_hint(bad, total, reason, data),
    )


def _bad_hint(bad: int, total: int, reason: str, data: Data) -> str:
    """What to do about unreadable records: install a decoder, look at the source, or skip a few of them.

    Args:
        bad: unreadable records.
        total: all records.
        reason: the most frequent reason.
        data: the source.
    """
    if command := next((command for command in CURES.values() if command in reason), ""):
        return command
    if bad <= MOST_BAD * total:
        return f"repair or remove these pictures, or skip them with --max-bad {bad}"
    if "a path and no bytes" in reason:
        return "the table names picture files: put them next to it, or use their folder as the source"
    what = "all of them" if bad == total else "most of them"
    return (
        f"{what} cannot be read, so {printable(data.source)} contains something else, or a format that is not "
        f"supported: convert the pictures to PNG or JPEG (supported: {SUPPORTED})"
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
