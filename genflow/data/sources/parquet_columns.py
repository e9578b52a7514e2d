"""Find the columns of labels and captions of Parquet and Arrow files."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa

from genflow.data.columns import (
    CAPTION_CHOICES,
    CAPTIONS,
    LABELS,
    candidates,
    choose,
    offer,
    several,
)
from genflow.data.sources.parquet_cells import is_text
from genflow.errors import UsageError

LABEL_CHOICES = ("auto", "none")  # a table has no class folders and no metadata file


@dataclass(frozen=True)
class TableColumns:
    """The columns of some files.

    Args:
        root: the folder, for messages.
        file: the first file, for messages.
        schema: its schema.
        picture: the column of pictures.
        first_rows: reads some columns of the first rows.
    """

    root: str
    file: str
    schema: pa.Schema
    picture: str
    first_rows: Callable[[list[str]], list[dict[str, Any]]]

    def find(self, option: Literal["labels", "captions"], wanted: str) -> tuple[str, list[str]]:
        """The column of the labels or captions, and warnings; an empty name if there is none.

        Args:
            option: what is wanted.
            wanted: the value of the option.

        Raises:
            UsageError: the requested column does not exist, or its type is wrong.
        """
        is_label = option == "labels"
        choices, names = (LABEL_CHOICES, LABELS) if is_label else (CAPTION_CHOICES, CAPTIONS)
        fits = _can_be_label if is_label else _can_be_captions
        columns = [name for name in self.schema.names if name != self.picture]
        possible = [name for name in columns if fits(self.schema.field(name).type)]
        if wanted not in choices:
            if wanted not in possible:
                message = f"{self.root} has no column of {option} {wanted!r}"
                raise UsageError(message, f"--{option} with one of {', '.join([*choices, *possible])}")
            return wanted, []
        if wanted == "none":
            return "", []
        named = choose(columns, names)
        found = [name for name in named if name in possible]
        wrong = [name for name in named if name not in possible]
        notes = [
            f"the column {name!r} of {self.file} is {self.schema.field(name).type}, so it has no {option}"
            for name in wrong
        ]
        notes.append(several(self.file, option, found))
        if not found:
            notes.append(offer(self.file, option, self._candidates[0 if is_label else 1]))
        return found[0] if found else "", [note for note in notes if note]

    @cached_property
    def _candidates(self) -> tuple[list[str], list[str]]:
        """Columns with other names that could be labels or captions, by their values in the first rows."""
        columns = [
            field.name
            for field in self.schema
            if _can_be_label(field.type)
            and field.name.casefold() not in (*LABELS, *CAPTIONS)
            and field.name != self.picture
        ]
        return candidates(self.first_rows(columns), columns) if columns else ([], [])


def declared_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The class names of a `ClassLabel` of the `datasets` library; empty if the column is none."""
    try:
        document = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(str(name) for name in document["info"]["features"][column]["names"])
    except (KeyError, ValueError, TypeError):
        return ()


def _can_be_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return is_text(kind) or any(test(kind) for test in numeric)


def _can_be_captions(kind: pa.DataType) -> bool:
    if any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_dictionary)):
        kind = kind.value_type
    return is_text(kind)
