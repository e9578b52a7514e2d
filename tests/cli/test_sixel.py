"""Pictures as sixels: what is written decodes to the picture, and a terminal is asked only where that is safe."""

import os
import pty
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT

from genflow.cli import pictures, sixel

NAMES = ("TERM", "TERM_PROGRAM", "TMUX", *pictures.KITTY)
ASK = "from genflow.cli import pictures; print('drawn', repr(pictures.protocol()), repr(input()))"


def decoded(text: str) -> np.ndarray:
    """The picture of an escape sequence, (H, W, 3) from 0 to 255, as a terminal draws it."""
    header, body = re.fullmatch(r'\x1bP[\d;]*q"1;1;(\d+;\d+)(.*)\x1b\\', text, re.DOTALL).groups()
    width, height = map(int, header.split(";"))
    palette = {int(n): [int(x) * 255 / 100 for x in levels.split(";")]
               for n, levels in re.findall(r"#(\d+);2;([\d;]+)", body)}  # fmt: skip
    body = re.sub(r"#\d+;2;[\d;]+", "", body)
    picture, x, top, colour = np.full((height + 6, width, 3), np.nan), 0, 0, 0
    for sign, number, count, character in re.findall(r"([#$-])(\d*)|(?:!(\d+))?([?-~])", body):
        if sign == "#":
            colour = int(number)
        elif sign:
            x, top = 0, top + 6 * (sign == "-")
        else:
            for row in range(6):
                if (ord(character) - 63) >> row & 1:
                    picture[top + row, x : x + int(count or 1)] = palette[colour]
            x += int(count or 1)
    return picture[:height]


def test_the_pixels_that_were_written_are_the_picture() -> None:
    """A picture of few colours is exact to the percents of the palette, a photograph close; every pixel is set."""
    flat = np.zeros((13, 40, 3), np.uint8)
    flat[:5, :7], flat[5:, 30:], flat[8, 3] = (255, 0, 0), (0, 128, 255), (7, 77, 177)
    assert np.abs(decoded(sixel.encode(Image.fromarray(flat))) - flat).max() <= 1.3
    x, y = np.meshgrid(np.arange(64) * 4, np.arange(50) * 5)
    ramp = np.stack([x, y, np.full_like(x, 90)], axis=2).astype(np.uint8)
    assert np.abs(decoded(sixel.encode(Image.fromarray(ramp))) - ramp).mean() < 8


def test_a_terminal_that_has_sixel_by_name_gets_the_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """foot draws the whole line, eight lines high at most and no wider than the terminal."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "foot")
    monkeypatch.setattr(sixel, "cell", lambda: (10, 20))
    assert pictures.protocol() == "sixel"
    Image.new("RGB", (20, 10), (0, 255, 0)).save(tmp_path / "line.png")
    (segment, _) = pictures.drawing((tmp_path / "line.png").read_bytes(), 2, 80).__rich_console__(None, None)
    assert decoded(segment.text).shape == (160, 320, 3)
    (segment, _) = pictures.drawing((tmp_path / "line.png").read_bytes(), 2, 8).__rich_console__(None, None)
    assert decoded(segment.text).shape == (40, 80, 3)
    monkeypatch.setenv("TERM", "xterm-kitty")
    assert pictures.protocol() == "kitty"


@pytest.mark.parametrize(
    ("answer", "typed", "expected"),
    [
        (b"\x1b[?62;4;22c", b"", "'sixel'"),
        (b"\x1b[?64;1;22c", b"", "''"),  # 64 is the class of the terminal
        (b"", b"", "''"),  # no answer
        (b"\x1b[?62;4c", b"typed ", "''"),  # not asked: what was typed is not taken
    ],
)
def test_the_terminal_is_asked(answer: bytes, typed: bytes, expected: str) -> None:
    """The answer of a real terminal decides, and neither the screen nor standard input gets it."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {key: value for key, value in os.environ.items() if key not in NAMES}
        environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
        os.execve(sys.executable, [sys.executable, "-c", f"input(); {ASK}"], environment)
    os.write(terminal, b"\n" + (typed and typed + b"\n"))
    seen, answered = b"", False
    while not re.search(rb"drawn '\w*'", seen):  # which may arrive in parts
        try:
            seen += os.read(terminal, 1024)
        except OSError:
            break
        if sixel.QUESTION in seen and not answered:
            answered = True
            os.write(terminal, answer)
            time.sleep(0.1 if answer else 3 * sixel.ANSWER_S)
            os.write(terminal, b"rest\n")
    os.waitpid(pid, 0)
    assert answered != bool(typed)
    assert f"drawn {expected}" in seen.decode()
