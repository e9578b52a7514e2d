"""Files with one JSON document per line: a killed writer or a full disk costs one line only."""

import os
from pathlib import Path

import pytest

from genflow.storage import json_lines
from genflow.storage.json_lines import append_durably, append_line, end_torn_line, read_lines


def test_an_incomplete_line_is_skipped_and_ended_by_the_next_writer(tmp_path: Path) -> None:
    """Readers skip an incomplete line, and the next entry is on a new line."""
    file = tmp_path / "record.jsonl"
    assert read_lines(file) == []
    append_durably(file, {"a": 1})
    with open(file, "ab") as out:
        out.write(b'{"a": 2')
    append_durably(file, {"a": "é\n"})
    assert read_lines(file) == [{"a": 1}, {"a": "é\n"}]


def test_a_partial_write_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partial write raises the error of a full disk, and the next line is complete."""
    file, write = tmp_path / "journal.jsonl", os.write
    with open(file, "ab+", buffering=0) as out:
        with monkeypatch.context() as patch:
            patch.setattr(json_lines.os, "write", lambda descriptor, line: write(descriptor, line[:5]))
            with pytest.raises(OSError, match="No space left"):
                append_line(out.fileno(), {"a": 1})
        end_torn_line(out.fileno())
        append_line(out.fileno(), {"a": 2})
    assert read_lines(file) == [{"a": 2}]


def test_a_value_that_is_not_json_needs_a_default(tmp_path: Path) -> None:
    """Without `default` the value raises TypeError; `default=str` writes its text."""
    with open(tmp_path / "x.jsonl", "ab+", buffering=0) as out:
        with pytest.raises(TypeError):
            append_line(out.fileno(), {"a": tmp_path})
        append_line(out.fileno(), {"a": tmp_path}, default=str)
    assert read_lines(tmp_path / "x.jsonl") == [{"a": str(tmp_path)}]
