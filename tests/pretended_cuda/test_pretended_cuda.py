"""Every family trains, saves, resumes, samples and measures on a CUDA device that does not exist, as on the CPU.

See `pretended_cuda/__init__.py`. One child process runs all cases, because the device must be loaded before torch.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import ROOT, TESTS

from pretended_cuda import guard
from pretended_cuda.cases import QUICK, every

Run = Callable[[str], Any]

# How often one training step waits for the device, at most. A new `.item()` in the loop or in a loss is one more.
SYNCS_OF_A_PLAYER = 1  # for the norm of its gradient
COPIES = 0  # from the host, without `non_blocking`
# From the host, without waiting: times that the host must know, because it computes levels or chooses rows by them.
# Noise is drawn on the device.
SENT = {"consistency": 21, "meanflow": 3}


@pytest.fixture(scope="module")
def run(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """`run(name)` runs a case or a part in the child process, and returns its result."""
    if why := guard.missing():
        pytest.skip(why)
    cache = getattr(pytestconfig, "cache", None)  # pytest may run without it
    library = guard.compiled(cache.mkdir("pretended_cuda") if cache else tmp_path_factory.mktemp("pretended_cuda"))
    path = os.pathsep.join([str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GENFLOW_DEVICE")}
    environment |= {"PYTHONPATH": path}
    child = subprocess.Popen(
        [sys.executable, "-m", "pretended_cuda.child", str(library)], env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None

    def answer(name: str) -> Any:
        print(name, file=child.stdin, flush=True)
        line = child.stdout.readline()
        assert line, f"the child process ended in {name}"
        return json.loads(line)

    yield answer
    child.stdin.close()
    assert child.wait(timeout=60) == 0


@pytest.mark.parametrize("name", QUICK)
def test_a_family_works_as_on_the_cpu(run: Run, name: str) -> None:
    """No device is mixed, no global generator is used, and a step waits no more often than the table says."""
    check(run(name))


PARTS = ("refusals", "autoguidance", "ranks", "checkpoints", "latents", "evaluation", "serving")  # functions of `parts`


@pytest.mark.parametrize("name", PARTS)
def test_what_surrounds_the_families(run: Run, name: str) -> None:
    """A part of genflow that uses a device, by its name in `parts`."""
    assert run(name) == []


@pytest.mark.parametrize("name", ["vae-grey-conv", "latents", "evaluation"])
def test_a_device_without_float64(run: Run, name: str) -> None:
    """As Apple's GPUs are: what is computed in double precision elsewhere is computed in float32 there."""
    found = run(f"float32:{name}")
    assert (found["problems"] if isinstance(found, dict) else found) == []


@pytest.mark.slow
def test_every_family_net_and_sampler(run: Run) -> None:
    """All data, nets, variants and samplers that fit together."""
    found = {case.name: run(case.name) for case in every()}
    assert {name: result["problems"] for name, result in found.items() if result["problems"]} == {}
    for result in found.values():
        check(result)


def check(found: dict[str, Any]) -> None:
    assert found["problems"] == []
    assert found["draws"] == {}
    most = {"syncs": SYNCS_OF_A_PLAYER * found["players"], "copies": COPIES, "sent": SENT.get(found["kind"], 0)}
    for what, limit in most.items():
        assert sum(found[what].values()) <= limit, f"{what} of a step: {found[what]}"
