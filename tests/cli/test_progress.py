"""What a user sees while a job runs, on a terminal of 100 columns and without one."""

import base64
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ROOT

from genflow.cli import pictures, progress
from genflow.cli.console import table
from genflow.data import preview
from genflow.system.folding import column_groups

PROGRESS = {
    "event": "progress", "stage": "train", "run": "flow_matching-my_pictures-0123456789", "step": 123_456,
    "steps": 200_000, "position": 0.61, "loss": 0.123456, "validation": 0.234567, "images_per_second": 12_345.6,
    "eta": 3723,
}  # fmt: skip


def a_line(side: int = 8, count: int = 10) -> bytes:
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return preview.grid(images, count, scale=1)


def test_what_is_least_needed_is_left_out_and_no_number_is_split() -> None:
    """In 100 columns everything fits but the speed; in few columns the remaining time stays."""
    whole = progress.describe(PROGRESS, 0.61)
    assert whole == "123,456/200,000  loss 0.1235  val 0.2346  12,346 img/s  ETA 1h02m"
    for room in range(12, len(whole)):
        text = progress.describe(PROGRESS, 0.61, room)
        assert len(text) <= room
        assert set(text.split("  ")) <= set(whole.split("  "))
        assert "ETA 1h02m" in text


def test_a_wide_table_is_folded() -> None:
    """Each part has the first column and whole others, and fits the terminal; without a terminal it is one table."""
    rows = [[f"run-{i}", *(f"{i * 10**j}" for j in range(12))] for i in range(3)]
    header = ["run", *(f"column {j}" for j in range(12))]
    folded = table(header, rows, room=60)
    assert all(len(line) <= 60 for line in folded.split("\n"))
    assert sorted(set(re.findall(r"column \d+", folded))) == sorted(set(header[1:]))
    assert folded.count("run-2") == len(folded.split("\n\n")) == 3
    assert len(table(header, rows).split("\n\n")) == 1
    assert column_groups([5, 200, 5], 1, 100) == [[0, 1], [0, 2]]  # a column that is too wide stays whole


def test_pictures_of_a_line_as_half_blocks_and_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pixels a character in their colours; kitty and iTerm2 get the PNG itself."""
    png = a_line(count=20)
    (first, *_) = found = pictures.cells(png, 20)
    assert len(found) == 20
    assert first.size == (8, 8)
    text = pictures.half_blocks(found, 50)
    lines = text.plain.rstrip("\n").split("\n")
    assert len(lines) == 4
    assert lines[0] == " ".join(["▀" * 8] * 5) + " "
    red, green, blue = first.getpixel((0, 0))
    assert f"rgb({red},{green},{blue})" in str(text.spans[0].style)
    assert len(pictures.half_blocks(pictures.cells(a_line(64), 10), 100).plain.split("\n")) == 11
    sent = "".join(re.findall(r"\x1b_G[^;]*;([^\x1b]*)\x1b", pictures.kitty(png)))
    assert base64.b64decode(sent) == png
    assert base64.b64decode(pictures.iterm2(png).partition(":")[2].rstrip("\a")) == png
    for name in ("TMUX", "KITTY_WINDOW_ID", "TERM_PROGRAM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-kitty")
    assert pictures.protocol() == "kitty"
    monkeypatch.setenv("TMUX", "1")
    assert pictures.protocol() == ""


def on_a_terminal(events: list[dict[str, Any]], tmp_path: Path, **environment: str) -> str:
    """What a terminal of 100 columns receives from the progress of these events."""
    script = tmp_path / "shown.py"
    script.write_text(
        "import sys\nfrom genflow.cli.progress import Progress\n"
        f"with Progress() as shown:\n    for event in {events!r}:\n"
        "        shown(event)\n        shown._live.refresh()\n",
        encoding="utf-8",
    )
    main, other = pty.openpty()
    own = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "100", "LINES": "30"}
    own = {name: value for name, value in own.items() if name not in ("CI", "NO_COLOR", "TMUX")}
    own |= {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **environment}
    with subprocess.Popen([sys.executable, script], stdout=other, stderr=other, env=own) as child:
        os.close(other)
        received = io.BytesIO()
        try:
            while part := os.read(main, 4096):
                received.write(part)
        except OSError:  # the terminal is closed
            pass
    os.close(main)
    assert child.returncode == 0, received.getvalue().decode()
    return received.getvalue().decode()


def test_a_terminal_shows_what_is_waited_for_pictures_and_the_stages(tmp_path: Path) -> None:
    """A stage that ends loses its bar with its last remaining time; the others are counted."""
    picture = {"event": "picture", "stage": "train", "run": "a-1", "step": 30, "count": 10,
               "png": base64.b64encode(a_line()).decode()}  # fmt: skip
    events = [
        {"event": "waiting", "stage": "train", "what": "starting PyTorch"},
        {"event": "plan", "message": "net      unet, 1,234 weights"},
        picture,
        {"event": "stages", "total": 9},
        {"event": "stage", "name": "m", "job": "train", "status": "running"},
        {**PROGRESS, "of": "m", "eta": 3},
        {"event": "stage", "name": "m", "job": "train", "status": "done", "document": {}},
        {"event": "stage", "name": "n", "job": "train", "status": "running"},
        {"event": "waiting", "stage": "train", "of": "n", "what": "opening the data"},
    ]
    shown = on_a_terminal(events, tmp_path)
    for words in ("starting PyTorch", "1,234 weights", "samples at step 30", "▀", "1 of 9 stages done"):
        assert words in shown
    last = shown[shown.rindex("1 of 9 stages") :]
    assert "1 running · 7 waiting" in last
    assert "opening the data" in last
    assert "ETA" not in last
    assert "▀" not in on_a_terminal([picture], tmp_path, GENFLOW_PICTURES="off")


def test_without_a_terminal_each_thing_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The first line comes before the job has started."""
    with progress.Progress() as shown:
        for what in ("starting PyTorch", "starting PyTorch", "opening the data"):
            shown({"event": "waiting", "stage": "train", "what": what})
        shown({"event": "picture", "stage": "train", "run": "a-1", "step": 3, "count": 1, "png": ""})
        shown(PROGRESS)
        shown(PROGRESS)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["train    starting PyTorch", "train    opening the data"]
    assert len(lines) == 3
    assert lines[2].startswith("train    flow_matching-my_pictures   61%  123,456/200,000")
