"""Parquet and Arrow files with a column of pictures, as encoded bytes or as arrays, and a column of labels.

The source is one file or a folder of files, for example a data set that `datasets` saved or downloaded. Files are read
batch by batch. The columns are found by type and common names; class names come from the metadata of `datasets`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genflow.data.columns import as_captions
from genflow.data.images import strict_pillow_warnings
from genflow.data.sources import Opens
from genflow.data.sources.base import (
    BadRecord,
    ImageSpec,
    ImageSummary,
    Record,
    Source,
    dataset_name,
    printable,
    require_in_train,
)
from genflow.data.sources.folder import SPLIT_ORDER, SPLITS, natural
from genflow.data.sources.parquet_cells import (
    ImageColumn,
    file_facts,
    find_image_column,
    folders_of,
    same_kind,
)
from genflow.data.sources.parquet_columns import TableColumns, declared_names
from genflow.data.sources.walk import TABLES, list_folder
from genflow.data.unread import by_ending
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import Data

OPENS = Opens(files=(".parquet", ".arrow", ".feather", ".ipc"), order=8)
LISTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".xlsx")  # may contain labels or captions
CURE = "the labels and captions of Parquet and Arrow files are their columns"
BATCH_ROWS = 256  # rows of a Parquet file in memory at a time
MOST_ROWS_UNCHECKED = 10**6  # a Parquet file with more rows has at least one byte per row
READ_ERRORS = (OSError, pa.ArrowException, ValueError)


def batches(path: str, columns: list[str], wanted: np.ndarray) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the batches of a file that contain rows of `wanted`, each with the number of its first row.

    Raises:
        DataError: the file is damaged.
    """
    try:
        if _is_parquet(path):
            yield from _parquet_batches(path, columns, wanted)
            return
        start = 0
        for batch in _arrow_batches(path):
            if np.searchsorted(wanted, start) < np.searchsorted(wanted, start + batch.num_rows):
                chosen = batch.select(columns)
                chosen.validate(full=True)  # offsets that point outside the file end the process otherwise
                yield start, chosen
            start += batch.num_rows
    except READ_ERRORS as error:
        message = f"{printable(path)} is damaged: {str(error).splitlines()[0]}"
        raise DataError(message, "copy or download the file again") from error


def _parquet_batches(path: str, columns: list[str], wanted: np.ndarray) -> Iterator[tuple[int, pa.RecordBatch]]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        start = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if np.searchsorted(wanted, start) < np.searchsorted(wanted, start + count):
                offset = start
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                    yield offset, batch
                    offset += batch.num_rows
            start += count


def _arrow_batches(path: str) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(path) as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                yield _checked(reader.get_batch(number))
        else:
            source.seek(0)
            for batch in pa.ipc.open_stream(source):
                yield _checked(batch)


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    batch.validate()  # compares the declared number of rows with the bytes of each column
    return batch


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


def read_schema(path: str) -> tuple[pa.Schema, int]:
    """A file's schema and its number of rows.

    Raises:
        DataError: the file is damaged, or of another format.
    """
    try:
        if _is_parquet(path):
            with pq.ParquetFile(path) as file:
                rows, size = file.metadata.num_rows, Path(path).stat().st_size
                if rows > max(MOST_ROWS_UNCHECKED, size):
                    raise ValueError(f"it declares {rows:,} rows and has {size:,} bytes")
                return file.schema_arrow, rows
        with pa.memory_map(path) as source:
            magic = source.read(6)
            source.seek(0)
            schema = (pa.ipc.open_file(source) if magic == b"ARROW1" else pa.ipc.open_stream(source)).schema
        return schema, sum(batch.num_rows for batch in _arrow_batches(path))
    except READ_ERRORS as error:
        kind = "Parquet" if _is_parquet(path) else "Arrow"
        message = f"{printable(path)} is not a readable {kind} file: {str(error).splitlines()[0]}"
        raise DataError(message, "copy or download the file again") from error


