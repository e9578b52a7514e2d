"""A store in a bucket: same layout as a folder, verified on every machine; artifacts are whole or do not exist."""

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bucket import Server, machine
from support.shards import in_shards

from genflow.data import shards
from genflow.data.shards import Dataset
from genflow.errors import DataError, SetupError, UsageError
from genflow.storage import lock, mirror, names
from genflow.storage.store import Artifact, Store
from genflow.tracking.journal import Journal, curves, journal_path
from genflow.training.checkpoint_folders import Checkpoints


@pytest.fixture
def machines(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`machines("a")` opens the store as a machine with its own cache. Each test has its own prefix in the bucket."""
    server.share = 0.0

    def on(name: str) -> Store:
        machine(monkeypatch, server, tmp_path / name, f"s3://bucket/{tmp_path.name}")
        return Store()

    return on


def make(store: Store, id: str = "x-1", text: str = "hello", kind: str = "reports") -> Artifact:
    with store.stage(kind, id, name=id[:-2]) as staged:
        (staged.path / "inner").mkdir()
        (staged.path / "inner" / "a.txt").write_text(text, encoding="utf-8")
        (staged.path / "b.bin").write_bytes(bytes(1000))
        return staged.commit(meta={"text": text})


def test_what_one_machine_makes_another_finds(machines: Any) -> None:
    """An artifact is found by id, name and `latest`; its files are downloaded on first use."""
    make(machines("a"))
    store = machines("b")
    found = store.find("reports", "latest")
    assert (found.id, found.name, found.meta) == ("x-1", "x", {"text": "hello"})
    assert not found.folder.exists()
    assert found.file("inner/a.txt").read_text(encoding="utf-8") == "hello"
    assert not (found.folder / "b.bin").exists()
    assert sorted(p.name for p in found.path.iterdir()) == ["b.bin", "inner", "manifest.json"]
    assert store.find("reports", "x") == store.get("reports", "x-1") == found


def test_the_bucket_has_the_layout_of_a_folder(machines: Any) -> None:
    """The bucket has exactly the files of the artifact."""
    store = machines("a")
    make(store)
    assert store.mirror is not None
    there = {name for name, known in store.mirror.bucket.list("reports/x-1", deep=True).items() if known}
    assert there == {"inner/a.txt", "b.bin", "manifest.json"}


def test_a_corrupt_local_file_is_downloaded_again(machines: Any) -> None:
    """A flipped bit is detected by `verify`, and the file is downloaded again."""
    make(machines("a"))
    found = machines("b").find("reports", "x")
    file = found.path / "b.bin"
    file.write_bytes(b"\1" + bytes(999))
    found.verify()
    assert file.read_bytes() == bytes(1000)


@pytest.mark.parametrize("name", ["manifests/reports/x-1.json", "reports/x-1/manifest.json", mirror.MARKER])
def test_a_corrupt_local_manifest_does_not_blame_the_bucket(machines: Any, name: str) -> None:
    """A changed hash in a local copy of the manifest, or a damaged file of the mirror, is replaced from the bucket."""
    make(machines("a"))
    store = machines("b")
    known = store.find("reports", "x").verify().manifest
    file = store.root / name
    text = file.read_text(encoding="utf-8")
    digest = known["files"]["b.bin"]["sha256"]
    file.write_text(text.replace(digest, digest[::-1]) if digest in text else text[:-9], encoding="utf-8")
    mirror._open.cache_clear()
    found = machines("b").find("reports", "x")
    assert found.manifest == known
    assert (found.verify().path / "b.bin").read_bytes() == bytes(1000)
    assert file.read_text(encoding="utf-8") == text


def test_the_bucket_is_asked_again_before_it_is_blamed(machines: Any) -> None:
    """A manifest that is wrong in memory does not make an intact object corrupt."""
    make(machines("a"))
    found = machines("b").find("reports", "x")
    found.manifest["files"]["b.bin"]["sha256"] = "0" * 64
    assert found.file("b.bin").read_bytes() == bytes(1000)


def test_a_manifest_that_is_corrupt_in_the_bucket_is_named(machines: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The error has the key and the command that removes the manifest; a list shows the other artifacts."""
    store = machines("a")
    make(store)
    other = make(store, "y-1")
    assert store.mirror is not None
    store.mirror.bucket.write("reports/x-1/manifest.json", b"{}")
    store = machines("b")
    assert store.artifacts("reports") == [Artifact("reports", "y-1", store.folder("reports", "y-1"), other.manifest,
                                                   store.url)]  # fmt: skip
    assert "reports/x-1/manifest.json is corrupt" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"s3://bucket/.*/reports/x-1/manifest\.json is corrupt") as refused:
        store.find("reports", "x")
    assert refused.value.hint.startswith(f"aws s3 rm {store.url}/reports/x-1/manifest.json")


