"""Warnings about data that is readable and not what a person expects, each made with real files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genflow.data import preview
from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.errors import DataError
from genflow.pipeline.addresses import dataset_result as result
from genflow.recipe.schema import Data
from genflow.storage.store import Store

Prepare = Callable[..., Dataset]


def scenes(count: int, side: int = 32, seed: int = 0) -> list[np.ndarray]:
    """Pictures of large coloured shapes: smooth, and different from each other."""
    rng = np.random.default_rng(seed)
    small = [Image.fromarray(rng.integers(20, 236, (4, 4, 3)).astype(np.uint8)) for _ in range(count)]
    return [np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in small]


def save(folder: Path, pictures: list[np.ndarray], prefix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{prefix}{number}.png")
    return folder


def warnings(dataset: Dataset) -> list[str]:
    found: list[str] = dataset.artifact.meta["warnings"]
    return found


def test_ordinary_data_has_no_warning(prepared: Prepare, tmp_path: Path) -> None:
    assert warnings(prepared("digits")) == []
    assert warnings(prepared("grid25", samples=500)) == []
    assert warnings(prepared(save(tmp_path / "x", scenes(200)))) == []


def test_warnings_are_stored_and_shown(store: Store, tmp_path: Path) -> None:
    """Warnings are emitted once, and kept for the commands' documents, also if the dataset exists."""
    folder = save(tmp_path / "a", scenes(20))
    save(folder, scenes(20), "copy")
    said: list[dict[str, Any]] = []
    data = Data(source=str(folder))
    for cached in (False, True):
        artifact, found = prepare(store, data, in_process, lambda event, **fields: said.append({event: fields}))
        assert found == cached
        expected = ["20 of 40 pictures are identical to an earlier one; copies stay together in one split"]
        assert result(artifact, cached=found)["warnings"] == expected
    assert [event["warning"]["message"] for event in said if "warning" in event] == expected
    assert preview.describe(Dataset.open(artifact))["warnings"] == expected


@pytest.mark.parametrize("seed", range(4))
def test_copies_are_never_on_both_sides(prepared: Prepare, tmp_path: Path, seed: int) -> None:
    """Whole groups of copies are held out, about as many rows as requested, and no row is lost."""
    folder = save(tmp_path / "x", scenes(60))
    for number in range(40):
        save(folder, scenes(60)[number : number + 1] * (2 if number < 5 else 1), f"copy{number}-")
    (folder / "bad.png").write_bytes(b"")
    dataset = prepared(folder, val=0.25, seed=seed, max_bad=1)
    train, val = ({p.tobytes() for p in dataset.splits[name].pixels} for name in ("train", "val"))
    assert not train & val
    assert len(train | val) == 60
    assert sum(dataset.facts.splits.values()) == 105
    assert 24 <= dataset.facts.splits["val"] <= 26
    files = [path.name for path in dataset.artifact.path.glob("*/*.arrow")]
    assert len(files) == sum(len(split.tables) for split in dataset.splits.values())


def test_split_without_copies_is_the_same(prepared: Prepare, tmp_path: Path) -> None:
    """Copies within one split move no row: the held-out rows are those of data without copies."""
    pictures = scenes(40)
    plain = prepared(save(tmp_path / "a", pictures), name="a")
    inside = [int(id.partition(".")[0]) for id in plain.splits["train"].ids[:2]]
    pictures[inside[0]] = pictures[inside[1]]
    assert prepared(save(tmp_path / "b", pictures), name="b").splits["val"].ids == plain.splits["val"].ids


def test_copies_in_splits_of_the_source(prepared: Prepare, tmp_path: Path) -> None:
    """Splits that a person made are kept, and copies in both are reported."""
    save(tmp_path / "train", scenes(30))
    save(tmp_path / "test", scenes(3) + scenes(7, seed=1))
    dataset = prepared(tmp_path, val=0, name="x")
    assert dataset.facts.splits == {"train": 30, "test": 10}
    (line,) = warnings(dataset)
    assert "3 of 10 held-out pictures are also in train" in line


