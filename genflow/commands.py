"""What the commands that send jobs do: compose the recipe, send it, show what came of it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genflow import terminal
from genflow.errors import SetupError, UsageError, nearest
from genflow.recipe.compose import assignments, compose, merge
from genflow.recipe.files import dump, read
from genflow.recipe.schema import Recipe
from genflow.storage.store import Artifact, Store
from genflow.system import environment
from genflow.system.source_hash import resources_dir

Document = dict[str, Any]


@dataclass(frozen=True)
class Where:
    """Where a job runs.

    Args:
        cluster: on a Ray cluster, rather than in a child process of this machine.
        address: of the cluster's dashboard; empty: the usual Ray variables, or 127.0.0.1:8265.
    """

    cluster: bool = False
    address: str = ""


HERE = Where()
NO_END = 1_000_000_000


def check_out(out: Path | None) -> None:
    """Raises UsageError where no file can be written, before hours of work end there."""
    if out is None:
        return
    folder = out.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"--out {out}: there is no folder {folder}", f"mkdir -p {folder}")
    if out.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"--out {out}: no file can be written there", "name another file")


def send(
    stage: str, document: Document, store: Store, where: Where,
    *, json: bool, hear: Callable[[Document], None] | None = None,
) -> Document:  # fmt: skip
    """Send a job, draw its progress, and return its result; a job that was left to itself ends the command.

    Args:
        stage: the job.
        document: what it is told.
        store: of this machine.
        where: it runs.
        json: whether one document is printed, and nothing else.
        hear: told every event, besides the progress.
    """
    from genflow.launch import local, remote

    verbose = bool(os.environ.get("GENFLOW_VERBOSE"))
    with terminal.Progress() as progress:

        def told(event: Document) -> None:
            progress(event)
            if hear:
                hear(event)

        if where.cluster:
            done = remote.run_there(stage, document, store, told, address=where.address, verbose=verbose)
        else:
            done = local.run_here(stage, document, store, told, verbose=verbose)
    if done.get("schema") == "genflow.job/1":
        if json:
            terminal.document(done)
        raise SystemExit(0)
    return done


def flagged(flags: dict[str, Any]) -> Document:
    """Flags that were given, as sections: `{"train.steps": 10}` as `{"train": {"steps": 10}}`."""
    document: Document = {}
    for key, value in flags.items():
        section, _, name = key.partition(".")
        if value not in (None, ""):
            document = merge(document, {section: {name: value} if name else value})
    return document


def prepare(source: str, flags: Document, sets: list[str], where: Where, *, dry_run: bool, json: bool) -> None:
    """`genflow prepare`."""
    channels = flags.pop("channels")
    if channels not in ("auto", "1", "3"):
        raise UsageError(f"--channels is auto, 1 or 3, not {channels!r}")
    given = {"source": _source(source), "channels": channels if channels == "auto" else int(channels), **flags}
    recipe = compose(None, assignments(sets), flagged({f"data.{key}": value for key, value in given.items()}))
    if dry_run:
        show_plan({"data": recipe.data.model_dump(mode="json")}, [], json)
        return
    done = send("prepare", {"recipe": recipe.model_dump(mode="json")}, Store(), where, json=json)
    if json:
        terminal.document(done)
        return
    facts = done["facts"]
    splits = ", ".join(f"{rows:,} {name}" for name, rows in facts["splits"].items())
    size = "points" if facts["levels"] is None else f"{facts['shape'][1]}×{facts['shape'][2]}×{facts['shape'][0]}"
    print(f"dataset  {done['name']}  ({done['dataset']}){'  cached' if done['cached'] else ''}")
    print(f"         {splits} · {size} · {len(facts['class_names']) or 'no'} classes · {done['path']}")
    if done.get("bad"):
        print(f"         {done['bad']} unreadable, listed in {done['path']}/bad.csv")
    name = done["name"]
    terminal.next_commands(f"genflow data show {name}", f"genflow train flow_matching --data {name}")


def _source(text: str) -> str:
    """A source as the job finds it from anywhere; `stack:NAME` of a dataset in the store is that of its own source."""
    from genflow.data import sources

    if not (prefix := sources.prefix_of(text)):
        return _path(text)
    base = text.removeprefix(prefix)
    if base in sources.names() or Path(base).expanduser().exists():
        return prefix + _path(base)
    known = {dataset.name: dataset.meta["options"]["source"] for dataset in Store().artifacts("datasets")}
    return prefix + known.get(base, _path(base))


def _path(source: str) -> str:
    """A path as an absolute one, so that the job finds it from anywhere; names stay."""
    expanded = Path(source).expanduser()
    return str(expanded.absolute()) if expanded.exists() or os.sep in source else source


def train(
    family: str, config: list[Path], sets: list[str], flags: Document, where: Where,
    *, fresh: bool, dry_run: bool, json: bool,
) -> None:  # fmt: skip
    """`genflow train`."""
    known, layers = families(), [read(path) for path in config]
    family = family or next((str(f["kind"]) for f in map(_family_of, layers[::-1]) if "kind" in f), "")
    if not family:
        raise UsageError("no family was named", f"genflow train FAMILY --data NAME; families: {', '.join(known)}")
    need_family(family)
    if flags.get("train.minutes") and not flags.get("train.steps"):
        flags["train.steps"] = NO_END  # minutes alone are the whole budget
    recipe = compose(family, layers, assignments(sets), flagged(flags))
    if recipe.family.get("kind") != family:
        raise UsageError(f"the recipe's family.kind is {recipe.family.get('kind')!r}, and the command says {family}")
    store = Store()
    need_dataset(recipe, store)
    inputs: Document = {"fresh": fresh}
    if dry_run or where.cluster:  # here the job says the same as soon, and torch is imported once
        from genflow import runs

        plan = runs.plan(store, recipe)
        recipe, inputs["run"] = plan.recipe, plan.id
    if dry_run:
        state = "finished: nothing to do" if store.get("runs", plan.id) else "to do"
        broken = plan.id in store.names("runs") and not store.get("runs", plan.id)
        show_plan(recipe, [("train", plan.id, "to go on with" if broken else state)], json)
        return
    document = {"recipe": recipe.model_dump(mode="json"), "inputs": inputs}
    done = send("train", document, store, where, json=json)
    if json:
        terminal.document(done)
        return
    print(f"run      {done['name']}  ({done['run']}){'  cached' if done['cached'] else ''}")
    rate = f"{done['images'] / max(done['seconds'], 1e-9):,.0f} img/s"
    took = f"{done['steps']:,} steps, {done['images']:,} images, {terminal.duration(done['seconds'])} ({rate})"
    print(f"         {took} · {done['path']}")
    if grids := sorted(Path(done["path"]).glob("samples/*.png")):
        print(f"         samples: {grids[-1]}")
    name = done["run"]
    terminal.next_commands(f"genflow sample {name}", f"genflow evaluate {name}", "genflow ui")


def need_family(family: str) -> None:
    """Raises UsageError, with the nearest, where there is no such family."""
    known = families()
    if family not in known:
        raise UsageError(f"unknown family {family!r}{nearest(family, known)}", f"families: {', '.join(known)}")


def need_dataset(recipe: Recipe, store: Store) -> None:
    """Raises UsageError, with those that there are, where the recipe names no dataset."""
    if not recipe.data.name:
        names = dict.fromkeys(a.name for a in store.artifacts("datasets"))
        have = f"there are: {', '.join(names)}" if names else "there is none yet: genflow prepare digits"
        raise UsageError("no dataset was named", f"--data NAME; {have}")


def _family_of(layer: Document) -> Document:
    section = layer.get("family")
    return section if isinstance(section, dict) else {}


def reflow(
    reference: str, sets: list[str], flags: Document, where: Where, *, dry_run: bool, json: bool,
) -> None:  # fmt: skip
    """`genflow reflow`."""
    store = Store()
    run = find_run(store, reference)
    recipe = compose(None, assignments(sets), flagged(flags))
    if dry_run:
        from genflow.sampling import reflow

        task = reflow.plan(store, run.id, recipe)
        state = "finished: nothing to do" if store.get("pairs", task.id) else "to do"
        show_plan({"reflow": recipe.reflow.model_dump(), "sample": task.options}, [("reflow", task.id, state)], json)
        return
    document = {"recipe": recipe.model_dump(mode="json"), "inputs": {"run": run.id}}
    done = send("reflow", document, store, where, json=json)
    if json:
        terminal.document(done)
        return
    print(f"pairs    {done['pairs']}{'  cached' if done['cached'] else ''}")
    print(f"         {done['count']:,} pairs of {run.name}, {terminal.duration(done['seconds'])} · {done['path']}")
    straight = "--set family.density=u_shaped --set family.at_noise=0.15"
    pairs = f"--data {run.meta['dataset_name']} --set data.pairs={done['pairs']}"
    terminal.next_commands(f"genflow train flow_matching --init {run.id} {pairs} {straight} --name {run.name}-reflow")


def families() -> list[str]:
    """The kinds of family there are, without importing torch."""
    from genflow.families import kinds

    return kinds()


def evaluate(
    job: str, references: list[str], sets: list[str], flags: Document, where: Where,
    *, json: bool, out: Path | None = None,
) -> None:  # fmt: skip
    """`genflow evaluate` and `genflow compare`."""
    check_out(out)
    store = Store()
    runs = [find_run(store, reference) for reference in references]
    if len({run.meta.get("fingerprint") for run in runs}) > 1:
        pairs = ", ".join(f"{run.name} on {run.meta.get('dataset_name')}" for run in runs)
        raise UsageError(f"runs of different datasets cannot be compared: {pairs}")
    recipe = compose(None, assignments(sets), flagged(flags))
    spec = features(recipe.evaluate.features, store)
    recipe = recipe.replace(evaluate={**recipe.evaluate.model_dump(mode="json"), "features": spec})
    ids = list(dict.fromkeys(run.id for run in runs))
    document = {"recipe": recipe.model_dump(mode="json"), "inputs": {"runs": ids}}
    done = send(job, document, store, where, json=json)
    if out and "path" in done:
        shutil.copyfile(Path(done["path"]) / "report.html", out)
        done["path"] = str(out.absolute())
    if json:
        terminal.document(done)
        return
    show_table(done)
    if job == "compare":
        print(f"\nreport   {_report_file(done)}")
    best = done.get("best") or ids[0]
    terminal.next_commands(
        f"genflow sample {best}", "genflow ui", *([f"genflow compare {' '.join(ids)}"] if job == "evaluate" else [])
    )


def features(spec: str, store: Store) -> str:
    """What a job is told of `evaluate.features`: a name, or a path that it finds from anywhere.

    Raises:
        SetupError: "imagenet", and its package is not installed.
    """
    if spec == "imagenet":
        from genflow.evaluation.features import imagenet  # torch, which no other command line waits for

        return str(imagenet.module(store))
    return spec if spec in ("classifier", "random") else _path(spec)


def _report_file(done: Document) -> str:
    path = Path(done["path"])
    return str(path if path.suffix == ".html" else path / "report.html")


def show_table(done: Document) -> None:
    """The comparison's table."""
    from genflow.evaluation.report.table import columns, rows

    print(terminal.table(columns(), rows(done), left=2))


