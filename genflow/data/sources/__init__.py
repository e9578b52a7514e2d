"""Data sources, one per file; the folder is the registry.

A module that opens sources assigns `OPENS = Opens(...)` at its top level, and defines

    open_name(name, data) -> Source             if it opens names: built-in data sets, or names with a prefix
    open_path(path, data) -> Source | None      if it opens files or folders; None for paths that it does not support

`sources/find.py` tries the modules in their declared order. A declaration consists of literals, because it is read
without importing the module: `genflow prepare --help` names every built-in data set, and loads neither NumPy nor Arrow.
docs/adding-a-source.md has an example.
"""

import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from genflow.system import declarations


@dataclass(frozen=True, kw_only=True)
class Opens:
    """The sources that a module opens.

    Args:
        names: built-in data sets.
        prefix: prefix of the names that it opens, such as `stack:`; empty: none.
        argument: what follows the prefix, as messages list it.
        files: file types, as messages list them.
        folders: contents of a folder, as messages list them.
        order: modules with a smaller number are tried first, and named first in messages.
    """

    names: tuple[str, ...] = ()
    prefix: str = ""
    argument: str = "NAME"
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    order: int = 100

    def matches(self, text: str) -> bool:
        """Whether the module opens this name."""
        return text in self.names or bool(self.prefix and text.startswith(self.prefix))


def kinds() -> dict[str, Opens]:
    """The declaration of each module by the module's name, in the order in which they are tried."""
    found = {file.stem: kind for folder in __path__ for file in Path(folder).glob("*.py") if (kind := _read(file))}
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def module(kind: str) -> ModuleType:
    """Import a module of this folder."""
    return importlib.import_module(f"{__name__}.{kind}")


def names() -> tuple[str, ...]:
    """The built-in data sets."""
    return tuple(name for kind in kinds().values() for name in kind.names)


def files() -> str:
    """The supported file types, as text."""
    return ", ".join(word for kind in kinds().values() for word in kind.files)


def folders() -> str:
    """The supported contents of a folder, as text."""
    return " or ".join(word for kind in kinds().values() for word in kind.folders)


def prefix_of(text: str) -> str:
    """The declared prefix of a name; empty if it has none."""
    return next((kind.prefix for kind in kinds().values() if kind.prefix and text.startswith(kind.prefix)), "")


def describe() -> str:
    """All supported sources, as text for the help of the command."""
    derived = [f"{kind.prefix}{kind.argument}" for kind in kinds().values() if kind.prefix]
    choices = [*names(), f"a path to {folders()}", *derived]
    return f"{', '.join(choices[:-1])}, or {choices[-1]}"


@cache
def _read(file: Path) -> Opens | None:
    opens: Opens | None = declarations.constant(file, "OPENS", {"Opens": Opens})
    return opens
