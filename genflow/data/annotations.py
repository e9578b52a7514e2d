"""Labels and captions that other tools write next to pictures.

- `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, in the source or in any folder below it: one row for each
  picture, named by `file_name` relative to the folder of the file. This is the layout of the `datasets` library.
- `NAME.txt` or `NAME.caption` next to `NAME.png`: one caption a line.

References:
    ImageFolder of Hugging Face: https://huggingface.co/docs/datasets/image_dataset
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from genflow.data.sources.base import printable
from genflow.errors import DataError, UsageError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SIDECARS = (".txt", ".caption")
LABELS = ("label", "labels", "class", "classes", "category", "target", "y", "fine_label")
CAPTIONS = ("text", "caption", "captions", "prompt")
NAME = "file_name"
NUMBERS = re.compile(r"[-+.,0-9eE\s]+")  # a line of boxes or classes, such as YOLO's, is no caption
MODES = ("auto", "none", "folders", "metadata")  # of `data.labels`; any other value names a column


@dataclass
class Annotations:
    """The labels and captions of the pictures of a folder.

    Args:
        files: the files that were read, relative to the folder.
        labels: the label of each picture that has one, by the picture's relative path.
        captions: the captions of each picture that has some.
        column: the column of the labels.
        notes: one-line warnings.
    """

    files: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    column: str = ""
    notes: list[str] = field(default_factory=list)


def read(root: str, pictures: Sequence[str], others: Sequence[str], labels: str) -> Annotations:
    """Read the labels and captions of a folder.

    Args:
        root: the absolute path of the folder.
        pictures: the pictures' relative paths.
        others: the other files' relative paths.
        labels: `data.labels` of the recipe.

    Raises:
        DataError: a file is damaged, or names a picture that does not exist.
        UsageError: the requested column does not exist.
    """
    found = Annotations()
    tables = [name for name in others if os.path.basename(name).lower() in METADATA]
    sidecars = {name for name in others if os.path.splitext(name)[1].lower() in SIDECARS}
    known, columns = frozenset(pictures), list[str]()
    for table in sorted(tables):
        found.files.append(table)
        columns += _read_table(root, table, known, labels, found)
    if labels not in MODES and labels not in columns:
        where = f"{printable(root)} has no column {labels!r} in its metadata ({', '.join(METADATA)})"
        choices = sorted(set(columns) - {NAME})
        raise UsageError(where, f"--labels with one of {', '.join([*MODES, *choices])}")
    if labels == "metadata" and not found.labels:
        message = f"{printable(root)} has no labels in its metadata ({', '.join(METADATA)})"
        raise UsageError(message, "--labels folders, or none")
    sidecar_captions = _read_sidecars(root, pictures, sidecars, found)
    if any(name in found.captions for name in sidecar_captions):
        raise DataError(
            f"{printable(root)} has captions in {printable(sorted(tables)[0])} and in {len(sidecar_captions):,} "
            f"{'/'.join(SIDECARS)} files", "remove one kind")  # fmt: skip
    found.captions |= sidecar_captions
    if found.captions and (without := [name for name in pictures if name not in found.captions]):
        found.notes.append(
            f"{len(without):,} of {len(pictures):,} pictures have no caption, first {printable(without[0])}"
        )
    texts = set(found.captions.values())
    if len(found.captions) > 1 and len(texts) == 1:
        found.notes.append(f"all captions are {next(iter(texts))[0][:60]!r}, so a model learns nothing from them")
    if found.labels and (without := [name for name in pictures if name not in found.labels]):
        raise DataError(
            f"{len(without):,} of {len(pictures):,} pictures have no {found.column!r} in {printable(found.files[0])}, "
            f"first {printable(without[0])}", "add the rows, or use --labels folders or none")  # fmt: skip
    return found


def as_label(value: Any) -> str:
    """A label as text; a whole float, which many tools write for an integer, loses its `.0`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def as_captions(value: Any) -> tuple[str, ...]:
    """The non-empty captions of a cell: a text, or a list of texts."""
    texts = value if isinstance(value, list | tuple) else [value]
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())


