"""How far an evaluation is, and how long it still takes: a sample with 32 steps takes longer than one with 2."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Emit = Callable[..., None]
BOUND, ESTIMATE = 9, 120  # network evaluations of a likelihood, with its gradients: of one pass, and along an ODE
UNSURE_S = 2.0  # before so many seconds an estimate is too uncertain to be shown


@dataclass
class Progress:
    """Emits a progress event for each finished batch of an evaluation.

    Args:
        emit: receives the events.
        run: the id of the run.
        total: number of records that are drawn or measured.
        work: for each kind of work its records, and the network evaluations of one of them.
        clock: seconds.
    """

    emit: Emit
    run: str
    total: int
    work: Mapping[str, tuple[int, float]]
    clock: Callable[[], float] = time.monotonic
    _done: int = 0
    _spent: float = 0.0
    _began: float = field(default=0.0)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def __call__(self, count: int, what: str) -> None:
        """Count finished records.

        Args:
            count: number of records.
            what: what was done with them, a key of `work` or another text.
        """
        self._done = min(self._done + count, self.total)
        self._spent += count * self.work.get(what, (0, 1.0))[1]
        whole = max(sum(records * price for records, price in self.work.values()), 1e-9)
        share = 1.0 if self._done >= self.total else min(self._spent / whole, 0.99)
        passed = self.clock() - self._began
        known = {} if share <= 0 or passed < UNSURE_S else {"eta": round(passed / share - passed, 1)}
        self.emit("progress", stage="evaluate", run=self.run, step=self._done, steps=self.total, what=what,
                  position=share, **known)  # fmt: skip
