"""A folder of pictures: flat, one folder per class, or `train`, `val` and `test` folders of either layout.

- The order is natural (`2.png` before `10.png`) and does not depend on the file system.
- `walk.py` decides which files are pictures, and which hidden and system files are passed over.
- The class is the first folder below the split, unless a metadata file has labels (`genflow.data.annotations`). If a
  split has both pictures and class folders, the data has no labels. Folders that cut a set into parts (`parts.py`) are
  no classes; `--labels folders` makes them classes.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from genflow.data import annotations, images, skipped
from genflow.data.annotations import Annotations
from genflow.data.columns import LABEL_CHOICES
from genflow.data.images import SUPPORTED, strict_pillow_warnings
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
from genflow.data.sources.parts import are_parts
from genflow.data.sources.walk import Listing, list_folder
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import Data

OPENS = Opens(folders=("pictures",), order=7)
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SPLIT_ORDER = ("train", "val", "test")


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sort key for natural order: digits compare as numbers, and letters ignore case."""
    words = re.findall(r"[0-9]+|[^0-9]+", text)
    key = [(0, int(word), "") if word[0] in "0123456789" else (1, 0, word.casefold()) for word in words]
    return [*key, (2, 0, text)]


def open_path(path: Path, data: Data) -> Source | None:
    """Open a folder that contains pictures; return None for other paths."""
    folder = Folder(dataset_name(path.name), str(path), data.labels, data.captions)
    return folder if path.is_dir() and folder.holds_pictures() else None


@dataclass(frozen=True)
class FolderPart:
    """Some pictures of a folder."""

    root: str
    names: list[str]
    labels: list[int]
    captions: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.names)

    def summarize(self) -> ImageSummary:
        return ImageSummary.merge(self._summaries())

    def _summaries(self) -> Iterator[ImageSummary]:
        with strict_pillow_warnings():
            for name in self.names:
                try:
                    with images.open_image_file(f"{self.root}/{name}") as file:
                        yield images.read_header(file)
                except Exception:  # decoding the picture will report the reason
                    yield ImageSummary()

    def records(self, spec: ImageSpec) -> Iterator[Record | BadRecord]:
        with strict_pillow_warnings():
            for name, label, captions in zip(self.names, self.labels, self.captions, strict=True):
                file = None
                try:
                    with images.open_image_file(f"{self.root}/{name}") as file:
                        try:
                            yield Record(printable(name), images.decode(file, spec), label, captions=captions)
                        except Exception as error:
                            yield BadRecord(printable(name), images.describe_error(error, file))
                except images.UnreadableImage as error:
                    yield BadRecord(printable(name), str(error))


