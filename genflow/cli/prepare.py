"""`genflow prepare`."""

from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.dispatch import send, show_plan, training_of
from genflow.cli.options import Address, AsJson, DryRun, OnCluster, Sets
from genflow.commands.references import MAX_LISTED
from genflow.data import sources
from genflow.data.skipped import describe
from genflow.system.documents import Json


def prepare(
    source: Annotated[str, typer.Argument(help=f"{sources.describe()}.")],
    name: Annotated[str, typer.Option(help="Name of the dataset; default: from the source.")] = "",
    size: Annotated[int | None, typer.Option(help="Width and height of the images in pixels.")] = None,
    channels: Annotated[str, typer.Option(help="Color channels: auto, 1 or 3.")] = "auto",
    bits: Annotated[
        int | None, typer.Option(help="Bits of 16-bit grey values: 9 to 16; default: 16.", hidden=True)
    ] = None,  # the warning about 16-bit values proposes it where it applies
    crop: Annotated[
        str | None, typer.Option(help="Crop to a square: center, random, or none, which pads; default: center.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Shards store: raw pixels, or files of webp, png or jpeg; default: raw.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Labels from: none, folders, metadata, or a column.")] = None,
    captions: Annotated[str | None, typer.Option(help="Captions from: none, or a column.")] = None,
    val: Annotated[float | None, typer.Option(help="Fraction of the images held out for evaluation.")] = None,
    max_bad: Annotated[
        int | None, typer.Option(help="Fail if more images than this are unreadable; default: 0.")
    ] = None,
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Convert images to a dataset of Arrow shards in the store."""
    from genflow.commands import prepare as commands
    from genflow.storage.store import Store

    store = Store()
    recipe = commands.recipe(
        store, source, channels, [], sets,
        name=name, size=size, bits=bits, crop=crop, encoding=encoding, labels=labels, captions=captions, val=val,
        max_bad=max_bad,
    )  # fmt: skip
    if dry_run:
        show_plan({"data": recipe.data.model_dump(mode="json")}, [], json)
        return
    document = {"recipe": recipe.model_dump(mode="json")}
    done = send("prepare", document, store, cluster, address, json=json)
    if done["cached"]:  # otherwise the job has printed them
        for warning in done["warnings"]:
            console.note(f"warning: {warning}")
    if json:
        console.document(done)
        return
    _show(done)


def _show(done: Json) -> None:
    facts = done["facts"]
    splits = ", ".join(f"{rows:,} {name}" for name, rows in facts["splits"].items())
    texts = " · captions" if facts.get("captions") else ""
    size = "points" if facts["levels"] is None else f"{facts['shape'][1]}×{facts['shape'][2]}×{facts['shape'][0]}"
    print(f"dataset  {done['name']}  ({done['dataset']}){'  cached' if done['cached'] else ''}")
    print(f"         {splits} · {size} · {len(facts['class_names']) or 'no'} classes{texts}\n         {done['path']}")
    if done.get("bad"):
        print(f"         {done['bad']} unreadable image{'s' * (done['bad'] > 1)}, listed in {done['path']}/bad.csv")
    if done.get("skipped"):
        print(f"skipped  {describe(done['skipped'])}")
    name = _reference(done)
    console.next_commands(f"genflow data show {name}", training_of(name, facts))


def _reference(done: Json) -> str:
    """The dataset's name; if others have the name, its id, and a line says what the name means from now on."""
    from genflow.storage.store import Store

    store = Store()
    made = store.get("datasets", done["dataset"])
    if made is None or not (others := store.same_name(made)):
        return str(done["name"])
    listed = ", ".join(other.id for other in others[-MAX_LISTED:])
    console.note(f"note: from now on {made.name} means {made.id}; the name also belongs to {listed}")
    return made.id
