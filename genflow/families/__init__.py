"""The families. The folder is the registry: a module here with one `Family` of its own is a kind of family."""

import importlib
import pkgutil
from typing import TYPE_CHECKING

from genflow.errors import UsageError, nearest

if TYPE_CHECKING:  # the command line completes kinds without torch
    from genflow.families.base import Family

NOT_KINDS = ("base", "gaussian")  # what families are made of


def kinds() -> list[str]:
    """The kinds of family there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_KINDS)


def family_class(kind: str) -> "type[Family]":
    """The family of a kind.

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in kinds():
        raise UsageError(f"unknown family {kind!r}{nearest(kind, kinds())}", f"families: {', '.join(kinds())}")
    from genflow.families.base import Family

    module = importlib.import_module(f"{__name__}.{kind}")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Family) and value.__module__ == module.__name__
    )
    return found
