"""What `genflow tune` does: compose the search, send it, show what it found."""

import shutil
from pathlib import Path
from typing import Any

from genflow.cli import console
from genflow.cli.dispatch import Where, check_out, flagged, need_dataset, need_family, send, show_plan
from genflow.recipe.compose import assignments, compose
from genflow.recipe.files import read
from genflow.storage.store import Store

Document = dict[str, Any]
SHOWN = 10  # trials in the table at the end


def tune(
    family: str, config: list[Path], spaces: list[str], sets: list[str], flags: Document, where: Where,
    *, objective: str, out: Path | None, dry_run: bool, json: bool,
) -> None:  # fmt: skip
    """`genflow tune`."""
    check_out(out)
    need_family(family)
    from genflow.tuning import search, space

    space_given = {"tune": {"space": space.choices(spaces)}} if spaces else {}
    recipe = compose(family, [read(path) for path in config], assignments(sets), space_given, flagged(flags))
    store = Store()
    need_dataset(recipe, store)
    if objective.partition(":")[0].endswith(".py"):
        objective = str(Path(objective).expanduser().absolute())
    plan = search.plan(store, recipe, objective)
    if dry_run:
        _plan_search(plan, store, json)
        return
    document = {"recipe": recipe.model_dump(mode="json"), "inputs": {"objective": objective, "run": plan.id}}
    done = send("tune", document, store, where, json=json)
    if out:
        shutil.copyfile(done["best_file"], out)
        done |= {"best_file": str(out.absolute()), "command": f"genflow train -c {out}"}
    if json:
        console.document(done)
        return
    show(done)


def _plan_search(plan: Any, store: Store, json: bool) -> None:
    """What a search would do."""
    state = "finished: nothing to do" if store.get("searches", plan.id) else "to do"
    if state == "to do" and plan.folder(store).exists():
        state = "to go on with"
    document = plan.run.recipe.model_dump(mode="json")
    space = {key: str(domain) for key, domain in plan.space.items()}
    document["tune"] = {**plan.recipe.tune.model_dump(mode="json"), "space": space}
    show_plan(document, [("tune", plan.id, state)], json)


def show(done: Document) -> None:
    """What a search found."""
    counts = ", ".join(f"{count} {status}" for status, count in done["counts"].items() if count)
    print(f"search   {done['name']}  ({done['search']}){'  cached' if done['cached'] else ''}")
    print(f"         {counts}; {console.duration(done['seconds'])} · {done['path']}\n")
    print(trials_table(done["metrics"], list(done["space"]), done["ranked"][:SHOWN], len(done["trials"])))
    if done["importance"]:
        parts = ", ".join(f"{key} {100 * share:.0f} %" for key, share in done["importance"].items())
        print(f"\nmatters  {parts}  (of the variance of {done['metrics'][0]} over the trials)")
    if done["front"]:
        print("\nfront    no trial is as good in every metric and better in one:")
        print(trials_table(done["metrics"], list(done["space"]), done["front"], len(done["front"])))
    print(f"\nbest     trial {done['best']['trial']}: {settings(done['best']['params'])}")
    if done["best"]["is_preset"]:
        print("         that is the preset itself: nothing that was tried is better")
    elif done["confirmed"]:
        print(f"         {done['confirmed']}\n         ({done['note']})")
    print(f"         {done['best_file']}")
    console.next_commands(done["command"])


def settings(params: Document) -> str:
    """A trial's settings in words."""
    return ", ".join(f"{key}={console.setting(value)}" for key, value in params.items()) or "the preset"


def trials_table(names: list[str], keys: list[str], rows: list[Document], total: int) -> str:
    """Trials as a table."""
    text = console.table(*console.trials(names, keys, rows), left=2)
    return text + (f"\n… and {total - len(rows)} more, in trials.csv" if total > len(rows) else "")


