"""The nets, one a file; the folder is the registry.

A module here offers `build(ports, classes, **options) -> nn.Module`: the keyword-only arguments are the recipe's
`net:` section. It raises `UsageError` for ports, sizes or options that cannot work, before anything starts.
Every net is called as `net(x, t, label, r)`: x (B, *inputs), t (B,) on the scale of 0..1000 or None, label (B,),
r (B,) a second time on the same scale or None.
"""

import importlib
import pkgutil
from collections.abc import Callable

from torch import nn

from genflow.errors import UsageError
from genflow.recipe import nearest

NOT_NETS = ("layers",)


def kinds() -> list[str]:
    """The kinds of net there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_NETS)


def builder(kind: str) -> Callable[..., nn.Module]:
    """The `build` function of a kind of net.

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in kinds():
        raise UsageError(f"unknown net {kind!r}{nearest(kind, kinds())}", f"nets: {', '.join(kinds())}")
    return importlib.import_module(f"{__name__}.{kind}").build
