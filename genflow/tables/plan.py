"""The plan of the tables: a study with claims, for any dataset."""

from dataclasses import dataclass, field, replace
from typing import Any

from genflow.errors import UsageError, nearest
from genflow.evaluation.steps_needed import TOLERANCE
from genflow.pipeline.study import Study
from genflow.system.documents import Json
from genflow.system.source_hash import resources_dir
from genflow.tables.claims import Claim

TARGET = 10.0
FILE = "pipelines/tables.yaml"
TABLES = {
    "steps": ("Methods on the same path from noise to data", ("objective", "steps", "quality", "mathematics")),
    "families": ("Families of generative models", ("likelihood", "coverage", "quality", "speed", "stability")),
}
COLUMNS = {
    "objective": "training objective", "steps": "steps needed", "quality": "sample quality",
    "mathematics": "type of mathematics", "likelihood": "likelihood", "coverage": "mode coverage", "speed": "speed",
    "stability": "stability",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan(Study):
    """A study whose rows are the methods of the tables.

    Args:
        tolerance: how much larger than its best the fd of a method may be with the steps needed, as a share.
        target: the fd, as a multiple of its floor, for which the training time is reported.
        claims: claims of textbooks, as arguments of `Claim`.

    Raises:
        UsageError: a claim has a wrong key, test or column.
    """

    tolerance: float = TOLERANCE
    target: float = TARGET
    claims: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        for claim in self.claims:
            try:
                made = Claim(**claim)
            except TypeError as error:
                raise UsageError(f"{FILE}: claim {claim.get('says')!r}: {error}") from error
            if made.about not in COLUMNS:
                near = nearest(made.about, list(COLUMNS))
                raise UsageError(f"{FILE}: claim {made.says!r}: no column {made.about}{near}")

    @property
    def methods(self) -> dict[str, Json]:
        """The rows that appear in a table."""
        return {name: row for name, row in self.rows.items() if row.get("tables")}

    def of(
        self, data: Any, *, seeds: int | None = None, budget: float | None = None, latents: str = ""
    ) -> "Plan":
        """The plan for a dataset, with a number of seeds and a budget.

        Args:
            data: an artifact's id, or the section of a prepare stage.
            seeds: None: as the plan says.
            budget: CPU minutes of a training with share 1; None: as the plan says.
            latents: the latents that the runs on the dataset learn, `auto`, or empty for its pictures.
        """
        changed: Json = {"data": {"data": data, **self.data}, "latents": latents}
        if seeds is not None:
            changed["seeds"] = list(range(seeds))
        if budget is not None:
            changed["budget"] = budget
        return replace(self, **changed)

    def document(self) -> Json:
        """The input of the last stage: everything that decides the tables, except the evaluations."""
        keys = ("seeds", "budget", "tolerance", "target", "runs", "rows", "trials", "claims")
        return {key: getattr(self, key) for key in keys}

    def stages(self, name: str) -> Json:
        """The stages of the pipeline; the last one writes the tables."""
        pipeline = self.pipeline(name)
        study = self.document()
        needs = [key for key, stage in pipeline["stages"].items() if stage["job"] in ("train", "evaluate")]
        pipeline["stages"]["tables"] = {"job": "tables", "needs": needs, "study": study}
        return pipeline


def load() -> Plan:
    """The plan that is part of genflow, pipelines/tables.yaml."""
    return Plan.load(resources_dir() / FILE)
