"""What a training shows of itself at moments spread over its budget: samples, and the loss on held-out rows.

The moments are the first steps at which k/9 of the budget is used, k = 1 to 8, and the end; samples are also drawn of
the initial weights. Both use the averaged weights, fixed seeds and fixed noise, and draw nothing from training's random
numbers. A checkpoint holds the history, so a run that is killed has the same moments and stops early at the same step.

What it costs follows from the number of images that the budget is expected to give: about 2 % of their work. A small
call of a net costs as much as one of `CALL` rows, so a short training has fewer moments. Which ones depends on no clock
if the budget is one of steps: a run that is killed has the same ones.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from genflow.batch import Batch
from genflow.families.base import Family
from genflow.maths.rng import BatchRng
from genflow.recipe.schema import Train
from genflow.training.clock import BudgetClock
from genflow.training.ema import Ema, with_average
from genflow.training.fsdp import full_tensor
from genflow.training.history import Moment, mean
from genflow.training.micro_batches import joined, together
from genflow.training.session import Session
from genflow.training.workers import Workers

MOMENTS = 8  # between the start and the end
GROUPS = 8  # of held-out rows, whose losses give the uncertainty of a difference
LEAST_ROWS, MOST_ROWS = 8, 256  # held-out rows
MEASURED = 5  # steps after which the speed is known; the first one is slower than the others
FORWARD = 0.6  # work of a row without gradients, as a share of that of a row in training; measured, in small batches
MOST_TIME = 0.03  # share of a budget of time: after so much a moment is left out, as in a training of seconds
ALL = tuple(range(1, MOMENTS + 1))
SPREADS = (ALL, (1, 3, 5, 7), (1, 4, 7), (1, 7))  # the fewest that a trend needs: the first, and that at 7/9
CALL = 8  # rows: a call with fewer costs as much; measured with small nets on a CPU
EVALUATIONS = 8  # calls for the fewest samples of a moment
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
        moments: each k of a moment at k/9 of the budget.
    """

    steps: int
    images: int
    rows: int
    work: float
    moments: Sequence[int] = ALL  # a checkpoint of a version without this field had all

    @classmethod
    def of(cls, steps: int, batch: int, *, every: bool = False) -> "Forecast":
        """The forecast for a number of steps.

        Args:
            steps: of the whole budget.
            batch: rows of a step.
            every: whether all moments are needed, even if they cost more.
        """
        evaluations = steps * batch / FORWARD  # of one row, which cost as much as training
        for moments in SPREADS:
            each = evaluations / (len(moments) + 1)
            rows = min(MOST_ROWS, GROUPS * batch, max(LEAST_ROWS, int(ROWS_SHARE * each)))
            rows -= rows % batch if rows > batch else 0  # no call for a few rows
            found = cls(steps, steps * batch, rows, PICTURES_SHARE * each, moments)
            if every or found.cost <= (ROWS_SHARE + PICTURES_SHARE) * evaluations:
                break
        return found

    @property
    def cost(self) -> float:
        """Evaluations of one row that the moments cost, those of the initial weights and of the end included."""
        return (len(self.moments) + 1) * (max(CALL, self.rows) + max(CALL * EVALUATIONS, self.work))


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
            is_due = False
            while position >= self._next / (MOMENTS + 1):
                is_due |= self._next in self.forecast.moments
                self._next += 1
            if is_due and self._spent <= MOST_TIME * max(0.5, position):
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
        every = self._train.patience > 0  # of which the recipe counts ninths of the budget
        self.forecast = Forecast.of(steps, self._train.batch, every=every)
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
            losses: list[Tensor] = []
            rows = 0
            most = max(1, self._train.batch // self._train.accumulate)
            for groups in together(session.held_out(self.forecast.rows), most):  # type: ignore[misc, union-attr]
                with torch.autocast(device.type, torch.bfloat16, enabled=self._amp):
                    losses += self._losses(groups, rows, device)
                rows += sum(map(len, groups))
            found: list[float] = torch.stack(losses).tolist()
            return found

        with torch.no_grad(), self._eager():
            own = self._workers.together(lambda: with_average(family, self._ema.state(), measure))
        losses = self._workers.collect(own)[0]
        self.history.append({"step": step, "position": position, "losses": losses})
        if session.rank == 0:
            session.validated(step, mean(losses))

    def _losses(self, groups: list[Batch], first: int, device: torch.device) -> list[Tensor]:
        """The loss of each group, by one call if the family gives those of rows.

        Args:
            groups: of held-out rows.
            first: number of the first row, by which its draws do not depend on the rows of a call.
            device: of the rows.
        """
        rng = BatchRng(self._train.seed, "validation", 0, start=first, device=device)
        if (rows := self._family.row_losses(joined(groups), rng)) is not None:
            return [own.mean() for own in rows.float().split([len(group) for group in groups])]
        before = itertools.accumulate((len(group) for group in groups), initial=0)
        return [
            self._family.validation_loss(group, rng.part(at)).float()
            for group, at in zip(groups, before, strict=False)
        ]

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
