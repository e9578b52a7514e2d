"""What a training run says before it begins: the size of its net, and the passes over the data of its budget."""

import math
import shlex
from pathlib import Path

from genflow.recipe.schema import Recipe
from genflow.specs import DataSpec

FEW = 5  # passes over the data, below which a loss that still falls counts as barely trained
ENOUGH = 10  # passes for which a budget is proposed if there are few
SMALLEST = 16  # pixels, the smallest side that is proposed


def size(recipe: Recipe, facts: DataSpec, weights: int, rows: int) -> str:
    """One line about the net and the data: `net      unet, 1,234,567 weights · 1,618 training rows of 1×8×8`."""
    form = "points" if facts.is_points else f"of {'×'.join(str(n) for n in facts.shape)}"
    what = "latents" if facts.is_latents else "rows"
    return f"net      {recipe.net['kind']}, {weights:,} weights · {rows:,} training {what} {form}"


def passes(recipe: Recipe, facts: DataSpec, steps: int, rows: int) -> list[str]:
    """Lines about the expected passes over the data, and what would give more of them if they are few.

    Args:
        recipe: of the run.
        facts: of what the family learns.
        steps: that the budget is expected to give.
        rows: the number of training rows.
    """
    train = recipe.train
    expected = steps * train.batch / rows
    timed = train.minutes or train.cpu_minutes
    if timed and steps < train.steps:
        unit = "CPU minutes" if train.minutes is None else "minutes"
        begin = f"{timed:g} {unit}: about {steps:,} steps of {train.batch},"
    else:
        begin = f"{steps:,} steps of {train.batch}:"
    lines = [f"budget   {begin} {in_words(expected)} over the data"]
    if expected >= FEW:
        return lines
    return [*lines, *(f"         {line}" for line in _more(recipe, facts, steps, expected))]


def _more(recipe: Recipe, facts: DataSpec, steps: int, expected: float) -> list[str]:
    """What would give more passes over the data; nets for pictures take time in proportion to the pixels."""
    found = [f"few; {ENOUGH} passes take about {longer(recipe, ENOUGH / expected, steps)}"]
    if not facts.bounded:
        return found
    from genflow.families.autoencoder import LARGE_FACTOR, SMALL_FACTOR, SMALL_SIDE  # imports torch

    side = min(facts.shape[1:])
    if side // 2 >= SMALLEST:
        found.append(f"pictures of {side // 2} px (genflow prepare --size {side // 2}): about 4 times as many")
    factor = SMALL_FACTOR if side <= SMALL_SIDE else LARGE_FACTOR
    if facts.is_large and recipe.family["kind"] != "autoencoder":
        often = f"about {factor**2} times as many, after the training of an autoencoder"
        found.append(f"latents of {side // factor} px (--latents auto): {often}")
    return found


def longer(recipe: Recipe, factor: float, steps: int) -> str:
    """The flag for a budget that is `factor` times as large: `--minutes 4`."""
    train = recipe.train
    for value, flag in ((train.minutes, "--minutes"), (train.cpu_minutes, "--cpu-minutes")):
        if value:
            return f"{flag} {rounded_up(value * factor):g}"
    return f"--steps {rounded_up(steps * factor):.0f}"


def continuation(recipe: Recipe, run: str, folder: Path, steps: int, *, starts: bool) -> str:
    """The command that trains longer: from the run's averages for the same budget, or a new run of twice the budget.

    Args:
        recipe: of the run.
        run: its id.
        folder: of the run.
        steps: that it made.
        starts: whether a run of this family can start from another one of it.
    """
    config = folder / "recipe.yaml"
    if config.is_relative_to(Path.cwd()):
        config = config.relative_to(Path.cwd())
    budget = longer(recipe, 1.0 if starts else 2.0, steps).split()
    return shlex.join(["genflow", "train", "-c", str(config), *(["--init", run] if starts else []), *budget])


def rounded_up(value: float) -> float:
    """A number with two significant digits that is not smaller."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(round(value / unit, 6)) * unit


def in_words(count: float) -> str:
    """Passes over the data as text: `0.8 passes`, `12 passes`, `1 pass`."""
    number = f"{count:,.0f}" if count >= 10 else f"{count:.1f}".removesuffix(".0")
    if number == "0":
        number = f"{count:.2g}"
    return f"{number} {'pass' if number == '1' else 'passes'}"
