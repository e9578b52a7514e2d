"""The journal: whole lines, nothing twice, nothing lost but what a kill tore."""

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


def all_of(path, kind):
    return [entry[kind] for _, entry in entries(path) if kind in entry]


def test_every_line_is_a_json_document_of_the_standard(path):
    """No NaN or Infinity stands bare, so that any JSON reader can read a journal."""
    with Journal(path) as journal:
        journal.metrics(1, {"loss": float("nan"), "up": float("inf"), "down": float("-inf"), "fine": 0.25})

    def refuse(word):
        raise AssertionError(word)

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    read = {key: values[0][1] for key, values in curves(path).items()}
    assert read["loss"] != read["loss"]
    assert (read["up"], read["down"], read["fine"]) == (float("inf"), float("-inf"), 0.25)


def test_the_first_writer_says_whose_journal_it_is(path):
    """Experiment, name and the journal's id are written once."""
    Journal(path, experiment="digits", name="fm").close()
    Journal(path, experiment="other").close()
    assert len(all_of(path, "journal")) == 1
    assert header(path)["journal"].items() >= {"experiment": "digits", "name": "fm"}.items()


def test_a_resumed_run_does_not_repeat_its_training_steps(path):
    """What lies at or before a metric's last step is passed over, each metric for itself."""
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


def test_other_streams_take_steps_in_any_order_but_each_once(path):
    """Quality against evaluations may be measured at 50 first and at 10 later."""
    for _ in range(2):
        with Journal(path) as journal:
            for nfe in (50, 10, 20):
                journal.metrics(nfe, {"eval/fd": 1 / nfe}, stream="eval/fd")
    assert curves(path, "eval/fd") == {"eval/fd": [(50, 0.02), (10, 0.1), (20, 0.05)]}
    assert curves(path) == {}


def test_pictures_params_and_models_are_said_once(path):
    """A run that goes on says them again; the journal does not."""
    for lr in (0.1, 0.2):
        with Journal(path) as journal:
            journal.params({"train.lr": lr})
            journal.image(5, "samples/ema", path.parent / "5.png")
            journal.model(path.parent / "step_5", "fm")
    assert all_of(path, "params") == [{"train.lr": 0.1}]
    assert len(all_of(path, "image")) == len(all_of(path, "model")) == 1


def test_files_in_the_store_are_named_from_its_root(path, tmp_path):
    """The store can be moved; files elsewhere keep their absolute path."""
    with Journal(path) as journal:
        journal.artifact(tmp_path / "runs" / "a" / "recipe.yaml")
        journal.artifact("/elsewhere/report.html", "reports")
    assert all_of(path, "artifact") == [
        {"file": "runs/a/recipe.yaml", "artifact_path": ""},
        {"file": "/elsewhere/report.html", "artifact_path": "reports"},
    ]


@pytest.mark.parametrize("kept", [1, 30, -1])
def test_a_torn_last_line_costs_itself_alone(path, kept):
    """However much of its last line a killed writer got out, the next writer's lines are whole."""
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


def test_a_full_disk_is_one_clear_error_and_tears_one_line(path):
    """When there is room again, the next line begins on a line of its own."""
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
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_and_its_successor_write_each_step_once(path):
    """kill -9 in the middle of writing, then again from an older checkpoint."""
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


def test_writers_side_by_side_never_mix_their_lines(path):
    """The driver and a worker have the same journal open."""
    streams = ("a", "b", "c")
    for process in [writer(path, 0, 2000, stream) for stream in streams]:
        process.communicate()
        assert process.returncode == 0
    for stream in streams:
        assert curves(path, stream)["loss"] == [(step, step / 2) for step in range(2000)]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_entries_go_on_from_an_offset(path):
    """A reader that comes back reads exactly what is new, and no line that is still being written."""
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
    """Lost, torn or of another version: sending starts at the beginning."""
    path.parent.mkdir(parents=True)
    Cursor(uri="sqlite:///a", offset=17).write(path)
    assert Cursor.read(path).offset == 17
    file = path.with_suffix(".cursor.json")
    os.unlink(file) if content is None else file.write_text(content)
    assert Cursor.read(path) == Cursor()
