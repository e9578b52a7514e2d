"""The report: one HTML file that needs nothing outside itself, from the documents of evaluated runs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genflow import __version__, code
from genflow.errors import UsageError
from genflow.evaluation import charts, reproduce, table
from genflow.evaluation.charts import Point, Series
from genflow.evaluation.html import picture, template
from genflow.evaluation.sweep import beside_teachers
from genflow.evaluation.verdict import KINDS, tells_apart, verdict, was_busy
from genflow.facts import Facts
from genflow.journal import curves, journal_path
from genflow.recipe import digest
from genflow.store import Artifact, Store

Row = dict[str, Any]
TEMPLATE = Path(__file__).parent / "report.html.j2"
ROOMS = tuple(
    f"genflow/evaluation/{name}"
    for name in ("report.py", "report.html.j2", "html.py", "style.css", "charts.py", "reproduce.py", "sweep.py",
                 "table.py", "verdict.py")
)
CURVE_POINTS = 160  # of a loss curve
PICTURES_BYTES = 6_000_000  # of all grids together


def address(rows: Sequence[Row]) -> str:
    """The content address of the report of these evaluations."""
    made_from = [sorted(row["evaluation"] for row in rows), code.fingerprint(*ROOMS)]
    return f"{rows[0]['dataset_name']}-{digest(made_from)}"


def build(store: Store, rows: Sequence[Row]) -> Artifact:
    """Write the report.

    Args:
        store: where the runs, their journals and evaluations are, and where the report goes.
        rows: `genflow.evaluate/1` documents of runs on one dataset.

    Raises:
        UsageError: the runs were not measured alike.
    """
    for what, values in (
        ("datasets", {row["fingerprint"] for row in rows}),
        ("features", {row["features"]["name"] for row in rows}),
    ):
        if len(values) > 1:
            raise UsageError(f"runs measured on different {what} cannot be compared: {', '.join(sorted(values))}")
    ranked = sorted(rows, key=lambda row: row["metrics"]["fd"]["value"])
    with store.stage("reports", address(rows), name=rows[0]["dataset_name"]) as staged:
        (staged.path / "report.html").write_text(render(store, ranked), encoding="utf-8")
        compared = {"schema": "genflow.compare/1", "verdict": verdict(named(ranked)), "rows": ranked}
        (staged.path / "compare.json").write_text(json.dumps(compared, indent=1))
        runs = [row["run"] for row in ranked]
        return staged.commit(parents=runs, meta={"runs": runs, "best": table.best(rows)})


def named(rows: Sequence[Row]) -> list[Row]:
    """The rows, with the id for a name where two runs share one."""
    names = [row["name"] for row in rows]
    return [{**row, "name": row["run"] if names.count(row["name"]) > 1 else row["name"]} for row in rows]


def render(store: Store, rows: Sequence[Row]) -> str:
    """The page.

    Args:
        store: where the runs, their journals and evaluations are.
        rows: best first.
    """
    shown = named(rows)
    first = shown[0]
    dataset = store.find("datasets", first["dataset"])
    facts = Facts.from_json(dataset.file("facts.json").read_text())
    runs = [store.find("runs", row["run"]) for row in shown]
    budget = PICTURES_BYTES // (len(shown) + 1)
    recipes = [reproduce.recipe_of(run) for run in runs]
    return template(TEMPLATE, busy=was_busy).render(
        rows=shown,
        first=first,
        facts=facts,
        distance=first["features"].get("distance", "fd"),
        noun="point" if facts.is_points else "picture",
        verdict=verdict(shown),
        kinds=KINDS,
        best=_best(shown),
        keys=[charts.key(index) for index in range(len(shown))],
        real=picture(Path(first["path"]) / "real.png", budget),
        grids=[picture(Path(row["path"]) / "grid.png", budget) for row in shown],
        charts=[_against_steps(shown), _against_time(shown)],
        few=beside_teachers(shown),
        losses=[loss_chart(store, row, index, recipes[index].train.batch) for index, row in enumerate(shown)],
        differences=reproduce.differences(recipes),
        own=reproduce.own(recipes) if len(shown) > 1 else [],
        seeds=sorted({recipe.train.seed for recipe in recipes}),
        commands=reproduce.commands(store, shown),
        version=__version__,
    )


def _best(rows: list[Row]) -> dict[str, set[str]]:
    """For each column the runs that cannot be told from its best."""
    found: dict[str, set[str]] = {}
    if len(rows) < 2:
        return found
    for name in table.QUALITY:
        have = [row for row in rows if name in row["metrics"]]
        if have:
            choose = min if name in table.SMALLER_IS_BETTER else max
            top = choose(have, key=lambda row: row["metrics"][name]["value"])["metrics"][name]
            found[name] = {row["run"] for row in have if not tells_apart(row["metrics"][name], top)}
    for name in ("ms_batch_1", "ms_batch_64"):
        found[name] = {min(rows, key=lambda row: row["speed"][name])["run"]}
    return found


def _sweep(rows: list[Row], place: str, unit: str) -> list[Series]:
    series = []
    for index, row in enumerate(rows):
        points = []
        for at in row["sweep"]:
            fd, x = at["fd"], at[place]
            said = f"{row['name']}: fd {table.number(fd['value'])} ({table.number(fd['low'])} to "
            said += f"{table.number(fd['high'])}) at {table.number(x) if isinstance(x, float) else x} {unit}"
            said += f", {at['sampler']}" if at.get("sampler") else ""
            points.append(Point(x, fd["value"], fd["low"], fd["high"], said, at["own"]))
        series.append(Series(row["name"], index, points))
    return series


def _against_steps(rows: list[Row]) -> str:
    series = _sweep(rows, "nfe", "evaluations")
    most = max(point.x for line in series for point in line.points)
    powers = [2.0**i for i in range(math.floor(math.log2(most)) + 1)]
    return _fd_chart(rows, series, "network evaluations a sample", powers)


def _against_time(rows: list[Row]) -> str:
    return _fd_chart(rows, _sweep(rows, "ms_per_image", "ms"), "milliseconds a sample, in batches of 64", None)


def _fd_chart(rows: list[Row], series: list[Series], x_label: str, x_ticks: list[float] | None) -> str:
    said = ". ".join(". ".join(point.text for point in line.points) for line in series)
    floor = rows[0]["sweep"][0]["fd"]["floor"]
    line = floor if floor > 0 else None
    alt = f"fd, lower is better, against {x_label}; real data has {table.number(floor)}. {said}."
    return charts.chart(
        series, x_label=x_label, y_label="fd ↓", alt=alt, log_x=True, x_ticks=x_ticks, floor=line
    )


def loss_chart(store: Store, row: Row, index: int, batch: int) -> str:
    """The training losses of one run, in a chart of its own; empty if its journal is gone."""
    path = journal_path(store.root, row["run"])
    found = curves(path) if path.exists() else {}
    lines = []
    for offset, (name, pairs) in enumerate(item for item in found.items() if item[0].startswith("train/loss")):
        thin = thinned([(step * batch, value) for step, value in pairs if math.isfinite(value)])
        points = [Point(x, value, value, value) for x, value in thin]
        lines.append(Series(name, index + offset, points, marks=False))
    if not any(line.points for line in lines):
        return ""
    ends = [f"{line.name} ends at {table.number(line.points[-1].y)}" for line in lines if line.points]
    alt = f"Training loss of {row['name']}; {', '.join(ends)}"
    return charts.chart(lines, x_label="training images seen", y_label="loss", alt=alt, from_zero=False)


def thinned(pairs: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """A curve of at most 160 points, each the mean of its neighbours: (x, y)."""
    size = -(-len(pairs) // CURVE_POINTS) or 1
    groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
