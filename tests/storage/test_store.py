"""The store: an artifact is whole or does not exist, and every changed byte is detected."""

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, TESTS
from support.crashes import crashes

from genflow.errors import DataError, ResourceError, SetupError, UsageError
from genflow.storage import names
from genflow.storage.files import HOSTNAME, explain_disk_errors, write_atomically
from genflow.storage.manifest import read_manifest
from genflow.storage.names import Names
from genflow.storage.store import MANIFEST, Artifact, Store


def make(store: Store, id: str = "digits-abc", *, name: str = "digits") -> Artifact:
    with store.stage("datasets", id, name=name) as staged:
        (staged.path / "train").mkdir()
        (staged.path / "train" / "data.arrow").write_text("x" * 100, encoding="utf-8")
        (staged.path / "facts.json").write_text("{}", encoding="utf-8")
        return staged.commit(parents=["p"], meta={"rows": 3})


def test_a_committed_artifact_is_found_with_its_manifest(store: Store) -> None:
    """The manifest has name, parents, meta, and the size and SHA-256 of each file."""
    made = make(store)
    found = store.get("datasets", "digits-abc")
    assert found is not None
    assert (found.name, found.meta, found.manifest["parents"]) == ("digits", {"rows": 3}, ["p"])
    assert found.path == made.path == store.root / "datasets" / "digits-abc"
    assert found.manifest["files"]["train/data.arrow"]["size"] == 100
    assert found.verify() is found
    assert found.manifest["schema"] == "genflow.datasets/1"


def test_without_its_manifest_it_does_not_exist(store: Store) -> None:
    """An artifact without a manifest does not exist, and can be made again over its files."""
    made = make(store)
    (made.path / MANIFEST).unlink()
    assert store.get("datasets", made.id) is None
    assert store.artifacts("datasets") == []
    assert make(store).verify()


@pytest.mark.parametrize("damage", ["", '{"files": ', "[]", "{}", "[" * 100_000, "changed", "renamed"])
def test_a_damaged_manifest_is_named(store: Store, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A request for the artifact is an error; a list has one warning and the other artifacts; `rm` cures both."""
    made, other = make(store), make(store, "moons-c3", name="moons")
    file = made.path / MANIFEST
    text = file.read_text(encoding="utf-8")
    changed = {"changed": text.replace('"rows": 3', '"rows": 4'), "renamed": text.replace('"checksum"', '"checkzum"')}
    file.write_text(changed.get(damage, damage), encoding="utf-8")
    for ask in (lambda: store.get("datasets", made.id), lambda: store.find("datasets", "digits"),
                lambda: store.find("datasets", "digits-a")):  # fmt: skip
        with pytest.raises(DataError, match=f"{file} is corrupt") as refused:
            ask()
        assert refused.value.hint == f"rm {file}, then run the command that made it again"
    for _ in range(2):
        assert store.artifacts("datasets") == [other]
    assert store.find("datasets", "moons") == other
    assert capsys.readouterr().err.count(f"warning: skipped: {file} is corrupt") == 1
    file.unlink()
    assert make(store).verify()


def test_a_manifest_belongs_to_its_folder(store: Store) -> None:
    """Two manifests that were swapped are damaged, although each matches its checksum."""
    made, other = make(store), make(store, "moons-c3", name="moons")
    (made.path / MANIFEST).write_bytes((other.path / MANIFEST).read_bytes())
    with pytest.raises(DataError, match="it is the manifest of moons-c3"):
        store.get("datasets", made.id)


def test_a_file_is_compared_with_the_manifest_when_it_is_read(store: Store) -> None:
    """`Artifact.file` refuses a changed, missing or unlisted file; a change of the same length is found too."""
    made = make(store)
    file = made.path / "facts.json"
    os.utime(file, (1, 1))  # settled, so that its hash is remembered
    assert made.file("facts.json").read_text(encoding="utf-8") == "{}"
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match=f"{file} is corrupt"):
        made.file("facts.json")
    file.unlink()
    with pytest.raises(DataError, match=f"{file} is missing"):
        made.file("facts.json")
    with pytest.raises(DataError, match="is not in its manifest"):
        made.file("other.json")
    assert made.file("train/data.arrow").is_file()


def test_a_folder_that_is_not_committed_is_deleted(store: Store) -> None:
    """A staged folder is deleted if the block raises or does not commit."""
    with store.stage("datasets", "a-1") as staged:
        (staged.path / "half").write_text("written", encoding="utf-8")
    with pytest.raises(ZeroDivisionError), store.stage("datasets", "a-1"):
        _ = 1 / 0
    assert list((store.root / "datasets").iterdir()) == []


def test_attempts_of_killed_processes_are_ignored(store: Store) -> None:
    """A temporary folder does not count, even if its manifest is written."""
    made = make(store)
    made.path.rename(made.path.with_name("digits-abc.tmp-123-ff"))
    assert store.artifacts("datasets") == []
    assert make(store).verify()
    assert [a.id for a in store.artifacts("datasets")] == ["digits-abc"]


def test_leftovers_of_a_killed_process_are_deleted(store: Store) -> None:
    """The temporary folder of a dead process is deleted; those of a live process and of another machine stay."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = store.folder("reports", "x").parent
    names = [f"x.tmp-{HOSTNAME}-{gone.pid}-1", f"x.tmp-{HOSTNAME}-{os.getpid()}-1", f"x.tmp-elsewhere-{gone.pid}-1"]
    for name in names:
        (folder / name).mkdir(parents=True)
    with store.stage("reports", "y") as staged:
        staged.commit()
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names[1:], "y"])


