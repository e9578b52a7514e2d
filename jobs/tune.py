"""Search for better settings of a family, and prove them.

    python -m jobs.tune recipe.yaml
"""

import contextlib
import csv
import io
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genflow import env, tracking
from genflow.checkpoint import Checkpoints
from genflow.data.shards import Dataset
from genflow.engine import Engine
from genflow.errors import GenflowError
from genflow.evaluation import measure, samples
from genflow.evaluation.features import judge
from genflow.recipe import dump, parse
from genflow.store import Artifact, Store, write_atomically
from genflow.tuning import findings, metrics, space
from genflow.tuning.chronicle import Chronicle
from genflow.tuning.search import Record, Search, begin, plan
from genflow.tuning.trial import trial_folder
from jobs.cluster import ray_cluster
from jobs.common import Document, Emit, execute

BUSY = ("finished", "stopped", "diverged", "failed")
SHOWN = 8  # trials in the live table
BIASED = "the best of many trials owes some of its score to luck: only the difference on fresh seeds counts"


def main(document: Document, emit: Emit) -> Document:
    """Carry out the search of `recipe`, or go on with it, or find it done; then Ray is not imported.

    Args:
        document: `inputs.objective` names a function to ask instead of training.
        emit: speaks to whoever waits.

    Returns:
        A `genflow.tune/1` document.

    Raises:
        UsageError: the space, the metric or the recipe cannot be, or another process is at this search.
        GenflowError: no trial came to a result.
    """
    store = Store()
    search = plan(store, parse(document["recipe"]), document.get("inputs", {}).get("objective", ""))
    if found := store.get("searches", search.id):
        return result(found, cached=True)
    with store.lock("searches", search.id, wait=False):
        begin(store, search)
        if not search.objective:
            data = Dataset.open(search.run.dataset)
            judge(store, data, search.recipe.evaluate.features, emit)  # once, before the trials need it
        with _tracked(store, search, emit) as chronicle:
            _search(store, search, chronicle, emit)
            _confirm(store, search, emit)
            artifact = _conclude(store, search, chronicle, emit)
    return result(artifact, cached=False)


def result(artifact: Artifact, *, cached: bool) -> Document:
    """The document that the command prints."""
    return {**json.loads(artifact.file("search.json").read_text()), "path": str(artifact.path), "cached": cached}


def _search(store: Store, search: Search, chronicle: Chronicle | None, emit: Emit) -> None:
    """The trials themselves."""
    task, tuned, cluster = search.task(store), search.recipe.tune, search.recipe.cluster
    record = Record(Path(task.folder), chronicle)
    spent = record.seconds()
    left = 60 * tuned.minutes - spent if tuned.minutes else None
    if _is_over(search, record, left):
        return
    with ray_cluster(num_cpus=max(env.cores(), math.ceil(cluster.workers * cluster.cpus)), logs=False):
        from jobs import proposers, schedulers, trials

        own = space.own(search.run.recipe, search.space)
        inside = all(domain.holds(own[key]) for key, domain in search.space.items())
        preset = own if inside else None
        if tuned.scheduler == "pbt":
            who: Any = trials.Population(record, proposers.members(search, preset))
            scheduler: Any = schedulers.population(search)
        else:
            who = proposers.Recorded(record, proposers.proposer(search, preset), search.trials)
            scheduler = schedulers.Halving(search, record) if tuned.scheduler == "asha" else None
        show = Show(search, record, chronicle, emit, spent)
        show(-1, False)
        trials.carry_out(
            task, who, scheduler, show, workers=cluster.workers, cpus=cluster.cpus, gpus=cluster.gpus,
            reduction=tuned.reduction, seconds=left, target=tuned.target,
        )  # fmt: skip
        record.spent(show.seconds())


@contextlib.contextmanager
def _tracked(store: Store, search: Search, emit: Emit) -> Iterator[Chronicle | None]:
    """Keep the search's journals, and send them to MLflow while it goes on; a rehearsal keeps none."""
    if search.objective:
        yield None
        return
    tracking.prepare(store)
    chronicle, status = Chronicle(store, search), "FAILED"
    sender = tracking.Sender(store, search.id)
    sender.start()
    try:
        yield chronicle
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        chronicle.close(status)  # type: ignore[arg-type]
        if not sender.finish(deadline_s=30):
            emit("warning", message=f"MLflow lacks some of {search.id}: {sender.sent.problem}",
                 hint="genflow ui sends the rest when it is back")  # fmt: skip


def _is_over(search: Search, record: Record, left: float | None) -> bool:
    """Whether no trial is to be begun or gone on with."""
    rows = record.rows()
    over = [row for row in rows if row["status"] in BUSY]
    if len(over) >= search.trials or (left is not None and left <= 0):
        return True
    return _reached(search, rows)


def _reached(search: Search, rows: list[Document]) -> bool:
    target, metric = search.recipe.tune.target, search.metrics[0]
    values = [row["values"][metric] for row in rows if row["status"] == "finished" and metric in row["values"]]
    return target is not None and any(v == target or metrics.is_better(metric, v, target) for v in values)


