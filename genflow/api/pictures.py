"""Pictures: a notebook shows them as a grid, NumPy reads them as an array, and each one is an image of Pillow."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from genflow.data import preview
from genflow.data.values import to_display, to_x
from genflow.specs import DataSpec

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

GRID = 256  # pictures of a grid, at most
ROW = 10  # so many pictures are one row


class Pictures:
    """Pictures of one shape, or points of the plane. `pictures[0]` is an image, `pictures[:8]` and a mask are Pictures.

    Args:
        records: (N, H, W, C) uint8 grey levels 0..K-1, or (N, 1, 1, 2) float32 points.
        facts: of their dataset.
        labels: (N,) int64; `facts.classes` means no label.
        index: one value of each picture, by name: its seed, or its id.
        columns: pictures in a row of the grid; None: as many as there are classes, or a square.
    """

    def __init__(
        self, records: np.ndarray, facts: DataSpec, labels: np.ndarray, index: dict[str, list[Any]],
        columns: int | None = None,
    ) -> None:  # fmt: skip
        self.records, self.facts, self.labels, self.index, self.columns = records, facts, labels, index, columns
        self.prompts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, key: int) -> "Image": ...
    @overload
    def __getitem__(self, key: slice) -> "Pictures": ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | np.integer):
            if not -len(self) <= key < len(self):
                raise IndexError(f"picture {key} of {len(self)}")
            return _image(self._of([int(key) % len(self)]))
        return self._of(np.arange(len(self))[key].tolist())

    def __iter__(self) -> Iterator["Image"]:
        return (self[i] for i in range(len(self)))

    def _of(self, rows: list[int]) -> "Pictures":
        index = {name: [values[row] for row in rows] for name, values in self.index.items()}
        return Pictures(self.records[rows], self.facts, self.labels[rows], index)

    @property
    def images(self) -> list["Image"]:
        """Each picture as an image of Pillow, at its own size."""
        return list(self)

    @property
    def classes(self) -> list[str | None]:
        """The name of each picture's class; None without a label."""
        names = self.facts.class_names
        return [names[label] if label < len(names) else None for label in self.labels.tolist()]

    @property
    def array(self) -> np.ndarray:
        """(N, H, W, C) uint8 0..255, as Pillow and Matplotlib read them; (N, 2) float32 for points."""
        return self.records.reshape(-1, 2) if self.facts.is_points else to_display(self.records, self.facts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        made = self.array if dtype is None else self.array.astype(dtype)
        return made.copy() if copy and made is self.records else made

    def torch(self) -> "Tensor":
        """What a net reads: (N, C, H, W) float32 in (-1, 1); points divided by the dataset's scale."""
        return to_x(self.records, self.facts)

    def grid(self, columns: int | None = None) -> "Image":
        """All of them, at most 256, in one image; points as a density plot."""
        from PIL import Image

        return Image.open(io.BytesIO(self._png(columns)))

    def _png(self, columns: int | None = None) -> bytes:
        shown = self.records if self.facts.is_points else self.records[:GRID]
        columns = columns or self.columns
        if columns is None and len(set(self.labels.tolist())) > 1:
            columns = preview.columns(self.facts)
        if len(shown) <= ROW:
            columns = columns or ROW
        return preview.render(shown, self.facts, columns)

    def _repr_png_(self) -> bytes | None:
        return self._png() if len(self) else None

    def save(self, out: str | Path) -> Path:
        """Write them as `genflow sample --out` does: x.png is a grid, x.npy an array, x.parquet a table, else a folder.

        Raises:
            UsageError: the suffix is unknown.
            SetupError: the file cannot be written.
        """
        from genflow.sampling import files

        path = Path(out).expanduser()
        files.write(path, self.records, self.labels, self.index, self.facts, self.columns, self.prompts)
        return path

    def __repr__(self) -> str:
        C, H, W = self.facts.shape
        what = "points of the plane" if self.facts.is_points else f"pictures, {H}×{W}×{C}"
        return f"<{len(self)} {what}>"


class Samples(Pictures):
    """Samples of a run.

    Attributes:
        run: the id of the run.
        nfe: network evaluations of each sample.
        seconds: wall-clock seconds for all of them.
        prompts: (N,) the prompts; empty for a run without captions.
    """

    def __init__(
        self, records: np.ndarray, facts: DataSpec, labels: np.ndarray, index: dict[str, list[Any]],
        columns: int | None = None, *, run: str = "", nfe: int = 0, seconds: float = 0.0,
        prompts: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(records, facts, labels, index, columns)
        self.run, self.nfe, self.seconds, self.prompts = run, nfe, seconds, tuple(prompts)

    @property
    def seeds(self) -> list[int]:
        """The seed of each sample; the same seed of the same run is the same sample."""
        return list(self.index.get("seed", []))

    def _of(self, rows: list[int]) -> "Samples":
        part = super()._of(rows)
        prompts = [self.prompts[row] for row in rows] if self.prompts else ()
        return Samples(part.records, self.facts, part.labels, part.index, run=self.run, nfe=self.nfe, prompts=prompts,
                       seconds=self.seconds * len(rows) / max(len(self), 1))  # fmt: skip

    def __repr__(self) -> str:
        each = f", {self.nfe} evaluations and {1000 * self.seconds / max(len(self), 1):.1f} ms each" if self.nfe else ""
        return f"{super().__repr__()[:-1]}, of {self.run}{each}>"


def _image(picture: Pictures) -> "Image":
    """One picture at its own size; points as a plot."""
    from PIL import Image

    if picture.facts.is_points:
        return picture.grid()
    pixels = to_display(picture.records, picture.facts)[0]
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
