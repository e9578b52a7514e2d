"""The report of the tables: one self-contained HTML file."""

import math
from collections import Counter
from pathlib import Path

from genflow import __version__
from genflow.data.shards import FACTS
from genflow.evaluation.report import charts, loss_curves, reproduce
from genflow.evaluation.report.charts import Point, Series
from genflow.evaluation.report.html import data_uri, template
from genflow.evaluation.report.page import class_bars, embedded_picture
from genflow.evaluation.report.table import number
from genflow.evaluation.steps_needed import front
from genflow.specs import DataSpec
from genflow.storage.store import Store
from genflow.system.documents import Json
from genflow.tables import formatting
from genflow.tables.plan import COLUMNS
from genflow.tables.quantities import Evaluations

TEMPLATE = Path(__file__).parent / "page.html.j2"
PICTURES_BYTES = 5_000_000  # limit for all pictures together
MODES = {
    "grid": ("25 Gaussians", "Points in the plane, equally many in each Gaussian. The training data has no labels."),
    "uneven": ("25 Gaussians of unequal weight", "Points in the plane, between 26 % and 1 % of them in each Gaussian."),
    "stacked": (
        "Stacked digits",
        "Three digits in the three colour channels of one picture: 1,000 modes. A classifier of single digits reads "
        "each channel.",
    ),
}
FRONT = 6  # index of the colour of the Pareto front


def render(store: Store, document: Json, found: Evaluations) -> str:
    """The HTML of the page.

    Args:
        store: holds the runs, their journals and the dataset.
        document: `genflow.tables/1`.
        found: the evaluations, for their pictures and runs.
    """
    seed = {name: min(found[name]) for name in document["methods"] if found.get(name)}
    shown = [(name, found[name][at]) for name, at in seed.items()]
    facts = DataSpec.from_json(store.find("datasets", document["dataset"]).file(FACTS).read_text(encoding="utf-8"))
    budget = PICTURES_BYTES // (7 * len(shown) + 4)
    index = {name: i for i, name in enumerate(document["methods"])}
    # each run once, with its first row
    runs = dict(reversed({row["run"]: (name, row) for name, row in reversed(shown)}.items()))
    run_names = [document["methods"][name]["title"] for name, _ in runs.values()]
    by_title = list(zip(run_names, runs.values(), strict=True))
    recipes = [reproduce.recipe_of(store.find("runs", run)) for run in runs]
    return template(TEMPLATE).render(
        document=document,
        facts=facts,
        noun="point" if facts.is_points else "picture",
        tables=document["tables"],
        columns=COLUMNS,
        claims=_grouped(document["claims"]),
        counts=Counter(claim["verdict"] for claim in document["claims"]),
        measured=formatting.measured_sides,
        keys={name: charts.legend_key(i) for name, i in index.items()},
        real=data_uri(Path(shown[0][1]["path"]) / "real.png", budget),
        grids=[
            {
                "title": document["methods"][name]["title"],
                "image": data_uri(Path(row["path"]) / "grid.png", budget),
                "row": row,
            }
            for name, row in shown
        ],
        names=[document["methods"][name]["title"] for name, _ in shown],
        paths=[embedded_picture(row, "way.png", budget) for _, row in shown],
        interpolations=[embedded_picture(row, "between.png", budget) for _, row in shown],
        nearest=[embedded_picture(row, "nearest.png", budget) for _, row in shown],
        modes=_modes(document, found, by_title, min(seed.values()), budget),
        run_names=run_names,
        class_charts=[class_bars({**row, "name": title}, index[name]) for title, (name, row) in by_title],
        against_steps=_chart(document, index, "nfe", "network evaluations per sample"),
        against_time=_chart(document, index, "ms_alone", "milliseconds per sample, in a batch of 1", with_front=True),
        losses=[
            (title, loss_curves.chart(lost, title, index[name], recipe.train.batch), loss_curves.warnings(lost))
            for title, (name, row), recipe in zip(run_names, runs.values(), recipes, strict=True)
            for lost in [loss_curves.losses(store, row["run"])]
        ],
        differences=reproduce.differences(recipes),
        unique_settings=reproduce.unique_settings(recipes),
        commands=[document["command"], *reproduce.commands(store, [row for _, row in runs.values()])[1:-1]],
        version=__version__,
    )  # fmt: skip


def _grouped(claims: list[Json]) -> dict[str, list[Json]]:
    """The claims by the column that they are listed under, in the order of the columns."""
    by = {column: [claim for claim in claims if claim["about"] == column] for column in COLUMNS}
    return {column: own for column, own in by.items() if own}


def _modes(
    document: Json, found: Evaluations, by_title: list[tuple[str, tuple[str, Json]]], seed: int, budget: int
) -> list[tuple[str, str, str, list[tuple[str, str, str]]]]:
    """For each trial with known modes: its title, a remark, the picture of real data, and for every run (title,
    picture, result)."""
    shown = []
    for trial, (heading, remark) in MODES.items():
        runs = [(title, document["methods"][name]["run"]) for title, (name, _) in by_title]
        rows = [(title, found.get(f"{run}-{trial}", {})) for title, run in runs]
        have = [(title, row[seed]) for title, row in rows if seed in row and row[seed].get("modes")]
        if have:
            real = data_uri(Path(have[0][1]["path"]) / "real.png", budget)
            grids = [(title, embedded_picture(row, "grid.png", budget), _found(row["modes"])) for title, row in have]
            shown.append((heading, remark, real, grids))
    return shown


def _found(modes: Json) -> str:
    text = f"{modes['captured']:,} of {modes['of']:,} modes"
    if "ceiling" in modes:
        text += f" (as many real samples: {modes['ceiling']:,})"
    if "high_quality" in modes:
        text += f", {100 * modes['high_quality']['value']:.0f} % of points near a mode"
    return f"{text}; KL divergence {number(modes['kl']['value'])}, real data {number(modes['kl']['floor'])}"


def _chart(document: Json, index: dict[str, int], price: str, x_label: str, *, with_front: bool = False) -> str:
    series, every = [], []
    for name, method in document["methods"].items():
        points = sorted(method["curve"], key=lambda at: at[price])
        marks = [_point(method["title"], at, price) for at in points]
        series.append(Series(method["title"], index[name], marks))
        every += points
    if not every:
        return ""
    if with_front:
        best = front(every, price)
        line = [Point(at[price], at["fd"]["value"], at["fd"]["value"], at["fd"]["value"]) for at in best]
        series.insert(0, Series("Pareto front", FRONT, line, marks=False))
    text = ". ".join(point.text for line in series for point in line.points if point.text)
    floor = next((at["fd"]["floor"] for at in every if at["fd"]["floor"]), None)
    powers = [2.0**i for i in range(math.floor(math.log2(max(at["nfe"] for at in every))) + 1)]
    return charts.chart(
        series, x_label=x_label, y_label="fd ↓", log_x=True, x_ticks=powers if price == "nfe" else None, floor=floor,
        alt=f"fd (lower is better) against {x_label}. {text}.",
    )  # fmt: skip


def _point(title: str, at: Json, price: str) -> Point:
    fd = at["fd"]
    low, high = max(0.0, fd["low"]), fd["high"]
    evaluations = f"{at['nfe']} network evaluation{'s' if at['nfe'] != 1 else ''}"
    text = f"{title}: fd {number(fd['value'])} ({number(low)} to {number(high)}) with {evaluations}"
    return Point(at[price], fd["value"], low, high, f"{text}, {number(at['ms_alone'])} ms in a batch of 1", at["own"])
