"""Shards are readable by other tools, and pixels are unchanged after conversion to x and back."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.shards import in_shards

from genflow.data import shards
from genflow.data.shard_format import schema, shard_name, shard_ranges, write_index, write_shard
from genflow.data.shards import Dataset, Shards, Split
from genflow.data.values import from_x, to_display, to_x
from genflow.errors import DataError
from genflow.specs import DataSpec
from genflow.storage.store import Store


def test_pyarrow_alone(prepared: Callable[..., Dataset]) -> None:
    """`pyarrow` reads pixels, labels and ids, and the metadata contains shape and levels."""
    dataset = prepared("digits")
    file = next((dataset.artifact.path / "train").glob("*.arrow"))
    table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    own = json.loads(table.schema.metadata[b"genflow"])
    assert own == {"shape": [8, 8, 1], "levels": 17}
    pixels = table["image"].combine_chunks().flatten().to_numpy().reshape(-1, *own["shape"])
    assert np.array_equal(pixels, dataset.splits["train"].pixels)
    assert table["label"].to_pylist() == dataset.splits["train"].labels.tolist()
    assert table["id"][0].as_py().startswith("digits/")


def test_datasets_alone(prepared: Callable[..., Dataset]) -> None:
    """`datasets.load_from_disk` reads the splits, and the labels with their names."""
    datasets = pytest.importorskip("datasets")
    dataset = prepared("digits")
    loaded = datasets.load_from_disk(str(dataset.artifact.path))
    assert {split: len(rows) for split, rows in loaded.items()} == dataset.facts.splits
    row = loaded["train"][5]
    assert np.array_equal(np.array(row["image"]), dataset.splits["train"].pixels[5].ravel())
    assert loaded["train"].features["label"].int2str(row["label"]) == str(dataset.splits["train"].labels[5])
    points = datasets.load_from_disk(str(prepared("ring8", samples=200).artifact.path))
    assert points["train"].features["label"].names[2] == "90 degrees"
    assert len(points["train"][0]["point"]) == 2


def test_batches_are_views_of_the_file(prepared: Callable[..., Dataset]) -> None:
    """Pixels and labels are in the mapped memory of the file, so the data is not copied."""
    split = prepared("digits").splits["train"]
    table = split.tables[0]
    start = table.column(0).chunk(0).values.buffers()[-1].address
    assert split.pixels.ctypes.data == start
    assert split._label(0).ctypes.data == table.column("label").chunk(0).buffers()[-1].address
    file = str(split.tables._files[0])
    assert any(low <= start < high for low, high in _mapped(file))


def _mapped(file: str) -> list[tuple[int, int]]:
    """The address ranges at which this process has mapped a file."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    lines = [line.split() for line in maps.splitlines() if line.endswith(file)]
    return [(int(low, 16), int(high, 16)) for low, high in (line[0].split("-") for line in lines)]


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_x_and_back(levels: int) -> None:
    """Every grey level maps to its bin centre within (-1, 1), and back to the same level."""
    facts = DataSpec((1, 1, 1), levels)
    records = np.arange(levels, dtype=np.uint8).reshape(-1, 1, 1, 1)
    x = to_x(records, facts)
    assert np.allclose(x.ravel(), (2 * np.arange(levels) + 1) / levels - 1, atol=1e-6)
    assert np.array_equal(from_x(x, facts), records)
    assert to_display(records, facts).ravel()[[0, -1]].tolist() == [0, 255]


def test_layout() -> None:
    """Records are (B, H, W, C), x is (B, C, H, W)."""
    records = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    facts = DataSpec((3, 3, 4), 256)
    assert to_x(records, facts).shape == (2, 3, 3, 4)
    assert np.array_equal(from_x(to_x(records, facts), facts), records)


@pytest.mark.parametrize("facts", [DataSpec((1, 3, 4), 256), DataSpec((3, 3, 4), 256), DataSpec((2, 3, 4), None)])
def test_x_has_the_strides_of_torch(facts: DataSpec) -> None:
    """Kernels for channels last, which are slower, take pictures with its strides, even those of one channel."""
    C, H, W = facts.shape
    x = to_x(np.zeros((2, H, W, C), np.uint8 if facts.levels else np.float16), facts)
    assert x.stride() == (C * H * W, H * W, W, 1)


def test_take_over_shards(tmp_path: Path) -> None:
    """Rows from several shards are returned in the requested order."""
    facts = DataSpec((1, 2, 2), 256)
    values = np.random.default_rng(0).integers(0, 256, (10, 2, 2, 1)).astype(np.uint8)
    tables = []
    for start, stop in ((0, 4), (4, 5), (5, 10)):
        path = tmp_path / f"{start}.arrow"
        write_shard(path, facts, values[start:stop], [str(row) for row in range(start, stop)])
        tables.append(pa.ipc.open_stream(pa.memory_map(str(path))).read_all())
    split = Split("train", tuple(tables), facts)
    rows = np.array([9, 0, 4, 4, 3])
    assert np.array_equal(split.take(rows), values[rows])
    assert np.array_equal(split.pixels, values)
    assert split.ids == [str(row) for row in range(10)]


