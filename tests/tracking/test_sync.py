"""Sending a journal to a real MLflow: every entry arrives once, even if processes are killed on the way."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.errors import SetupError, UsageError
from genflow.storage.store import Store
from genflow.system import environment, ports
from genflow.tracking import database, sync
from genflow.tracking.journal import Cursor, Journal, journal_path
from genflow.tracking.mlflow_client import without_password
from genflow.tracking.sender import Sender

RUN = "fm-1a2b"
CREATE_DATABASE = """
import sqlite3, sys
from genflow.tracking import database
from genflow.storage.store import Store
uri = database.prepare(Store(sys.argv[1]))
with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
    print(connection.execute("select count(*) from sqlite_master, alembic_version").fetchone()[0])
"""


def python(code, *arguments):
    """Start a Python process that can import genflow from any folder."""
    environment = {**os.environ, "PYTHONPATH": str(Path(sync.__file__).parents[2])}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


@pytest.fixture(scope="session")
def simultaneous_start(tmp_path_factory):
    """A store that four processes opened at the same time, with the output and exit code of each."""
    store = Store(tmp_path_factory.mktemp("first"))
    processes = [python(CREATE_DATABASE, store.root) for _ in range(4)]
    return store, [(process.communicate()[0], process.returncode) for process in processes]


@pytest.fixture
def store(simultaneous_start, tmp_path, monkeypatch):
    """A store with an empty MLflow database, and a current folder that must stay empty."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "a store #1 100%"
    root.mkdir()
    shutil.copy(simultaneous_start[0].root / "mlflow.db", root)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield Store(root)
    assert list((tmp_path / "here").iterdir()) == []


def journal_of(store, run=RUN, name="fm-digits"):
    return Journal(journal_path(store.root, run), experiment="digits", name=name)


def client_of(store):
    from mlflow import MlflowClient

    return MlflowClient(database.tracking_uri(store), database.tracking_uri(store))


def run_of(store, run=RUN):
    client = client_of(store)
    everywhere = [e.experiment_id for e in client.search_experiments()]
    (found,) = client.search_runs(everywhere, f"tags.`genflow.run` = '{run}'")
    return found


def rows(store, query="select key, step, value, is_nan from metrics order by key, step"):
    with sqlite3.connect(store.root / "mlflow.db") as database:
        return database.execute(query).fetchall()


def picture(path, value=128, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (16, 16), value).save(path)
    return path


def write_a_whole_run(store):
    """Write a journal with every kind of entry."""
    folder = store.folder("runs", RUN)
    with journal_of(store) as journal:
        journal.status("RUNNING")
        journal.tags({"family": "flow_matching", "data_fingerprint": "ab12"})
        journal.params({"train.lr": 1e-4, "long": "x" * 7000, "none": None} | {f"net.{i}": i for i in range(230)})
        for step in range(1, 1501):
            journal.metrics(step, {"train/loss": 1 / step, "train/grad_norm": 2.0})
        journal.metrics(1501, {"train/loss": float("nan")})
        for nfe in (50, 5, 10):
            journal.metrics(nfe, {"eval/fd": 100 / nfe}, stream="eval/fd")
        for step in (500, 1000):
            journal.image(step, "samples/ema", picture(folder / "samples" / f"{step}.png", step % 256))
        (folder / "recipe.yaml").write_text("name: fm\n", encoding="utf-8")
        journal.artifact(folder / "recipe.yaml")
        journal.artifact(folder / "samples", "grids")
        about = {"schema": {"mlflow_colspec": []}, "profile": {"train": 90}}
        journal.dataset(store.folder("datasets", "digits-1"), "digits", "296cbcd8", **about)
        journal.description("**fd 1.2**", folder / "samples" / "1000.png", "3 steps")
        journal.status("FINISHED")


def files_of(store):
    return sorted(path.name for path in (store.root / "mlartifacts").rglob("*") if path.is_file())


# --- The tracking URI and the database