def test_a_corrupt_object_is_an_error(machines: Any) -> None:
    """A corrupt object raises an error with its key, and leaves no file."""
    store = machines("a")
    make(store)
    assert store.mirror is not None
    store.mirror.bucket.write("reports/x-1/b.bin", bytes(999) + b"\1")
    found = machines("b").find("reports", "x")
    with pytest.raises(DataError, match=r"s3://bucket/.*/reports/x-1/b\.bin is corrupt"):
        _ = found.path
    assert not list(found.folder.rglob("*b.bin*"))


def test_without_its_manifest_it_does_not_exist(machines: Any) -> None:
    """The files of a killed writer are not visible, and the next writer replaces them."""
    store = machines("a")
    assert store.mirror is not None
    store.mirror.bucket.write("reports/x-1/inner/a.txt", b"half")
    assert store.get("reports", "x-1") is None
    assert store.artifacts("reports") == []
    assert store.names("reports") == ["x-1"]
    make(store)
    assert machines("b").find("reports", "x").file("inner/a.txt").read_text(encoding="utf-8") == "hello"


def test_the_second_writer_gets_the_first_artifact(machines: Any) -> None:
    """Two machines that make the same artifact end with one, whose files match its manifest."""
    make(machines("a"), text="first")
    second = make(machines("b"), text="second")
    assert second.meta == {"text": "first"}
    assert second.verify().file("inner/a.txt").read_text(encoding="utf-8") == "first"


def test_an_artifact_is_deleted_on_every_machine(machines: Any) -> None:
    """A deleted artifact does not exist on a machine that has a copy."""
    a = machines("a")
    artifact = make(a)
    b = machines("b")
    assert b.find("reports", "x").path.is_dir()
    b.delete(artifact.kind, artifact.id)
    assert machines("a").get("reports", "x-1") is None
    assert make(machines("a"), text="again").file("inner/a.txt").read_text(encoding="utf-8") == "again"


