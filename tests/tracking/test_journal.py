"""The journal: complete lines, no duplicates, and nothing lost except the line that a kill cut off."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from genflow.errors import ResourceError
from genflow.tracking.journal import Cursor, Journal, curves, entries, has_writer, header, journal_path


@pytest.fixture
def path(tmp_path):
    return journal_path(tmp_path, "fm-1a2b")


def values_of(path, kind):
    return [entry[kind] for _, entry in entries(path) if kind in entry]


def test_every_line_is_standard_json(path):
    """NaN and Infinity are written as strings, so that any JSON reader can read a journal."""
    with Journal(path) as journal:
        journal.metrics(1, {"loss": float("nan"), "up": float("inf"), "down": float("-inf"), "fine": 0.25})

    def refuse(word):
        raise AssertionError(word)

    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=refuse)
    read = {key: values[0][1] for key, values in curves(path).items()}
    assert read["loss"] != read["loss"]
    assert (read["up"], read["down"], read["fine"]) == (float("inf"), float("-inf"), 0.25)


def test_the_first_writer_writes_the_header(path):
    """Only the first writer writes experiment, name and the journal's id."""
    Journal(path, experiment="digits", name="fm").close()
    Journal(path, experiment="other").close()
    assert len(values_of(path, "journal")) == 1
    assert header(path)["journal"].items() >= {"experiment": "digits", "name": "fm"}.items()


def test_a_resumed_run_does_not_repeat_its_training_steps(path):
    """A metric at or before its own last step is skipped."""
    with Journal(path) as journal:
        for step in (10, 20, 30):
            journal.metrics(step, {"loss": 1 / step})
        journal.metrics(20, {"val": 7.0})
    with Journal(path) as journal:
        for step in (20, 25, 30, 40):
            journal.metrics(step, {"loss": 9.0, "val": 8.0})
    assert curves(path) == {
        "loss": [(10, 0.1), (20, 0.05), (30, 1 / 30), (40, 9.0)],
        "val": [(20, 7.0), (25, 8.0), (30, 8.0), (40, 8.0)],
    }


def test_other_streams_take_steps_in_any_order_and_once(path):
    """A stream other than "train" takes steps in any order, and each step once."""
    for _ in range(2):
        with Journal(path) as journal:
            for nfe in (50, 10, 20):
                journal.metrics(nfe, {"eval/fd": 1 / nfe}, stream="eval/fd")
    assert curves(path, "eval/fd") == {"eval/fd": [(50, 0.02), (10, 0.1), (20, 0.05)]}
    assert curves(path) == {}


def test_images_params_and_models_are_written_once(path):
    """A resumed run logs images, settings and models again; the journal writes them once."""
    for lr in (0.1, 0.2):
        with Journal(path) as journal:
            journal.params({"train.lr": lr})
            journal.image(5, "samples/ema", path.parent / "5.png")
            journal.model(path.parent / "step_5", "fm")
    assert values_of(path, "params") == [{"train.lr": 0.1}]
    assert len(values_of(path, "image")) == len(values_of(path, "model")) == 1


def test_files_in_the_store_have_relative_paths(path, tmp_path):
    """Files in the store are written relative to it; other files keep their absolute path."""
    with Journal(path) as journal:
        journal.artifact(tmp_path / "runs" / "a" / "recipe.yaml")
        journal.artifact("/elsewhere/report.html", "reports")
    assert values_of(path, "artifact") == [
        {"file": "runs/a/recipe.yaml", "artifact_path": ""},
        {"file": "/elsewhere/report.html", "artifact_path": "reports"},
    ]


@pytest.mark.parametrize("kept", [1, 30, -1])
def test_an_incomplete_last_line_costs_one_line(path, kept):
    """However much of the last line a killed writer wrote, the next writer's lines are complete."""
    with Journal(path) as journal:
        journal.metrics(1, {"loss": 1.0})
        before = path.stat().st_size
        journal.metrics(2, {"loss": 2.0})
    line = path.read_bytes()[before:]
    path.write_bytes(path.read_bytes()[:before] + line[:kept])
    assert curves(path) == {"loss": [(1, 1.0)]}
    with Journal(path) as journal:
        journal.metrics(2, {"loss": 2.0})
        journal.metrics(3, {"loss": 3.0})
    assert curves(path) == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0)]}


def test_a_full_disk_is_an_error_and_costs_one_line(path):
    """After a full disk, the next entry is on a new line."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
        journal.metrics(1, {"loss": 1.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
        try:
            with pytest.raises(ResourceError, match="disk full"):
                journal.metrics(2, {"loss": 2.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        journal.metrics(2, {"loss": 2.0})
    assert curves(path) == {"loss": [(1, 1.0), (2, 2.0)]}


WRITER = """
import sys
from genflow.tracking.journal import Journal
journal = Journal(sys.argv[1])
for step in range(int(sys.argv[2]), int(sys.argv[3])):
    journal.metrics(step, {"loss": step / 2, "filler": 0.123456789}, stream=sys.argv[4])
    if step == 100: print("writing", flush=True)
"""


def writer(path, *arguments):
    command = [sys.executable, "-c", WRITER, str(path), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")


def test_a_killed_writer_and_its_successor_write_each_step_once(path):
    """After `kill -9`, a run that resumes from an older checkpoint writes each step once."""
    first = writer(path, 0, 10**9, "train")
    assert first.stdout.readline() == "writing\n"
    assert has_writer(path)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not has_writer(path)
    reached = curves(path)["loss"][-1][0]
    with Journal(path) as journal:
        for step in range(50, reached + 100):
            journal.metrics(step, {"loss": step / 2, "filler": 0.123456789})
    assert curves(path)["loss"] == [(step, step / 2) for step in range(reached + 100)]


def test_simultaneous_writers_never_mix_their_lines(path):
    """Three processes that write to the same journal never mix their lines."""
    streams = ("a", "b", "c")
    for process in [writer(path, 0, 2000, stream) for stream in streams]:
        process.communicate()
        assert process.returncode == 0
    for stream in streams:
        assert curves(path, stream)["loss"] == [(step, step / 2) for step in range(2000)]
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_entries_are_read_from_an_offset(path):
    """Reading from an offset yields exactly the new entries, without an incomplete line."""
    with Journal(path) as journal:
        journal.metrics(1, {"loss": 1.0})
        end = [offset for offset, _ in entries(path)][-1]
        assert end == path.stat().st_size
        journal.metrics(2, {"loss": 2.0})
        with open(path, "ab") as file:
            file.write(b'{"half":')
        assert [entry["step"] for _, entry in entries(path, end)] == [2]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"offset": 3, "colour": 1}'])
def test_a_cursor_that_cannot_be_read_is_a_new_one(path, content):
    """A cursor that is missing, incomplete or of another version is replaced by a new one."""
    path.parent.mkdir(parents=True)
    Cursor(uri="sqlite:///a", offset=17).write(path)
    assert Cursor.read(path).offset == 17
    file = path.with_suffix(".cursor.json")
    os.unlink(file) if content is None else file.write_text(content, encoding="utf-8")
    assert Cursor.read(path) == Cursor()
