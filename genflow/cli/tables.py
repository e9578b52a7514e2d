"""`genflow tables`: print the plan and its estimated time, run the pipeline, print the tables."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import check_output_path, send
from genflow.cli.options import Address, AsJson, DryRun, Latents, OnCluster, Sets, complete_data
from genflow.commands.references import (
    absolute_if_path,
    default_latents,
    find_latents,
    find_named,
    resolve_features,
    show_dataset,
)
from genflow.errors import DIVERGED, UsageError, nearest
from genflow.system.documents import Json
from genflow.system.folding import terminal_room

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.storage.store import Store

OVERHEAD_S = 4.0  # per stage: start of a worker, imports, checkpoints
MEASURING_S = {True: 30.0, False: 8.0}  # of an evaluation with and without a sweep, before one was measured
SETTLED = ("cached", "diverged")  # states of stages that do not run again
# the file to copy for each suffix of --out
FORMS = {".html": "report.html", ".png": "poster.png", ".md": "tables.md", ".json": "tables.json"}


def tables(
    data: Annotated[
        str,
        typer.Option(help="Dataset in the store, or a built-in source: digits, fashion.", autocompletion=complete_data),
    ],
    latents: Latents = "",
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="Training runs per family; default: 3.")] = None,
    cpu_minutes: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="CPU minutes per training run; default: 0.09.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also copy the result: .html, .png (first screen), .md, .json.")
    ] = None,
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Train all families with the same budget on your data, and print two comparison tables.

    Every family is trained with several seeds. With --latents, they all learn the same latents.

    The tables check common claims about these families by measurement.
    """
    if cpu_minutes is not None and cpu_minutes <= 0:
        cure = "genflow tables --data NAME --cpu-minutes 1"
        raise UsageError(f"--cpu-minutes must be above 0, not {cpu_minutes:g}", cure)
    check_output_path(out)
    if out and out.suffix not in FORMS:
        raise UsageError(
            f"--out {out}: tables can be written as {', '.join(FORMS)}", f"--out {out.with_suffix('.html')}"
        )
    from genflow.pipeline import graph
    from genflow.recipe.compose import assignments
    from genflow.storage.store import Store
    from genflow.tables import plan

    store = Store()
    dataset, data = _dataset(store, data)
    asked, latents = latents, _latents(store, latents, dataset, data)
    study = plan.load().of(dataset, seeds=seeds, budget=cpu_minutes, latents=latents)
    stages = study.stages(f"tables-{data}")
    stages["stages"]["tables"]["study"]["command"] = _command(data, latents or asked, seeds, cpu_minutes, sets)
    overrides = assignments(sets)
    if spec := overrides.get("evaluate", {}).get("features"):
        overrides["evaluate"]["features"] = resolve_features(str(spec), store)
    if clip := overrides.get("evaluate", {}).get("clip"):
        overrides["evaluate"]["clip"] = absolute_if_path(str(clip))
    whole = graph.load(stages, plan.FILE, overrides)
    left = RemainingWork.of(whole, store)
    if dry_run and json:
        console.document({"schema": "genflow.plan/1", "pipeline": whole.name, **left.document(), "stages": left.rows})
        return
    print_ = print if dry_run else console.note
    for line in left.summary(study, data):
        print_(console.wrapped(line, "         "))
    if dry_run:
        rows = [(row["stage"], row["job"], row["artifact"], row["state"]) for row in left.rows]
        print(console.table(("stage", "job", "artifact", "state"), rows, left=4))
        return
    document = {"pipeline": stages, "overrides": overrides}
    done = send("pipeline", document, store, cluster, address, json=json, on_event=left.update, details=False)
    made: Json = next(stage for stage in done["stages"] if stage["job"] == "tables")
    if out:
        shutil.copyfile(Path(made["path"]) / FORMS[out.suffix], out)
    if json:
        console.document(made)
    else:
        _show(made, out)
    if any(failure["kind"] not in DIVERGED for failure in made["failed"]):
        raise SystemExit(1)


def _show(made: Json, out: Path | None) -> None:
    from genflow.tables import formatting

    room = terminal_room()
    if cautions := made.get("cautions"):
        print("\n".join(console.wrapped(sentence) for sentence in cautions) + "\n")
    for table in made["tables"]:
        print(formatting.as_text(table, room) + "\n")
    print("\n".join(console.wrapped(formatting.claim_line(claim), "  ") for claim in made["claims"]) + "\n")
    print("\n".join(console.wrapped(sentence) for sentence in made["verdict"] if sentence not in (cautions or [])))
    print(f"\nreport   {Path(made['path']) / 'report.html'}{'  cached' if made['cached'] else ''}")
    if out:
        print(f"         {out}")
    console.next_commands("genflow recommend --max-latency 50ms", "genflow ui")


def _latents(store: "Store", reference: str, dataset: Any, data: str) -> str:
    """The id of latents of a dataset, `auto`, or "" for its pictures.

    Args:
        store: holds the latents.
        reference: as given with --latents; by default, large pictures are learned as latents.
        dataset: the dataset's id, or the section that prepares it.
        data: the dataset's name.

    Raises:
        UsageError: there are none, or they are of another dataset.
    """
    if reference in ("auto", "none"):
        return reference.replace("none", "")
    if not reference:
        return default_latents(store.find("datasets", dataset)) if isinstance(dataset, str) else ""
    if not isinstance(dataset, str):
        cure = f"genflow tables --data {data} --latents auto"
        raise UsageError(f"{data} is not prepared yet, so it has no latents", cure)
    return find_latents(store, reference, store.find("datasets", dataset)).id


