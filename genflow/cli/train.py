"""`genflow train`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import (
    compose_recipe,
    decide_latents,
    find_data,
    import_init,
    make_texts,
    read_config,
    require_family,
    send,
    show_plan,
    show_stages,
    use_of,
)
from genflow.cli.options import (
    AsJson,
    Config,
    Data,
    DryRun,
    HiddenAddress,
    Init,
    Latents,
    OnCluster,
    Sets,
    Text,
    complete_family,
)
from genflow.errors import UsageError
from genflow.system.documents import Json

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.pipeline.graph import Node
    from genflow.storage.store import Store

NO_END = 1_000_000_000


def train(
    family: Annotated[
        str,
        typer.Argument(
            help="vae, ddpm, flow_matching ...; default: the family in FILE.", autocompletion=complete_family
        ),
    ] = "",
    data: Data = "",
    latents: Latents = "",
    text: Text = "",
    config: Config = [],
    sets: Sets = [],
    name: Annotated[str, typer.Option(help="Name of the run.")] = "",
    steps: Annotated[int | None, typer.Option(help="Number of training steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after this wall-clock time in minutes.")] = None,
    init: Init = "",
    workers: Annotated[
        int | None, typer.Option(help="Number of training workers; the result does not depend on it.")
    ] = None,
    cluster: OnCluster = False,
    address: HiddenAddress = "",
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Resume an interrupted run, or start from scratch.")
    ] = True,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Train a model family on a dataset.

    If training was interrupted, run the same command again to resume it.
    """
    from genflow.pipeline import latents as latents_pipeline
    from genflow.storage.store import Store

    files = [read_config(path) for path in config]
    family = _family(family, files)
    if minutes and not steps:
        steps = NO_END  # without --steps, only --minutes limits the run
    flags: dict[str, Any] = {"name": name, "data.name": data, "data.latents": latents, "data.text": text}
    flags |= {"train.steps": steps, "train.minutes": minutes}
    recipe = compose_recipe(family, files, sets, {**flags, "cluster.workers": workers, "init": init})
    if recipe.family.get("kind") != family:
        raise UsageError(
            f"family.kind in the recipe is {recipe.family.get('kind')!r}, but the command names {family}",
            f"genflow train {recipe.family.get('kind')}",
        )
    store = Store()
    with_texts = make_texts(store, find_data(store, recipe), cluster, address, dry_run=dry_run, json=json)
    if with_texts is None:
        return
    with_init = import_init(store, decide_latents(store, with_texts), dry_run=dry_run, json=json)
    if with_init is None:
        return
    recipe = with_init
    if recipe.data.latents == "auto":
        latents_pipeline.check(recipe, store)
        document = latents_pipeline.pipeline(recipe)
        if not (made := latents_pipeline.made(document, store)):
            _run(document, store, cluster, address, dry_run=dry_run, json=json)
            return
        recipe = recipe.replace(data={**recipe.data.model_dump(mode="json"), "latents": made, "flip": False})
    inputs: Json = {"fresh": not resume, "announce": True}
    if dry_run or cluster:  # a local job makes the same plan itself, so torch is imported only once
        from genflow import runs

        plan = runs.plan(store, recipe)
        recipe, inputs["run"] = plan.recipe, plan.id
    if dry_run:
        if new := runs.difference(store, plan):
            console.note(new)
        state = "finished: nothing to do" if store.get("runs", plan.id) else "to do"
        broken = plan.id in store.names("runs") and not store.get("runs", plan.id)
        show_plan(recipe, [("train", plan.id, "to resume" if broken else state)], json)
        return
    document = {"recipe": recipe.model_dump(mode="json"), "inputs": inputs}
    done = send("train", document, store, cluster, address, json=json)
    if json:
        console.document(done)
        return
    _show(done)


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
    if node.job == "encode":
        return "its latents"
    train = node.recipe.train
    budgets = ((train.minutes, "minutes"), (train.cpu_minutes, "CPU minutes"))
    limits = [f"{limit:g} {unit}" for limit, unit in budgets if limit] or [f"{train.steps:,} steps of {train.batch}"]
    return f"{node.recipe.family['kind']} ({limits[0]})"


def _family(family: str, files: Sequence[Json]) -> str:
    """The family argument, or the family in the last recipe file that names one.

    Raises:
        UsageError: no family is named, or the family is unknown.
    """
    sections = [file["family"] for file in reversed(files) if isinstance(file.get("family"), dict)]
    family = family or next((str(section["kind"]) for section in sections if "kind" in section), "")
    if not family:
        from genflow.families import kinds

        known = ", ".join(kinds())
        raise UsageError("no family given", f"genflow train FAMILY --data NAME; choose one of: {known}")
    require_family(family)
    return family


def _show(done: Json) -> None:
    print(f"run      {done['name']}  ({done['run']}){'  cached' if done['cached'] else ''}")
    rate = f"{done['images'] / max(done['seconds'], 1e-9):,.0f} img/s"
    took = f"{done['steps']:,} steps, {done['images']:,} images, {console.duration(done['seconds'])} ({rate})"
    print(f"         {took} · {done['path']}")
    if grids := sorted(Path(done["path"]).glob("samples/*.png")):
        print(f"         samples: {grids[-1]}")
    name = done["run"]
    console.next_commands(use_of(name, done["family"], done["dataset"]), f"genflow evaluate {name}", "genflow ui")
