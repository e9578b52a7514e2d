"""Shards of encoded pictures: the same rows as raw ones, everywhere, in fewer bytes."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.data import encoding, plan, preview
from genflow.data.ahead import Ahead, ahead
from genflow.data.encoding import CODECS, decode, encode
from genflow.data.shard_format import write_shard
from genflow.data.shards import Dataset, Split, map_stream
from genflow.data.sources.find import find
from genflow.data.stream import Stream
from genflow.errors import UsageError
from genflow.recipe.schema import Data
from genflow.specs import RAW, DataSpec

LOSSLESS = [name for name in CODECS if not encoding.is_lossy(name)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty smooth pictures in two classes, some of them wide and some tall."""
    ramp = np.linspace(0, 1, 48)
    for i in range(40):
        height, width = ((16, 16), (16, 40), (36, 16))[i % 3]
        y, x = ramp[:height, None, None], ramp[None, :width, None]
        pixels = 127.5 + 127 * np.sin(7 * x + 3 * i * y + np.arange(3) + i)
        file = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return tmp_path / "pictures"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CODECS)
def test_a_picture_and_back(name: str, channels: int) -> None:
    """Lossless encodings keep every bit, of grey and of colour; the lossy one keeps a smooth picture nearly."""
    ramp = np.arange(24)
    smooth = np.broadcast_to((ramp[:, None, None] * 5 + ramp[None, :, None] * 4), (24, 24, channels)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (9, 24, 24, channels)).astype(np.uint8)
    records = noise if name in LOSSLESS else np.stack([smooth] * 9)
    apart = decode(encode(records, name).to_pylist(), records.shape[1:]).astype(int) - records
    assert np.abs(apart).max() <= (0 if name in LOSSLESS else 6)


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_rows_are_the_raw_ones(
    prepared: Callable[..., Dataset], pictures: Path, name: str, crop: str
) -> None:
    """Rows, strips, batches with flips and crops, facts, warnings and preview: all but the bytes of the shards."""
    raw, stored = (prepared(pictures, size=16, crop=crop, encoding=each) for each in ("raw", name))
    assert raw.artifact.id != stored.artifact.id
    for split, rows in raw.splits.items():
        other = stored.splits[split]
        assert np.array_equal(other.pixels, rows.pixels)
        assert np.array_equal(other.take(np.array([2, 0, 2])), rows.take(np.array([2, 0, 2])))
        assert other.take(np.array([], np.int64)).shape == (0, 16, 16, 3)
        assert other.ids == rows.ids
    streams = [Stream(data.splits["train"], 8, seed=3, flip=True) for data in (raw, stored)]
    for step in (0, 1, 7):
        one, two = (stream(step) for stream in streams)
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.label, two.label)
    same = [{**data.facts.to_json(), "fingerprint": "", "encoding": ""} for data in (raw, stored)]
    assert same[0] == same[1]
    assert raw.artifact.meta["warnings"] == stored.artifact.meta["warnings"]
    assert preview.preview(raw) == preview.preview(stored)
    assert preview.thumbnail(raw.artifact) == preview.thumbnail(stored.artifact)


def test_a_lossy_dataset_measures_what_it_stores(prepared: Callable[..., Dataset], pictures: Path) -> None:
    """Mean and deviation are those of the decoded pictures, and a warning states how far they are from the source's."""
    raw, stored = (prepared(pictures, size=16, encoding=each) for each in ("raw", "jpeg"))
    pixels = stored.splits["train"].pixels
    x = (2 * pixels.astype(np.float64) + 1) / 256 - 1
    assert (stored.facts.mean, stored.facts.sigma_data) == pytest.approx((x.mean(), x.std()), abs=1e-9)
    assert not np.array_equal(pixels, raw.splits["train"].pixels)
    apart = np.concatenate([(stored.splits[s].pixels.astype(float) - raw.splits[s].pixels).ravel() for s in raw.splits])
    rms = np.sqrt((apart**2).mean())
    warning = (
        f"jpeg, lossy (quality 95): pixels differ from the source's by {rms:.2g} of 255 levels (root mean square); "
        "--encoding webp is lossless"
    )
    assert warning in stored.artifact.meta["warnings"]
    assert not any("lossy" in line for line in raw.artifact.meta["warnings"])


