"""`genflow train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import budget_of, import_init, make_texts, send, show_plan, show_stages, use_of
from genflow.cli.options import (
    AsJson,
    Config,
    Data,
    DryRun,
    FamilyOrFile,
    HiddenAddress,
    Init,
    Latents,
    OnCluster,
    Sets,
    Size,
    Text,
)
from genflow.commands.recipes import read_config
from genflow.system.documents import Json

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.pipeline.graph import Node
    from genflow.recipe.schema import Recipe
    from genflow.storage.store import Store


def train(
    family: FamilyOrFile = "",
    data: Data = "",
    latents: Latents = "",
    text: Text = "",
    config: Config = [],
    sets: Sets = [],
    name: Annotated[str, typer.Option(help="Name of the run.")] = "",
    size: Size = "",
    steps: Annotated[int | None, typer.Option(help="Number of training steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after this wall-clock time in minutes.")] = None,
    cpu_minutes: Annotated[float | None, typer.Option(help="Stop after this CPU time in minutes.", hidden=True)] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data, as steps.", hidden=True)] = None,
    init: Init = "",
    workers: Annotated[
        int | None, typer.Option(help="Number of training workers; the result does not depend on it.")
    ] = None,
    cluster: OnCluster = False,
    address: HiddenAddress = "",
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Resume an interrupted run, or start from scratch.", hidden=True)
    ] = True,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Train a model family on a dataset.

    If training was interrupted, run the same command again to resume it; --fresh starts from scratch.

    --lr, --batch, --seed, --epochs, --cpu-minutes and other keys of the recipe are flags, too (genflow recipe train).
    """
    from genflow.commands import train as commands
    from genflow.storage.store import Store

    store = Store()
    flags: dict[str, Any] = {"name": name, "data.name": data, "data.latents": latents, "data.text": text}
    flags |= {"train.steps": steps, "train.minutes": minutes, "train.cpu_minutes": cpu_minutes}
    flags |= {"cluster.workers": workers, "init": init, "size": size}
    files = [read_config(path) for path in config]
    recipe = commands.recipe(store, family, files, [], sets, epochs=epochs, **flags)
    with_texts = make_texts(store, recipe, cluster, address, dry_run=dry_run, json=json)
    if with_texts is None:
        return
    with_init = import_init(store, with_texts, dry_run=dry_run, json=json)
    if with_init is None:
        return
    recipe, pipeline = commands.with_latents(store, with_init)
    if pipeline:
        _run(pipeline, store, cluster, address, dry_run=dry_run, json=json)
        return
    with_init = import_init(store, recipe, dry_run=dry_run, json=json)
    if with_init is None:
        return
    recipe = with_init
    if dry_run:
        _show_plan(store, recipe, json)
        return
    document = commands.document(store, recipe, fresh=not resume, planned=cluster)
    done = send("train", document, store, cluster, address, json=json)
    if json:
        console.document(done)
        return
    _show(done)


def _show_plan(store: "Store", recipe: "Recipe", json: bool) -> None:
    """Print the recipe, the state of its run and its cost; for a new run of an old name, also what differs."""
    from genflow.commands import cost
    from genflow.runs import difference, plan

    run = plan(store, recipe)
    if new := difference(store, run):
        console.note(new)
    state = "finished: nothing to do" if store.get("runs", run.id) else "to do"
    broken = run.id in store.names("runs") and not store.get("runs", run.id)
    show_plan(run.recipe, [("train", run.id, "to resume" if broken else state)], json, cost.of_run(store, run))


def _run(document: Json, store: "Store", cluster: bool, address: str, *, dry_run: bool, json: bool) -> None:
    """Run the pipeline that trains an autoencoder, encodes the dataset, and trains the recipe on the latents."""
    from genflow.pipeline.graph import load
    from genflow.pipeline.stages import artifact

    stages = load(document, "--latents auto")
    if dry_run:
        show_stages(stages, json)
        return
    console.note(f"plan     {', then '.join(_plan_line(node) for node in stages.stages)}")
    done = send("pipeline", {"pipeline": document, "overrides": {}}, store, cluster, address, json=json)
    *before, last = done["stages"]
    if json:
        console.document({key: value for key, value in last.items() if key not in ("stage", "job")})
        return
    for stage in before:
        print(f"{stage['job']:<8} {artifact(stage['job'], stage)}{'  cached' if stage['cached'] else ''}")
    _show(last)


def _plan_line(node: "Node") -> str:
    return "its latents" if node.job == "encode" else f"{node.recipe.family['kind']} ({budget_of(node.recipe)})"


def _show(done: Json) -> None:
    from genflow.training import forecast, verdict

    print(f"run      {done['name']}  ({done['run']}){'  cached' if done['cached'] else ''}")
    rate = f"{done['images'] / max(done['seconds'], 1e-9):,.0f} img/s"
    passes = "" if done["passes"] is None else f" ({forecast.in_words(done['passes'])})"
    took = f"{done['steps']:,} steps, {done['images']:,} images{passes}, {console.duration(done['seconds'])} ({rate})"
    print(f"         {took}\n         {done['path']}")
    if done["trend"]:
        early = "; stopped early" if done["stopped_early"] else ""
        print(f"loss     {verdict.in_a_line(done['trend'])}{early}")
    folder = Path(done["path"])
    if grids := sorted(folder.glob("samples/*.png")):
        print(f"samples  {grids[-1]}")
    if (animation := folder / "training.gif").is_file():
        print(f"         {animation}")
    name = done["run"]
    use = use_of(name, done["family"], done["dataset"], texts=done["texts"])
    console.next_commands(use, f"genflow evaluate {name}", *([done["longer"]] if done["longer"] else []), "genflow ui")
