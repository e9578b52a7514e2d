"""A store in a bucket: laid out as a folder, verified on every machine, whole or not there."""

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.bucket import Server, machine

from genflow.errors import DataError, SetupError, UsageError
from genflow.storage import lock, mirror
from genflow.storage.store import Artifact, Store
from genflow.tracking.journal import Journal, curves, journal_path
from genflow.training.checkpoint import Checkpoints


@pytest.fixture
def machines(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`machines("a")` opens the store as a machine that has a cache of its own; each test has its own prefix."""
    server.share = 0.0

    def on(name: str) -> Store:
        machine(monkeypatch, server, tmp_path / name, f"s3://bucket/{tmp_path.name}")
        return Store()

    return on


def make(store: Store, id: str = "x-1", text: str = "hello", kind: str = "reports") -> Artifact:
    with store.stage(kind, id, name=id[:-2]) as staged:
        (staged.path / "inner").mkdir()
        (staged.path / "inner" / "a.txt").write_text(text)
        (staged.path / "b.bin").write_bytes(bytes(1000))
        return staged.commit(meta={"text": text})


def test_what_one_machine_makes_another_finds(machines: Any) -> None:
    """By id, name and `latest`; its files arrive when they are asked for, and not before."""
    make(machines("a"))
    store = machines("b")
    found = store.find("reports", "latest")
    assert (found.id, found.name, found.meta) == ("x-1", "x", {"text": "hello"})
    assert not found.folder.exists()
    assert found.file("inner/a.txt").read_text() == "hello"
    assert not (found.folder / "b.bin").exists()
    assert sorted(p.name for p in found.path.iterdir()) == ["b.bin", "inner", "manifest.json"]
    assert store.find("reports", "x") == store.get("reports", "x-1") == found


def test_the_bucket_is_laid_out_as_a_folder_is(machines: Any) -> None:
    """Other tools find what they would find in a folder; nothing else is there."""
    store = machines("a")
    make(store)
    assert store.mirror is not None
    there = {name for name, known in store.mirror.bucket.list("reports/x-1", deep=True).items() if known}
    assert there == {"inner/a.txt", "b.bin", "manifest.json"}


def test_a_corrupt_file_of_the_cache_is_brought_again(machines: Any) -> None:
    """One flipped bit is seen where the artifact is verified, and mended from the bucket."""
    make(machines("a"))
    found = machines("b").find("reports", "x")
    file = found.path / "b.bin"
    file.write_bytes(b"\1" + bytes(999))
    found.verify()
    assert file.read_bytes() == bytes(1000)


def test_a_corrupt_object_is_never_taken(machines: Any) -> None:
    """What the bucket has must be what was committed; the error says which object, and no file gets its name."""
    store = machines("a")
    make(store)
    assert store.mirror is not None
    store.mirror.bucket.write("reports/x-1/b.bin", bytes(999) + b"\1")
    found = machines("b").find("reports", "x")
    with pytest.raises(DataError, match=r"s3://bucket/.*/reports/x-1/b\.bin is corrupt"):
        _ = found.path
    assert not list(found.folder.rglob("*b.bin*"))


def test_without_its_manifest_it_does_not_exist(machines: Any) -> None:
    """What a writer sent before it was killed is seen by nobody, and replaced by whoever makes it again."""
    store = machines("a")
    assert store.mirror is not None
    store.mirror.bucket.write("reports/x-1/inner/a.txt", b"half")
    assert store.get("reports", "x-1") is None
    assert store.artifacts("reports") == []
    assert store.names("reports") == ["x-1"]
    make(store)
    assert machines("b").find("reports", "x").file("inner/a.txt").read_text() == "hello"


def test_who_is_second_gets_the_first_ones(machines: Any) -> None:
    """Two that make one artifact end with one, whose files are those of its manifest."""
    make(machines("a"), text="first")
    second = make(machines("b"), text="second")
    assert second.meta == {"text": "first"}
    assert second.verify().file("inner/a.txt").read_text() == "first"


def test_deleted_is_deleted_everywhere(machines: Any) -> None:
    """A machine that has a copy does not believe in it."""
    a = machines("a")
    artifact = make(a)
    b = machines("b")
    assert b.find("reports", "x").path.is_dir()
    b.remove(artifact)
    assert machines("a").get("reports", "x-1") is None
    assert make(machines("a"), text="again").file("inner/a.txt").read_text() == "again"


def write_step(folder: Path, content: str) -> None:
    (folder / "state.json").write_text(content)


def test_checkpoints_go_on_on_another_machine(machines: Any) -> None:
    """The newest sealed one; one without its manifest is passed over; the oldest are let go in the bucket, too."""
    a = machines("a")
    saved = Checkpoints(a.folder("runs", "r-1") / "checkpoints")
    for step in (1, 2, 3):
        saved.save(step, lambda folder, step=step: write_step(folder, str(step)))
    a.mirror.bucket.write("runs/r-1/checkpoints/step_00000004/state.json", b"4")
    b = machines("b")
    newest = Checkpoints(b.folder("runs", "r-1") / "checkpoints").newest()
    assert newest is not None
    assert newest.name == "step_00000003"
    assert (newest / "state.json").read_text() == "3"
    assert b.mirror.names("runs/r-1/checkpoints") == ["step_00000002", "step_00000003", "step_00000004"]


def test_a_checkpoint_that_is_corrupt_here_is_brought_again(machines: Any) -> None:
    """Else a run would go on from an older one, on this machine alone."""
    store = machines("a")
    saved = Checkpoints(store.folder("runs", "r-1") / "checkpoints")
    saved.save(1, lambda folder: write_step(folder, "1"))
    saved.save(2, lambda folder: write_step(folder, "2"))
    (saved.folder / "step_00000002" / "state.json").write_text("7")
    newest = saved.newest()
    assert newest is not None
    assert (newest / "state.json").read_text() == "2"


def test_a_run_is_sealed_from_what_several_machines_made(machines: Any) -> None:
    """A worker's checkpoint and the driver's recipe end in one manifest."""
    worker = machines("worker")
    Checkpoints(worker.folder("runs", "r-1") / "checkpoints").save(1, lambda folder: write_step(folder, "1"))
    driver = machines("driver")
    folder = driver.folder("runs", "r-1")
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("{}")
    sealed = driver.finalize("runs", "r-1", name="r", only=lambda name: ".tmp-" not in name)
    assert {"recipe.yaml", "checkpoints/step_00000001/state.json"} <= set(sealed.manifest["files"])
    assert machines("third").find("runs", "r").verify().path.is_dir()


def journal(store: Store) -> Path:
    return journal_path(store.root, "r-1")


def test_a_journal_goes_on_on_another_machine(machines: Any) -> None:
    """What was said on the first is not said again on the second; the first's end that nobody kept is let go."""
    a = machines("a")
    with Journal(journal(a)) as first:
        first.metrics(1, {"loss": 1.0})
    first = Journal(journal(a))  # never closed: killed, with a line that nobody kept
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


def test_one_process_of_all_machines_makes_a_thing(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused, with the first's name; when the first is gone, it may."""
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


def test_a_dead_machine_holds_nothing_for_long(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim of another machine that nobody renews ends by the server's clock; of this one, with its process."""
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
    assert 0.5 < time.monotonic() - started < 10


def test_of_many_at_one_moment_one_holds_it(machines: Any) -> None:
    """Claims written at the same time: never two inside, and each gets its turn."""
    bucket = machines("a").mirror.bucket
    inside, most, turns = 0, 0, 0
    guard = threading.Lock()

    def want() -> None:
        nonlocal inside, most, turns
        with lock.lease(bucket, "x", wait=True):
            with guard:
                inside += 1
                most = max(most, inside)
                turns += 1
            time.sleep(0.05)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 4)


def test_a_server_that_fails_now_and_then(machines: Any, server: Server) -> None:
    """Of all requests 40 % end in a 500, a 503 or a closed connection, and every byte arrives."""
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


def test_a_server_that_is_gone(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, after the deadline and not much later; what follows in the same command does not wait again."""
    machines("a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GENFLOW_STORE_DEADLINE", "2")
    started = time.monotonic()
    words = r"the store s3://bucket/.* at http://127.0.0.1:9 did not answer for 2 s"
    with pytest.raises(SetupError, match=words) as caught:
        Store()
    assert 2 <= time.monotonic() - started < 6
    assert "AWS_ENDPOINT_URL" in caught.value.hint
    assert "\n" not in caught.value.message


def test_a_bucket_that_is_not_there(machines: Any) -> None:
    """It is not an empty store."""
    machines("a")
    with pytest.raises(SetupError, match="there is no bucket nobody-has-it"):
        Store("s3://nobody-has-it/x")


@pytest.mark.parametrize("url", ["s3://", "s3://UPPER/x", "gs://bucket/x", "s3://bucket//x", "s3://bucket/x?y"])
def test_what_is_no_store(url: str) -> None:
    """It is said at once, without a request."""
    with pytest.raises(UsageError, match="is neither a folder nor s3://bucket/prefix"):
        Store(url)


def test_the_same_place_by_its_folder(machines: Any) -> None:
    """A process that is told the mirror's folder knows that it is one, and whose."""
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
def test_what_no_repetition_mends(
    machines: Any, server: Server, monkeypatch: pytest.MonkeyPatch, status: str, code: str, words: str
) -> None:
    """A wrong key, an expired one and a wrong region are said at once, with the variable that mends them."""
    store = machines("a")
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()

    def refuse(environ: dict[str, Any], start: Any) -> list[bytes]:
        start(status, [("Content-Length", str(len(body)))])
        return [body]

    monkeypatch.setattr(server, "moto", refuse)
    started = time.monotonic()
    with pytest.raises(SetupError) as caught:
        store.artifacts("reports")
    assert time.monotonic() - started < 2
    assert words in caught.value.hint


def test_a_checkpoint_that_is_made_twice_in_a_second(machines: Any) -> None:
    """The second one counts, although S3 tells times in seconds and both manifests have one size."""
    saved = Checkpoints(machines("a").folder("runs", "r-1") / "checkpoints")
    for content in "123":
        saved.save(1, lambda folder, content=content: write_step(folder, content))
        newest = saved.newest()
        assert newest is not None
        assert (newest / "state.json").read_text() == content
    newest = Checkpoints(machines("b").folder("runs", "r-1") / "checkpoints").newest()
    assert newest is not None
    assert (newest / "state.json").read_text() == "3"