def test_four_processes_create_the_database_once(simultaneous_start):
    """Of four simultaneous processes one creates the database, and all see it complete."""
    store, ends = simultaneous_start
    assert [code for _, code in ends] == [0] * 4
    assert len({seen for seen, _ in ends}) == 1
    assert int(ends[0][0]) > 50
    assert not list(store.root.glob("*.tmp*"))
    assert database.prepare(store) == database.tracking_uri(store)


def test_the_tracking_uri_is_absolute(store, monkeypatch):
    """The tracking URI is absolute, because jobs run in another folder."""
    assert database.tracking_uri(store) == f"sqlite:///{store.root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    assert database.tracking_uri(store) == f"sqlite:///{Path.cwd()}/mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert database.prepare(store) == "http://mlflow:5000"


@pytest.mark.parametrize(
    ("uri", "nodes", "refused"),
    [
        ("sqlite:////a/mlflow.db", 1, False),
        ("sqlite:////a/mlflow.db", 2, True),
        ("file:///a/mlruns", 2, True),
        ("./mlruns", 2, True),
        ("http://head:5000", 2, False),
        ("postgresql+psycopg://head/mlflow", 2, False),
    ],
)
def test_a_local_file_is_rejected_on_several_nodes(uri, nodes, refused):
    """A URI of a local file is an error on a cluster with several nodes."""
    if not refused:
        database.refuse_local_uri_on_cluster(uri, nodes)
        return
    with pytest.raises(SetupError, match="2 nodes") as error:
        database.refuse_local_uri_on_cluster(uri, nodes)
    assert "MLFLOW_TRACKING_URI" in error.value.hint


def test_importing_tracking_does_not_import_mlflow():
    """Importing `genflow.tracking.sync` does not import MLflow, which takes two seconds."""
    code = "import sys, genflow.tracking.sync; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_mlflow_pages_are_served_on_the_loopback_interface(store, monkeypatch):
    """MLflow's pages are served on 127.0.0.1 by one worker, and not for a remote tracking server."""
    command = " ".join(database.ui_command(store, port=5123))
    assert f"--backend-store-uri sqlite:///{store.root}/mlflow.db" in command
    assert "--host 127.0.0.1 --port 5123 --workers 1" in command
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    with pytest.raises(UsageError, match="http://mlflow:5000"):
        database.ui_command(store)


def test_a_password_is_removed_from_a_uri():
    """`without_password` removes user name and password from a URI."""
    assert without_password("https://me:secret@mlflow.example/a@b") == "https://mlflow.example/a@b"


# --- Complete runs