def test_a_process_killed_at_any_moment_leaves_the_old_or_the_new(store: Store) -> None:
    """Wherever a writer is killed between system calls, a reader sees no artifact or a whole one."""
    script = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
left = int(sys.argv[2])
def counted(call):
    def run(*args):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return call(*args)
    return run
for name in ("rename", "replace", "fsync", "mkdir"):
    setattr(os, name, counted(getattr(os, name)))
from test_store import make
from genflow.storage.store import Store
make(Store(sys.argv[3]))
"""
    tests, root = Path(__file__).parent, ROOT
    path = os.pathsep.join([str(root), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    seen = []
    for calls in (3, 5, 7, 8, 9, 10, 11, 40):
        command = [sys.executable, "-c", script, str(tests), str(calls), str(store.root)]
        subprocess.run(command, env=environment, check=False, stderr=subprocess.DEVNULL)
        found = store.artifacts("datasets")
        assert all(artifact.verify() for artifact in found)
        seen.append(len(found))
    assert seen[0] == 0
    assert seen[-1] == 1


def test_every_changed_byte_is_detected(store: Store) -> None:
    """A changed byte of a file is an error that names the file; a changed manifest too."""
    made = make(store)
    content = {file: file.read_bytes() for file in made.path.rglob("*") if file.is_file()}
    for file, whole in content.items():
        for at in range(0, len(whole), 3):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            if file.name != MANIFEST:
                with pytest.raises(DataError, match=f"{file.name} is corrupt"):
                    made.verify()
            else:
                with pytest.raises(DataError, match=f"{file} is corrupt"):
                    store.get("datasets", made.id)
        file.write_bytes(whole)
    file = made.path / "facts.json"
    file.write_bytes(b"")
    with pytest.raises(DataError, match=f"{file} is corrupt") as refused:
        made.verify()
    assert f"rm -r {made.path}" in refused.value.hint
    file.unlink()
    with pytest.raises(DataError, match=f"{file} is missing"):
        made.verify()


def _write_many(root: Path, text: str, barrier: "multiprocessing.synchronize.Barrier") -> None:
    store = Store(root)
    for round in range(30):
        with store.stage("datasets", f"a-{round}") as staged:
            for part in range(3):
                (staged.path / f"{part}.txt").write_text(text * 50, encoding="utf-8")
            barrier.wait()
            staged.commit()


def test_one_of_two_writers_wins(store: Store) -> None:
    """Of two processes that commit the same artifact at the same time, one wins; thirty times."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    writers = [context.Process(target=_write_many, args=(store.root, text, barrier)) for text in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    found = store.artifacts("datasets")
    assert len(found) == 30
    for artifact in found:
        artifact.verify()
        assert len({file.read_text(encoding="utf-8") for file in artifact.path.glob("*.txt")}) == 1
    assert not list((store.root / "datasets").glob("*.tmp-*"))


def test_the_second_of_two_writers_gets_the_first_artifact(store: Store) -> None:
    """A commit returns the existing artifact and does not change it."""
    with store.stage("datasets", "a-1") as late:
        (late.path / "facts.json").write_text("late", encoding="utf-8")
        first = make(store, "a-1")
        assert late.commit().manifest == first.manifest
    assert first.verify()


