"""What `genflow cost` computes: the recipe of a training, of a dataset or of pictures that do not exist yet."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genflow.commands import train as training
from genflow.commands.recipes import compose_recipe
from genflow.errors import UsageError
from genflow.specs import DataSpec
from genflow.system.documents import Json

if TYPE_CHECKING:
    from genflow.cost.estimate import Cost
    from genflow.cost.gpus import Gpu
    from genflow.recipe.schema import Recipe
    from genflow.runs import RunPlan
    from genflow.storage.store import Store


def estimate(
    store: "Store", family: str, files: Sequence[Json], sets: list[str], *,
    pixels: int | None = None, gpus: int | None = None, kinds: "tuple[Gpu, ...]" = (), **flags: Any,
) -> "Cost":  # fmt: skip
    """The cost of a training.

    Args:
        store: holds the dataset, and the run that the training starts from.
        family: empty: that of the last file that names one.
        files: contents of recipe files.
        sets: KEY=VALUE texts.
        pixels: the side of RGB pictures, in place of a dataset.
        gpus: the number of GPUs; None: the recipe's workers.
        kinds: of GPU; none: all that are known.
        flags: values by recipe key; None and "" mean that the flag was not given.

    Raises:
        UsageError: a key or a value is invalid, the dataset does not exist, or there are more GPUs than pictures.
    """
    from genflow.cost.estimate import estimate as of

    if pixels is None:
        recipe, facts, init = _of_data(store, training.recipe(store, family, files, [], sets, **flags))
    elif flags.get("data.name") or flags.get("data.text"):
        raise UsageError("--pixels is for pictures that do not exist yet, without captions", "omit --data and --text")
    else:
        recipe, facts, init = _of_pixels(training.family_named(family, files), files, sets, flags, pixels)
    return of(recipe, facts, gpus=gpus or recipe.cluster.workers, init=init, kinds=kinds)


def of_run(store: "Store", run: "RunPlan") -> "Cost":
    """The cost of a planned run on the GPUs of its workers."""
    from genflow.cost.estimate import estimate as of

    return of(run.recipe, run.facts, gpus=run.recipe.cluster.workers, init=_start(run))


def _of_data(store: "Store", recipe: "Recipe") -> "tuple[Recipe, DataSpec, Recipe | None]":
    from genflow import build
    from genflow.pipeline import latents
    from genflow.runs import plan

    if recipe.data.latents == "auto":
        facts = latents.expected_facts(store, recipe)
        return build.resolve(recipe, facts), facts, None
    run = plan(store, recipe)
    return run.recipe, run.facts, _start(run)


def _start(run: "RunPlan") -> "Recipe | None":
    """The resolved recipe of the run that a run starts from."""
    from genflow.recipe.files import read
    from genflow.recipe.schema import parse
    from genflow.sampling.engine import RECIPE

    return parse(read(run.init.file(RECIPE))) if run.init else None


def _of_pixels(
    family: str, files: Sequence[Json], sets: list[str], flags: dict[str, Any], pixels: int
) -> "tuple[Recipe, DataSpec, Recipe | None]":
    from genflow import build, families
    from genflow.pipeline import latents

    if not 4 <= pixels <= 1024:
        raise UsageError(f"--pixels must be from 4 to 1024, not {pixels}", "genflow cost FAMILY --pixels 256")
    facts = DataSpec((3, pixels, pixels), levels=256)
    by_default = {"data": {"latents": "auto"}} if facts.is_large and family not in families.AUTOENCODERS else {}
    recipe = compose_recipe(family, [by_default, *files], sets, flags)
    if recipe.data.latents == "auto":
        facts = latents.latents_of(facts, recipe.size)
    init = None
    if families.family_class(recipe.family["kind"]).teacher == "required":  # a teacher with the same net
        teacher = compose_recipe("flow_matching", [{"size": recipe.size, "net": recipe.net}], [], {})
        init = build.resolve(teacher, facts)
    return build.resolve(recipe, facts, init), facts, init