def test_identical_pictures_are_an_error(prepared: Prepare, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 12 pictures are identical") as caught:
        prepared(save(tmp_path / "x", scenes(1) * 12))
    assert caught.value.code == 6


def test_one_picture_with_noise(prepared: Prepare, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-3, 4, (50, 32, 32, 3))
    dataset = prepared(save(tmp_path / "x", [(scenes(1)[0].clip(9, 246) + n).astype(np.uint8) for n in noise]))
    assert warnings(dataset)[0].startswith("nearly all pictures are the same picture")


def test_near_copies(prepared: Prepare, tmp_path: Path) -> None:
    """Pictures saved again as JPEG are near copies of the originals, and the warning names one pair."""
    folder = save(tmp_path / "x", scenes(100))
    for number, picture in enumerate(scenes(100)[:50]):
        Image.fromarray(picture).save(folder / f"again{number}.jpg", quality=75)
    (line,) = warnings(prepared(folder, val=0.2))
    assert "held-out pictures" in line
    assert "nearly identical to a training picture, such as " in line
    assert ".jpg" in line


def test_small_classes(prepared: Prepare, tmp_path: Path) -> None:
    for name, count in {"cat": 20, "dog": 3, "eel": 1}.items():
        save(tmp_path / name, scenes(count, seed=count))
    (line,) = warnings(prepared(tmp_path, name="x", val=0))
    assert line.startswith("2 of 3 classes have fewer than 5 training pictures: dog (3), eel (1)")


def test_empty_pictures(prepared: Prepare, tmp_path: Path) -> None:
    """Nearly black, white and uniform pictures are counted, and one is named."""
    folder = save(tmp_path / "x", scenes(40))
    flat = [np.full((32, 32, 3), level, np.uint8) for level in (3, 250, 120)]
    save(folder, flat, "z")
    (line,) = warnings(prepared(folder, val=0))
    assert line == "3 of 43 pictures are nearly empty (1 black, 1 white, 1 of one colour), such as z0.png"


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_than_16_bits(prepared: Prepare, tmp_path: Path, bits: int) -> None:
    """12-bit values in 16-bit files: the warning offers `--bits 12`, which restores the full range, also for arrays."""
    rng = np.random.default_rng(0)
    deep = [rng.integers(0, 2**bits, (16, 16)).astype(np.uint16) for _ in range(20)]
    folder = save(tmp_path / "x", deep)
    np.savez(tmp_path / "x.npz", images=np.stack(deep))
    for source in (folder, tmp_path / "x.npz"):
        line = warnings(prepared(source))[0]
        assert f"use --bits {bits}" in line
        right = prepared(source, bits=bits)
        assert warnings(right) == []
        assert right.splits["train"].pixels.max() == 255
        assert right.facts.mean == pytest.approx(0, abs=0.05)


def test_more_bits_than_announced(prepared: Prepare, tmp_path: Path) -> None:
    """Values above the range of `bits` are unreadable, and the array's error names the bits that are needed."""
    deep = [np.full((8, 8), 5000, np.uint16) + np.arange(8, dtype=np.uint16) * n for n in range(9)]
    with pytest.raises(DataError, match=r"up to 50.* need more than 12 bits"):
        prepared(save(tmp_path / "x", deep), bits=12)
    np.savez(tmp_path / "x.npz", images=np.stack(deep))
    with pytest.raises(DataError, match="more than 12 bits") as caught:
        prepared(tmp_path / "x.npz", bits=12)
    assert caught.value.hint == "--bits 13"


def test_bits_without_effect(prepared: Prepare, tmp_path: Path) -> None:
    assert "changes nothing" in warnings(prepared(save(tmp_path / "x", scenes(10)), bits=12))[0]


def test_enlarged_pictures(prepared: Prepare, tmp_path: Path) -> None:
    folder = save(tmp_path / "x", scenes(20, 64))
    save(folder, scenes(5, 8, seed=1), "small")
    (line,) = warnings(prepared(folder, size=64))
    assert line.startswith("5 of 25 pictures are enlarged to 64 x 64, the smallest from 8 pixels")


def test_wide_pictures(prepared: Prepare, tmp_path: Path) -> None:
    """Panoramas lose most of their pixels to the crop; ordinary photographs of 3:2 are no reason for a warning."""
    wide = [np.concatenate([a, b], 1) for a, b in zip(scenes(20), scenes(20, seed=1), strict=True)]
    (line,) = warnings(prepared(save(tmp_path / "x", wide)))
    assert "drops more than a third of 20 of 20 pictures, up to 50 %" in line
    for crop in ("none", "random"):
        assert warnings(prepared(tmp_path / "x", crop=crop)) == []
    photo = [np.concatenate([a, b[:, :16]], 1) for a, b in zip(scenes(20), scenes(20, seed=1), strict=True)]
    assert warnings(prepared(save(tmp_path / "y", photo))) == []
    square = save(tmp_path / "z", scenes(20))
    assert warnings(prepared(square, crop="random")) == ["--crop random changes nothing: all pictures are square"]
