"""The report of a comparison: a self-contained HTML file, rendered from `genflow.evaluate/1` documents."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genflow import __version__
from genflow.errors import UsageError
from genflow.evaluation import metrics
from genflow.evaluation.metrics.base import Column
from genflow.evaluation.report import charts, first_screen, gallery, guidance, loss_curves, panels, reproduce, table
from genflow.evaluation.report.charts import Point, Series
from genflow.evaluation.report.html import data_uri, template
from genflow.evaluation.report.summary import KINDS, differ, sentences, verdict, was_busy
from genflow.evaluation.results import fd_name
from genflow.evaluation.sweep import compare_with_teachers
from genflow.runs import cpu_seconds
from genflow.storage.store import Artifact, Store
from genflow.system import source_hash
from genflow.system.source_hash import digest

Row = Mapping[str, Any]  # an Evaluation, whose name `with_unique_names` may have changed
TEMPLATE = Path(__file__).parent / "templates/report.html.j2"
TEMPLATES = "genflow/evaluation/report/templates"
PICTURES_BYTES = 2_500_000  # limit for all pictures of the page together


def address(rows: Sequence[Row]) -> str:
    """The content address of the report of these evaluations; their order does not matter."""
    code = source_hash.code_of("genflow/evaluation/report/page.py", *metrics.files(), also=(TEMPLATES,))
    made_from = [sorted(row["evaluation"] for row in rows), code]
    return f"{rows[0]['dataset_name']}-{digest(made_from)}"


def build(store: Store, rows: Sequence[Row]) -> Artifact:
    """Write the report to the store.

    Args:
        store: holds the runs, their journals and evaluations.
        rows: `genflow.evaluate/1` documents of runs on one dataset.

    Raises:
        UsageError: the runs were measured on different datasets or with different features.
    """
    for what, values in (
        ("datasets", {row["fingerprint"] for row in rows}),
        ("features", {row["features"]["name"] for row in rows}),
    ):
        if len(values) > 1:
            raise UsageError(f"runs measured with different {what} cannot be compared: {', '.join(sorted(values))}")
    ranked = sorted(rows, key=lambda row: row["metrics"]["fd"]["value"])
    with store.stage("reports", address(rows), name=rows[0]["dataset_name"]) as staged:
        (staged.path / "report.html").write_text(render(store, ranked), encoding="utf-8")
        (staged.path / "poster.png").write_bytes(first_screen.draw_poster(store, with_unique_names(ranked)))
        compared = {"schema": "genflow.compare/1", "verdict": verdict(with_unique_names(ranked)), "rows": ranked}
        (staged.path / "compare.json").write_text(json.dumps(compared, indent=1), encoding="utf-8")
        runs = [row["run"] for row in ranked]
        return staged.commit(parents=runs, meta={"runs": runs, "best": table.best(rows)})


def with_unique_names(rows: Sequence[Row]) -> list[Row]:
    """The rows; runs that share a name are called by their ids instead."""
    names = [row["name"] for row in rows]
    return [{**row, "name": row["run"] if names.count(row["name"]) > 1 else row["name"]} for row in rows]


def render(store: Store, rows: Sequence[Row]) -> str:
    """The HTML of the report.

    Args:
        store: holds the runs, their journals and evaluations.
        rows: `genflow.evaluate/1` documents, best run first.
    """
    shown = with_unique_names(rows)
    first = shown[0]
    facts = first_screen.facts_of(store, first)
    runs = [store.find("runs", row["run"]) for row in shown]
    budget = PICTURES_BYTES // (5 * len(shown) + 1)
    lost_by_run = [loss_curves.losses(store, row["run"]) for row in shown]
    recipes = [reproduce.recipe_of(run) for run in runs]
    best, shared = _best(shown), columns(rows)
    headline, findings = sentences(first_screen.statements(shown))
    return template(TEMPLATE, busy=was_busy).render(
        rows=shown,
        first=first,
        facts=facts,
        distance=first_screen.distance(first),
        noun="point" if facts.is_points else "picture",
        headline=headline,
        findings=findings,
        strips=[gallery.embedded(strip, facts, budget) for strip in first_screen.strips(store, shown)],
        class_rows=gallery.classes(facts),
        smooth=gallery.is_smooth(facts),
        panels=panels.of_rows(shown, shared, best, first_screen.distance(first)),
        kinds=KINDS,
        columns=shared,
        best=best,
        keys=[charts.legend_key(index) for index in range(len(shown))],
        charts=[_against_steps(shown), _against_time(shown)],
        few_name=_few_name(first),
        few_steps=compare_with_teachers(shown),
        paths=[embedded_picture(row, "way.png", budget) for row in shown],
        interpolations=[embedded_picture(row, "between.png", budget) for row in shown],
        nearest=[embedded_picture(row, "nearest.png", budget) for row in shown],
        prompts=[embedded_picture(row, "prompts.png", budget) for row in shown],
        words=[row.get("prompts") or {} for row in shown],
        prompted=next((row for row in shown if "r_precision" in row["metrics"]), None),
        guidance_charts=guidance.charts(shown),
        class_charts=[class_bars(row, index) for index, row in enumerate(shown)],
        losses=[
            loss_curves.chart(lost, row["name"], index, recipes[index].train.batch)
            for index, (row, lost) in enumerate(zip(shown, lost_by_run, strict=True))
        ],
        sources=[sum(cpu_seconds(store, run)[:-1]) for run in runs],
        warnings=[loss_curves.warnings(lost) for lost in lost_by_run],
        differences=reproduce.differences(recipes),
        unique_settings=reproduce.unique_settings(recipes) if len(shown) > 1 else [],
        seeds=sorted({recipe.train.seed for recipe in recipes}),
        commands=reproduce.commands(store, shown),
        version=__version__,
    )


def _few_name(row: Row) -> str:
    """What the fd of the points of a sweep is called."""
    return fd_name(row["sweep"][0]["fd"]["n"], row["metrics"]["fd"]["n"])


def embedded_picture(row: Row, name: str, budget: int) -> str:
    """A picture of an evaluation as a data URI; empty if the evaluation has no such file."""
    file = Path(row["path"]) / name
    return data_uri(file, budget) if file.is_file() else ""


def class_bars(row: Row, index: int) -> str:
    """A chart of class shares of a run's samples and of real data; empty if the data has no classes."""
    found = row.get("classes")
    if not found:
        return ""
    rarest = found["rarest"]
    text = f"Share of each class among samples of {row['name']}; the most neglected class, {rarest['class']}, has "
    text += f"{table.number(rarest['value'])} times its share in real data"
    return charts.share_bars(found["names"], found["shares"], found["real"], index, text)


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that metrics declare for the report and that some run has; fd has its own."""
    declared = [(column.order or metric.order, column) for metric in metrics.every() for column in metric.report]
    return [column for _, column in sorted(declared, key=lambda pair: pair[0]) if any(map(column.has, rows))]


def _best(rows: list[Row]) -> dict[str, set[str]]:
    """The runs to highlight, by column: the best one and those that do not differ significantly from it.

    A run that cannot be the best one by a number (`table.counts`) is not highlighted either.
    """
    found: dict[str, set[str]] = {}
    drawing = [row for row in rows if not row.get("reconstructs")]
    if len(drawing) < 2:
        return found
    for name, number in metrics.numbers().items():
        counted = [row for row in rows if table.counts(row, name)]
        have = {row["run"]: value for row in counted if (value := number.get(row)) and "value" in value}
        if have:
            choose = min if number.better == "smaller" else max
            top = choose(have.values(), key=lambda value: value["value"])
            found[name] = {run for run, value in have.items() if not differ(value, top)}
    for name in ("ms_batch_1", "ms_batch_64"):
        found[name] = {min(drawing, key=lambda row: row["speed"][name])["run"]}
    return found


def _sweep(rows: list[Row], place: str) -> list[Series]:
    series = []
    for index, row in enumerate(rows):
        points = []
        for at in row["sweep"]:
            fd, x = at["fd"], at[place]
            cost = f"{table.number(x)} ms" if place != "nfe" else f"{x} network evaluation{'s' if x != 1 else ''}"
            text = f"{row['name']}: {_few_name(row)} {table.number(fd['value'])} ({table.number(fd['low'])} to "
            text += f"{table.number(fd['high'])}) at {cost}"
            text += f", {at['sampler']}" if at.get("sampler") else ""
            points.append(Point(x, fd["value"], fd["low"], fd["high"], text, at["own"]))
        series.append(Series(row["name"], index, points))
    return series


def _against_steps(rows: list[Row]) -> str:
    series = _sweep(rows, "nfe")
    most = max(point.x for line in series for point in line.points)
    powers = [2.0**i for i in range(math.floor(math.log2(most)) + 1)]
    return _fd_chart(rows, series, "network evaluations per sample", powers)


def _against_time(rows: list[Row]) -> str:
    return _fd_chart(rows, _sweep(rows, "ms_per_image"), "milliseconds per sample, in batches of 64", None)


def _fd_chart(rows: list[Row], series: list[Series], x_label: str, x_ticks: list[float] | None) -> str:
    text = ". ".join(". ".join(point.text for point in line.points) for line in series)
    floor = rows[0]["sweep"][0]["fd"]["floor"]
    line = floor if floor > 0 else None
    name = _few_name(rows[0])
    alt = f"{name} (lower is better) against {x_label}; real data: {table.number(floor)}. {text}."
    return charts.chart(
        series, x_label=x_label, y_label=f"{name} ↓", alt=alt, log_x=True, x_ticks=x_ticks, floor=line
    )
