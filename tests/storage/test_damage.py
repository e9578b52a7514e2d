"""Random damages to every kind of artifact: none is silent, and none is an error without a name and a cure."""

import hashlib
import json
import random
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import TESTS

from genflow.commands.recipes import read_config
from genflow.data import texts
from genflow.data.pairs import Pairs
from genflow.data.shard_format import shard_name, write_index, write_shard
from genflow.data.shards import Dataset
from genflow.data.texts import Texts
from genflow.errors import GenflowError
from genflow.evaluation import selection
from genflow.evaluation.report.table import best_run
from genflow.sampling import export
from genflow.sampling.engine import Engine
from genflow.serving.model_list import served_models
from genflow.serving.models import Model
from genflow.specs import DataSpec, TextSpec
from genflow.storage import manifest
from genflow.storage.artifact import KINDS
from genflow.storage.manifest import MANIFEST
from genflow.storage.mirror import CHECKSUM, checksum
from genflow.storage.store import Store
from jobs import train, tune

ARCHIVE = TESTS / "fixtures" / "store-0.1.tar.xz"


def _bytes(*values: Any) -> str:
    """A digest of arrays and texts."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.tobytes() if hasattr(value, "tobytes") else repr(value).encode())
    return digest.hexdigest()


def _dataset(store: Store, id: str, kind: str = "datasets") -> str:
    data = Dataset.open(store.find(kind, id))
    return _bytes(data.facts, *(part for split in data.splits.values() for part in (split.pixels, split.labels)))


def _run(store: Store, id: str) -> str:
    run = store.find("runs", id)
    engine = Engine.load(run)
    model = Model(served_models(store, [run])[0])
    weights = [value.numpy() for value in engine.family.state_dict().values()]
    return _bytes(engine.recipe, engine.facts, engine.step, *weights, model.step, model.recipe, model.evaluation,
                  train.result(run, cached=True))  # fmt: skip


def _pairs(store: Store, id: str) -> str:
    (data,) = store.artifacts("datasets")
    pairs = Pairs.open(store.find("pairs", id), DataSpec.from_json(data.file("facts.json").read_text(encoding="utf-8")))
    return _bytes(*(view for views in pairs._views.values() for view in views))


def _texts(store: Store, id: str) -> str:
    found = Texts.open(store.find("texts", id).verify().folder)
    return _bytes(*(part for caption in ("", "a", "b") for part in found.embedding(int(found.find([caption])[0]))))


def _search(store: Store, id: str) -> str:
    search = store.find("searches", id)
    return _bytes(tune.result(search, cached=True), read_config(search.folder / "best.yaml"))


def _evaluation(store: Store, id: str) -> str:
    return _bytes(selection.choices(store), best_run(store, "fd")[0].id)


def _whole(kind: str) -> Callable[[Store, str], str]:
    return lambda store, id: _bytes(store.find(kind, id).verify().manifest)  # noqa: A006


READ: dict[str, Callable[[Store, str], str]] = {
    "texts": _texts, "datasets": _dataset, "latents": partial(_dataset, kind="latents"), "runs": _run, "pairs": _pairs,
    "searches": _search, "evaluations": _evaluation,
    "features": _whole("features"), "reports": _whole("reports"),
    "exports": lambda store, id: _bytes(  # noqa: A006
        *(v.numpy() for v in Engine.from_folder(store.folder("exports", id)).family.state_dict().values())),
}  # fmt: skip


def _damage(draw: random.Random, file: Path, others: list[Path]) -> tuple[str, list[Path]]:
    """Damage a file; return how, and the files that changed."""
    content, kind = file.read_bytes(), draw.choice(("flip", "cut", "delete", "empty", "swap", "append", "zero"))
    at = draw.randrange(max(1, len(content)))
    if kind == "swap":
        other = draw.choice(others)
        theirs = other.read_bytes()
        other.write_bytes(content)
        file.write_bytes(theirs)
        return kind, [file, other]
    if kind == "delete":
        file.unlink()
        return kind, [file]
    changed = {
        "flip": content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :] if content else b"",
        "cut": content[:at], "empty": b"", "append": content + draw.randbytes(1 + draw.randrange(9)),
        "zero": content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :],
    }[kind]  # fmt: skip
    file.write_bytes(changed)
    return kind, [file]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of tests/fixtures with all kinds, whose manifests have got a checksum, and an export of a run."""
    folder = tmp_path_factory.mktemp("damage")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    store = Store(folder / "store")
    for file in store.root.glob(f"*/*/{MANIFEST}"):
        document = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**document, CHECKSUM: checksum(document)}), encoding="utf-8")
    (data,), run = store.artifacts("datasets"), store.artifacts("runs")[0]
    export.write(run, Engine.load(run), "safetensors", store.folder("exports", "vae-1"))
    with store.stage("reports", "ramps-1", name="ramps") as staged:
        (staged.path / "report.html").write_text("<html>fd 21.7</html>" * 50, encoding="utf-8")
        (staged.path / "compare.json").write_text(json.dumps({"best": run.id}), encoding="utf-8")
        staged.commit(parents=[run.id, data.id])
    if not store.artifacts("features"):
        with store.stage("features", "ramps-random-1", name="ramps") as staged:
            (staged.path / "weights.safetensors").write_bytes(random.Random(0).randbytes(3000))
            staged.commit(parents=[data.id])
    latents = DataSpec((2, 2, 2), None, splits={"train": 300}, autoencoder="autoencoder-1")
    with store.stage("latents", "ramps-1", name="ramps") as staged:
        values = np.random.default_rng(0).standard_normal((300, 2, 2, 2)).astype(np.float16)
        (staged.path / "train").mkdir()
        write_shard(staged.path / "train" / "data.arrow", latents, values, [str(n) for n in range(300)])
        write_index(staged.path, latents, {"train": {"data.arrow": 300}})
        staged.commit(parents=[data.id])
    embeddings = [(np.ones((n + 2, 3), np.float32) * n, np.ones(4, np.float32)) for n in range(3)]
    with store.stage("texts", "ramps-1", name="ramps") as staged:
        captions = sorted(("", "a", "b"), key=lambda caption: int(texts.keys([caption])[0]))
        texts.write_captions(staged.path, captions)
        texts.write_shard(staged.path / shard_name(0, 1), embeddings)
        texts.write_index(staged.path, "minilm", TextSpec(3, 4, 8, "minilm@1"))
        staged.commit(parents=[data.id])
    return store


