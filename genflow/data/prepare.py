"""Preparing a dataset, from what a person named to a committed artifact, whoever does the work.

The work is a list of tasks without order; `Executor` is the one narrow door to whoever carries them out. In a job
that is Ray (`jobs/prepare.py`); `here` does them one after the other in this process.
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
from genflow.data.sources.base import BadRecord, ImageSummary, Source
from genflow.data.sources.find import find as find_source
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import NAME, Data
from genflow.storage.files import write_atomically
from genflow.storage.store import Artifact, Store

BAD = "bad.csv"  # the records that could not be read: path and reason

Emit = Callable[..., None]
Executor = Callable[[str, list[Any]], Iterator[tuple[int, Any]]]
"""`execute(method, tasks)` calls that method of every task; results come as they are done, with their numbers."""


def in_process() -> AbstractContextManager[Executor]:
    """Executor out tasks in this process."""
    return nullcontext(lambda method, tasks: ((n, getattr(task, method)()) for n, task in enumerate(tasks)))


def prepare(
    store: Store, data: Data, workers: Callable[[], AbstractContextManager[Executor]], emit: Emit
) -> tuple[Artifact, bool]:
    """The dataset that `data` describes, and whether it was there already.

    Args:
        store: where it goes.
        data: the source and the options.
        workers: gives who carries out the tasks; entered only if there is something to do.
        emit: takes events.

    Raises:
        UsageError: no such source.
        DataError: more than `max_bad` records cannot be read, or the source is broken.
    """
    source = find_source(data)
    name, id = identity(source, data)
    artifact = store.get("datasets", id)
    if artifact is None:
        with store.lock("datasets", id):
            artifact = store.get("datasets", id)  # whoever held the lock may have made it
            if artifact is None:
                source.class_names()  # a source that is broken is found before any worker is started
                with workers() as execute:
                    return _make(store, id, name, source, data, execute, emit), False
    rows = sum(artifact.meta["facts"]["splits"].values())
    check_bad_count(artifact.file(BAD), artifact.meta["bad"], rows + artifact.meta["bad"], data)
    return artifact, True


def identity(source: Source, data: Data) -> tuple[str, str]:
    """What the dataset is called: its name, and its id, which is the content address of source and options.

    Raises:
        UsageError: the name cannot be one.
    """
    name = data.name or source.name
    if not NAME.fullmatch(name):
        raise UsageError(f"data.name {name!r}: use letters, digits, '.', '_' and '-', at most 80")
    return name, f"{name}-{plan.address_hash(source, data)}"


def find(store: Store, data: Data) -> Artifact | None:
    """The dataset that `data` describes, if it is there already and has no more bad records than it may."""
    artifact = store.get("datasets", identity(find_source(data), data)[1])
    return artifact if artifact and artifact.meta["bad"] <= data.max_bad else None


def _make(store: Store, id: str, name: str, source: Source, data: Data, execute: Executor, emit: Emit) -> Artifact:
    """Decode, write and commit."""
    progress = Progress(emit, name)
    for killed in store.folder("datasets", id).parent.glob(f"{id}.tmp-*"):  # nobody else can be at it: the lock
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
        for leftover in staged.path.glob("*/*.tmp-*"):  # of a worker that died
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
    """Refuse more unreadable records than `max_bad`.

    Raises:
        DataError: there are more; it names the first three and where all are listed.
    """
    if bad <= data.max_bad:
        return
    with open(listed, newline="", encoding="utf-8") as file:
        first = [f"{id!r}: {reason}" for id, reason in list(csv.reader(file))[1:4]]
    raise DataError(
        f"{bad} of {total} pictures cannot be read, and at most {data.max_bad} may be ({'; '.join(first)}"
        f"{'; ...' if bad > 3 else ''}); all are listed in {listed}",
        f"mend or remove them, or run again with --max-bad {bad}",
    )


class Progress:
    """Says how far the work is, at most four times a second.

    Args:
        emit: takes events.
        dataset: the dataset's name.
    """

    def __init__(self, emit: Emit, dataset: str) -> None:
        self._emit, self._dataset = emit, dataset

    def collect(self, results: Iterator[tuple[int, Any]], what: str, sizes: list[int]) -> list[Any]:
        """The results in the order of their tasks, with an event as they arrive.

        Args:
            results: numbered, in any order.
            what: what is counted, "headers" or "images".
            sizes: how many each task has.
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
