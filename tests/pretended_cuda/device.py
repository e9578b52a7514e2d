"""Tensors on a device that does not exist. A dispatch mode sees every ATen operation below autograd and autocast.

A tensor on `cuda` is a wrapper around a CPU tensor, as torch's own FakeTensor is, but with real numbers. So `float()`,
`nonzero()` and `while` take the way that they would take on a GPU, and dtypes are those of CUDA's autocast.
"""

import functools
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
CODE = tuple(f"{ROOT / name}/" for name in ("genflow", "jobs"))
CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default, aten.set_.source_Tensor}
INDEXING = {
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}  # fmt: skip
SYNCHRONIZING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
    aten.unique_dim.default, aten.equal.default, aten.unique_consecutive.default, aten.is_nonzero.default,
}  # fmt: skip
REPLACED: dict[Any, Callable[..., Any]] = {}  # operations that torch's CPU build lacks (see `attention`)


class Seen:
    """What happened on the device; keys are lines of genflow.

    Attributes:
        syncs: the process waited for the device: item, float, bool, tolist, nonzero, a copy to the host ...
        copies: from the host to the device without `non_blocking`, for which the process waits, too.
        sent: the same with `non_blocking`: nothing waits, but each is work of the host.
        draws: from the device's global generator, which no seed of genflow sets.
        collectives: names of the process group's operations.
    """

    def __init__(self) -> None:
        self.syncs: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.draws: Counter[str] = Counter()
        self.collectives: Counter[str] = Counter()


seen = Seen()
has_float64 = True


def begin() -> Seen:
    """Count from zero."""
    global seen
    seen = Seen()
    return seen


class Cuda(Tensor):
    """A tensor on the pretended device; `host` holds its numbers."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "Cuda":
        made = Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            layout=host.layout, device=CUDA, requires_grad=False,
        )  # fmt: skip
        made.host = host
        return made

    def __repr__(self) -> str:
        return f"Cuda({self.host})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        seen.syncs[f"{line()} tolist"] += 1
        return self.host.tolist()

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})


class Mode(TorchDispatchMode):
    """Sends every operation to `run`, also those without a pretended tensor."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})


def synchronize(*_: Any) -> None:
    """In place of `torch.cuda.synchronize`."""
    seen.syncs[f"{line()} synchronize"] += 1


def line() -> str:
    """The innermost line of genflow that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(CODE):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside genflow"


def run(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation: refuse what CUDA refuses, note what it costs, compute on the CPU, wrap the results."""
    if op in REPLACED:
        return REPLACED[op](*args, **kwargs)
    name, leaves = _name(op), _leaves((*args, *kwargs.values()))
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    inside = [x for x in tensors if isinstance(x, Cuda)]
    wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    on_device = wanted.type == "cuda" if wanted else bool(inside)
    if op is aten.copy_.default:
        on_device = isinstance(args[0], Cuda)
    _refuse_mixed(op, name, args, tensors, inside)
    _refuse_draws(op, name, leaves, on_device)
    if name.startswith("c10d."):
        return _collective(op, args, leaves)
    _note(op, name, args, kwargs, inside, on_device)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")} if wanted else kwargs
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    if op is aten._efficientzerotensor.default:  # a tangent of zeros has no memory, which the wrapper would hide
        op = aten.zeros.default
    made = op(*_to_host(args), **{key: _to_host(value) for key, value in kwargs.items()})
    if torch.Tag.inplace_view in op.tags and inside:  # unsqueeze_, t_: the wrapper changes its shape, too
        with torch._C._DisableTorchDispatch():
            op(*args, **kwargs)
        return args[0]
    known = {id(x.host): x for x in inside}

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if on_device and x.dtype == torch.float64 and not has_float64:
            raise TypeError(f"Cannot convert a tensor to float64, because the device does not support it ({name})")
        return known.get(id(x)) if id(x) in known else Cuda(x) if on_device else x

    return _each(wrap, made)


def _refuse_mixed(op: Any, name: str, args: Any, tensors: list[Tensor], inside: list[Cuda]) -> None:
    """Raise as CUDA does for tensors of two devices. CPU scalars of dimension 0 and CPU indices are allowed."""
    if not inside or op in COPIES or name == "aten.record_stream.default":
        return
    strangers = [x for x in tensors if not isinstance(x, Cuda)]
    if op in INDEXING:
        strangers = [x for x in strangers if x is args[0] or (len(args) > 2 and x is args[2] and x.dim())]
    elif torch.Tag.pointwise in op.tags or name.startswith(("aten._foreach", "prims.")) or name == "aten.lerp.Tensor":
        strangers = [x for x in strangers if x.dim()]
    if strangers:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu! ({name})")


def _refuse_draws(op: Any, name: str, leaves: list[Any], on_device: bool) -> None:
    if torch.Tag.nondeterministic_seeded not in op.tags or not on_device:
        return
    if generator := next((x for x in leaves if isinstance(x, torch.Generator)), None):
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device.type}' ({name})")
    seen.draws[f"{line()} {name}"] += 1


def _note(op: Any, name: str, args: Any, kwargs: Any, inside: list[Cuda], on_device: bool) -> None:
    copies = op in (aten._to_copy.default, aten.copy_.default)
    source_inside = isinstance(args[1], Cuda) if op is aten.copy_.default else bool(inside)
    by_mask = op in INDEXING and any(
        isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1]
    )
    blocking = not (kwargs.get("non_blocking") or (op is aten.copy_.default and len(args) > 2 and args[2]))
    if inside and (op in SYNCHRONIZING or by_mask or (copies and source_inside and not on_device and blocking)):
        seen.syncs[f"{line()} {name.removeprefix('aten.').removesuffix('.default')}"] += 1
    if copies and on_device and not source_inside:
        (seen.copies if blocking else seen.sent)[line()] += 1


def _collective(op: Any, args: tuple[Any, ...], leaves: list[Any]) -> Any:
    """There is no other worker: a sum is what this worker has. NCCL takes tensors of the device only."""
    name = op.overloadpacket.__name__
    if any(isinstance(x, Tensor) and not isinstance(x, Cuda) for x in leaves):
        raise RuntimeError(f"No backend type associated with device type cpu (NCCL; {name})")
    seen.collectives[name] += 1

    class Done(torch._C._distributed_c10d.Work):
        def wait(self, timeout: Any = None) -> bool:
            return True

    work = Done().boxed() if hasattr(Done, "boxed") else Done()
    return (args[0], work) if name in ("allreduce_", "broadcast_") else work


_name = functools.cache(str)


def _leaves(values: Any) -> list[Any]:
    """The arguments of an operation; they are nested in lists once at most."""
    found: list[Any] = []
    for x in values:
        found.extend(x) if isinstance(x, list | tuple) else found.append(x)
    return found


def _to_host(x: Any) -> Any:
    if isinstance(x, Cuda):
        return x.host
    return type(x)(map(_to_host, x)) if isinstance(x, list | tuple) and not isinstance(x, torch.Size) else x


def _each(use: Callable[[Any], Any], x: Any) -> Any:
    return type(x)(_each(use, y) for y in x) if isinstance(x, list | tuple) and not hasattr(x, "_fields") else use(x)