def test_an_artifact_is_found_by_several_names(store: Store) -> None:
    """`find` accepts the id, a prefix of it, the key, the name (the last one that prepare named), and `latest`."""
    for id, name in (("digits-aa1", "digits"), ("digits-ab2", "digits"), ("moons-c3", "moons")):
        store.record_name(make(store, id, name=name))
    expected = {
        "digits-aa1": "digits-aa1", "digits-aa": "digits-aa1", "ab2": "digits-ab2", "c": "moons-c3",
        "moo": "moons-c3", "digits": "digits-ab2", "latest": "moons-c3",
    }  # fmt: skip
    assert {said: store.find("datasets", said).id for said in expected} == expected
    for said, message in (
        ("digits-a", r"'digits-a' is ambiguous: digits-aa1, digits-ab2"),
        ("mooons", r"no dataset 'mooons'; there are: moons, digits"),
        ("", "no dataset was named"),
    ):
        with pytest.raises(UsageError, match=message):
            store.find("datasets", said)
    with pytest.raises(UsageError, match="has none"):
        store.find("runs", "latest")


def test_a_name_of_several_datasets_means_the_last_that_was_named(store: Store, monkeypatch: Any) -> None:
    """The record decides, and not the date; without one, or if two machines differ, both ids are in the error."""
    first, second = (make(store, id, name="emoji") for id in ("emoji-32", "emoji-64"))
    assert store.reference(first) == "emoji-32"
    with pytest.raises(UsageError, match=r"2 datasets are named emoji: emoji-32, emoji-64; no record") as refused:
        store.find("datasets", "emoji")
    assert "use an id" in refused.value.hint
    for named in (second, first, second, first):
        store.record_name(named)
        assert store.find("datasets", "emoji").id == named.id
    monkeypatch.setattr(names, "HOSTNAME", "other")
    assert store.find("datasets", "emoji").id == "emoji-32"  # another machine has named one, and this one none
    store.record_name(second)
    assert store.find("datasets", "emoji").id == "emoji-64"
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"emoji-32 on .*, emoji-64 on other"):
        store.find("datasets", "emoji")
    store.record_name(first)
    assert store.find("datasets", "emoji").id == "emoji-32"
    store.delete(first.kind, first.id)
    assert store.find("datasets", "emoji").id == store.find("datasets", "emoji-64").id == "emoji-64"
    assert [record.id for record in store._names().records("datasets").values()] == ["emoji-64"]
    assert store.reference(second) == "emoji"


def test_a_store_that_cannot_be_written_says_that_a_name_keeps_its_meaning(store: Store, monkeypatch: Any) -> None:
    """A cached prepare in a read-only store warns only if another dataset has the name."""
    first = make(store, "emoji-32", name="emoji")
    monkeypatch.setattr(Names, "record", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    assert store.record_name(first) == ""
    make(store, "emoji-64", name="emoji")
    assert "Read-only file system" in store.record_name(first)


def test_a_name_wins_over_a_longer_name_with_the_same_prefix(store: Store) -> None:
    """`digits` is the dataset of that name, although `digits_small-..` has the same prefix."""
    make(store, "digits-1", name="digits")
    make(store, "digits_small-2", name="digits_small")
    assert store.find("datasets", "digits").id == "digits-1"


def test_a_folder_that_was_filled_in_place_is_finalized(store: Store) -> None:
    """`finalize` writes the manifest of a folder, with the selected files only."""
    folder = store.folder("runs", "r-1")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "weights").write_text("w", encoding="utf-8")
    (folder / "checkpoints.tmp-1").write_text("torn", encoding="utf-8")
    assert store.get("runs", "r-1") is None
    finished = store.finalize("runs", "r-1", meta={"steps": 3}, only=lambda name: ".tmp-" not in name)
    assert list(finished.manifest["files"]) == ["checkpoints/weights"]
    assert store.get("runs", "r-1").verify().meta == {"steps": 3}  # type: ignore[union-attr]
    store.delete(finished.kind, finished.id)
    assert not folder.exists()