class Show:
    """Tells whoever waits how the search stands, after every report.

    Args:
        search: which.
        record: of its trials.
        chronicle: of its runs in MLflow.
        emit: where to say it.
        spent: seconds of earlier attempts.
    """

    def __init__(
        self, search: Search, record: Record, chronicle: Chronicle | None, emit: Emit, spent: float
    ) -> None:
        self.search, self.record, self.chronicle, self.emit, self.spent = search, record, chronicle, emit, spent
        self.start = time.monotonic()

    def seconds(self) -> float:
        """Of all attempts."""
        return self.spent + time.monotonic() - self.start

    def __call__(self, number: int, over: bool) -> None:
        rows, search = self.record.rows(), self.search
        done = sum(row["status"] in BUSY for row in rows)
        if over:
            self.record.spent(self.seconds())
        metric = search.metrics[0]
        top = findings.best(rows, metric)
        if self.chronicle:
            self.chronicle.reported(number, self.record.reports(number) if number >= 0 else [])
            if top:
                self.chronicle.best(done, metric, top["values"][metric])
        seconds = self.seconds()
        left = [seconds / done * (search.trials - done)] if done else []
        if search.recipe.tune.minutes:
            left.append(max(0.0, 60 * search.recipe.tune.minutes - seconds))
        what = f"best {metric} {top['values'][metric]:.4g} (trial {top['trial']})" if top else ""
        self.emit("progress", stage="tune", run=search.id, step=done, steps=search.trials, what=what,
                  eta=min(left) if left else None)  # fmt: skip
        self.emit("trials", search=search.id, trial=number, over=over, metrics=list(search.metrics),
                  keys=list(search.space), rows=ranked(rows, metric)[:SHOWN],
                  row=next((row for row in rows if row["trial"] == number), None))  # fmt: skip


def ranked(rows: list[Document], metric: str) -> list[Document]:
    """The trials, the furthest measured first, then the best."""
    sign = 1 if metrics.mode(metric) == "min" else -1

    def rank(row: Document) -> tuple[Any, ...]:
        good = metric in row["values"] and row["status"] not in ("diverged", "failed")
        return not good, -row["share"], sign * row["values"].get(metric, 0.0) if good else 0.0, row["trial"]

    return sorted(rows, key=rank)


def _confirm(store: Store, search: Search, emit: Emit) -> None:
    """The best settings and the preset's, each trained with fresh seeds; found where they are trained already."""
    points = confirming(search, Record(Path(search.task(store).folder)).rows())
    task, cluster = search.task(store, confirm=True), search.recipe.cluster
    record = Record(Path(task.folder))
    if sum(row["status"] in BUSY for row in record.rows()) >= len(points):
        return

    def show(number: int, over: bool) -> None:
        done = sum(row["status"] in BUSY for row in record.rows())
        emit("progress", stage="confirm", run=search.id, step=done, steps=len(points), what="fresh seeds")

    with ray_cluster(num_cpus=max(env.cores(), math.ceil(cluster.workers * cluster.cpus)), logs=False):
        from jobs import proposers, trials

        searcher = proposers.Recorded(record, proposers.Points(points), len(points))
        show(-1, False)
        trials.carry_out(task, searcher, None, show, workers=cluster.workers, cpus=cluster.cpus, gpus=cluster.gpus)


def confirming(search: Search, rows: list[Document]) -> list[Document]:
    """The settings to train again: the best's and the preset's in turn, with seeds that the search has not used."""
    top = findings.best(rows, search.metrics[0])
    if top is None or search.objective or not differs(search, top):
        return []
    used = {row["params"].get("train.seed") for row in rows} | {search.recipe.train.seed}
    fresh = [seed for seed in range(1000, 1000 + len(used) + search.recipe.tune.confirm) if seed not in used]
    seeds = fresh[: search.recipe.tune.confirm]
    own: Document = {}
    return [{**params, "train.seed": seed} for seed in seeds for params in (top["params"], own)]


def differs(search: Search, row: Document) -> bool:
    """Whether a trial's settings are not the preset's own."""
    own = space.own(search.run.recipe, search.space)
    return any(own[key] != value for key, value in row["params"].items())


