"""Search for better settings of a family, and confirm them on fresh seeds.

    python -m jobs.tune recipe.yaml
"""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genflow.data.shards import Dataset
from genflow.errors import GenflowError
from genflow.evaluation import samples
from genflow.evaluation.features.extractor import load_features
from genflow.evaluation.sample_grids import grid
from genflow.recipe.schema import parse
from genflow.sampling.engine import Engine
from genflow.storage.files import write_atomically
from genflow.storage.store import Artifact, Store
from genflow.system import environment
from genflow.system.documents import Json
from genflow.tracking import database
from genflow.tracking.sender import Sender
from genflow.training.checkpoint_folders import Checkpoints
from genflow.tuning import analysis, pbt, results, warm_start
from genflow.tuning.reports import Row
from genflow.tuning.results import ENDED
from genflow.tuning.search import Search, begin, plan
from genflow.tuning.tracking import SearchTracker
from genflow.tuning.trial import CHECKPOINTS, trial_folder
from genflow.tuning.trial_log import TrialLog
from jobs.runtime.cluster import ray_cluster
from jobs.runtime.entrypoint import Emit, execute, warn_if_incomplete

TABLE_ROWS = 8  # rows of the live table


def main(document: Json, emit: Emit) -> Json:
    """Run the search of `recipe`, resume it, or return it if it is finished; then Ray is not imported.

    Args:
        document: `recipe`; `inputs.objective` names a function to call instead of training.
        emit: sends events to the command.

    Returns:
        A `genflow.tune/1` document.

    Raises:
        UsageError: the space, a metric or the recipe is invalid, or another process runs this search.
        GenflowError: no trial has a result.
    """
    store = Store()
    search = plan(store, parse(document["recipe"]), document.get("inputs", {}).get("objective", ""))
    if found := store.get("searches", search.id):
        return result(found, cached=True)
    uses = [id for id in (search.run.dataset.id, search.run.recipe.init, search.run.recipe.data.pairs) if id]
    with store.lock("searches", search.id, wait=False, uses=uses):
        begin(store, search)
        if not search.objective:
            data = Dataset.open(search.run.dataset)
            load_features(store, data, search.recipe.evaluate.features, emit)  # once, before the trials read them
        shorter, count = warm_start.inherit(store, search)
        if count:
            emit("note", message=f"{search.id} continues from the {count} trials of {shorter}")
        with _tracked(store, search, emit) as tracker:
            _search(store, search, tracker, emit)
            _confirm(store, search, emit)
            artifact = _conclude(store, search, tracker, emit)
    return result(artifact, cached=False)


def result(artifact: Artifact, *, cached: bool) -> Json:
    """The document that the command prints.

    Raises:
        DataError: a result, such as best.yaml, differs from the search's manifest.
    """
    for name in artifact.files("*") if cached else ():
        if "/" not in name:  # not the trials
            artifact.file(name)
    document = json.loads(artifact.file("search.json").read_text(encoding="utf-8"))
    return {**document, "path": str(artifact.path), "cached": cached}


def _search(store: Store, search: Search, tracker: SearchTracker | None, emit: Emit) -> None:
    """Run the trials that are left."""
    task, tuned, cluster = search.task(store), search.recipe.tune, search.recipe.cluster
    trial_log = TrialLog(Path(task.folder), tracker)
    if tracker:
        tracker.add_inherited(trial_log)
    spent = trial_log.seconds()
    left = 60 * tuned.minutes - spent if tuned.minutes else None
    if _is_over(search, trial_log, left):
        return
    with ray_cluster(num_cpus=max(environment.cores(), math.ceil(cluster.workers * cluster.cpus)), logs=False):
        from jobs.runtime import gpus
        from jobs.runtime.tune import asha, searchers, trainable
        from jobs.runtime.tune import pbt as ray_pbt

        inside = all(domain.contains(search.preset_values[key]) for key, domain in search.space.items())
        preset = search.preset_values if inside else None
        each = gpus.requested(cluster)
        progress = ProgressReporter(search, trial_log, tracker, emit, spent)

        def remaining() -> float | None:
            return max(0.01, 60 * tuned.minutes - progress.seconds()) if tuned.minutes else None

        def run_trials(searcher: Any, scheduler: Any = None) -> None:
            trainable.run_trials(
                task, searcher, scheduler, progress, workers=cluster.workers, cpus=cluster.cpus, gpus=each,
                device=cluster.device, reduction=tuned.reduction, seconds=remaining(), target=tuned.target,
            )  # fmt: skip

        progress(-1, False)
        if tuned.scheduler == "pbt":
            ray_pbt.train(store, search, trial_log, preset, run_trials)
        else:
            searcher = searchers.ResumableSearcher(trial_log, searchers.proposer_for(search, preset), search.trials)
            run_trials(searcher, asha.ResumableAsha(search, trial_log) if tuned.scheduler == "asha" else None)
        trial_log.log_seconds(progress.seconds())


