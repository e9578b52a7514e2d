"""The idx format of MNIST and its successors: files such as `train-images-idx3-ubyte`, gzipped or not.

References:
    The format: http://yann.lecun.com/exdb/mnist/ (Y. LeCun, C. Cortes, C. Burges).
    Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017): https://arxiv.org/abs/1708.07747
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genflow.data.images import MAX_DEFLATE
from genflow.data.sources import Opens
from genflow.data.sources.arrays import Array, Arrays, SplitArrays, check_size
from genflow.data.sources.base import Source, dataset_name
from genflow.data.sources.walk import list_folder
from genflow.errors import DataError
from genflow.recipe.schema import Data

IDX_FILE = re.compile(r"(?P<stem>.*?)[-_.]?(?P<what>images|labels)[-_.]idx[1-4][-_.]ubyte(\.gz)?", re.IGNORECASE)

OPENS = Opens(files=("idx",), order=5)
FASHION_START = (9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9)  # its first training labels, which identify it
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def open_path(path: Path, data: Data) -> Source | None:
    """Open a folder of idx files, or one such file with its labels; return None for other paths."""
    if path.is_dir():
        files = idx_files(path)
        used = [Path(file).name for file in files]
        skipped = list_folder(str(path)).skipped(used) if files else {}
        return Idx(dataset_name(path.name), str(path), files, skipped=skipped) if files else None
    if IDX_FILE.fullmatch(path.name):
        return Idx(dataset_name(re.split(r"[-_.]?(images|labels)[-_.]idx", path.name)[0]), str(path), idx_files(path))
    return None


@dataclass
class Idx(Arrays):
    """Idx files."""

    kind = "idx"

    def read(self) -> SplitArrays:
        return read_idx(self.files)

    def class_names(self) -> tuple[str, ...]:
        labels = self._content[0]["train"][1]
        is_fashion = labels is not None and tuple(labels[: len(FASHION_START)]) == FASHION_START
        return FASHION_CLASSES if is_fashion else super().class_names()


def idx_files(path: Path) -> list[str]:
    """The idx files of a folder, or one file and its labels; a plain file takes precedence over its gzipped copy."""
    folder = path if path.is_dir() else path.parent
    names = {entry.name for entry in folder.iterdir() if IDX_FILE.fullmatch(entry.name) and entry.is_file()}
    names -= {f"{name}.gz" for name in names}
    if path.is_file():
        own = IDX_FILE.fullmatch(path.name)
        names = {name for name in names if own and IDX_FILE.fullmatch(name)["stem"] == own["stem"]}  # type: ignore[index]
        names = {path.name, *(name for name in names if "labels" in name.lower())}
    return [str(folder / name) for name in sorted(names)]


def read_idx(files: list[str]) -> SplitArrays:
    """The splits in idx files: names with t10k or test are the test split, all others the training split.

    Raises:
        DataError: two files belong to one split, or a file is damaged.
    """
    pairs: dict[str, dict[str, str]] = {}
    for file in files:
        match = IDX_FILE.fullmatch(Path(file).name)
        if match is None:
            continue
        stem = match["stem"].lower()
        split = "test" if "t10k" in stem or "test" in stem else "train"
        files_of_split = pairs.setdefault(split, {})
        if other := files_of_split.get(match["what"].lower()):
            raise DataError(f"the names of {file} and {Path(other).name} both mean the {split} split",
                            "use one of the files as the source instead of the folder")
        files_of_split[match["what"].lower()] = file
    found: SplitArrays = {}
    for split in sorted(pairs, reverse=True):  # train before test
        if "images" not in pairs[split]:
            raise DataError(f"{pairs[split]['labels']} has labels, but the file with its images is missing",
                            "put the images file into the same folder")
        labels = _idx_header(pairs[split]["labels"], (1,)) if "labels" in pairs[split] else None
        array = _idx_header(pairs[split]["images"], (3, 4))
        values = None
        if labels:
            values = np.array([int(value) for _, value in labels.rows(np.arange(labels.shape[0]))])
        found["train" if len(pairs) == 1 else split] = array, values
    return found


def _idx_header(path: str, dims: tuple[int, ...]) -> Array:
    """Read an idx file's magic number and shape, and compare the shape with the file's size."""
    array = Array(path, "", 0, (0,), "|u1")
    try:
        with array.open() as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != 8 or head[3] not in dims:
                kind = "images" if 3 in dims else "labels"
                raise DataError(f"{path} is not an idx file of {kind}: its magic number is 0x{head.hex()}")
            shape = struct.unpack(f">{head[3]}I", file.read(4 * head[3]))
    except (EOFError, struct.error) as error:
        raise DataError(f"{path} is truncated: its header is incomplete", "copy or download the file again") from error
    if not all(shape):
        raise DataError(f"{path} contains no data: its shape is {shape}")
    found = Array(path, "", 4 + 4 * head[3], shape, "|u1")
    size = Path(path).stat().st_size
    check_size(path, shape, found.bytes, size * MAX_DEFLATE if found.gzipped else size, size)
    return found
