"""Check that a search can be a population: its settings change during training, and its checkpoints must fit them."""

import torch

from genflow import build
from genflow.errors import UsageError
from genflow.recipe.schema import Recipe, Tune
from genflow.specs import DataSpec
from genflow.tuning import space
from genflow.tuning.space import Space

FIXED = ("steps", "minutes", "cpu_minutes", "batch", "optimizer", "seed")  # of `train`: a checkpoint depends on them


def check(tune: Tune, found: Space, run: Recipe, facts: DataSpec) -> None:
    """Check that a search has two members and two rungs, and that weights fit all settings of the space.

    Args:
        tune: the recipe's section.
        found: the search space.
        run: the preset, resolved.
        facts: of the data.

    Raises:
        UsageError: one of these does not hold.
    """
    if len(tune.metric) > 1:
        raise UsageError("population-based training uses one metric", f"--metric {tune.metric[0]}")
    if tune.trials < 2 or tune.rungs < 2:
        what = f"{tune.trials} trials and {tune.rungs} rungs"
        raise UsageError(f"a population needs two members and two rungs, not {what}",
                         "--trials 8 --set tune.rungs=4")  # fmt: skip
    usual = _shapes(run, facts)
    for key, domain in found.items():
        section, _, name = key.partition(".")
        fits = name not in FIXED if section == "train" else section == "sample" or all(
            _shapes(space.apply(run, {key: value}), facts) == usual for value in domain.extremes
        )  # fmt: skip
        if not fits:
            why = f"a population copies weights between members, and they do not fit another {key}"
            raise UsageError(why, "--set tune.scheduler=asha")


def _shapes(recipe: Recipe, facts: DataSpec) -> dict[str, torch.Size]:
    """The shapes of the tensors in a checkpoint of a recipe."""
    return {name: tensor.shape for name, tensor in build.family_of(recipe, facts).state_dict().items()}