@contextlib.contextmanager
def _tracked(store: Store, search: Search, emit: Emit) -> Iterator[SearchTracker | None]:
    """Write the search's journals, and send them to MLflow during the search; none for an objective."""
    if search.objective:
        yield None
        return
    database.prepare(store)
    tracker, status = SearchTracker(store, search), "FAILED"
    sender = Sender(store, search.id)
    sender.start()
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.close(status)  # type: ignore[arg-type]
        sender.finish(deadline_s=30)
        warn_if_incomplete(emit, search.id, sender.sent)


def _is_over(search: Search, trial_log: TrialLog, left: float | None) -> bool:
    """Whether no trial is left to start or to resume."""
    rows = trial_log.rows()
    over = [row for row in rows if row["status"] in ENDED]
    if len(over) >= search.trials or (left is not None and left <= 0):
        return True
    return results.is_target_reached(search, rows)


class ProgressReporter:
    """After every report, emit the state of the search: progress, best value, remaining time, the table of trials.

    Args:
        search: the search.
        trial_log: of its trials.
        tracker: of its runs in MLflow.
        emit: sends events to the command.
        spent: seconds of earlier attempts.
    """

    def __init__(
        self, search: Search, trial_log: TrialLog, tracker: SearchTracker | None, emit: Emit, spent: float
    ) -> None:
        self.search, self.trial_log, self.tracker, self.emit, self.spent = search, trial_log, tracker, emit, spent
        self.start = time.monotonic()

    def seconds(self) -> float:
        """Seconds over all attempts."""
        return self.spent + time.monotonic() - self.start

    def __call__(self, number: int, over: bool) -> None:
        rows, search = self.trial_log.rows(), self.search
        done = sum(row["status"] in ENDED for row in rows)
        over = over and any(row["trial"] == number and row["status"] in ENDED for row in rows)
        if over:
            self.trial_log.log_seconds(self.seconds())
        metric = search.metrics[0]
        top = analysis.best(rows, metric)
        if self.tracker:
            self.tracker.on_report(number, self.trial_log.reports(number) if number >= 0 else [])
            if top:
                self.tracker.log_best(done, metric, top["values"][metric])
        seconds = self.seconds()
        equivalents = done if search.recipe.tune.scheduler != "pbt" else sum(
            row["share"] if row["status"] == "running" else 1 for row in rows
        )  # fmt: skip
        left = [seconds / equivalents * (search.trials - equivalents)] if equivalents else []
        if search.recipe.tune.minutes:
            left.append(max(0.0, 60 * search.recipe.tune.minutes - seconds))
        what = f"best {metric} {top['values'][metric]:.4g} (trial {top['trial']})" if top else ""
        self.emit("progress", stage="tune", run=search.id, step=done, steps=search.trials, what=what,
                  eta=min(left) if left else None)  # fmt: skip
        self.emit("trials", search=search.id, trial=number, over=over, metrics=list(search.metrics),
                  keys=list(search.space), rows=results.ranked(rows, metric)[:TABLE_ROWS],
                  row=next((row for row in rows if row["trial"] == number), None))  # fmt: skip


