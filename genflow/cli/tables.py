"""`genflow tables`: the plan and its cost before it starts, the pipeline, the tables after it."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import Document, check_output_path, resolve_features, send
from genflow.cli.options import Address, AsJson, DryRun, OnCluster, Sets, complete_data
from genflow.errors import DIVERGED, UsageError, nearest

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.storage.store import Store

OVERHEAD_S = 4.0  # of a stage: its worker, imports, checkpoints
MEASURING_S = {True: 30.0, False: 8.0}  # of an evaluation with a sweep and without, until one was seen
SETTLED = ("cached", "diverged")  # states of stages that are not carried out again
FORMS = {".html": "report.html", ".md": "tables.md", ".json": "tables.json"}  # of the tables, by the suffix of --out


def tables(
    data: Annotated[str, typer.Option(help="The dataset; digits is prepared.", autocompletion=complete_data)],
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="Trainings of every family; 3 if left out.")] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="CPU minutes of each training; 0.12 if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Copy the report (.html) or .md, .json here.")] = None,
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Measure the two tables that the field quotes from memory: every family, a few seeds, one budget, your data."""
    if budget is not None and budget <= 0:
        raise UsageError(f"--budget is CPU minutes above 0, not {budget:g}", "genflow tables --data NAME --budget 1")
    check_output_path(out)
    if out and out.suffix not in FORMS:
        raise UsageError(f"--out {out}: tables are written as {', '.join(FORMS)}", f"--out {out.with_suffix('.html')}")
    from genflow.pipeline import graph
    from genflow.recipe.compose import assignments
    from genflow.storage.store import Store
    from genflow.tables import plan

    store = Store()
    study = plan.load().of(_dataset(store, data), seeds=seeds, budget=budget)
    stages = study.stages(f"tables-{data}")
    stages["stages"]["tables"]["study"]["command"] = _command(data, seeds, budget, sets)
    overrides = assignments(sets)
    if spec := overrides.get("evaluate", {}).get("features"):
        overrides["evaluate"]["features"] = resolve_features(str(spec), store)
    whole = graph.load(stages, plan.FILE, overrides)
    left = RemainingWork.of(whole, store)
    if dry_run and json:
        console.document({"schema": "genflow.plan/1", "pipeline": whole.name, **left.document(), "stages": left.rows})
        return
    print_ = print if dry_run else console.note
    for line in left.words(study, data):
        print_(line)
    if dry_run:
        rows = [(row["stage"], row["job"], row["artifact"], row["state"]) for row in left.rows]
        print(console.table(("stage", "job", "artifact", "state"), rows, left=4))
        return
    document = {"pipeline": stages, "overrides": overrides}
    done = send("pipeline", document, store, cluster, address, json=json, hear=left.hear)
    made: Document = next(stage for stage in done["stages"] if stage["job"] == "tables")
    if out:
        shutil.copyfile(Path(made["path"]) / FORMS[out.suffix], out)
    if json:
        console.document(made)
    else:
        _show(made, out)
    if any(failure["kind"] not in DIVERGED for failure in made["failed"]):
        raise SystemExit(1)


def _show(made: Document, out: Path | None) -> None:
    from genflow.tables import formatting

    for table in made["tables"]:
        print(formatting.as_text(table) + "\n")
    print("\n".join(formatting.claim_line(claim) for claim in made["claims"]) + "\n")
    print("\n".join(made["verdict"]))
    print(f"\nreport   {Path(made['path']) / 'report.html'}{'  cached' if made['cached'] else ''}")
    if out:
        print(f"         {out}")
    console.next_commands("genflow recommend --max-latency 50ms", "genflow ui")


def _command(data: str, seeds: int | None, budget: float | None, sets: list[str]) -> str:
    import shlex

    words = ["genflow", "tables", "--data", data]
    words += ["--seeds", str(seeds)] if seeds else []
    words += ["--budget", f"{budget:g}"] if budget else []
    return shlex.join([*words, *(word for value in sets for word in ("--set", value))])


