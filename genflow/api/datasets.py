"""The rows of a dataset: as pictures, arrays, tensors and Arrow."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from genflow.api.pictures import Pictures
from genflow.api.tables import picture_html
from genflow.commands.listing import pixels
from genflow.data import preview
from genflow.data.shards import Dataset, Split
from genflow.data.values import to_display
from genflow.errors import UsageError, nearest
from genflow.specs import DataSpec
from genflow.storage.artifact import Artifact

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from PIL.Image import Image

    from genflow.sampling.engine import Engine


@dataclass(frozen=True)
class Row:
    """A row of a dataset.

    Args:
        pictures: the row alone; of latents, what they decode to.
        array: (H, W, C) uint8 grey levels 0..K-1, (1, 1, 2) float32 point, or (H, W, C) float16 latent.
        label: the name of its class; None without a label.
        id: its origin in the source.
        captions: the texts that describe it.
    """

    pictures: Pictures
    array: np.ndarray
    label: str | None
    id: str
    captions: tuple[str, ...]

    @property
    def image(self) -> "Image":
        """The picture as an image of Pillow."""
        return self.pictures[0]

    def _repr_png_(self) -> bytes | None:
        return self.pictures._repr_png_()

    def __repr__(self) -> str:
        texts = f", captions={self.captions!r}" if self.captions else ""
        return f"Row(id={self.id!r}, label={self.label!r}{texts})"


class Data:
    """A prepared dataset, or latents of one: `data[0]` is a row, `data[:16]` pictures, `data.split("val")` other rows.

    Args:
        artifact: the dataset or the latents.
        split: train, val or test.

    Raises:
        DataError: a file is missing or corrupt.
        UsageError: there is no such split.
    """

    def __init__(self, artifact: Artifact, split: str = "train", *, opened: Dataset | None = None) -> None:
        self.artifact, self.dataset = artifact, opened or Dataset.open(artifact)
        if split not in self.dataset.splits:
            known = list(self.dataset.splits)
            raise UsageError(f"{artifact.id} has no split {split!r}{nearest(split, known)}")
        self._split: Split = self.dataset.splits[split]

    id: str = property(lambda self: self.artifact.id)  # type: ignore[assignment]
    name: str = property(lambda self: self.artifact.name)  # type: ignore[assignment]
    path: Path = property(lambda self: self.artifact.path)  # type: ignore[assignment]
    facts: DataSpec = property(lambda self: self.dataset.facts)  # type: ignore[assignment]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels, in their order."""
        return self.facts.class_names

    @property
    def splits(self) -> dict[str, int]:
        """The number of rows of each split."""
        return dict(self.facts.splits)

    def split(self, name: str) -> "Data":
        """The rows of another split: train, val or test."""
        return Data(self.artifact, name, opened=self.dataset)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64; an index into `classes`."""
        return self._split.labels

    @property
    def captions(self) -> list[tuple[str, ...]]:
        """(N,) the captions of each row."""
        return self._split.captions

    def __len__(self) -> int:
        return len(self._split)

    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: slice) -> Pictures: ...
    def __getitem__(self, key: Any) -> Any:
        """A row by its number; several, by a slice, a list or a mask, as `Pictures`."""
        if not isinstance(key, int | np.integer):
            return self._pictures(np.arange(len(self))[key])
        if not -len(self) <= key < len(self):
            raise IndexError(f"row {key} of {len(self):,}")
        rows = np.array([int(key) % len(self)])
        shown = self._pictures(rows)
        texts = tuple(self._split.column("captions", rows)[0]) if self.facts.captions else ()
        return Row(shown, self._split.take(rows)[0], shown.classes[0], shown.index["id"][0], texts)

    def __iter__(self) -> Iterator[Row]:
        return (self[row] for row in range(len(self)))

    def _pictures(self, rows: np.ndarray) -> Pictures:
        facts = self.facts
        labels = self.labels[rows] if facts.classes else np.zeros(len(rows), np.int64)
        if facts.is_latents:
            from genflow.sampling.autoencoders import decode_rows

            records, facts = decode_rows(self._decoder, self._split, rows), self._decoder.facts
        else:
            records = self._split.take(rows)
        return Pictures(records, facts, labels, {"id": self._split.column("id", rows)})

    @cached_property
    def _decoder(self) -> "Engine":
        from genflow.sampling.autoencoders import decoder_of

        return decoder_of(self.artifact)

    def numpy(self) -> np.ndarray:
        """(N, H, W, C): grey levels 0..K-1, points or latents. Raw pixels are mapped from one file, not read."""
        return self._split.pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The rows in the form of `Pictures`: 0..255, whatever the number of grey levels."""
        whole = self.numpy()
        made = whole if self.facts.levels is None else to_display(whole, self.facts)
        made = made if dtype is None else made.astype(dtype)
        return made.copy() if copy and made is whole else made

    def arrow(self) -> "pa.Table":
        """The rows as `pyarrow.Table`, mapped from the files, as stored: image or latent, label, id, captions."""
        import pyarrow as pa

        return pa.concat_tables(list(self._split.tables))

    def torch(self) -> "Tensors":
        """The rows for `torch.utils.data.DataLoader`: pairs of what a net reads and the label."""
        return Tensors(self._split)

    def _png(self) -> bytes:
        rows = np.unique(np.linspace(0, len(self) - 1, 64).astype(int))
        return self._pictures(rows)._png() if self.facts.is_latents else preview.preview(self.dataset)

    def _repr_html_(self) -> str:
        facts = self.facts
        rows = ", ".join(f"{rows:,} {name}" for name, rows in facts.splits.items())
        classes = f"{facts.classes} classes: {', '.join(facts.class_names[:20])}" if facts.classes else "no classes"
        text = f"<b>{escape(self.id)}</b> · {rows} · {pixels(facts)} · {escape(classes)}"
        return f"<p>{text}{' · captions' if facts.captions else ''}</p>{picture_html(self._png(), self.id, '40em')}"

    def __repr__(self) -> str:
        rows = " + ".join(f"{rows:,} {name}" for name, rows in self.splits.items())
        return f"<{self.id}: {rows} rows, {pixels(self.facts)}, {self.facts.classes or 'no'} classes>"


class Tensors:
    """Rows as tensors: `rows[i]` is x (C, H, W) float32 in (-1, 1) and the label, 0 for data without labels."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, row: int) -> "tuple[torch.Tensor, int]":
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self):,}")
        return self.__getitems__([row % len(self)])[0]

    def __getitems__(self, rows: list[int]) -> "list[tuple[torch.Tensor, int]]":
        """A batch at once, as a DataLoader asks for it."""
        import torch

        batch = self._split.batch(np.asarray(rows), torch.device("cpu"))
        assert isinstance(batch.label, torch.Tensor)
        return list(zip(batch.x, batch.label.tolist(), strict=True))
