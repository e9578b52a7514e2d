"""What is said about a training before and after it."""

from pathlib import Path
from typing import Any

import pytest
from support.small import FACTS, recipe

from genflow.specs import DataSpec
from genflow.training import forecast, verdict
from genflow.training.history import Moment

levels = list(enumerate((0.0, 1.0, 5.0, 9.0)))
PICTURES = DataSpec((3, 64, 64), levels=256, class_names=("a", "b"))


def history(losses: list[float], noise: float = 0.0) -> list[Moment]:
    """Moments at ninths of the budget, with four groups of rows whose levels differ by much more than their falls."""
    found: list[Moment] = []
    for k, loss in enumerate(losses, 1):
        groups = [loss + level + noise * (g - 1.5) * (k == 9) for g, level in levels]
        found.append({"step": 10 * k, "position": k / 9, "losses": groups})
    return found


@pytest.mark.parametrize(
    ("losses", "noise", "falling", "words"),
    [
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], 0.0, True, "still falling"),
        ([9, 5, 3, 2, 1.5, 1.2, 1.1, 1.05, 1.04], 0.0, False, "falling, by less than 5% of its whole fall"),
        ([9, 5, 3, 2, 1.5, 1.2, 1.1, 1.05, 1.1], 0.0, False, "flat"),
        ([9, 5, 3, 2, 1.5, 1.2, 1.1, 1.05, 1.4], 0.0, False, "rising"),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], 9.0, None, "too uncertain to tell whether it still falls"),
    ],
)
def test_a_falling_loss_is_told_from_a_flat_one_and_from_noise(
    losses: list[float], noise: float, falling: bool | None, words: str
) -> None:
    """The difference is paired by groups of rows, so their levels do not hide it."""
    found = verdict.of_history(history(losses, noise))
    assert found is not None
    assert found["falling"] is falling
    assert verdict.in_a_line(found).endswith(f" in the last quarter: {words}")


def test_training_losses_stand_in_for_held_out_ones() -> None:
    """The slope of the last quarter, if it has enough points."""
    falling = [(step, 10 - step / 100 + 0.05 * (-1) ** step) for step in range(0, 900, 10)]
    flat = [(step, 1 + 9 * 0.98**step + 0.05 * (-1) ** (step // 10)) for step in range(0, 900, 10)]
    for points, expected in ((falling, True), (flat, False)):
        found = verdict.of_losses(points)
        assert found is not None
        assert (found["loss"], found["falling"]) == ("training", expected)
    assert verdict.of_losses(falling[:20]) is None
    assert verdict.of_history(history([3, 2])) is None


def meta(
    passes: float | None, falling: bool | None = True, cpu: float = 60.0, before: float = 1.05, **more: Any
) -> dict[str, Any]:
    trend = {"loss": "held-out", "before": before, "after": 1.0, "stderr": 0.1, "falling": falling}
    return {"passes": passes, "trend": trend, "cpu_seconds": cpu, **more}


def test_the_first_sentences_of_a_comparison() -> None:
    """Budgets that differ, and models that are barely trained; nothing about runs of equal budgets that are trained."""
    assert verdict.cautions({"a": meta(40), "b": meta(20, cpu=70)}) == []
    assert verdict.cautions({"a": meta(0.8, falling=False), "b": meta(None)}) == []
    assert verdict.cautions({"a": meta(0.8, passes_before=6.0)}) == []  # it continues another run
    budgets, barely = verdict.cautions({"a": meta(0.8, cpu=180), "b": meta(30), "c": meta(1.2, None)})
    assert budgets == "The budgets differ by a factor of 3.0: a trained for 3.0 min of CPU time, and b for 1.0 min."
    assert barely.startswith("Barely trained: a (0.8 passes), c (1.2 passes); fewer than 5 passes over the data")
    (every,) = verdict.cautions({"a": meta(1), "b": meta(2)})
    assert every.startswith("All models are barely trained: a (1 pass), b (2 passes)")
    (steep,) = verdict.cautions({"a": meta(6, before=1.25), "b": meta(40)})  # of few rows, a few steps are many passes
    assert steep == "Barely trained: a (6 passes, its held-out loss fell by 20% in the last quarter)."
    assert verdict.cautions({"a": meta(6, falling=None, before=1.25)}) == []


def test_few_passes_are_said_with_what_gives_more() -> None:
    """64 pixels: smaller pictures, and latents; the factors are ratios of pixels."""
    chosen = recipe("flow_matching", PICTURES, "unet", train={"steps": 10**9, "minutes": 3, "batch": 32})
    lines = forecast.passes(chosen, PICTURES, 75, 3000)
    assert lines[0] == "budget   3 minutes: about 75 steps of 32, 0.8 passes over the data"
    assert lines[1].strip() == "few; 10 passes take about --minutes 38"
    assert "32 px (genflow prepare --size 32): about 4 times" in lines[2]
    assert "latents of 16 px (--latents auto): about 16 times" in lines[3]
    steps = recipe("flow_matching", FACTS["points"], train={"steps": 100, "batch": 50})
    assert forecast.passes(steps, FACTS["points"], 100, 500) == ["budget   100 steps of 50: 10 passes over the data"]
    assert "--steps 1000" in forecast.passes(steps, FACTS["points"], 100, 5000)[1]


def test_the_command_that_continues_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the budget of the recipe; a run that cannot be continued is trained again with twice the budget."""
    monkeypatch.chdir(tmp_path)
    chosen = recipe("flow_matching", FACTS["points"], train={"cpu_minutes": 3})
    command = forecast.continuation(chosen, "a-1", tmp_path / "runs" / "a-1", 100, starts=True)
    assert command == "genflow train -c runs/a-1/recipe.yaml --init a-1 --cpu-minutes 3"
    command = forecast.continuation(chosen, "a-1", tmp_path / "runs" / "a-1", 100, starts=False)
    assert command == "genflow train -c runs/a-1/recipe.yaml --cpu-minutes 6"
