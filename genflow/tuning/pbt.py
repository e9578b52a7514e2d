"""Population based training: what a search's trial_log says of who went on from whose weights, and with which settings.

All members train up to a rung; then the worst take over the weights of the best, with their settings changed, and all
go on. Between two rungs nobody trains, and the trial_log gets two lines, so that a kill at any moment costs nothing:

    {"turn": 1, "taken": {"2": {"from": 0, "params": {...}}}}   member 2 goes on from the weights of member 0
    {"turn": 1, "done": true}                                   they are copied; before this line, copied again

References:
    Population Based Training of Neural Networks (Jaderberg et al., 2017)   https://arxiv.org/abs/1711.09846
"""

import shutil
from pathlib import Path
from typing import Any

from genflow.storage.store import MANIFEST, Store
from genflow.training.checkpoint import Checkpoints
from genflow.tuning.trial import CHECKPOINTS, trial_folder
from genflow.tuning.trial_log import TrialLog

Document = dict[str, Any]


def exploits_at(trial_log: TrialLog, rung: int) -> Document | None:
    """Who goes on from whom at a turn, {member: {from, params}}; None: it is not decided."""
    entries = trial_log.entries()
    return next((entry["taken"] for entry in entries if entry.get("turn") == rung and "taken" in entry), None)


def is_copied(trial_log: TrialLog, rung: int) -> bool:
    """Whether the weights of a turn are copied."""
    return any(entry.get("turn") == rung and "done" in entry for entry in trial_log.entries())


def settings_at(trial_log: TrialLog, number: int, rung: int) -> Document:
    """A member's settings on its way to a rung."""
    found: Document = next(e["params"] for e in trial_log.entries() if e.get("trial") == number and "params" in e)
    for earlier in range(1, rung + 1):
        found = (exploits_at(trial_log, earlier) or {}).get(str(number), {}).get("params", found)
    return found


def copy_weights(store: Store, trials: Path, number: int, source: int) -> None:
    """Give a member a copy of another's weights, optimizer, average and clock in place of its own.

    Done twice, it does the same: the other is not a member that takes over itself. Of a rehearsal there is nothing.
    """
    folder = trial_folder(trials, number) / CHECKPOINTS
    weights = Checkpoints(trial_folder(trials, source) / CHECKPOINTS).newest()
    if weights is None:
        return
    step = int(weights.name.removeprefix("step_"))
    shutil.rmtree(folder, ignore_errors=True)
    if store.shared:
        store.shared.bucket.delete_all(store.shared.key(folder))

    def write(to: Path) -> None:
        for file in weights.iterdir():
            if file.name != MANIFEST:
                shutil.copy2(file, to)

    Checkpoints(folder, keep=1).save(step, write)


def schedule(trial_log: TrialLog, number: int) -> list[Document]:
    """The settings under which a member's weights were trained, rung by rung, along the line of those it took over.

    Returns:
        [{share, trial, params}]: up to that share of the budget, in that member, with those settings.
    """
    reports, line = trial_log.reports(number), []
    for rung in reversed(range(len(reports))):
        line.append({"share": reports[rung]["share"], "trial": number, "params": settings_at(trial_log, number, rung)})
        if source := (exploits_at(trial_log, rung) or {}).get(str(number)):
            number = source["from"]
    return line[::-1]