def first_of(columns: Sequence[str], wanted: Sequence[str]) -> str:
    """The first of some names that is a column; empty if there is none."""
    return next((name for name in wanted if name in columns), "")


def _read_table(root: str, table: str, known: frozenset[str], labels: str, found: Annotations) -> list[str]:
    """Add the rows of a table to `found`; return its columns."""
    folder = table.rpartition("/")[0]
    missing: list[str] = []
    repeated: list[str] = []
    seen: set[str] = set()
    columns: dict[str, None] = {}
    rows = 0
    for number, row in _rows(f"{root}/{table}"):
        where = f"{printable(table)} {number}"
        columns |= dict.fromkeys(row)
        if None in row:  # how the csv module marks cells without a column
            raise DataError(f"{where} has more cells than columns", "put texts with commas in double quotes")
        if not isinstance(row.get(NAME), str):
            message = f"{where} has no {NAME!r}, but {', '.join(map(repr, row)) or 'no column'}"
            raise DataError(message, f"name the picture of every row in the column {NAME!r}")
        relative = row[NAME].replace("\\", "/") if row[NAME] not in known else row[NAME]  # written on Windows
        name = os.path.normpath(f"{folder}/{relative}" if folder else relative)
        rows += 1
        if name not in known:
            missing.append(row[NAME])
            continue
        if name in seen:
            repeated.append(name)
            continue
        seen.add(name)
        if texts := as_captions(row.get(first_of(list(row), CAPTIONS))):
            found.captions[name] = texts
        column = labels
        if labels in MODES:
            column = first_of(list(row), LABELS) if labels in ("auto", "metadata") else ""
        if column and row.get(column) not in (None, ""):
            found.column, found.labels[name] = column, as_label(row[column])
    if repeated:
        message = f"{printable(table)} names {len(repeated):,} pictures more than once, first {printable(repeated[0])}"
        found.notes.append(f"{message}; the first row of each counts")
    if missing and len(missing) == rows:
        raise DataError(f"{printable(table)} names no picture of its folder, first {missing[0]!r}",
                        f"write {NAME} relative to the folder of the file")
    if missing:
        message = f"{printable(table)} names {len(missing):,} pictures that are not there, first {missing[0]!r}"
        found.notes.append(message)
    return list(columns)


def _rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table, each with its place, such as `line 3`.

    Raises:
        DataError: the table is damaged.
    """
    shown, suffix = printable(path), os.path.splitext(path)[1].lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            for number, row in enumerate(pq.read_table(path).to_pylist()):
                yield f"row {number}", row
            return
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise DataError(f"{shown} is not UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {shown}: {error}", "copy or download the file again") from error
    if suffix == ".csv":
        for number, row in enumerate(csv.DictReader(io.StringIO(text)), 2):
            yield f"line {number}", row
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{shown} line {number} is not JSON: {error}", "write one JSON object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{shown} line {number} is not a JSON object", "write one JSON object a line")
        yield f"line {number}", row


def _read_sidecars(
    root: str, pictures: Sequence[str], sidecars: set[str], found: Annotations
) -> dict[str, tuple[str, ...]]:
    """The captions of the text files that have the name of a picture."""
    captions, empty = {}, list[str]()
    by_stem = {os.path.splitext(name)[0]: name for name in sorted(sidecars)}
    for picture in pictures:
        name = by_stem.get(os.path.splitext(picture)[0]) or next(
            (f"{picture}{end}" for end in SIDECARS if f"{picture}{end}" in sidecars), "")
        if not name:
            continue
        found.files.append(name)
        try:
            with open(f"{root}/{name}", encoding="utf-8-sig") as file:
                lines = file.read().split("\n")
                texts = as_captions([line for line in lines if not NUMBERS.fullmatch(line)])
        except UnicodeDecodeError as error:
            raise DataError(f"the caption {printable(name)} is not UTF-8", "save it as UTF-8") from error
        except OSError as error:
            raise DataError(f"cannot read the caption {printable(name)}: {error.strerror}") from error
        if texts:
            captions[picture] = texts
        else:
            empty.append(name)
    if empty:
        message = f"{len(empty):,} caption files are empty or hold numbers alone, first {printable(empty[0])}"
        found.notes.append(message)
    return captions
