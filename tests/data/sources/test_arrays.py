"""Arrays of pictures: idx files, `.npz`, and scikit-learn's digits."""

import gzip
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genflow.data.shards import Dataset
from genflow.data.sources import arrays
from genflow.data.sources.find import find
from genflow.data.sources.idx import FASHION_CLASSES, FASHION_START
from genflow.errors import DataError
from genflow.recipe.schema import Data

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 6)).astype(np.uint8)
LABELS = (np.arange(40) % 4).astype(np.uint8)


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_idx(
    folder: Path, images: np.ndarray = IMAGES, labels: np.ndarray | None = LABELS, stem: str = "train"
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx(images))
    if labels is not None:
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def rows(dataset: Dataset, split: str = "train") -> dict[str, tuple[np.ndarray, int]]:
    """A split's pixels and labels by record id."""
    part = dataset.splits[split]
    return {id: (pixels, label) for id, pixels, label in zip(part.ids, part.pixels, part.labels, strict=True)}


def test_idx_round_trip(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """Every picture and label of plain and gzipped idx files is stored; t10k is the test split."""
    folder = write_idx(tmp_path / "mnist")
    write_idx(folder, IMAGES[:10] ^ 255, LABELS[:10], "t10k")
    dataset = prepared(folder, val=0.25)
    assert dataset.facts.splits == {"train": 30, "val": 10, "test": 10}
    assert dataset.facts.class_names == ("0", "1", "2", "3")
    found = rows(dataset) | rows(dataset, "val")
    for number in range(40):
        pixels, label = found[f"train/{number}"]
        assert (pixels[:, :, 0] == IMAGES[number]).all()
        assert label == LABELS[number]
    assert (dataset.splits["test"].pixels[:, :, :, 0] == IMAGES[:10] ^ 255).all()


def test_idx_without_labels_and_one_file(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """Images without labels give no classes; a single images file uses the labels file next to it."""
    assert prepared(write_idx(tmp_path / "bare", labels=None)).facts.classes == 0
    file = write_idx(tmp_path / "one") / "train-images-idx3-ubyte"
    assert prepared(file).facts.classes == 4


def test_fashion_is_recognised(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """Fashion-MNIST is recognised by its first labels and gets its class names, in any folder."""
    labels = np.array([*FASHION_START, *range(10), *range(10), *range(4)], np.uint8)
    assert prepared(write_idx(tmp_path / "any", labels=labels)).facts.class_names == FASHION_CLASSES


def test_idx_mistakes(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """A wrong magic number, a truncated file and a wrong number of labels are each an error."""
    wrong = write_idx(tmp_path / "magic", labels=None)
    (wrong / "train-images-idx3-ubyte").write_bytes(b"\0\0\x0d\x03" + b"\0" * 40)
    with pytest.raises(DataError, match="magic number is 0x00000d03"):
        prepared(wrong)
    with pytest.raises(DataError, match="40 pictures but 39 labels"):
        prepared(write_idx(tmp_path / "count", labels=LABELS[:39]))
    short = write_idx(tmp_path / "short", labels=None) / "train-images-idx3-ubyte"
    short.write_bytes(short.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated"):
        prepared(short.parent)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_gzip(tmp_path: Path, prepared: Callable[..., Dataset], damage: str) -> None:
    """A gzip file that is truncated or has a wrong checksum is an error."""
    (tmp_path / "x").mkdir()
    packed = bytearray(gzip.compress(idx(IMAGES), compresslevel=0))
    if damage == "cut":
        packed = packed[:-300]
    else:
        packed[500] ^= 1
    (tmp_path / "x" / "train-images-idx3-ubyte.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"truncated|damaged"):
        prepared(tmp_path / "x")


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_round_trip(tmp_path: Path, prepared: Callable[..., Dataset], compressed: bool) -> None:
    """`x_train`, `y_train`, `x_test` and `y_test` are found, with channels last and strings as labels."""
    colour = np.random.default_rng(1).integers(0, 256, (40, 6, 6, 3)).astype(np.uint8)
    words = np.array(["bee", "ant"])[LABELS % 2]
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "a.npz", x_train=colour, y_train=words, x_test=colour[:5], y_test=words[:5])
    dataset = prepared(tmp_path / "a.npz", val=0)
    assert dataset.facts.shape == (3, 6, 6)
    assert dataset.facts.class_names == ("ant", "bee")
    assert (dataset.splits["train"].pixels == colour).all()
    assert (dataset.splits["test"].labels == (LABELS[:5] % 2 == 0)).all()


def test_npz_layouts_and_ranges(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """Channels first, fractions, signed fractions and integers become the original bytes."""
    for name, array in {
        "planar": np.stack([IMAGES, IMAGES, IMAGES], 1),
        "unit": IMAGES / np.float32(255),
        "signed": IMAGES / 127.5 - 1,
        "long": IMAGES.astype(np.int64),
    }.items():
        np.savez(tmp_path / f"{name}.npz", array)
        pixels = prepared(tmp_path / f"{name}.npz", val=0).splits["train"].pixels
        assert (pixels == IMAGES[..., None]).all(), name


def test_npz_one_hot_and_column_labels(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """Labels may be one-hot, or have the shape (N, 1)."""
    for name, labels in {"hot": np.eye(4)[LABELS], "column": LABELS[:, None]}.items():
        np.savez(tmp_path / f"{name}.npz", images=IMAGES, labels=labels)
        assert (prepared(tmp_path / f"{name}.npz", val=0).splits["train"].labels == LABELS).all()


def test_npz_mistakes(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """Python objects, arrays without pictures, unknown ranges and damaged files are errors."""
    np.savez(tmp_path / "object.npz", images=np.array([{"a": 1}], object))
    np.savez(tmp_path / "flat.npz", images=np.zeros((4, 5)))
    np.savez(tmp_path / "range.npz", images=IMAGES - 1000.0)
    np.savez(tmp_path / "none.npz", weights=np.zeros(3), bias=np.zeros(3))
    (tmp_path / "zip.npz").write_bytes(b"PK\x03\x04 not a zip")
    for name, text in {
        "object": "Python objects",
        "flat": "has the shape",
        "range": "range from -1000 to",
        "none": "its arrays: weights, bias",
        "zip": "damaged",
    }.items():
        with pytest.raises(DataError, match=text):
            prepared(tmp_path / f"{name}.npz")


def test_nan_is_a_bad_record(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """A picture with NaN is an error, or is left out and listed if `max_bad` allows it."""
    values = IMAGES / 255
    values[7, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", values)
    with pytest.raises(DataError, match=r"1 of 40 pictures in .* cannot be read.*'train/7': holds NaN or infinity"):
        prepared(tmp_path / "nan.npz")
    dataset = prepared(tmp_path / "nan.npz", max_bad=1, val=0)
    assert dataset.facts.splits == {"train": 39}
    skipped = dataset.artifact.file("bad.csv").read_text(encoding="utf-8")
    assert skipped == "path,reason\ntrain/7,holds NaN or infinity\n"


def test_digits(prepared: Callable[..., Dataset]) -> None:
    """Digits are stored unchanged, 8 x 8 with 17 grey levels; the facts describe x = (2k + 1)/17 - 1."""
    dataset = prepared("digits")
    pixels, facts = dataset.splits["train"].pixels, dataset.facts
    assert facts.shape == (1, 8, 8)
    assert facts.levels == 17
    assert facts.splits == {"train": 1618, "val": 179}
    assert (pixels.min(), pixels.max()) == (0, 16)
    x = (2.0 * pixels + 1) / 17 - 1
    assert facts.mean == pytest.approx(x.mean(), abs=1e-12)
    assert facts.sigma_data == pytest.approx(x.std(), abs=1e-12)
    assert facts.class_counts == tuple(np.bincount(dataset.splits["train"].labels))


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_an_idx_header_that_declares_more_than_the_file(tmp_path: Path, ending: str) -> None:
    """16 bytes that declare 16 GiB are refused by their size, before anything is allocated."""
    data = struct.pack(">HBB3I", 0, 8, 3, 2**14, 2**10, 2**10)
    file = tmp_path / f"train-images-idx3-ubyte{ending}"
    file.write_bytes(gzip.compress(data) if ending else data)
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"needs 17,179,869,200 bytes, and the file has {file.stat().st_size}$"):
        find(Data(source=str(file))).splits()
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_one_read_has_a_bounded_size(
    tmp_path: Path, prepared: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a read fit into `BYTES_PER_READ`, and a picture of too many pixels is refused."""
    monkeypatch.setattr(arrays, "BYTES_PER_READ", 100)
    assert (prepared(write_idx(tmp_path / "x"), val=0).splits["train"].pixels[..., 0] == IMAGES).all()
    monkeypatch.setattr(arrays, "MAX_PIXELS", 8)
    with pytest.raises(DataError, match="36 values per picture; the limit is 32"):
        prepared(write_idx(tmp_path / "y"), val=0)


def test_npz_members_that_declare_more_than_the_file(tmp_path: Path) -> None:
    """A member's shape, header and labels are compared with the archive, whatever its directory says."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (2**14, 2**10, 2**10)})
    long = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31)
    for name, members, text in (
        ("stored", {"images.npy": head.getvalue()}, r"needs [\d,]+ bytes, and the file has \d+"),
        ("header", {"images.npy": long}, "declares a header of 2,147,483,648 bytes"),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        with pytest.raises(DataError, match=text):
            find(Data(source=str(tmp_path / f"{name}.npz"))).splits()
    np.savez_compressed(tmp_path / "labels.npz", images=IMAGES, labels=np.zeros(2**20, "U100"))
    with pytest.raises(DataError, match="declares 419,430,400 bytes of labels"):
        find(Data(source=str(tmp_path / "labels.npz"))).splits()


def test_upper_case_npz(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """`X.NPZ` is read."""
    np.savez(tmp_path / "x.npz", images=IMAGES)
    (tmp_path / "x.npz").rename(tmp_path / "X.NPZ")
    assert prepared(tmp_path / "X.NPZ", val=0).facts.splits == {"train": 40}
