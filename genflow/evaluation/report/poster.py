"""The first screen of a report as one picture, for a post, a slide or a chat: rows of samples and the verdict."""

import io
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from genflow.evaluation.report import gallery
from genflow.evaluation.report.gallery import Strip
from genflow.specs import DataSpec

WIDTH, HEIGHT = 1200, 675
MARGIN, GAP = 40, 6
TOP, BOTTOM = 96, 566  # of the rows of samples
ROWS, CARDS = 10, 5  # rows at most; pictures of points per line
LARGEST, FEWEST = 118, 6  # pixels of a picture of a row, and pictures of a row at least
TWO_LINES = 190  # pixels of a row from which on it has two lines of pictures
WORDS = 290  # pixels for the words at its start
CARD_WORDS = 130  # pixels for the words at the right of a picture of points
TALL = 66  # from so many pixels on, the words have three lines
FONTS = (("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf"),
         ("DejaVuSans-Bold.ttf", "LiberationSans-Bold.ttf", "Arial Bold.ttf"))  # fmt: skip
PAGE, INK, SOFT, LINE = "#ffffff", "#16191d", "#59636e", "#dde2e7"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5548c", "#b8860b", "#3aa0dc", "#6b7280", "#7a5195",
           "#c2255c", "#5c7a29")  # fmt: skip


def draw(title: str, headline: Sequence[str], strips: Sequence[Strip], facts: DataSpec, about: str) -> bytes:
    """A PNG of 1200 x 675 pixels.

    Args:
        title: the largest text.
        headline: sentences of the verdict; those that do not fit are left out.
        strips: real data and the runs, best first; those that do not fit are left out.
        facts: the dataset's specification.
        about: what the scores are.
    """
    sheet = Image.new("RGB", (WIDTH, HEIGHT), PAGE)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 24), _fitting(title, 34, WIDTH - 2 * MARGIN), INK, _font(34, bold=True))
    pen.text((MARGIN, 66), _fitting(about, 16, WIDTH - 2 * MARGIN), SOFT, _font(16))
    shown = strips[: ROWS if not facts.is_points else 2 * CARDS]
    if len(shown) < len(strips):
        more = f"and {len(strips) - len(shown)} more"
        pen.text((WIDTH - MARGIN, 40), more, SOFT, _font(16), anchor="ra")
    if facts.is_points:
        _cards(sheet, pen, shown)
    else:
        _rows(sheet, pen, shown, facts)
    _verdict(pen, headline)
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    return data.getvalue()


