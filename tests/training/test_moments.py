"""The moments of a training: held-out losses and pictures at shares of the budget, which change no bit of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import FACTS, batch, family, recipe
from torch import Tensor

from genflow import build, families
from genflow.batch import Batch
from genflow.families.base import Family
from genflow.families.flow_matching import FlowMatching
from genflow.maths.rng import BatchRng
from genflow.recipe.schema import Train
from genflow.training import loop, verdict
from genflow.training.checkpoint import read_state
from genflow.training.checkpoint_folders import Checkpoints
from genflow.training.moments import FORWARD, GROUPS, MOMENTS, Forecast
from genflow.training.session import Session

Drawn = list[tuple[int, dict[str, Tensor] | None]]
EVERY = {"patience": 99}  # needs all moments, also in a training of a few steps, and never ends one
QUICK = {"steps": 18, "batch": 8, "checkpoint_every": 6, "log_every": 1, "warmup": 2, "precision": "fp32"}


class KilledError(Exception):
    """Raised by a test's batches where a process would be killed."""


class Seen:
    """A session that keeps what it is shown.

    Args:
        folder: of the checkpoints.
        facts: of the held-out rows; None: there are none.
    """

    def __init__(self, folder: Path, facts: Any = None, **options: Any) -> None:
        self.drawn: Drawn = []
        self.losses: list[tuple[int, float]] = []
        self.expected: list[int] = []
        self.ticks: list[int] = []
        checkpoints = Checkpoints(folder)
        held_out: Callable[[int], Iterator[Batch]] | None = None
        if facts is not None:
            held_out = lambda rows: (batch(facts, 1000 + group, rows // GROUPS) for group in range(GROUPS))  # noqa: E731
        self.session = Session(
            load=checkpoints.newest, save=checkpoints.save, held_out=held_out, draw=self._draw,
            validated=lambda step, loss: self.losses.append((step, loss)), expect=self.expected.append,
            tick=lambda step, position: self.ticks.append(step), **options,
        )  # fmt: skip

    def _draw(self, step: int, average: dict[str, Tensor] | None, work: float) -> None:
        torch.rand(3)  # what draws a picture may use the global generator
        self.drawn.append((step, average and {name: each.clone() for name, each in average.items()}))


def start(kind: str = "flow_matching", facts: Any = FACTS["points"], **train: object) -> tuple[Family, Train]:
    chosen = recipe(kind, facts, train={**QUICK, **train})
    torch.manual_seed(3)
    model = build.family_of(chosen, facts)
    if families.family_class(kind).teacher == "required":
        model.init_from(family("flow_matching", facts))
    return model, chosen.train


def batches(facts: Any, *, killed_at: int = -1) -> Callable[[int], Batch]:
    def of(step: int) -> Batch:
        if step == killed_at:
            raise KilledError
        return batch(facts, step)

    return of


def tensors(folder: Path) -> dict[str, bytes]:
    newest = Checkpoints(folder).newest()
    assert newest is not None
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


@pytest.mark.parametrize("kind", families.kinds())
def test_moments_change_no_bit_of_a_training(kind: str, tmp_path: Path) -> None:
    """Weights, average and optimizer state are those of a training without held-out rows and pictures."""
    facts = FACTS["grey"]
    options: dict[str, Any] = {"steps": 6, **EVERY}
    model, settings = start(kind, facts, **options)
    alone = Checkpoints(tmp_path / "alone")
    loop.fit(model, batches(facts), Session(load=alone.newest, save=alone.save), settings)
    shown = Seen(tmp_path / "shown", facts if model.validates else None)
    again, _ = start(kind, facts, **options)
    loop.fit(again, batches(facts), shown.session, settings)
    assert tensors(tmp_path / "shown") == tensors(tmp_path / "alone")
    assert [step for step, _ in shown.drawn] == [0, 1, 2, 3, 4, 5]  # the caller draws the end
    assert [step for step, _ in shown.losses] == ([1, 2, 3, 4, 5, 6] if model.validates else [])
    assert all(abs(loss) < 1e6 for _, loss in shown.losses)


def test_the_moments_are_spread_over_the_budget(tmp_path: Path) -> None:
    """The initial weights first, then eight ninths; the averages drawn are those of the step."""
    seen = Seen(tmp_path, FACTS["points"])
    model, settings = start(steps=27, **EVERY)
    loop.fit(model, batches(FACTS["points"]), seen.session, settings)
    assert [step for step, _ in seen.drawn] == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert seen.drawn[0][1] is None
    assert [step for step, _ in seen.losses] == [3, 6, 9, 12, 15, 18, 21, 24, 27]
    assert seen.expected == [27]
    assert seen.ticks == list(range(1, 28))


def test_a_killed_training_has_the_same_moments(tmp_path: Path) -> None:
    """Pictures and losses after the last checkpoint are repeated, equal to the bit; the earlier ones are in it."""
    facts = FACTS["points"]
    whole, killed, resumed = (Seen(tmp_path / name, facts) for name in ("whole", "run", "run"))
    model, settings = start(**EVERY)
    loop.fit(model, batches(facts), whole.session, settings)
    model, _ = start()
    with pytest.raises(KilledError):
        loop.fit(model, batches(facts, killed_at=10), killed.session, settings)
    model, _ = start()
    loop.fit(model, batches(facts), resumed.session, settings)
    assert resumed.losses[0][0] == 8
    for found, expected in ((killed.losses, whole.losses[:5]), (resumed.losses, whole.losses[3:])):
        assert found == expected
    for (step, average), (other, same) in zip(resumed.drawn, whole.drawn[4:], strict=True):
        assert step == other
        assert average is not None
        assert same is not None
        assert all(torch.equal(average[name], same[name]) for name in same)
    states = [read_state(Checkpoints(tmp_path / name).newest()) for name in ("whole", "run")]  # type: ignore[arg-type]
    assert states[0]["moments"] == states[1]["moments"]


def test_a_budget_of_time_has_a_forecast_and_moments(tmp_path: Path) -> None:
    """After five steps the number of steps is known; the moments follow the clock, and are no more than eight."""
    seen = Seen(tmp_path, FACTS["points"])
    model, settings = start(steps=10**9, cpu_minutes=0.01)
    fitted = loop.fit(model, batches(FACTS["points"]), seen.session, settings)
    assert len(seen.expected) == 1
    assert fitted.step / 20 < seen.expected[0] < 20 * fitted.step
    assert seen.drawn[0][0] == 0
    assert 2 <= len(seen.drawn) <= MOMENTS + 1
    assert seen.losses[-1][0] == fitted.step


def test_early_stopping_is_a_function_of_the_history(tmp_path: Path) -> None:
    """A loss that never falls ends the training at the same step, also if it is killed before."""
    facts = FACTS["points"]

    def run(name: str, killed_at: int = -1, patience: int = 2) -> Any:
        model, settings = start(lr=1e-30, warmup=0, steps=27, patience=patience)
        return loop.fit(model, batches(facts, killed_at=killed_at), Seen(tmp_path / name, facts).session, settings)

    fitted = run("whole")
    assert (fitted.step, fitted.done) == (9, True)
    with pytest.raises(KilledError):
        run("run", killed_at=8)
    assert run("run").step == 9
    assert run("run", killed_at=9).done  # the run is found finished
    assert run("patient", patience=0).step == 27


def test_a_short_training_has_the_moments_that_a_trend_needs(tmp_path: Path) -> None:
    """The first ninth, seven ninths and the end: eight would cost more than their share."""
    seen = Seen(tmp_path, FACTS["points"])
    model, settings = start(steps=27)
    loop.fit(model, batches(FACTS["points"]), seen.session, settings)
    assert [step for step, _ in seen.drawn] == [0, 3, 21]
    assert [step for step, _ in seen.losses] == [3, 21, 27]
    state = read_state(Checkpoints(tmp_path).newest())  # type: ignore[arg-type]
    assert verdict.of_history((state["moments"] or {})["history"]) is not None


def test_the_work_of_the_moments_is_a_share_of_that_of_training() -> None:
    """Rows and evaluations of all moments are 2 % of a training's, calls of a few rows counted as `CALL` rows."""
    numbers = []
    for steps, batch_size in ((250, 32), (500, 32), (3000, 32), (100_000, 256)):
        found = Forecast.of(steps, batch_size)
        assert found.cost * FORWARD / found.images <= (0.0201 if steps > 250 else 0.025)
        numbers.append(len(found.moments))
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (2, MOMENTS)


@pytest.mark.parametrize("kind", [kind for kind in families.kinds() if families.family_class(kind).validates])
def test_one_call_gives_the_loss_of_every_row(kind: str) -> None:
    """Their mean is the loss on held-out rows, and a row's loss is the one that it has in a group of its own."""
    facts = FACTS["grey"]
    model, _ = start(kind, facts)
    model.eval().prepare(1.0)
    whole = batch(facts, 7, 6)
    with torch.no_grad():
        rows = model.row_losses(whole, BatchRng(0, "validation", 0))
        assert rows is not None
        assert rows.shape == (6,)
        mean = model.validation_loss(whole, BatchRng(0, "validation", 0))
        part = Batch(whole.x[4:], whole.label[4:])
        own = model.validation_loss(part, BatchRng(0, "validation", 0, start=4))
    assert float(rows.mean()) == pytest.approx(float(mean), rel=1e-5)
    assert float(rows[4:].mean()) == pytest.approx(float(own), rel=1e-4)


def test_groups_are_measured_in_few_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many groups as a batch of training has rows for, with the noise of the rows, and a loss for each group."""
    sizes: list[int] = []
    row_losses = FlowMatching.row_losses

    def counted(self: FlowMatching, batch: Batch, rng: Any) -> Tensor:
        sizes.append(len(batch))
        return row_losses(self, batch, rng)

    monkeypatch.setattr(FlowMatching, "row_losses", counted)
    model, settings = start(steps=9, batch=8)
    loop.fit(model, batches(FACTS["points"]), Seen(tmp_path, FACTS["points"]).session, settings)
    assert sizes == [8] * 3
    state = read_state(Checkpoints(tmp_path).newest())  # type: ignore[arg-type]
    assert [len(moment["losses"]) for moment in (state["moments"] or {})["history"]] == [GROUPS] * 3
