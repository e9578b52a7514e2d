"""Ray's token is private from its creation; memory of tensors is reused."""

import os
import platform
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from genflow.system import environment


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".ray/auth_token"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_token_is_private(path: Path) -> None:
    """Token and folder are private for any umask; the token has 256 bits and is created once."""
    before = os.umask(0)
    try:
        assert environment.ensure_token() == path
    finally:
        os.umask(before)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert len(bytes.fromhex(path.read_text(encoding="utf-8"))) == 32
    first = path.read_text(encoding="utf-8")
    environment.ensure_token()
    assert path.read_text(encoding="utf-8") == first == environment.token()


def test_a_world_readable_token_is_corrected(path: Path) -> None:
    """The mode of a world-readable token, as Ray writes it, is corrected."""
    path.parent.mkdir()
    path.write_text("x", encoding="utf-8")
    path.chmod(0o644)
    environment.ensure_token()
    assert mode(path) == 0o600


def test_a_local_ray_requires_the_token(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local Ray has token authentication, even if the environment disables it."""
    for name in ("RAY_ADDRESS", "RAY_GCS_SERVER_PORT", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    environment.configure_local_ray()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert path.exists()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_tensors_reuse_freed_memory() -> None:
    """After the first tensors, further tensors cause few page faults.

    Without `tune_malloc`, each round takes 38,849 pages in half of all processes. In the other half, an allocation at
    the end of the heap prevents that by chance.
    """
    script = """
        import resource, torch
        from genflow.system import environment
        environment.tune_malloc()
        x = torch.ones(2**21)
        def draw():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(5):
                [torch.relu(x) for _ in range(8)]
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print([draw() for _ in range(10)][-1])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=True, encoding="utf-8"
    )
    assert int(done.stdout) < 10_000


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux")
@pytest.mark.parametrize(("given", "found"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_that_wait_give_their_core_away(given: dict[str, str], found: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    shown = subprocess.run(
        [sys.executable, "-c", "import genflow, torch"],
        env={**clean, "OMP_DISPLAY_ENV": "VERBOSE", **given}, stderr=subprocess.PIPE, encoding="utf-8", check=True,
    ).stderr  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{found}'" in shown


def test_numpy_has_one_thread() -> None:
    """The matrices of a distance are small; two threads take hundreds of times as long if a core is busy."""
    limits = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    clean = {name: value for name, value in os.environ.items() if name not in limits}
    program = "import genflow, numpy, threadpoolctl as t; print({p['num_threads'] for p in t.threadpool_info()})"
    found = subprocess.run(
        [sys.executable, "-c", program], env=clean, stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    assert found.stdout.strip() == "{1}"


def test_a_chosen_policy_of_waiting_stays() -> None:
    clean = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    program = "import os, genflow; print('GOMP_SPINCOUNT' in os.environ)"
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, "OMP_WAIT_POLICY": "active"}, stdout=subprocess.PIPE, encoding="utf-8", check=True,
    ).stdout  # fmt: skip
    assert shown.strip() == "False"