def test_a_whole_run_arrives(store, capfd):
    """MLflow has the run, experiment, params, tags, metrics with times, images, files and status."""
    write_a_whole_run(store)
    sent = sync.replay(store, RUN)
    assert (sent.complete, sent.problem, sent.rejected) == (True, "", [])
    assert capfd.readouterr().out == ""
    run, client = run_of(store), client_of(store)
    assert (run.info.run_name, run.info.status) == ("fm-digits", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "digits"
    assert run.data.tags["family"] == "flow_matching"
    assert len(run.data.params) == 233
    assert (run.data.params["train.lr"], run.data.params["none"]) == ("0.0001", "null")
    assert len(run.data.params["long"]) == 6000
    curve = client.get_metric_history(run.info.run_id, "eval/fd")
    assert {(metric.step, metric.value) for metric in curve} == {(50, 2.0), (5, 20.0), (10, 10.0)}
    assert run.info.start_time <= curve[0].timestamp <= run.info.end_time
    assert len(rows(store)) == 3004
    assert rows(store, "select step from metrics where is_nan") == [(1501,)]
    assert sum(name.startswith("samples~ema+step+500+") for name in files_of(store)) == 2
    assert {"recipe.yaml", "500.png", "1000.png"} <= set(files_of(store))
    ((dataset,),) = ([given.dataset for given in run.inputs.dataset_inputs],)
    assert (dataset.name, dataset.digest, dataset.profile) == ("digits", "296cbcd8", '{"train": 90}')
    headline, picture, details = run.data.tags["mlflow.note.content"].split("\n\n")
    assert (headline, details) == ("**fd 1.2**", "3 steps")
    assert picture == f"![samples](get-artifact?path=description/1000.png&run_uuid={run.info.run_id})"
    assert client.list_artifacts(run.info.run_id, "description")[0].path == "description/1000.png"


def test_an_experiment_has_a_view_of_quality(store):
    """A new experiment has the kind and the saved view; a view that a user has changed stays."""
    journal_of(store).close()
    sync.replay(store, RUN)
    client, id = client_of(store), run_of(store).info.experiment_id
    key = "mlflow.sharedViewState.quality"
    tags = client.get_experiment(id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert json.loads(json.loads(tags[key])["state"])["orderByKey"] == "metrics.`quality/fd`"
    client.set_experiment_tag(id, key, "changed")
    journal_of(store, "another").close()
    sync.replay(store, "another")
    assert client.get_experiment(id).tags[key] == "changed"


def test_a_lost_cursor_duplicates_nothing(store):
    """Without a cursor everything is sent again, and MLflow has no duplicates."""
    write_a_whole_run(store)
    sync.replay(store, RUN)
    before = (rows(store), files_of(store), run_of(store).info)
    inputs = rows(store, "select count(*) from inputs")
    journal_path(store.root, RUN).with_suffix(".cursor.json").unlink()
    sent = sync.replay(store, RUN)
    assert sent.complete
    assert sent.entries > 1500
    after = (rows(store), files_of(store), run_of(store).info)
    assert after[:2] == before[:2]
    assert after[2].run_id == before[2].run_id
    assert rows(store, "select count(*) from inputs") == inputs == [(1,)]


def test_a_lost_database_is_filled_again(store):
    """A deleted database is created again and filled from the journal, also by a command that finds another one."""
    write_a_whole_run(store)
    sync.replay(store, RUN)
    assert sync.sync(store).entries == 0
    cursor = journal_path(store.root, RUN).with_suffix(".cursor.json")
    os.utime(cursor, (1, 1))  # as old as before the database of now was made
    assert sync.sync(store).complete
    assert cursor.stat().st_mtime > 1
    assert len(rows(store)) == 3004
    (store.root / "mlflow.db").unlink()  # this process still has it open, so another process must replay
    sender = Sender(store, RUN)
    sender.start()
    assert sender.finish(deadline_s=60), sender.sent
    assert len(rows(store)) == 3004


def test_a_searchs_trials_are_children_of_its_run(store):
    """The trials of a search are child runs with params and metrics, even if a trial's journal is sent first."""
    for number in range(2):
        path = journal_path(store.root, f"search-1.{number:04d}")
        with Journal(path, experiment="digits", name=f"trial-{number}", parent="search-1") as journal:
            journal.params({"train.lr": 0.01 * (number + 1)})
            journal.metrics(9, {"quality/fd": 2.0 - number}, stream="1")
            journal.status("FINISHED")
    with Journal(journal_path(store.root, "search-1"), experiment="digits", name="search") as journal:
        journal.metrics(2, {"best/fd": 1.0}, stream="best")
        journal.status("FINISHED")
    assert sync.replay(store, "search-1.0001").complete  # before its parent
    assert sync.replay_all(store, "search-1").complete
    parent = run_of(store, "search-1")
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = client_of(store).search_runs([parent.info.experiment_id], query)
    found = {child.data.params["train.lr"]: child.data.metrics["quality/fd"] for child in children}
    assert found == {"0.01": 2, "0.02": 1}
    assert parent.info.status == "FINISHED"


def test_runs_of_one_dataset_share_an_experiment(store):
    """Runs of one dataset are in one experiment, so that MLflow's pages can compare them."""
    for run in ("vae-1", "ddpm-2"):
        journal_of(store, run, name=run).close()
        sync.replay(store, run)
    assert len({run_of(store, run).info.experiment_id for run in ("vae-1", "ddpm-2")}) == 1


def test_rejected_entries_do_not_block_the_rest(store):
    """An invalid name, a missing file and a file that is not an image are recorded and skipped."""
    bad = store.root / "bad.png"
    bad.write_text("not an image", encoding="utf-8")
    with journal_of(store) as journal:
        journal.metrics(1, {"loss": 1.0, "what?!": 2.0, "lr": 3.0})
        journal.image(1, "samples/ema", store.root / "gone.png")
        journal.image(2, "samples/ema", bad)
        journal.artifact(store.root / "gone")
        journal.metrics(2, {"loss": 4.0})
        journal.status("FINISHED")
    sent = sync.replay(store, RUN)
    assert sent.complete
    assert len(sent.rejected) == 4
    assert [(key, step) for key, step, *_ in rows(store)] == [("loss", 1), ("loss", 2), ("lr", 1)]


def test_a_deleted_experiment_is_restored_for_a_new_run(store):
    """A deleted experiment is restored when a new run needs it."""
    journal_of(store, "old").close()
    sync.replay(store, "old")
    client_of(store).delete_experiment(run_of(store, "old").info.experiment_id)
    journal_of(store, "new").close()
    assert sync.replay(store, "new").complete
    assert run_of(store, "new").info.lifecycle_stage == "active"


# --- Killed processes and outages


def until(condition, seconds=400):
    """Wait until another process makes a condition true."""
    for _ in range(seconds * 20):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"the condition was not true within {seconds} s")


WRITER = """
import sys
from genflow.system import environment
from genflow.tracking import sync
from genflow.tracking.journal import Journal, journal_path
from genflow.storage.store import Store
store = Store(sys.argv[1])
journal = Journal(journal_path(store.root, sys.argv[2]), experiment="digits")
journal.status("RUNNING")
for step in range(10**9):
    journal.metrics(step, {"loss": step / 2})
    if step == 300: print("writing", flush=True); sys.stdin.readline()
"""


def writer(store, code=WRITER):
    process = python(code, store.root, RUN)
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_killed_run_is_marked_and_resumes_as_the_same_run(store):
    """A run that is killed, synchronized and resumed from an older step is one run with one row per step."""
    process = writer(store)
    assert sync.sync(store).entries == 0, "a live writer has its own sender"
    assert sync.replay(store, RUN).complete
    assert run_of(store).info.status == "RUNNING"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert sync.sync(store).complete
    assert run_of(store).info.status == "KILLED"
    assert sync.sync(store).entries == 0, "everything was sent"
    with journal_of(store) as journal:
        journal.status("RUNNING")
        for step in range(250, 400):
            journal.metrics(step, {"loss": step / 2})
        assert sync.replay(store, RUN).complete
        assert run_of(store).info.status == "RUNNING"
        journal.status("FINISHED")
    assert sync.sync(store).complete
    assert run_of(store).info.status == "FINISHED"
    assert rows(store) == [("loss", step, step / 2, 0) for step in range(400)]


def test_the_sender_sends_during_the_run(store):
    """The sender sends entries before the run ends, and the rest at the end."""
    write_a_whole_run(store)
    sender = Sender(store, RUN, every_s=0.2)
    sender.start()
    cursor = journal_path(store.root, RUN)
    until(lambda: Cursor.read(cursor).offset == cursor.stat().st_size)
    with journal_of(store) as journal:
        journal.metrics(2000, {"train/loss": 0.5})
    assert sender.finish(deadline_s=60), sender.sent
    assert sender.sent.entries > 1500
    assert len(rows(store)) == 3005


def test_the_sender_outlives_a_killed_run(store):
    """After `kill -9` of a run, its sender sends the rest and marks the run KILLED."""
    start = "from genflow.tracking.sender import Sender; sender = Sender(store, sys.argv[2]); sender.start()"
    process = writer(store, WRITER.replace('journal.status("RUNNING")', start))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: Cursor.read(journal_path(store.root, RUN)).status == "KILLED")
    assert len(rows(store)) == 301


