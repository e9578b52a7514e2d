"""What a search tells MLflow: a run for the search, and a child of it for each trial, through their journals.

    <search>.jsonl        the space, the best so far against trials, importance, confirmation, best.yaml, the grid
    <search>.0007.jsonl   the trial's settings and nothing else as parameters, so that they compare; metrics by step

A trial's process adds its training curves to the trial's journal.
"""

from pathlib import Path
from typing import Any

from genflow.storage.store import Store
from genflow.tracking.journal import Journal, Status, journal_path
from genflow.tuning.reports import Report
from genflow.tuning.search import Search
from genflow.tuning.trial_log import TrialLog

Document = dict[str, Any]
STATUS: dict[str, Status] = {"finished": "FINISHED", "stopped": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}


class SearchTracker:
    """The driver's end of the journals of a search.

    Args:
        store: where they lie.
        search: whose.
    """

    def __init__(self, store: Store, search: Search) -> None:
        self.store, self.search = store, search
        self.children: dict[int, Journal] = {}
        self.own = Journal(journal_path(store.root, search.id), experiment=search.run.dataset.name, name=search.name)
        self.own.tags({"family": search.run.recipe.family["kind"], "dataset": search.run.dataset.id, "job": "tune"})
        tuned = search.recipe.tune.model_dump(mode="json", exclude={"space"})
        self.own.params({f"tune.{key}": value for key, value in tuned.items()})
        self.own.params({f"space.{key}": str(domain) for key, domain in search.space.items()})
        self.own.status("RUNNING")

    def on_start(self, number: int, params: Document) -> None:
        """A trial begins, or goes on; a population's member, at every rung."""
        if number in self.children:
            return
        path = journal_path(self.store.root, f"{self.search.id}.{number:04d}")
        dataset, name = self.search.run.dataset.name, f"{self.search.name}-{number:04d}"
        self.children[number] = Journal(path, experiment=dataset, name=name, parent=self.search.id)
        self.children[number].params(params)
        self.children[number].status("RUNNING")

    def add_inherited(self, trial_log: TrialLog) -> None:
        """Trials of a kin that was shorter: this search's children, too, without their training curves."""
        for row in trial_log.rows():
            if not journal_path(self.store.root, f"{self.search.id}.{row['trial']:04d}").exists():
                self.on_start(row["trial"], row["params"])
                self.on_report(row["trial"], trial_log.reports(row["trial"]))
                if row["status"] != "running":
                    self.on_end(row["trial"], row["status"], row.get("why", ""))

    def on_report(self, number: int, reports: list[Report]) -> None:
        """A trial was measured; every report counts once."""
        for report in reports:
            if number in self.children and "values" in report:
                values: Document = {f"quality/{name}": value for name, value in report["values"].items()}
                values |= {name: report[name] for name in ("seconds", "samples") if name in report}
                if self.search.recipe.tune.scheduler == "pbt":  # MLflow never changes a parameter
                    changing = report["params"].items()
                    values |= {f"settings/{key}": x for key, x in changing if isinstance(x, int | float)}
                self.children[number].metrics(report.get("step", 0), values, stream=str(report["share"]))

    def on_end(self, number: int, status: str, why: str = "") -> None:
        """A trial is over; MLflow learns how from here, because its process may not live to tell."""
        if child := self.children.pop(number, None):
            child.tags({"ended": status, **({"why": why} if why else {})})
            child.status(STATUS[status])
            child.close()

    def log_best(self, done: int, metric: str, value: float) -> None:
        """The best value after a number of trials."""
        self.own.metrics(done, {f"best/{metric}": value}, stream="best")

    def log_results(self, found: Document, folder: Path) -> None:
        """What came of it all."""
        last = len(found["trials"])
        self.own.params({f"best.{key}": value for key, value in found["best"]["params"].items()})
        self.own.metrics(last, {f"importance/{key}": x for key, x in found["importance"].items()}, stream="importance")
        if found["confirmation"]:
            gap = {key: x for key, x in found["confirmation"]["difference"].items() if x is not None}
            self.own.metrics(last, {f"confirmation/{key}": x for key, x in gap.items()}, stream="confirmation")
        for name in ("best.yaml", "trials.csv", "search.json"):
            self.own.artifact(folder / name)
        if (folder / "grid.png").exists():
            self.own.image(last, "samples/best", folder / "grid.png")

    def close(self, status: Status) -> None:
        """The last word; a trial that is under way is left to its next attempt."""
        for child in self.children.values():
            child.status("KILLED")
            child.close()
        self.own.status(status)
        self.own.close()
