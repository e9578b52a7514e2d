"""The device of a process is chosen in one place."""

import os
import subprocess
import sys

import pytest
import torch
from support import ROOT

from genflow.errors import SetupError, UsageError
from genflow.system import devices


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two CUDA devices and no variable set."""
    for name in (devices.BY_USER, devices.BY_RAY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


def test_the_order_of_choice(machine: pytest.MonkeyPatch) -> None:
    """What was asked for, what Ray gave, what the user set, CUDA, MPS, the CPU."""
    assert devices.choose() == "cuda"
    machine.setenv(devices.BY_USER, "cuda:1")
    assert devices.choose() == "cuda:1"
    machine.setenv(devices.BY_RAY, "cpu")
    assert devices.choose() == "cpu"
    assert devices.choose("cuda") == "cuda"
    for name in (devices.BY_USER, devices.BY_RAY):
        machine.delenv(name)
    machine.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose() == "cpu"
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.choose() == "mps"


@pytest.mark.parametrize(("name", "message"), [
    ("gpu", "unknown device 'gpu'"), ("cuda:x", "unknown device 'cuda:x'"), ("cpu:0", "unknown device 'cpu:0'"),
])  # fmt: skip
def test_an_unknown_name_is_rejected(name: str, message: str) -> None:
    """Before torch is imported."""
    with pytest.raises(UsageError, match=message):
        devices.check(name)


def test_a_device_that_is_missing_is_an_error(machine: pytest.MonkeyPatch) -> None:
    """It is never replaced in silence."""
    with pytest.raises(SetupError, match="the device cuda:2 was requested, and PyTorch finds 2 CUDA devices"):
        devices.choose("cuda:2")
    with pytest.raises(SetupError, match="the device mps was requested, and PyTorch finds no MPS device"):
        devices.choose("mps")
    machine.setattr(torch.cuda, "is_available", lambda: False)
    machine.setenv(devices.BY_USER, "cuda")
    with pytest.raises(SetupError, match="the device cuda was requested, and PyTorch finds no CUDA device"):
        devices.choose()


def test_only_this_module_chooses_a_device() -> None:
    """No other one asks whether there is a GPU, except checks and notes about the machine."""
    allowed = ("genflow/system/devices.py", "genflow/launch/local_checks.py", "jobs/runtime/gpus.py",
               "jobs/runtime/train/worker_group.py")  # fmt: skip
    found = [
        str(file.relative_to(ROOT))
        for folder in ("genflow", "jobs")
        for file in (ROOT / folder).rglob("*.py")
        if "cuda.is_available" in file.read_text(encoding="utf-8")
    ]
    assert sorted(found) == sorted(allowed)


def test_a_name_is_checked_without_torch() -> None:
    """A command rejects a wrong --device at once."""
    code = "import sys; from genflow.system import devices; devices.check('cpu'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_deterministic_kernels_are_a_choice_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable GENFLOW_DETERMINISTIC, before CUDA starts."""
    chosen: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", chosen.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delenv(devices.DETERMINISTIC, raising=False)
    devices.choose("cpu")
    assert (chosen, devices.is_deterministic()) == ([], False)
    monkeypatch.setenv(devices.DETERMINISTIC, "1")
    devices.choose("cpu")
    assert (chosen, os.environ.pop("CUBLAS_WORKSPACE_CONFIG")) == ([True], ":4096:8")