def open_path(path: Path, data: Data) -> Source | None:
    """Open a file, or a folder with such files; return None for other paths.

    Raises:
        DataError: the folder contains files of several types.
    """
    if path.is_dir():
        files = table_files(path)
        if not files:
            return None
        listing = list_folder(str(path))
        found = Tables(dataset_name(path.name), str(path), files, data.labels, data.captions)
        found.skipped, found.notes = listing.skipped(files), by_ending(listing.with_suffix(LISTS), CURE)
        return found
    is_table = path.suffix.lower() in OPENS.files
    name = dataset_name(path.stem)
    return Tables(name, str(path.parent), [path.name], data.labels, data.captions) if is_table else None


@dataclass(frozen=True)
class TablePart:
    """Some rows of some files.

    Args:
        root: the folder of the files.
        file_rows: each file's name, and the requested row numbers in ascending order.
        labels: one per row.
        cell: the column of pictures.
        captions: the column of captions; empty if there is none.
    """

    root: str
    file_rows: list[tuple[str, np.ndarray]]
    labels: np.ndarray
    cell: ImageColumn
    captions: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def _rows(self, *columns: str) -> Iterator[tuple[str, pa.RecordBatch, int, tuple[str, ...]]]:
        """Yield each row's id, a batch that contains it, its index there, and the folders of its picture's path."""
        for name, rows in self.file_rows:
            folders = folders_of(self.root, name)
            for start, batch in batches(f"{self.root}/{name}", list(columns), rows):
                in_batch = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + batch.num_rows)]
                for row in in_batch:
                    yield f"{printable(name)}#{row}", batch, int(row) - start, folders

    def summarize(self) -> ImageSummary:
        with strict_pillow_warnings():
            rows = self._rows(self.cell.column)
            return ImageSummary.merge(self.cell.summarize(batch.column(0), row, at) for _, batch, row, at in rows)

    def records(self, spec: ImageSpec) -> Iterator[Record | BadRecord]:
        with strict_pillow_warnings():
            columns = [self.cell.column, *([self.captions] if self.captions else [])]
            for (id, batch, row, folders), label in zip(self._rows(*columns), self.labels, strict=True):
                value = self.cell.decode(batch.column(self.cell.column), row, folders, spec)
                if isinstance(value, str):
                    yield BadRecord(id, value)
                    continue
                texts = as_captions(batch.column(self.captions)[row].as_py()) if self.captions else ()
                yield Record(id, value, int(label), captions=texts)


