"""What a comparison shows first: a row of samples for each run with its fd, time and budget. Also drawn as a poster."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genflow.data.shard_format import FACTS
from genflow.evaluation.metrics.base import duration, number
from genflow.evaluation.report import gallery, poster
from genflow.evaluation.report.gallery import Strip
from genflow.evaluation.report.summary import sentences, verdict
from genflow.runs import cpu_seconds
from genflow.specs import DataSpec
from genflow.storage.store import Store
from genflow.training.verdict import cautions

Row = Mapping[str, Any]  # an Evaluation


def strips(store: Store, rows: Sequence[Row]) -> list[Strip]:
    """The rows of samples: real data, then each run.

    Args:
        store: holds the runs.
        rows: `genflow.evaluate/1` documents with unique names, best run first.
    """
    first = rows[0]
    floor = f"{distance(first)} {number(first['metrics']['fd']['floor'])}"
    about = f"{first['reference']['split']} split · {floor}, the floor"
    found = [Strip("real data", None, Path(first["path"]) / "real.png", facts=about)]
    for index, row in enumerate(rows):
        seconds = sum(cpu_seconds(store, store.find("runs", row["run"])))
        facts = ["reconstructions"] if row.get("reconstructs") else []
        facts.append(cost(row["speed"]["ms_batch_64"], row["nfe"]))
        facts += [f"{duration(seconds)} CPU"] if seconds else []
        prompts = (row.get("prompts") or {}).get("grid") or ()
        score = gallery.score(row["metrics"]["fd"], distance(row))
        found.append(Strip(row["name"], index, Path(row["path"]) / "grid.png", *score, gallery.joined(facts), prompts))
    return found


def statements(store: Store, rows: Sequence[Row]) -> list[str]:
    """What the command, the page and the poster say: cautions, then the verdict, most important first."""
    return [*limits(store, rows), *verdict(rows)]


def limits(store: Store, rows: Sequence[Row]) -> list[str]:
    """What limits the comparison: budgets that differ, and models that are barely trained."""
    return cautions({row["name"]: store.find("runs", row["run"]).meta for row in rows})


def cost(ms: float, nfe: float) -> str:
    """The time and the network evaluations of a sample, as text."""
    return f"{number(ms)} ms in {nfe:g} evaluation{'s' * (nfe != 1)}"


def draw_poster(store: Store, rows: Sequence[Row]) -> bytes:
    """The first screen as a PNG of 1200 x 675 pixels; the arguments are those of `strips`."""
    first = rows[0]
    title = f"{first['name']} on {first['dataset_name']}" if len(rows) == 1 else first["dataset_name"]
    about = f"{distance(first)} with {first['samples']:,} samples; × floor: as a multiple of its value for real data"
    headline, _ = sentences(statements(store, rows))
    return poster.draw(title, headline, strips(store, rows), facts_of(store, first), about)


def facts_of(store: Store, row: Row) -> DataSpec:
    """The specification of the dataset of an evaluation."""
    return DataSpec.from_json(store.find("datasets", row["dataset"]).file(FACTS).read_text(encoding="utf-8"))


def distance(row: Row) -> str:
    """What the Fréchet distance is called on the features of an evaluation."""
    return str(row["features"].get("distance", "fd"))
