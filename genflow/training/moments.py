"""What a training shows of itself at moments spread over its budget: samples, and the loss on held-out rows.

The moments are the first steps at which k/9 of the budget is used, k = 1 to 8, and the end; samples are also drawn of
the initial weights. Both use the averaged weights, fixed seeds and fixed noise, and draw nothing from training's random
numbers. A checkpoint holds the history, so a run that is killed has the same moments and stops early at the same step.

What it costs follows from the number of images that the budget is expected to give: about 2 % of their work.
"""

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from genflow.families.base import Family
from genflow.maths.rng import BatchRng
from genflow.recipe.schema import Train
from genflow.training.clock import BudgetClock
from genflow.training.ema import Ema, with_average
from genflow.training.fsdp import full_tensor
from genflow.training.history import Moment, mean
from genflow.training.session import Session
from genflow.training.workers import Workers

MOMENTS = 8  # between the start and the end
GROUPS = 8  # of held-out rows, whose losses give the uncertainty of a difference
LEAST_ROWS, MOST_ROWS = 8, 256  # held-out rows
MEASURED = 5  # steps after which the speed is known; the first one is slower than the others
FORWARD = 0.6  # work of a row without gradients, as a share of that of a row in training; measured, in small batches
MOST_TIME = 0.05  # share of a budget of time: after so much a moment is left out, as in a training of seconds
ROWS_SHARE, PICTURES_SHARE = 0.008, 0.012  # of the work of training: what all moments together may cost


class MomentsState(TypedDict):
    """What a checkpoint holds of the moments.

    Args:
        forecast: the fields of `Forecast`; None: not yet measured.
        history: the moments so far.
        next: k of the next moment at k/9 of the budget.
    """

    forecast: dict[str, Any] | None
    history: list[Moment]
    next: int


@dataclass(frozen=True)
class Forecast:
    """What the budget is expected to give, and what a moment may cost.

    Args:
        steps: training steps of the whole budget.
        images: rows that training will see.
        rows: held-out rows whose loss is measured.
        work: network evaluations of one row that the samples of a moment may take.
    """

    steps: int
    images: int
    rows: int
    work: float

    @classmethod
    def of(cls, steps: int, batch: int) -> "Forecast":
        """The forecast for a number of steps."""
        each = steps * batch / FORWARD / (MOMENTS + 1)  # evaluations of one row that a moment stands for
        rows = min(MOST_ROWS, GROUPS * batch, max(LEAST_ROWS, int(ROWS_SHARE * each)))
        return cls(steps, steps * batch, rows, PICTURES_SHARE * each)


