"""The device that a Ray worker may use, without Ray."""

import pytest
import ray
import torch

from genflow.errors import GenflowError, SetupError, UsageError
from genflow.recipe.schema import Cluster
from genflow.system import devices
from jobs.runtime import gpus


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A worker to which Ray gave a GPU, on a machine that has CUDA."""
    monkeypatch.delenv(devices.BY_USER, raising=False)
    monkeypatch.setenv(devices.BY_RAY, "of an earlier task")
    monkeypatch.setattr(gpus, "_is_worker", lambda: True)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [3])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return monkeypatch


@pytest.mark.parametrize(
    ("wanted", "by_user", "given", "found"),
    [
        ("auto", "", [3], "cuda:0"),
        ("auto", "", [], "cpu"),
        ("auto", "cuda:1", [3], "cuda:0"),
        ("auto", "cpu", [3], "cpu"),
        ("cpu", "cuda", [3], "cpu"),
        ("cuda", "cpu", [3], "cuda:0"),
    ],
)
def test_the_device_of_a_worker(
    worker: pytest.MonkeyPatch, wanted: str, by_user: str, given: list[int], found: str
) -> None:
    """The recipe, then the variable of the user; a worker uses no GPU that Ray did not give it."""
    worker.setenv(devices.BY_USER, by_user or "auto")
    worker.setattr(ray, "get_gpu_ids", lambda: given)
    assert gpus.claim(wanted) == found


@pytest.mark.parametrize(
    ("wanted", "by_user", "given", "cuda", "error", "message"),
    [
        ("cuda", "auto", [], True, SetupError, "cluster.device=cuda, and Ray gave this worker no GPU"),
        ("cuda", "auto", [3], False, SetupError, "cluster.device=cuda, and PyTorch finds no CUDA device"),
        ("auto", "gpu", [3], True, UsageError, "unknown device 'gpu'"),
    ],
)
def test_a_device_is_never_replaced_in_silence(
    worker: pytest.MonkeyPatch, wanted: str, by_user: str, given: list[int], cuda: bool, error: type[GenflowError],
    message: str,
) -> None:  # fmt: skip
    """What the recipe asks for and cannot be had is an error."""
    worker.setenv(devices.BY_USER, by_user)
    worker.setattr(ray, "get_gpu_ids", lambda: given)
    worker.setattr(torch.cuda, "is_available", lambda: cuda)
    with pytest.raises(error, match=message):
        gpus.claim(wanted)


def test_the_users_cpu_requests_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a GPU would be idle."""
    monkeypatch.setenv(devices.BY_USER, "cpu")
    assert gpus.requested(Cluster(workers=2)) == 0
