"""Samples in shares: metrics do not depend on the number of workers; pictures of a run."""

import io

import numpy as np
import pytest
from PIL import Image
from support.trained_run import trained_run

from genflow.evaluation import evaluate, samples
from genflow.evaluation.features import classifier
from genflow.evaluation.metrics.class_balance import class_shares
from genflow.recipe.schema import Evaluate

OPTIONS = Evaluate(samples=150, sweep_samples=32, steps=(), likelihood=0, bootstrap=3)
TIMES = ("speed", "seconds", "sweep", "machine", "path", "cached")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Train feature extractors for a few steps only, and use shares of 32 samples."""
    monkeypatch.setattr(classifier, "MAX_STEPS", 20)
    monkeypatch.setattr(classifier, "MIN_STEPS", 20)
    monkeypatch.setattr(samples, "BATCH", 16)
    monkeypatch.setattr(samples, "SHARE", 32)


def quiet(event: str, **fields: object) -> None:
    pass


def test_shares_drawn_on_workers_give_the_same_metrics(store, prepared):
    """All shares but the first go to the executor; everything but times is identical to the bit."""
    data = prepared("digits", val=0.2)
    run = trained_run(store, data, "flow_matching", sample={"steps": 2})
    here = evaluate.evaluate(store, run, data.artifact, OPTIONS, quiet)
    artifact = store.get("evaluations", here["evaluation"])
    (artifact.path / "manifest.json").unlink()  # makes the evaluation invisible
    handed: list[samples.Share] = []

    def executor(shares):
        handed.extend(shares)
        return [evaluate.draw_share(store, run, data.artifact, "classifier", {}, share) for share in shares]

    there = evaluate.evaluate(store, run, data.artifact, OPTIONS, quiet, executor=executor)
    assert [len(share.seeds) for share in handed] == [32, 32, 32, 22]
    assert not there["cached"]
    assert {k: v for k, v in there.items() if k not in TIMES} == {k: v for k, v in here.items() if k not in TIMES}


def test_only_the_first_records_are_kept(store, prepared):
    """All features are kept, but only the requested number of pictures."""
    data = prepared("digits", val=0.2)
    engine = evaluate.engine_of(store, trained_run(store, data, "vae"), data, {})
    found = samples.draw_features(
        engine, lambda records: (records.reshape(len(records), -1), None), list(range(80)), np.zeros(80, np.int64), 40,
        lambda count: None,
    )  # fmt: skip
    assert (len(found.records), found.features.shape, found.classes) == (40, (80, 64), None)
    assert np.array_equal(found.features[:40], found.records.reshape(40, -1))


def test_class_shares_are_compared_with_real_data():
    """A class with a share of 0.1 among samples and 0.25 in real data has a ratio of 0.4, inside its interval."""
    found = class_shares(np.repeat([0, 1], [90, 10]), np.repeat([0, 1], [75, 25]), ("a", "b"))
    assert found["rarest"]["class"] == "b"
    assert found["rarest"]["value"] == pytest.approx(0.4)
    assert found["rarest"]["low"] < 0.4 < found["rarest"]["high"]
    assert found["real"] == [0.75, 0.25]


def test_an_evaluation_has_pictures_of_paths_and_interpolations(store, prepared):
    """A family with steps has sampling paths, with a column per evaluation and one for the sample; a GAN has none."""
    data = prepared("digits", val=0.2)
    found = {}
    for kind, options in (("flow_matching", {"steps": 4, "sampler": "euler"}), ("gan", {})):
        run = trained_run(store, data, kind, sample=options, name=kind)
        made = evaluate.evaluate(store, run, data.artifact, OPTIONS, quiet)
        found[kind] = store.get("evaluations", made["evaluation"])
    cell = 8 * 8 + 2
    size = Image.open(io.BytesIO(found["flow_matching"].file("way.png").read_bytes())).size
    assert size == (5 * cell + 2, 6 * cell + 2)
    assert Image.open(found["gan"].file("between.png")).size == (8 * cell + 2, 3 * cell + 2)
    assert not (found["gan"].path / "way.png").exists()