def _dataset(store: "Store", name: str) -> Any:
    """A dataset of the store by its id; else, if the name is that of a source, how to prepare it.

    Raises:
        UsageError: it is neither.
    """
    try:
        return store.find("datasets", name).id
    except UsageError as error:
        from genflow.data.sources.densities import DENSITIES

        if name in ("digits", "fashion", *DENSITIES):
            return {"source": name, "val": 0.2}
        known = sorted({dataset.name for dataset in store.artifacts("datasets")} | {"digits", "fashion"})
        raise UsageError(
            f"no dataset {name!r}{nearest(name, known)}", f"genflow prepare {name}; or --data digits"
        ) from error


class RemainingWork:
    """What is still to do, and what it will cost.

    Args:
        rows: of the plan: {stage, job, needs, artifact, state}.
        seconds: of each stage that is to do.
        training: CPU seconds of those trainings.
        cores: of this machine.
    """

    def __init__(self, rows: list[Document], seconds: dict[str, float], training: float, cores: int) -> None:
        self.rows = rows
        self.seconds = seconds
        self.training = training
        self.cores = cores
        self._began = 0.0
        self._told = 0.0
        self._spent = 0.0

    @classmethod
    def of(cls, whole: Any, store: "Store") -> "RemainingWork":
        """Of a pipeline, as far as it can be known before anything runs."""
        from genflow.pipeline import plan
        from genflow.system import environment

        rows = plan.foresee(whole, store)
        to_do = [stage for stage, row in zip(whole.stages, rows, strict=True) if row["state"] not in SETTLED]
        seen = _measured(store)
        seconds, training = {}, 0.0
        for stage in to_do:
            took = OVERHEAD_S
            if stage.job == "train":
                took += 60 * (stage.recipe.train.cpu_minutes or 0)
                training += took - OVERHEAD_S
            elif stage.job == "evaluate":
                swept = bool(stage.recipe.evaluate.steps)
                took += seen.get(swept, MEASURING_S[swept])
            seconds[stage.name] = took
        return cls(rows, seconds, training, environment.cores())

    def document(self) -> Document:
        """For JSON: seconds and CPU hours."""
        hours = round(sum(self.seconds.values()) / 3600, 3)
        return {"to_do": len(self.seconds), "cpu_hours": hours, "eta_seconds": round(self.eta())}

    def eta(self) -> float:
        """Seconds on this machine's cores."""
        return sum(self.seconds.values()) / self.cores

    def words(self, study: Any, data: str) -> list[str]:
        """The plan in a few lines."""
        families = len({run["preset"] for run in study.runs.values()})
        seeds = len(study.seeds)
        trainings = [row for row in self.rows if row["job"] == "train"]
        to_do = [row for row in trainings if row["state"] not in SETTLED]
        hours = sum(self.seconds.values()) / 3600
        about = "" if not self.seconds else (
            f"; about {console.duration(self.eta())} on {self.cores} cores, {hours:.2f} CPU hours, "
            f"{self.training / 3600:.2f} of them training"
        )  # fmt: skip
        return [
            f"tables   {data}: {families} families × {seeds} seed{'s' * (seeds > 1)}, "
            f"{console.duration(60 * study.budget)} of CPU each; again at other learning rates, for less time, "
            "and on data whose modes are known",
            f"         {len(to_do)} of {len(trainings)} trainings and {len(self.seconds)} of {len(self.rows)} stages "
            f"are to do{about}",
        ]

    def hear(self, event: Document) -> None:
        """Follow the pipeline's events, and say now and then how far it is."""
        self._began = self._began or time.monotonic()
        if event["event"] != "stage" or event["status"] in ("running", "cached"):
            return
        self._spent += self.seconds.pop(event["name"], 0.0)
        now = time.monotonic()
        if not self.seconds or now - self._told < 30:
            return
        self._told = now
        pace = (now - self._began) / self._spent if self._spent else 1 / self.cores
        left = pace * sum(self.seconds.values())
        done = len(self.rows) - len(self.seconds)
        console.note(f"         {done} of {len(self.rows)} stages; ETA {console.duration(left)}")


def _measured(store: "Store") -> dict[bool, float]:
    """Seconds that evaluations in this store took, with a sweep and without: the median of either."""
    import json
    from statistics import median

    took: dict[bool, list[float]] = {True: [], False: []}
    for evaluation in store.artifacts("evaluations")[-60:]:
        document = json.loads(evaluation.file("metrics.json").read_text())
        took[bool(document["evaluate"]["steps"])].append(document["seconds"])
    return {swept: median(seconds) for swept, seconds in took.items() if seconds}
