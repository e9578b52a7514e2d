"""`genflow tune`."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import check_output_path, import_init, make_texts, send, show_plan, show_stages
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
from genflow.commands.recipes import read_config
from genflow.commands.references import require_family
from genflow.system.documents import Json

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.recipe.schema import Recipe
    from genflow.storage.store import Store

ROWS_SHOWN = 10  # trials in the final table


def tune(
    family: Annotated[
        str, typer.Argument(help="Model family: vae, ddpm, flow_matching ...", autocompletion=complete_family)
    ],
    data: Data = "",
    latents: Latents = "",
    text: Text = "",
    param: Annotated[
        list[str],
        typer.Option(
            "--param",
            "-p",
            metavar="KEY=SPACE",
            help="Search range of a key: log:LO:HI, uniform:LO:HI, int:LO:HI or choice:A,B; repeatable. Default: the "
            "family's own search space.",
        ),
    ] = [],
    trials: Annotated[int | None, typer.Option(help="Maximum number of trials.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Wall-clock minutes for the whole search.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data of a trial.", hidden=True)] = None,
    metric: Annotated[list[str], typer.Option(help="fd, kid, bits_per_dim, ms ...; give two for a Pareto front.")] = [],
    init: Init = "",
    config: Config = [],
    sets: Sets = [],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also copy best.yaml to this file.")] = None,
    objective: Annotated[str, typer.Option(help="FILE.py:FUNCTION to call instead of training.", hidden=True)] = "",
    cluster: OnCluster = False,
    address: HiddenAddress = "",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Search for better hyperparameters, and confirm the best ones with new seeds.

    If the search was interrupted, run the same command again to resume it.

    --set tune.KEY=VALUE sets the steps of a trial, the searcher, the scheduler or a target value.
    --set cluster.workers=N sets the number of parallel trials.
    """
    check_output_path(out)
    require_family(family)
    from genflow.commands import tune as commands
    from genflow.commands.train import on_latents
    from genflow.storage.store import Store

    store = Store()
    flags: dict[str, Any] = {"data.name": data, "data.latents": latents, "data.text": text, "init": init}
    flags |= {"tune.metric": metric or None, "tune.trials": trials, "tune.minutes": minutes}
    recipe = commands.recipe(store, family, [read_config(path) for path in config], sets, param, epochs, **flags)
    with_texts = make_texts(store, recipe, cluster, address, dry_run=dry_run, json=json)
    if with_texts is None:
        return
    with_init = import_init(store, with_texts, dry_run=dry_run, json=json)
    if with_init is None:
        return
    recipe = with_init
    if recipe.data.latents == "auto":
        made = _make_latents(store, recipe, cluster, address, dry_run=dry_run, json=json)
        if not made:
            return
        recipe = on_latents(recipe, made)
    document, plan = commands.document(store, recipe, objective)
    if dry_run:
        _show_plan(plan, store, json)
        return
    done = send("tune", document, store, cluster, address, json=json)
    if out:
        shutil.copyfile(done["best_file"], out)
        done |= {"best_file": str(out.absolute()), "command": f"genflow train -c {out}"}
    if json:
        console.document(done)
        return
    _show(done)


def _make_latents(
    store: "Store", recipe: "Recipe", cluster: bool, address: str, *, dry_run: bool, json: bool
) -> str:  # fmt: skip
    """Train the autoencoder and encode the dataset unless that is done.

    Returns:
        The id of the latents; "" if a dry run has shown that they are to be made.
    """
    from genflow.commands.tune import latents_stages
    from genflow.pipeline import graph

    document, made = latents_stages(store, recipe)
    if made:
        return made
    if dry_run:
        console.note("the search comes after these stages:")
        show_stages(graph.load(document, "--latents auto"), json)
        return ""
    console.note("plan     autoencoder, then its latents, then the search")
    done = send("pipeline", {"pipeline": document, "overrides": {}}, store, cluster, address, json=json, details=False)
    return str(done["stages"][-1]["latents"])


def _show_plan(plan: Any, store: "Store", json: bool) -> None:
    """Print what a search would do."""
    state = "finished: nothing to do" if store.get("searches", plan.id) else "to do"
    if state == "to do" and plan.folder(store).exists():
        state = "to resume"
    document = plan.run.recipe.model_dump(mode="json")
    space = {key: str(domain) for key, domain in plan.space.items()}
    document["tune"] = {**plan.recipe.tune.model_dump(mode="json"), "space": space}
    show_plan(document, [("tune", plan.id, state)], json)


def _show(done: Json) -> None:
    """Print the result of a search."""
    counts = ", ".join(f"{count} {status}" for status, count in done["counts"].items() if count)
    print(f"search   {done['name']}  ({done['search']}){'  cached' if done['cached'] else ''}")
    print(f"         {counts}; {console.duration(done['seconds'])} · {done['path']}\n")
    print(_trials_table(done["metrics"], list(done["space"]), done["ranked"][:ROWS_SHOWN], len(done["trials"])))
    if done["importance"]:
        parts = ", ".join(f"{key} {100 * share:.0f} %" for key, share in done["importance"].items())
        print(f"\nmatters  {parts}  (share of the variance of {done['metrics'][0]} over the trials)")
    if done["front"]:
        print("\nfront    no other trial is better in one metric without being worse in another:")
        print(_trials_table(done["metrics"], list(done["space"]), done["front"], len(done["front"])))
    print(f"\nbest     trial {done['best']['trial']}: {_settings(done['best']['params'])}")
    if done["best"]["is_preset"]:
        print("         this is the preset: no tried setting is better")
    elif done["confirmed"]:
        print(f"         {done['confirmed']}\n         ({done['note']})")
    print(f"         {done['best_file']}")
    console.next_commands(done["command"])


def _settings(params: Json) -> str:
    """The settings of a trial as text."""
    return ", ".join(f"{key}={console.format_setting(value)}" for key, value in params.items()) or "the preset"


def _trials_table(names: list[str], keys: list[str], rows: list[Json], total: int) -> str:
    """Trials as a text table."""
    text = console.table(*console.trial_rows(names, keys, rows), left=2)
    return text + (f"\n… and {total - len(rows)} more, in trials.csv" if total > len(rows) else "")
