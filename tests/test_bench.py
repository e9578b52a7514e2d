"""The arithmetic of comparisons in pairs; their page is written by `make bench`."""

import pytest

from benchmarks.bench.page import Listing, Row, Table, page, part, parts_of
from benchmarks.bench.pairs import rank, ratio, take_turns


def test_the_interval_of_a_median() -> None:
    """The ranks of statistical tables: of 6, 10, 20 and 30 values, the 1st, 2nd, 6th and 10th from both ends."""
    assert [rank(n) for n in (3, 6, 10, 20, 30)] == [1, 1, 2, 6, 10]


def test_a_ratio_compares_rounds() -> None:
    """A machine that becomes slower changes the seconds of both, and no ratio."""
    base = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    found = ratio([1.5 * each for each in base], base)
    assert (found.value, found.low, found.high, found.rounds) == (1.5, 1.5, 1.5, 7)
    table = Table("Title", "Text.", "ms", [Row("ours", "theirs", found, 1000)], ["another (is not installed)"])
    text = part([table])
    assert "| ours | theirs | **1.50** | 1.50 to 1.50 | 8000.0 | 12000.0 |" in text
    assert "Left out: another (is not installed)." in text


def test_a_run_replaces_its_own_parts_of_the_page() -> None:
    """The parts keep their order, and a part that was not measured keeps its text."""
    texts = {name: part([Listing(name, "Text.", ("part", "ms"), [("all", "1")])]) for name in ("step", "data")}
    text = page(dict(reversed(texts.items())), ("step", "sampling", "data"))
    assert parts_of(text) == texts
    assert text.index("## step") < text.index("## data")
    assert "| part | ms |\n|---|---|\n| all | 1 |" in text


def test_contestants_take_turns() -> None:
    """Every second round has the reverse order, so that a drift within a round favours no contestant."""
    order: list[str] = []
    seconds = take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 2, warm_up=1)  # type: ignore[misc]
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}
    assert all(each >= 0 for each in seconds["a"])
    assert seconds["a"] == pytest.approx([0, 0], abs=1)
