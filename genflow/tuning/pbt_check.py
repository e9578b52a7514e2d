"""Whether weights can be handed on: a population's settings change on the way, and its checkpoints have to fit them."""

import torch

from genflow import build
from genflow.errors import UsageError
from genflow.recipe.schema import Recipe, Tune
from genflow.specs import DataSpec
from genflow.tuning import space
from genflow.tuning.space import Space

FIXED = ("steps", "minutes", "cpu_minutes", "batch", "optimizer", "seed")  # of `train`: a checkpoint goes with them


def check(tune: Tune, found: Space, run: Recipe, facts: DataSpec) -> None:
    """That a search can be a population: it has two members and two rungs, and weights fit whatever the settings.

    Args:
        tune: the section.
        found: the space.
        run: the preset, resolved.
        facts: of the data.

    Raises:
        UsageError: it cannot be, in one line.
    """
    if len(tune.metric) > 1:
        raise UsageError("population based training knows one metric", f"--metric {tune.metric[0]}")
    if tune.trials < 2 or tune.rungs < 2:
        what = f"{tune.trials} trials and {tune.rungs} rungs"
        raise UsageError(f"a population needs two members and two rungs, and this has {what}",
                         "--trials 8 --set tune.rungs=4")  # fmt: skip
    usual = _shapes(run, facts)
    for key, domain in found.items():
        section, _, name = key.partition(".")
        fits = name not in FIXED if section == "train" else section == "sample" or all(
            _shapes(space.apply(run, {key: value}), facts) == usual for value in domain.extremes
        )  # fmt: skip
        if not fits:
            why = f"a population hands weights on, which do not fit another {key}"
            raise UsageError(why, "--set tune.scheduler=asha")


def _shapes(recipe: Recipe, facts: DataSpec) -> dict[str, torch.Size]:
    """The shape of everything that a checkpoint of a recipe holds."""
    return {name: tensor.shape for name, tensor in build.family_of(recipe, facts).state_dict().items()}
