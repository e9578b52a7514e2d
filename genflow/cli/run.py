"""`genflow run` and `genflow quickstart`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genflow.cli import console
from genflow.cli.dispatch import budget_of, send, show_stages, use_of
from genflow.cli.evaluate import report_file, show_table
from genflow.cli.options import Address, AsJson, DryRun, OnCluster, Sets
from genflow.errors import UsageError, similar
from genflow.system.documents import Json

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.pipeline.graph import Node

OWN_PICTURES = (
    "genflow prepare ~/my_pictures --size 64",
    "genflow train flow_matching --data my_pictures --latents auto",
)


def quickstart(json: AsJson = False, dry_run: DryRun = False) -> None:
    """Prepare digits, train three families (VAE, DDPM, flow matching), and write a comparison to report.html."""
    run("quickstart", dry_run=dry_run, json=json)


def run(
    pipeline: Annotated[str, typer.Argument(help="Pipeline file, or the name of a file in pipelines/.")],
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Run a pipeline: skip finished stages, and run independent stages in parallel."""
    from genflow.commands.prepare import find_source
    from genflow.pipeline.graph import load
    from genflow.recipe.compose import assignments
    from genflow.storage.store import Store

    document, path = _read(pipeline)
    overrides = assignments(sets)
    if source := overrides.get("data", {}).get("source"):
        overrides["data"]["source"] = find_source(Store(), str(source))
    stages = load(document, str(path), overrides)
    if dry_run:
        show_stages(stages, json)
        return
    console.note(f"plan     {', '.join(_plan_line(node) for node in stages.stages)}")
    inputs = {"pipeline": document, "overrides": overrides}
    done = send("pipeline", inputs, Store(), cluster, address, json=json, details=False)
    if json:
        console.document(done)
        return
    _show(done)


def _plan_line(node: "Node") -> str:
    """A stage's name, and the budget of a training."""
    return f"{node.name} ({budget_of(node.recipe)})" if node.job == "train" else node.name


def _read(reference: str) -> tuple[Json, Path]:
    """The content of a pipeline file, and its path.

    Args:
        reference: a path, or a name in pipelines/.

    Raises:
        UsageError: there is no such file, or it is not a pipeline.
    """
    from genflow.recipe.files import read
    from genflow.system.source_hash import resources_dir

    path = Path(reference)
    if not path.suffix:
        path = resources_dir() / "pipelines" / f"{reference}.yaml"
    elif not path.exists() and (resources_dir() / path).exists():
        path = resources_dir() / path
    if not path.exists():
        known = sorted(p.stem for p in (resources_dir() / "pipelines").glob("*.yaml") if "stages" in read(p))
        raise UsageError(f"no pipeline {reference!r}{similar(reference, known)}", f"choose one of: {', '.join(known)}")
    document = {"name": path.stem, **read(path)}
    if "claims" in document:
        raise UsageError(f"{path.name} is the plan of `genflow tables`, not a pipeline", "genflow tables --data NAME")
    if "stages" not in document:
        raise UsageError(f"{path} is a recipe for one run, not a pipeline", f"genflow train FAMILY -c {path}")
    return document, path


def _show(done: Json) -> None:
    from genflow.pipeline import stages

    reports = [stage for stage in done["stages"] if stage["job"] == "compare"]
    shown = [stage for stage in done["stages"] if stages.artifact(stage["job"], stage)]
    jobs, names = (max([8, *(len(stage[key]) for stage in shown)]) for key in ("job", "stage"))
    for stage in shown:
        artifact = stages.artifact(stage["job"], stage)
        print(f"{stage['job']:<{jobs}} {stage['stage']:<{names}} {artifact}{'  cached' if stage['cached'] else ''}")
    for report in reports:
        print()
        show_table(report)
        print(f"\nreport   {report_file(report)}{'  cached' if report['cached'] else ''}")
    trained = {stage["run"]: stage for stage in done["stages"] if stage["job"] == "train"}
    if trained:
        best = next((report["best"] for report in reports if report.get("best")), [*trained][-1])
        made = trained.get(best, {})
        use = use_of(best, made.get("family"), made.get("dataset"), texts=made.get("texts"))
        console.next_commands(use, "genflow ui", *(OWN_PICTURES if done["pipeline"] == "quickstart" else ()))
