"""Refuse a folder that contains several kinds of input, because the choice of one would leave the others out."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from genflow.data.sources.arrays import READ_ERRORS
from genflow.data.sources.base import printable
from genflow.data.sources.idx import IDX_FILE
from genflow.data.sources.npz import read_npz
from genflow.data.sources.walk import TABLES, Listing
from genflow.errors import DataError

OPENED = 20  # tables and arrays that are opened to see whether they contain pictures


@dataclass(frozen=True)
class Input:
    """The files of one kind in a folder.

    Args:
        kind: what they are, in the singular.
        names: their relative paths.
        one_file: whether one of the files is a source.
    """

    kind: str
    names: list[str]
    one_file: bool = False

    def describe(self) -> str:
        """Their number, kind and place."""
        where = self.names[0] if len(self.names) == 1 else self.folder
        number = f"{len(self.names):,} {self.kind}{'s' * (len(self.names) != 1)}"
        return f"{number} ({printable(where)})" if where else number

    @property
    def folder(self) -> str:
        """The deepest folder that contains all of them, relative; empty if it is the source itself."""
        return os.path.commonpath([os.path.dirname(name) for name in self.names])


def inputs(listing: Listing) -> list[Input]:
    """The kinds of input in a folder; tables and arrays count if they contain pictures."""
    found = [
        Input("picture", [name for name, _, _ in listing.pictures]),
        Input("idx file", [name for name in listing.others if IDX_FILE.fullmatch(os.path.basename(name))]),
    ]
    arrays, tables = listing.with_suffix((".npz",)), listing.with_suffix(TABLES)
    if found[0].names or found[1].names or (arrays and tables):
        arrays = [name for name in arrays[:OPENED] if _is_array(f"{listing.root}/{name}")]
        tables = tables if any(_is_table(f"{listing.root}/{name}") for name in tables[:OPENED]) else []
    found += [Input(".npz file", arrays, one_file=True), Input("table", tables, one_file=len(tables) == 1)]
    return [kind for kind in found if kind.names]


def refuse_mixed(listing: Listing) -> None:
    """Refuse a folder with several kinds of input, and a folder whose only input is deeper or is several `.npz` files.

    Raises:
        DataError: it names each kind, and the commands that choose one.
    """
    found = inputs(listing)
    root = printable(listing.root)
    if len(found) > 1:
        choices = [command for kind in found for command in _commands(listing.root, kind, found)]
        choices.append("move one kind to a folder of its own")
        text = " and ".join(kind.describe() for kind in found)
        raise DataError(f"{root} contains more than one kind of input: {text}", f"choose one: {', or '.join(choices)}")
    if found and found[0].kind == "idx file" and (folder := found[0].folder):
        message = f"{root} contains no pictures, but {found[0].describe()}"
        raise DataError(message, _command(f"{listing.root}/{folder}"))
    if found and found[0].kind == ".npz file":
        message = f"{root} contains {found[0].describe()}, and a source is one such file"
        raise DataError(message, _command(f"{listing.root}/{found[0].names[0]}"))


def _commands(root: str, kind: Input, found: list[Input]) -> list[str]:
    """The commands that choose a kind, at most one; none if no folder contains it alone."""
    if kind.one_file:
        return [_command(f"{root}/{kind.names[0]}")]
    inside = f"{kind.folder}/"
    others = [name for other in found if other is not kind for name in other.names]
    if not kind.folder or any(name.startswith(inside) for name in others):
        return []
    return [_command(f"{root}/{kind.folder}")]


def _command(path: str) -> str:
    return f"genflow prepare {shlex.quote(printable(path))}"


def _is_array(path: str) -> bool:
    try:
        return bool(read_npz(path))
    except (DataError, *READ_ERRORS):
        return False


def _is_table(path: str) -> bool:
    from genflow.data.sources.parquet import read_schema  # Arrow is slow to import
    from genflow.data.sources.parquet_cells import find_image_column

    try:
        return not find_image_column(read_schema(path)[0], Path(path).name).by_name
    except DataError:
        return False
