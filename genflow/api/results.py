"""What measurements and searches return."""

from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from genflow.api.run import Run
from genflow.api.tables import Table
from genflow.recipe.files import read
from genflow.recipe.schema import Recipe, parse
from genflow.storage.store import Store


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


class Search:
    """A finished search: `recipe` has the best settings, `genflow.train(config=search.best_file)` trains them."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    @property
    def best_file(self) -> Path:
        """best.yaml."""
        return Path(self.document["best_file"])

    @property
    def best(self) -> dict[str, Any]:
        """The best trial: its number, settings and values."""
        return dict(self.document["best"])

    @property
    def recipe(self) -> Recipe:
        """The recipe of best.yaml."""
        return parse(read(self.best_file), str(self.best_file))

    @property
    def confirmed(self) -> str:
        """How much better it is than the preset if both are trained again with new seeds; empty if that is unknown."""
        return str(self.document.get("confirmed") or "")

    @cached_property
    def trials(self) -> Table:
        """The trials, best first: number, state, metrics and settings."""
        rows = self.document["ranked"]
        columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in ("trial", "status")}
        for name in self.document["metrics"]:
            columns[name] = [row["values"].get(name) for row in rows]
        for key in self.document["space"]:
            columns[key] = [row["params"].get(key) for row in rows]
        return Table(columns)

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.confirmed)}</p>{self.trials._repr_html_()}"

    def __repr__(self) -> str:
        return f"{self.trials!r}\nbest     trial {self.best['trial']}: {self.best['params']}\n         {self.best_file}"


def _file(row: dict[str, Any], name: str) -> bytes | None:
    file = Path(row.get("path", "")) / name
    return file.read_bytes() if row.get("path") and file.is_file() else None


