"""Latents are a dataset: a row of latents is a function of its picture, and the autoencoder comes with them."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import Command, in_this_process
from support.latents import SMALL, dataset, encoded, pictures, task
from support.small import recipe
from support.trained_run import trained_run

from genflow import build
from genflow.data.shards import Dataset
from genflow.data.stream import Stream
from genflow.errors import DataError, GenflowError, UsageError
from genflow.maths.rng import SampleRng
from genflow.recipe.schema import parse
from genflow.sampling import autoencoders, encode
from genflow.sampling.diffusers_folder import read_autoencoder, write_autoencoder
from genflow.sampling.engine import Engine
from genflow.storage.mirror import CHECKSUM, checksum
from genflow.storage.store import Artifact, Store

ROWS = 70  # more than one batch of 64
Changed = Callable[[Callable[[Any], object]], tuple[Store, encode.EncodePlan]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Dataset, Artifact]:
    """A store with the dataset `colours`, and an autoencoder of two training steps."""
    folder = tmp_path_factory.mktemp("encode")
    store = Store(folder / "store")
    data = dataset(store, pictures(folder / "colours", ROWS))
    return store, data, trained_run(store, data, "autoencoder", steps=2, **SMALL)


@pytest.fixture
def own(made: tuple[Store, Dataset, Artifact], tmp_path: Path) -> tuple[Store, Dataset, Artifact]:
    """A copy of `made` that a test may change."""
    store, data, run = made
    shutil.copytree(store.root, tmp_path / "store", ignore=shutil.ignore_patterns("latents"))
    mine = Store(tmp_path / "store")
    return mine, Dataset.open(mine.find("datasets", data.artifact.id)), mine.find("runs", run.id)


def test_latents_are_a_dataset(made: tuple[Store, Dataset, Artifact]) -> None:
    """Each row has the latents of its picture, standardized, with the label, the id and the captions of the picture."""
    store, data, run = made
    plan = task(store, run)
    artifact = encoded(store, plan)
    latents = Dataset.open(artifact)
    (split,), source = latents.splits.values(), data.splits["train"]
    assert latents.facts == replace(
        data.facts, shape=(3, 4, 4), levels=None, mean=0.0, sigma_data=1.0, splits={"train": ROWS}, autoencoder=run.id,
        fingerprint=latents.facts.fingerprint,
    )  # fmt: skip
    assert len(latents.facts.fingerprint) == 64
    assert (split.ids, split.captions) == (source.ids, source.captions)
    assert np.array_equal(split.labels, source.labels)
    engine = Engine.load(run)
    codes = engine.encode(source.pixels, None, range(ROWS)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(split.pixels.astype(np.float32), codes, atol=2e-3, rtol=2e-3)
    assert artifact.meta["deviation"] == pytest.approx(codes.std((0, 1, 2)), abs=0.01)
    assert artifact.meta["warnings"] == []
    assert artifact.manifest["parents"] == [data.artifact.id, run.id]


def test_other_tools_read_latents(made: tuple[Store, Dataset, Artifact]) -> None:
    """`datasets.load_from_disk` reads the folder."""
    store, _, run = made
    plan = task(store, run)
    artifact = store.get("latents", plan.id) or encoded(store, plan)
    loaded = pytest.importorskip("datasets").load_from_disk(str(artifact.path))["train"]
    split = Dataset.open(artifact).splits["train"]
    assert len(loaded) == ROWS
    assert np.array_equal(np.array(loaded[5]["latent"], np.float16), split.pixels[5].ravel())
    assert loaded[5]["captions"] == list(split.captions[5])


def test_the_autoencoder_comes_with_the_latents(made: tuple[Store, Dataset, Artifact]) -> None:
    """The copy decodes them as the run does, without the run."""
    store, data, run = made
    plan = task(store, run)
    artifact = store.get("latents", plan.id) or encoded(store, plan)
    copy, engine = Engine.from_folder(artifact.path / "autoencoder"), Engine.load(run)
    assert copy.facts == data.facts
    codes = Dataset.open(artifact).splits["train"].pixels.astype(np.float32).transpose(0, 3, 1, 2)
    decoded = copy.decode(codes, None, range(ROWS)).images
    assert np.array_equal(decoded, engine.decode(codes, None, range(ROWS)).images)


def test_the_copy_has_the_same_bytes_every_time(made: tuple[Store, Dataset, Artifact], tmp_path: Path) -> None:
    """Also its weights, whose format has a table of names."""
    _, data, run = made
    loaded = autoencoders.load(run, data.facts, "colours")
    for number in range(8):
        autoencoders.write(loaded, data.facts, tmp_path / str(number))
    copies = [[file.read_bytes() for file in autoencoders.files(tmp_path / str(number))] for number in range(8)]
    assert all(copy == copies[0] for copy in copies)


def test_bytes_depend_on_the_row_alone(made: tuple[Store, Dataset, Artifact], monkeypatch: pytest.MonkeyPatch,
                                       tmp_path: Path) -> None:  # fmt: skip
    """Shards in any order by any encoder have the same bytes."""
    store, _, run = made
    monkeypatch.setattr(encode, "SHARD", 32)
    plan = task(store, run)
    encode.copy_autoencoder(plan, tmp_path)
    one = encode.Encoder(plan, tmp_path)
    for file, first, last in plan.shards:
        one.write(tmp_path / "a" / file, first, last)
    for file, first, last in reversed(plan.shards):
        encode.Encoder(plan, tmp_path).write(tmp_path / "b" / file, first, last)
    names = [file for file, _, _ in plan.shards]
    assert len(names) == 3
    assert [(tmp_path / "a" / f).read_bytes() for f in names] == [(tmp_path / "b" / f).read_bytes() for f in names]


def test_mirrored_pictures_are_further_rows(made: tuple[Store, Dataset, Artifact]) -> None:
    """With `flip`, row N + i is of the mirrored picture i, which is not the mirrored latents of picture i."""
    store, data, run = made
    latents = Dataset.open(encoded(store, task(store, run, flip=True)))
    split, source = latents.splits["train"], data.splits["train"]
    assert latents.facts.splits == {"train": 2 * ROWS}
    assert latents.facts.class_counts == (ROWS, ROWS)
    assert split.captions == source.captions * 2
    codes = Engine.load(run).encode(source.pixels[:, :, ::-1].copy(), None, range(ROWS)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(split.pixels[ROWS:].astype(np.float32), codes, atol=2e-3, rtol=2e-3)
    assert np.abs(split.pixels[ROWS:] - split.pixels[:ROWS, :, ::-1]).max() > 0.1


def test_the_id_covers_all_that_decides_the_latents(own: tuple[Store, Dataset, Artifact], tmp_path: Path) -> None:
    """Another caption, class name, autoencoder, weight or option gives another id, and the old latents stay."""
    store, data, run = own
    plan = task(store, run)
    assert task(store, run.name).id == plan.id
    ids = {plan.id, task(store, run, flip=True).id}
    other = trained_run(store, data, "autoencoder", steps=3, **SMALL)
    ids.add(task(store, other).id)
    folder = pictures(tmp_path / "colours", ROWS)
    (folder / "red" / "000.txt").write_text("a crimson square\n", encoding="utf-8")
    changed = dataset(store, folder)
    ids.add(task(store, run, changed.artifact.id).id)
    assert task(store, run, plan.dataset.id).id == plan.id
    manifest = run.folder / "manifest.json"
    document = json.loads(manifest.read_text(encoding="utf-8"))
    weights = next(name for name in document["files"] if name.endswith("/ema.safetensors"))
    changed_weights = (run.folder / weights).read_bytes()[:-4] + b"\0\0\0\1"
    (run.folder / weights).write_bytes(changed_weights)
    document["files"][weights]["sha256"] = hashlib.sha256(changed_weights).hexdigest()
    manifest.write_text(json.dumps({**document, CHECKSUM: checksum(document)}), encoding="utf-8")
    ids.add(task(store, run.id, plan.dataset.id).id)  # trained again, with other weights
    assert len(ids) == 5


def test_an_autoencoder_of_another_side(own: tuple[Store, Dataset, Artifact], tmp_path: Path) -> None:
    """The factor is that of the run, although its default would differ for this side."""
    store, _, _ = own
    large = dataset(store, pictures(tmp_path / "large", 20, (128, 128)), size=128)
    run = trained_run(store, large, "autoencoder", steps=1, net="autoencoder")
    assert task(store, run, "large").facts.shape == (16, 16, 16)
    plan = task(store, run, "colours")
    assert plan.facts.shape == (16, 2, 2)
    encoded(store, plan)
    assert Engine.from_folder(store.folder("latents", plan.id) / "autoencoder").family.code_shape == (16, 2, 2)


def test_pictures_that_do_not_fit(own: tuple[Store, Dataset, Artifact], tmp_path: Path) -> None:
    """Points, other channels, a side that the factor does not divide: one line with the command that cures it."""
    store, data, run = own
    dataset(store, "ring8", samples=400)
    dataset(store, "digits")
    dataset(store, pictures(tmp_path / "odd", 20), size=18)
    flow = trained_run(store, data, "flow_matching", steps=1)
    for reference, name, message, cure in (
        (run.id, "ring8", "contains points, not pictures", "genflow data ls"),
        (run.id, "digits", f"autoencoder {run.id} is of pictures with 3 channels, and digits has 1", "--channels 3"),
        (run.id, "odd", f"autoencoder {run.id} has factor 4, which does not divide 18, the side of odd",
         "--size 16 or 20"),
        (flow.id, "colours", f"run {flow.id} is a flow_matching, not an autoencoder", f"--autoencoder {run.id}"),
        ("nothing", "colours", "no run 'nothing'", "genflow train"),
        ("./nowhere", "colours", "nowhere is no folder on this machine", "name a local folder"),
        (str(tmp_path), "colours", "has no config.json", "AutoencoderKL"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message.replace(".", r"\.")) as caught:
            task(store, reference, name)
        assert cure in caught.value.hint, message
        assert "\n" not in caught.value.message


def kl_folder(path: Path, data: Dataset, seed: int = 0) -> Path:
    """A folder of AutoencoderKL whose weights are a function of the seed."""
    net = {"kind": "autoencoder_kl", "block_out_channels": [8, 8, 8], "norm_num_groups": 4}
    document = {"family": {"kind": "autoencoder", "factor": 4, "channels": 4}, "net": net}
    torch.manual_seed(seed)
    write_autoencoder(build.family_of(build.resolve(parse(document), data.facts), data.facts), path)
    return path


def test_a_folder_of_diffusers(made: tuple[Store, Dataset, Artifact], tmp_path: Path) -> None:
    """Its latents are those that `read_autoencoder` gives; the id covers its bytes, not where it is."""
    store, data, _ = made
    folder = kl_folder(tmp_path / "models" / "vae", data)
    plan = task(store, str(folder))
    artifact = encoded(store, plan)
    assert artifact.manifest["parents"] == [data.artifact.id]
    latents = Dataset.open(artifact)
    assert re.fullmatch(r"models-\w+", latents.facts.autoencoder)
    recipe, family = read_autoencoder(folder, data.facts)
    codes = Engine(family, recipe).encode(data.splits["train"].pixels, None, range(ROWS)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(latents.splits["train"].pixels.astype(np.float32), codes, atol=2e-3, rtol=2e-3)
    copy = Engine.from_folder(artifact.path / "autoencoder")
    assert all(torch.equal(value, family.state_dict()[name]) for name, value in copy.family.state_dict().items())
    shutil.copytree(tmp_path / "models", tmp_path / "elsewhere")
    assert task(store, str(tmp_path / "elsewhere")).id == plan.id  # a whole pipeline, with the folder inside
    assert task(store, str(kl_folder(tmp_path / "other", data, seed=1))).id != plan.id
    config = tmp_path / "elsewhere" / "vae" / "config.json"
    changed = {**json.loads(config.read_bytes()), "scaling_factor": 0.1}
    config.write_text(json.dumps(changed), encoding="utf-8")
    scaled = task(store, str(tmp_path / "elsewhere"))
    assert scaled.id != plan.id
    (warning,) = encoded(store, scaled).meta["warnings"]
    assert "scaling_factor and shift_factor in its config.json do not fit these pictures" in warning


@pytest.fixture
def changed(own: tuple[Store, Dataset, Artifact]) -> Changed:
    """Plan the latents of a dataset, with a copy of the autoencoder that a function has changed."""
    store, _, run = own

    def make(change: Callable[[Any], object]) -> tuple[Store, encode.EncodePlan]:
        plan = task(store, run)
        loaded = autoencoders.load(run, plan.pictures, "colours")
        with torch.no_grad():
            change(loaded.family)
        autoencoders.write(loaded, plan.pictures, store.folder("latents", plan.id) / "autoencoder")
        return store, plan

    return make


@pytest.mark.parametrize(
    ("deviation", "problem"),
    [(1e-9, r"its largest latent, [0-9.e+]+, does not fit float16, which ends at 65504"),
     (float("nan"), "its latents are not finite")],
)  # fmt: skip
def test_latents_that_float16_cannot_hold(changed: Changed, deviation: float, problem: str) -> None:
    """The error names the row and its picture, and no shard is written."""
    store, plan = changed(lambda family: family.latent_deviation.fill_(deviation))
    with pytest.raises(DataError, match=rf"row 0 of {plan.dataset.id} \(.*\.png\): {problem}"):
        encoded(store, plan)
    assert list((store.folder("latents", plan.id) / "train").glob("*")) == []


def test_a_deviation_far_from_one_is_a_warning(changed: Changed) -> None:
    """With figures and the channels."""
    scale = torch.tensor([5.0, 1.0, 0.125])[:, None, None]
    artifact = encoded(*changed(lambda family: family.latent_deviation.div_(scale)))
    (warning,) = artifact.meta["warnings"]
    first, _, last = artifact.meta["deviation"]
    assert f"outside 0.5 to 2 in 2 of 3 channels: {first:.3g} in channel 0, {last:.3g} in channel 2." in warning


def test_pictures_for_random_crops(own: tuple[Store, Dataset, Artifact], tmp_path: Path) -> None:
    """The centre crop is encoded, and a warning says so."""
    store, _, run = own
    wide = dataset(store, pictures(tmp_path / "wide", 12, (32, 16)), size=16, crop="random")
    assert wide.facts.strip
    artifact = encoded(store, task(store, run, "wide"))
    assert artifact.meta["warnings"][0].endswith("the latents are of their centre crops")
    latents = Dataset.open(artifact)
    assert latents.facts.strip == 0
    codes = Engine.load(run).encode(wide.splits["train"].pixels, None, range(12)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(latents.splits["train"].pixels.astype(np.float32), codes, atol=2e-3, rtol=2e-3)


def test_a_damaged_shard_is_named(own: tuple[Store, Dataset, Artifact]) -> None:
    """Such as one that a failing disk cut; the cure makes it again."""
    store, _, run = own
    plan = task(store, run)
    encoded(store, plan)
    shard = store.folder("latents", plan.id) / plan.shards[0][0]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(GenflowError, match="not a readable Arrow stream") as caught:
        encode.finish(plan, shard.parents[1])
    assert caught.value.hint == f"rm {shard}, then run the same command again"


@pytest.fixture
def genflow(own: tuple[Store, Dataset, Artifact], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
            tmp_path: Path) -> Command:  # fmt: skip
    """Run a command in an empty folder, with the store of `own`."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("GENFLOW_STORE", str(own[0].root))
    return in_this_process(monkeypatch, capsys)


