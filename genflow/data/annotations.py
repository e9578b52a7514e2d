"""Labels and captions that other tools write next to pictures: what each file says, put together.

`label_files.py` reads the files. Several files may describe the same pictures, for example captions in one and labels
in another. Two files that contradict each other are an error, so that none is ignored. A file that looks like labels or
captions and is not read is named in a warning.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from genflow.data.columns import (
    CAPTION_CHOICES,
    CAPTIONS,
    LABEL_CHOICES,
    LABELS,
    as_captions,
    as_label,
    candidates,
    choose,
    is_missing,
    no_label,
    offer,
    several,
)
from genflow.data.label_files import METADATA, SIDECARS, Pictures, Table, is_table, read_sidecars, read_table
from genflow.data.sources.base import printable
from genflow.data.unread import by_ending, lists
from genflow.errors import DataError, UsageError

T = TypeVar("T")
NOTES = 5  # warnings about files that are not read


@dataclass
class Annotations:
    """The labels and captions of the pictures of a folder.

    Args:
        files: the files that labels or captions were read from, relative to the folder.
        labels: the label of each picture that has one, by the picture's relative path.
        captions: the captions of each picture that has some.
        column: the column of the labels.
        table: the file of the labels.
        notes: one-line warnings.
    """

    files: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    column: str = ""
    table: str = ""
    notes: list[str] = field(default_factory=list)


def read(root: str, pictures: Sequence[str], others: Sequence[str], labels: str, captions: str) -> Annotations:
    """Read the labels and captions of a folder.

    Args:
        root: the absolute path of the folder.
        pictures: the pictures' relative paths.
        others: the other files' relative paths.
        labels, captions: `data.labels` and `data.captions` of the recipe.

    Raises:
        DataError: a metadata file is damaged or names no picture, or two files contradict each other.
        UsageError: a requested column does not exist, or contains no labels.
    """
    if labels in ("none", "folders") and captions == "none":
        return Annotations()
    index, unread, tables = Pictures(pictures), dict[str, str](), list[Table]()
    for file in sorted(filter(is_table, others)):
        table = read_table(root, file, index)
        if isinstance(table, Table):
            tables.append(table)
        else:
            unread[file] = table
    sidecars = [] if captions == "none" else read_sidecars(root, pictures, others)
    return _Merge(root, labels, captions, tables, sidecars, unread).annotations(pictures, others)


@dataclass
class _Merge:
    """What some tables say about pictures, put together.

    Args:
        root: the absolute path of the folder.
        labels, captions: the options.
        tables, sidecars: the tables, and the caption files.
        unread: why files are not read.
    """

    root: str
    labels: str
    captions: str
    tables: list[Table]
    sidecars: list[Table]
    unread: dict[str, str]
    found: Annotations = field(default_factory=Annotations)

    def annotations(self, pictures: Sequence[str], others: Sequence[str]) -> Annotations:
        """All labels and captions."""
        self._check_columns()
        labels = list[tuple[Table, dict[str, str]]]()
        captions = list[tuple[Table, dict[str, tuple[str, ...]]]]()
        used = list[Table]()
        for table in [*self.tables, *self.sidecars]:
            if of_labels := self._labels_of(table):
                labels.append((table, of_labels))
            if of_captions := self._captions_of(table):
                captions.append((table, of_captions))
            if of_labels or of_captions or table in self.sidecars:
                self.found.files += table.files
                self.found.notes += table.notes
                used.append(table)
        self.found.labels = self._together(labels, "labels")
        self.found.captions = self._together(captions, "captions")
        self._check_complete(pictures)
        self._say_what_is_not_read(pictures, others, used)
        return self.found

    def _check_columns(self) -> None:
        columns = list(dict.fromkeys(column for table in self.tables for column in table.columns))
        endings = [ending for table in self.sidecars for ending in table.columns]
        for option, wanted, choices, known in (
            ("labels", self.labels, LABEL_CHOICES, columns),
            ("captions", self.captions, CAPTION_CHOICES, columns + endings),
        ):
            if wanted not in choices and wanted not in known:
                where = f"{printable(self.root)} has no column {wanted!r} in its metadata ({self._where()})"
                raise UsageError(where, f"--{option} with one of {', '.join([*choices, *sorted(set(known))])}")

    def _where(self) -> str:
        """The tables that were read, and the first one that could not be; or those that could be read."""
        names = [printable(table.file) for table in self.tables[:NOTES]]
        names += [f"{printable(file)} is not read: {reason}" for file, reason in list(self.unread.items())[:1]]
        return ", ".join(names or METADATA)

    def _labels_of(self, table: Table) -> dict[str, str]:
        """The labels in a table, and a warning if its columns are ambiguous."""
        if self.labels in ("none", "folders"):
            return {}
        shown = printable(table.file)
        columns = choose(table.columns, LABELS) if self.labels in LABEL_CHOICES else [self.labels]
        column = columns[0] if columns else ""
        values = {
            picture: [row[column] for row in rows if not is_missing(row.get(column))]
            for picture, rows in table.rows.items()
        }
        values = {picture: found for picture, found in values.items() if found}
        if reason := no_label([value for found in values.values() for value in found]):
            if self.labels != "auto":
                message = f"the column {column!r} of {shown} has {reason}"
                raise UsageError(message, "--labels with another column, folders or none")
            self.found.notes.append(f"the column {column!r} of {shown} has {reason}: it is no label")
            return {}
        if note := several(shown, "labels", columns):
            self.found.notes.append(note)
        labels = {picture: list(dict.fromkeys(map(as_label, found))) for picture, found in values.items()}
        if many := [picture for picture, found in labels.items() if len(found) > 1]:
            first = f"first {printable(many[0])} ({', '.join(labels[many[0]][:3])})"
            number = f"{len(many):,} picture{'s' * (len(many) > 1)}"
            message = f"{number} with several labels in the column {column!r}, {first}"
            if os.path.basename(table.file).lower() in METADATA or self.labels != "auto":
                hint = "keep one label a picture, or use --labels folders or none"
                raise DataError(f"{shown}: {message}", hint)
            self.unread[table.file] = message
            return {}
        if labels and not self.found.column:
            self.found.column, self.found.table = column, table.file
        return {picture: found[0] for picture, found in labels.items()}

    def _captions_of(self, table: Table) -> dict[str, tuple[str, ...]]:
        """The captions in a table, and a warning if its columns are ambiguous."""
        columns = choose(table.columns, (*CAPTIONS, *SIDECARS)) if self.captions == "auto" else [self.captions]
        if self.captions == "none" or not columns:
            return {}
        column = columns[0]
        found = {
            picture: tuple(dict.fromkeys(text for row in rows for text in as_captions(row.get(column))))
            for picture, rows in table.rows.items()
        }
        found = {picture: texts for picture, texts in found.items() if texts}
        if column in table.columns and not found and self.captions != "auto":
            message = f"the column {column!r} of {printable(table.file)} contains no texts"
            raise UsageError(message, "--captions with another column, or none")
        if found and (note := several(printable(table.file), "captions", columns)):
            self.found.notes.append(note)
        return found

    def _together(self, parts: list[tuple[Table, dict[str, T]]], what: str) -> dict[str, T]:
        """The union of what some tables say.

        Raises:
            DataError: two tables contradict each other.
        """
        every: dict[str, T] = {}
        for number, (table, values) in enumerate(parts):
            if differ := [name for name in values if every.get(name, values[name]) != values[name]]:
                other = next(first for first, earlier in parts[:number] if differ[0] in earlier)
                columns = sorted({column for each, _ in parts for column in self._columns_of(each, what)})
                choice = " or ".join(f"--{what} {name}" for name in (columns if len(columns) > 1 else ["none"]))
                pictures = f"{len(differ):,} picture{'s' * (len(differ) > 1)}, first {printable(differ[0])}"
                one, two = _shown(every[differ[0]]), _shown(values[differ[0]])
                raise DataError(
                    f"{printable(self.root)} has two {what} for {pictures}: {one} in {printable(other.file)}, and "
                    f"{two} in {printable(table.file)}",
                    f"remove one kind of file, or choose with {choice}",
                )
            every |= values
        return every

    def _columns_of(self, table: Table, what: str) -> list[str]:
        return choose(table.columns, LABELS if what == "labels" else (*CAPTIONS, *SIDECARS))[:1]

    def _check_complete(self, pictures: Sequence[str]) -> None:
        labels, column = self.found.labels, self.found.column
        if self.labels == "metadata" and not labels:
            message = f"{printable(self.root)} has no labels in its metadata ({self._where()})"
            raise UsageError(message, "--labels folders, or none")
        if labels and (without := [name for name in pictures if name not in labels]):
            raise DataError(
                f"{len(without):,} of {len(pictures):,} pictures have no {column!r} in "
                f"{printable(self.found.table)}, first {printable(without[0])}",
                "add the rows, or use --labels folders or none",
            )

    def _say_what_is_not_read(self, pictures: Sequence[str], others: Sequence[str], used: list[Table]) -> None:
        """Warn about columns and files that may be labels or captions, and are not read."""
        notes = list[str]()
        for table in self.tables:
            rows = [row for found in table.rows.values() for row in found]
            wanted = [*LABELS, *CAPTIONS]
            of_labels, of_captions = candidates(rows, [c for c in table.columns if c.casefold() not in wanted])
            offers = []
            if not self.found.labels and self.labels in ("auto", "metadata"):
                offers.append(offer(printable(table.file), "labels", of_labels))
            if not self.found.captions and self.captions == "auto":
                offers.append(offer(printable(table.file), "captions", of_captions))
            notes += offers
            if table not in used and table.file not in self.unread and not any(offers):
                self.unread[table.file] = "it has no column of labels or captions that is used"
        reasons = Counter((os.path.basename(file), reason) for file, reason in self.unread.items())
        for (name, reason), count in reasons.items():
            first = next(file for file in self.unread if os.path.basename(file) == name)
            what = f"{printable(first)} is" if count == 1 else f"{count:,} files such as {printable(first)} are"
            notes.append(f"{what} not read for labels or captions: {reason}")
        stems = {os.path.splitext(name)[0] for name in pictures} | set(pictures)
        sidecars = {file for file in others if file.lower().endswith(SIDECARS) and os.path.splitext(file)[0] in stems}
        rest = [file for file in others if file not in sidecars and not is_table(file)]
        notes += by_ending(rest) + lists(self.root, rest, pictures)
        notes = list(dict.fromkeys(note for note in notes if note))
        self.found.notes += notes[:NOTES]
        if len(notes) > NOTES:
            self.found.notes.append(f"{len(notes) - NOTES} more warnings about files that are not read are left out")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else " / ".join(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
