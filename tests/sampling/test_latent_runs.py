"""A run on latents: everything outside the family sees pictures, and the run needs no other artifact."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.latents import SMALL, dataset, encoded, pictures, task
from support.trained_run import trained_run

from genflow import runs
from genflow.data.shards import Dataset
from genflow.data.values import from_x, to_display
from genflow.errors import DataError, UsageError
from genflow.evaluation import evaluate
from genflow.evaluation.metrics.reconstruction import similarity
from genflow.evaluation.report import page as report_page
from genflow.evaluation.report import reproduce, table
from genflow.recipe.schema import Evaluate, parse
from genflow.sampling import export, reflow
from genflow.sampling.engine import Engine, picture_facts
from genflow.storage.store import Artifact, Store
from genflow.tables import document as tables
from genflow.tables import page
from genflow.tables.formatting import number

Made = tuple[Store, Dataset, Artifact, Artifact, Artifact]
FEW = Evaluate(samples=32, sweep_samples=16, steps=(1,), bootstrap=4, likelihood=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store with a dataset, its autoencoder, its latents and a run on these."""
    folder = tmp_path_factory.mktemp("latent-runs")
    store = Store(folder / "store")
    data = dataset(store, pictures(folder / "colours", 400), val=0.3)
    autoencoder = trained_run(store, data, "autoencoder", steps=10, **SMALL)
    latents = encoded(store, task(store, autoencoder))
    run = trained_run(store, data, "flow_matching", steps=4, latents=latents, sample={"steps": 2})
    return store, data, autoencoder, latents, run


def test_the_engine_draws_pictures(made: Made) -> None:
    """Its samples are the decoded samples of the family; its facts are those of the pictures."""
    _, data, autoencoder, latents, run = made
    engine = Engine.load(run)
    assert engine.facts == picture_facts(run) == data.facts
    assert engine.family.facts == Dataset.open(latents).facts
    drawn = engine.draw(range(5), [0, 1, 0, 1, 2]).images
    assert (drawn.shape, drawn.dtype) == ((5, 16, 16, 3), np.uint8)
    engine.autoencoder, pixels = None, Engine.load(autoencoder)
    engine.facts = engine.family.facts
    latent = engine.draw(range(5), [0, 1, 0, 1, 2]).images
    label = torch.full((5,), 2)
    decoded = pixels.family.decode(torch.from_numpy(latent).permute(0, 3, 1, 2), label, None)  # type: ignore[arg-type]
    assert np.abs(from_x(decoded, data.facts).astype(int) - drawn).max() <= 1


def test_watchers_see_pictures(made: Made) -> None:
    """A watcher of sampling gets decoded pictures at every step."""
    *_, run = made
    seen: list[tuple[int, ...]] = []
    Engine.load(run).draw(range(2), watch=lambda x, guess: seen.append((*x.shape[1:], *guess.shape[1:])))
    assert set(seen) == {(3, 16, 16, 3, 16, 16)}
    assert len(seen) >= 2


def test_steps_are_counted_without_decoding(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """`on_step` is called at every evaluation, and decodes no latents: only the samples are."""
    *_, run = made
    engine, steps, decoded = Engine.load(run), [], []
    decode = engine._decoded
    monkeypatch.setattr(engine, "_decoded", lambda x: decoded.append(len(x)) or decode(x))
    drawn = engine.draw(range(2), on_step=lambda: steps.append(1))
    assert (len(steps), len(decoded)) == (drawn.nfe, 1)
    assert np.array_equal(drawn.images, engine.draw(range(2)).images)


def test_pictures_are_encoded_and_decoded(made: Made) -> None:
    """Encoding a picture to noise and decoding the noise gives its reconstruction, as far as the steps permit."""
    _, data, _, _, run = made
    engine = Engine.load(run)
    images = data.splits["train"].take(np.arange(4))
    codes = engine.encode(images, None, range(4))
    assert codes.shape == (4, *engine.family.code_shape)
    assert engine.decode(codes, None, range(4)).images.shape == images.shape
    assert engine.reconstruct(images).shape == images.shape


def test_a_run_is_complete(made: Made, tmp_path: Path) -> None:
    """A copy of the run's folder, or its export, draws the same pictures without any other artifact."""
    *_, run = made
    expected = Engine.load(run).draw(range(3)).images
    shutil.copytree(run.path, tmp_path / "run")
    weights = next((tmp_path / "run" / "checkpoints").iterdir())
    assert np.array_equal(Engine.from_folder(tmp_path / "run", weights).draw(range(3)).images, expected)
    export.write(run, Engine.load(run), "safetensors", tmp_path / "out")
    assert np.array_equal(Engine.from_folder(tmp_path / "out").draw(range(3)).images, expected)
    damaged = tmp_path / "out" / "autoencoder" / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"autoencoder/weights\.safetensors"):
        Engine.from_folder(tmp_path / "out")