def _rows(sheet: Image.Image, pen: ImageDraw.ImageDraw, strips: Sequence[Strip], facts: DataSpec) -> None:
    height = (BOTTOM - TOP) / len(strips)
    lines = 2 if height >= TWO_LINES else 1
    free, tall = WIDTH - 2 * MARGIN - WORDS, min(height / lines, LARGEST + GAP)
    pictures = [gallery.cells(strip.file, facts) for strip in strips]
    places = gallery.chosen(len(pictures[0]), facts.classes, max(FEWEST, lines * int(free / tall)))
    columns = -(-len(places) // lines)
    side = int(min(tall, free / columns)) - GAP
    left = WIDTH - MARGIN - columns * (side + GAP) + GAP
    how = Image.Resampling.LANCZOS if gallery.is_smooth(facts) else Image.Resampling.NEAREST
    for row, (strip, cells) in enumerate(zip(strips, pictures, strict=True)):
        top = round(TOP + row * height)
        for number, place in enumerate(places):
            x, y = left + number % columns * (side + GAP), top + number // columns * (side + GAP)
            sheet.paste(cells[place].convert("RGB").resize((side, side), how), (x, y))
            pen.rectangle((x, y, x + side - 1, y + side - 1), outline=LINE)
        high = lines * side + (lines - 1) * GAP
        _words(pen, strip, MARGIN, top + (high - (62 if high >= TALL else 44)) // 2, left - MARGIN - 28, high >= TALL)


def _cards(sheet: Image.Image, pen: ImageDraw.ImageDraw, strips: Sequence[Strip]) -> None:
    """Pictures of points in the plane, in lines of five."""
    lines = -(-len(strips) // CARDS)
    per_line = -(-len(strips) // lines)
    wide = (WIDTH - 2 * MARGIN) / per_line
    high = (BOTTOM - TOP) / lines
    beside = wide > high + CARD_WORDS  # the words are at the right of a picture, else below it
    side = int(high - 2 * GAP if beside else min(wide - 4 * GAP, high - 70))
    for number, strip in enumerate(strips):
        left, top = round(MARGIN + number % per_line * wide), round(TOP + number // per_line * high)
        sheet.paste(Image.open(strip.file).convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (left, top))
        pen.rectangle((left, top, left + side, top + side), outline=LINE)
        x, y, room = (left + side + 14, top + 8, wide - side - 34) if beside else (left, top + side + 4, side)
        if strip.index is not None:
            pen.rectangle((left, top, left + side, top + 3), COLOURS[strip.index % len(COLOURS)])
        size = next((size for size in (18, 16, 14) if _font(size, bold=True).getlength(strip.title) <= room), 13)
        pen.text((x, y), _fitting(strip.title, size, room), INK, _font(size, bold=True))
        pen.text((x, y + 23), f"{strip.score} {strip.unit}".strip(), INK, _font(18))
        facts = filter(None, (strip.value, *strip.facts.split("\u00a0· "))) if beside else ()
        for place, line in enumerate(line for fact in facts for line in _wrapped(fact, 14, room)):
            pen.text((x, y + 52 + 19 * place), line, SOFT, _font(14))


def _words(pen: ImageDraw.ImageDraw, strip: Strip, left: int, top: int, wide: int, tall: bool = False) -> None:
    """The name, the score at the right end of the same line, and the facts below, in two lines if it is tall."""
    score = f"{strip.score} {strip.unit}".strip()
    taken = _font(20).getlength(score) + 12 if score else 0
    if strip.index is not None:
        pen.ellipse((left, top + 5, left + 12, top + 17), COLOURS[strip.index % len(COLOURS)])
    indent = 20 if strip.index is not None else 0
    pen.text((left + indent, top), _fitting(strip.title, 20, wide - indent - taken), INK, _font(20, bold=True))
    if score:
        pen.text((left + wide, top), score, INK, _font(20), anchor="ra")
    parts = [*filter(None, (strip.value, *strip.facts.split("\u00a0· ")))]
    for number, line in enumerate(_packed(parts, wide - indent) if tall else [" · ".join(parts)]):
        place = (left + indent, top + 27 + 19 * number)
        pen.text(place, _fitting(line, 14, wide - indent, bold=False), SOFT, _font(14))


def _packed(parts: Sequence[str], wide: float) -> list[str]:
    """The parts in two lines; the second one has all that does not fit into the first."""
    first = [parts[0]]
    while len(first) < len(parts) and _font(14).getlength(" · ".join(parts[: len(first) + 1])) <= wide:
        first.append(parts[len(first)])
    return [" · ".join(first), " · ".join(parts[len(first) :])]


def _verdict(pen: ImageDraw.ImageDraw, headline: Sequence[str]) -> None:
    """As many whole sentences as fit into three lines; the first one is cut if it does not."""
    kept, wide = "", WIDTH - 2 * MARGIN - 20
    for sentence in headline:
        longer = f"{kept} {sentence}".strip()
        if len(_wrapped(longer, 19, wide)) > 3:
            break
        kept = longer
    pen.rectangle((MARGIN, BOTTOM + 16, MARGIN + 4, HEIGHT - 18), COLOURS[0])
    for number, line in enumerate((_wrapped(kept or headline[0], 19, wide) if headline else [])[:3]):
        pen.text((MARGIN + 18, BOTTOM + 16 + 25 * number), line, INK, _font(19))


def _wrapped(text: str, size: int, wide: float) -> list[str]:
    """The text in lines that are no wider than so many pixels, if no word is."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font(size).getlength(longer) > wide:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _fitting(text: str, size: int, wide: float, *, bold: bool = True) -> str:
    """The text, cut so that it is no wider than so many pixels."""
    font = _font(size, bold=bold)
    if font.getlength(text) <= wide:
        return text
    while text and font.getlength(f"{text}…") > wide:
        text = text[:-1]
    return f"{text.rstrip()}…"


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font of the system, for it has more scripts than the one that is part of Pillow; that one if there is none."""
    for name in FONTS[bold]:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)  # type: ignore[return-value]
