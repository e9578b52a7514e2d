"""`genflow encode`."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import send, show_plan
from genflow.cli.options import Address, AsJson, DataRef, DryRun, OnCluster, Sets, complete_run
from genflow.commands.recipes import compose_recipe
from genflow.commands.references import find_named, find_run, show_dataset
from genflow.errors import UsageError
from genflow.system.documents import Json

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.recipe.schema import Recipe
    from genflow.storage.store import Artifact, Store


def encode(
    dataset: DataRef,
    autoencoder: Annotated[
        str,
        typer.Option(
            help="Run of an autoencoder, or a local folder of diffusers' AutoencoderKL.", autocompletion=complete_run
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the latents and embeddings; default: that of the dataset.")] = "",
    text: Annotated[
        str, typer.Option(help="Embed the captions: minilm, or a local folder of CLIP, T5 or BERT; a+b: both.")
    ] = "",
    flip: Annotated[bool, typer.Option("--flip", help="Encode the mirrored pictures, too, as further rows.")] = False,
    workers: Annotated[int | None, typer.Option(help="Number of parallel workers.")] = None,
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Encode a dataset: its pictures with an autoencoder, its captions with a text encoder, or both.

    Other families train on the latents, a quarter or less of the numbers of the pictures, and read the captions.
    """
    from genflow.storage.store import Store

    store = Store()
    flags: dict[str, Any] = {"name": name, "encode.flip": flip or None, "encode.text": text}
    recipe = compose_recipe(None, [], sets, {**flags, "cluster.workers": workers})
    pictures = find_named(store, "datasets", dataset)
    recipe = recipe.replace(data={**recipe.data.model_dump(mode="json"), "name": pictures.id})
    reference = "" if text and not autoencoder else _reference(store, autoencoder, pictures, cluster=cluster)
    show_dataset(pictures)
    if dry_run:
        _show_plan(store, recipe, reference, json, embeds=bool(text))
        return
    embedded, encoded = None, None
    sent = recipe.model_dump(mode="json")
    if text:
        embedded = send("encode_text", {"recipe": sent, "inputs": {}}, store, cluster, address, json=json)
        _show_texts(embedded, json)
    if reference:
        document = {"recipe": sent, "inputs": {"autoencoder": reference}}
        encoded = send("encode", document, store, cluster, address, json=json)
        _show(encoded, json)
    if json:
        both = {"text": embedded} if embedded and encoded else {}
        console.document({**(encoded or embedded or {}), **both})


def _show_plan(store: "Store", recipe: "Recipe", reference: str, json: bool, *, embeds: bool) -> None:
    """Print what would be made."""
    plan: Json = {"data": recipe.data.name}
    stages = []

    def add(job: str, kind: str, id: str) -> None:
        stages.append((job, id, "finished: nothing to do" if store.get(kind, id) else "to do"))

    if embeds:
        from genflow.sampling import encode_text

        words = encode_text.plan(store, recipe)
        plan["text"] = words.spec.encoder
        add("encode_text", "texts", words.id)
    if reference:
        from genflow.sampling import encode

        task = encode.plan(store, reference, recipe)
        plan |= {"autoencoder": task.facts.autoencoder, "encode": {"flip": recipe.encode.flip}}
        plan |= {"rows": task.count, "shape": list(task.facts.shape)}
        add("encode", "latents", task.id)
    show_plan(plan, stages, json)


def _show_warnings(done: Json) -> None:
    if done["cached"]:  # otherwise the job has printed them
        for warning in done["warnings"]:
            console.note(f"warning: {warning}")


def _show_texts(done: Json, json: bool) -> None:
    """Print the text embeddings; with --json only the warnings."""
    _show_warnings(done)
    if json:
        return
    size = done["spec"]
    print(f"texts    {done['texts']}{'  cached' if done['cached'] else ''}")
    print(f"         {done['captions']:,} captions of {done['dataset']} by {done['encoder_id']}")
    print(f"         {size['length']} tokens of {size['tokens']} numbers, {size['pooled']} pooled · {done['path']}")
    console.next_commands(f"genflow train flow_matching --data {done['dataset']} --text {done['texts']}")


def _reference(store: "Store", autoencoder: str, pictures: "Artifact", *, cluster: bool) -> str:
    """The id of the run, or the absolute path of the folder; on a cluster the job looks for the folder.

    Raises:
        UsageError: none was named, there is none, or it is no autoencoder.
    """
    from genflow.sampling import autoencoders

    if not autoencoder:
        own = [run for run in store.artifacts("runs") if run.meta.get("dataset") == pictures.id]
        known = [run.id for run in own if autoencoders.is_autoencoder(run)]
        cure = f"--autoencoder {known[-1]}" if known else f"genflow train autoencoder --data {pictures.name}"
        raise UsageError("no autoencoder given", cure)
    if autoencoder.startswith(("best:", "models:/")):
        autoencoder = find_run(store, autoencoder).id
    elif cluster and os.sep in autoencoder:
        return autoencoder
    found = autoencoders.find(store, autoencoder)
    return str(getattr(found, "id", found))


def _show(done: Json, json: bool) -> None:
    """Print the latents; with --json only the warnings."""
    _show_warnings(done)
    if json:
        return
    shape = "×".join(map(str, done["shape"]))
    low, high = min(done["deviation"]), max(done["deviation"])
    print(f"latents  {done['latents']}{'  cached' if done['cached'] else ''}")
    print(f"         {done['rows']:,} rows · {shape} (C×H×W) of {done['dataset']} by {done['autoencoder']}")
    print(f"         deviation {low:.2f} to {high:.2f}, {console.duration(done['seconds'])} · {done['path']}")
    console.next_commands(f"genflow train flow_matching --latents {done['latents']}")