def find_run(store: Store, reference: str) -> Artifact:
    """A run by id, prefix, name, `latest`, `best:METRIC` (fd, kid: the smallest; others: the largest), or MLflow's name
    for it, `models:/NAME@ALIAS`.

    Raises:
        UsageError: there is none, or nothing was measured.
    """
    if reference.startswith("models:/"):
        from genflow.tracking import model_registry

        return store.find("runs", model_registry.run_of(store, reference))
    if not reference.startswith("best:"):
        return store.find("runs", reference)
    from genflow.evaluation.report.table import best_run

    return best_run(store, reference.removeprefix("best:"))


def run_pipeline(
    reference: str, sets: list[str], where: Where = HERE, *, dry_run: bool, json: bool,
) -> None:  # fmt: skip
    """`genflow run` and `genflow quickstart`."""
    from genflow.pipeline.graph import load

    path = Path(reference)
    if not path.suffix:
        path = resources_dir() / "pipelines" / f"{reference}.yaml"
    elif not path.exists() and (resources_dir() / path).exists():
        path = resources_dir() / path
    if not path.exists():
        known = sorted(p.stem for p in (resources_dir() / "pipelines").glob("*.yaml") if "stages" in read(p))
        raise UsageError(f"no pipeline {reference!r}{nearest(reference, known)}", f"pipelines: {', '.join(known)}")
    document = {"name": path.stem, **read(path)}
    if "claims" in document:
        raise UsageError(f"{path.name} is the plan of the tables, not a pipeline", "genflow tables --data NAME")
    if "stages" not in document:
        raise UsageError(f"{path} is a recipe of one run, not a pipeline", f"genflow train FAMILY -c {path}")
    overrides = assignments(sets)
    pipeline = load(document, str(path), overrides)
    if dry_run:
        _plan_pipeline(pipeline, json)
        return
    done = send("pipeline", {"pipeline": document, "overrides": overrides}, Store(), where, json=json)
    if json:
        terminal.document(done)
        return
    _show_pipeline(done)


