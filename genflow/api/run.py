"""A trained run: its samples, history, recipe and quality; and measured runs."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from genflow.api.datasets import Data
from genflow.api.drawing import Drawing
from genflow.api.sending import send
from genflow.api.tables import Table, picture_html
from genflow.commands import listing
from genflow.commands.recipes import nest
from genflow.commands.vocabulary import keys_of
from genflow.errors import DataError
from genflow.recipe.files import read
from genflow.recipe.schema import Recipe, flatten, parse
from genflow.storage.store import Store


class Run(Drawing):
    """A finished run of the store.

    Args:
        artifact: the run.
        store: holds it.
    """

    @property
    def name(self) -> str:
        """Its name, without the hash of the id."""
        return self.artifact.name

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.artifact.path

    @property
    def family(self) -> str:
        """Its family, such as `ddpm`."""
        return str(self.artifact.meta.get("family", ""))

    @property
    def meta(self) -> dict[str, Any]:
        """What the manifest says of the training: steps, images, seconds, parameters and so on."""
        return dict(self.artifact.meta)

    @cached_property
    def recipe(self) -> Recipe:
        """Every setting, with its default where none was given; `print(run.recipe)` prints YAML."""
        return parse(read(self.artifact.file("recipe.yaml")))

    @property
    def data(self) -> Data:
        """The dataset that it was trained on; of a run on latents, the pictures.

        Raises:
            DataError: the dataset is not in the store.
        """
        dataset = str(self.artifact.meta.get("dataset", ""))
        if (found := self.store.get("datasets", dataset)) is None:
            raise DataError(f"the dataset {dataset} of {self.id} is not in the store", "prepare it again")
        return Data(found)

    @property
    def history(self) -> Table:
        """The measurements of the training: step, loss, learning rate and so on; a notebook shows the loss as a chart.

        Raises:
            DataError: the store has no journal of the run.
        """
        from genflow.evaluation.report import loss_curves
        from genflow.tracking.journal import curves, journal_path

        path = journal_path(self.store.root, self.id)
        if not self.store.available(path):
            raise DataError(f"the journal of {self.id} is not in the store: {path} is missing")
        found = curves(path)
        steps = sorted({step for pairs in found.values() for step, _ in pairs})
        columns: dict[str, list[Any]] = {"step": list(steps)}
        for name, pairs in found.items():
            values = dict(pairs)
            columns[name.removeprefix("train/")] = [values.get(step) for step in steps]
        losses = {name: pairs for name, pairs in found.items() if name.startswith("train/loss")}
        return Table(columns, above=_chart(loss_curves.chart(losses, self.name, 0, self.recipe.train.batch)))

    def evaluate(self, samples: int | None = None, **options: Any) -> "Comparison":
        """Measure it; the arguments are those of `genflow.evaluate`."""
        return measure("evaluate", [self], self.store, samples=samples, **options)

    def report(self, **options: Any) -> "Comparison":
        """Write its HTML report, as `genflow report` does; `.report` of the result is the file.

        A run that was measured is not measured again, unless the options ask for something else.
        """
        from genflow.commands.measure import settings_of

        before = {key: value for layer in settings_of(self.store, self.id) for key, value in flatten(layer).items()}
        return measure("compare", [self], self.store, **{**options, "set": {**before, **options.get("set", {})}})

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The documents of its evaluations, oldest first; docs/python.md names the main keys."""
        from genflow.evaluation.results import documents

        return [document for _, document in documents(self.store) if document["run"] == self.id]

    @property
    def headline(self) -> str:
        """One line: fd and its multiple of the floor, bits/dim, steps and minutes."""
        return listing.headline(self._row)

    @property
    def _row(self) -> listing.RunRow:
        return listing.row_of(self.store, self.artifact)

    def _repr_html_(self) -> str:
        picture = listing.picture(self.store, self._row)
        grid = picture_html(picture, self.name, "32em") if picture else ""
        about = f"{escape(self.family)} on {escape(str(self.artifact.meta.get('dataset', '')))}"
        return f"<p><b>{escape(self.id)}</b> · {about}<br/>{escape(self.headline)}</p>{grid}"

    def __repr__(self) -> str:
        return f"<{self.id}: {self.family} on {self.artifact.meta.get('dataset', '')}; {self.headline}>"