def test_an_export_has_the_decoder(made: Made, tmp_path: Path) -> None:
    """sample.py decodes the latents, in a process without genflow, and draws the run's pictures."""
    run = made[-1]
    export.write(run, Engine.load(run), "torch_export", tmp_path / "out")
    code = "import runpy, sys; sys.modules['genflow'] = None; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [tmp_path / "out" / "sample.py", "-n", "3", "--label", "none", "--out", tmp_path / "x.npy"]
    subprocess.run([sys.executable, "-c", code, *words], check=True)
    engine = Engine.load(run)
    ours = to_display(engine.draw(range(3)).images, engine.facts).transpose(0, 3, 1, 2)
    assert (np.load(tmp_path / "x.npy") != ours).mean() < 0.001


def _plan(store: Store, kind: str, **data: object) -> runs.RunPlan:
    return runs.plan(store, parse({"family": {"kind": kind}, "data": data}))


def test_the_plan_of_a_run_on_latents(made: Made) -> None:
    """Latents name their dataset; they decide the run's id; they cannot be flipped, nor used for other data."""
    store, data, _, latents, _ = made
    on = _plan(store, "flow_matching", latents=latents.name)
    pixels = _plan(store, "flow_matching", name=data.artifact.id)
    assert on.dataset.id == data.artifact.id
    assert (on.facts.is_latents, on.data_facts) == (True, data.facts)
    assert on.id != pixels.id
    with pytest.raises(UsageError, match="cannot be mirrored"):
        _plan(store, "flow_matching", latents=latents.name, flip=True)
    other = dataset(store, "moons", samples=100)
    with pytest.raises(UsageError, match="are latents of"):
        _plan(store, "ddpm", latents=latents.name, name=other.artifact.id)


def test_a_run_that_starts_from_a_run_on_latents_learns_the_same(made: Made) -> None:
    """A distilled run, and one on a teacher's pairs, take the teacher's latents without naming them."""
    store, data, _, latents, run = made
    document = {"family": {"kind": "consistency"}, "init": run.id, "data": {"name": data.artifact.id}}
    assert runs.plan(store, parse(document)).recipe.data.latents == latents.id
    asked = parse({"reflow": {"pairs": 8}})
    plan = reflow.plan(store, run.id, asked)
    assert plan.latents == latents.id
    folder = store.folder("pairs", plan.id)
    folder.mkdir(parents=True)
    for file, first, last in plan.shards:
        reflow.Teacher(plan).write(folder / file, first, last)
    meta = {"run": run.id, "dataset": data.artifact.id, "latents": plan.latents}
    pairs = store.finalize("pairs", plan.id, name=run.name, parents=[run.id], meta=meta)
    student = _plan(store, "flow_matching", name=data.artifact.id, pairs=pairs.id)
    assert student.recipe.data.latents == latents.id
    rows = runs.training_rows(store, student.recipe, runs.training_data(store, student.recipe))
    assert rows.batch(np.arange(3), torch.device("cpu")).x.shape == (3, *student.facts.shape)


