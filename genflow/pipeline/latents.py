"""A pipeline for one training on latents: train the autoencoder, encode the dataset, train the recipe on the latents.

Each stage finds its artifact by its content address, so a second family on the same dataset trains no autoencoder.
"""

from genflow.pipeline.graph import load
from genflow.pipeline.plan import dry_run
from genflow.recipe.schema import Recipe
from genflow.storage.store import Store
from genflow.system.documents import Json

OWN_SECTIONS = ("name", "net", "family", "train", "sample", "cluster")  # of the recipe, for the last stage


def pipeline(recipe: Recipe) -> Json:
    """The document of the pipeline.

    Args:
        recipe: of the last stage; it names its dataset. The autoencoder has its preset's settings, and the same cluster
            settings. `data.flip` becomes an option of encoding, because latents cannot be mirrored like pictures.
    """
    own = recipe.model_dump(mode="json", include=set(OWN_SECTIONS))
    dataset, cluster = recipe.data.name, own["cluster"]
    encode: Json = {"job": "encode", "data": dataset, "autoencoder": "autoencoder", "cluster": cluster}
    if recipe.data.flip:
        encode["encode"] = {"flip": True}
    last = {"job": "train", "data": dataset, "latents": "latents", **own}
    if recipe.init:
        last["init"] = recipe.init
    return {
        "name": "latents",
        "stages": {
            "autoencoder": {"job": "train", "preset": "autoencoder", "data": dataset, "cluster": cluster},
            "latents": encode,
            "train": last,
        },
    }


def made(document: Json, store: Store) -> str:
    """The id of the latents of such a pipeline if they exist; else empty."""
    rows = {row["stage"]: row for row in dry_run(load(document, "--latents auto"), store)}
    return str(rows["latents"]["artifact"]) if rows["latents"]["state"] == "cached" else ""
