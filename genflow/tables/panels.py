"""The columns of the tables, and the claims, as dot plots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from genflow.evaluation.metrics.base import number
from genflow.evaluation.metrics.likelihood import likelihood_text
from genflow.evaluation.report import dots
from genflow.evaluation.report.dots import Dot
from genflow.evaluation.report.panels import Panel
from genflow.evaluation.results import fd_name
from genflow.system.documents import Json
from genflow.tables.claims import COMPARES, IS, interval
from genflow.tables.formatting import count, measured_sides, share

CLAIM = 310  # pixels of the plot of a claim
SIDES = {"stacked_captured": "samples", "stacked_ceiling": "real data"}  # both sides of a claim about one method
VERDICTS = ("confirmed", "refuted", "undecided", "not measured")


@dataclass(frozen=True)
class Shown:
    """A quantity that has a panel.

    Args:
        quantity: its name (see `quantities`).
        title: of the panel, with an arrow in the better direction.
        note: its unit, or what it is.
        form: formats its values, times `scale`.
        first: whether the panel is visible at once; the others are details.
        real: the quantity that is the value of real data; empty: the floor of the quantity itself.
        scale: a factor of its values, such as 100 for percent.
    """

    quantity: str
    title: str
    note: str = ""
    form: Callable[[float], str] = number
    first: bool = False
    real: str = ""
    scale: float = 1


PANELS = {
    "objective": (Shown("straightness", "curvature of the paths ↓", "0: straight", first=True),),
    "steps": (Shown("steps", "network evaluations needed ↓", form=count, first=True),),
    "quality": (
        Shown("fd", "fd ↓", "Fréchet distance", first=True),
        Shown("kid", "KID ↓", "× 1000", scale=1000),
        Shown("precision", "precision ↑", form=share),
        Shown("classification", "classifier of samples ↑", "accuracy", share),
        Shown("r_precision", "own caption found ↑", form=share),
        Shown("copies", "near copies ↓", "%", scale=100),
    ),
    "mathematics": (),
    "likelihood": (Shown("likelihood", "likelihood ↓", first=True),),
    "coverage": (
        Shown("recall", "recall ↑", "variety", share, first=True),
        Shown("grid_captured", "modes found ↑", "25 Gaussians", count, first=True),
        Shown("stacked_captured", "modes found ↑", "1,000 stacks", count, first=True, real="stacked_ceiling"),
        Shown("coverage", "coverage ↑", form=share),
        Shown("rarest", "rarest class ↑", "× real share"),
        Shown("grid_share", "points near a mode ↑", "%, 25 Gaussians", count, scale=100),
        Shown("uneven_captured", "modes found ↑", "unequal", count),
        Shown("uneven_kl", "KL of the modes ↓", "unequal"),
        Shown("stacked_kl", "KL of the modes ↓", "stacks"),
    ),
    "speed": (
        Shown("ms_needed", "ms per sample ↓", "with the steps needed", first=True),
        Shown("seconds_to", "training needed ↓", "CPU s", first=True),
        Shown("ms", "ms per sample ↓", "own setting"),
        Shown("ms_alone", "ms per sample ↓", "in a batch of 1"),
        Shown("train_rate", "training pictures ↑", "per CPU second"),
        Shown("memory_mb", "peak memory ↓", "MB"),
    ),
    "stability": (
        Shown("spread", "spread of fd over seeds ↓", "%", first=True, scale=100),
        Shown("lr_sensitivity", "fd at other learning rates ↓", "× preset", first=True),
        Shown("worst", "worst fd of a seed ↓"),
    ),
}


def ranked(document: Json) -> list[str]:
    """The methods with the smallest fd first; those without one come last."""
    def fd(name: str) -> float:
        return float((document["methods"][name]["quantities"].get("fd") or {}).get("value", float("inf")))

    return sorted(document["methods"], key=fd)


def of_table(document: Json, table: Json, first: bool) -> list[Panel]:
    """The panels of a table, those of the sample quality first.

    Args:
        document: `genflow.tables/1`.
        table: one of its tables.
        first: the panels that are visible at once, or the others.
    """
    rows = {row["method"] for row in table["rows"]}
    order = [name for name in ranked(document) if name in rows]
    shown = [
        _panel(document, one, order)
        for key in sorted((key for key, _ in table["columns"]), key=lambda key: key != "quality")
        for one in PANELS[key]
        if one.first == first
    ]
    return [panel for panel in shown if panel.drawn]


def _panel(document: Json, shown: Shown, order: Sequence[str]) -> Panel:
    index = {name: i for i, name in enumerate(document["methods"])}
    methods = [(name, document["methods"][name]) for name in order]
    found = {name: method["quantities"].get(shown.quantity) for name, method in methods}
    drawn = [_dot(method["title"], index[name], found[name], shown) for name, method in methods if found[name]]
    real = _real(shown, [method["quantities"] for _, method in methods])
    real = None if real is None else shown.scale * real
    title, note = shown.title, shown.note
    if shown.quantity == "likelihood":
        title = f"{next((q['unit'] for q in found.values() if q and q.get('unit')), 'likelihood')} ↓"
    if shown.quantity == "seconds_to" and document.get("target"):
        note = f"CPU s to {count(document['target'])} × floor"
    text = "" if real is None else shown.form(real)
    log = shown.form is not share and shown.scale != 100
    return Panel(title, note, text, dots.plot(drawn, f"{title.rstrip(' ↓↑')} {note}".strip(), real, log=log))


def _real(shown: Shown, quantities: Sequence[Json]) -> float | None:
    """The value of real data: the floor of the quantity, another quantity, or the number of all modes."""
    for found in quantities:
        own = found.get(shown.quantity)
        if shown.real and shown.real in found:
            return float(found[shown.real]["value"])
        if own and not shown.real and "of" in own:
            return float(own["of"])
        if own and own.get("floor") is not None:
            return float(own["floor"])
    return None


def _dot(title: str, index: int, quantity: Json | None, shown: Shown) -> Dot:
    assert quantity is not None
    found = [quantity.get(key) for key in ("value", "low", "high")]
    value, low, high = (None if end is None else shown.scale * end for end in found)
    if value is None:
        missing = {"seconds_to": "not reached", "lr_sensitivity": "diverged"}
        text = missing.get(shown.quantity) or str(quantity.get("kind", "not measured"))
        return Dot(title, index, None, None, None, text)
    text = shown.form(value)
    if shown.quantity == "likelihood":
        text = likelihood_text(quantity).partition(" ±")[0]
    if high is None:
        text += "+"
    low = float(value if low is None else low)
    about = f"{shown.form(low)} or more" if high is None else f"{shown.form(low)} to {shown.form(high)}"
    return Dot(title, index, value, low, high, text, about=about if low != high else "")


# --- Claims


def claims(document: Json) -> dict[str, list[Json]]:
    """The claims by verdict, each with `plot`: its two measured sides as SVG, or `measured` as text."""
    found: dict[str, list[Json]] = {}
    for verdict in VERDICTS:
        own = [claim for claim in document["claims"] if claim["verdict"] == verdict]
        if own:
            found[verdict] = [
                {**claim, "plot": _plot(document, claim), "measured": measured_sides(claim),
                 "subject": _subject(document, claim)}
                for claim in own
            ]  # fmt: skip
    return found


def _subject(document: Json, claim: Json) -> str:
    """What a claim compares, in words: the title of its panel; an fd of the curves with its number of samples."""
    asks = COMPARES.fullmatch(claim["test"])
    if asks is None:
        return ""
    name = asks.group(1).partition(".")[2]
    quantity, _, nfe = name.partition("@")
    if nfe:
        method = document["methods"].get(asks.group(1).partition(".")[0], {})
        few = fd_name(method.get("curve_samples") or document["samples"], document["samples"])
        return f"{few}, {nfe} network evaluation{'s' * (nfe != '1')}"
    title = next((one for own in PANELS.values() for one in own if one.quantity == quantity), None)
    if title is None:
        return quantity.replace("_", " ")
    return ", ".join(filter(None, (title.title.rstrip(" ↓↑"), title.note)))


def _plot(document: Json, claim: Json) -> str:
    """Both sides of a claim in two rows; empty if it compares no numbers."""
    asks = COMPARES.fullmatch(claim["test"])
    if IS.fullmatch(claim["test"]) or asks is None or claim["verdict"] == "not measured":
        return ""
    one, relation, times, other = asks.groups()
    factor = float(times or 1)
    same = one.split(".")[0] == other.split(".")[0]
    rows = [_side(document, one, claim["left"], 1.0, same), _side(document, other, claim["right"], factor, same)]
    alt = f"{one} {relation} {times + ' times ' if times else ''}{other}"
    return dots.plot(rows, alt, axis=False, width=CLAIM)


def _side(document: Json, term: str, quantity: Json, factor: float, same: bool) -> Dot:
    """A row of a claim's plot.

    Args:
        document: has the methods.
        term: `METHOD.QUANTITY`, or a number.
        quantity: its measured value.
        factor: of the claim.
        same: whether both sides are of one method, and differ in the quantity.
    """
    at = interval(quantity, factor)
    open_end = quantity["high"] is None
    form = count if all(end == int(end) for end in (at.value, at.low, *([] if open_end else [at.high]))) else number
    text = form(at.value) + ("+" if open_end else "")
    method, _, name = term.partition(".")
    if method not in document["methods"]:
        return Dot("the claim", None, at.value, at.value, at.value, text)
    title = document["methods"][method]["title"]
    if same:
        what, _, nfe = name.partition("@")
        title = f"{title}, {nfe} evaluation{'s' * (nfe != '1')}" if nfe else SIDES.get(what, f"{title}, {what}")
    about = f"{form(at.low)} to {form(at.high)}" if not open_end and at.low != at.high else ""
    label = f"{count(factor)} × {title}" if factor != 1 else title
    index = list(document["methods"]).index(method)
    return Dot(label, index, at.value, at.low, None if open_end else at.high, text, about=about)
