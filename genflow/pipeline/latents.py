"""Pipelines on latents: train the autoencoder, encode the dataset, then train on the latents.

Each stage finds its artifact by its content address, so a second family on the same dataset trains no autoencoder.
"""

import math
from dataclasses import replace

from genflow.data.shard_format import FACTS
from genflow.data.texts import Texts
from genflow.pipeline.graph import load
from genflow.pipeline.plan import dry_run
from genflow.recipe.compose import compose
from genflow.recipe.schema import Recipe
from genflow.recipe.sizes import SMALLEST
from genflow.specs import DataSpec
from genflow.storage.store import Store
from genflow.system.documents import Json

STAGES = ("autoencoder", "latents")
SHARE = 1 / 3  # of the last stage's minutes, for the autoencoder
ENOUGH_MINUTES = 4.0  # for the steps of its preset, at the smallest size
OWN_SECTIONS = ("name", "size", "net", "family", "train", "sample", "cluster")  # of the recipe, for the last stage


def pipeline(recipe: Recipe, *, whole: bool = False) -> Json:
    """The document of the pipeline.

    Args:
        recipe: of the last stage; it names its dataset. The autoencoder has its preset's settings of the same size,
            and the same cluster settings. If the last stage trains for few minutes, it stops after a third as many; of
            the smallest size, it makes no more steps than the last stage. `data.flip` becomes an option of encoding,
            because latents cannot be mirrored like pictures.
        whole: the autoencoder trains to its preset's end in any case.
    """
    own = recipe.model_dump(mode="json", include=set(OWN_SECTIONS))
    last = {"job": "train", "data": recipe.data.name, "latents": "latents", **own}
    if recipe.init:
        last["init"] = recipe.init
    if recipe.data.text:
        last["text"] = recipe.data.text
    made = stages(recipe.data.name, flip=recipe.data.flip, cluster=own["cluster"], size=recipe.size)
    if limits := {} if whole else _limits(recipe):
        made["autoencoder"]["train"] = limits
    return {"name": "latents", "stages": {**made, "train": last}}


def _limits(recipe: Recipe) -> Json:
    """The autoencoder's budget in a short training: a third of the minutes, and no more steps than the last stage."""
    asked = {key: getattr(recipe.train, key) for key in ("minutes", "cpu_minutes")}
    enough = ENOUGH_MINUTES if recipe.size == SMALLEST else math.inf
    limits: Json = {
        key: float(f"{SHARE * value:.2g}") for key, value in asked.items() if value and SHARE * value < enough
    }
    if recipe.size == SMALLEST and recipe.train.steps < compose("autoencoder", {}).train.steps:
        limits["steps"] = recipe.train.steps
    return limits


def stages(
    dataset: str, *, flip: bool = False, cluster: Json | None = None, size: str = SMALLEST
) -> dict[str, Json]:  # fmt: skip
    """The stages `autoencoder` and `latents` of a dataset.

    Args:
        dataset: an artifact's name or id, or a stage that prepares one.
        flip: whether the mirrored pictures are encoded, too.
        cluster: the settings of both stages.
        size: of the autoencoder.
    """
    shared: Json = {"data": dataset, **({"cluster": cluster} if cluster else {})}
    trained, encoded = STAGES
    own: Json = {"encode": {"flip": True}} if flip else {}
    return {
        trained: {"job": "train", "preset": "autoencoder", "size": size, **shared},
        encoded: {"job": "encode", "autoencoder": trained, **own, **shared},
    }


def check(recipe: Recipe, store: Store) -> None:
    """Resolve a recipe against the latents that do not exist yet, so that it fails before the autoencoder is trained.

    A recipe that starts from a run is checked by its own stage.

    Args:
        recipe: of the last stage.
        store: holds its dataset.

    Raises:
        UsageError: an option or a combination cannot work.
    """
    from genflow import build  # imports torch

    if not recipe.init:
        build.resolve(recipe, expected_facts(store, recipe))


def expected_facts(store: Store, recipe: Recipe) -> DataSpec:
    """The facts of the latents that do not exist yet, and of the captions that the recipe names."""
    pictures = DataSpec.from_json(store.find("datasets", recipe.data.name).file(FACTS).read_text(encoding="utf-8"))
    facts = latents_of(pictures, recipe.size)
    if recipe.data.text in ("", "none"):
        return facts
    return replace(facts, text=Texts.of(store.find("texts", recipe.data.text), verify=False).spec)


def latents_of(pictures: DataSpec, size: str) -> DataSpec:
    """The facts of the latents of pictures, by the preset of the autoencoder and a size."""
    from genflow import build  # imports torch

    autoencoder = build.outline_of(build.resolve(compose("autoencoder", {"size": size}), pictures), pictures)
    channels, height, width = autoencoder.code_shape
    return pictures.of_latents((channels, height, width), "autoencoder")


def made(document: Json, store: Store) -> str:
    """The id of the latents of such a pipeline if they exist; else empty."""
    rows = {row["stage"]: row for row in dry_run(load(document, "--latents auto"), store)}
    return str(rows["latents"]["artifact"]) if rows["latents"]["state"] == "cached" else ""