def test_the_plan_of_a_command(own: tuple[Store, Dataset, Artifact], genflow: Command) -> None:
    """--dry-run names the latents and whether they exist; without --autoencoder the line names one of this data."""
    store, data, run = own
    plan = task(store, run, flip=True)
    asked = ("encode", "colours", "--autoencoder", run.name, "--flip", "--dry-run", "--json")
    code, out, err = genflow(*asked)
    assert (code, err.count(f"data     {data.artifact.id}")) == (0, 1)
    document = json.loads(out)
    assert document["stages"] == [{"job": "encode", "artifact": plan.id, "state": "to do"}]
    assert document["recipe"] == {"data": data.artifact.id, "autoencoder": run.id, "encode": {"flip": True},
                                  "rows": 2 * ROWS, "shape": [3, 4, 4]}  # fmt: skip
    encoded(store, plan)
    assert json.loads(genflow(*asked)[1])["stages"][0]["state"] == "finished: nothing to do"
    code, _, err = genflow("encode", "colours")
    assert (code, err) == (2, f"error: no autoencoder given\n  fix: --autoencoder {run.id}\n")


def test_latents_are_listed_shown_and_deleted(own: tuple[Store, Dataset, Artifact], genflow: Command) -> None:
    """By `genflow data`; the preview shows decoded pictures, and deleting what they came from names them."""
    store, data, run = own
    latents = encoded(store, task(store, run)).id
    assert latents in genflow("data", "ls")[1]
    listed = json.loads(genflow("data", "ls", "--json")[1])
    assert [(row["latents"], row["dataset"], row["shape"]) for row in listed["latents"]] == [
        (latents, data.artifact.id, [3, 4, 4])]  # fmt: skip
    code, out, _ = genflow("data", "show", latents)
    assert code == 0
    assert f"autoencoder  {run.id}\n" in out
    assert Image.open(f"{latents}-preview.png").size == (8 * 66 + 2, 8 * 66 + 2)  # 64 pictures, each enlarged
    for command in (("data", "rm", "colours"), ("runs", "rm", run.id)):
        code, _, err = genflow(*command)
        assert code == 2
        assert f"{latents} came from it" in err
    assert genflow("data", "rm", latents, "--yes")[:2] == (0, f"deleted  {latents}\n")
    assert store.names("latents") == []


def test_a_model_trains_on_latents(made: tuple[Store, Dataset, Artifact]) -> None:
    """Flow matching reads the latents as it reads pictures."""
    store, _, run = made
    plan = task(store, run)
    latents = Dataset.open(store.get("latents", plan.id) or encoded(store, plan))
    family = build.family_of(recipe("flow_matching", latents.facts, "mlp"), latents.facts)
    batch = Stream(latents.splits["train"], 8, 0)(0)
    loss, _ = family.loss("net", batch, SampleRng(range(8), "step", "cpu"))
    assert 0.1 < loss.item() < 10
