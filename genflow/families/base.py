"""The interface of a family: one way of turning noise into data.

The training loop, the sampling engine and the evaluation use families only through this interface.
All families have the same direction of time: t = 0 is data, t = 1 is noise.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.maths.rng import Rng, SampleRng
from genflow.specs import DataSpec, NetSpec
from genflow.text import Label


@dataclass(frozen=True)
class Samples:
    """The result of sampling: x (B, C, H, W), and the number of network evaluations per sample (nfe)."""

    x: Tensor
    nfe: int


SMALL_LATENTS = 512  # numbers, as for 32 pixels: up to here latents need only a small net, and no shift to more noise
DIAGNOSE_EVERY = 20  # training steps between calls of `diagnose`; fixed, because a rollback changes the result

Watcher = Callable[[Tensor, Tensor], None]  # called with x_t and the estimate of x_0, both (B, C, H, W)

@dataclass(frozen=True)
class Call:
    """A function of tensors that an export writes as one program.

    Args:
        run: run(*tensors, *conditions) -> (N, ...), or several; a condition is what a net reads: labels, or captions.
        inputs: the shapes of the tensors by name, without the batch dimension; () for a number per row.
        conditions: 1, or 2 if the condition without a label is an input, too.
    """

    run: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: dict[str, tuple[int, ...]]
    conditions: int = 1


@dataclass(frozen=True)
class Exported:
    """How a family samples where genflow is not installed: its programs, and the loop that calls them.

    Args:
        loop: of `genflow/sampling/templates/sampler.py.j2`.
        calls: by name; a loop of one pass calls `net`.
        values: of the loop, for the template.
        note: what differs from `genflow sample`; empty if nothing does.
    """

    loop: str
    calls: dict[str, Call]
    values: dict[str, Any] = field(default_factory=dict)
    note: str = ""


Kind = Literal["exact-dequantized", "lower-bound", "ode-estimate"]


@dataclass(frozen=True)
class LogLikelihood:
    """log p of each sample in nats: of its *discrete* grey levels for pictures, of the density for points.

    Args:
        nats: (B,) log-probability.
        kind: exact for dequantized data, a lower bound, or the estimate of an ODE solver.
        stderr: (B,) standard error of each entry due to random draws and solver error; zeros for an exact value.
        nfe: network evaluations per sample.
        method: a short description, such as "ELBO", "IWAE, k = 64" or "midpoint, 20 steps, 2 probes".
    """

    nats: Tensor
    kind: Kind
    stderr: Tensor
    nfe: int
    method: str = ""


class Family(nn.Module, ABC):
    """One way of turning noise into data. It does not depend on an optimizer, Ray or MLflow.

    The keyword-only arguments of a subclass's `__init__` are the recipe's `family:` section. Those of its `sample` are
    the recipe's `sample:` section and the fields of a request. There is no second schema.

    A subclass's `__init__` is `(self, nets, facts, *, ...)` and calls `super().__init__(facts)`; `nets` maps
    the names in `ports(facts, **options)` to modules of `genflow.nets`, called as
    `net(x, t=None, label=None, r=None)`.

    Attributes:
        players: submodules that are trained, in their order within a step; a GAN has two.
        title: the family's name in text.
        objective: a short description of the training objective, for tables.
        steps: network evaluations per sample, in words: "1", "any", "1 to 4".
        likelihood: the kind of its likelihood; None if it has none.
        learns_pairs: whether its loss uses the noise that belongs to a sample (`Batch.noise`), as reflow needs.
        teacher: whether a trained run to start from (the recipe's `init`) is optional or required.
        shardable: whether its nets can be sharded over workers (`cluster.strategy=fsdp`). This requires a loss that
            calls the nets directly, equally often on every worker, without second derivatives.
        default_net: the kind of net for pictures, if the recipe names none.
        is_autoencoder: whether it learns latents for other families to train on, and draws no pictures of its own.
        rows: a sample has the same bytes in every batch of a multiple of so many rows, if its nets' layers do not need
            more (see `nets.rows`).
        validates: whether its loss on held-out rows falls as it improves; the losses of a game do not.
        drawing: the time of a network evaluation in sampling, relative to one in training without gradients.
        facts: the properties of the data.
        noise_shape: the shape of the noise that sampling starts from, without the batch dimension.
        weaker: the weaker run for autoguidance, or ().
    """

    players: tuple[str, ...] = ("net",)  # an instance may have others, depending on its options
    title: ClassVar[str] = ""
    objective: ClassVar[str] = ""
    steps: ClassVar[str] = "any"
    likelihood: ClassVar[Kind | None] = None
    learns_pairs: ClassVar[bool] = False
    teacher: ClassVar[Literal["optional", "required"]] = "optional"
    shardable: ClassVar[bool] = True
    default_net: ClassVar[str] = "unet"
    is_autoencoder: ClassVar[bool] = False
    validates: ClassVar[bool] = True
    rows: ClassVar[int] = 1
    drawing: ClassVar[float] = 1.0

    def __init__(self, facts: DataSpec) -> None:
        super().__init__()
        self.facts = facts
        self.noise_shape: tuple[int, ...] = facts.shape
        self.weaker: tuple[Family, ...] = ()  # in a tuple, so that it is not a submodule
        self._watcher: Watcher | None = None

    @contextlib.contextmanager
    def watched(self, watcher: Watcher | None) -> Iterator[None]:
        """Call `watcher` at every evaluation inside the `with` block; an exception from it ends the sampling."""
        self._watcher = watcher
        try:
            yield
        finally:
            self._watcher = None

    def show(self, x: Tensor, guess: Tensor) -> None:
        """Pass x_t / (alpha + sigma) and the estimate of x_0, both (B, C, H, W), to the watcher, at every step."""
        if self._watcher:
            self._watcher(x, guess)

    @classmethod
    def ports(cls, facts: DataSpec, **options: object) -> dict[str, NetSpec]:
        """The nets that this family needs, by name. Default: one with inputs x and t, and an output of x's shape."""
        return {"net": NetSpec(facts.shape, facts.shape, time=True)}

    @classmethod
    def default_net_for(cls, facts: DataSpec) -> dict[str, Any]:
        """The default section `net`: the MLP for points, a transformer for latents, else `default_net`."""
        if facts.is_points:
            return {"kind": "mlp"}
        if facts.is_latents and cls.default_net == "unet":
            return _transformer(facts)
        return {"kind": cls.default_net}

    @classmethod
    def require_packages(cls, **options: Any) -> None:
        """Check that the optional packages that training with these options needs are installed.

        Raises:
            SetupError: one is not.
        """

    @classmethod
    def check_compilation(cls, **options: Any) -> None:
        """Check that the loss can be differentiated through nets that `torch.compile` has compiled.

        Raises:
            UsageError: it cannot with these options.
        """

    @abstractmethod
    def loss(self, player: str, batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a player, a scalar, and scalars to log.

        Args:
            player: one of `players`.
            batch: the rows of this worker; the loss is a mean over them.
            rng: source of all random draws.
        """

    def validation_loss(self, batch: Batch, rng: Rng) -> Tensor:
        """A scalar that falls as the family improves, of held-out rows; called without gradients, in eval mode.

        Before it, `prepare(1.0)` is called, so that the values of all positions are comparable.
        """
        rows = self.row_losses(batch, rng)
        return self.loss(self.players[0], batch, rng)[0] if rows is None else rows.mean()

    def row_losses(self, batch: Batch, rng: Rng) -> Tensor | None:
        """The losses (B,) of which `validation_loss` is the mean; None if only their mean is known.

        With them, one call measures many rows, and still gives the uncertainty of their mean.
        """
        return None

    @abstractmethod
    def sample(self, noise: Tensor, label: Label, rng: Rng) -> Samples:
        """Turn noise (B, *noise_shape) and labels (B,) into data (B, C, H, W). Subclasses add keyword-only options."""

    def log_likelihood(self, x: Tensor, label: Label, rng: Rng) -> LogLikelihood | None:
        """log p(x | label) of pictures x (B, C, H, W) at bin centres; None if the family has no likelihood."""
        return None

    def straightness(self, noise: Tensor, label: Label) -> Tensor | None:
        """The curvature of each sample's trajectory, (B,): 0 for a straight line; None if the family has no ODE."""
        return None

    @property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of a code, without the batch dimension."""
        return self.noise_shape

    def encode(self, x: Tensor, label: Label, rng: Rng) -> Tensor:
        """The code (B, *code_shape) that `decode` turns back into x (B, C, H, W).

        Raises:
            UsageError: the family has no encoder.
        """
        raise UsageError(f"{self.title} has no encoder: it cannot compute the noise that gives a picture")

    def decode(self, code: Tensor, label: Label, rng: Rng) -> Tensor:
        """x (B, C, H, W) of a code (B, *code_shape); by default the code is the noise that sampling starts from."""
        return self.sample(code, label, rng).x

    def guided_by(self, weak: "Family") -> None:
        """Guide samples away from those of a weaker run (autoguidance).

        Raises:
            UsageError: this family or the weaker run does not support autoguidance.
        """
        raise UsageError(f"{self.title} cannot be guided by another run", "omit --guide")

    def stock_scheduler(self) -> tuple[str, dict[str, Any]] | None:
        """The diffusers scheduler for this family's path, and its options; None if there is none."""
        return None

    def exported(self, options: dict[str, Any]) -> Exported:
        """How samples are drawn without genflow; by default in one pass of `sample`, which must draw no random numbers.

        Args:
            options: of `sample`, complete and checked.
        """
        return Exported("one_pass", {"net": Call(lambda z, label: self._one_pass(z, label, options), {
            "noise": self.noise_shape})})  # fmt: skip

    def _one_pass(self, noise: Tensor, label: Label, options: dict[str, Any]) -> Tensor:
        return self.sample(noise, label, SampleRng([], "none"), **options).x

    # Called by the training loop in addition to `loss`.

    @classmethod
    def inherit(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Options of this family that follow from `options`, the family section of the run that it starts from."""
        return {}

    def init_from(self, source: "Family") -> None:
        """Copy the weights of a trained family. Called before training; `source` holds its averaged weights.

        By default every parameter is copied from the parameter with the same name. Only parameters of a second time
        input may be missing in the source.

        Raises:
            UsageError: a parameter is missing in the source or has another shape.
        """
        theirs = dict(source.named_parameters())
        own = dict(self.named_parameters())
        fits = {name: theirs[name] for name, p in own.items() if name in theirs and theirs[name].shape == p.shape}
        if lacking := [name for name in own if name not in fits and ".second." not in name]:
            raise UsageError(
                f"{self.title} cannot start from this run of {source.title}: it lacks {lacking[0]} of this shape",
                "train the run of `init` with the same net, or omit the section `net`",
            )
        self.load_state_dict(fits, strict=False)

    def prepare(self, position: float) -> None:
        """Called before every step with the used share of the training budget, 0 to 1 (for KL warm-up, annealing)."""

    def after_step(self, step: int) -> None:
        """Called after every step with the number of completed steps."""

    def diagnose(self, numbers: dict[str, float]) -> str:
        """Describe a training problem that the logged numbers of a step show; "" if there is none.

        Called every `DIAGNOSE_EVERY` steps. State between calls must be in persistent buffers.
        """
        return ""

    def reset_diagnosis(self) -> None:
        """Called after a rollback: reset what `diagnose` counts, so that it does not report the old problem again."""

    def finish(self, data: Callable[[int], Batch]) -> None:
        """Called once after training with the averaged weights loaded: fit buffers that follow from them.

        Args:
            data: data(i) is the i-th batch of the training data, i = 0, 1, .... The result may depend only on these
                batches and the weights.
        """


def has_encoder(family: type[Family]) -> bool:
    """Whether a family can encode pictures."""
    return family.encode is not Family.encode


def patch_of_latents(facts: DataSpec) -> int:
    """The side of a transformer's patch, at most 4, with which the number of patches is nearest to 4 x 4."""
    _, H, W = facts.shape
    sides = [p for p in range(1, 5) if H % p == W % p == 0]
    return min(sides, key=lambda p: abs(math.log(min(H, W) / (4 * p))))


def _transformer(facts: DataSpec) -> dict[str, Any]:
    """A transformer for latents. A CPU learns more in equal time than by a U-Net; small latents need a small one.

    Captions are read by the net that sees each of their words.
    """
    kind, patch = "mmdit" if facts.text else "dit", patch_of_latents(facts)
    if facts.dims > SMALL_LATENTS or facts.text:
        return {"kind": kind, "patch": patch, "width": 192, "depth": 6, "heads": 3}
    return {"kind": kind, "patch": patch, "width": 128, "depth": 4, "heads": 2}
