"""The nets, one a file; the folder is the registry.

A module here offers `build(ports, classes, **options) -> nn.Module`: the keyword-only arguments are the recipe's
`net:` section. It raises `UsageError` for ports, sizes or options that cannot work, before anything starts.
Every net is called as `net(x, t, label, r)`: x (B, *inputs), t (B,) on the scale of 0..1000 or None, label (B,),
r (B,) a second time on the same scale or None.

A module with `FLOW = True` offers invertible nets, for ports with `flow=True`: they answer (z, log|det|), or with
`inverse=True` x and the log-determinant of that way. Either sort refuses the other's ports.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from torch import nn

from genflow.errors import UsageError, nearest
from genflow.specs import NetSpec

NOT_NETS = ("layers",)


def kinds(*, flow: bool | None = None) -> list[str]:
    """The kinds of net there are: all, the invertible ones, or the others."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_NETS)
    return [kind for kind in found if flow is None or _is_flow(kind) == flow]


def _is_flow(kind: str) -> bool:
    return getattr(importlib.import_module(f"{__name__}.{kind}"), "FLOW", False)


def builder(kind: str) -> Callable[..., nn.Module]:
    """The `build` function of a kind of net; it refuses ports of the other sort.

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in kinds():
        raise UsageError(f"unknown net {kind!r}{nearest(kind, kinds())}", f"nets: {', '.join(kinds())}")
    build = importlib.import_module(f"{__name__}.{kind}").build

    @functools.wraps(build)
    def checked_build(ports: NetSpec, classes: int, **options: Any) -> nn.Module:
        if ports.flow != _is_flow(kind):
            requirement = "an invertible net is needed" if ports.flow else "no invertible net is needed"
            hint = f"use net.kind={' or '.join(kinds(flow=ports.flow))}"
            raise UsageError(f"net {kind} does not fit: {requirement}", hint)
        return build(ports, classes, **options)

    return checked_build
