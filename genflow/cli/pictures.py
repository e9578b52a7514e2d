"""A line of small pictures in the terminal: by the protocol of kitty or iTerm2, by sixel, else as half blocks.

References:
    https://sw.kovidgoyal.net/kitty/graphics-protocol/
    https://iterm2.com/documentation-images.html
"""

import base64
import io
import os
import sys
from typing import TYPE_CHECKING, Any

from genflow.cli import sixel

if TYPE_CHECKING:  # `genflow --help` imports the modules that use this one
    from PIL.Image import Image

LINES = 8  # of the terminal, for pictures of a protocol
SIDE = 20  # pixels of a picture in half blocks, two of which share a line
SWITCH = "GENFLOW_PICTURES"  # off: no pictures in the terminal
KITTY = ("KITTY_WINDOW_ID", "GHOSTTY_RESOURCES_DIR")
GAP = 2  # pixels around each picture of a line
CHUNK = 4096  # bytes of an escape sequence of kitty
UPPER = "▀"  # the foreground is the upper pixel, the background the lower one


def are_shown() -> bool:
    """Whether both output streams are a terminal that shows colours, and the user has not switched pictures off."""
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "no", "false"):
        return False
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in (None, "dumb") or os.environ.get("CI")
    utf8 = (sys.stderr.encoding or "").lower().replace("-", "") == "utf8"
    return sys.stdout.isatty() and sys.stderr.isatty() and utf8 and not plain


def protocol() -> str:
    """`kitty`, `iterm2`, `sixel`, or "" for half blocks.

    Inside tmux and screen only sixel works, where these programs draw it themselves and say so.
    """
    inside = os.environ.get("TMUX") or os.environ.get("TERM", "").startswith(("tmux", "screen"))
    if not inside and (os.environ.get("TERM") == "xterm-kitty" or any(name in os.environ for name in KITTY)):
        return "kitty"
    if not inside and os.environ.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm"):
        return "iterm2"
    return "sixel" if sixel.is_drawn() else ""


def drawing(png: bytes, count: int, columns: int) -> Any:
    """Something that rich prints: pictures side by side.

    Args:
        png: the pictures in a line, with a gap around each.
        count: of pictures.
        columns: of the terminal.
    """
    kind = protocol()
    if kind:
        from rich.segment import ControlType, Segment

        escape = _sixel(png, columns) if kind == "sixel" else kitty(png) if kind == "kitty" else iterm2(png)

        class Raw:
            """Characters that rich passes on as they are."""

            def __rich_console__(self, console: Any, options: Any) -> Any:
                yield Segment(escape, None, [(ControlType.BELL,)])
                yield Segment.line()

        return Raw()
    return half_blocks(cells(png, count), columns)


def kitty(png: bytes) -> str:
    """The escape sequences that show a PNG in kitty; the terminal sends no answer."""
    data = base64.standard_b64encode(png).decode()
    parts = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    found = []
    for number, part in enumerate(parts):
        keys = f"a=T,f=100,q=2,r={LINES}," if number == 0 else ""
        found.append(f"\x1b_G{keys}m={int(number < len(parts) - 1)};{part}\x1b\\")
    return "".join(found)


def iterm2(png: bytes) -> str:
    """The escape sequence that shows a PNG in iTerm2."""
    data = base64.standard_b64encode(png).decode()
    return f"\x1b]1337;File=inline=1;size={len(png)};height={LINES};preserveAspectRatio=1:{data}\x07"


def _sixel(png: bytes, columns: int) -> str:
    """The escape sequence that shows a PNG as sixels."""
    from PIL import Image

    return sixel.encode(sixel.fitted(Image.open(io.BytesIO(png)).convert("RGB"), LINES, columns))


def cells(png: bytes, count: int) -> "list[Image]":
    """The pictures of a line, without the gaps."""
    from PIL import Image

    sheet = Image.open(io.BytesIO(png)).convert("RGB")
    if count == 1:
        return [sheet]
    step = (sheet.width - GAP) // count
    return [sheet.crop((i * step + GAP, GAP, (i + 1) * step, sheet.height - GAP)) for i in range(count)]


def half_blocks(pictures: "list[Image]", columns: int) -> Any:
    """As many pictures as fit into the columns, as text of rich: two pixels in each character."""
    from PIL import Image
    from rich.text import Text

    large = max(pictures[0].size)
    side = 2 * SIDE if len(pictures) == 1 else min(large, SIDE)
    scale = side / large
    width, height = (max(1, round(length * scale)) for length in pictures[0].size)
    height += height % 2
    shown = [picture.resize((width, height), Image.Resampling.BOX) for picture in pictures]
    shown = shown[: max(1, (columns + 1) // (width + 1))]
    text = Text(no_wrap=True, end="")
    for top in range(0, height, 2):
        for picture in shown:
            pixels: Any = picture.load()
            for x in range(width):
                above, below = pixels[x, top], pixels[x, top + 1]
                text.append(UPPER, f"rgb({_colour(above)}) on rgb({_colour(below)})")
            text.append(" ")
        text.append("\n")
    return text


def _colour(pixel: tuple[int, int, int]) -> str:
    return ",".join(map(str, pixel))
