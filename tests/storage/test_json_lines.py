"""Files of one JSON document a line: what a killed writer or a full disk leaves costs one line and no other."""

import os
from pathlib import Path

import pytest

from genflow.storage import json_lines
from genflow.storage.json_lines import append_durably, append_line, end_torn_line, read_lines


def test_a_torn_line_is_passed_over_and_closed_by_the_next(tmp_path: Path) -> None:
    """The entry after it is on a line of its own."""
    file = tmp_path / "record.jsonl"
    assert read_lines(file) == []
    append_durably(file, {"a": 1})
    with open(file, "ab") as out:
        out.write(b'{"a": 2')
    append_durably(file, {"a": "é\n"})
    assert read_lines(file) == [{"a": 1}, {"a": "é\n"}]


def test_a_line_that_is_written_in_part_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next writer's line is whole."""
    file, write = tmp_path / "journal.jsonl", os.write
    with open(file, "ab+", buffering=0) as out:
        with monkeypatch.context() as patch:
            patch.setattr(json_lines.os, "write", lambda descriptor, line: write(descriptor, line[:5]))
            with pytest.raises(OSError, match="No space left"):
                append_line(out.fileno(), {"a": 1})
        end_torn_line(out.fileno())
        append_line(out.fileno(), {"a": 2})
    assert read_lines(file) == [{"a": 2}]


def test_what_is_no_json_is_an_error_unless_a_default_is_given(tmp_path: Path) -> None:
    """A record refuses it; a journal writes its text."""
    with open(tmp_path / "x.jsonl", "ab+", buffering=0) as out:
        with pytest.raises(TypeError):
            append_line(out.fileno(), {"a": tmp_path})
        append_line(out.fileno(), {"a": tmp_path}, default=str)
    assert read_lines(tmp_path / "x.jsonl") == [{"a": str(tmp_path)}]
