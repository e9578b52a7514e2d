"""The coloured shapes with captions that the pixels prove."""

import numpy as np

from genflow.data.sources.base import ImageSpec, Record
from genflow.data.sources.find import find
from genflow.data.sources.scenes import COLOURS, arrangements
from genflow.recipe.schema import Data


def read(image: np.ndarray) -> set[str]:
    """The captions that are true of a picture (32, 32, 3), from its pixels alone."""
    found = {}
    for colour, value in COLOURS.items():
        mask = (np.abs(image.astype(int) - value) < 60).all(2)
        if mask.sum() < 9:
            continue
        for number, part in enumerate(split_in_two(mask)):
            rows, columns = np.nonzero(part)
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            middle = (rows.min() + rows.max()) / 2
            is_triangle = (rows > middle).sum() > 1.5 * (rows < middle).sum()
            is_square = part.sum() > 0.9 * height * width
            shape = "triangle" if is_triangle else "square" if is_square else "circle"
            found[colour, number] = (f"a {colour} {shape}", rows.mean(), columns.mean())
    things = list(found.values())
    if len(things) == 1:
        return {things[0][0]}
    (a, ay, ax), (b, by, bx) = things
    return {f"{a} left of {b}" if ax < bx else f"{b} left of {a}", f"{a} above {b}" if ay < by else f"{b} above {a}"}


def split_in_two(mask: np.ndarray) -> list[np.ndarray]:
    """The connected shapes of a mask, apart by an empty row or column."""
    for axis in (0, 1):
        filled = np.nonzero(mask.any(1 - axis))[0]
        gap = np.nonzero(np.diff(filled) > 1)[0]
        if len(gap):
            index = np.arange(mask.shape[axis]) <= filled[gap[0]]
            first = mask & (index[:, None] if axis == 0 else index[None])
            return [first, mask & ~first]
    return [mask]


def records(split: str, count: int) -> list[Record]:
    source = find(Data(source="scenes", samples=4000))
    rows = np.arange(count)
    return [record for record in source.part(split, rows).records(ImageSpec(32, 3)) if isinstance(record, Record)]


def test_the_pixels_prove_every_caption():
    """A reader of the pixels finds the caption of each scene, training and held-out."""
    for record in records("train", 300) + records("val", 100):
        assert record.captions[0] in read(record.value), record.id


def test_held_out_arrangements_are_unseen_combinations_of_seen_words():
    """No held-out caption occurs in training, but each of its words does."""
    train, held = ({scene.caption for scene in scenes} for scenes in arrangements())
    assert (len(train), len(held)) == (12 + 231, 33)
    assert not train & held
    assert {word for caption in held for word in caption.split()} <= {w for caption in train for w in caption.split()}


def test_a_scene_depends_on_its_row_alone():
    """A row is the same picture in any part, and other seeds give other pictures."""
    source = find(Data(source="scenes", samples=100))
    whole = list(source.part("train", np.arange(20)).records(ImageSpec(32, 3)))
    alone = list(source.part("train", np.array([7])).records(ImageSpec(32, 3)))
    reseeded = find(Data(source="scenes", samples=100, seed=1))
    other = list(reseeded.part("train", np.array([7])).records(ImageSpec(32, 3)))
    assert np.array_equal(whole[7].value, alone[0].value)
    assert not np.array_equal(other[0].value, alone[0].value)