def _command(data: str, latents: str, seeds: int | None, cpu_minutes: float | None, sets: list[str]) -> str:
    import shlex

    words = ["genflow", "tables", "--data", data]
    words += ["--latents", latents] if latents else []
    words += ["--seeds", str(seeds)] if seeds else []
    words += ["--cpu-minutes", f"{cpu_minutes:g}"] if cpu_minutes else []
    return shlex.join([*words, *(word for value in sets for word in ("--set", value))])


def _dataset(store: "Store", name: str) -> tuple[Any, str]:
    """The id of a dataset in the store; for a built-in source without dataset, the settings that prepare it.

    Returns:
        Also the name that certainly means it, for the command on the page.

    Raises:
        UsageError: the name is neither, or does not decide a dataset.
    """
    try:
        found = find_named(store, "datasets", name)
        show_dataset(found)
        return found.id, found.id if name != found.id and store.same_name(found) else name
    except UsageError as error:
        from genflow.data import sources

        if any(dataset.name == name or dataset.id.startswith(name) for dataset in store.artifacts("datasets")):
            raise
        if name in sources.names():
            return {"source": name, "val": 0.2}, name
        known = sorted({dataset.name for dataset in store.artifacts("datasets")} | {"digits", "fashion"})
        raise UsageError(
            f"no dataset {name!r}{nearest(name, known)}",
            f"prepare it first: genflow prepare SOURCE --name {name}; or use --data digits",
        ) from error


class RemainingWork:
    """The stages that still have to run, and their estimated time.

    Args:
        rows: the plan: {stage, job, needs, artifact, state}.
        seconds: estimated seconds of each stage that has to run.
        training: CPU seconds of training in these stages.
        cores: number of CPU cores of this machine.
    """

    def __init__(self, rows: list[Json], seconds: dict[str, float], training: float, cores: int) -> None:
        self.rows = rows
        self.seconds = seconds
        self.training = training
        self.cores = cores
        self._began: dict[str, float] = {}  # when each stage began to work; one that waits for a core has not
        self._spent = 0.0
        self._start = 0.0

    @classmethod
    def of(cls, whole: Any, store: "Store") -> "RemainingWork":
        """The remaining work of a pipeline, as far as it is known before the pipeline runs."""
        from genflow.pipeline import plan
        from genflow.system import environment

        rows = plan.dry_run(whole, store)
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

    def document(self) -> Json:
        """The number of stages, CPU hours and seconds, for JSON."""
        hours = round(sum(self.seconds.values()) / 3600, 3)
        return {"to_do": len(self.seconds), "cpu_hours": hours, "eta_seconds": round(self.eta())}

    def eta(self) -> float:
        """Estimated seconds if all cores of this machine are used."""
        return sum(self.seconds.values()) / self.cores

    def summary(self, study: Any, data: str) -> list[str]:
        """The plan as two or three lines of text."""
        from genflow.pipeline import latents

        families = len({run["preset"] for run in study.runs.values()})
        seeds = len(study.seeds)
        trainings = [row for row in self.rows if row["job"] == "train"]
        to_do = [row for row in trainings if row["state"] not in SETTLED]
        hours = sum(self.seconds.values()) / 3600
        about = "" if not self.seconds else (
            f"; about {console.duration(self.eta())} on {self.cores} cores, {hours:.2f} CPU hours, "
            f"{self.training / 3600:.2f} for training"
        )  # fmt: skip
        making = [row for row in self.rows if row["stage"] in latents.STAGES and row["state"] not in SETTLED]
        on = [f"         on latents {study.latents}"] if study.latents not in ("", "auto") else []
        if making:
            on = ["         on latents: the autoencoder and the latents come first; the estimate does not contain them"]
        return [
            f"tables   {data}: {families} families × {seeds} seed{'s' * (seeds > 1)}, "
            f"{study.budget:g} CPU minutes each; plus runs with other learning rates, with less "
            "time, and on data with known modes",
            f"         to do: {len(to_do)} of {len(trainings)} training runs, {len(self.seconds)} of {len(self.rows)} "
            f"stages{about}",
            *on,
        ]

    def update(self, event: Json) -> float | None:
        """After a stage has ended, the seconds that the others still take; else None.

        What the stages that run now have done counts, too: without it, the first stage that ends would make the others
        look several times as long, and the start of Ray would be part of the pace.
        """
        now = time.monotonic()
        if of := event.get("of"):
            self._start = self._start or now
            self._began.setdefault(of, now)
        if event["event"] != "stage" or event["status"] in ("running", "cached"):
            return None
        self._spent += self.seconds.pop(event["name"], 0.0)
        self._began.pop(event["name"], None)
        under_way = sum(min(now - since, self.seconds.get(name, 0.0)) for name, since in self._began.items())
        done = self._spent + under_way
        pace = (now - self._start) / done if self._start and done else 1 / self.cores
        return pace * (sum(self.seconds.values()) - under_way) if self.seconds else None


def _measured(store: "Store") -> dict[bool, float]:
    """Median seconds of the evaluations in this store, with and without a sweep."""
    from statistics import median

    from genflow.evaluation.results import documents

    took: dict[bool, list[float]] = {True: [], False: []}
    for _, document in documents(store, newest=60):
        took[bool(document["evaluate"]["steps"])].append(document["seconds"])
    return {swept: median(seconds) for swept, seconds in took.items() if seconds}
