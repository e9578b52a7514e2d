"""A search space: keys of the recipe, each with the values that it may take.

    log:LO:HI        real numbers, even in the logarithm          log:1e-4:1e-1
    uniform:LO:HI    real numbers, evenly                         uniform:0.05:0.2
    int:LO:HI        integer numbers, both ends included            int:4:16
    choice:A,B,C     these values, of any type                    choice:euler,heun
    log:LO:HI:N      N values from end to end; so with uniform    log:1e-3:1e-1:5

Of a key that holds integer numbers, `log` and `uniform` give integer numbers. A YAML list is a choice. Everything is
checked against the recipe's own fields, where a mistake costs nothing: the key exists, its type takes these values,
and each end of each range makes a recipe that resolves.
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
from genflow.recipe.compose import merge, scalar
from genflow.recipe.schema import SECTIONS, Recipe, parse
from genflow.specs import DataSpec

FORMS = ("log", "uniform", "int", "choice")
TUNED = ("train", "family", "net", "sample")  # what else is in a recipe decides where it runs, or how it is measured
SYNTAX = "log:LO:HI, uniform:LO:HI, int:LO:HI or choice:A,B"
Document = dict[str, Any]


@dataclass(frozen=True)
class Domain:
    """The values of one key: a range, or a list of them.

    Args:
        key: `section.name`.
        low: the least.
        high: the largest.
        log: even in the logarithm.
        integer: integer numbers only.
        values: instead of a range: these.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    values: tuple[Any, ...] = ()

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that stand for all: every one of a list, the two ends of a range."""
        return self.values or (self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Whether a value is one of them."""
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
        recipe: as composed; its space is read.
        resolved: the same, integer, from which fields have their types.
        facts: of the data.

    Raises:
        UsageError: a key, a form, a type or a value that cannot be, in one line.
    """
    described = recipe.tune.space or {"train.lr": f"log:{recipe.train.lr / 10:.3g}:{recipe.train.lr * 10:.3g}"}
    space = {key: _domain(key, text, resolved) for key, text in described.items()}
    for key, domain in space.items():
        for value in domain.extremes:
            _check(key, value, recipe, facts)
    return space


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """`["train.lr=log:1e-4:1e-2"]` as `{"train.lr": "log:1e-4:1e-2"}`.

    Raises:
        UsageError: a pair without `=`, or a key that stands twice.
    """
    space: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key or not text:
            hint = f"example: -p train.lr=log:1e-4:1e-1; {SYNTAX}"
            raise UsageError(f"-p {pair!r} is not of the form KEY=SPACE", hint)
        if key in space:
            raise UsageError(f"-p {key} stands twice", "name each key once")
        space[key] = text
    return space


def apply(recipe: Recipe, params: Document) -> Recipe:
    """The recipe with a trial's settings laid over it.

    Raises:
        UsageError: the settings make no recipe.
    """
    document = recipe.model_dump(mode="json")
    for key, value in params.items():
        section, _, name = key.partition(".")
        document = merge(document, {section: {name: value}})
    return parse(document, "trial")


def preset_values(resolved: Recipe, space: Space, facts: DataSpec) -> Document:
    """The resolved recipe's own values of the space's keys.

    What it leaves to the family (null) is what that family makes of it for this data, if it keeps that by its name.
    """
    document = resolved.model_dump(mode="json")
    values = {key: document[key.partition(".")[0]].get(key.partition(".")[2]) for key in space}
    if left := [key for key, value in values.items() if value is None]:
        family = build.family_of(resolved, facts)
        made = {key: getattr(family, key.partition(".")[2], None) for key in left}
        values |= {key: value for key, value in made.items() if space[key].contains(value)}
    return values


def _domain(key: str, described: Any, resolved: Recipe) -> Domain:
    """One line of a space as a domain, checked as far as it goes without the data."""
    at = f"tune: {key}"
    annotation = _annotation(key, resolved)
    if isinstance(described, list | tuple):
        return _choice(key, list(described), at)
    if not isinstance(described, str):
        raise UsageError(f"{at}: {described!r} is no space", SYNTAX)
    form, colon, rest = described.partition(":")
    if form not in FORMS or not colon:
        raise UsageError(f"{at}: {described!r} is no space{nearest(form, list(FORMS)) if colon else ''}", SYNTAX)
    if form == "choice":
        return _choice(key, _parse_values(rest), at)
    return _range(key, form, rest.split(":"), _plain_types(annotation), at)


def _range(key: str, form: str, parts: list[str], types: set[Any], at: str) -> Domain:
    if len(parts) not in (2, 3) or (form == "int" and len(parts) == 3):
        raise UsageError(f"{at}: {form}:{':'.join(parts)} has not two ends", f"{form}:LO:HI")
    numbers = [scalar(part) for part in parts]
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
        raise UsageError(f"{at}: a choice of nothing", "choice:A,B")
    return Domain(key, values=tuple(unique))


def _parse_values(text: str) -> list[Any]:
    """`1,2,euler` or `[1,2],[2,4]` as values."""
    try:
        return list(json.loads(f"[{text}]"))
    except ValueError:
        return [scalar(part.strip()) for part in text.split(",") if part.strip()]


def _annotation(key: str, resolved: Recipe) -> Any:
    """The type of a key's field.

    Raises:
        UsageError: there is no such key, or it is none that a search may change.
    """
    section, dot, name = key.partition(".")
    fields = {name: _fields(name, resolved) for name in TUNED}
    every = [f"{section_name}.{field}" for section_name, own in fields.items() for field in own]
    if section in Recipe.model_fields and section not in TUNED:
        raise UsageError(f"tune: {key} decides no model: it cannot be searched over", f"search over {', '.join(TUNED)}")
    if not dot or section not in TUNED or name not in fields[section]:
        same = [known for known in every if known.partition(".")[2] == (name or section)]
        section = section if section in TUNED else next(iter(difflib.get_close_matches(section, TUNED, 1)), section)
        close = difflib.get_close_matches(name, fields.get(section, ()), 1, 0.5)
        guess = f" (did you mean {(same or [f'{section}.{field}' for field in close])[0]}?)" if same or close else ""
        known = ", ".join(f"{section}.{field}" for field in fields.get(section, ())) or ", ".join(TUNED)
        raise UsageError(f"tune: unknown key {key}{guess}", f"keys: {known}")
    if key == "family.kind":
        raise UsageError("tune: family.kind: a search is within one family", "genflow compare RUN... compares families")
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
    """The plain types and literal values that a type is made of."""
    inner = get_args(annotation)
    if not inner:
        return {annotation} - {NoneType, None}
    return set().union(*(_plain_types(part) for part in inner))


def _check(key: str, value: Any, recipe: Recipe, facts: DataSpec) -> None:
    """One value of one key, laid over the recipe and resolved.

    Raises:
        UsageError: the recipe takes it not, with the key and the value named.
    """
    try:
        changed = apply(recipe, {key: value})
        if key.startswith("train."):
            return
        section, name = key.split(".", 1)
        family = families.family_class(recipe.family["kind"])
        if section == "net":
            kind = value if name == "kind" else changed.net.get("kind") or family.default_net_for(facts)
            kind = family.default_net_for(facts) if kind == "auto" else kind
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