@pytest.fixture(params=["no listener", "no response"])
def dead_server(request, monkeypatch):
    """The address of an MLflow that is down."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param == "no response":
            server.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield request.param


def test_after_an_outage_everything_is_sent(store, dead_server, monkeypatch):
    """During an outage sending stops at its deadline with a reason; after it each row is sent once."""
    write_a_whole_run(store)
    if dead_server == "no listener":
        sender = Sender(store, RUN, every_s=0.2)
        sender.start()
        assert not sender.finish(deadline_s=6)
        assert sender.sent.problem
    sent = sync.sync(store, deadline_s=1)
    assert (sent.complete, len(sent.problem.splitlines())) == (False, 1)
    assert database.tracking_uri(store) in sent.problem
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync.sync(store, deadline_s=60).complete
    assert sync.sync(store).entries == 0
    assert len(rows(store)) == 3004


def test_a_changed_uri_does_not_move_old_runs(store, monkeypatch):
    """A journal that was partly sent to the store's database is not sent to a new tracking URI."""
    journal_of(store).close()
    sync.replay(store, RUN)
    with journal_of(store) as journal:
        journal.metrics(1, {"loss": 1.0})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert sync.sync(store).complete
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync.sync(store).entries == 1


# --- The model


def a_checkpoint(store):
    """The folder of a run with a tiny untrained flow, and its checkpoint."""
    import torch

    from genflow import build
    from genflow.recipe.schema import parse
    from genflow.specs import DataSpec
    from genflow.training import checkpoint

    folder = store.folder("runs", RUN)
    facts = DataSpec(shape=(1, 8, 8), levels=17, class_names=("a", "b"))
    document = {"family": {"kind": "flow_matching"}, "net": {"kind": "mlp"}, "sample": {"steps": 2}}
    torch.manual_seed(0)
    family = build.family_of(parse(document), facts)
    weights = folder / "checkpoints" / "step_00000007"
    weights.mkdir(parents=True)
    checkpoint.write(weights, checkpoint.gather(family, dict(family.named_parameters()), {}), {"step": 7})
    (folder / "recipe.yaml").write_text(json.dumps(document), encoding="utf-8")
    (folder / "facts.json").write_text(json.dumps(facts.to_json()), encoding="utf-8")
    return folder, weights