def _confirm(store: Store, search: Search, emit: Emit) -> None:
    """Train the best settings and the preset with fresh seeds, unless they are trained already."""
    points = results.confirmation_settings(search, TrialLog(Path(search.task(store).folder)).rows())
    task, cluster = search.task(store, confirm=True), search.recipe.cluster
    trial_log = TrialLog(Path(task.folder))
    confirmed = [row["params"] for row in trial_log.rows()]
    if any(params != point for params, point in zip(confirmed, points, strict=False)):  # the best has changed
        shutil.rmtree(trial_log.folder)
        begin(store, search)
    if sum(row["status"] in ENDED for row in trial_log.rows()) >= len(points):
        return

    def progress(number: int, over: bool) -> None:
        done = sum(row["status"] in ENDED for row in trial_log.rows())
        emit("progress", stage="confirm", run=search.id, step=done, steps=len(points), what="fresh seeds")

    with ray_cluster(num_cpus=max(environment.cores(), math.ceil(cluster.workers * cluster.cpus)), logs=False):
        from jobs.runtime import gpus
        from jobs.runtime.tune import searchers, trainable

        searcher = searchers.ResumableSearcher(trial_log, searchers.FixedProposer(points), len(points))
        progress(-1, False)
        trainable.run_trials(
            task, searcher, None, progress, workers=cluster.workers, cpus=cluster.cpus, gpus=gpus.requested(cluster),
            device=cluster.device,
        )


def _conclude(store: Store, search: Search, tracker: SearchTracker | None, emit: Emit) -> Artifact:
    """Write the results, and finalize the search as an artifact.

    Raises:
        GenflowError: no trial has a result; the message names the first reason.
    """
    folder, metric = search.folder(store), search.metrics[0]
    trial_log = TrialLog(Path(search.task(store).folder))
    rows = results.with_final_status(trial_log.rows())
    if search.recipe.tune.scheduler == "pbt":
        rows = [{**row, "schedule": pbt.schedule(trial_log, row["trial"])} for row in rows]
    top = analysis.best(rows, metric)
    if top is None:
        why = next((row["why"] for row in rows if row.get("why")), "no trial was measured within the budget")
        raise GenflowError(f"no trial of {search.id} has a result: {why}", "search over other values, or longer")
    confirmed = TrialLog(Path(search.task(store, confirm=True).folder)).rows()
    found = results.document(search, rows, confirmed, trial_log.seconds(), folder)
    write_atomically(folder / "best.yaml", results.best_yaml(search, found, store.reference(search.run.dataset)))
    write_atomically(folder / "search.json", json.dumps(found, indent=1))
    write_atomically(folder / "trials.csv", results.csv_table(search, rows))
    if not search.objective:
        _write_grid(store, search, top, folder, emit)
    if tracker:
        tracker.log_results(found, folder)
    _delete_weights(search, store, top)
    meta = {"family": found["family"], "dataset": found["dataset"], "metric": metric, "value": top["values"][metric]}
    return store.finalize("searches", search.id, name=search.name, parents=[search.run.dataset.id], meta=meta,
                      only=lambda name: ".tmp-" not in name)  # fmt: skip


def _write_grid(store: Store, search: Search, top: Row, folder: Path, emit: Emit) -> None:
    """Write the best trial's sample grid, with the seeds that `evaluate` uses for every run."""
    data, seed = Dataset.open(search.run.dataset), search.recipe.evaluate.seed
    best = trial_folder(Path(search.task(store).folder), top["trial"])
    weights = Checkpoints(best / CHECKPOINTS).newest()
    if weights is None:  # a shorter search kept only its own best, which diverged when this search resumed it
        return
    engine = Engine.from_folder(best, weights)
    by = load_features(store, data, search.recipe.evaluate.features, emit)
    count = min(search.recipe.tune.samples, len(by.floor)) if data.facts.is_points else 1
    drawn = samples.draw(engine, samples.seeds(seed, count), samples.labels(data, by.real, count), lambda k: None)
    (folder / "grid.png").write_bytes(grid(engine, data, by, drawn.records, seed))


def _delete_weights(search: Search, store: Store, top: Row) -> None:
    """Delete all weights except the best trial's; a trial's recipe reproduces them."""
    for task in (search.task(store), search.task(store, confirm=True)):
        for trial in Path(task.folder).glob("[0-9]*"):
            if not (trial.parent.name == "trials" and int(trial.name) == top["trial"]):
                shutil.rmtree(trial / CHECKPOINTS, ignore_errors=True)
                if store.mirror:
                    store.mirror.bucket.delete_all(store.mirror.key(trial / CHECKPOINTS))


if __name__ == "__main__":
    execute(main)
