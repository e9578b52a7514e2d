"""Captions as a condition: from the text embeddings of a dataset to samples of prompts, on latents and in pixels."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import text_folders
from support.latents import SMALL, dataset, embedded, encoded, pictures, task
from support.trained_run import trained_run

from genflow import runs, text_encoders
from genflow.api import Run
from genflow.cli import sample
from genflow.data import texts
from genflow.data.shards import Dataset
from genflow.data.stream import Stream
from genflow.data.texts import Texts
from genflow.errors import DataError, UsageError
from genflow.evaluation import evaluate, samples, sweep
from genflow.evaluation.features import classifier
from genflow.evaluation.features.extractor import load_features
from genflow.evaluation.report import page, table
from genflow.evaluation.results import Evaluation
from genflow.recipe.schema import Evaluate, parse
from genflow.sampling import encode_text, export, interpolation, reflow
from genflow.sampling.engine import Engine
from genflow.sampling.prompts import Prompts
from genflow.storage.store import Artifact, Store
from genflow.text import Text
from genflow.tracking.journal import entries, journal_path
from genflow.tuning import metrics as tuned
from genflow.tuning import trial

Made = tuple[Store, Dataset, Artifact, Artifact, Path]
FEW = Evaluate(samples=32, sweep_samples=16, steps=(1,), bootstrap=4, likelihood=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store with captioned pictures, their text embeddings, a run on captions, and the text encoder's folder."""
    folder = tmp_path_factory.mktemp("captioned-runs")
    encoder = text_folders.write(folder / "bert", text_folders.BERT)
    store = Store(folder / "store")
    data = dataset(store, pictures(folder / "colours", 400), val=0.3)
    embeddings = embedded(store, encoder)
    run = trained_run(
        store, data, "flow_matching", steps=12, net="mlp", texts=embeddings, sample={"steps": 2, "guidance": 2.0}
    )
    return store, data, embeddings, run, encoder


