"""Measure what a search costs in addition to its trainings: the overhead of a trial, and its parts.

    python -m benchmarks.tune --data digits --trials 12 --steps 40 --out docs/results/trial-cost.md

The same trainings, measured on the same held-out rows, run three times: bare (the loop and the measurement in this
process, nothing stored), as trials in this process (recipe, checkpoint, report), and as `genflow tune` (random, one at
a time, no early stop, MLflow as usual) with its own Ray. A dataset of GENFLOW_STORE is copied to a temporary store; the
features of real data and MLflow's database are made before the timing. The output is a page, or with --json a document:

    seconds   of each configuration; bare is measured before and after, because the load of the machine may change
    parts     of the search: until Ray is up, the first worker, N trials, the end
    trial     seconds of one trial: bare, in this process, in the search (the median gap between two ends); the overhead
    ratio     search over bare: of everything, and of the trials alone
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from genflow.system.documents import Json

PARTS = {
    "ray_start": "until Ray is up", "first_worker": "until the first worker runs", "trials": "the trials",
    "conclusion": "stopping Ray, the chart, the rest of MLflow",
}  # fmt: skip


def bare(store: Any, search: Any, settings: list[Json]) -> float:
    """The seconds of the trainings and measurements alone."""
    from genflow import runs
    from genflow.data.stream import Stream
    from genflow.sampling.engine import Engine
    from genflow.training import loop
    from genflow.training.session import Session
    from genflow.tuning import metrics, space
    from genflow.tuning.trial import TrialContext

    context = TrialContext(search.task(store))
    suite, task = context.suite, context.task  # opened once, as in a worker
    start = time.perf_counter()
    for params in settings:
        recipe = runs.plan(store, space.apply(context.recipe, params)).recipe
        family = runs.initial_family(store, recipe, context.data.facts)
        stream = Stream(runs.training_rows(store, recipe, context.data), recipe.train.batch, recipe.train.seed)
        averages: Json = {}

        def keep(step: int, average: Json, averages: Json = averages) -> None:
            averages.update(average)

        loop.fit(family, stream, Session(threads=recipe.train.threads or 1), recipe.train, keep, whole=stream)
        family.load_state_dict(averages, strict=False)
        engine = Engine(family, recipe, recipe.train.steps)
        metrics.measure(context.store, engine, context.data, suite, task.metrics, task.samples, task.seed)
    return time.perf_counter() - start


def staged(store: Any, search: Any, settings: list[Json]) -> float:
    """The seconds of the same trials in this process, with all files that a trial writes."""
    from genflow.tuning.trial import Trial, TrialContext

    context = TrialContext(search.task(store))
    context.suite  # noqa: B018  opened once, as in a worker
    start = time.perf_counter()
    for number, params in enumerate(settings):
        report = Trial(context, number, params).report(0)
        assert "status" not in report, report
    return time.perf_counter() - start


def searched(document: Json) -> tuple[Json, Json]:
    """Run a search; return its document and its times."""
    from jobs import tune

    start, ups, ends = time.perf_counter(), [], []

    def emit(event: str, **fields: Any) -> None:
        if event == "trials":
            (ends if fields["over"] else ups).append(time.perf_counter() - start)

    found = tune.main(document, emit)
    whole = time.perf_counter() - start
    gaps = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    usual = statistics.median(gaps) if gaps else ends[0] - ups[0]
    parts = {
        "ray_start": ups[0], "first_worker": max(0.0, ends[0] - ups[0] - usual),
        "trials": ends[-1] - ups[0] - max(0.0, ends[0] - ups[0] - usual), "conclusion": whole - ends[-1],
    }  # fmt: skip
    return found, {"whole": whole, "parts": parts, "trial": usual}


def temporary_store(data: str, folder: Path) -> Any:
    """A new store with a copy of one dataset of GENFLOW_STORE."""
    from genflow.storage.store import Store

    dataset = Store().find("datasets", data)
    shutil.copytree(dataset.path, folder / "store" / "datasets" / dataset.path.name)
    os.environ["GENFLOW_STORE"] = str(folder / "store")
    return Store()


def measured(asked: argparse.Namespace, folder: Path) -> Json:
    """Measure; return the document."""
    from genflow.data.shards import Dataset
    from genflow.evaluation.features.extractor import load_features
    from genflow.recipe.compose import assignments, compose
    from genflow.storage.store import Store
    from genflow.system import environment
    from genflow.tracking import database
    from genflow.tuning.search import begin, plan

    store = temporary_store(asked.data, folder)
    tuned = {"trials": asked.trials, "searcher": "random", "scheduler": "none", "steps": asked.steps, "confirm": 0}
    tuned |= {"samples": asked.samples, "space": {"train.lr": "log:0.005:0.05"}}
    recipe = compose(asked.family, {"data": {"name": asked.data}, "tune": tuned}, assignments(asked.set))
    search = plan(store, recipe)
    load_features(store, Dataset.open(search.run.dataset), recipe.evaluate.features, lambda *_, **__: None)
    database.prepare(store)  # MLflow's database, once per store
    found, times = searched({"recipe": recipe.model_dump(mode="json"), "inputs": {}})
    settings = [row["params"] for row in found["trials"]]
    before = bare(store, search, settings)
    other = folder / "other"
    shutil.copytree(folder / "store", other, ignore=shutil.ignore_patterns("searches", "journals", "mlflow*", "ray"))
    begin(Store(other), search)
    within = staged(Store(other), search, settings)
    after = bare(store, search, settings)
    count, usual = len(settings), (before + after) / 2
    return {
        "family": asked.family, "dataset": search.run.dataset.id, "trials": count, "steps": asked.steps,
        "samples": asked.samples,
        "seconds": {"bare": before, "bare_after": after, "in_process": within, "search": times["whole"]},
        "parts": times["parts"],
        "shares": {name: seconds / times["whole"] for name, seconds in times["parts"].items()},
        "trial": {
            "bare": usual / count, "in_process": within / count, "search": times["trial"],
            "overhead": times["trial"] - usual / count,
            "overhead_of_what_it_leaves": (within - usual) / count,
            "overhead_of_ray": times["trial"] - within / count,
        },
        "ratio": {"search_over_bare": times["whole"] / usual, "trial_over_bare": times["trial"] * count / usual},
        "machine": {"cores": environment.cores(), "load": os.getloadavg()[0]},
    }  # fmt: skip


def page(found: Json, asked: argparse.Namespace) -> str:
    """The document as Markdown."""
    trial, parts, machine, ratio = found["trial"], found["parts"], found["machine"], found["ratio"]["search_over_bare"]
    given = f"--data {asked.data} --family {asked.family} --trials {asked.trials} --steps {asked.steps}"
    given += f" --samples {asked.samples}" + "".join(f" --set {pair}" for pair in asked.set)
    kept, whole = trial["overhead_of_what_it_leaves"], found["seconds"]["search"]
    return "\n".join([
        f"<!-- Written by `python -m benchmarks.tune {given}`. -->", "# What a trial costs", "",
        f"{found['trials']} trials of {found['family']} on {asked.data}, {found['steps']} steps and {found['samples']} "
        f"samples each, one at a time on {machine['cores']} cores (load {machine['load']:.1f}).", "",
        "| a trial | seconds | more than the bare one |", "|---|---:|---:|",
        f"| bare: trained and measured, nothing stored | {trial['bare']:.3f} | |",
        f"| with its recipe, checkpoint and report | {trial['in_process']:.3f} | {kept:+.3f} |",
        f"| in `genflow tune`, with MLflow | {trial['search']:.3f} | {trial['overhead']:+.3f} |", "",
        "| the search | seconds | |", "|---|---:|---:|",
        *(f"| {title} | {parts[key]:.1f} | {100 * found['shares'][key]:.0f} % |" for key, title in PARTS.items()),
        f"| in all | {whole:.1f} | {ratio:.2f} times the bare trials |", "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="flow_matching")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the recipe")
    parser.add_argument("--json", action="store_true", help="print the document instead of the page")
    parser.add_argument("--out", type=Path, help="write the page here; without it, print the page")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="genflow-tune-") as folder, contextlib.redirect_stdout(sys.stderr):
        document = measured(asked, Path(folder))
    if asked.out:
        asked.out.write_text(page(document, asked), encoding="utf-8")
    else:
        print(json.dumps(document, indent=1) if asked.json else page(document, asked))


if __name__ == "__main__":
    main()