def _show_pipeline(done: Document) -> None:
    from genflow.pipeline import stages

    reports = [stage for stage in done["stages"] if stage["job"] == "compare"]
    for stage in done["stages"]:
        if artifact := stages.artifact(stage["job"], stage):
            print(f"{stage['job']:<8} {stage['stage']:<10} {artifact}{'  cached' if stage['cached'] else ''}")
    for report in reports:
        print()
        show_table(report)
        print(f"\nreport   {_report_file(report)}{'  cached' if report['cached'] else ''}")
    runs = [stage["run"] for stage in done["stages"] if stage["job"] == "train"]
    if runs:
        best = next((report["best"] for report in reports if report.get("best")), runs[-1])
        terminal.next_commands(f"genflow sample {best}", "genflow ui", "genflow prepare ~/my_pictures --size 32")


def _plan_pipeline(pipeline: Any, json: bool) -> None:
    """What running the pipeline would do, as far as it can be known before anything runs."""
    from genflow.pipeline import plan

    rows = plan.foresee(pipeline, Store())
    if json:
        terminal.document({"schema": "genflow.plan/1", "pipeline": pipeline.name, "stages": rows})
        return
    table = [(row["stage"], row["job"], ", ".join(row["needs"]), row["artifact"], row["state"]) for row in rows]
    print(terminal.table(("stage", "job", "needs", "artifact", "state"), table, left=5))


