"""`genflow cluster`: the calls of Ray's launcher, and the errors when it fails."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from genflow.cli import cluster
from genflow.errors import ClusterError, UsageError
from genflow.system import environment, ports

LAUNCHER = """
import os, socket, sys, time
with open("asked", "a") as asked:
    print(os.environ.get("RAY_UP_enable_autoscaler_v2"), *sys.argv[1:], file=asked)
if sys.argv[1] == "dashboard" and "onprem" not in sys.argv[2]:
    server = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
    time.sleep(60)
print("no route to host")
sys.exit(int("onprem" in sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with an ssh key, the shipped files, and a fake launcher that records its arguments and fails on-prem."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519").touch()
    for name in ("cluster.yaml", "onprem.yaml"):
        file = ROOT / name if name == "cluster.yaml" else ROOT / "deploy" / name
        (tmp_path / name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_UP_enable_autoscaler_v2", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    own = cluster._launcher
    monkeypatch.setattr(cluster, "_launcher", lambda document: ([sys.executable, "-c", LAUNCHER], own(document)[1]))
    return tmp_path / "asked"


def test_up_makes_the_token_and_asks_the_launcher(launcher: Path, tmp_path: Path, capfd: Any) -> None:
    """`up` creates the token and calls the launcher; the launcher's output goes to standard error."""
    cluster.up("", yes=True)
    assert launcher.read_text(encoding="utf-8") == "None up cluster.yaml -y --no-config-cache --disable-usage-stats\n"
    assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o077 == 0
    captured = capfd.readouterr()
    assert "no route" in captured.err
    assert "genflow cluster dashboard cluster.yaml" in captured.out


def test_a_launcher_that_fails(launcher: Path) -> None:
    """A failed launcher is a ClusterError; for existing machines it runs with autoscaler v1."""
    with pytest.raises(ClusterError, match="`ray up` failed with exit code 1"):
        cluster.up("onprem.yaml", yes=True)
    assert launcher.read_text(encoding="utf-8").startswith("0 up onprem.yaml")


@pytest.mark.parametrize("command", [cluster.up, cluster.down])
def test_without_confirmation(command: Any, launcher: Path) -> None:
    """Without a terminal and --yes, the command fails and calls no launcher."""
    with pytest.raises(UsageError) as error:
        command("cluster.yaml", yes=False)
    assert error.value.hint == "add --yes to confirm"
    assert not launcher.exists()


def test_a_file_that_is_wrong_is_not_launched(launcher: Path, tmp_path: Path) -> None:
    """The first problem of a file ends the command before the launcher runs."""
    file = tmp_path / "cluster.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("RAY_AUTH_MODE=token ", ""), encoding="utf-8")
    with pytest.raises(UsageError, match="any client that reaches it can run code"):
        cluster.up("cluster.yaml", yes=True)
    assert not launcher.exists()


def test_a_manifest_is_not_launched() -> None:
    """`up` refuses a Kubernetes manifest and names kubectl."""
    with pytest.raises(UsageError) as error:
        cluster.up(str(ROOT / "deploy/kuberay/cluster.yaml"), yes=True)
    assert error.value.hint.startswith("kubectl apply -f ")


def test_a_tunnel(launcher: Path) -> None:
    """A tunnel listens on the given port while it is used, and is closed afterwards."""
    port = ports.free_port()
    with cluster._tunnel(Path("cluster.yaml"), {"provider": {"type": "aws"}}, port) as address:
        assert address == f"http://127.0.0.1:{port}"
        assert not ports.is_free(port)
    assert ports.is_free(port)
    assert f"dashboard cluster.yaml --port {port}" in launcher.read_text(encoding="utf-8")


def test_a_tunnel_that_fails() -> None:
    """The error contains the last line of the launcher's output."""
    with (
        pytest.raises(ClusterError, match=r"cannot open a tunnel to the head of onprem\.yaml: no route to host"),
        cluster._tunnel(Path("onprem.yaml"), {"provider": {"type": "local"}}, ports.free_port()),
    ):
        raise AssertionError("the tunnel is open")


def test_validate_prints_every_problem(tmp_path: Path, capsys: Any) -> None:
    """`validate` prints each problem as one line and fails; a valid file is one line with a tick."""
    environment.ensure_token()
    cluster.validate("cluster.yaml", json=False)
    assert capsys.readouterr().out.startswith("✔ cluster.yaml: genflow on aws")
    file = tmp_path / "cluster.yaml"
    text = file.read_text(encoding="utf-8").replace("RAY_AUTH_MODE=token ", "").replace("127.0.0.1", "0.0.0.0")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="has 3 problems"):
        cluster.validate("cluster.yaml", json=False)
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == ["✘"] * 3
    assert "RAY_ADDRESS" not in os.environ
