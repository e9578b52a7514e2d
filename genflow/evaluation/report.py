"""The report: one HTML file without anything outside itself, from the documents of evaluated runs."""

import base64
import json
import shlex
from pathlib import Path
from typing import Any

import jinja2

from genflow import __version__, code
from genflow.evaluation import charts, table
from genflow.evaluation.charts import Axis, Line
from genflow.journal import curves, journal_path
from genflow.recipe import digest, flatten, read
from genflow.store import Artifact, Store

Row = dict[str, Any]
TEMPLATE = Path(__file__).parent / "report.html.j2"
ROOMS = tuple(f"genflow/evaluation/{name}" for name in ("report.py", "charts.py", "table.py", "report.html.j2"))


def address(rows: list[Row]) -> str:
    """The content address of the report of these evaluations."""
    name = rows[0]["dataset_name"]
    return f"{name}-{digest([sorted(row['evaluation'] for row in rows), code.fingerprint(*ROOMS)])}"


def build(store: Store, rows: list[Row]) -> Artifact:
    """Write the report.

    Args:
        store: where the runs, their journals and evaluations are, and where the report goes.
        rows: `genflow.evaluate/1` documents of runs on one dataset.
    """
    rows = sorted(rows, key=lambda row: row["metrics"]["fd"]["value"])
    with store.stage("reports", address(rows), name=rows[0]["dataset_name"]) as staged:
        (staged.path / "report.html").write_text(render(store, rows))
        (staged.path / "compare.json").write_text(json.dumps(rows, indent=1))
        return staged.commit(
            parents=[row["run"] for row in rows], meta={"runs": [row["run"] for row in rows], "best": table.best(rows)}
        )