def _chart(svg: str) -> str:
    """A chart of the report outside of its page, whose style sheet has the colours."""
    if not svg:
        return ""
    style = (
        ".genflow-chart{max-width:36em;--ink:#1c2126;--soft:#6b7580;--line:#8885;--page:#fff;--c0:#0072b2;--c1:#d55e00;"
        "--c2:#009e73;--c3:#b5548c}.genflow-chart text{font:12px sans-serif;fill:var(--soft)}"
        ".genflow-chart .grid{stroke:var(--line)}.genflow-chart .line{stroke:var(--c);stroke-width:2.2;fill:none}"
    )
    return f'<style>{style}</style><div class="genflow-chart">{svg}</div>'


class Comparison:
    """Measured runs: `table` has a row for each, `best` is one of them, and `document` is what `--json` prints."""

    def __init__(self, document: dict[str, Any], store: Store) -> None:
        self.document, self.store = document, store

    @property
    def best(self) -> Run:
        """The run with the smallest fd."""
        return Run(self.store.find("runs", self.document["best"]), self.store)

    @property
    def verdict(self) -> list[str]:
        """What the comparison found, in sentences; of one run, nothing."""
        return list(self.document.get("verdict", []))

    @property
    def report(self) -> Path | None:
        """The HTML file of a comparison; None for an evaluation."""
        file = Path(self.document["path"]) / "report.html"
        return file if file.is_file() else None

    @cached_property
    def table(self) -> Table:
        """One row for each run, smallest fd first: its samples, and every measured number by name.

        `x_floor` is fd as a multiple of the fd of real pictures, `ms` the time of a sample in batches of 64.
        """
        from genflow.evaluation import metrics

        rows = sorted(self.document["rows"], key=lambda row: row["metrics"]["fd"]["value"])
        columns: dict[str, list[Any]] = {
            "samples": [_file(row, "grid.png") for row in rows],
            "run": [row["run"] for row in rows],
            "family": [row["family"] for row in rows],
        }
        for name, number in metrics.numbers().items():
            columns[name] = [(number.get(row) or {}).get("value") for row in rows]
            if name == "fd":
                floors = [row["metrics"]["fd"].get("floor") for row in rows]
                columns["fd_low"] = [row["metrics"]["fd"]["low"] for row in rows]
                columns["fd_high"] = [row["metrics"]["fd"]["high"] for row in rows]
                columns["x_floor"] = [v / f if f else None for v, f in zip(columns["fd"], floors, strict=True)]
        columns |= {"nfe": [row["nfe"] for row in rows], "ms": [row["speed"]["ms_batch_64"] for row in rows]}
        return Table({name: values for name, values in columns.items() if any(v is not None for v in values)})

    def __getitem__(self, name: str) -> Any:
        """A number by its name, of the best run, such as `run.evaluate()["fd"]`."""
        return self.table[name][self.table["run"].index(self.document["best"])]

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.verdict[:3])
        link = f"<p><a href='file://{self.report}'>{escape(str(self.report))}</a></p>" if self.report else ""
        return f"{said}{self.table._repr_html_()}{link}"

    def __repr__(self) -> str:
        from genflow.cli import console
        from genflow.evaluation.report.table import columns, rows

        text = console.table(columns(self.document), rows(self.document), left=2)
        return "\n".join([*self.verdict[:3], text, *([f"report   {self.report}"] if self.report else [])])


def measure(
    job: str, runs: Sequence[str | Run], store: Store, samples: int | None = None, features: str = "",
    set: Mapping[str, Any] | None = None, cluster: bool = False, address: str = "", **words: Any,
) -> Comparison:  # fmt: skip
    """Send `evaluate` or `compare`; the arguments are those of `genflow.evaluate`."""
    from genflow.commands import measure as commands

    layers = [nest(set or {}), nest(keys_of(job, words))]
    flags = {"evaluate.samples": samples, "evaluate.features": features}
    references = [run if isinstance(run, str) else run.id for run in runs]
    document = commands.document(store, references, layers, [], flags, job)
    return Comparison(send(job, document, store, cluster, address), store)


def _file(row: dict[str, Any], name: str) -> bytes | None:
    file = Path(row.get("path", "")) / name
    return file.read_bytes() if row.get("path") and file.is_file() else None
