"""Claims of textbooks as data, and the verdict of the measurements on each.

    - says: GANs drop modes that VAEs keep
      source: Xiao et al. 2022, https://arxiv.org/abs/2112.07804
      about: coverage                     # the column of the tables that it is listed under
      test: gan.recall < vae.recall

A test is `METHOD.QUANTITY RELATION [NUMBER *] (METHOD.QUANTITY | NUMBER)`, or `METHOD.likelihood is KIND`. Its verdict
is a function of the two intervals alone:

    confirmed      the difference is as claimed, and larger than the combined errors (`interval.order`)
    refuted        the opposite difference is larger than the combined errors
    undecided      neither: this number of seeds and samples does not decide it
    not measured   one of the two quantities is missing
"""

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from genflow.errors import UsageError
from genflow.evaluation.interval import Interval, order

Quantity = dict[str, Any]
Quantities = dict[str, dict[str, Quantity]]  # by method, then by name
Verdict = Literal["confirmed", "refuted", "undecided", "not measured"]
TERM = r"[\w]+\.[\w@/]+"
COMPARES = re.compile(rf"({TERM}) (<|>|<=|>=) (?:([\d.]+) \* )?({TERM}|[\d.]+)")
IS = re.compile(r"(\w+\.likelihood) is ([\w-]+)")


@dataclass(frozen=True)
class Claim:
    """One claim.

    Args:
        says: the claim as a sentence.
        source: the publication, with a URL.
        about: the column of the tables that the claim is listed under.
        test: the test, in the syntax above.

    Raises:
        UsageError: the test has a syntax error.
    """

    says: str
    source: str
    about: str
    test: str

    def __post_init__(self) -> None:
        if not (COMPARES.fullmatch(self.test) or IS.fullmatch(self.test)):
            raise UsageError(
                f"claim {self.says!r}: cannot read the test {self.test!r}",
                "write it as gan.recall < vae.recall, ddpm.steps >= 10 * ddim.steps, or gan.likelihood is none",
            )
        sides = [term.partition(".")[2] for term in re.findall(TERM, self.test)]
        if "fd" in sides and any(side.startswith("fd@") for side in sides):
            raise UsageError(
                f"claim {self.says!r}: {self.test!r} compares fd with fd@N, which is measured on fewer samples",
                "write fd@N on both sides",
            )


def decide(left: Interval, relation: str, right: Interval) -> Verdict:
    """The verdict on `left RELATION right`.

    Args:
        left: a value with its 95 % interval.
        relation: <, <=, > or >=.
        right: another value with its interval.
    """
    if relation.startswith(">"):
        return decide(right, relation.replace(">", "<"), left)
    sign = order(left, right)
    if sign < 0 or (relation == "<=" and left.high <= right.low):
        return "confirmed"
    if sign > 0 or (relation == "<" and left.low >= right.high):
        return "refuted"
    return "undecided"


def verdicts(claims: list[Claim], quantities: Quantities) -> list[dict[str, Any]]:
    """Each claim with the two measured quantities and the verdict: {says, source, about, test, left, right,
    verdict}."""
    return [{**asdict(claim), **_verdict(claim, quantities)} for claim in claims]


def _verdict(claim: Claim, quantities: Quantities) -> dict[str, Any]:
    if asks := IS.fullmatch(claim.test):
        found = _quantity(asks[1], quantities)
        if found is None:
            return {"left": None, "right": asks[2], "verdict": "not measured"}
        return {"left": found["kind"], "right": asks[2], "verdict": _confirmed_if(found["kind"] == asks[2])}
    asks = COMPARES.fullmatch(claim.test)
    assert asks is not None
    one, relation, times, other = asks.groups()
    left = _quantity(one, quantities)
    right = _quantity(other, quantities) if "." in other and other[0].isalpha() else _constant(float(other))
    measured = {"left": left, "right": right}
    if left is None or right is None or left.get("value") is None or right.get("value") is None:
        return {**measured, "verdict": "not measured"}
    return {**measured, "verdict": decide(interval(left), relation, interval(right, float(times or 1)))}


def _confirmed_if(holds: bool) -> Verdict:
    return "confirmed" if holds else "refuted"


def _quantity(term: str, quantities: Quantities) -> Quantity | None:
    method, _, name = term.partition(".")
    return quantities.get(method, {}).get(name)


def _constant(value: float) -> Quantity:
    return {"value": value, "low": value, "high": value}


def interval(quantity: Quantity, times: float = 1.0) -> Interval:
    """The interval of a quantity, multiplied by `times`; an upper end of None becomes infinity."""
    high = float("inf") if quantity["high"] is None else quantity["high"]
    return Interval(times * quantity["value"], times * quantity["low"], times * high)