def show_plan(recipe: Recipe | Document, stages: list[tuple[str, str, str]], json: bool) -> None:
    """Print a recipe, whole, and what would be done with it."""
    document = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
    if json:
        rows = [{"job": job, "artifact": artifact, "state": state} for job, artifact, state in stages]
        terminal.document({"schema": "genflow.plan/1", "recipe": document, "stages": rows})
        return
    print(dump(document).rstrip())
    for job, artifact, state in stages:
        print(f"# {job} {artifact}: {state}")


def ui(port: int, open_browser: bool) -> None:
    """`genflow ui`: MLflow on the loopback until Ctrl-C."""
    import subprocess
    import webbrowser

    from genflow.tracking import database, sync

    environment.set_defaults()
    store = Store()
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        database.prepare(store)
        sync.sync(store)
    port = port or environment.free_port()
    if not environment.is_free(port):
        raise SetupError(f"port {port} on 127.0.0.1 is taken", "genflow ui --port 0 takes a free one")
    address = f"http://127.0.0.1:{port}"
    print(f"MLflow         {address}/#/experiments   (Ctrl-C ends it)", flush=True)
    dashboard = os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    running = not environment.is_free(int(dashboard.rpartition(":")[2].strip("/") or 8265))
    print(f"Ray dashboard  {dashboard if running else 'no cluster is running on this machine'}", flush=True)
    if open_browser:
        webbrowser.open(address)
    process = subprocess.Popen(database.ui_command(store, "127.0.0.1", port))
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return
    if code:
        raise SetupError(f"MLflow's server ended with code {code}", "genflow doctor")


def list_jobs(address: str, *, json: bool) -> None:
    """`genflow jobs ls`."""
    from genflow.launch import remote

    jobs = remote.jobs_list(address)
    if json:
        terminal.document({"schema": "genflow.jobs/1", "jobs": jobs})
        return
    rows = [(job["id"], job.get("stage") or "", job["status"], job.get("started") or "") for job in jobs]
    print(terminal.table(("job", "stage", "status", "started"), rows, left=4) if rows else "no jobs")


def job_logs(job: str, address: str, follow: bool) -> None:
    """`genflow jobs logs`."""
    from genflow.launch import remote

    for text in remote.jobs_logs(address, job, follow=follow):
        print(text, end="", flush=True)


def attach(job: str, address: str, *, json: bool) -> None:
    """`genflow jobs attach`."""
    from genflow.launch import remote

    with terminal.Progress() as progress:
        done = remote.attach(address, job, progress, verbose=bool(os.environ.get("GENFLOW_VERBOSE")))
    if json:
        terminal.document(done)
        return
    made = done.get("run") or done.get("dataset") or done.get("report") or done.get("status", "")
    print(f"job      {job}  {made}")


def stop_job(job: str, address: str) -> None:
    """`genflow jobs stop`."""
    from genflow.launch import remote

    stopped = remote.jobs_stop(address, job)
    again = "serves again" if job.startswith("serve-") else "goes on from its last checkpoint"
    print(f"stopped  {stopped['id']}; the same command again {again}")
