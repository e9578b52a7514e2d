"""`genflow reflow`."""

from typing import Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import send, show_plan
from genflow.cli.options import Address, AsJson, DryRun, OnCluster, RunRef, Sets
from genflow.commands.recipes import compose_recipe
from genflow.commands.references import find_run, show_dataset


def reflow(
    run: RunRef,
    pairs: Annotated[int | None, typer.Option(help="Number of pairs.")] = None,
    sampler: Annotated[str, typer.Option(help="Sampler of the teacher: euler, midpoint, heun, ab2 ...")] = "",
    steps: Annotated[int | None, typer.Option(help="Sampling steps of the teacher.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale of the teacher; 1: no guidance.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise and the labels.")] = None,
    workers: Annotated[int | None, typer.Option(help="Number of parallel workers.")] = None,
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Draw pairs of noise and sample from a trained run.

    A flow trained on such pairs has straighter paths and needs fewer sampling steps.
    """
    from genflow.storage.store import Store

    store = Store()
    teacher = find_run(store, run)
    flags: dict[str, Any] = {"reflow.pairs": pairs, "reflow.seed": seed, "cluster.workers": workers}
    flags |= {"sample.sampler": sampler, "sample.steps": steps, "sample.guidance": guidance}
    recipe = compose_recipe(None, [], sets, flags)
    if dataset := store.get("datasets", teacher.meta.get("dataset", "")):
        show_dataset(dataset)
    if dry_run:
        from genflow.sampling.reflow import plan

        task = plan(store, teacher.id, recipe)
        state = "finished: nothing to do" if store.get("pairs", task.id) else "to do"
        show_plan({"reflow": recipe.reflow.model_dump(), "sample": task.options}, [("reflow", task.id, state)], json)
        return
    document = {"recipe": recipe.model_dump(mode="json"), "inputs": {"run": teacher.id}}
    done = send("reflow", document, store, cluster, address, json=json)
    if json:
        console.document(done)
        return
    print(f"pairs    {done['pairs']}{'  cached' if done['cached'] else ''}")
    took = console.duration(done["seconds"])
    print(f"         {done['count']:,} pairs of {teacher.name}, {took} · {done['path']}")
    data = f"--data {teacher.meta['dataset']} --set data.pairs={done['pairs']}"
    straight = "--set family.density=u_shaped --set family.at_noise=0.15"
    name = f"--name {teacher.name}-reflow"
    console.next_commands(f"genflow train flow_matching --init {teacher.id} {data} {straight} {name}")
