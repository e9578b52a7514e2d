"""One training step on tensors without data (torch's meta device), with every operation counted.

The families' own losses and the nets' own layers run, backward and all, but nothing is computed and no memory is used.
So a net of billions of weights takes as long as a small one. Of each operation the ledger knows the arithmetic, by the
formulas of `torch.utils.flop_counter`, and the bytes that it reads and writes. Storages are counted from their
allocation to their end, so the largest sum is the memory that autograd needs, also with activation checkpointing.

Mixed precision is imitated, because autocast does not know the meta device: products take bfloat16, and norms float32.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from genflow import build
from genflow.batch import Batch
from genflow.maths.rng import BatchRng, Rng
from genflow.recipe.schema import Recipe, Train
from genflow.specs import DataSpec
from genflow.text import Text
from genflow.training.activations import checkpoint_layers
from genflow.training.muon import orthogonalize
from genflow.training.optim import matrices_of

META = torch.device("meta")
WORD = 4  # bytes of a weight, of its gradient, and of each number of its state


@dataclass(frozen=True)
class Operation:
    """An operation of a step: its floating-point operations, its bytes read and written, and if it is in bfloat16."""

    flops: int
    bytes: int
    half: bool


@dataclass(frozen=True)
class Work:
    """The work of one training step of one worker.

    Args:
        rows: pictures of a micro-batch.
        parameters: weights of all players.
        micro: the operations of one micro-batch, of all players, and how often each occurs.
        update: the operations of a step that do not depend on the batch: clipping, optimizer and average.
        optimizer_bytes: the state of the optimizers.
        peak_bytes: the largest sum of storages in a micro-batch: activations, gradients, and temporary results.
        gradient_bytes: of the player with the most weights.
    """

    rows: int
    parameters: int
    micro: Counter[Operation]
    update: Counter[Operation]
    optimizer_bytes: int
    peak_bytes: int
    gradient_bytes: int

    @property
    def flops(self) -> int:
        """Floating-point operations of a micro-batch."""
        return sum(operation.flops * count for operation, count in self.micro.items())


def measure(recipe: Recipe, facts: DataSpec, rows: int, init: Recipe | None = None, *, bf16: bool = True) -> Work:
    """Run one step of a resolved recipe on tensors without data.

    Args:
        recipe: resolved.
        facts: of what the family learns.
        rows: pictures of a micro-batch.
        init: the resolved recipe of the run that it starts from, which may be its teacher.
        bf16: whether products are computed in bfloat16.
    """
    family = build.outline_of(recipe, facts).train()
    if init is not None:
        family.init_from(build.outline_of(init, facts))
    imitation = _Imitation(bf16)
    if recipe.train.checkpoint_activations:
        for player in family.players:
            checkpoint_layers(getattr(family, player), lambda: imitation)
    family.prepare(1.0)
    ledger, update = Ledger(), Counter[Operation]()
    parameters, state = 0, 0
    batch = _batch(facts, rows, pairs=bool(recipe.data.pairs))
    for player in family.players:
        module: nn.Module = getattr(family, player)
        others = [getattr(family, name) for name in family.players if name != player]
        for other in others:
            other.requires_grad_(False)
        with _imitated_autocast(imitation), ledger:
            loss, _ = family.loss(player, batch, _Rng())
            loss.backward()
        module.zero_grad(set_to_none=True)
        for other in others:
            other.requires_grad_(True)
        own = sum(p.numel() for p in module.parameters())
        parameters += own
        state += _optimizer(module, recipe.train, update)
    largest = max(sum(p.numel() for p in getattr(family, player).parameters()) for player in family.players)
    return Work(rows, parameters, ledger.counted, update, state, ledger.peak, WORD * largest)


def count(use: Callable[[], Any], *, bf16: bool = True) -> "Ledger":
    """The operations of a function that works on tensors without data.

    Args:
        use: is called once.
        bf16: whether products are computed in bfloat16.
    """
    with _imitated_autocast(_Imitation(bf16)), Ledger() as ledger:
        use()
    return ledger


def _batch(facts: DataSpec, rows: int, *, pairs: bool) -> Batch:
    x = torch.empty(rows, *facts.shape, device=META)
    noise = torch.empty_like(x) if pairs else None
    if facts.text is None:
        return Batch(x, torch.empty(rows, dtype=torch.int64, device=META), noise)
    spec = facts.text

    def text(rows: int, empty: Text | None = None) -> Text:
        tokens = torch.empty(rows, spec.length, spec.tokens, device=META)
        mask = torch.empty(rows, spec.length, dtype=torch.bool, device=META)
        return Text(tokens, mask, torch.empty(rows, spec.pooled, device=META), empty)

    return Batch(x, text(rows, text(1)), noise)


class _Rng(Rng):
    """Draws without data; those that a family asks for on the CPU, such as times, are numbers."""

    def on(self, device: torch.device | str) -> Rng:
        return self if torch.device(device) == META else _Numbers()

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.empty(tuple(shape), device=META)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.empty(tuple(shape), device=META)


class _Numbers(Rng):
    def normal(self, shape: Sequence[int]) -> Tensor:
        return BatchRng(0, "cost", 0).normal(shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return BatchRng(0, "cost", 0).uniform(shape)


def _optimizer(module: nn.Module, train: Train, update: Counter[Operation]) -> int:
    """Count the operations of clipping, optimizer and average of a player; return the bytes of the optimizer's state.

    Clipping reads a gradient twice and writes it once, and the average reads two numbers and writes one. AdamW reads
    four numbers and writes three. Muon reads three, writes two, and orthogonalizes.
    """
    matrices = matrices_of(module, train)
    total, chosen = sum(p.numel() for p in module.parameters()), sum(p.numel() for p in matrices)
    update[Operation(0, 6 * WORD * total, False)] += 1
    update[Operation(12 * (total - chosen), 7 * WORD * (total - chosen), False)] += 1
    shapes = Counter((p.shape[0], p.numel() // p.shape[0]) for p in matrices)
    for (rows, columns), count in shapes.items():
        with Ledger() as ledger:
            orthogonalize(torch.empty(count, rows, columns, device=META, dtype=torch.bfloat16))
        update.update(ledger.counted)
    update[Operation(6 * chosen, 5 * WORD * chosen, False)] += 1
    return 2 * WORD * (total - chosen) + WORD * chosen


class Ledger(TorchDispatchMode):
    """Count the operations below it, and the storages that they allocate.

    Args:
        device: whose tensors count.
    """

    def __init__(self, device: torch.device = META) -> None:
        super().__init__()
        self._device = device
        self.counted: Counter[Operation] = Counter()
        self.peak = 0
        self._live = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        inputs, outputs = list(self._tensors([*args, *kwargs.values()])), list(self._tensors(result))
        before = {id(tensor.untyped_storage()) for tensor in inputs}
        for tensor in outputs:
            self._own(tensor.untyped_storage())
        if not function._schema.is_mutable and all(id(tensor.untyped_storage()) in before for tensor in outputs):
            return result  # a view
        formula = flop_registry.get(function._overloadpacket)
        flops = int(formula(*args, **kwargs, out_val=result)) if formula else 0
        moved = sum(tensor.numel() * tensor.element_size() for tensor in [*inputs, *outputs])
        half = any(tensor.dtype == torch.bfloat16 for tensor in inputs)
        self.counted[Operation(flops, moved, half)] += 1
        return result

    def _own(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._live -= size

    def _tensors(self, values: Any) -> Iterator[Tensor]:
        for value in values if isinstance(values, tuple | list) else [values]:
            if isinstance(value, Tensor):
                if value.device == self._device:
                    yield value
            elif isinstance(value, tuple | list):
                yield from self._tensors(value)


# What CUDA's autocast computes in bfloat16, and in float32, of the functions that nets call.
IN_BFLOAT16 = (
    F.linear, F.conv2d, F.conv_transpose2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm,
    F.scaled_dot_product_attention,
)  # fmt: skip
IN_FLOAT32 = (F.layer_norm, F.group_norm, F.softmax, Tensor.softmax, torch.softmax, F.normalize, F.softplus)


@dataclass
class _Imitation(TorchFunctionMode):
    """Autocast for tensors without data; and attention by a GPU's fused kernel, which does not keep the scores."""

    enabled: bool
    cast: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.enabled and function in IN_BFLOAT16:
            args, kwargs = self._all(args, torch.bfloat16), {k: self._to(v, torch.bfloat16) for k, v in kwargs.items()}
        elif self.enabled and function in IN_FLOAT32:
            args, kwargs = self._all(args, torch.float32), {k: self._to(v, torch.float32) for k, v in kwargs.items()}
        if function is F.scaled_dot_product_attention and args[0].device == META:
            q, k, v = args[:3]
            return _attention(q, k, v, kwargs.get("attn_mask"), is_causal=bool(kwargs.get("is_causal")))
        return function(*args, **kwargs)

    def _all(self, args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        return tuple(self._to(value, dtype) for value in args)

    def _to(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or value.device != META or not value.is_floating_point():
            return value
        if value.dtype == dtype:
            return value
        if isinstance(value, nn.Parameter):  # cast once, as autocast does
            if id(value) not in self.cast:
                self.cast[id(value)] = value.to(dtype)
            return self.cast[id(value)]
        return value.to(dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, *, is_causal: bool) -> Tensor:
    out: tuple[Tensor, ...]
    if attn_mask is None:
        out = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)
    else:
        mask = attn_mask.expand(*q.shape[:-1], k.shape[-2])
        grads = any(tensor.requires_grad for tensor in (q, k, v))
        out = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, grads)
    return out[0]


@contextlib.contextmanager
def _imitated_autocast(imitation: _Imitation) -> Iterator[None]:
    @contextlib.contextmanager
    def autocast(device: str, *args: Any, enabled: bool = True, **options: Any) -> Iterator[None]:
        before, imitation.enabled = imitation.enabled, imitation.enabled and enabled
        try:
            yield
        finally:
            imitation.enabled = before

    real: Callable[..., Any] = torch.autocast

    def chosen(device: str, *args: Any, **options: Any) -> Any:
        return (autocast if device == META.type else real)(device, *args, **options)

    with mock.patch.object(torch, "autocast", chosen), imitation:
        yield
    imitation.cast.clear()
