"""Stop trials early with Ray Tune's ASHA, restored from the trial log."""

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from genflow.system.documents import Json
from genflow.tuning import metrics
from genflow.tuning.reports import Report
from genflow.tuning.search import Search
from genflow.tuning.trial_log import TrialLog, searcher_value


class ResumableAsha(ASHAScheduler):
    """Asynchronous successive halving that starts with the reports of the trials that have ended.

    Args:
        search: defines the rungs.
        trial_log: of the search.
    """

    def __init__(self, search: Search, trial_log: TrialLog) -> None:
        tuned, metric = search.recipe.tune, search.metrics[0]
        longest = tuned.reduction ** (len(search.shares) - 1)
        super().__init__(
            time_attr="rung", metric=metric, mode=metrics.mode(metric), max_t=longest,
            grace_period=1, reduction_factor=tuned.reduction, stop_last_trials=True,
        )  # fmt: skip
        for number in [entry["trial"] for entry in trial_log.entries() if "status" in entry]:
            trial: Any = SimpleNamespace(trial_id=f"record-{number}")
            self.on_trial_add(None, trial)  # type: ignore[arg-type]
            for index, report in enumerate(trial_log.reports(number)):
                self.on_trial_result(None, trial, tune_result((metric,), report, index, tuned.reduction))  # type: ignore[arg-type]


def tune_result(names: tuple[str, ...], report: Report, rung: int, reduction: int) -> Json:
    """Convert a report to a Tune result; its `rung` is a multiple of the first rung: reduction^rung."""
    return {"rung": reduction**rung, **{name: searcher_value(name, report) for name in names}}
