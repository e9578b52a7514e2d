"""A folder of pictures: flat, one folder per class, or `train`, `val` and `test` folders of either layout.

- The order is natural (`2.png` before `10.png`) and does not depend on the file system.
- `walk.py` decides which files are pictures, and which hidden and system files are passed over.
- The class is the first folder below the split. If a split has both pictures and class folders, the data has no labels.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from genflow.data import images, skipped
from genflow.data.images import SUPPORTED, strict_pillow_warnings
from genflow.data.sources import Opens
from genflow.data.sources.base import BadRecord, ImageSpec, ImageSummary, Record, Source, dataset_name, printable
from genflow.data.sources.walk import list_folder
from genflow.errors import DataError
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
    folder = Folder(dataset_name(path.name), str(path))
    return folder if path.is_dir() and folder.holds_pictures() else None


@dataclass(frozen=True)
class FolderPart:
    """Some pictures of a folder."""

    root: str
    names: list[str]
    labels: list[int]

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
            for name, label in zip(self.names, self.labels, strict=True):
                file = None
                try:
                    with images.open_image_file(f"{self.root}/{name}") as file:
                        try:
                            yield Record(printable(name), images.decode(file, spec), label)
                        except Exception as error:
                            yield BadRecord(printable(name), images.describe_error(error, file))
                except images.UnreadableImage as error:
                    yield BadRecord(printable(name), str(error))


@dataclass
class Folder(Source):
    """A folder of pictures.

    Args:
        root: the absolute path of the folder.
    """

    root: str
    smallest_shard = 128
    _classes: tuple[str, ...] = field(default=(), init=False)

    @property
    def about(self) -> dict[str, Any]:
        return {"kind": "folder", "path": printable(self.root)}

    def listing(self) -> list[list[Any]]:
        return [[name, size, time] for name, size, time in self._files]

    def splits(self) -> dict[str, int]:
        return {split: len(names) for split, (names, _) in self._layout.items()}

    def class_names(self) -> tuple[str, ...]:
        self._layout  # noqa: B018  sets `_classes`
        return tuple(printable(name) for name in self._classes)

    def summarize(self, options: Data) -> ImageSummary | None:
        return None

    def part(self, split: str, rows: np.ndarray) -> FolderPart:
        names, labels = self._layout[split]
        return FolderPart(self.root, [names[row] for row in rows], [labels[row] for row in rows])

    def holds_pictures(self) -> bool:
        """Whether the folder contains any picture."""
        return bool(self._found)

    @cached_property
    def _found(self) -> list[tuple[str, int, int]]:
        """(relative path, bytes, mtime in nanoseconds) of every picture."""
        listing = list_folder(self.root)
        self.skipped = listing.skipped()
        return listing.pictures

    @cached_property
    def _files(self) -> list[tuple[str, int, int]]:
        """The pictures in natural order."""
        if not self._found:
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
        self._classes = self._find_classes(grouped)
        number = {name: label for label, name in enumerate(self._classes)}
        return {
            split: (
                [name for name, _ in grouped[split]],
                [number.get(rest.partition("/")[0], 0) for _, rest in grouped[split]],
            )
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
            if len(classes - {""}) > 1:
                self.notes.append(
                    f"{printable(self.root)} has pictures next to its {len(classes - {''})} class folders, "
                    "so the data has no labels"
                )
            return ()
        for split, found in every.items():
            if extra := sorted(found - classes, key=natural):
                raise DataError(
                    f"{printable(self.root)}/{split} has the class {printable(extra[0])}, which is not in train",
                    "give every split the same class folders",
                )
        return tuple(sorted(classes, key=natural))