def test_evaluation_states_the_limit_of_the_latents(made: Made) -> None:
    """Next to fd stands that of reconstructions; there is no likelihood; an autoencoder cannot be the best run."""
    store, data, autoencoder, _, run = made
    found = evaluate.evaluate(store, run, data.artifact, FEW, lambda *_, **__: None)
    assert found["likelihood"] is None
    limit = found["reconstruction"]
    assert limit["fd"]["n"] == found["metrics"]["fd"]["n"] == 32
    assert limit["fd"]["floor"] < limit["fd"]["value"]
    own = evaluate.evaluate(store, autoencoder, data.artifact, FEW, lambda *_, **__: None)
    assert own["reconstruction"]["psnr"] == limit["psnr"]
    assert own["metrics"]["fd"]["value"] == pytest.approx(own["reconstruction"]["fd"]["value"], rel=1e-6)
    assert own["memorization"] is None
    rows = [{**own, "run": "a"}, {**found, "run": "b"}]
    assert table.best(rows, "fd") == "b"
    assert table.best([rows[0]], "psnr") == "a"
    assert table.best([rows[0]], "fd") == "a"  # among autoencoders
    assert "rec. fd / dB" in table.columns({"rows": rows})


def test_tables_of_runs_on_latents(made: Made) -> None:
    """The document states the limit, and counts the autoencoder and the encoding once; the page is written."""
    store, data, autoencoder, latents, run = made
    found = evaluate.evaluate(store, run, data.artifact, FEW, lambda *_, **__: None)
    kind = {"title": "Flow matching", "run": "flow", "tables": ["steps", "families"]}
    study = {
        "seeds": [0], "budget": 0.1, "tolerance": 0.1, "claims": [], "trials": {}, "rows": {"flow": kind},
        "runs": {"flow": {"preset": "flow_matching"}},
    }  # fmt: skip
    rows = tables.gather(store, {"flow-m0": found["evaluation"]})
    document = tables.build(store, study, rows, {})
    seconds = round(autoencoder.meta["cpu_seconds"] + 0.5, 1)
    about = document["latents"]
    assert (about["latents"], about["autoencoder"], about["cpu_seconds"]) == (latents.id, autoencoder.id, seconds)
    assert about["limit"]["value"] == found["reconstruction"]["fd"]["value"]
    assert document["cost_hours"]["training_cpu"] == round((seconds + run.meta["cpu_seconds"]) / 3600, 3)
    assert document["tables"][1]["rows"][0]["cells"]["likelihood"] == ["—"]
    assert any(f"reconstructions: {number(about['limit']['value'])}" in sentence for sentence in document["verdict"])
    assert any("CPU seconds, which the training times" in line for line in document["about"])
    text = page.render(store, document, rows)
    assert f"the reconstructions have an fd of {number(about['limit']['value'])}" in text


def test_a_report_repeats_the_autoencoder_and_the_latents(made: Made) -> None:
    """The commands train the autoencoder, encode the dataset, and name the latents; the page adds their CPU time."""
    store, data, autoencoder, latents, run = made
    found = evaluate.evaluate(store, run, data.artifact, FEW, lambda *_, **__: None)
    _, first, second, third, _ = reproduce.commands(store, [found])
    assert first.startswith(f"genflow train autoencoder --data {data.artifact.id} ")
    named = f"--autoencoder {autoencoder.name} --name {latents.name}"
    assert second == f"genflow encode {data.artifact.id} {named}"
    assert third.startswith(f"genflow train flow_matching --data {data.artifact.id} --latents {latents.name} ")
    text = report_page.render(store, [found])
    assert f"<small>and {number(autoencoder.meta['cpu_seconds'] + 0.5)} before it</small>" in text


def test_a_report_names_another_optimizer_than_that_of_the_preset_on_latents(made: Made) -> None:
    """Without it, the printed command would train a transformer with AdamW."""
    store, data, _, latents, _ = made
    run = trained_run(store, data, "flow_matching", "by-muon", steps=1, net="dit", latents=latents)
    line = reproduce.commands(store, [{"run": run.id, "dataset": data.artifact.id, "evaluate": {}}])[-2]
    assert "--set train.optimizer=muon" in line


def test_similarity_of_pictures() -> None:
    """A constant shift of 0.1 in [0, 1] is 20 dB; equal pictures have SSIM 1, and unrelated ones nearly 0."""
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 1.6 - 1
    psnr, ssim = similarity(x, x + 0.2)
    assert psnr == pytest.approx([20, 20], abs=1e-4)
    assert (ssim < 1).all()
    assert similarity(x, x)[1] == pytest.approx([1, 1])
    assert np.abs(similarity(x, x.flip(0))[1]).max() < 0.1
