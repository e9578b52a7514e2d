"""Population-based training: read from the trial log which member copied whose weights, and with which settings.

All members train up to a rung; then the worst copy the weights of the best (exploit), change the settings (explore),
and all continue. Between two rungs no member trains, and the log gets two lines, so that a kill loses nothing:

    {"turn": 1, "taken": {"2": {"from": 0, "params": {...}}}}   member 2 continues from the weights of member 0
    {"turn": 1, "done": true}                                   all weights are copied; without this line, copy again

References:
    Population Based Training of Neural Networks (Jaderberg et al., 2017)   https://arxiv.org/abs/1711.09846
"""

import shutil
from pathlib import Path

from genflow.storage.store import MANIFEST, Store
from genflow.system.documents import Json
from genflow.training.checkpoint_folders import Checkpoints
from genflow.tuning.trial import CHECKPOINTS, trial_folder
from genflow.tuning.trial_log import TrialLog


def exploits_at(trial_log: TrialLog, rung: int) -> Json | None:
    """The exploits after a rung, {member: {from, params}}; None if they are not decided yet."""
    entries = trial_log.entries()
    return next((entry["taken"] for entry in entries if entry.get("turn") == rung and "taken" in entry), None)


def is_copied(trial_log: TrialLog, rung: int) -> bool:
    """Whether the weights of a rung's exploits are copied."""
    return any(entry.get("turn") == rung and "done" in entry for entry in trial_log.entries())


def settings_at(trial_log: TrialLog, number: int, rung: int) -> Json:
    """The settings with which a member trains up to a rung, counted from 0."""
    found: Json = next(e["params"] for e in trial_log.entries() if e.get("trial") == number and "params" in e)
    for earlier in range(1, rung + 1):
        found = (exploits_at(trial_log, earlier) or {}).get(str(number), {}).get("params", found)
    return found


def copy_weights(store: Store, trials: Path, number: int, source: int) -> None:
    """Replace a member's checkpoint by a copy of another member's: weights, optimizer, average and clock.

    Repeating it gives the same result, because a source never copies weights itself. An objective has no weights.
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


def schedule(trial_log: TrialLog, number: int) -> list[Json]:
    """The settings with which a member's weights were trained, rung by rung, also while they were another member's.

    Returns:
        [{share, trial, params}]: up to that share of the budget, in that member, with those settings.
    """
    reports, line = trial_log.reports(number), []
    for rung in reversed(range(len(reports))):
        line.append({"share": reports[rung]["share"], "trial": number, "params": settings_at(trial_log, number, rung)})
        if source := (exploits_at(trial_log, rung) or {}).get(str(number)):
            number = source["from"]
    return line[::-1]