def test_one_process_holds_a_lock(store: Store) -> None:
    """A held lock raises an error that names the process; a killed process releases its lock."""
    with (
        store.lock("runs", "r-1"),
        pytest.raises(UsageError, match=rf"r-1 is being made by process {os.getpid()} on") as refused,
        store.lock("runs", "r-1", wait=False),
    ):
        pass
    assert refused.value.hint
    with store.lock("runs", "r-1", wait=False), store.lock("runs", "r-2", wait=False):
        pass
    script = f"""
import os
from genflow.storage.store import Store
with Store({str(store.root)!r}).lock("runs", "r-1"):
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    with store.lock("runs", "r-1", wait=False):
        pass


def test_a_deletion_that_is_killed_at_any_moment_leaves_all_or_nothing(store: Store) -> None:
    """Wherever `delete` is killed, the run is whole or gone, and the next command deletes all that is left of it."""
    folder, journal = store.folder("runs", "r-1"), store.root / "journals" / "r-1.jsonl"

    def begin() -> None:
        write_atomically(folder / "checkpoints" / "step_1" / "weights", "w")
        write_atomically(folder / "recipe.yaml", "r")
        store.finalize("runs", "r-1")
        for file in (journal, journal.with_suffix(".cursor.json"), journal.with_name("r-1.0007.jsonl")):
            write_atomically(file, "x")

    begin()
    states = []
    for _ in crashes(lambda: store.delete("runs", "r-1")):
        found = store.get("runs", "r-1")
        states.append("whole" if found and found.verify() else "gone")
        assert found or not folder.exists()
        make(store, "other-1")
        with store.stage("runs", "other"):  # the next command
            pass
        if found:
            assert journal.exists()
            continue
        assert list((store.root / "runs").iterdir()) == list((store.root / "journals").iterdir()) == []
        with store.lock("runs", "r-1", wait=False):
            begin()
        store.delete(make(store, "other-1").kind, "other-1")
    assert states == sorted(states, reverse=True)  # once it is gone, it stays gone
    assert set(states) == {"whole", "gone"}
    assert len(states) > 8
    store.delete("runs", "r-1")
    assert list((store.root / "locks").iterdir()) == []


def test_a_deleted_lock_excludes_as_before(store: Store) -> None:
    """A process that waited for a lock whose file was deleted does not hold it with another process."""
    reached, release, inside = threading.Event(), threading.Event(), []

    def hold(name: str) -> None:
        with store.lock("runs", "r-1"):
            inside.append(name)
            reached.set()
            release.wait(10)
            assert inside.pop() == name
            assert inside == []

    with store.lock("runs", "r-1"):
        waiting = [threading.Thread(target=hold, args=(name,)) for name in "ab"]
        for thread in waiting:
            thread.start()
        store._locks.file("runs", "r-1").unlink()
    assert reached.wait(10)
    with pytest.raises(UsageError), store.lock("runs", "r-1", wait=False):
        pass
    release.set()
    for thread in waiting:
        thread.join()


def test_a_lock_lists_what_its_holder_uses(store: Store) -> None:
    """`users` names the lock and its process while the process holds it; `holder` names the process."""
    with store.lock("runs", "r-1", uses=["digits-abc", "teacher-1"]):
        assert store.users("digits-abc") == store.users("teacher-1") == [("runs-r-1", store.holder("runs", "r-1"))]
        assert store.holder("runs", "r-1").startswith(f"{os.getpid()} on")
        assert store.users("digits") == []
    assert store.users("digits-abc") == []
    assert store.holder("runs", "r-1") == ""


def test_small_files_are_replaced_atomically(tmp_path: Path) -> None:
    """Writing a small file replaces its content and leaves no temporary file."""
    file = tmp_path / "deep" / "state.json"
    write_atomically(file, "old")
    write_atomically(file, b"new")
    assert file.read_text(encoding="utf-8") == "new"
    assert [p.name for p in file.parent.iterdir()] == ["state.json"]


def test_disk_errors_are_one_line(tmp_path: Path) -> None:
    """A full disk is a ResourceError, a read-only one a SetupError; other errors are not changed."""
    for number, kind in ((28, ResourceError), (122, ResourceError), (13, SetupError), (30, SetupError), (2, OSError)):
        with pytest.raises(kind), explain_disk_errors(tmp_path):
            raise OSError(number, os.strerror(number))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SetupError, match="is a file, not a folder"):
        Store(tmp_path / "file")
    with pytest.raises(UsageError, match="is neither a folder nor s3:"):
        Store("gs://bucket/prefix")


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The store is GENFLOW_STORE or .genflow in the current folder, as an absolute path; reading creates no file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GENFLOW_STORE", raising=False)
    assert Store().root == tmp_path / ".genflow"
    monkeypatch.setenv("GENFLOW_STORE", "elsewhere")
    assert Store().root == tmp_path / "elsewhere"
    assert Store().artifacts("runs") == []
    assert list(tmp_path.iterdir()) == []
    assert read_manifest(tmp_path) is None
