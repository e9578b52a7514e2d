"""A finished search for hyperparameters."""

from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from genflow.api.tables import Table
from genflow.recipe.files import read
from genflow.recipe.schema import Recipe, parse


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
