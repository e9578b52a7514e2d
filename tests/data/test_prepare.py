"""Preparing a dataset: splits, bytes, unreadable pictures, the cache, progress and warnings."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genflow.data import images, plan
from genflow.data.prepare import find, in_process, prepare
from genflow.data.shards import Dataset
from genflow.data.sources.base import ImageSummary
from genflow.data.sources.find import find as find_source
from genflow.errors import DataError, UsageError
from genflow.recipe.schema import Data
from genflow.storage.store import Store


def folder_of(path: Path, count: int = 300, classes: int = 3, side: int = 10) -> Path:
    """Pictures of noise in class folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        file = path / f"class{number % classes}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8)).save(file)
    return path


def test_held_out_share(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """`val` is this fraction of the rows, disjoint from train, and another seed selects other rows."""
    folder = folder_of(tmp_path / "x")
    one, two = prepared(folder, val=0.2), prepared(folder, val=0.2, seed=1)
    assert one.facts.splits == {"train": 240, "val": 60}
    ids = set(one.splits["train"].ids), set(one.splits["val"].ids)
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 300
    assert set(two.splits["val"].ids) != ids[1]
    assert prepared(folder, val=0).facts.splits == {"train": 300}


def test_own_val_split_is_kept(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """If the source has a val split, no other rows are held out; with only a test split, val comes from train."""
    folder_of(tmp_path / "a" / "train", 20)
    folder_of(tmp_path / "a" / "val", 6)
    assert prepared(tmp_path / "a", val=0.5).facts.splits == {"train": 20, "val": 6}
    folder_of(tmp_path / "b" / "train", 20)
    folder_of(tmp_path / "b" / "test", 6)
    assert prepared(tmp_path / "b", val=0.5).facts.splits == {"train": 10, "val": 10, "test": 6}


def test_same_bytes(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """Other mtimes, another path and another order on disk give another id, but the same bytes."""
    one, two = folder_of(tmp_path / "one" / "pets"), tmp_path / "two" / "pets"
    files = [file.relative_to(one) for file in one.rglob("*.png")]
    random.Random(0).shuffle(files)
    for number, file in enumerate(files):
        (two / file).parent.mkdir(parents=True, exist_ok=True)
        (two / file).write_bytes((one / file).read_bytes())
        os.utime(two / file, (number, number))
    a, b = prepared(one), prepared(two)
    assert a.artifact.id != b.artifact.id
    assert a.facts == b.facts
    hashes = [{name: f["sha256"] for name, f in x.artifact.manifest["files"].items()} for x in (a, b)]
    assert hashes[0] == hashes[1]


def test_order_of_results_does_not_matter(store: Store, prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """The facts and the files are the same if workers finish in another order."""
    folder = folder_of(tmp_path / "x", 600)
    expected = prepared(folder)
    from contextlib import nullcontext

    def backwards(method: str, tasks: list[Any]) -> Any:
        return ((n, getattr(tasks[n], method)()) for n in reversed(range(len(tasks))))

    other = Store(tmp_path / "other")
    artifact, _ = prepare(other, Data(source=str(folder)), lambda: nullcontext(backwards), lambda event, **fields: None)
    assert Dataset.open(artifact).facts == expected.facts
    assert artifact.manifest["files"] == expected.artifact.manifest["files"]
    assert len(expected.splits["train"].tables) > 1


def test_shards_are_bounded(tmp_path: Path) -> None:
    """A shard has at most 4,096 rows and 64 MB; a source that decodes slowly gets shards of at least 128 rows."""
    source = find_source(Data(source="grid25", samples=50_000))
    form = plan.image_spec(source, Data(), ImageSummary())
    assert max(len(s.part) for s in plan.plan_shards(source, Data(), form, tmp_path / "a")) <= 4096
    folder = find_source(Data(source=str(folder_of(tmp_path / "x"))))
    large = Data(size=512)
    shards = plan.plan_shards(folder, large, plan.image_spec(folder, large, ImageSummary(colour=True)), tmp_path / "b")
    assert all(len(shard.part) * 3 * 512**2 <= plan.SHARD_BYTES for shard in shards)
    assert len(plan.plan_shards(folder, Data(), plan.image_spec(folder, Data(), ImageSummary()), tmp_path / "c")) == 4


def test_bad_pictures_end_before_anything_is_committed(
    store: Store, prepared: Callable[..., Dataset], tmp_path: Path
) -> None:
    """More than `max_bad` unreadable pictures exit with code 6, list all of them in a file, and leave no dataset."""
    folder = folder_of(tmp_path / "pets", 40)
    for number in range(5):
        (folder / "class0" / f"bad{number}.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(DataError, match=r"5 of 45 pictures in .*/pets cannot be read, and --max-bad is 0 ") as caught:
        prepared(folder)
    assert caught.value.code == 6
    assert "'class0/bad0.jpg': damaged JPEG" in caught.value.message
    assert caught.value.hint.endswith("--max-bad 5")
    listed = store.root / "datasets" / "pets.bad.csv"
    assert len(listed.read_text(encoding="utf-8").splitlines()) == 6
    assert store.artifacts("datasets") == []
    assert [entry.name for entry in (store.root / "datasets").iterdir()] == ["pets.bad.csv"]


def test_tolerated_bad_pictures(store: Store, prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """Up to `max_bad` unreadable pictures are left out and listed; a stricter run fails even if the dataset exists."""
    folder = folder_of(tmp_path / "pets", 40)
    (folder / "class1" / "bad,\n.png").write_bytes(b"")
    dataset = prepared(folder, max_bad=1)
    assert sum(dataset.facts.splits.values()) == 40
    skipped = dataset.artifact.file("bad.csv").read_text(encoding="utf-8")
    assert skipped == 'path,reason\n"class1/bad,\n.png",empty file\n'
    assert not (store.root / "datasets" / "pets.bad.csv").exists()
    known = find(store, Data(source=str(folder), max_bad=1))
    assert known is not None
    assert known.id == dataset.artifact.id
    assert find(store, Data(source=str(folder))) is None
    with pytest.raises(DataError, match="1 of 41"):
        prepared(folder)


def test_bad_pictures_move_no_other(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """An unreadable picture does not change which other rows are held out."""
    folder = folder_of(tmp_path / "x", 60)
    before = prepared(folder)
    victim = before.splits["train"].ids[7]
    (folder / victim).write_bytes(b"broken")
    after = prepared(folder, max_bad=1)
    assert after.splits["val"].ids == before.splits["val"].ids
    assert [id for id in before.splits["train"].ids if id != victim] == after.splits["train"].ids


def test_cached_without_workers(store: Store, tmp_path: Path) -> None:
    """A second run starts no workers; a changed option or picture makes another dataset."""
    folder = folder_of(tmp_path / "x", 30)
    entered = []

    def workers() -> Any:
        entered.append(1)
        return in_process()

    def run(**options: Any) -> tuple[str, bool]:
        artifact, cached = prepare(store, Data(source=str(folder), **options), workers, lambda event, **fields: None)
        return artifact.id, cached

    id, cached = run()
    assert not cached
    assert run() == (id, True)
    assert run(max_bad=3) == (id, True)
    assert len(entered) == 1
    assert run(size=8)[0] != id
    os.utime(folder / "class0" / "0.png", (1, 1))
    assert run()[0] != id


def test_facts_match_the_pixels(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """Mean, sigma and class counts describe the training split."""
    dataset = prepared(folder_of(tmp_path / "x"))
    x = (2.0 * dataset.splits["train"].pixels + 1) / 256 - 1
    assert dataset.facts.mean == pytest.approx(x.mean(), abs=1e-12)
    assert dataset.facts.sigma_data == pytest.approx(x.std(), abs=1e-12)
    assert dataset.facts.class_counts == tuple(np.bincount(dataset.splits["train"].labels))
    assert dataset.facts.class_names == ("class0", "class1", "class2")


def test_data_without_contrast(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """Pictures with a single grey level are an error."""
    for number in range(3):
        Image.new("L", (8, 8), 9).save(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match="one value"):
        prepared(tmp_path, name="grey")


def test_progress_and_warnings(store: Store, tmp_path: Path) -> None:
    """Progress of headers and images reaches the total, and notes of the source become warnings."""
    folder = folder_of(tmp_path / "x", 30)
    Image.new("L", (8, 8)).save(folder / "stray.png")
    said: list[dict[str, Any]] = []
    data = Data(source=str(folder))
    prepare(store, data, in_process, lambda event, **fields: said.append({"event": event, **fields}))
    last = {event["what"]: event for event in said if event["event"] == "progress"}
    assert last["headers"]["step"] == last["headers"]["steps"] == 31
    assert last["images"]["step"] == last["images"]["steps"] == 31
    assert [event["message"] for event in said if event["event"] == "warning"]


def test_names(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    """The default name is the folder's name without special characters; an invalid name is an error."""
    folder = folder_of(tmp_path / "My Pets (2024)", 10)
    assert prepared(folder).artifact.name == "My-Pets-2024"
    assert prepared(folder, name="mine").artifact.name == "mine"
    with pytest.raises(UsageError, match=r"data\.name"):
        prepared(folder, name="../up")


def test_nearly_everything_unreadable(tmp_path: Path, prepared: Callable[..., Dataset]) -> None:
    """If most records are unreadable, the hint says so and proposes no larger `max_bad`."""
    (tmp_path / "x").mkdir()
    for number in range(9):
        (tmp_path / "x" / f"{number}.jpg").write_text("<html>404</html>", encoding="utf-8")
    for hint in ("all of them cannot be read, so ", "most of them cannot be read, so "):
        with pytest.raises(DataError) as caught:
            prepared(tmp_path / "x")
        assert caught.value.hint.startswith(hint)
        assert "--max-bad" not in caught.value.hint
        Image.new("L", (8, 8)).save(tmp_path / "x" / "a.png")


def test_skipped_files_are_shown(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """`prepare` and `data show` print one line with kinds and counts; a cached dataset warns about new ones."""
    from genflow.cli import data as cli_data
    from genflow.cli import prepare as cli_prepare
    from genflow.pipeline.addresses import dataset_result as result

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "formats", lambda: images.FORMATS)
    (tmp_path / "x" / "@eaDir").mkdir(parents=True)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "x" / "a.png")
    for number in range(20):
        (tmp_path / "x" / f"{number}.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0")
    warnings: list[str] = []

    def emit(event: str, message: str = "", **fields: object) -> None:
        warnings.extend([message] if event == "warning" else [])

    line = '20 HEIC files (pip install "genflow-ray[heic]" reads them), 1 @eaDir folder (Synology thumbnails)\n'
    artifact, cached = prepare(store, Data(source=str(tmp_path / "x")), in_process, emit)
    cli_prepare._show({**result(artifact, cached=cached)})
    assert f"skipped  {line}" in capsys.readouterr().out
    monkeypatch.setenv("GENFLOW_STORE", str(store.url))
    cli_data.show(artifact.id, None, False)
    assert f"skipped      {line}" in capsys.readouterr().out
    assert warnings == []
    (tmp_path / "x" / "b.cr2").write_bytes(b"II*\0")
    assert prepare(store, Data(source=str(tmp_path / "x")), in_process, emit)[1]
    assert warnings[0].endswith("(Synology thumbnails), 1 camera raw file (.cr2)")