def render(store: Store, rows: list[Row]) -> str:
    """The page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": table.number, "likelihood": table.likelihood}
    names = unique([row["name"] for row in rows], [row["run"] for row in rows])
    return environment.from_string(TEMPLATE.read_text()).render(
        rows=list(zip(names, rows, strict=True)),
        first=rows[0],
        verdict=verdict(names, rows),
        legend=charts.legend(names),
        real=_picture(rows[0], "real.png"),
        grids=[(name, _picture(row, "grid.png"), row) for name, row in zip(names, rows, strict=True)],
        steps=_sweep(names, rows, "nfe", Axis("network evaluations", log=True, ticks=_powers(rows))),
        latency=_sweep(names, rows, "ms_per_image", Axis("milliseconds a picture, batch 64", log=True)),
        losses=_losses(store, names, rows),
        differences=_differences(store, names, rows),
        commands=_commands(store, rows),
        version=__version__,
    )


def unique(names: list[str], ids: list[str]) -> list[str]:
    """Names, with the id instead where two runs share one."""
    return [id if names.count(name) > 1 else name for name, id in zip(names, ids, strict=True)]


def verdict(names: list[str], rows: list[Row]) -> list[str]:
    """What the numbers say, in sentences; a difference inside the intervals is called one that cannot be told."""
    fds = [row["metrics"]["fd"] for row in rows]
    lines = [f"{names[0]} comes nearest to the real pictures: fd {table.number(fds[0]['value'])} "
             f"({table.number(fds[0]['low'])} to {table.number(fds[0]['high'])})"]  # fmt: skip
    if fds[0]["floor"] and fds[0]["floor"] > 0:
        lines[0] += f", {fds[0]['value'] / fds[0]['floor']:.1f} times what other real pictures score"
    lines[0] += "."
    if len(rows) > 1:
        close = [name for name, fd in zip(names[1:], fds[1:], strict=True) if fd["low"] < fds[0]["high"]]
        if close:
            lines.append(f"At this number of samples {', '.join(close)} cannot be told from it.")
        fast = min(range(len(rows)), key=lambda i: rows[i]["speed"]["ms_batch_64"])
        ratio = rows[0]["speed"]["ms_batch_64"] / rows[fast]["speed"]["ms_batch_64"]
        if fast and ratio > 1.2:
            lines.append(f"{names[fast]} is the fastest, {ratio:.0f} times as fast a picture.")
        varied = max(range(len(rows)), key=lambda i: rows[i]["metrics"]["recall"]["value"])
        if varied:
            recall = rows[varied]["metrics"]["recall"]["value"]
            lines.append(f"{names[varied]} shows the most variety: recall {recall:.2f}.")
    likely = [(n, r["likelihood"]) for n, r in zip(names, rows, strict=True) if r["likelihood"]]
    if likely:
        said = ", ".join(f"{name} {table.likelihood(found)}" for name, found in likely)
        lines.append(f"Likelihood in {likely[0][1]['unit']}: {said} (≤ is a bound, ≈ an estimate: kinds do not rank).")
    return lines


def _picture(row: Row, name: str) -> str:
    data = (Path(row["path"]) / name).read_bytes()
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _powers(rows: list[Row]) -> list[float]:
    most = max(point["nfe"] for row in rows for point in row["sweep"])
    return [float(2**i) for i in range(most.bit_length())]


def _sweep(names: list[str], rows: list[Row], key: str, axis: Axis) -> str:
    lines = []
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        points = sorted((p[key], p["fd"]["value"], p["fd"]["low"], p["fd"]["high"]) for p in row["sweep"])
        lines.append(Line(name, points, i))
    floor = rows[0]["sweep"][0]["fd"]["floor"]
    said = "; ".join(
        f"{line.name}: " + ", ".join(f"{table.number(x)} → fd {table.number(y)}" for x, y, _, _ in line.points)
        for line in lines
    )
    level = (floor, "real against real") if floor and floor > 0 else None
    return charts.chart(lines, axis, Axis("fd (lower is better)", log=True), f"fd against {axis.title}. {said}", level)


def _losses(store: Store, names: list[str], rows: list[Row]) -> list[tuple[str, str]]:
    """One small chart a run: losses of different families are on different scales."""
    found = []
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        path = journal_path(store.root, row["run"])
        by_name = curves(path) if path.exists() else {}
        lines = [Line(key, [(s, v, v, v) for s, v in points], i, marks=False)
                 for key, points in by_name.items() if key.startswith("train/loss")]  # fmt: skip
        drawn = charts.chart(lines, Axis("step"), Axis("loss", log=True), f"training loss of {name}") if lines else ""
        if drawn:
            found.append((name, drawn))
    return found


def _differences(store: Store, names: list[str], rows: list[Row]) -> list[tuple[str, list[str]]]:
    """The keys in which the runs' recipes differ, and each run's value."""
    recipes = [flatten(read(store.folder("runs", row["run"]) / "recipe.yaml")) for row in rows]
    keys = sorted({key for recipe in recipes for key in recipe if not key.startswith(("name", "data.", "evaluate."))})
    values = [(key, [str(recipe.get(key, "—")) for recipe in recipes]) for key in keys]
    return [(key, row) for key, row in values if len(set(row)) > 1]


def _commands(store: Store, rows: list[Row]) -> list[str]:
    """The commands that make all of this again."""
    dataset = store.find("datasets", rows[0]["dataset"])
    options = dataset.meta.get("options", {})
    source = str(options.get("source") or dataset.name)
    parts = ["genflow", "prepare", source, "--name", dataset.name]
    parts += [p for key in ("size", "val", "max_bad") if options.get(key) is not None
              for p in ("--set", f"data.{key}={options[key]}")]  # fmt: skip
    lines = [shlex.join(parts)]
    for row in rows:
        recipe = store.folder("runs", row["run"]) / "recipe.yaml"
        lines.append(shlex.join(["genflow", "train", row["family"], "--data", dataset.name, "-c", str(recipe)]))
    compare = ["genflow", "compare", *(row["run"] for row in rows), "--samples", str(rows[0]["samples"])]
    return [*lines, shlex.join(compare)]