def test_every_caption_is_embedded_once(made: Made) -> None:
    """Those of all splits and the empty one, as float16; L is a multiple of 8 that no caption exceeds."""
    store, data, embeddings, *_ = made
    found = Texts.open(embeddings.folder)
    captions = {caption for split in data.splits.values() for own in split.captions for caption in own}
    assert set(found.captions) == captions
    assert (found.find(["", *captions]) >= 0).all()
    assert found.find(["not one of them"]).tolist() == [-1]
    assert found.spec.length == max(8, -(-found.longest() // 8) * 8)
    text = found.text(["a red square, number 2", ""])
    assert text.tokens.shape == (2, found.spec.length, found.spec.tokens)
    assert text.mask.sum(1).tolist() == [len(found.embedding(int(row))[0]) for row in found.find([*_two()])]
    assert text.empty is not None
    assert torch.equal(text.tokens[1], text.empty.tokens[0])
    assert store.find("texts", "colours").id == embeddings.id


def _two() -> tuple[str, str]:
    return "a red square, number 2", ""


def test_embeddings_are_those_of_the_encoder(made: Made) -> None:
    """Stored embeddings and those of new prompts are the same bits for the same words."""
    *_, embeddings, _, encoder = made
    found = Texts.open(embeddings.folder)
    for caption in ("", "a green square, number 1"):
        tokens, pooled = found.embedding(int(found.find([caption])[0]))
        ((theirs, vector),) = encode_text.text_encoders.find(str(encoder)).encode([caption])
        assert np.array_equal(tokens, theirs.astype(np.float16))
        assert np.array_equal(pooled, vector.astype(np.float16))


def test_shards_are_the_same_bytes_for_any_writer(made: Made, tmp_path: Path) -> None:
    """A second writer of the same plan writes the same files; a changed caption changes the id."""
    store, data, embeddings, _, encoder = made
    document = {"data": {"name": data.artifact.id}, "encode": {"text": str(encoder)}}
    plan = encode_text.plan(store, parse(document))
    assert plan.id == embeddings.id
    encode_text.write_captions(plan, tmp_path)
    writer = encode_text.TextWriter(plan, tmp_path)
    for file, first, last in encode_text.shards(tmp_path):
        writer.write(tmp_path / file, first, last)
        assert (tmp_path / file).read_bytes() == (embeddings.folder / file).read_bytes()
    other = text_folders.write(tmp_path / "clip", text_folders.CLIP)
    assert encode_text.plan(store, parse({**document, "encode": {"text": str(other)}})).id != plan.id


def test_training_reads_a_caption_of_each_row(made: Made) -> None:
    """The label of a batch is the row's caption; of several, a function of seed, row and epoch chooses one."""
    _, data, embeddings, *_ = made
    found, split = Texts.open(embeddings.folder), data.splits["train"]
    stream = Stream(split, 8, seed=1, texts=found)
    for step in (0, 5):
        label = stream(step).label
        assert isinstance(label, Text)
        wanted = found.text([split.captions[row][0] for row in stream.rows(step)])
        assert torch.equal(label.tokens, wanted.tokens)
    halves = [Stream(split, 8, 1, rank, 2, texts=found)(3).label for rank in (0, 1)]
    assert torch.equal(torch.cat([half.pooled for half in halves]), stream(3).label.pooled)  # type: ignore[union-attr]


def test_one_of_several_captions_is_drawn(tmp_path: Path, store: Store) -> None:
    """Over epochs every caption of a row is read, and the choice is the same in another process."""
    folder = pictures(tmp_path / "many", 8, captions=False)
    for file in folder.rglob("*.png"):
        file.with_suffix(".txt").write_text(f"a {file.stem}\na red {file.stem}\na blue {file.stem}\n", encoding="utf-8")
    data = dataset(store, folder, name="many")
    found = Texts.open(embedded(store, text_folders.write(tmp_path / "bert", text_folders.BERT), "many").folder)
    split = data.splits["train"]
    stream = Stream(split, 8, seed=0, texts=found)
    seen: dict[int, set[str]] = {row: set() for row in range(8)}
    for step in range(40):
        epochs, rows = stream._epochs_and_rows(step)
        drawn = stream._captions(epochs, rows)
        assert drawn == Stream(split, 8, seed=0, texts=found)._captions(epochs, rows)
        for row, caption in zip(rows.tolist(), drawn, strict=True):
            seen[row].add(caption)
    assert all(seen[row] == set(split.captions[row]) for row in range(8))


def test_a_prompt_is_a_function_of_its_words_and_seed(made: Made) -> None:
    """The same prompt and seed give the same bytes in any company; other words give another picture."""
    *_, run, _ = made
    engine = Engine.load(run)
    red, blue = "a red tiger", "a blue apple on a sep"
    alone = engine.draw([7], prompts=[red]).images
    company = engine.draw([3, 7, 4, 7], prompts=[blue, red, "", blue])
    assert np.array_equal(alone[0], company.images[1])
    assert not np.array_equal(company.images[1], company.images[3])
    assert company.prompts == (blue, red, "", blue)
    held = engine.prompts.examples(3)  # type: ignore[union-attr]
    assert len(held) == 3
    assert np.array_equal(engine.draw([1], prompts=held[:1]).images, engine.draw([1], prompts=held[:1]).images)


def test_no_prompt_is_the_empty_caption(made: Made) -> None:
    """Without prompts every sample has the empty caption, and so guidance changes nothing."""
    *_, run, _ = made
    engine = Engine.load(run)
    assert np.array_equal(engine.draw([1, 2]).images, engine.draw([1, 2], prompts=["", ""]).images)
    weak, strong = (engine.draw(range(4), guidance=w).images.astype(int) for w in (1.0, 5.0))
    assert np.abs(weak - strong).max() <= 1


def test_a_negative_prompt_stands_for_no_caption(made: Made) -> None:
    """The empty negative prompt changes nothing; other words do, unless they are the prompt itself."""
    *_, run, _ = made
    engine = Engine.load(run)
    words = ["a red apple"]
    plain = engine.draw([1], prompts=words, guidance=3.0).images
    assert np.array_equal(plain, engine.draw([1], prompts=words, negative=[""], guidance=3.0).images)
    assert not np.array_equal(plain, engine.draw([1], prompts=words, negative="a blue tiger", guidance=3.0).images)
    same = engine.draw([1], prompts=words, negative=words[0], guidance=3.0).images.astype(int)
    assert np.abs(same - engine.draw([1], prompts=words, guidance=1.0).images).max() <= 1


def test_prompts_and_classes_are_not_confused(made: Made) -> None:
    """A prompt for a run of classes, a wrong number of prompts, and guidance without an empty caption are errors."""
    store, data, embeddings, run, _ = made
    of_classes = trained_run(store, data, "flow_matching", steps=2)
    with pytest.raises(UsageError, match="no captions, so it reads no prompt"):
        Engine.load(of_classes).draw([1], prompts=["a red apple"])
    with pytest.raises(UsageError, match="2 prompts for 1 seeds"):
        Engine.load(run).draw([1], prompts=["a", "b"])
    with pytest.raises(UsageError, match=r"guidance=2 needs family.forget above 0"):
        trained_run(
            store, data, "flow_matching", net="mmdit", texts=embeddings, steps=2, family={"forget": 0},
            sample={"guidance": 2.0},
        )  # fmt: skip


def test_a_run_needs_its_text_encoder_only_for_new_words(made: Made, tmp_path: Path) -> None:
    """A copy of the run draws its held-out captions alone; new words without the encoder are one clear line."""
    *_, run, encoder = made
    exported = tmp_path / "exported"
    export.write(run, Engine.load(run), "safetensors", exported)
    moved = encoder.with_name("moved")
    shutil.move(encoder, moved)
    try:
        engine = Engine.from_folder(exported)
        held = engine.prompts.captions[:2]  # type: ignore[union-attr]
        drawn = engine.draw([1, 2], prompts=held).images
        assert np.array_equal(drawn, Engine.load(run).draw([1, 2], prompts=held).images)
        with pytest.raises(UsageError, match="there is no such folder; nothing is downloaded"):
            engine.draw([1], prompts=["a new tiger"])
    finally:
        shutil.move(moved, encoder)
    text_folders.write(encoder.with_name("other"), {**text_folders.BERT, "num_hidden_layers": 1})
    stored = Texts.open(exported / "text")
    other = Prompts(Texts(stored.folder, str(encoder.with_name("other")), stored.spec))
    with pytest.raises(UsageError, match=r"embedded by the text encoder bert@\w+, and .* is bert@"):
        other.text(["a new tiger"])


def test_a_damaged_index_is_one_line(made: Made, tmp_path: Path) -> None:
    """A missing or damaged texts.json names the file."""
    *_, run, _ = made
    shutil.copytree(run.folder / "text", tmp_path / "text")
    (tmp_path / "text" / texts.INDEX).write_text(json.dumps({"encoder": "x"}), encoding="utf-8")
    with pytest.raises(DataError, match=r"texts.json is missing or damaged"):
        Texts.open(tmp_path / "text")


def test_long_prompts_are_named_and_cut(made: Made) -> None:
    """A prompt of more tokens than the run's captions is cut, and `cut` names it."""
    *_, run, _ = made
    engine = Engine.load(run)
    assert engine.prompts is not None
    long = "red apple " * 40
    assert engine.prompts.cut(["a red apple", long]) == {long: 82}
    assert engine.draw([1], prompts=[long]).images.shape == (1, 16, 16, 3)


def test_a_walk_between_two_prompts(made: Made) -> None:
    """The ends are the samples of the prompts with this seed; each picture is the same in any company."""
    *_, run, _ = made
    engine = Engine.load(run)
    red, blue = "a red tiger", "a blue apple on a sep"
    walk = interpolation.walk_prompts(engine, [red, blue, ""], 4, 7, "an apple", {"guidance": 3.0})
    assert walk.images.shape == (8, 16, 16, 3)
    ends = [engine.draw([7], prompts=[words], negative="an apple", guidance=3.0).images[0] for words in (red, blue, "")]
    for place, end in zip((0, 3, 4, 7), (ends[0], ends[1], ends[1], ends[2]), strict=True):
        assert np.array_equal(walk.images[place], end)
    alone = engine.draw(
        [7], prompts=[red], negative="an apple", toward_prompts=[(blue, 1 / 3)], guidance=3.0
    ).images[0]
    assert np.array_equal(alone, walk.images[1])
    assert len({picture.tobytes() for picture in walk.images}) == 7


def test_interpolation_of_the_command(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row from each prompt to the next one; one prompt is drawn between seeds; pictures have no negative prompt."""
    store, *_, run, _ = made
    monkeypatch.setenv("GENFLOW_STORE", store.url)
    engine, out = Engine.load(run), tmp_path / "walk.npy"

    def draw(*prompts: str, n: int | None = None, **more: Any) -> dict[str, Any]:
        sample.sample(run.id, prompt=list(prompts), n=n, seed=7, interpolate=True, out=out, json=True, **more)
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document["interpolate"]

    walk = draw("a red tiger", "", n=3)
    assert walk == {"rows": 1, "columns": 3, "between": "prompts", "ends": [["a red tiger", ""]]}
    ends = engine.draw([7, 7], prompts=["a red tiger", ""]).images
    assert np.array_equal(np.load(out)[[0, 2]], ends.transpose(0, 3, 1, 2))
    assert draw("a", "red", "apple")["rows"] == 2
    assert draw("a red tiger", n=4) == {"rows": 1, "columns": 4, "between": "seeds", "ends": None}
    assert np.array_equal(np.load(out)[3], engine.draw([8], prompts=["a red tiger"]).images[0].transpose(2, 0, 1))
    with pytest.raises(UsageError, match=r"-n 7 images do not fill 2 row"):
        draw("a", "red", "apple", n=7)
    with pytest.raises(UsageError, match="--prompt cannot be combined with --between"):
        draw("a", "red", between=(tmp_path, tmp_path))
    with pytest.raises(UsageError, match="--negative cannot be combined with --interpolate between pictures"):
        draw(negative="a red apple")


def test_lone_surrogates_are_one_line(made: Made) -> None:
    """An argument of the command line that is not UTF-8 is named, wherever it comes in."""
    *_, run, _ = made
    prompts = Engine.load(run).prompts
    assert prompts is not None
    for read in (prompts.text, prompts.cut):
        with pytest.raises(DataError, match=r"the prompt 'a \\udcff' is not valid Unicode"):
            read(["a \udcff"])


def test_captions_condition_every_measurement(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation draws the captions of real rows; with their embeddings in the store it needs no text encoder."""
    store, data, _, run, _ = made
    monkeypatch.setattr(classifier, "default_steps", lambda pictures: 10)
    monkeypatch.delattr(text_encoders, "find")
    options = FEW.model_copy(update={"clip": str(text_folders.write_clip(tmp_path / "clip"))})
    document = evaluate.evaluate(store, run, data.artifact, options, lambda *_, **__: None)
    found = document["metrics"]
    assert found["fd"]["n"] == 32
    assert (Path(document["path"]) / "grid.png").is_file()
    for name in ("r_precision", "r_precision_hard", "r_precision_unseen", "r_precision_unseen_hard"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
        assert (found[name]["n"], found[name]["chance"]) == (32, pytest.approx(0.01))
        assert found[name]["features"].startswith(f"{data.artifact.name}-captions@")
        assert 0 <= (found[name]["floor"] or 0) <= 1
    assert 0 <= found["clip_score"]["low"] <= found["clip_score"]["value"] <= 100
    assert found["clip_score"]["features"].startswith("clip@")
    assert 0 <= found["copies_unseen"]["value"] <= 1
    assert {"prompt / hard", "unseen / hard"} <= set(table.columns({"rows": [document]}))
    assert table.best([document], "r_precision") == run.id
    assert [point["guidance"] for point in document["guidance"] or ()] == [1, 2, 4, 8]
    assert all(0 <= point["r_precision"]["value"] <= 1 for point in (*document["sweep"], *document["guidance"]))
    _require_prompts_shown(store, document, data)


def test_guidance_is_tried_where_captions_were_dropped(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scale but the run's own, once; none for a family that never saw the empty caption, or reads classes."""
    store, data, _, run, _ = made
    engine, options = Engine.load(run), Evaluate(guidance=(8, 1, 2, 8))
    assert sweep.guidance_to_try(engine, options) == [{"guidance": 1}, {"guidance": 8}]
    monkeypatch.setattr(engine.family, "forget", 0.0)
    assert sweep.guidance_to_try(engine, options) == []
    assert sweep.guidance_to_try(Engine.load(trained_run(store, data, "vae", steps=2)), options) == []


def test_a_search_can_optimize_prompt_fidelity(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the wanted metric is measured; a run of classes has none, and says so."""
    store, data, _, run, _ = made
    monkeypatch.setattr(classifier, "default_steps", lambda pictures: 10)
    suite = tuned.metric_suite(load_features(store, data, "classifier", lambda *_, **__: None), 0, 0)
    engine = samples.with_captions(Engine.load(run), store)
    monkeypatch.delattr(text_encoders, "find")
    for name in ("r_precision", "r_precision_unseen_hard"):
        found = tuned.measure(store, engine, data, suite, [name], 16, 0)
        assert set(found) == {name}
        assert 0 <= found[name] <= 1
    assert tuned.mode("r_precision") == "max"
    of_classes = Engine.load(trained_run(store, data, "vae", steps=2))
    with pytest.raises(UsageError, match="has no r_precision"):
        tuned.measure(store, of_classes, data, suite, ["r_precision"], 16, 0)


def _require_prompts_shown(store: Store, document: Evaluation, data: Dataset) -> None:
    """The captions of the pictures are in the document, in the report, and in a table for MLflow."""
    shown, train = document["prompts"], {caption for own in data.splits["train"].captions for caption in own}
    assert shown is not None
    assert shown["unseen"]
    assert len(shown["prompts"]) == 8
    assert not set(shown["prompts"]) & train
    assert set(shown["nearest"]) <= train
    folder = Path(document["path"])
    sheet = json.loads((folder / "prompts/prompts.json").read_text(encoding="utf-8"))
    assert [row[0] for row in sheet["data"]] == shown["prompts"]
    cells = [cell["filepath"].removeprefix("evaluation/") for row in sheet["data"] for cell in row[1:]]
    assert all((folder / cell).is_file() for cell in cells)
    tags = [entry["tags"] for _, entry in entries(journal_path(store.root, document["run"]), 0) if "tags" in entry]
    named = [{"path": "evaluation/prompts/prompts.json", "type": "table"}]
    assert json.loads(tags[-1]["mlflow.loggedArtifacts"]) == named
    text = page.render(store, [document])
    assert all(f"<li dir=\"auto\">{caption}</li>" in text for caption in shown["prompts"])
    assert f"<small dir=\"auto\" title=\"{shown['grid'][0]}\">" in text
    assert "unseen prompt ↑" in text
    assert "against guidance" in text


def test_pairs_keep_the_captions_of_the_teacher(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reflow teacher draws captions of real rows, without a text encoder, and the student reads the same ones."""
    monkeypatch.setattr(Prompts, "encoder", None)
    store, data, embeddings, run, _ = made
    plan = reflow.plan(store, run.id, parse({"reflow": {"pairs": 24}, "sample": {"guidance": 1.0}}))
    folder = store.folder("pairs", plan.id)
    folder.mkdir(parents=True)
    for file, first, last in plan.shards:
        reflow.Teacher(plan).write(folder / file, first, last)
    meta = {"run": run.id, "dataset": data.artifact.id, "latents": plan.latents, "texts": plan.texts}
    made_pairs = store.finalize("pairs", plan.id, parents=[run.id], meta=meta)
    document = {"family": {"kind": "flow_matching"}, "net": {"kind": "mmdit"}, "data": {"pairs": made_pairs.id}}
    planned = runs.plan(store, parse({**document, "data": {**document["data"], "name": data.artifact.id}}))
    assert planned.recipe.data.text == embeddings.id
    rows = runs.training_rows(store, planned.recipe, runs.training_data(store, planned.recipe))
    label = Stream(rows, 8, seed=0, texts=runs.texts_of(store, planned.recipe))(0).label
    assert isinstance(label, Text)
    known = {caption for own in data.splits["train"].captions for caption in own}
    assert {own[0] for own in rows.captions(np.arange(24))} <= known  # type: ignore[union-attr, operator]


def test_captions_and_latents_are_independent(made: Made) -> None:
    """The same embeddings serve latents of the pictures; the run keeps both, and its folder is complete."""
    store, data, embeddings, _, _ = made
    autoencoder = trained_run(store, data, "autoencoder", steps=5, **SMALL)
    latents = encoded(store, task(store, autoencoder))
    run = trained_run(store, data, "flow_matching", steps=2, net="mmdit", latents=latents, texts=embeddings)
    engine = Engine.load(run)
    assert engine.draw([1, 2], prompts=["a red apple", ""]).images.shape == (2, 16, 16, 3)
    assert {"text", "autoencoder"} <= {file.name for file in run.folder.iterdir()}
    assert {0.25, 0.5} < set(runs.cpu_seconds(store, run))


def test_prompts_in_python(made: Made, tmp_path: Path) -> None:
    """`run.sample(prompts=...)` draws what the engine draws; several prompts take turns, or are the ends of a walk."""
    store, _, _, run, _ = made
    words = ["a red square, number 2", "a green square, number 1"]
    loaded = Run(run, store)
    drawn = loaded.sample(4, prompts=words, seed=3, guidance=2.0)
    expected = Engine.load(run).draw(range(3, 7), prompts=words * 2, guidance=2.0)
    assert np.array_equal(drawn.records, expected.images)
    assert drawn[1:].prompts == (words[1], *words)
    assert loaded.sample(prompts=words[0]).prompts == (words[0],) * 16
    assert len(loaded.sample(prompts=words)) == 2
    with pytest.raises(UsageError, match="captions, not classes"):
        loaded.sample(2, label="red")
    drawn.save(tmp_path / "drawn")
    assert (tmp_path / "drawn" / "metadata.jsonl").read_text(encoding="utf-8").count(words[0]) == 2
    walk = loaded.interpolate(5, prompts=words, seed=3, guidance_scale=2.0)
    assert np.array_equal(walk.records[[0, -1]], Engine.load(run).draw([3, 3], prompts=words, guidance=2.0).images)


def test_a_trial_of_a_search_reads_captions(made: Made) -> None:
    """A trial trains on the captions that its recipe names, as a run does."""
    store, data, embeddings, _, _ = made
    document = {"family": {"kind": "flow_matching"}, "data": {"name": data.artifact.id, "text": embeddings.id}}
    planned = runs.plan(store, parse({**document, "net": {"kind": "mlp"}}))
    context = SimpleNamespace(store=store, data=data)
    of_trial = SimpleNamespace(context=context, recipe=planned.recipe, device="cpu")
    label = trial.Training._stream(of_trial)(0).label  # type: ignore[arg-type]
    assert isinstance(label, Text)