def test_a_shard_of_large_data_is_downloaded_when_it_is_first_read(
    machines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine opens the dataset with its index alone."""
    in_shards(machines("a"))
    monkeypatch.setattr(shards, "HASHED_AT_OPEN", 0)
    artifact = machines("b").find("datasets", "rows")
    split = Dataset.open(artifact).splits["train"]
    assert list((artifact.here / "train").glob("*.arrow")) == []
    assert split.take(np.array([7, 5])).ravel()[::4].tolist() == [7, 5]
    assert [file.name for file in (artifact.here / "train").glob("*.arrow")] == ["data-00001-of-00004.arrow"]
    assert len(list((machines("b").find("datasets", "rows").path / "train").glob("*.arrow"))) == 4


def write_step(folder: Path, content: str) -> None:
    (folder / "state.json").write_text(content, encoding="utf-8")


def test_another_machine_resumes_from_the_newest_checkpoint(machines: Any) -> None:
    """Another machine gets the newest checkpoint with a manifest; old checkpoints are deleted in the bucket too."""
    a = machines("a")
    saved = Checkpoints(a.folder("runs", "r-1") / "checkpoints")
    for step in (1, 2, 3):
        saved.save(step, lambda folder, step=step: write_step(folder, str(step)))
    a.mirror.bucket.write("runs/r-1/checkpoints/step_00000004/state.json", b"4")
    b = machines("b")
    newest = Checkpoints(b.folder("runs", "r-1") / "checkpoints").newest()
    assert newest is not None
    assert newest.name == "step_00000003"
    assert (newest / "state.json").read_text(encoding="utf-8") == "3"
    assert b.mirror.names("runs/r-1/checkpoints") == ["step_00000002", "step_00000003", "step_00000004"]


def test_a_checkpoint_of_two_machines_exists_when_both_have_uploaded_their_shards(machines: Any) -> None:
    """It replaces one of the same step; another machine then finds the files of both, and old ones are deleted."""
    first, second = (Checkpoints(machines(name).folder("runs", "r-1") / "checkpoints") for name in "ab")
    for step in (1, 2, 3):
        first.save(step, lambda folder, step=step: write_step(folder, str(step)))
    other = Checkpoints(machines("c").folder("runs", "r-1") / "checkpoints")
    attempt, files = first.begin(3), {}
    for worker, checkpoints in {"a": first, "b": second}.items():
        assert other.newest() == other.folder / "step_00000002"
        (checkpoints.folder_of(attempt) / f"shard-{worker}").write_text(worker, encoding="utf-8")
        files |= checkpoints.add(attempt, [f"shard-{worker}"])
    assert other.newest() == other.folder / "step_00000002"
    first.commit(attempt, files)
    second.abandon(attempt)
    assert (newest := other.newest()) == other.folder / "step_00000003"
    assert {file.name for file in newest.iterdir()} == {"manifest.json", "shard-a", "shard-b"}
    assert machines("a").mirror.names("runs/r-1/checkpoints") == ["step_00000002", "step_00000003"]
    assert [path for each in (first, second) for path in each.folder.glob("*.tmp-*")] == []
    other.save(3, lambda folder: write_step(folder, "whole"))
    whole = machines("c").mirror.bucket.list("runs/r-1/checkpoints/step_00000003")
    assert set(whole) == {"manifest.json", "state.json"}


def test_a_corrupt_local_checkpoint_is_downloaded_again(machines: Any) -> None:
    """A checkpoint that is corrupt only here is downloaded again, so that the run does not resume from an older one."""
    store = machines("a")
    saved = Checkpoints(store.folder("runs", "r-1") / "checkpoints")
    saved.save(1, lambda folder: write_step(folder, "1"))
    saved.save(2, lambda folder: write_step(folder, "2"))
    (saved.folder / "step_00000002" / "state.json").write_text("7", encoding="utf-8")
    newest = saved.newest()
    assert newest is not None
    assert (newest / "state.json").read_text(encoding="utf-8") == "2"


def test_a_run_is_finalized_with_the_files_of_several_machines(machines: Any) -> None:
    """The manifest of a run lists the worker's checkpoint and the driver's recipe."""
    worker = machines("worker")
    Checkpoints(worker.folder("runs", "r-1") / "checkpoints").save(1, lambda folder: write_step(folder, "1"))
    driver = machines("driver")
    folder = driver.folder("runs", "r-1")
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("{}", encoding="utf-8")
    finished = driver.finalize("runs", "r-1", name="r", only=lambda name: ".tmp-" not in name)
    assert {"recipe.yaml", "checkpoints/step_00000001/state.json"} <= set(finished.manifest["files"])
    assert machines("third").find("runs", "r").verify().path.is_dir()


def journal(store: Store) -> Path:
    return journal_path(store.root, "r-1")


def test_a_journal_continues_on_another_machine(machines: Any) -> None:
    """The second machine does not repeat entries of the first; an entry that was never synchronized is dropped."""
    a = machines("a")
    with Journal(journal(a)) as first:
        first.metrics(1, {"loss": 1.0})
    first = Journal(journal(a))  # never closed: killed before its last line was synchronized
    first.metrics(2, {"loss": 2.0})
    b = machines("b")
    with Journal(journal(b)) as second:
        second.metrics(1, {"loss": 5.0})
        second.metrics(2, {"loss": 2.5})
    again = machines("a")
    with Journal(journal(again)) as third:
        third.metrics(3, {"loss": 3.0})
    last = machines("b")
    last.sync(journal(last))
    assert curves(journal(last)) == {"loss": [(1, 1.0), (2, 2.5), (3, 3.0)]}
    first.close()


def test_one_process_of_all_machines_holds_a_lock(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that another machine holds raises an error that names the process; a free lock can be taken."""
    a = machines("a")
    with a.lock("runs", "r-1", wait=False):
        other = machines("b")
        refused = pytest.raises(UsageError, match=r"r-1 is being made by process \d+ on ")
        with refused, other.lock("runs", "r-1", wait=False):
            pass
        assert lock.current_holder(other.mirror.bucket, "runs-r-1")
    with other.lock("runs", "r-1", wait=False):
        pass
    assert lock.current_holder(other.mirror.bucket, "runs-r-1") is None


def test_the_lock_of_a_dead_process_expires(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim of a dead process of this machine ends at once; one of another machine ends without a heartbeat."""
    store = machines("a")
    bucket = store.mirror.bucket
    gone = {"machine": lock.machine_id(), "pid": 2**22 + 1, "born": "1", "node": "here"}
    bucket.write("locks/runs-r-1~0.claim", json.dumps(gone).encode())
    with store.lock("runs", "r-1", wait=False):
        pass
    bucket.write("locks/runs-r-1~0.claim", json.dumps({**gone, "machine": "another"}).encode())
    monkeypatch.setattr(lock, "EXPIRY_S", 2.0)
    started = time.monotonic()
    with store.lock("runs", "r-1", wait=False):
        pass
    assert time.monotonic() - started > 0.5  # it did wait; how long is up to the machine


def test_one_of_several_simultaneous_claims_succeeds(machines: Any) -> None:
    """With four claims at the same time, one process at a time holds the lock, and each gets it."""
    bucket = machines("a").mirror.bucket
    inside, peak, turns = 0, 0, 0
    guard = threading.Lock()

    def contend() -> None:
        nonlocal inside, peak, turns
        with lock.lease(bucket, "x", wait=True):
            with guard:
                inside += 1
                peak = max(peak, inside)
                turns += 1
            time.sleep(0.05)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (peak, turns) == (1, 4)


def test_failed_requests_are_retried(machines: Any, server: Server) -> None:
    """Every byte arrives although 40 % of the requests end in a 500, a 503 or a closed connection."""
    store, before = machines("a"), server.failed
    server.share = 0.4
    content = {f"{n}.bin": hashlib.sha256(bytes([n])).digest() * 300_000 for n in range(3)}  # more than one part each
    with store.stage("reports", "big-1", name="big") as staged:
        for name, data in content.items():
            (staged.path / name).write_bytes(data)
        staged.commit()
    found = machines("b")
    server.share = 0.4
    path = found.find("reports", "big").verify().path
    server.share = 0.0
    assert {name: (path / name).read_bytes() for name in content} == content
    assert server.failed > before


def test_an_unreachable_server_is_an_error(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable server is a one-line error after the deadline, with the variable to check."""
    machines("a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GENFLOW_STORE_DEADLINE", "1")
    started = time.monotonic()
    words = r"the store s3://bucket/.* at http://127.0.0.1:9 did not answer for 1 s"
    with pytest.raises(SetupError, match=words) as caught:
        Store()
    assert time.monotonic() - started >= 1
    assert "AWS_ENDPOINT_URL" in caught.value.hint
    assert "\n" not in caught.value.message


def test_a_missing_bucket_is_an_error(machines: Any) -> None:
    """A missing bucket is an error and not an empty store."""
    machines("a")
    with pytest.raises(SetupError, match="there is no bucket does-not-exist"):
        Store("s3://does-not-exist/x")


@pytest.mark.parametrize("url", ["s3://", "s3://UPPER/x", "gs://bucket/x", "s3://bucket//x", "s3://bucket/x?y"])
def test_an_invalid_store_url_is_an_error(url: str) -> None:
    """An invalid URL is an error without a request."""
    with pytest.raises(UsageError, match="is neither a folder nor s3://bucket/prefix"):
        Store(url)


def test_a_mirror_folder_opens_its_bucket(machines: Any) -> None:
    """A store that is opened by the mirror's folder is the bucket's store."""
    store = machines("a")
    make(store)
    assert Store(store.root).url == store.url
    assert Store(store.root).find("reports", "x").verify()
    assert mirror.containing(store.root.parent) is None


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        ("403 Forbidden", "SignatureDoesNotMatch", "AWS_ACCESS_KEY_ID"),
        ("403 Forbidden", "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        ("400 Bad Request", "ExpiredToken", "AWS_ACCESS_KEY_ID"),
        ("301 Moved Permanently", "PermanentRedirect", "AWS_REGION"),
    ],
)
def test_permanent_errors_are_not_retried(
    machines: Any, server: Server, monkeypatch: pytest.MonkeyPatch, status: str, code: str, words: str
) -> None:
    """A wrong key, an expired key and a wrong region are errors at once; the hint names the variable to set."""
    store = machines("a")
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()

    asked: list[str] = []

    def refuse(environ: dict[str, Any], start: Any) -> list[bytes]:
        asked.append(environ["PATH_INFO"])
        start(status, [("Content-Length", str(len(body)))])
        return [body]

    monkeypatch.setattr(server, "moto", refuse)
    with pytest.raises(SetupError) as caught:
        store.artifacts("reports")
    assert len(asked) == 1
    assert words in caught.value.hint


def test_a_checkpoint_may_be_written_twice_in_a_second(machines: Any) -> None:
    """The last write counts, although S3's times are in seconds and the manifests have the same size."""
    saved = Checkpoints(machines("a").folder("runs", "r-1") / "checkpoints")
    for content in "123":
        saved.save(1, lambda folder, content=content: write_step(folder, content))
        newest = saved.newest()
        assert newest is not None
        assert (newest / "state.json").read_text(encoding="utf-8") == content
    newest = Checkpoints(machines("b").folder("runs", "r-1") / "checkpoints").newest()
    assert newest is not None
    assert (newest / "state.json").read_text(encoding="utf-8") == "3"


def test_a_name_means_in_a_bucket_what_was_prepared_last(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine reads the records of all; if two machines named different datasets last, both ids are said."""
    store = machines("a")
    first, second = (make(store, f"x-{n}", kind="datasets") for n in "12")
    for named in (first, second):
        monkeypatch.setattr(names, "HOSTNAME", f"machine{named.id}")
        time.sleep(1.1 if named is second else 0)  # the times of S3 are whole seconds
        machines("a").record_name(named)
    assert machines("b").find("datasets", "x").id == "x-2"
    monkeypatch.setattr(names, "HOSTNAME", "a third machine")
    with pytest.raises(UsageError, match="x-1 on machinex-1, x-2 on machinex-2"):
        machines("c").find("datasets", "x")


def test_another_machine_sees_what_a_lock_uses(machines: Any) -> None:
    """A dataset that a run on another machine uses is known, until that run ends."""
    a = machines("a")
    with a.lock("runs", "r-1", uses=["x-1"]):
        other = machines("b")
        assert [name for name, _ in other.users("x-1")] == ["runs-r-1"]
        assert other.holder("runs", "r-1")
        machines("a")
    assert machines("b").users("x-1") == []
