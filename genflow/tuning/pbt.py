"""Population based training: what a search's record says of who went on from whose weights, and with which settings.

All members train up to a rung; then the worst take over the weights of the best, with their settings changed, and all
go on. Between two rungs nobody trains, and the record gets two lines, so that a kill at any moment costs nothing:

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


def taken(record: TrialLog, turn: int) -> Document | None:
    """Who goes on from whom at a turn, {member: {from, params}}; None: it is not decided."""
    return next((entry["taken"] for entry in record.entries() if entry.get("turn") == turn and "taken" in entry), None)


def is_done(record: TrialLog, turn: int) -> bool:
    """Whether the weights of a turn are copied."""
    return any(entry.get("turn") == turn and "done" in entry for entry in record.entries())


def settings(record: TrialLog, number: int, rung: int) -> Document:
    """A member's settings on its way to a rung."""
    found: Document = next(e["params"] for e in record.entries() if e.get("trial") == number and "params" in e)
    for turn in range(1, rung + 1):
        found = (taken(record, turn) or {}).get(str(number), {}).get("params", found)
    return found


def take_over(store: Store, trials: Path, number: int, source: int) -> None:
    """Give a member a copy of another's weights, optimizer, average and clock in place of its own.

    Done twice, it does the same: the other is not a member that takes over itself. Of a rehearsal there is nothing.
    """
    folder = trial_folder(trials, number) / CHECKPOINTS
    weights = Checkpoints(trial_folder(trials, source) / CHECKPOINTS).newest()
    if weights is None:
        return
    step = int(weights.name.removeprefix("step_"))
    shutil.rmtree(folder, ignore_errors=True)
    if store.mirror:
        store.mirror.bucket.delete_all(store.mirror.key(folder))

    def write(to: Path) -> None:
        for file in weights.iterdir():
            if file.name != MANIFEST:
                shutil.copy2(file, to)

    Checkpoints(folder, keep=1).save(step, write)


def schedule(record: TrialLog, number: int) -> list[Document]:
    """The settings under which a member's weights were trained, rung by rung, along the line of those it took over.

    Returns:
        [{share, trial, params}]: up to that share of the budget, in that member, with those settings.
    """
    reports, line = record.reports(number), []
    for rung in reversed(range(len(reports))):
        line.append({"share": reports[rung]["share"], "trial": number, "params": settings(record, number, rung)})
        if source := (taken(record, rung) or {}).get(str(number)):
            number = source["from"]
    return line[::-1]
