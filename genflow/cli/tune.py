"""`genflow tune`."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import (
    Document,
    check_out,
    compose_recipe,
    need_dataset,
    need_family,
    send,
    show_plan,
)  # fmt: skip
from genflow.cli.options import Address, AsJson, Config, Data, DryRun, Init, OnCluster, Sets, complete_family

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.storage.store import Store

SHOWN = 10  # trials in the table at the end


def tune(
    family: Annotated[str, typer.Argument(help="vae, ddpm, flow_matching ...", autocompletion=complete_family)],
    data: Data = "",
    param: Annotated[
        list[str],
        typer.Option(
            "--param", "-p", metavar="KEY=SPACE",
            help="log:LO:HI, uniform:LO:HI, int:LO:HI or choice:A,B; repeatable. Left out: the family's own space.",
        ),
    ] = [],
    trials: Annotated[int | None, typer.Option(help="Trials at the most.")] = None,
    budget: Annotated[float | None, typer.Option(help="Minutes for all of them.")] = None,
    metric: Annotated[list[str], typer.Option(help="fd, kid, bits_per_dim, ms ...; two give a Pareto front.")] = [],
    init: Init = "",
    config: Config = [],
    sets: Sets = [],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Copy best.yaml here.")] = None,
    objective: Annotated[str, typer.Option(help="FILE.py:FUNCTION to ask instead of training.", hidden=True)] = "",
    cluster: OnCluster = False,
    address: Address = "",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Search for better settings, and prove them. The same command again goes on where it was broken off.

    --set tune.KEY=VALUE: a trial's steps, searcher, scheduler, target; --set cluster.workers: how many at once.
    """
    check_out(out)
    need_family(family)
    from genflow.recipe.files import read
    from genflow.storage.store import Store
    from genflow.tuning import search, space

    flags: dict[str, Any] = {"data.name": data, "init": init, "tune.metric": metric or None}
    flags |= {"tune.trials": trials, "tune.minutes": budget, "tune.space": space.parse_pairs(param) if param else None}
    recipe = compose_recipe(family, [read(path) for path in config], sets, flags)
    store = Store()
    need_dataset(recipe, store)
    if objective.partition(":")[0].endswith(".py"):
        objective = str(Path(objective).expanduser().absolute())
    plan = search.plan(store, recipe, objective)
    if dry_run:
        _show_plan(plan, store, json)
        return
    document = {"recipe": recipe.model_dump(mode="json"), "inputs": {"objective": objective, "run": plan.id}}
    done = send("tune", document, store, cluster, address, json=json)
    if out:
        shutil.copyfile(done["best_file"], out)
        done |= {"best_file": str(out.absolute()), "command": f"genflow train -c {out}"}
    if json:
        console.document(done)
        return
    _show(done)


def _show_plan(plan: Any, store: "Store", json: bool) -> None:
    """What a search would do."""
    state = "finished: nothing to do" if store.get("searches", plan.id) else "to do"
    if state == "to do" and plan.folder(store).exists():
        state = "to go on with"
    document = plan.run.recipe.model_dump(mode="json")
    space = {key: str(domain) for key, domain in plan.space.items()}
    document["tune"] = {**plan.recipe.tune.model_dump(mode="json"), "space": space}
    show_plan(document, [("tune", plan.id, state)], json)


def _show(done: Document) -> None:
    """What a search found."""
    counts = ", ".join(f"{count} {status}" for status, count in done["counts"].items() if count)
    print(f"search   {done['name']}  ({done['search']}){'  cached' if done['cached'] else ''}")
    print(f"         {counts}; {console.duration(done['seconds'])} · {done['path']}\n")
    print(_trials_table(done["metrics"], list(done["space"]), done["ranked"][:SHOWN], len(done["trials"])))
    if done["importance"]:
        parts = ", ".join(f"{key} {100 * share:.0f} %" for key, share in done["importance"].items())
        print(f"\nmatters  {parts}  (of the variance of {done['metrics'][0]} over the trials)")
    if done["front"]:
        print("\nfront    no trial is as good in every metric and better in one:")
        print(_trials_table(done["metrics"], list(done["space"]), done["front"], len(done["front"])))
    print(f"\nbest     trial {done['best']['trial']}: {_settings(done['best']['params'])}")
    if done["best"]["is_preset"]:
        print("         that is the preset itself: nothing that was tried is better")
    elif done["confirmed"]:
        print(f"         {done['confirmed']}\n         ({done['note']})")
    print(f"         {done['best_file']}")
    console.next_commands(done["command"])


def _settings(params: Document) -> str:
    """A trial's settings in words."""
    return ", ".join(f"{key}={console.setting(value)}" for key, value in params.items()) or "the preset"


def _trials_table(names: list[str], keys: list[str], rows: list[Document], total: int) -> str:
    """Trials as a table."""
    text = console.table(*console.trials(names, keys, rows), left=2)
    return text + (f"\n… and {total - len(rows)} more, in trials.csv" if total > len(rows) else "")
