"""The judge of captions: what it is trained on, what counts as a wrong caption, and what it tells."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import text_folders
from support.latents import dataset

from genflow import text_encoders
from genflow.data.shards import Dataset
from genflow.evaluation.features import caption_judge, classifier
from genflow.evaluation.features.caption_judge import CaptionJudge, Roles, load_judge
from genflow.evaluation.features.caption_pool import OTHERS, CaptionPool, words
from genflow.evaluation.features.extractor import DataSplits
from genflow.evaluation.metrics.r_precision import hit, readings
from genflow.evaluation.samples import _unseen
from genflow.storage.store import Store

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
Judged = tuple[Store, Dataset, DataSplits, CaptionJudge]


def scenes(folder: Path, copies: int = 12) -> Path:
    """Pictures of a square (apple) or a bar (tiger) in two colours on two grounds, each with a caption."""
    draw = np.random.default_rng(0)
    for n in range(8 * copies):
        ground, colour, thing = (("red", "blue")[n % 2], ("red", "blue")[n // 2 % 2], ("apple", "tiger")[n // 4 % 2])
        pixels = np.full((8, 8, 3), 255.0) if ground == colour else np.full((8, 8, 3), COLOURS[ground], float)
        pixels[2:6, 2:6] = COLOURS[colour] if thing == "apple" else pixels[2:6, 2:6]
        pixels[3:5, :] = COLOURS[colour] if thing == "tiger" else pixels[3:5, :]
        shown = (pixels + draw.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8)
        folder.mkdir(exist_ok=True)
        Image.fromarray(shown).save(folder / f"{n:03}.png")
        (folder / f"{n:03}.txt").write_text(f"{colour} {thing} on {ground}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """A store, pictures of eight captions, the roles of their rows, and a judge that is trained for a few steps."""
    folder = tmp_path_factory.mktemp("judge")
    store = Store(folder / "store")
    data = dataset(store, scenes(folder / "scenes"), val=0.25)
    encoder = text_encoders.find(str(text_folders.write(folder / "bert", text_folders.BERT)))
    real = DataSplits.of(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "MIN_STEPS", 30)
        judge = load_judge(
            store, data, real, encoder.id, lambda captions: np.stack([p for _, p in encoder.encode(captions)]),
            lambda *_, **__: None,
        )  # fmt: skip
    assert judge is not None
    return store, data, real, judge


def test_real_pictures_find_their_captions_and_others_do_not(judged: Judged) -> None:
    """Held-out pictures are near 1, pictures of other captions near 0; chance and the judge are stated."""
    _, data, real, judge = judged
    split, rows = data.splits["val"], real.reference
    asked = [words(own[0]) for own in split.column("captions", rows)]
    other = rows[[next(i for i, theirs in enumerate(asked) if theirs != own) for own in asked]]
    for records, least, most in ((split.take(rows), 0.9, 1.0), (split.take(other), 0.0, 0.1)):
        found = readings(judge, records, split, rows, 0, "r_precision")
        assert set(found) == {"r_precision", "r_precision_hard"}
        for reading in found.values():
            assert least <= reading.interval.value <= most
            assert reading.interval.low <= reading.interval.value <= reading.interval.high
            assert reading.floor is not None
            assert reading.floor >= 0.9
            assert reading.chance == pytest.approx(1 / 8)  # there are eight captions
            assert (reading.n, reading.features) == (len(rows), judge.name)


def test_the_judge_is_made_once(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an artifact of the dataset and the text encoder; another encoder has another judge."""
    store, data, real, judge = judged

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(caption_judge, "_train", refuse)
    encoder = judge.artifact.meta["encoder"]
    again = load_judge(store, data, real, encoder, judge.pooled, refuse)
    assert again is not None
    assert (again.name, again.artifact.id) == (judge.name, judge.artifact.id)
    records = data.splits["val"].take(np.arange(5))
    assert np.array_equal(again.pictures(records), judge.pictures(records))
    with pytest.raises(AssertionError, match="trained"):
        load_judge(store, data, real, "another@1", judge.pooled, refuse)


def test_no_row_has_two_roles(judged: Judged) -> None:
    """The judge is trained neither on the first rows of the floor, which are asked for, nor on the reference."""
    _, data, real, judge = judged
    roles = Roles.of(real)
    assert not set(roles.asked) & set(roles.training)
    assert sorted([*roles.asked, *roles.training]) == list(range(len(data.splits["train"])))
    assert np.array_equal(roles.asked, real.floor[: len(roles.asked)])
    assert judge.artifact.meta["rows"] == len(roles.training)


