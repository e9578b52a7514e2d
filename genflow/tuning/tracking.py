"""Track a search in MLflow through journals: one run for the search, and one child run for each trial.

    <search>.jsonl        the space, the best value by number of trials, importance, confirmation, best.yaml, the grid
    <search>.0007.jsonl   the trial's settings as its only parameters, so that MLflow compares by them; metrics by step

The trial's process adds its training curves to the trial's journal.
"""

from pathlib import Path

from genflow.storage.store import Store
from genflow.system.documents import Json
from genflow.tracking.journal import Journal, Status, journal_path
from genflow.tuning.reports import Report
from genflow.tuning.search import Search
from genflow.tuning.trial_log import TrialLog

STATUS: dict[str, Status] = {"finished": "FINISHED", "stopped": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}


class SearchTracker:
    """Write a search's journals, in the driver.

    Args:
        store: the journals are stored in it.
        search: the search.
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

    def on_start(self, number: int, params: Json) -> None:
        """A trial starts or resumes; for a population's member, once for each rung."""
        if number in self.children:
            return
        path = journal_path(self.store.root, f"{self.search.id}.{number:04d}")
        dataset, name = self.search.run.dataset.name, f"{self.search.name}-{number:04d}"
        self.children[number] = Journal(path, experiment=dataset, name=name, parent=self.search.id)
        self.children[number].params(params)
        self.children[number].status("RUNNING")

    def add_inherited(self, trial_log: TrialLog) -> None:
        """Add the trials of a shorter search as children of this one, without their training curves."""
        for row in trial_log.rows():
            if not journal_path(self.store.root, f"{self.search.id}.{row['trial']:04d}").exists():
                self.on_start(row["trial"], row["params"])
                self.on_report(row["trial"], trial_log.reports(row["trial"]))
                if row["status"] != "running":
                    self.on_end(row["trial"], row["status"], row.get("why", ""))

    def on_report(self, number: int, reports: list[Report]) -> None:
        """Add a trial's reports to its journal, each once."""
        for report in reports:
            if number in self.children and "values" in report:
                values: Json = {f"trial/{name}": value for name, value in report["values"].items()}
                values |= {name: report[name] for name in ("seconds", "samples") if name in report}
                if self.search.recipe.tune.scheduler == "pbt":  # MLflow parameters cannot change
                    changing = report["params"].items()
                    values |= {f"settings/{key}": x for key, x in changing if isinstance(x, int | float)}
                self.children[number].metrics(report.get("step", 0), values, stream=str(report["share"]))

    def on_end(self, number: int, status: str, why: str = "") -> None:
        """Write a trial's final status here in the driver, because the trial's process may have died."""
        if child := self.children.pop(number, None):
            child.tags({"ended": status, **({"why": why} if why else {})})
            child.status(STATUS[status])
            child.close()

    def log_best(self, done: int, metric: str, value: float) -> None:
        """Log the best value after `done` trials."""
        self.own.metrics(done, {f"best/{metric}": value}, stream="best")

    def log_results(self, found: Json, folder: Path) -> None:
        """Log the results, and store the result files as artifacts."""
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
        """Set the final status; a trial that is still running becomes KILLED until it resumes."""
        for child in self.children.values():
            child.status("KILLED")
            child.close()
        self.own.status(status)
        self.own.close()
