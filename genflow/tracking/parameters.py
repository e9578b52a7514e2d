"""The settings of a run that MLflow shows as its parameters: a few that tell runs apart. recipe.yaml has them all."""

from typing import Any

from genflow.recipe.compose import compose
from genflow.recipe.schema import Recipe, flatten

MOST = 25
BUDGETS = ("train.minutes", "train.cpu_minutes", "train.steps")  # the first that is set decides
FIRST = (
    "family.kind", "net.kind", "init", "data.latents", "data.pairs", "data.text", *BUDGETS, "train.batch", "train.lr",
    "train.optimizer", "train.seed", "sample.sampler", "sample.steps", "sample.guidance",
)  # fmt: skip
HOUSEKEEPING = ("train.checkpoint_every", "train.log_every", "train.on_trouble", "train.threads")
SECTIONS = ("net", "family", "sample", "train")  # the parts that a training and its samples use


def parameters(recipe: Recipe) -> dict[str, Any]:
    """At most 25 settings by flat name: the parts in use, then what differs from the family's preset, then the rest.

    Args:
        recipe: a run's own, with every default filled in.
    """
    flat = flatten(recipe.model_dump(mode="json"))
    own = {"data": {"latents": recipe.data.latents}, "net": {"kind": recipe.net.get("kind", "auto")}}
    preset = flatten(compose(recipe.family["kind"], own).model_dump(mode="json"))
    budget = next(key for key in BUDGETS if flat[key] is not None)
    unused = {*HOUSEKEEPING, *BUDGETS} - {budget}
    used = [key for key in flat if key.partition(".")[0] in SECTIONS or key == "data.flip"]
    changed = [key for key in used if key in preset and flat[key] != preset[key]]
    order = dict.fromkeys([*FIRST, *changed, *used])
    shown = [key for key in order if key not in unused and (flat.get(key) or key == "train.seed")]
    return {key: flat[key] for key in shown[:MOST]}
