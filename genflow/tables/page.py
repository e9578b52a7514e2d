"""The report of the tables: one HTML file that needs nothing outside itself."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from genflow import __version__
from genflow.data.shards import FACTS
from genflow.evaluation import charts, reproduce
from genflow.evaluation.charts import Point, Series
from genflow.evaluation.html import picture, template
from genflow.evaluation.recommend import front
from genflow.evaluation.report import loss_chart
from genflow.evaluation.table import number
from genflow.facts import Facts
from genflow.store import Store
from genflow.tables import cells
from genflow.tables.plan import COLUMNS
from genflow.tables.quantities import Found

Document = dict[str, Any]
TEMPLATE = Path(__file__).parent / "page.html.j2"
PICTURES_BYTES = 5_000_000  # of all pictures together
FRONT = 6  # the colour of the Pareto front


def render(store: Store, document: Document, found: Found) -> str:
    """The page.

    Args:
        store: where the runs, their journals and the dataset are.
        document: `genflow.tables/1`.
        found: the evaluations, for their pictures and runs.
    """
    seed = {name: min(found[name]) for name in document["methods"] if found.get(name)}
    shown = [(name, found[name][at]) for name, at in seed.items()]
    facts = Facts.from_json(store.find("datasets", document["dataset"]).file(FACTS).read_text())
    budget = PICTURES_BYTES // (2 * len(shown) + 1)
    index = {name: i for i, name in enumerate(document["methods"])}
    runs = {row["run"]: (name, row) for name, row in reversed(shown)}  # once each, by its first row
    return template(TEMPLATE).render(
        document=document,
        facts=facts,
        noun="point" if facts.is_points else "picture",
        tables=document["tables"],
        columns=COLUMNS,
        claims=_grouped(document["claims"]),
        told=Counter(claim["verdict"] for claim in document["claims"]),
        measured=cells.measured,
        keys={name: charts.key(i) for name, i in index.items()},
        real=picture(Path(shown[0][1]["path"]) / "real.png", budget),
        grids=[
            {
                "title": document["methods"][name]["title"],
                "image": picture(Path(row["path"]) / "grid.png", budget),
                "nearest": _nearest(Path(row["path"]), budget),
                "row": row,
            }
            for name, row in shown
        ],
        against_steps=_chart(document, index, "nfe", "network evaluations a sample"),
        against_time=_chart(document, index, "ms_alone", "milliseconds of one sample alone", with_front=True),
        losses=[
            (document["methods"][name]["title"], loss_chart(store, row, index[name], reproduce.recipe_of(
                store.find("runs", run)).train.batch))
            for run, (name, row) in reversed(runs.items())
        ],
        commands=[document["command"], *reproduce.commands(store, [row for _, row in reversed(runs.values())])[1:-1]],
        version=__version__,
    )  # fmt: skip


def _grouped(claims: list[Document]) -> dict[str, list[Document]]:
    """The claims by the column that they stand under, in the columns' order."""
    by = {column: [claim for claim in claims if claim["about"] == column] for column in COLUMNS}
    return {column: own for column, own in by.items() if own}


def _nearest(folder: Path, budget: int) -> str:
    file = folder / "nearest.png"
    return picture(file, budget) if file.is_file() else ""


def _chart(document: Document, index: dict[str, int], price: str, x_label: str, *, with_front: bool = False) -> str:
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
        series.insert(0, Series("the front", FRONT, line, marks=False))
    said = ". ".join(point.text for line in series for point in line.points if point.text)
    floor = next((at["fd"]["floor"] for at in every if at["fd"]["floor"]), None)
    powers = [2.0**i for i in range(math.floor(math.log2(max(at["nfe"] for at in every))) + 1)]
    return charts.chart(
        series, x_label=x_label, y_label="fd ↓", log_x=True, x_ticks=powers if price == "nfe" else None, floor=floor,
        alt=f"fd, lower is better, against {x_label}. {said}.",
    )  # fmt: skip


def _point(title: str, at: Document, price: str) -> Point:
    fd = at["fd"]
    low, high = max(0.0, fd["low"]), fd["high"]
    said = f"{title}: fd {number(fd['value'])} ({number(low)} to {number(high)}) at {at['nfe']} evaluations"
    return Point(at[price], fd["value"], low, high, f"{said}, {number(at['ms_alone'])} ms alone", at["own"])
