"""The clocks of the training loop: the used share of the budget, and the seconds of the parts of a step."""

import time

import torch
import torch.distributed as dist

from genflow.recipe.schema import Train
from genflow.training import checkpoint


class StepTimer:
    """Wall-clock seconds of the parts of a step, on this worker.

    GPU kernels run asynchronously, so a part is how long the process waited in it; the sum is still the step's time.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._steps = 0
        self._at = time.perf_counter()

    def mark(self, part: str) -> None:
        """Count the time since the last mark as this part; with an empty name, discard it."""
        now = time.perf_counter()
        if part:
            self._seconds[part] = self._seconds.get(part, 0.0) + now - self._at
        self._steps += part == "average"
        self._at = now

    def pop_means(self) -> dict[str, float]:
        """Mean seconds of each part over the steps since the last call; then reset."""
        means = {part: seconds / max(1, self._steps) for part, seconds in self._seconds.items()}
        self._seconds, self._steps = {}, 0
        return means


class BudgetClock:
    """The used share of the budget, over all attempts of a run."""

    def __init__(self, train: Train) -> None:
        self._train = train
        self._wall_before = self._cpu_before = 0.0
        self._wall = self._cpu = 0.0
        self._synchronized: float | None = None

    @property
    def is_timed(self) -> bool:
        """Whether the recipe limits the time, so that the number of steps is known only at the end."""
        return self._train.minutes is not None or self._train.cpu_minutes is not None

    def resume(self, state: checkpoint.State) -> None:
        """Continue with the times of a checkpoint."""
        self._wall_before, self._cpu_before = state["seconds"], state["cpu_seconds"]

    def start(self) -> None:
        """Begin to count."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """Wall-clock seconds of training."""
        return self._wall_before + time.perf_counter() - self._wall

    def cpu_seconds(self) -> float:
        """CPU seconds of training of this process."""
        return self._cpu_before + time.process_time() - self._cpu

    def position(self, step: int) -> float:
        """The used share of the budget: of steps or, if they are limited, of minutes; the larger."""
        share = step / self._train.steps
        return max(share, self._synchronized if self._synchronized is not None else self._used())

    def _used(self) -> float:
        """The larger used share of minutes and CPU minutes, where the recipe limits them; else 0."""
        limits = ((self.seconds, self._train.minutes), (self.cpu_seconds, self._train.cpu_minutes))
        return max((now() / (60 * limit) for now, limit in limits if limit is not None), default=0.0)

    def synchronize(self, world: int, device: torch.device) -> None:
        """Broadcast rank 0's used time: all workers stop at the same step and use the same learning rate."""
        if world > 1 and self.is_timed:
            used = torch.tensor([self._used()], device=device)
            dist.broadcast(used, 0)
            self._synchronized = float(used)