def test_a_registered_model_draws_the_engines_samples(store, monkeypatch):
    """A checkpoint is registered once, without pickle and local paths, and draws the engine's samples."""
    import mlflow

    from genflow.sampling.engine import Engine

    folder, weights = a_checkpoint(store)
    with journal_of(store) as journal:
        journal.model(weights, "fm.digits", step=7)
        journal.status("FINISHED")
    assert sync.replay(store, RUN).rejected == []
    journal_path(store.root, RUN).with_suffix(".cursor.json").unlink()
    assert sync.replay(store, RUN).rejected == []
    client = client_of(store)
    (found,) = client.search_model_versions("name = 'fm.digits'")
    assert found.run_id == run_of(store).info.run_id
    client.set_registered_model_alias("fm.digits", "champion", "1")

    model_file = next((store.root / "mlartifacts").rglob("MLmodel"))
    assert str(store.root) not in model_file.read_text(encoding="utf-8")
    assert str(Path(sync.__file__).parents[1]) not in model_file.read_text(encoding="utf-8")
    names = {path.name for path in model_file.parent.rglob("*")}
    assert {"weights.safetensors", "recipe.yaml", "engine.py", "requirements.txt"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pyc")) or name.startswith("optimizer.")]

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database.tracking_uri(store))
    table = mlflow.pyfunc.load_model("models:/fm.digits@champion").predict(
        [{"n": 2, "seed": 5, "steps": 3, "label": 1}, {"n": 1, "seed": 9}]
    )
    assert table["seed"].tolist() == [5, 6, 9]
    drawn = Engine.from_folder(folder, weights).draw([5, 6], labels=[1, 1], steps=3)
    for png, image in zip(table["png"], drawn.images, strict=False):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
        np.testing.assert_array_equal(pixels, image[..., 0].astype(int) * 255 // 16)


@pytest.mark.slow
def test_everything_arrives_through_a_server(store, monkeypatch):
    """MLflow's server stores runs, images and models over HTTP, and returns them."""
    import mlflow

    environment.set_defaults()
    port = ports.free_port()
    (store.root / "log").mkdir()
    with open(store.root / "log" / "server", "w", encoding="utf-8") as log:
        command = database.ui_command(store, port=port)
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        write_a_whole_run(store)
        _, weights = a_checkpoint(store)
        with journal_of(store) as journal:
            journal.model(weights, "fm.digits", step=7)
            journal.status("FINISHED")
        for _ in range(60):
            sent = sync.replay(store, RUN, deadline_s=60)
            if sent.complete:
                break
            time.sleep(1)
        assert (sent.complete, sent.rejected) == (True, [])
        assert len(rows(store)) == 3004
        monkeypatch.setattr(sys, "path", list(sys.path))
        assert len(mlflow.pyfunc.load_model("models:/fm.digits/1").predict([{"n": 2, "seed": 5}])) == 2
        client = client_of(store)
        grids = [file.path for file in client.list_artifacts(run_of(store).info.run_id, "images")]
        assert len(grids) == 4
        got = client.download_artifacts(run_of(store).info.run_id, next(g for g in grids if g.endswith(".png")))
        assert Image.open(got).size == (16, 16)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def test_a_killed_sender_is_replaced(store):
    """If the sender was killed, another one sends the rest at the end of the run."""
    with Journal(journal_path(store.root, "killed-1"), experiment="digits", name="killed") as journal:
        journal.metrics(1, {"train/loss": 0.5})
        sender = Sender(store, "killed-1", every_s=60)
        sender.start()
        sender._process.kill()
        sender._process.wait()
        journal.metrics(2, {"train/loss": 0.25})
        journal.status("FINISHED")
    assert sender.finish(60)
    assert logged(store, "killed-1") == [1, 2]


def test_several_runs_in_turn_use_one_sender(store, monkeypatch):
    """A second run reuses the first run's sender; another environment gets a new process."""
    monkeypatch.setattr(Sender, "_idle", None)
    processes = []
    for id in ("first-1", "second-1"):
        with Journal(journal_path(store.root, id), experiment="digits", name=id) as journal:
            sender = Sender(store, id, every_s=60)
            sender.start()
            processes.append(sender._process)
            journal.metrics(1, {"train/loss": 0.5})
            journal.status("FINISHED")
        assert sender.finish(60), sender.sent
        assert logged(store, id) == [1]
    assert processes[0] is processes[1]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    other = Sender(store, "third-1", every_s=60)
    other.start()
    assert other._process is not processes[0]
    assert processes[0].wait(120) == 0
    other._process.kill()


def test_catch_up_sends_the_rest_of_a_finished_run(store):
    """`catch_up` sends the rest of a finished run, and sends nothing if MLflow has everything."""
    with Journal(journal_path(store.root, "late-1"), experiment="digits", name="late") as journal:
        journal.metrics(1, {"train/loss": 0.5})
        journal.status("FINISHED")
    assert sync.catch_up(store, "late-1", deadline_s=60).entries
    assert logged(store, "late-1") == [1]
    assert sync.catch_up(store, "late-1") == sync.SendResult(complete=True)


def logged(store, name):
    """The steps of a run's loss in MLflow's database."""
    with sqlite3.connect(store.root / "mlflow.db") as database:
        query = "select step from metrics where run_uuid in (select run_uuid from tags where value = ?) order by step"
        return [step for (step,) in database.execute(query, (name,))]
