"""Data sources, one a file; the folder is the registry.

A module that opens something assigns `OPENS = Opens(...)` at its top level, and has

    open_name(name, data) -> Source             where it opens names: built-in data sets, or what follows a prefix
    open_path(path, data) -> Source | None      where it opens files or folders; None for what is not its own

`sources/find.py` asks the modules in their declared order. A declaration is made of literals, because it is read
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
    """What a module of this folder opens.

    Args:
        names: built-in data sets.
        prefix: what names that it opens begin with, such as `stack:`; empty: none.
        files: kinds of file, as messages list them.
        folders: contents of a folder, as messages list them.
        order: modules with a smaller number are asked first, and named first in messages.
    """

    names: tuple[str, ...] = ()
    prefix: str = ""
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    order: int = 100

    def matches(self, text: str) -> bool:
        """Whether a text is a name that it opens."""
        return text in self.names or bool(self.prefix and text.startswith(self.prefix))


def kinds() -> dict[str, Opens]:
    """What each module opens, by the module's name, in the order in which they are asked."""
    found = {file.stem: kind for folder in __path__ for file in Path(folder).glob("*.py") if (kind := _read(file))}
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def module(kind: str) -> ModuleType:
    """A module of this folder, imported."""
    return importlib.import_module(f"{__name__}.{kind}")


def names() -> tuple[str, ...]:
    """The built-in data sets."""
    return tuple(name for kind in kinds().values() for name in kind.names)


def files() -> str:
    """The kinds of file, as a list in words."""
    return ", ".join(word for kind in kinds().values() for word in kind.files)


def folders() -> str:
    """What a folder may hold, in words."""
    return " or ".join(word for kind in kinds().values() for word in kind.folders)


def prefix_of(text: str) -> str:
    """The prefix that a text begins with; empty if it begins with none."""
    return next((kind.prefix for kind in kinds().values() if kind.prefix and text.startswith(kind.prefix)), "")


def describe() -> str:
    """What a source may be, in words: for the help of the command."""
    derived = [f"{kind.prefix}NAME" for kind in kinds().values() if kind.prefix]
    ways = [*names(), f"a path to {folders()}", *derived]
    return f"{', '.join(ways[:-1])}, or {ways[-1]}"


@cache
def _read(file: Path) -> Opens | None:
    opens: Opens | None = declarations.constant(file, "OPENS", {"Opens": Opens})
    return opens
