"""Claims of textbooks: the verdict depends only on two intervals."""

import pytest

from genflow.errors import UsageError
from genflow.evaluation.interval import Interval
from genflow.tables.claims import Claim, decide, verdicts
from genflow.tables.plan import load

LOW, HIGH, WIDE = Interval(1.0, 0.9, 1.1), Interval(2.0, 1.8, 2.2), Interval(1.5, 0.5, 2.5)


@pytest.mark.parametrize(
    ("left", "relation", "right", "verdict"),
    [
        (LOW, "<", HIGH, "confirmed"),
        (HIGH, ">", LOW, "confirmed"),
        (LOW, ">", HIGH, "refuted"),
        (HIGH, "<=", LOW, "refuted"),
        (LOW, "<", WIDE, "undecided"),
        (LOW, ">", WIDE, "undecided"),
        (LOW, "<=", LOW, "undecided"),
    ],
)
def test_a_claim_is_decided_where_the_errors_allow(left, relation, right, verdict):
    """A claim is confirmed or refuted if the difference exceeds the combined errors, else undecided."""
    assert decide(left, relation, right) == verdict


VERDICTS_ON_EQUAL_VALUES = [("<=", "confirmed"), (">=", "confirmed"), ("<", "refuted"), (">", "refuted")]


@pytest.mark.parametrize(("relation", "verdict"), VERDICTS_ON_EQUAL_VALUES)
def test_equal_values_without_errors(relation, verdict):
    """2 <= 2 is confirmed and 2 < 2 refuted: counts of steps and modes often have no error."""
    two = Interval(2, 2, 2)
    assert decide(two, relation, two) == verdict


def test_the_reverse_of_a_claim_has_the_reverse_verdict():
    """a < b is confirmed exactly where a > b is refuted."""
    for left in (LOW, HIGH, WIDE):
        for right in (LOW, HIGH, WIDE):
            if left is not right:
                verdict_on = {decide(left, "<", right), decide(left, ">", right)}
                assert verdict_on in ({"confirmed", "refuted"}, {"undecided"})


def test_an_open_end_decides_nothing_beyond_it():
    """If fd still improves at 64 steps, a claim about 100 steps remains undecided."""
    open_end = Interval(64, 64, float("inf"))
    assert decide(open_end, ">=", Interval(100, 100, 100)) == "undecided"
    assert decide(open_end, ">", Interval(4, 4, 4)) == "confirmed"


def quantity(value, half_width=0.0):
    return {"value": value, "low": value - half_width, "high": value + half_width}


def verdict_on(test, **quantities):
    (found,) = verdicts([Claim("x", "y", "speed", test)], quantities)
    return found["verdict"]


def test_tests_are_read_as_they_are_written():
    """A test can have a factor, a constant or a kind of likelihood; a missing quantity is "not measured"."""
    slow, fast = {"ms": quantity(30, 1)}, {"ms": quantity(2, 0.1), "likelihood": {"kind": "none"}}
    assert verdict_on("ddpm.ms >= 10 * gan.ms", ddpm=slow, gan=fast) == "confirmed"
    assert verdict_on("ddpm.ms >= 20 * gan.ms", ddpm=slow, gan=fast) == "refuted"
    assert verdict_on("gan.ms < 2.5", gan=fast) == "confirmed"
    assert verdict_on("gan.likelihood is none", gan=fast) == "confirmed"
    assert verdict_on("gan.likelihood is lower-bound", gan=fast) == "refuted"
    assert verdict_on("gan.ms < vae.ms", gan=fast) == "not measured"


def test_a_test_that_cannot_be_read_is_refused():
    """A test with a syntax error raises a UsageError."""
    with pytest.raises(UsageError, match="cannot read the test 'gan is bad'"):
        Claim("x", "y", "speed", "gan is bad")


def test_claims_of_the_plan_name_its_methods():
    """Both sides of every test are methods of the plan, and every claim has a source with a URL."""
    plan = load()
    for claim in plan.claims:
        sides = [word.partition(".")[0] for word in claim["test"].split() if "." in word and word[0].isalpha()]
        assert set(sides) <= set(plan.methods), claim
        assert "https://" in claim["source"]
