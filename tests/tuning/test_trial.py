"""A trial is trained and measured in stages, and no stage is done twice."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genflow.errors import ResourceError
from genflow.recipe.compose import compose
from genflow.training.checkpoint_folders import Checkpoints
from genflow.training.loop import NonFinite
from genflow.tuning.trial import CHECKPOINTS, REPORTS, Trial, TrialContext, position, read_reports

PARAMS = {"train.lr": 0.03}


class FixedStages:
    """Stages that return a given result, or raise it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def advance(self, share: float) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def weights(trial: Trial) -> dict[str, torch.Tensor]:
    folder = Checkpoints(trial.folder / CHECKPOINTS).newest()
    assert folder is not None
    return load_file(folder / "weights.safetensors")


def test_stages_train_to_the_bits_of_an_uninterrupted_run(task, tmp_path):
    """Paused at a rung, measured and resumed by another trial object: the weights of an uninterrupted run."""
    first = Trial(TrialContext(task), 0, PARAMS)
    assert first.report(0)["step"] == 3
    assert Trial(TrialContext(task), 0, PARAMS).report(1)["step"] == 9
    whole = Trial(TrialContext(replace(task, shares=(1.0,), folder=task.folder)), 1, PARAMS)
    whole.report(0)
    a, b = weights(first), weights(whole)
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_an_existing_report_is_read(task):
    """A second request neither trains nor measures."""
    made = Trial(TrialContext(task), 0, PARAMS).report(0)
    again = Trial(TrialContext(task), 0, PARAMS)
    found = again.report(0)
    assert found["values"] == made["values"]
    assert again._stages is None


def test_a_stage_that_was_trained_and_not_measured_is_only_measured(task):
    """After a kill between checkpoint and report, no further step is trained."""
    trial = Trial(TrialContext(task), 0, PARAMS)
    made = trial.report(0)
    (trial.folder / REPORTS).unlink()
    again = Trial(TrialContext(task), 0, PARAMS)
    found = again.report(0)
    assert found["step"] == 3
    assert found["values"] == made["values"]


def test_an_incomplete_report_is_skipped(task):
    """The next report starts on a new line."""
    trial = Trial(TrialContext(task), 0, PARAMS)
    trial.report(0)
    with (trial.folder / REPORTS).open("a", encoding="utf-8") as file:
        file.write('{"share": 1')
    assert len(read_reports(trial.folder)) == 1
    trial.report(1)
    assert [report["step"] for report in read_reports(trial.folder)] == [3, 9]


def test_settings_that_fail_give_a_report(task):
    """A loss or a metric that is not finite gives `diverged`; settings that make no valid recipe give `failed`."""
    for number, answer in enumerate([NonFinite("the loss is not finite"), {"values": {"fd": float("nan")}}]):
        wild = Trial(TrialContext(task), 2 + number, PARAMS)
        wild._stages = FixedStages(answer)
        assert wild.report(0)["status"] == "diverged"
        assert "is not finite" in read_reports(wild.folder)[0]["why"]
    wrong = Trial(TrialContext(task), 1, {"net.width": -1}).report(0)
    assert wrong["status"] == "failed"
    assert "net.width" in wrong["why"]


def test_a_full_disk_ends_the_search(task):
    """The error is raised, and no report is written."""
    trial = Trial(TrialContext(task), 0, PARAMS)
    trial._stages = FixedStages(ResourceError("disk full"))
    with pytest.raises(ResourceError):
        trial.report(0)
    assert read_reports(trial.folder) == []


def test_the_position_of_a_checkpoint_is_the_larger_of_its_budgets(tmp_path):
    """The largest share of steps, minutes and CPU minutes; 0 without a checkpoint."""
    state = {"step": 5, "seconds": 30.0, "cpu_seconds": 45.0}
    (tmp_path / "state.json").write_text(json.dumps(state), encoding="utf-8")
    train = compose("flow_matching", {"train": {"steps": 100, "minutes": 2, "cpu_minutes": 1}}).train
    assert position(tmp_path, train) == 0.75
    assert position(None, train) == 0