def test_captions_with_the_same_words_are_the_same_answer(tmp_path: Path, store: Store) -> None:
    """Neither other punctuation nor another caption of the same row is a wrong answer."""
    own = {"a": "A red apple.\nfruit", "b": "a  red APPLE", "c": "blue tiger", "d": "fruit\nblue apple", "e": "!?"}
    (tmp_path / "few").mkdir()
    for n, (name, caption) in enumerate(own.items()):
        Image.linear_gradient("L").rotate(30 * n).resize((8, 8)).save(tmp_path / f"few/{name}.png")
        (tmp_path / f"few/{name}.txt").write_text(caption, encoding="utf-8")
    pool = CaptionPool.of(dataset(store, tmp_path / "few"))
    assert len(pool.captions) == 5
    spoken = ("a red apple", "fruit", "blue tiger", "blue apple", "!?")
    number = {caption: int(pool.find([caption])[0]) for caption in spoken}
    assert pool.find(["A RED, apple"]).tolist() == [number["a red apple"]]
    candidates = pool.candidates(np.array([0]))
    wrong = pool.wrong(np.array(list(number.values())), candidates, 0)
    found = {name: set(own.tolist()) for name, own in zip(number, wrong, strict=True)}
    assert found["a red apple"] == {number["blue tiger"], number["blue apple"], number["!?"]}
    assert found["fruit"] == {number["blue tiger"], number["!?"]}
    assert found["blue tiger"] == set(number.values()) - {number["blue tiger"]}


def test_words_of_every_script_are_kept() -> None:
    """Case and punctuation of all scripts are left out; letters, marks, digits and symbols are not."""
    assert words(" «Ein ROTER\tApfel», (2)! ") == "ein roter apfel 2"
    assert words("“日本”、リンゴ。") == words("日本 リンゴ")
    assert words("face 😀") != words("face 😁")
    assert words("की") != words("का")  # a mark makes the difference
    assert words("?!") == "?!"
    assert words(" ") == ""


def test_wrong_captions_are_a_function_of_seed_and_row() -> None:
    """99 of them, chosen at random or by nearness; never the true one."""
    names = [f"number {n:03}" for n in range(150)]
    pool = CaptionPool(names, {words(name): n for n, name in enumerate(names)}, {})
    asked = np.array([3, 3, 70])
    candidates = pool.candidates(asked)
    first, again, other = (pool.wrong(asked, candidates, seed) for seed in (0, 0, 1))
    for place in range(3):
        assert np.array_equal(first[place], again[place])
        assert len(set(first[place].tolist()) - {int(asked[place])}) == OTHERS
        assert set(first[place].tolist()) != set(other[place].tolist())
    assert set(first[0].tolist()) != set(first[1].tolist())
    angles = np.linspace(0, 3, 150)
    (near,) = pool.wrong(asked[2:], candidates, 0, np.stack([np.cos(angles), np.sin(angles)], 1))
    assert set(near[:2].tolist()) == {69, 71}
    assert max(abs(near - 70)) == 50


def test_a_tie_is_a_miss() -> None:
    """The true caption must be strictly nearer than every wrong one."""
    cosines = np.array([[0.5, 0.4, 0.9], [0.5, 0.5, 0.1], [0.1, 0.2, 0.3]])
    wrong = [np.array([1]), np.array([1, 2]), np.array([1, 2])]
    assert hit(cosines, np.array([0, 0, 0]), wrong).tolist() == [True, False, False]


def test_unseen_captions_are_those_that_no_training_row_has(judged: Judged, tmp_path: Path, store: Store) -> None:
    """All captions of the scenes occur in training; captions of their own are unseen. Nothing held out: none."""
    _, data, real, _ = judged
    assert len(_unseen(data, real)) == 0
    numbered = scenes(tmp_path / "numbered", 4)
    for n, file in enumerate(sorted(numbered.glob("*.txt"))):
        file.write_text(f"scene {n}", encoding="utf-8")
    for val in (0.5, 0):
        made = dataset(store, numbered, val=val, name=f"held-{val}")
        real = DataSplits.of(made)
        assert len(_unseen(made, real)) == (len(real.reference) if val else 0)


def test_one_caption_for_all_has_no_judge(tmp_path: Path, store: Store) -> None:
    """There is no wrong caption, so there is nothing to judge and nothing is trained."""
    folder = scenes(tmp_path / "same", 4)
    for file in folder.glob("*.txt"):
        file.write_text("an apple", encoding="utf-8")
    data = dataset(store, folder, val=0.25)
    judge = load_judge(store, data, DataSplits.of(data), "any@1", lambda captions: np.zeros((1, 4)), lambda *_: None)
    assert judge is None
