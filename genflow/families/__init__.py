"""The families. The folder is the registry: a module in it that defines one `Family` is a kind of family."""

import importlib
import pkgutil
from typing import TYPE_CHECKING

from genflow.errors import UsageError, similar

if TYPE_CHECKING:  # the command line completes kinds without importing torch
    from genflow.families.base import Family

NOT_KINDS = ("base", "gaussian")  # base classes
AUTOENCODERS = ("autoencoder",)  # kinds whose class has `is_autoencoder`, known without importing torch


def kinds() -> list[str]:
    """The kinds of family in the registry, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_KINDS)


def family_class(kind: str) -> "type[Family]":
    """The class of a kind of family.

    Raises:
        UsageError: the kind does not exist.
    """
    if kind not in kinds():
        raise UsageError(f"unknown family {kind!r}{similar(kind, kinds())}", f"families: {', '.join(kinds())}")
    from genflow.families.base import Family

    module = importlib.import_module(f"{__name__}.{kind}")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Family) and value.__module__ == module.__name__
    )
    return found
