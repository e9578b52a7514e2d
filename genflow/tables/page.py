"""The report of the tables: one self-contained HTML file."""

import math
from pathlib import Path

from genflow import __version__
from genflow.evaluation.metrics.base import duration
from genflow.evaluation.report import charts, gallery, loss_curves, poster, reproduce
from genflow.evaluation.report.charts import Point, Series
from genflow.evaluation.report.first_screen import cost, facts_of
from genflow.evaluation.report.gallery import Strip
from genflow.evaluation.report.html import data_uri, template
from genflow.evaluation.report.page import class_bars, embedded_picture
from genflow.evaluation.report.summary import sentences
from genflow.evaluation.report.table import number
from genflow.evaluation.results import fd_name
from genflow.evaluation.steps_needed import front
from genflow.runs import cpu_seconds
from genflow.storage.store import Store
from genflow.system.documents import Json
from genflow.tables import panels
from genflow.tables.quantities import Evaluations

TEMPLATE = Path(__file__).parent / "page.html.j2"
PICTURES_BYTES = 2_500_000  # limit for all pictures together
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
    facts, (headline, findings) = facts_of(store, document), sentences(document["verdict"])
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
        headline=headline,
        findings=findings,
        strips=[gallery.embedded(strip, facts, budget) for strip in strips(store, document, found)],
        class_rows=gallery.classes(facts),
        smooth=gallery.is_smooth(facts),
        tables=_tables(document),
        claims=panels.claims(document),
        few_name=_few_name(document),
        keys={name: charts.legend_key(i) for name, i in index.items()},
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


def draw_poster(store: Store, document: Json, found: Evaluations) -> bytes:
    """The first screen of the page as a PNG of 1200 x 675 pixels; the arguments are those of `render`."""
    seeds, seconds = len(document["seeds"]), number(60 * document["budget_cpu_minutes"])
    about = f"{seeds} training{'s' * (seeds != 1)} of each family with {seconds} CPU seconds"
    about += "; × floor: fd as a multiple of its value for real data"
    headline, _ = sentences(document["verdict"])
    facts = facts_of(store, document)
    return poster.draw(document["dataset_name"], headline, strips(store, document, found), facts, about)


def strips(store: Store, document: Json, found: Evaluations) -> list[Strip]:
    """The rows of the first screen: real data, then each method with its fd over seeds, its time and its budget."""
    index = {name: i for i, name in enumerate(document["methods"])}
    shown = [(name, found[name][min(found[name])]) for name in panels.ranked(document) if found.get(name)]
    first = shown[0][1]
    floor = number(first["metrics"]["fd"]["floor"])
    made = [Strip("real data", None, Path(first["path"]) / "real.png", facts=f"held out · fd {floor}, the floor")]
    for name, row in shown:
        method = document["methods"][name]
        fd, ms, nfe = (method["quantities"][quantity] for quantity in ("fd", "ms", "nfe"))
        seconds = cpu_seconds(store, store.find("runs", row["run"]))
        facts = [cost(ms["value"], nfe["value"])]
        facts += [f"{duration(sum(seconds))} CPU"] if seconds else []
        made.append(Strip(method["title"], index[name], Path(row["path"]) / "grid.png", *gallery.score(fd),
                          gallery.joined(facts), (row.get("prompts") or {}).get("grid") or ()))  # fmt: skip
    return made


def _tables(document: Json) -> list[Json]:
    """The tables with their panels; a quantity that both tables have is drawn in each, with its own methods."""
    return [
        {**table, "panels": panels.of_table(document, table, first=True),
         "more": panels.of_table(document, table, first=False)}
        for table in document["tables"]
    ]  # fmt: skip


def _few_name(document: Json) -> str:
    """What the fd of the points of the curves is called."""
    n = next((method["curve_samples"] for method in document["methods"].values() if method.get("curve_samples")), 0)
    return fd_name(n, document["samples"]) if n else "fd"


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
        marks = [_point(f"{method['title']}: {_few_name(document)}", at, price) for at in points]
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
    name = _few_name(document)
    return charts.chart(
        series, x_label=x_label, y_label=f"{name} ↓", log_x=True, x_ticks=powers if price == "nfe" else None,
        floor=floor, alt=f"{name} (lower is better) against {x_label}. {text}.",
    )  # fmt: skip


def _point(title: str, at: Json, price: str) -> Point:
    fd = at["fd"]
    low, high = max(0.0, fd["low"]), fd["high"]
    evaluations = f"{at['nfe']} network evaluation{'s' if at['nfe'] != 1 else ''}"
    text = f"{title} {number(fd['value'])} ({number(low)} to {number(high)}) with {evaluations}"
    return Point(at[price], fd["value"], low, high, f"{text}, {number(at['ms_alone'])} ms in a batch of 1", at["own"])