@dataclass
class Tables(Source):
    """Parquet or Arrow files.

    Args:
        root: the absolute path of the folder.
        files: the names of the files in it, in order.
        labels, captions_from: where they come from, `data.labels` and `data.captions` of the recipe.
    """

    root: str
    files: list[str]
    labels: str = "auto"
    captions_from: str = "auto"
    smallest_shard = 128
    has_columns = True

    @property
    def levels(self) -> int:
        return self._cell.levels

    @property
    def about(self) -> dict[str, Any]:
        path = self.root if len(self.files) > 1 else f"{self.root}/{self.files[0]}"
        return {"kind": "table", "path": printable(path)}

    def listing(self) -> list[list[Any]]:
        facts = [(name, (Path(self.root) / name).stat()) for name in self.files]
        return [*([name, fact.st_size, fact.st_mtime_ns] for name, fact in facts), *self._named_files()]

    def _named_files(self) -> list[list[Any]]:
        """Name, size and mtime of each picture file that the tables name instead of containing its bytes."""
        found: list[list[Any]] = []
        first = batches(f"{self.root}/{self.files[0]}", [self._cell.column], np.arange(1))
        if not any(batch.num_rows and self._cell.path(batch.column(0), 0) for _, batch in islice(first, 1)):
            return []
        for name, count in (file for files in self._layout.values() for file in files):
            folders = folders_of(self.root, name)
            for _, batch in batches(f"{self.root}/{name}", [self._cell.column], np.arange(count)):
                paths = (self._cell.path(batch.column(0), row) for row in range(batch.num_rows))
                found += [facts for path in paths if path and (facts := file_facts(path, folders))]
        return found

    def splits(self) -> dict[str, int]:
        return {split: sum(count for _, count in files) for split, files in self._layout.items()}

    def class_names(self) -> tuple[str, ...]:
        return self._labels[1]

    def summarize(self, options: Data) -> ImageSummary | None:
        return None

    def part(self, split: str, rows: np.ndarray) -> TablePart:
        file_rows, start = [], 0
        for name, count in self._layout[split]:
            in_file = rows[(rows >= start) & (rows < start + count)] - start
            if len(in_file):
                file_rows.append((name, in_file))
            start += count
        labels = self._labels[0].get(split)
        chosen = np.zeros(len(rows), np.int64) if labels is None else labels[rows]
        return TablePart(self.root, file_rows, chosen, self._cell, self._caption_column)

    @cached_property
    def _schemas(self) -> dict[str, tuple[pa.Schema, int]]:
        """Each file's schema and number of rows."""
        return {name: read_schema(f"{self.root}/{name}") for name in self.files}

    @property
    def _schema(self) -> pa.Schema:
        return self._schemas[self.files[0]][0]

    @cached_property
    def _cell(self) -> ImageColumn:
        cell = find_image_column(self._schema, printable(f"{self.root}/{self.files[0]}"))
        if cell.several:
            self.notes.append(f"each row of the column {cell.column!r} is a list; only its first picture is used")
        return cell

    @cached_property
    def _layout(self) -> dict[str, list[tuple[str, int]]]:
        """Each split's files and their numbers of rows; the beginning of a file's name decides its split."""
        grouped: dict[str, list[tuple[str, int]]] = {}
        for name in self.files:
            schema, count = self._schemas[name]
            self._check_schema(name, schema)
            grouped.setdefault(_split(name), []).append((name, count))
        if "train" not in grouped:
            grouped = {"train": [file for files in grouped.values() for file in files]}
        rows = {split: sum(count for _, count in files) for split, files in grouped.items()}
        filled = {split: grouped[split] for split in SPLIT_ORDER if rows.get(split)}
        if "train" not in filled:
            raise DataError(f"{printable(self.root)} has no rows in the training split")
        return filled

    def _check_schema(self, name: str, schema: pa.Schema) -> None:
        """Compare a file's column of pictures with that of the first file."""
        column, first = self._cell.column, printable(self.files[0])
        hint = "use a folder of files with the same columns, or one file"
        if column not in schema.names:
            raise DataError(f"{printable(name)} has no column {column!r}, but {first} has", hint)
        kind, expected = schema.field(column).type, self._schema.field(column).type
        if find_image_column(schema, printable(name)) != self._cell or not same_kind(kind, expected):
            raise DataError(f"the column {column!r} is {kind} in {printable(name)}, but {expected} in {first}", hint)

    @cached_property
    def _labels(self) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Each split's labels, 0..classes-1, and the classes' names."""
        column = self._find_column("labels", self.labels)
        if not column:
            return {}, ()
        found = {split: self._read_labels(column, files) for split, files in self._layout.items()}
        names = declared_names(self._schemas[self._layout["train"][0][0]][0], column)
        if not all(found.values()):  # a split has fractions
            return {}, ()
        every = sorted({label for labels in found.values() for label in labels}, key=lambda v: natural(str(v)))
        if names and all(isinstance(label, int) for label in every):
            if every[0] == every[-1] == -1:  # how `datasets` marks missing labels
                return {}, ()
            if wrong := [label for label in every if not 0 <= label < len(names)]:
                message = f"{printable(self.root)}: the label {wrong[0]} is none of the {len(names)} declared classes"
                raise DataError(message, f"use labels from 0 to {len(names) - 1}")
            self._require_in_train({split: [names[label] for label in set(found[split])] for split in found})
            return {split: np.array(labels, np.int64) for split, labels in found.items()}, names
        self._require_in_train(found)
        if len(every) < 2:
            return {}, ()
        number = {label: index for index, label in enumerate(every)}
        coded = {split: np.array([number[label] for label in labels], np.int64) for split, labels in found.items()}
        return coded, tuple(str(label) for label in every)

    def _require_in_train(self, found: dict[str, list[Any]]) -> None:
        classes = {split: sorted(set(labels), key=lambda v: natural(str(v))) for split, labels in found.items()}
        require_in_train(printable(self.root), classes)

    def _find_column(self, option: Literal["labels", "captions"], wanted: str) -> str:
        """The column of the labels or captions in any of the files; empty if there is none.

        Raises:
            DataError: only some files have the column.
        """
        schemas = {name: schema for name, (schema, _) in self._schemas.items()}
        fields = {field.name: field for schema in schemas.values() for field in schema}
        schema, file = pa.schema(list(fields.values())), self._layout["train"][0][0]
        schema = schema.with_metadata(schemas[file].metadata)
        columns = TableColumns(printable(self.root), printable(file), schema, self._cell.column, self._first_rows)
        column, notes = columns.find(option, wanted)
        self.notes += notes
        without = [name for name, (schema, rows) in self._schemas.items() if rows and column not in schema.names]
        if column and without:
            other = next(name for name, schema in schemas.items() if column in schema.names)
            message = f"{printable(without[0])} has no column {column!r}, but {printable(other)} has"
            raise DataError(message, f"add the column, or use --{option} none")
        return column

    def _first_rows(self, columns: list[str]) -> list[dict[str, Any]]:
        """The first rows of the first file that has some columns."""
        files = [name for name, (schema, _) in self._schemas.items() if set(columns) <= set(schema.names)]
        first = next(batches(f"{self.root}/{files[0]}", columns, np.arange(BATCH_ROWS)), None) if files else None
        rows: list[dict[str, Any]] = first[1].slice(0, BATCH_ROWS).to_pylist() if first else []
        return rows

    @cached_property
    def _caption_column(self) -> str:
        """The column of the captions: a text, or a list of texts; empty if there is none."""
        return self._find_column("captions", self.captions_from)

    @property
    def captions(self) -> bool:
        return bool(self._caption_column)

    def _read_labels(self, column: str, files: list[tuple[str, int]]) -> list[Any]:
        labels: list[Any] = []
        for name, count in files:
            for start, batch in batches(f"{self.root}/{name}", [column], np.arange(count)):
                values = batch.column(0)
                is_number = pa.types.is_floating(values.type)
                missing = pc.is_null(values, nan_is_null=is_number).to_numpy(zero_copy_only=False)
                if missing.any():
                    row = start + int(missing.argmax())
                    message = f"{printable(name)}#{row} has no {column}"
                    raise DataError(message, "add the value, or use --labels none")
                found = values.to_pylist()
                if is_number:
                    if fraction := next((value for value in found if not value.is_integer()), None):
                        if column == self.labels:
                            message = f"the column {column!r} of {printable(name)} has fractions, first {fraction:g}"
                            raise UsageError(message, "--labels with another column, or none")
                        self.notes.append(f"the column {column!r} of {printable(name)} has fractions: it is no label")
                        return []
                    found = [int(value) for value in found]
                labels += found
        return labels


def _split(name: str) -> str:
    """The split at the beginning of a file's name or of its folder's; `train` by default."""
    for word in reversed(name.split("/")):
        match = re.match(r"(train|validation|valid|val|test)(?![a-z0-9])", word, re.IGNORECASE)
        if match:
            return SPLITS[match[1].lower()]
    return "train"


def table_files(folder: Path) -> list[str]:
    """The Parquet or Arrow files below a folder, in natural order, without the cache files of `datasets`.

    Raises:
        DataError: the files are of several types.
    """
    listed = list_folder(str(folder)).with_suffix(TABLES)
    found = [name for name in listed if not name.rpartition("/")[2].startswith("cache-")]
    kinds = {Path(name).suffix.lower() for name in found}
    if len(kinds) > 1:
        raise DataError(
            f"{printable(str(folder))} contains files of several types: {', '.join(sorted(kinds))}",
            "use one file, or a folder with files of one type",
        )
    return sorted(found, key=lambda name: [natural(word) for word in name.split("/")])
