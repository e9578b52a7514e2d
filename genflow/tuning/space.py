"""A search space: keys of the recipe, and the values that each may take.

    log:LO:HI        real numbers, uniform in the logarithm       log:1e-4:1e-1
    uniform:LO:HI    real numbers, uniform                        uniform:0.05:0.2
    int:LO:HI        integers, both ends included                 int:4:16
    choice:A,B,C     these values, of any type                    choice:euler,heun
    log:LO:HI:N      N values from LO to HI; also with uniform    log:1e-3:1e-1:5

For an integer key, `log` and `uniform` give integers. A YAML list is a choice. Before anything starts, the space is
checked against the recipe's fields: the key exists, its type accepts these values, and each end of each range gives a
recipe that resolves.
"""

import difflib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args

from genflow import build, families, nets
from genflow.errors import UsageError, nearest
from genflow.recipe.compose import merge, parse_value
from genflow.recipe.schema import SECTIONS, Recipe, parse
from genflow.specs import DataSpec
from genflow.system.documents import Json

FORMS = ("log", "uniform", "int", "choice")
TUNED = ("train", "family", "net", "sample")  # the other sections decide where a run trains and how it is measured
SYNTAX = "log:LO:HI, uniform:LO:HI, int:LO:HI or choice:A,B"


@dataclass(frozen=True)
class Domain:
    """The values of one key: a range, or a list of them.

    Args:
        key: `section.name`.
        low: the smallest value.
        high: the largest value.
        log: uniform in the logarithm.
        integer: integers only.
        values: these values instead of a range.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    values: tuple[Any, ...] = ()

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values to check: all values of a list, or the two ends of a range."""
        return self.values or (self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Whether a value is in the domain."""
        if self.values:
            return value in self.values
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        if self.values:
            return f"choice:{','.join(_text(value) for value in self.values)}"
        form = "log" if self.log else "int" if self.integer else "uniform"
        return f"{form}:{self.low:g}:{self.high:g}"


Space = dict[str, Domain]


def space_of(recipe: Recipe, resolved: Recipe, facts: DataSpec) -> Space:
    """The space that a recipe's `tune.space` describes; without one, the learning rate around the recipe's own.

    Args:
        recipe: as composed, with `tune.space`.
        resolved: the same recipe, resolved; it gives the fields' types.
        facts: of the data.

    Raises:
        UsageError: a key, a form, a type or a value is invalid.
    """
    described = recipe.tune.space or {"train.lr": f"log:{recipe.train.lr / 10:.3g}:{recipe.train.lr * 10:.3g}"}
    space = {key: _domain(key, text, resolved) for key, text in described.items()}
    for key, domain in space.items():
        for value in domain.extremes:
            _check(key, value, recipe, facts)
    return space


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `["train.lr=log:1e-4:1e-2"]` into `{"train.lr": "log:1e-4:1e-2"}`.

    Raises:
        UsageError: a pair has no `=`, or a key is given twice.
    """
    space: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key or not text:
            hint = f"example: -p train.lr=log:1e-4:1e-1; {SYNTAX}"
            raise UsageError(f"-p {pair!r} is not of the form KEY=SPACE", hint)
        if key in space:
            raise UsageError(f"-p {key} is given twice", "name each key once")
        space[key] = text
    return space


def apply(recipe: Recipe, params: Json) -> Recipe:
    """The recipe with a trial's settings.

    Raises:
        UsageError: the result is no valid recipe.
    """
    document = recipe.model_dump(mode="json")
    for key, value in params.items():
        section, _, name = key.partition(".")
        document = merge(document, {section: {name: value}})
    return parse(document, "trial")


def preset_values(resolved: Recipe, space: Space, facts: DataSpec) -> Json:
    """The resolved recipe's values of the space's keys.

    Where the recipe leaves a value to the family (null), use the value that the family chose for this data, if it has
    an attribute of that name.
    """
    document = resolved.model_dump(mode="json")
    values = {key: document[key.partition(".")[0]].get(key.partition(".")[2]) for key in space}
    if left := [key for key, value in values.items() if value is None]:
        family = build.family_of(resolved, facts)
        made = {key: getattr(family, key.partition(".")[2], None) for key in left}
        values |= {key: value for key, value in made.items() if space[key].contains(value)}
    return values


def _domain(key: str, described: Any, resolved: Recipe) -> Domain:
    """Parse one entry of a space, with the checks that need no data."""
    at = f"tune: {key}"
    annotation = _annotation(key, resolved)
    if isinstance(described, list | tuple):
        return _choice(key, list(described), at)
    if not isinstance(described, str):
        raise UsageError(f"{at}: {described!r} is not a search space", SYNTAX)
    form, colon, rest = described.partition(":")
    if form not in FORMS or not colon:
        guess = nearest(form, list(FORMS)) if colon else ""
        raise UsageError(f"{at}: {described!r} is not a search space{guess}", SYNTAX)
    if form == "choice":
        return _choice(key, _parse_values(rest), at)
    return _range(key, form, rest.split(":"), _plain_types(annotation), at)


def _range(key: str, form: str, parts: list[str], types: set[Any], at: str) -> Domain:
    if len(parts) not in (2, 3) or (form == "int" and len(parts) == 3):
        raise UsageError(f"{at}: {form}:{':'.join(parts)} does not have two ends", f"{form}:LO:HI")
    numbers = [parse_value(part) for part in parts]
    for text, number in zip(parts, numbers, strict=True):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise UsageError(f"{at}: {text!r} is not a number", f"{form}:LO:HI")
    low, high = numbers[:2]
    if low >= high:
        swapped = f"{form}:{high:g}:{low:g}"
        raise UsageError(f"{at}: {form}:{low:g}:{high:g} is empty: the lower end comes first", swapped)
    if form == "log" and low <= 0:
        raise UsageError(f"{at}: log:{low:g}:{high:g}: a logarithm needs ends above 0", f"uniform:{low:g}:{high:g}")
    if not types & {int, float}:
        literals = [value for value in types if not isinstance(value, type)]
        what = f"one of {', '.join(map(str, literals))}" if literals else "no number"
        example = ",".join(sorted(map(str, literals))) or "true,false"
        raise UsageError(f"{at} takes {what}, not a range of numbers", f"choice:{example}")
    integer = form == "int" or float not in types
    if integer and (low != int(low) or high != int(high)):
        wrong = next(number for number in (low, high) if number != int(number))
        raise UsageError(f"{at} takes integers, not {wrong:g}", f"int:{math.ceil(low)}:{math.floor(high)}")
    low, high = (int(low), int(high)) if integer else (float(low), float(high))
    if len(numbers) == 2:
        return Domain(key, low, high, log=form == "log", integer=integer)
    count = numbers[2]
    if not isinstance(count, int) or count < 2:
        raise UsageError(f"{at}: {parts[2]!r} is not a number of values", f"{form}:{low:g}:{high:g}:5")
    shares = [i / (count - 1) for i in range(count)]
    points = [low * (high / low) ** s if form == "log" else low + (high - low) * s for s in shares]
    points = [round(p) if integer else float(f"{p:.6g}") for p in points]
    return Domain(key, values=tuple(dict.fromkeys(points)))


def _choice(key: str, values: list[Any], at: str) -> Domain:
    unique = [value for i, value in enumerate(values) if value not in values[:i]]
    if not unique:
        raise UsageError(f"{at}: a choice needs at least one value", "choice:A,B")
    return Domain(key, values=tuple(unique))


def _parse_values(text: str) -> list[Any]:
    """Parse `1,2,euler` or `[1,2],[2,4]`."""
    try:
        return list(json.loads(f"[{text}]"))
    except ValueError:
        return [parse_value(part.strip()) for part in text.split(",") if part.strip()]


def _annotation(key: str, resolved: Recipe) -> Any:
    """The type of a key's field.

    Raises:
        UsageError: there is no such key, or a search cannot change it.
    """
    section, dot, name = key.partition(".")
    fields = {name: _fields(name, resolved) for name in TUNED}
    every = [f"{group}.{field}" for group, own in fields.items() for field in own]
    if section in Recipe.model_fields and section not in TUNED:
        raise UsageError(f"tune: {key} cannot be searched over: it does not change the model",
                         f"search over {', '.join(TUNED)}")  # fmt: skip
    if not dot or section not in TUNED or name not in fields[section]:
        same = [known for known in every if known.partition(".")[2] == (name or section)]
        section = section if section in TUNED else next(iter(difflib.get_close_matches(section, TUNED, 1)), section)
        close = difflib.get_close_matches(name, fields.get(section, ()), 1, 0.5)
        guess = f" (did you mean {(same or [f'{section}.{field}' for field in close])[0]}?)" if same or close else ""
        known = ", ".join(f"{section}.{field}" for field in fields.get(section, ())) or ", ".join(TUNED)
        raise UsageError(f"tune: unknown key {key}{guess}", f"keys: {known}")
    if key == "family.kind":
        raise UsageError("tune: family.kind: a search has one family", "genflow compare RUN... compares families")
    return fields[section][name]


def _fields(section: str, resolved: Recipe) -> dict[str, Any]:
    if section == "train":
        return {name: field.annotation for name, field in SECTIONS["train"].model_fields.items()}
    family = families.family_class(resolved.family["kind"])
    functions: dict[str, Callable[..., Any]] = {"family": family.__init__, "sample": family.sample}
    function = functions.get(section) or nets.builder(resolved.net["kind"])
    fields = {name: field.annotation for name, field in build.schema(function).model_fields.items()}
    return {"kind": str, **fields} if section != "sample" else fields


def _plain_types(annotation: Any) -> set[Any]:
    """The plain types and literal values of a union or annotated type."""
    inner = get_args(annotation)
    if not inner:
        return {annotation} - {NoneType, None}
    return set().union(*(_plain_types(part) for part in inner))


def _check(key: str, value: Any, recipe: Recipe, facts: DataSpec) -> None:
    """Check that the recipe accepts a value of a key.

    Raises:
        UsageError: it does not; the message names the key and the value.
    """
    try:
        changed = apply(recipe, {key: value})
        if key.startswith("train."):
            return
        section, name = key.split(".", 1)
        family = families.family_class(recipe.family["kind"])
        if section == "net":
            kind = value if name == "kind" else changed.net.get("kind", "auto")
            kind = family.default_net_for(facts)["kind"] if kind == "auto" else kind
            build.bind("net", nets.builder(kind), {**changed.net, "kind": kind}, kind)
        elif section == "family":
            build.bind("family", family.__init__, changed.family, recipe.family["kind"])
        else:
            build.bind("sample", family.sample, changed.sample)
    except UsageError as error:
        reason = error.message.removeprefix("trial: ")
        raise UsageError(f"tune: {key}={_text(value)}: {reason}", error.hint) from error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


