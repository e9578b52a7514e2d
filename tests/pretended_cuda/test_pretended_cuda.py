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

# Synchronisations of one training step at most. The norm of each player's gradient is read.
SYNCS = {
    "consistency-grey-unet": 13,
    "consistency-grey-unet-mode=distill": 25,
    "gan-grey-fixup": 2,
    "meanflow-grey-unet": 2,
    "meanflow-latents-dit-derivative=jvp": 2,
    "vae-grey-conv-prior=flow": 2,
}
OTHER_SYNCS = 1
# Copies from the host of one training step at most, besides those of the batch. Each draw of noise is one.
COPIES = {
    "consistency-grey-unet": 16,
    "consistency-grey-unet-mode=distill": 28,
    "meanflow-grey-unet": 9,
    "meanflow-latents-dit-derivative=jvp": 9,
    "vae-grey-conv-prior=flow": 6,
}
OTHER_COPIES = 5


@pytest.fixture(scope="module")
def run(pytestconfig: pytest.Config) -> Iterator[Run]:
    """`run(name)` runs a case or a part in the child process, and returns its result."""
    if why := guard.missing():
        pytest.skip(why)
    assert pytestconfig.cache is not None
    library = guard.compiled(pytestconfig.cache.mkdir("pretended_cuda"))
    path = os.pathsep.join([str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        [sys.executable, "-m", "pretended_cuda.child", str(library)], env={**os.environ, "PYTHONPATH": path},
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
    check(run(name), name)


PARTS = ("refusals", "autoguidance", "ranks", "latents", "evaluation", "serving")  # functions of `parts`


@pytest.mark.parametrize("name", PARTS)
def test_what_surrounds_the_families(run: Run, name: str) -> None:
    """A part of genflow that uses a device, by its name in `parts`."""
    assert run(name) == []


@pytest.mark.slow
def test_every_family_net_and_sampler(run: Run) -> None:
    """All data, nets, variants and samplers that fit together."""
    for case in every():
        check(run(case.name), case.name)


def check(found: dict[str, Any], name: str) -> None:
    assert found["problems"] == []
    assert found["draws"] == {}
    kind = name.partition("-")[0]
    for what, table, other in (("syncs", SYNCS, OTHER_SYNCS), ("copies", COPIES, OTHER_COPIES)):
        most = max((table[each] for each in table if each == name or each.startswith(f"{kind}-")), default=other)
        most = table.get(name, most if name not in QUICK else other)
        assert sum(found[what].values()) <= most, f"{what} of a step: {found[what]}"
