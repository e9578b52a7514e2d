"""Prepare a dataset: decode a source into Arrow shards, on as many workers as Ray has.

    python -m jobs.prepare recipe.yaml

One row of the Ray dataset is one shard to write; a worker decodes the shard's records, writes the file into
the folder under construction, and returns counts and hashes. The driver commits the folder.
"""

import csv
import io
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from genflow.data import plan, sources
from genflow.data.records import Bad, Part, Source, Survey
from genflow.data.shards import write_index
from genflow.data.writing import Outcome, Shard
from genflow.errors import DataError, GenflowError, UsageError
from genflow.recipe import NAME, Data, parse
from genflow.store import Artifact, Store, write_atomically
from jobs.cluster import ray_cluster
from jobs.common import Document, Emit, execute, verbose

BAD = "bad.csv"  # the records that could not be read: path and reason


def main(document: Document, emit: Emit) -> Document:
    """Prepare `recipe.data`, unless it is there already.

    Returns:
        A `genflow.prepare/1` document.

    Raises:
        UsageError: no such source.
        DataError: more than `max_bad` records cannot be read, or the source is broken.
    """
    started = time.monotonic()
    data = parse(document["recipe"]).data
    source = sources.find(data)
    name = data.name or source.name
    if not NAME.fullmatch(name):
        raise UsageError(f"data.name {name!r}: use letters, digits, '.', '_' and '-', at most 80")
    store = Store()
    id = f"{name}-{plan.key(source, data)}"
    artifact = store.get("datasets", id)
    cached = artifact is not None
    if artifact is None:
        with store.lock("datasets", id):
            artifact = store.get("datasets", id)  # whoever held the lock may have made it
            cached = artifact is not None
            if artifact is None:
                artifact = make(store, id, name, source, data, emit)
    tolerate(artifact.file(BAD), artifact.meta["bad"], sum(artifact.meta["facts"]["splits"].values()), data)
    facts = artifact.meta["facts"]
    return {
        "schema": "genflow.prepare/1",
        "dataset": artifact.id,
        "name": artifact.name,
        "path": str(artifact.path),
        "cached": cached,
        "images": sum(facts["splits"].values()),
        "bad": artifact.meta["bad"],
        "skipped": artifact.meta["skipped"],
        "facts": facts,
        "seconds": round(time.monotonic() - started, 3),
    }


def make(store: Store, id: str, name: str, source: Source, data: Data, emit: Emit) -> Artifact:
    """Decode, write and commit."""
    with ray_cluster(), store.stage("datasets", id, name=name) as staged:
        progress = Progress(emit, name)
        survey = source.survey(data)
        if survey is None:
            parts = plan.look_at(source)
            surveys = distribute(Part.survey, parts)
            survey = Survey.total(progress.over(surveys, "headers", [len(part) for part in parts]))
        form = plan.settle(source, data, survey)
        planned = plan.shards(source, data, form, staged.path)
        results = distribute(Shard.write, planned)
        written = progress.over(results, "images", [len(shard.part) for shard in planned])
        outcome = Outcome(plan.begin(source, form), list(written))
        for note in source.notes:
            emit("warning", message=note)
        if outcome.bad:
            beside = store.folder("datasets", f"{id}.{BAD}")
            write_bad(beside, outcome.bad)
            tolerate(beside, len(outcome.bad), sum(len(shard.part) for shard in planned), data)
            write_bad(staged.path / BAD, outcome.bad)
            beside.unlink()
        facts = outcome.complete(source.about["path"])
        for leftover in staged.path.glob("*/*.tmp-*"):  # of a worker that died
            leftover.unlink()
        write_index(staged.path, facts, outcome.files(planned))
        meta = {
            "facts": facts.to_json(),
            "options": data.model_dump(mode="json", include={"source", "size", "channels", "val", "samples", "seed"}),
            "source": source.about,
            "skipped": source.skipped,
            "bad": len(outcome.bad),
        }
        return staged.commit(meta=meta)


def write_bad(path: Path, bad: list[Bad]) -> None:
    """List unreadable records as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *bad])
    write_atomically(path, text.getvalue())


def tolerate(listed: Path, bad: int, total: int, data: Data) -> None:
    """Refuse more unreadable records than `max_bad`.

    Raises:
        DataError: there are more; it names the first three and where all are listed.
    """
    if bad <= data.max_bad:
        return
    with open(listed, newline="", encoding="utf-8") as file:
        first = [f"{id}: {reason}" for id, reason in list(csv.reader(file))[1:4]]
    raise DataError(
        f"{bad} of {total} pictures cannot be read, and at most {data.max_bad} may be ({'; '.join(first)}"
        f"{'; ...' if bad > 3 else ''}); all are listed in {listed}",
        f"mend or remove them, or run again with --max-bad {bad}",
    )


def distribute(work: Callable[[Any], Any], tasks: list[Any]) -> Iterator[tuple[int, Any]]:
    """Do `work(task)` for every task with Ray Data; results come as they are done, with the task's number.

    Raises:
        GenflowError: what a task ended with.
    """
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.INFO if verbose() else logging.ERROR)
    rows = [{"number": number, "task": pickle.dumps((work, task))} for number, task in enumerate(tasks)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(carry_out)
    for row in dataset.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, GenflowError):
            raise result
        yield row["number"], result


def carry_out(row: dict[str, Any]) -> dict[str, Any]:
    """On a worker: one task; an error that a person can mend is a result, so that it comes back as it is."""
    work, task = pickle.loads(row["task"])
    try:
        result = work(task)
    except GenflowError as error:
        result = error
    return {"number": row["number"], "result": pickle.dumps(result)}


class Progress:
    """Says how far the work is, at most four times a second.

    Args:
        emit: where events go.
        dataset: the dataset's name.
    """

    def __init__(self, emit: Emit, dataset: str) -> None:
        self._emit, self._dataset = emit, dataset

    def over(self, results: Iterator[tuple[int, Any]], what: str, sizes: list[int]) -> list[Any]:
        """The results in the order of their tasks, with an event as each arrives."""
        ordered: dict[int, Any] = {}
        started = spoken = time.monotonic()
        done, total = 0, sum(sizes)
        for number, result in results:
            ordered[number] = result
            done += sizes[number]
            now = time.monotonic()
            if now - spoken >= 0.25 or done == total:
                spoken = now
                rate = round(done / max(now - started, 1e-9), 1)
                self._emit("progress", stage="prepare", dataset=self._dataset, step=done, steps=total, what=what,
                           rate=rate)  # fmt: skip
        return [ordered[number] for number in sorted(ordered)]


if __name__ == "__main__":
    execute(main)