def test_digits_keep_their_levels(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """Pictures of 17 levels are stored as these levels, and the shards can be a source again."""
    raw, stored = prepared("digits"), prepared("digits", encoding="png")
    assert stored.facts.levels == 17
    assert np.array_equal(stored.splits["train"].pixels, raw.splits["train"].pixels)
    again = prepared(stored.artifact.path, val=0)
    assert again.facts.levels == 17
    assert np.array_equal(again.splits["train"].pixels, raw.splits["train"].pixels)


def test_an_encoding_in_words() -> None:
    """`genflow data show` prints whether bits are lost."""
    words = ["raw", "png, lossless", "webp, lossless", "jpeg, lossy (quality 95)"]
    assert [encoding.describe(name) for name in ("raw", *CODECS)] == words


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("ring8", "png", "data.encoding=png: ring8 contains points of the plane, and only pictures can be encoded"),
        ("digits", "jpeg", "data.encoding=jpeg: digits has 17 grey levels, and a lossy encoding needs 256"),
        ("stack:digits", "jpeg", "data.encoding=jpeg: stack:digits has 17 grey levels, and a lossy encoding needs 256"),
    ],
)
def test_what_cannot_be_encoded_is_refused(
    prepared: Callable[..., Dataset], source: str, name: str, message: str
) -> None:
    with pytest.raises(UsageError) as refused:
        prepared(source, encoding=name)
    assert refused.value.message == message


def test_raw_data_keeps_its_address(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is part of the address if it is not `raw`; otherwise the hashed options are those of before the key."""
    hashed: list[Any] = []
    monkeypatch.setattr(plan, "digest", lambda document: hashed.append(document["options"]) or str(len(hashed)))
    for name in ("raw", "webp", "jpeg"):
        data = Data(source=str(pictures), encoding=name)
        plan.address_hash(find(data), data)
    assert set(hashed[0]) == {"size", "channels", "bits", "crop", "labels", "captions", "val", "seed"}
    assert [options.get("encoding") for options in hashed] == [None, "webp", "jpeg"]


def test_facts_and_latents_without_the_key() -> None:
    """Facts of an earlier version are those of raw data; latents of encoded pictures are not encoded."""
    facts = DataSpec((3, 8, 8), 256, splits={"train": 4}, encoding="webp")
    document = facts.to_json()
    assert DataSpec.from_json(document) == facts
    del document["encoding"]
    assert DataSpec.from_json(document).encoding == RAW
    assert facts.of_latents((4, 2, 2), "ae-1").encoding == RAW


def test_the_datasets_library_decodes(prepared: Callable[..., Dataset], pictures: Path) -> None:
    """`load_from_disk` gives pictures of Pillow, without genflow."""
    datasets = pytest.importorskip("datasets")
    stored = prepared(pictures, size=16, encoding="webp")
    loaded = datasets.load_from_disk(str(stored.artifact.path))["train"]
    assert np.array_equal(np.asarray(loaded[5]["image"]), stored.splits["train"].pixels[5])
    assert loaded.features["label"].names == ["a", "b"]


def test_rows_of_several_shards_are_decoded_by_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order that was asked for; other threads than the caller's open the files."""
    facts = DataSpec((1, 4, 4), 256, encoding="png")
    values = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1)).astype(np.uint8)
    tables = []
    for start in (0, 10, 20):
        write_shard(tmp_path / f"{start}.arrow", facts, values[start : start + 10], [str(i) for i in range(10)])
        tables.append(map_stream(tmp_path / f"{start}.arrow"))
    monkeypatch.setattr(encoding, "cores", lambda: 2)
    encoding._pool.cache_clear()
    names, really = set(), Image.open
    monkeypatch.setattr(
        Image, "open", lambda *a, **k: names.add(threading.current_thread().name.partition("_")[0]) or really(*a, **k)
    )
    rows = np.random.default_rng(1).integers(0, 30, 50)
    assert np.array_equal(Split("train", tuple(tables), facts).take(rows), values[rows])
    assert names == {"decode"}
    encoding._pool.cache_clear()


def test_the_next_batch_is_decoded_while_a_step_is_computed(prepared: Callable[..., Dataset], pictures: Path) -> None:
    """The batch of step 1 is ready before it is asked for, on the CPU too, and equals what the stream returns."""
    stream = Stream(prepared(pictures, size=16, encoding="webp").splits["train"], 8, seed=0)
    read = ahead(stream, "cpu", decodes=True)
    assert isinstance(read, Ahead)
    try:
        assert torch.equal(read(0).x, stream(0).x)
        assert read._next is not None
        step, coming = read._next
        assert step == 1
        assert torch.equal(coming.result(10).x, stream(1).x)
    finally:
        read.close()


def test_a_forked_process_decodes() -> None:
    """A worker of a DataLoader is forked from a process whose threads it does not have."""
    program = """
import os, sys
import numpy as np
from genflow.data import encoding
encoding.cores = lambda: 2
records = np.zeros((16, 4, 4, 3), np.uint8)
files = encoding.encode(records, "png").to_pylist()
encoding.decode(files, (4, 4, 3))
if (child := os.fork()) == 0:
    encoding.decode(files, (4, 4, 3))
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=60).returncode == 0
