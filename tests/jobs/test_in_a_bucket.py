"""A run with a store in a bucket: killed, resumed on another machine, evaluated and sampled on a third."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import TESTS
from support.bucket import Server, machine
from support.trained_run import trained_run

from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.errors import SetupError
from genflow.evaluation import evaluate
from genflow.recipe.compose import compose
from genflow.recipe.schema import Data, parse
from genflow.sampling import encode as encoding
from genflow.sampling.engine import Engine
from genflow.storage.store import Store
from genflow.system import events, source_hash
from genflow.tracking.journal import curves, journal_path
from genflow.training.checkpoint_folders import Checkpoints
from jobs import encode, reflow, train, tune
from jobs.runtime import shard_actors

pytestmark = pytest.mark.usefixtures("without_mlflow")
TINY = {"data": {"name": "digits"}, "net": {"kind": "mlp", "width": 32, "depth": 1}, "sample": {"steps": 2},
        "evaluate": {"features": "random", "samples": 32, "steps": (1, 2), "sweep_samples": 16, "likelihood": 0,
                     "bootstrap": 3}}  # fmt: skip
SETTINGS = {"steps": 300, "batch": 16, "log_every": 1, "checkpoint_every": 50, "warmup": 0}


def recipe(**train_: Any) -> Any:
    return compose("flow_matching", TINY, {"name": "tiny", "train": {**SETTINGS, **train_}})


def document(**train_: Any) -> dict[str, Any]:
    return {"recipe": recipe(**train_).model_dump(mode="json"), "inputs": {}}


def run(document: dict[str, Any]) -> dict[str, Any]:
    return train.main(document, lambda event, **fields: None)


def state(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint."""
    newest = Checkpoints(Path(path) / "checkpoints").newest()
    assert newest is not None
    files = ("weights", "ema", "optimizer")
    return {f"{f}/{k}": v for f in files for k, v in load_file(newest / f"{f}.safetensors").items()}


def digits(store: Store) -> None:
    prepare(store, Data(source="digits"), in_process, lambda event, **fields: None)


def killed(document: dict[str, Any], folder: Path, after: int) -> None:
    """Run the job in a process, and kill it by SIGKILL after some progress events."""
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(document), encoding="utf-8")
    command = [sys.executable, "-P", TESTS / "support/without_mlflow.py", "train", file]
    environment = os.environ | {"PYTHONPATH": str(source_hash.resources_dir())}
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        event = events.parse(line)
        seen += bool(event and event["event"] == "progress")
        if seen == after:
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_three_machines_give_the_result_of_one_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed on one machine, finished on a second and evaluated on a third gives the same bits."""
    monkeypatch.setenv("GENFLOW_STORE", str(tmp_path / "folder"))
    digits(Store())
    expected = run(document())
    alone = Engine.load(Store().find("runs", "tiny")).draw(range(8)).images
    data = Store().find("datasets", "digits")
    reference = evaluate.evaluate(Store(), Store().find("runs", "tiny"), data, recipe().evaluate, lambda *_, **__: None)

    machine(monkeypatch, server, tmp_path / "a")
    digits(Store())
    killed(document(), tmp_path, after=170)
    begun = Store()
    assert begun.get("runs", expected["run"]) is None
    assert begun.mirror is not None
    saved = begun.mirror.names(f"runs/{expected['run']}/checkpoints")
    assert saved
    assert saved[-1] < "step_00000300"

    machine(monkeypatch, server, tmp_path / "b")
    events_: list[Any] = []
    done = train.main(document(), lambda event, **fields: events_.append(fields))
    assert (done["run"], done["cached"]) == (expected["run"], False)
    ours, theirs = state(done["path"]), state(expected["path"])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    steps = [step for step, _ in curves(journal_path(Store().root, done["run"]))["train/loss"]]
    assert steps == list(range(1, 301))

    machine(monkeypatch, server, tmp_path / "c")
    assert run(document())["cached"]
    found = Store().find("runs", "latest")
    assert np.array_equal(Engine.load(found).draw(range(8)).images, alone)
    data = Store().find("datasets", "digits")
    measured = evaluate.evaluate(Store(), found, data, recipe().evaluate, lambda *_, **__: None)
    assert measured["metrics"] == reference["metrics"]
    assert (tmp_path / "a").is_dir()


def test_a_run_through_a_bad_connection(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run finishes although every fifth request fails."""
    machine(monkeypatch, server, tmp_path / "a", "s3://bucket/bad")
    server.share, server.failed = 0.2, 0
    try:
        digits(Store())
        done = run(document(steps=20, checkpoint_every=10))
    finally:
        server.share = 0.0
    assert done["steps"] == 20
    assert server.failed
    machine(monkeypatch, server, tmp_path / "b", "s3://bucket/bad")
    assert Store().find("runs", "tiny").verify()


