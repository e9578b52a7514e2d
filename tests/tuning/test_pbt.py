"""A population copies weights between members, and its log tells with which settings they were trained."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from genflow.training.checkpoint_folders import Checkpoints
from genflow.tuning import pbt
from genflow.tuning.trial import CHECKPOINTS, Task, Trial, TrialContext
from genflow.tuning.trial_log import TrialLog

FILES = ("weights", "ema", "optimizer")


def tensors_of(task: Task, number: int) -> dict[str, torch.Tensor]:
    """All tensors of a member's only checkpoint."""
    (folder,) = Checkpoints(Path(task.folder) / f"{number:04d}" / CHECKPOINTS).steps()
    return {f"{file}/{key}": x for file in FILES for key, x in load_file(folder / f"{file}.safetensors").items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_member_continues_from_copied_weights_average_and_optimizer(store, task):
    """With the source's settings it ends at the same bits as the source; with other settings it does not."""
    Trial(TrialContext(task), 0, {"train.lr": 0.03}).report(0)
    Trial(TrialContext(task), 1, {"train.lr": 0.2}).report(0)
    Trial(TrialContext(task), 2, {"train.lr": 0.3}).report(0)
    for number in (1, 1, 2):  # member 1 twice, as after a kill
        pbt.copy_weights(store, Path(task.folder), number, 0)
    assert equal(tensors_of(task, 1), tensors_of(task, 0))
    ended = [Trial(TrialContext(task), i, {"train.lr": lr}).report(1) for i, lr in enumerate((0.03, 0.03, 0.01))]
    assert [report["step"] for report in ended] == [9, 9, 9]
    assert equal(tensors_of(task, 1), tensors_of(task, 0))
    assert not equal(tensors_of(task, 2), tensors_of(task, 0))


def test_the_log_has_the_settings_of_each_rung(tmp_path):
    """Member 1 copies the weights of member 0 after the first rung; its schedule starts in member 0."""
    trial_log = TrialLog(tmp_path)
    for number, lr in enumerate((0.1, 0.9)):
        trial_log.log_start(number, {"train.lr": lr})
        (tmp_path / f"{number:04d}").mkdir()
        (tmp_path / f"{number:04d}" / "reports.jsonl").write_text('{"share": 0.5}\n{"share": 1.0}\n', encoding="utf-8")
    assert pbt.exploits_at(trial_log, 1) is None
    trial_log.append({"turn": 1, "taken": {"1": {"from": 0, "params": {"train.lr": 0.12}}}})
    assert not pbt.is_copied(trial_log, 1)
    trial_log.append({"turn": 1, "done": True})
    assert pbt.is_copied(trial_log, 1)
    assert [pbt.settings_at(trial_log, 1, rung)["train.lr"] for rung in (0, 1)] == [0.9, 0.12]
    stages = [(stage["share"], stage["trial"], stage["params"]["train.lr"]) for stage in pbt.schedule(trial_log, 1)]
    assert stages == [(0.5, 0, 0.1), (1.0, 1, 0.12)]
    assert [stage["params"]["train.lr"] for stage in pbt.schedule(trial_log, 0)] == [0.1, 0.1]
