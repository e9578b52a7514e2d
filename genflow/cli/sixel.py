"""Sixel, the pictures of VT340 terminals, which xterm, foot, mlterm, Windows Terminal and others draw.

A character is six pixels of one colour, one below the other. A band of six rows is drawn once for each of its colours.

References:
    https://vt100.net/docs/vt3xx-gp/chapter14.html (the format)
    https://vt100.net/docs/vt510-rm/DA1.html (how a terminal says what it can)
"""

import functools
import os
import re
import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `genflow --help` imports the modules that use this one
    import numpy as np
    from PIL.Image import Image

BAND = 6  # rows of a character
COLOURS = 256
TERMS = re.compile(r"^(foot|mlterm|yaft)|sixel")  # values of TERM of terminals that always have it
PROGRAMS = ("mintty", "contour", "rio")  # values of TERM_PROGRAM of such terminals
CELL = (10, 20)  # pixels of a character, if the terminal does not say
QUESTION, ANSWER = b"\x1b[c", re.compile(rb"\x1b\[\?([\d;]*)c")  # DA1, which every terminal since the VT100 answers
ANSWER_S = 0.5  # to wait for the answer, which comes over a network
SIXEL = b"4"  # among the abilities in the answer


def is_drawn() -> bool:
    """Whether the terminal draws it: by its name, else by its own answer."""
    if TERMS.search(os.environ.get("TERM", "")) or os.environ.get("TERM_PROGRAM") in PROGRAMS:
        return True
    return _answers_sixel()


@functools.cache
def _answers_sixel() -> bool:
    """Ask the terminal, unless its answer could be mixed with something else: typed characters, or another program.

    The answer is read from the terminal itself and not echoed, so neither standard input nor the screen has it.
    """
    try:
        import termios

        tty = os.open(os.ttyname(2), os.O_RDWR | os.O_NOCTTY)  # that of standard error, which gets the pictures
    except (ImportError, OSError):
        return False
    try:
        typed_ahead = bool(select.select([tty], [], [], 0)[0])
        if typed_ahead or os.tcgetpgrp(tty) != os.getpgrp():  # an OSError if it is not the terminal of this session
            return False
        before = termios.tcgetattr(tty)
        quiet = [*before]
        quiet[3] &= ~(termios.ICANON | termios.ECHO)
        try:
            termios.tcsetattr(tty, termios.TCSANOW, quiet)
            os.write(tty, QUESTION)
            found = ANSWER.search(_read(tty))
        finally:
            termios.tcsetattr(tty, termios.TCSANOW, before)
        return found is not None and SIXEL in found[1].split(b";")[1:]
    except (termios.error, OSError):
        return False
    finally:
        os.close(tty)


def _read(tty: int) -> bytes:
    """What the terminal answers until the end of the answer, or of the time."""
    text, until = b"", time.monotonic() + ANSWER_S
    while not ANSWER.search(text) and (left := until - time.monotonic()) > 0:
        if select.select([tty], [], [], left)[0]:
            text += os.read(tty, 64)
    return text


def cell() -> tuple[int, int]:
    """Width and height of a character in pixels."""
    try:
        import fcntl
        import struct
        import sys
        import termios

        answer = fcntl.ioctl(sys.__stderr__ or 2, termios.TIOCGWINSZ, b"\0" * 8)
        rows, columns, width, height = struct.unpack("HHHH", answer)
    except (ImportError, OSError, ValueError):
        return CELL
    return (width // columns, height // rows) if min(rows, columns, width // max(columns, 1)) > 0 else CELL


def fitted(picture: "Image", lines: int, columns: int) -> "Image":
    """A picture in the size of some lines of the terminal, and no wider than its columns."""
    from PIL import Image

    width, height = cell()
    scale = min(lines * height / picture.height, columns * width / picture.width)
    size = tuple(max(1, int(scale * length)) for length in picture.size)
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    return picture.resize((size[0], size[1]), method)


def encode(picture: "Image") -> str:
    """The escape sequence that draws a picture, in at most 256 colours."""
    import numpy as np

    indexed = picture.convert("RGB").quantize(COLOURS)
    pixels, palette = np.asarray(indexed), np.reshape(indexed.getpalette() or [], (-1, 3))
    parts = [f'\x1bP0;1q"1;1;{picture.width};{picture.height}']
    for colour in np.unique(pixels):
        red, green, blue = (round(100 * int(level) / 255) for level in palette[colour])
        parts.append(f"#{colour};2;{red};{green};{blue}")
    for top in range(0, picture.height, BAND):
        rows = pixels[top : top + BAND]
        weights = 2 ** np.arange(len(rows))
        lines = (f"#{colour}{_runs(weights @ (rows == colour))}" for colour in np.unique(rows))
        parts.append("$".join(lines) + "-")
    return "".join([*parts, "\x1b\\"])


def _runs(column: "np.ndarray") -> str:
    """The characters of a colour in a band; equal ones as their number and one of them, those at the end omitted."""
    import numpy as np

    starts = np.flatnonzero(np.diff(column, prepend=-1))
    counts = np.diff(starts, append=len(column)).tolist()
    values = column[starts].tolist()
    if values[-1] == 0:
        counts, values = counts[:-1], values[:-1]
    pairs = ((count, chr(63 + value)) for count, value in zip(counts, values, strict=True))
    return "".join(f"!{count}{character}" if count > 3 else count * character for count, character in pairs)
