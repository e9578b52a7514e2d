"""The one interface: a family is one way of turning noise into data.

The loop that trains it, the engine that samples it and the judge that measures it know no family by name.
One clock for all: t = 0 is data, t = 1 is noise.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from genflow.batch import Batch
from genflow.facts import Facts, Ports
from genflow.maths.seeds import Rng


@dataclass(frozen=True)
class Samples:
    """What sampling gives: x (B, C, H, W), and how many times the network was evaluated on each sample."""

    x: Tensor
    nfe: int


Kind = Literal["exact-dequantized", "lower-bound", "ode-estimate"]


@dataclass(frozen=True)
class LogLikelihood:
    """log p of each sample, in nats, of the *discrete* grey levels (of the density, for points).

    Args:
        nats: (B,) log-probability.
        kind: what the number is: exact for dequantized data, a lower bound, or the estimate of an ODE solver.
        stderr: (B,) standard error of each entry from the method's own randomness; zeros if it has none.
        nfe: network evaluations it cost each sample.
    """

    nats: Tensor
    kind: Kind
    stderr: Tensor
    nfe: int


class Family(nn.Module, ABC):
    """One way of turning noise into data. Knows no optimizer, no Ray and no MLflow.

    The keyword-only arguments of a subclass's `__init__` are the recipe's `family:` section; those of its
    `sample` are the recipe's `sample:` section and the fields of a request. There is no second schema.

    A subclass's `__init__` is `(self, nets, facts, *, ...)` and calls `super().__init__(facts)`; `nets` maps
    the names in `ports(facts, **options)` to modules of `genflow.nets`, called as `net(x, t=None, label=None)`.

    Attributes:
        players: submodules that move, in their order within a step; a GAN has two.
        title: the family's name as people write it.
        facts: what is known of the data.
        noise_shape: the shape of what sampling starts from, without the batch.
    """

    players: ClassVar[tuple[str, ...]] = ("net",)
    title: ClassVar[str] = ""
    default_net: ClassVar[str] = "unet"

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self.noise_shape: tuple[int, ...] = facts.shape

    @classmethod
    def ports(cls, facts: Facts, **options: object) -> dict[str, Ports]:
        """The nets this family needs, by name. Default: one that sees x and t and answers in x's shape."""
        return {"net": Ports(facts.shape, facts.shape, time=True)}

    @abstractmethod
    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        """The player's loss, a scalar, and numbers worth logging."""

    @abstractmethod
    def sample(self, noise: Tensor, label: Tensor, rng: Rng) -> Samples:
        """Turn noise (B, *noise_shape) into data (B, C, H, W). Subclasses add keyword-only options."""

    def log_likelihood(self, x: Tensor, label: Tensor, rng: Rng) -> LogLikelihood | None:
        """log p(x | label) of pictures at bin centres; None for a family that has no likelihood."""
        return None

    def after_step(self, step: int) -> None:
        """Called after every step, with the number of steps made."""

    def prepare(self, position: float) -> None:
        """Called before every step with the share of the budget that is used, 0 to 1 (KL warm-up, annealing)."""