def _conclude(store: Store, search: Search, chronicle: Chronicle | None, emit: Emit) -> Artifact:
    """What was found, as an artifact.

    Raises:
        GenflowError: no trial came to a result; the first reason is named.
    """
    folder, metric = search.folder(store), search.metrics[0]
    record = Record(Path(search.task(store).folder))
    rows = record.rows()
    for row in rows:
        if row["status"] == "running":  # the budget or the target ended it
            row["status"] = "stopped"
    top = findings.best(rows, metric)
    if top is None:
        why = next((row["why"] for row in rows if row.get("why")), "no trial was measured within the budget")
        raise GenflowError(f"no trial of {search.id} came to a result: {why}", "search over other values, or longer")
    confirmed = Record(Path(search.task(store, confirm=True).folder)).rows()
    points = confirming(search, rows)
    confirmation = findings.confirmation(confirmed[::2], confirmed[1::2], metric) if points and confirmed else None
    best_file = folder / "best.yaml"
    write_atomically(best_file, best_yaml(search, top, confirmation, best_file))
    found = {
        "schema": "genflow.tune/1", "search": search.id, "name": search.name,
        "family": search.run.recipe.family["kind"],
        "dataset": search.run.dataset.id, "dataset_name": search.run.dataset.name, "metrics": list(search.metrics),
        "space": {key: str(domain) for key, domain in search.space.items()},
        "tune": search.recipe.tune.model_dump(mode="json", exclude={"space"}),
        "samples": search.recipe.tune.samples, "seconds": record.seconds(),
        "counts": {status: sum(row["status"] == status for row in rows) for status in BUSY},
        "best": {**top, "is_preset": not differs(search, top)},
        "preset": next((row for row in rows if not differs(search, row)), None),
        "confirmation": confirmation, "note": BIASED,
        "confirmed": findings.words(confirmation, metric) if confirmation else "",
        "importance": findings.importance(rows, search.space, metric),
        "front": findings.front(rows, search.metrics) if len(search.metrics) > 1 else [],
        "target_reached": _reached(search, rows) if search.recipe.tune.target is not None else None,
        "trials": rows, "ranked": ranked(rows, metric), "best_file": str(best_file),
        "command": f"genflow train -c {best_file}",
    }  # fmt: skip
    write_atomically(folder / "search.json", json.dumps(found, indent=1))
    write_atomically(folder / "trials.csv", table(rows, search))
    if not search.objective:
        _picture(store, search, top, folder, emit)
    if chronicle:
        chronicle.found(found, folder)
    _thin(search, store, top)
    meta = {"family": found["family"], "dataset": found["dataset"], "metric": metric, "value": top["values"][metric]}
    return store.seal("searches", search.id, name=search.name, parents=[search.run.dataset.id], meta=meta,
                      only=lambda name: ".tmp-" not in name)  # fmt: skip


def best_yaml(search: Search, top: Document, confirmation: Document | None, file: Path) -> str:
    """The best settings as a recipe, with the budget of the recipe itself rather than that of a trial."""
    document = space.applied(search.recipe, top["params"]).model_dump(mode="json")
    document["data"] = {"name": search.run.dataset.name, **({"pairs": p} if (p := search.recipe.data.pairs) else {})}
    kept = {key: document[key] for key in ("init", "data", "net", "family", "train", "sample") if document[key]}
    lines = [f"genflow train -c {file}", f"trial {top['trial']} of {search.id}: {measured(search, top)}"]
    if confirmation:
        lines.append(findings.words(confirmation, search.metrics[0]))
    return "".join(f"# {line}\n" for line in lines) + dump(kept)


def measured(search: Search, row: Document) -> str:
    """A trial's values in words."""
    values = ", ".join(f"{name} {row['values'][name]:.4g}" for name in search.metrics)
    steps = f" after {row['step']:,} steps" if "step" in row else ""
    return values + (f" on {row['samples']:,} samples" if "samples" in row else "") + steps


def table(rows: list[Document], search: Search) -> str:
    """The trials as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "status", "share", "samples", *search.metrics, *search.space, "seconds", "why"])
    for row in rows:
        values = [row["values"].get(name, "") for name in search.metrics]
        params = [row["params"].get(key, "") for key in search.space]
        more = [row.get("seconds", ""), row.get("why", "")]
        writer.writerow([row["trial"], row["status"], row["share"], row.get("samples", ""), *values, *params, *more])
    return out.getvalue()


def _picture(store: Store, search: Search, top: Document, folder: Path, emit: Emit) -> None:
    """The best trial's grid, of the seeds that `evaluate` draws for every run."""
    data, seed = Dataset.open(search.run.dataset), search.recipe.evaluate.seed
    lies = trial_folder(Path(search.task(store).folder), top["trial"])
    engine = Engine.from_folder(lies, Checkpoints(lies / "checkpoints").newest())
    by = judge(store, data, search.recipe.evaluate.features, emit)
    count = min(search.recipe.tune.samples, len(by.floor)) if data.facts.is_points else 1
    drawn = samples.draw(engine, samples.seeds(seed, count), samples.labels(data, by.real, count), lambda k: None)
    (folder / "grid.png").write_bytes(measure.grids(engine, data, by, drawn, seed)["grid.png"])


def _thin(search: Search, store: Store, top: Document) -> None:
    """Let the weights go, but the best's: a trial's settings and reports make them again."""
    for task in (search.task(store), search.task(store, confirm=True)):
        for lies in Path(task.folder).glob("[0-9]*"):
            if not (lies.parent.name == "trials" and int(lies.name) == top["trial"]):
                shutil.rmtree(lies / "checkpoints", ignore_errors=True)


if __name__ == "__main__":
    execute(main)