@dataclass
class Folder(Source):
    """A folder of pictures.

    Args:
        root: the absolute path of the folder.
        labels, captions_from: where they come from, `data.labels` and `data.captions` of the recipe.
    """

    root: str
    labels: str = "auto"
    captions_from: str = "auto"
    smallest_shard = 128
    label_choices = LABEL_CHOICES
    has_columns = True
    _classes: tuple[str, ...] = field(default=(), init=False)

    @property
    def about(self) -> dict[str, Any]:
        return {"kind": "folder", "path": printable(self.root)}

    def listing(self) -> list[list[Any]]:
        facts = [(name, os.stat(f"{self.root}/{name}")) for name in self._annotations.files]
        return [
            *([name, size, time] for name, size, time in self._files),
            *([name, fact.st_size, fact.st_mtime_ns] for name, fact in facts),
        ]

    def splits(self) -> dict[str, int]:
        return {split: len(names) for split, (names, _) in self._layout.items()}

    def class_names(self) -> tuple[str, ...]:
        self._layout  # noqa: B018  sets `_classes`
        return tuple(printable(name) for name in self._classes)

    @property
    def captions(self) -> bool:
        return bool(self._annotations.captions)

    def summarize(self, options: Data) -> ImageSummary | None:
        return None

    def part(self, split: str, rows: np.ndarray) -> FolderPart:
        names, labels = self._layout[split]
        chosen = [names[row] for row in rows]
        captions = [self._annotations.captions.get(name, ()) for name in chosen]
        return FolderPart(self.root, chosen, [labels[row] for row in rows], captions)

    def holds_pictures(self) -> bool:
        """Whether the folder contains any picture."""
        return bool(self._found)

    @cached_property
    def _annotations(self) -> Annotations:
        """The labels and captions in files next to the pictures."""
        pictures = [name for name, _, _ in self._files]
        found = annotations.read(self.root, pictures, list(self._listing.others), self.labels, self.captions_from)
        self.skipped = self._listing.skipped(found.files)
        self.notes += found.notes
        return found

    @cached_property
    def _listing(self) -> Listing:
        """The files of the folder, which is read once."""
        return list_folder(self.root)

    @property
    def _found(self) -> list[tuple[str, int, int]]:
        """(relative path, bytes, mtime in nanoseconds) of every picture."""
        return self._listing.pictures

    @cached_property
    def _files(self) -> list[tuple[str, int, int]]:
        """The pictures in natural order."""
        if not self._found:
            self.skipped = self._listing.skipped()
            others = skipped.describe(self.skipped)
            raise DataError(
                f"no pictures in {printable(self.root)}" + (f"; skipped {others}" if others else ""),
                skipped.cure(self.skipped) or f"use a folder of {SUPPORTED} files",
            )
        return sorted(self._found, key=lambda file: [natural(word) for word in file[0].split("/")])

    @cached_property
    def _layout(self) -> dict[str, tuple[list[str], list[int]]]:
        """The file names and labels of each split."""
        names = [name for name, _, _ in self._files]
        folders = {name.partition("/")[0] if "/" in name else "" for name in names}
        own = "train" in folders and folders <= SPLITS.keys()
        grouped: dict[str, list[tuple[str, str]]] = {}
        for name in names:
            split, _, rest = name.partition("/") if own else ("train", "", name)
            grouped.setdefault(SPLITS[split], []).append((name, rest))
        if found := self._annotations.labels:
            return self._labelled(grouped, found)
        self._classes = () if self.labels == "none" else self._find_classes(grouped)
        number = {name: label for label, name in enumerate(self._classes)}
        return {
            split: (
                [name for name, _ in grouped[split]],
                [number.get(rest.partition("/")[0], 0) for _, rest in grouped[split]],
            )
            for split in SPLIT_ORDER
            if split in grouped
        }

    def _labelled(
        self, grouped: dict[str, list[tuple[str, str]]], found: dict[str, str]
    ) -> dict[str, tuple[list[str], list[int]]]:
        """The file names and labels of each split, with the labels of a metadata file."""
        folders = {rest.partition("/")[0] for rows in grouped.values() for _, rest in rows if "/" in rest}
        if len(folders) > 1 and {found[name] for rows in grouped.values() for name, _ in rows} != folders:
            self.notes.append(
                f"the labels are the column {self._annotations.column!r} of {printable(self._annotations.table)}, "
                f"not the {len(folders)} folders; --labels folders uses the folders"
            )
        labels = {split: {found[name] for name, _ in rows} for split, rows in grouped.items()}
        require_in_train(printable(self.root), {split: sorted(one, key=natural) for split, one in labels.items()})
        self._classes = tuple(sorted(set(found.values()), key=natural))
        number = {name: label for label, name in enumerate(self._classes)}
        return {
            split: ([name for name, _ in grouped[split]], [number[found[name]] for name, _ in grouped[split]])
            for split in SPLIT_ORDER
            if split in grouped
        }

    def _find_classes(self, grouped: dict[str, list[tuple[str, str]]]) -> tuple[str, ...]:
        """The class folders in natural order; empty if there is only one, or if pictures are next to them."""
        every = {
            split: {rest.partition("/")[0] if "/" in rest else "" for _, rest in files}
            for split, files in grouped.items()
        }
        classes = every["train"]
        if "" in set().union(*every.values()) or len(classes) < 2:
            if self.labels == "folders":
                reason = "pictures next to its class folders" if len(classes - {""}) > 1 else "no two class folders"
                raise UsageError(f"{printable(self.root)} has {reason}", "--labels none, or a folder for each class")
            if len(classes - {""}) > 1:
                self.notes.append(
                    f"{printable(self.root)} has pictures next to its {len(classes - {''})} class folders, "
                    "so the data has no labels"
                )
            return ()
        if self.labels == "auto" and are_parts(classes):
            first, *_, last = sorted(classes, key=lambda name: (len(name), name))
            self.notes.append(
                f"the {len(classes)} folders from {printable(first)} to {printable(last)} count as parts of one set, "
                "so the data has no labels; --labels folders makes them classes"
            )
            return ()
        require_in_train(printable(self.root), {split: sorted(one, key=natural) for split, one in every.items()})
        return tuple(sorted(classes, key=natural))