def test_a_bucket_that_becomes_unreachable(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next checkpoint raises a one-line error; the same command resumes when the bucket is reachable again."""
    machine(monkeypatch, server, tmp_path / "a", "s3://bucket/away")
    monkeypatch.setenv("GENFLOW_STORE_DEADLINE", "1")
    digits(Store())
    monkeypatch.setattr("genflow.data.stream.Stream.__call__", outage_at_step_30(server))
    with pytest.raises(SetupError, match="did not answer for 1 s"):
        run(document(steps=60, checkpoint_every=20))
    server.share = 0.0
    assert run(document(steps=60, checkpoint_every=20))["steps"] == 60


def outage_at_step_30(server: Server) -> Any:
    """A replacement of `Stream.__call__` that makes the server fail from step 30 on, once."""
    from genflow.data.stream import Stream

    batches = Stream.__call__

    def batch(self: Any, step: int) -> Any:
        if step == 30 and not hasattr(server, "went"):
            server.share, server.went = 1.0, True
        return batches(self, step)

    return batch


def test_a_node_that_does_not_reach_the_bucket_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that cannot reach the bucket raises an error with its node's name before the first step."""
    worker = pytest.importorskip("jobs.runtime.train.worker")
    machine(monkeypatch, server, tmp_path / "a", "s3://bucket/unseen")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GENFLOW_STORE_DEADLINE", "0")
    seen = rf"the node {os.uname().nodename} does not reach the store s3://bucket/unseen: .*did not answer for 0 s"
    with pytest.raises(SetupError, match=seen) as caught:
        worker.work({"store": "s3://bucket/unseen", "recipe": document()["recipe"]})
    assert "AWS variables" in caught.value.hint


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_is_found_on_another_machine(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine finds the search with its best settings, and the pairs of a run."""
    asked = compose("flow_matching", TINY, {
        "train": SETTINGS, "tune": {"trials": 2, "steps": 20, "confirm": 1, "samples": 32, "space": {
            "train.lr": "log:0.001:0.1"}}})  # fmt: skip
    document = {"recipe": asked.model_dump(mode="json"), "inputs": {}}
    url = "s3://bucket/searched"
    machine(monkeypatch, server, tmp_path / "a", url)
    digits(Store())
    made = tune.main(document, lambda *_, **__: None)
    run({"recipe": recipe(steps=20).model_dump(mode="json"), "inputs": {}})
    pairs = compose("flow_matching", TINY, {"reflow": {"pairs": 40}}).model_dump(mode="json")
    drawn = reflow.main({"recipe": pairs, "inputs": {"run": "tiny"}}, lambda *_, **__: None)

    machine(monkeypatch, server, tmp_path / "b", url)
    found = tune.main(document, lambda *_, **__: None)
    assert found["cached"]
    assert found["best"] == made["best"]
    there = Store().find("searches", found["search"]).verify().path
    assert (there / "best.yaml").read_bytes() == (Path(made["path"]) / "best.yaml").read_bytes()
    again = reflow.main({"recipe": pairs, "inputs": {"run": "tiny"}}, lambda *_, **__: None)
    assert (again["cached"], again["pairs"]) == (True, drawn["pairs"])


@pytest.mark.ray
@pytest.mark.slow
def test_latents_are_continued_on_another_machine(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that a killed attempt uploaded is kept, with its autoencoder; a third machine trains on the latents."""
    monkeypatch.setattr(encoding, "SHARD", 400)
    machine(monkeypatch, server, tmp_path / "a", "s3://bucket/latents")
    digits(Store())
    autoencoder = trained_run(Store(), Dataset.open(Store().find("datasets", "digits")), "autoencoder", steps=1,
                              net="autoencoder")  # fmt: skip
    asked = parse({"data": {"name": "digits"}})
    plan = encoding.plan(Store(), autoencoder.id, asked)
    folder = Store().folder("latents", plan.id)
    Store().upload(*encoding.copy_autoencoder(plan, folder))
    actor = shard_actors._ShardActor(functools.partial(encode._encoder, plan), Store().url, "latents", plan.id)
    assert actor.write(*plan.shards[2])[0] == 400
    written = (folder / plan.shards[2][0]).read_bytes()

    machine(monkeypatch, server, tmp_path / "b", "s3://bucket/latents")
    job = {"recipe": asked.model_dump(mode="json"), "inputs": {"autoencoder": autoencoder.id}}
    steps: list[int] = []
    made = encode.main(job, lambda event, **fields: steps.append(fields["step"]) if event == "progress" else None)
    assert (made["latents"], made["cached"], steps[0]) == (plan.id, False, 800)
    assert (Path(made["path"]) / plan.shards[2][0]).read_bytes() == written

    machine(monkeypatch, server, tmp_path / "c", "s3://bucket/latents")
    latents = Dataset.open(Store().find("latents", "digits"))
    assert len(latents.splits["train"].pixels) == made["rows"]
    assert Engine.from_folder(latents.artifact.path / "autoencoder").family.code_shape == tuple(made["shape"])
    found = encode.find(job)
    assert found is not None
    assert (found["latents"], found["cached"]) == (plan.id, True)


@pytest.mark.ray
@pytest.mark.slow
def test_workers_on_machines_that_share_only_the_bucket(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker downloads the shards, rank 0 saves to the bucket, and the driver finalizes files it never wrote."""
    machine(monkeypatch, server, tmp_path / "first", "s3://bucket/apart")
    digits(Store())
    asked = compose("flow_matching", TINY, {"name": "apart", "train": {**SETTINGS, "steps": 60, "checkpoint_every": 20},
                                            "cluster": {"workers": 2}})  # fmt: skip
    document = {"recipe": asked.model_dump(mode="json"), "inputs": {}}
    (tmp_path / "recipe.json").write_text(json.dumps(document), encoding="utf-8")
    script = TESTS / "support/apart.py"
    path = {"PYTHONPATH": str(source_hash.resources_dir())}
    ended = subprocess.run([sys.executable, str(script), str(tmp_path / "recipe.json"), str(tmp_path)], text=True,
                           env=os.environ | path, capture_output=True, encoding="utf-8")  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    done = json.loads(ended.stdout.splitlines()[-1])
    assert done["steps"] == 60
    brought = [name for name in ("one", "two", "driver") if list((tmp_path / name).glob("*/datasets/*/train/*.arrow"))]
    assert {"one", "two"} <= set(brought)
    machine(monkeypatch, server, tmp_path / "last", "s3://bucket/apart")
    run_ = Store().find("runs", "apart").verify()
    assert len(list(run_.path.glob("checkpoints/step_*/weights.safetensors"))) == 2
    path = journal_path(Store().root, run_.id)
    Store().sync(path)
    assert [step for step, _ in curves(path)["train/loss"]] == list(range(1, 61))