def test_wrong_shape_is_an_error(tmp_path: Path) -> None:
    """Records of another shape than the dataset's are not written."""
    with pytest.raises(ValueError, match="do not fit"):
        write_shard(tmp_path / "a.arrow", DataSpec((1, 2, 2), 256), np.zeros((3, 3, 3, 1), np.uint8), ["a", "b", "c"])


def test_corrupt_shard(prepared: Callable[..., Dataset]) -> None:
    """Opening a dataset detects one flipped bit."""
    dataset = prepared("digits")
    file = next((dataset.artifact.path / "train").glob("*.arrow"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="corrupt"):
        Dataset.open(dataset.artifact)


def test_large_data_is_hashed_when_it_is_first_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening compares sizes alone; a damaged shard is named when a row of it is read, and others are not read."""
    monkeypatch.setattr(shards, "HASHED_AT_OPEN", 0)
    artifact = in_shards(store)
    files = sorted((artifact.path / "train").glob("*.arrow"))
    content = bytearray(files[2].read_bytes())
    content[-40] ^= 1
    files[2].write_bytes(content)
    split = Dataset.open(artifact).splits["train"]
    assert split.take(np.array([17, 3])).ravel()[::4].tolist() == [17, 3]
    for read in (split.take, split.labels_of, lambda rows: split.column("id", rows)):
        with pytest.raises(DataError, match=f"{files[2]} is corrupt"):
            read(np.array([3, 12]))
    files[3].write_bytes(files[3].read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{files[3]} is corrupt"):
        Dataset.open(artifact)
    files[3].unlink()
    with pytest.raises(DataError, match=f"{files[3]} is missing"):
        Dataset.open(artifact)


def test_labels_are_read_by_row(store: Store) -> None:
    """From the shards that have the rows; also of no rows, and counted shard by shard."""
    split = Dataset.open(in_shards(store)).splits["train"]
    assert split.labels_of(np.array([19, 0, 7])).tolist() == [1, 0, 1]
    assert split.labels_of(np.array([], np.int64)).shape == (0,)
    assert split.take(np.array([], np.int64)).shape == (0, 2, 2, 1)
    assert split.label_counts().tolist() == np.bincount(split.labels).tolist() == [7, 7, 6]


def test_facts_survive() -> None:
    """Facts survive a JSON round trip; unknown fields of a later version are ignored."""
    facts = DataSpec((3, 8, 8), 256, ("a", "b"), {"train": 5}, 0.1, 0.4, class_counts=(2, 3), fingerprint="f")
    document = json.loads(json.dumps(facts.to_json()))
    assert DataSpec.from_json({**document, "later": 1}) == facts
    assert schema(replace(facts, class_names=())).names == ["image", "id"]


def test_latents_are_rows_of_numbers(tmp_path: Path) -> None:
    """Latents are float16 with channels last, and x is the latents as they are; other tools read them."""
    facts = DataSpec((4, 2, 3), None, ("a", "b"), splits={"train": 3}, autoencoder="ae-1", captions=True)
    latents = np.random.default_rng(0).standard_normal((3, 2, 3, 4)).astype(np.float16)
    (tmp_path / "train").mkdir()
    name = shard_name(0, 1)
    texts = [("a cat", "a pet"), (), ("a dog",)]
    write_shard(tmp_path / "train" / name, facts, latents, ["x", "y", "z"], np.array([0, 1, 0]), captions=texts)
    write_index(tmp_path, facts, {"train": {name: 3}})
    split = Split("train", Shards([tmp_path / "train" / name], [3]), facts)
    rows = np.array([2, 0])
    assert np.array_equal(split.take(rows), latents[rows])
    assert split.pixels.dtype == np.float16
    assert split.log_density is None
    assert (split.column("id", rows), split.column("captions", rows)) == (["z", "x"], [["a dog"], ["a cat", "a pet"]])
    batch = split.batch(rows, torch.device("cpu"))
    assert batch.x.dtype == torch.float32
    assert np.array_equal(batch.x.numpy(), latents[rows].astype(np.float32).transpose(0, 3, 1, 2))
    assert np.array_equal(from_x(batch.x, facts), latents[rows].astype(np.float32))
    loaded = pytest.importorskip("datasets").load_from_disk(str(tmp_path))["train"]
    assert np.array_equal(np.array(loaded[1]["latent"], np.float16), latents[1].ravel())
    assert loaded[0]["captions"] == ["a cat", "a pet"]


def test_shards_cover_every_row_once() -> None:
    """The last shard has the rest, and the names are those of the `datasets` library."""
    assert shard_ranges(7, 3, "train/") == [
        ("train/data-00000-of-00003.arrow", 0, 3), ("train/data-00001-of-00003.arrow", 3, 6),
        ("train/data-00002-of-00003.arrow", 6, 7),
    ]  # fmt: skip