def _damages(store: Store, seed: int, count: int, capsys: pytest.CaptureFixture[str]) -> dict[str, int]:
    draw, outcomes = random.Random(seed), {"error": 0, "warning": 0, "equal": 0}
    folders = {kind: sorted(p for p in (store.root / kind).iterdir() if p.is_dir()) for kind in READ}
    sound = {(kind, f.name): READ[kind](store, f.name) for kind, found in folders.items() for f in found}
    capsys.readouterr()
    for number in range(count):
        kind = draw.choice(list(READ))
        folder = draw.choice(folders[kind])
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        file = draw.choice([*files, folder / MANIFEST])
        backup = {path: path.read_bytes() for path in files}
        how, changed = _damage(draw, file, files)
        case = f"{number}: {how} of {file.relative_to(store.root)}"
        manifest._warned.clear()
        try:
            found = READ[kind](store, folder.name)
        except GenflowError as error:
            missing = how == "delete" and file == folder / MANIFEST
            assert any(str(path) in error.message for path in changed) or missing, (case, error.message)  # noqa: PT017
            assert error.hint, case  # noqa: PT017
            outcomes["error"] += 1
        except Exception as error:
            raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
        else:
            said = capsys.readouterr().err
            named = any(str(path) in said for path in changed)
            unfinished = how == "delete" and file == folder / MANIFEST  # a folder without a manifest is unfinished
            assert found == sound[kind, folder.name] or named or unfinished, f"{case}: silent"
            outcomes["warning" if named else "equal"] += 1
        finally:
            for path, content in backup.items():
                if path in changed:
                    path.write_bytes(content)
    assert {(kind, f.name): READ[kind](store, f.name) for kind, found in folders.items() for f in found} == sound
    return outcomes


def test_every_kind_is_damaged() -> None:
    """A new kind of artifact gets a reader here."""
    assert set(READ) == {*KINDS, "exports"}


def test_no_damage_is_silent(whole: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A few hundred damages."""
    outcomes = _damages(whole, 0, 400, capsys)
    assert min(outcomes.values()) > 0, outcomes


@pytest.mark.slow
def test_no_damage_of_3000_is_silent(whole: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Three thousand damages; the figures are printed."""
    outcomes = _damages(whole, 1, 3000, capsys)
    with capsys.disabled():
        print(outcomes)
