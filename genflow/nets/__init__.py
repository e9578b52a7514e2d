"""Networks, one per file; the folder is the registry.

A module in this folder defines `build(ports, classes, **options) -> nn.Module`. Its keyword-only arguments are the
`net:` section of the recipe. It raises `UsageError` for ports, sizes or options that cannot work.

Every net is called as `net(x, t, label, r)`: x (B, *inputs); t (B,), the time on the scale of 0..1000, or None; label
(B,) int64, or the captions as a `Text` if the ports have `text`; r (B,), a second time on the same scale, or None.

A module with `FLOW = True` builds invertible nets, for ports with `flow=True`. An invertible net returns (z, log|det|);
with `inverse=True` it returns x and the log-determinant of the inverse. `builder` rejects ports of the other sort.

A module with `READS_TEXT = True` builds nets that read captions: the pooled vectors (`layers.Condition`), or also the
tokens. For ports with `text`, `builder` rejects the others, which would learn as if there were no captions.

A module with `of_size(size, shape)` states its options for the sizes above xs (`recipe/sizes.py`), for data of a shape.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from torch import nn

from genflow.errors import UsageError, similar
from genflow.recipe.sizes import SMALLEST, Size
from genflow.specs import NetSpec

NOT_NETS = ("convolutions", "layers", "rows")


def kinds(*, flow: bool | None = None) -> list[str]:
    """The kinds of net in the registry, sorted.

    Args:
        flow: True: only invertible nets; False: only the others; None: all.
    """
    found = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_NETS)
    return [kind for kind in found if flow is None or _is_flow(kind) == flow]


def _is_flow(kind: str) -> bool:
    return getattr(importlib.import_module(f"{__name__}.{kind}"), "FLOW", False)


def _reads_text(kind: str) -> bool:
    return getattr(importlib.import_module(f"{__name__}.{kind}"), "READS_TEXT", False)


def of_size(kind: str, size: Size, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The options of a kind of net for a size; {} for xs, whose options are the defaults.

    Args:
        kind: of net.
        size: of the recipe.
        shape: (C, H, W) of what the family learns.

    Raises:
        UsageError: the kind does not exist, or has no sizes.
    """
    if size == SMALLEST:
        return {}
    module = importlib.import_module(f"{__name__}.{_known(kind)}")
    if not hasattr(module, "of_size"):
        raise UsageError(f"net {kind} has no size {size}", "use --size xs, and set the net's own keys (net.KEY)")
    options: dict[str, Any] = module.of_size(size, shape)
    return options


def _known(kind: str) -> str:
    if kind not in kinds():
        raise UsageError(f"unknown net {kind!r}{similar(kind, kinds())}", f"nets: {', '.join(kinds())}")
    return kind


def builder(kind: str) -> Callable[..., nn.Module]:
    """The `build` function of a kind of net, which also checks that it is of the sort that the ports need.

    Raises:
        UsageError: the kind does not exist. The returned function raises it for ports that the net does not fit.
    """
    build = importlib.import_module(f"{__name__}.{_known(kind)}").build

    @functools.wraps(build)
    def checked_build(ports: NetSpec, classes: int, **options: Any) -> nn.Module:
        if ports.flow != _is_flow(kind):
            requirement = "an invertible net is needed" if ports.flow else "no invertible net is needed"
            hint = f"use net.kind={' or '.join(kinds(flow=ports.flow))}"
            raise UsageError(f"net {kind} does not fit: {requirement}", hint)
        if ports.text and not _reads_text(kind):
            fit = [other for other in kinds(flow=ports.flow) if _reads_text(other)]
            raise UsageError(
                f"net {kind} cannot read captions, and this data has some", f"use net.kind={' or '.join(fit)}"
            )
        return build(ports, classes, **options)

    return checked_build