class Moments:
    """The moments of one training.

    Args:
        family: in training.
        ema: its averaged weights.
        session: receives the forecast, the losses and the averaged weights.
        workers: all of them compute the same losses, and use those of worker 0.
        train: the recipe's section.
        clock: of the budget.
        amp: whether to autocast to bfloat16.
    """

    def __init__(
        self, family: Family, ema: Ema, session: Session, workers: Workers, train: Train, clock: BudgetClock, *,
        amp: bool,
    ) -> None:  # fmt: skip
        self._family, self._ema, self._session, self._workers = family, ema, session, workers
        self._train, self._clock, self._amp = train, clock, amp
        self._next = 1
        self._spent = 0.0  # share of a budget of time; 0 in a budget of steps, so that its moments depend on no clock
        self._first: tuple[int, float] | None = None  # step and position after the first step of this attempt
        self.forecast: Forecast | None = None
        self.history: list[Moment] = []

    def state(self) -> MomentsState:
        """For a checkpoint."""
        forecast = dataclasses.asdict(self.forecast) if self.forecast else None
        return {"forecast": forecast, "history": list(self.history), "next": self._next}

    def load(self, state: MomentsState | None) -> None:
        """Continue with the state of a checkpoint; None: of a version that has none."""
        state = state or {"forecast": None, "history": [], "next": 1}
        self.forecast = Forecast(**state["forecast"]) if state["forecast"] else None
        self.history, self._next = list(state["history"]), state["next"]

    def begin(self, step: int) -> None:
        """Called before the first step of an attempt, after the clock has started."""
        if self.forecast:
            self._announce()
        elif not self._clock.is_timed:
            self._expect(self._train.steps)

    def after_step(self, step: int) -> None:
        """Called after every step: at most moments, this compares two numbers."""
        position = self._clock.position(step)
        if self.forecast is None:
            self._measure(step, position)
        if self.forecast and self._next / (MOMENTS + 1) <= position < 1:
            while position >= self._next / (MOMENTS + 1):
                self._next += 1
            if self._spent <= MOST_TIME * max(0.5, position):
                self._validate(step, position)
                self._draw(step)
                self._spent += self._clock.position(step) - position

    def end(self, step: int) -> None:
        """Called once when the budget is used up, or when training stops early."""
        if self.forecast is None:
            self._expect(max(1, step))
        if not self.history or self.history[-1]["step"] < step:
            self._validate(step, 1.0)

    @property
    def is_exhausted(self) -> bool:
        """Whether training stops early: the loss of the last `train.patience` moments is not below an earlier one."""
        patience, losses = self._train.patience, [mean(moment["losses"]) for moment in self.history]
        return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])

    def _measure(self, step: int, position: float) -> None:
        """After some steps, compute from their share of the budget how many it gives."""
        if self._first is None:
            self._first = step, position
        elif step - self._first[0] >= MEASURED - 1:
            of_a_step = max(1e-12, (position - self._first[1]) / (step - self._first[0]))
            self._expect(step + max(0, round((1 - position) / of_a_step)))

    def _expect(self, steps: int) -> None:
        steps = self._workers.collect(min(steps, self._train.steps))[0]
        self.forecast = Forecast.of(steps, self._train.batch)
        self._announce()
        before = self._clock.position(0)
        self._draw(0)
        self._spent += self._clock.position(0) - before

    def _announce(self) -> None:
        if self._session.rank == 0 and self.forecast:
            self._session.expect(self.forecast.steps)

    def _validate(self, step: int, position: float) -> None:
        """Measure the loss on held-out rows."""
        session, family = self._session, self._family
        if session.held_out is None or self.forecast is None:
            return
        device = torch.device(session.device)

        def measure() -> list[float]:
            family.prepare(1.0)  # the loss of the end, so that those of all moments are comparable
            losses = []
            for number, batch in enumerate(session.held_out(self.forecast.rows)):  # type: ignore[misc, union-attr]
                rng = BatchRng(self._train.seed, "validation", number, device=device)
                with torch.autocast(device.type, torch.bfloat16, enabled=self._amp):
                    losses.append(family.validation_loss(batch, rng).float())
            found: list[float] = torch.stack(losses).tolist()
            return found

        with torch.no_grad(), self._eager():
            own = self._workers.together(lambda: with_average(family, self._ema.state(), measure))
        losses = self._workers.collect(own)[0]
        self.history.append({"step": step, "position": position, "losses": losses})
        if session.rank == 0:
            session.validated(step, mean(losses))

    def _draw(self, step: int) -> None:
        """Show samples of the averaged weights; at step 0, of the initial ones, which follow from the seed."""
        session, forecast = self._session, self.forecast
        if session.draw is None or forecast is None:
            return
        average: dict[str, Tensor] | None = None
        if step:
            average = self._whole_average()

        def draw() -> None:
            if session.rank == 0 and session.draw:
                session.draw(step, average, forecast.work)

        with self._eager():
            self._workers.together(draw)

    def _whole_average(self) -> dict[str, Tensor]:
        """The average for samples. If it is sharded, its tensors are gathered one at a time, on worker 0's CPU."""
        average: dict[str, Tensor] = {}
        for name, tensor in self._ema.state().items():
            full = full_tensor(tensor)
            if full is tensor:
                average[name] = tensor
            elif self._session.rank == 0:
                average[name] = full.cpu()
        return average

    def _eager(self) -> contextlib.AbstractContextManager[Any]:
        """Without `torch.compile`, which would compile the nets again for other batch sizes."""
        return torch.compiler.set_stance("force_eager") if self._train.compile else contextlib.nullcontext()
