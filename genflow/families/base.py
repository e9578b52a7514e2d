"""The one interface: a family is one way of turning noise into data.

The loop that trains it, the engine that samples it and the judge that measures it know no family by name.
One clock for all: t = 0 is data, t = 1 is noise.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.maths.rng import Rng
from genflow.specs import DataSpec, NetSpec


@dataclass(frozen=True)
class Samples:
    """What sampling gives: x (B, C, H, W), and how many times the network was evaluated on each sample."""

    x: Tensor
    nfe: int


DIAGNOSE_EVERY = 20  # steps between two looks for trouble; fixed, because a rollback changes the result

Watcher = Callable[[Tensor, Tensor], None]  # told x_t (B, C, H, W) and the guess at x_0

Kind = Literal["exact-dequantized", "lower-bound", "ode-estimate"]


@dataclass(frozen=True)
class LogLikelihood:
    """log p of each sample, in nats, of the *discrete* grey levels (of the density, for points).

    Args:
        nats: (B,) log-probability.
        kind: what the number is: exact for dequantized data, a lower bound, or the estimate of an ODE solver.
        stderr: (B,) standard error of each entry from the method's own randomness; zeros if it has none.
        nfe: network evaluations it cost each sample.
        method: how it was found, in a few words, such as "ELBO", "IWAE, k = 64" or "midpoint, 20 steps, 2 probes".
    """

    nats: Tensor
    kind: Kind
    stderr: Tensor
    nfe: int
    method: str = ""


class Family(nn.Module, ABC):
    """One way of turning noise into data. Knows no optimizer, no Ray and no MLflow.

    The keyword-only arguments of a subclass's `__init__` are the recipe's `family:` section; those of its
    `sample` are the recipe's `sample:` section and the fields of a request. There is no second schema.

    A subclass's `__init__` is `(self, nets, facts, *, ...)` and calls `super().__init__(facts)`; `nets` maps
    the names in `ports(facts, **options)` to modules of `genflow.nets`, called as
    `net(x, t=None, label=None, r=None)`.

    Attributes:
        players: submodules that move, in their order within a step; a GAN has two.
        title: the family's name as people write it.
        objective: what it minimizes, in a few words, for tables.
        steps: how many network evaluations a sample takes, in words: "1", "any", "1 to 4".
        likelihood: the kind of its likelihood; None if it has none.
        learns_pairs: whether its loss uses the noise that came with a sample (`Batch.noise`): reflow.
        teacher: whether it starts from a trained run (the recipe's `init`): it need not, or it must.
        shardable: whether workers may hold shares of its nets (`cluster.strategy=fsdp`): the loss calls a net itself,
            as often on every worker, and takes no second derivatives.
        facts: what is known of the data.
        noise_shape: the shape of what sampling starts from, without the batch.
    """

    players: tuple[str, ...] = ("net",)  # of the class, or of one with certain options
    title: ClassVar[str] = ""
    objective: ClassVar[str] = ""
    steps: ClassVar[str] = "any"
    likelihood: ClassVar[Kind | None] = None
    learns_pairs: ClassVar[bool] = False
    teacher: ClassVar[Literal["optional", "required"]] = "optional"
    shardable: ClassVar[bool] = True
    default_net: ClassVar[str] = "unet"

    def __init__(self, facts: DataSpec) -> None:
        super().__init__()
        self.facts = facts
        self.noise_shape: tuple[int, ...] = facts.shape
        self.weaker: tuple[Family, ...] = ()  # what guidance leads away from; in a tuple: it is no part of this run
        self._watcher: Watcher | None = None

    @contextlib.contextmanager
    def watched(self, watcher: Watcher | None) -> Iterator[None]:
        """While in the block, `watcher` is told of every evaluation; what it raises ends the sampling."""
        self._watcher = watcher
        try:
            yield
        finally:
            self._watcher = None

    def show(self, x: Tensor, guess: Tensor) -> None:
        """Called by a family that samples in steps: x_t (B, C, H, W) at the size of noise, and its guess at x_0."""
        if self._watcher:
            self._watcher(x, guess)

    @classmethod
    def ports(cls, facts: DataSpec, **options: object) -> dict[str, NetSpec]:
        """The nets this family needs, by name. Default: one that sees x and t and answers in x's shape."""
        return {"net": NetSpec(facts.shape, facts.shape, time=True)}

    @classmethod
    def default_net_for(cls, facts: DataSpec) -> str:
        """The kind of net that suits the data: the MLP for points, for pictures `default_net`."""
        return "mlp" if facts.is_points else cls.default_net

    @abstractmethod
    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        """The player's loss, a scalar, and numbers worth logging."""

    @abstractmethod
    def sample(self, noise: Tensor, label: Tensor, rng: Rng) -> Samples:
        """Turn noise (B, *noise_shape) into data (B, C, H, W). Subclasses add keyword-only options."""

    def log_likelihood(self, x: Tensor, label: Tensor, rng: Rng) -> LogLikelihood | None:
        """log p(x | label) of pictures at bin centres; None for a family that has no likelihood."""
        return None

    def straightness(self, noise: Tensor, label: Tensor) -> Tensor | None:
        """How far each sample's way bends, (B,): 0 for a straight line; None for a family without such a way."""
        return None

    @property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of a code, without the batch."""
        return self.noise_shape

    def encode(self, x: Tensor, label: Tensor, rng: Rng) -> Tensor:
        """The code (B, *code_shape) that `decode` turns back into x (B, C, H, W). Without one, raise."""
        raise UsageError(f"{self.title} has no encoder: it cannot say which noise a picture comes from")

    def decode(self, code: Tensor, label: Tensor, rng: Rng) -> Tensor:
        """x (B, C, H, W) of a code; by default the code is the noise that sampling starts from."""
        return self.sample(code, label, rng).x

    def guided_by(self, weak: "Family") -> None:
        """Let guidance lead away from a weaker run (autoguidance).

        Raises:
            UsageError: this family, or that one, cannot.
        """
        raise UsageError(f"{self.title} knows no guidance", "leave --guide out")

    def stock_scheduler(self) -> tuple[str, dict[str, Any]] | None:
        """The scheduler of diffusers that walks this family's path, and its options; None if there is none."""
        return None

    # What the loop calls besides the loss.

    @classmethod
    def inherit(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Options of this family that follow from those of the run it starts from (`kind` is among them)."""
        return {}

    def init_from(self, source: "Family") -> None:
        """Take over a trained family's weights; called with the source's averaged weights, before training.

        By default every parameter is found there under its own name; those of a second time may be new.

        Raises:
            UsageError: a weight has no counterpart.
        """
        theirs = dict(source.named_parameters())
        own = dict(self.named_parameters())
        fits = {name: theirs[name] for name, p in own.items() if name in theirs and theirs[name].shape == p.shape}
        if lacking := [name for name in own if name not in fits and ".second." not in name]:
            raise UsageError(
                f"{self.title} cannot start from this run of {source.title}: no weight {lacking[0]} of that shape",
                "train the run of `init` with the same net, or leave the section `net` out",
            )
        self.load_state_dict(fits, strict=False)

    def prepare(self, position: float) -> None:
        """Called before every step with the share of the budget that is used, 0 to 1 (KL warm-up, annealing)."""

    def after_step(self, step: int) -> None:
        """Called after every step, with the number of steps made."""

    def diagnose(self, numbers: dict[str, float]) -> str:
        """What goes wrong, in words, seen from a step's logged numbers; empty if nothing does.

        Called every `DIAGNOSE_EVERY` steps. What it remembers is kept in persistent buffers.
        """
        return ""

    def reset_diagnosis(self) -> None:
        """Called after a rollback: what `diagnose` counts starts anew, or it would be found at the next look."""

    def finish(self, data: Callable[[int], Batch]) -> None:
        """Called once after training, holding the averaged weights: fit what follows from them, into buffers.

        Args:
            data: the i-th batch of the training data, i = 0, 1, ...; what is computed must not depend on more.
        """


def has_encoder(family: type[Family]) -> bool:
    """Whether a family can say which code a picture comes from."""
    return family.encode is not Family.encode
