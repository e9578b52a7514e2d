"""Columns of tables about pictures: which one holds the labels, which one the captions, and which values are valid."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

LABEL_CHOICES = ("auto", "none", "folders", "metadata")  # of `data.labels`; any other value names a column
CAPTION_CHOICES = ("auto", "none")  # of `data.captions`; any other value names a column
LABELS = ("label", "labels", "class", "classes", "category", "target", "y", "fine_label")
CAPTIONS = ("text", "caption", "captions", "prompt")
OF_FILES = frozenset((
    *("width", "height", "size", "depth", "channels", "split", "fold", "url", "xmin", "ymin", "xmax", "ymax"),
    *("id", "index", "md5", "sha256", "license", "file_size"),
))  # columns that are no labels, although their values repeat
FRACTION = re.compile(r"[-+]?[0-9]*\.[0-9]*[1-9][0-9]*([eE][-+]?[0-9]+)?")
WHOLE = re.compile(r"([-+]?[0-9]+)(\.0*)?")
NAMED = 5  # columns that a warning names


def choose(columns: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The columns with one of some names, in any case, in the order of the names; the first one is used."""
    return [column for name in wanted for column in columns if column.casefold() == name]


def several(where: str, what: str, found: Sequence[str]) -> str:
    """A warning if a table has several columns of one meaning; empty otherwise.

    Args:
        where: the table.
        what: the option, `labels` or `captions`.
        found: the columns, of which the first is used.
    """
    if len(found) < 2:
        return ""
    others = ", ".join(map(repr, found[1:]))
    return f"{where} has several columns of {what}: {found[0]!r} is used, not {others}; --{what} COLUMN uses another"


def is_missing(value: Any) -> bool:
    """Whether a cell has no value."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def as_label(value: Any) -> str:
    """A label as text; a whole float, which many tools write for an integer, loses its `.0`."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    match = WHOLE.fullmatch(text)
    return match[1] if match and match[2] else text


def as_captions(value: Any) -> tuple[str, ...]:
    """The non-empty captions of a cell: a text, or a list of texts."""
    texts = value if isinstance(value, list | tuple) else [value]
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())


def no_label(values: Collection[Any]) -> str:
    """Why values are no labels: they are fractions, lists or objects; empty if they are labels.

    Args:
        values: the values of a column, without missing ones; numbers may be texts.
    """
    if nested := next((value for value in values if isinstance(value, list | tuple | dict)), None):
        return f"{'objects' if isinstance(nested, dict) else 'lists'}, first {str(nested)[:60]}"
    texts = {str(value).strip() for value in values if not isinstance(value, bool)}
    fraction = next((text for text in map(str, values) if FRACTION.fullmatch(text.strip())), "")
    if fraction and all(FRACTION.fullmatch(text) or WHOLE.fullmatch(text) for text in texts):
        return f"fractions, first {fraction}"
    return ""


def candidates(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns that could be labels, and those that could be captions, by their values.

    Labels repeat: there are at most half as many as rows. Captions are texts of several words, and most differ.
    """
    labels, captions = [], []
    for column in columns:
        values = [row[column] for row in rows if not is_missing(row.get(column))]
        if not values or column.casefold() in OF_FILES or any(isinstance(value, dict) for value in values):
            continue
        distinct = len({str(value) for value in values})
        words = sum(isinstance(value, str) and " " in value.strip() for value in values)
        if 2 * words > len(values) and 2 * distinct > len(values):
            captions.append(column)
        elif 1 < distinct <= max(2, len(values) // 2) and not no_label(values):
            labels.append(column)
    return labels, captions


def offer(where: str, option: str, columns: Sequence[str]) -> str:
    """A warning that names columns that are not read, and the option that reads one; empty without columns."""
    if not columns:
        return ""
    names = ", ".join(map(repr, columns[:NAMED])) + (", ..." if len(columns) > NAMED else "")
    verb = "columns {} are" if len(columns) > 1 else "column {} is"
    return f"the {verb.format(names)} not read from {where}; --{option} {columns[0]} uses it as {option}"
