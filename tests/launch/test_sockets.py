"""A local command opens no socket that other machines can reach.

Each command runs in its own network namespace with the loopback and a second interface, which has an address and the
default route, as on a laptop. The test records all listening sockets in that namespace until the command ends.
"""

import ipaddress
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT

LISTENING = "0A"
NETWORK = """
ip link set lo up
ip link add wifi type veth peer name router && ip link set wifi up && ip link set router up
ip addr add 10.99.0.2/24 dev wifi && ip route add default via 10.99.0.1
exec "$@"
"""
NET = [f"--set={key}" for key in ("net.kind=mlp", "net.width=16", "net.depth=1", "train.steps=30")]


def in_a_network(*command: str) -> list[str]:
    """The command line that runs a command in its own network namespace."""
    return ["unshare", "--net", "sh", "-c", NETWORK, "sh", *command]


def can_make_networks() -> bool:
    have = os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip")
    return bool(have) and subprocess.run(in_a_network("true"), capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(not can_make_networks(), reason="a network namespace needs root, unshare, ip and veth"),
]


def listening(pid: int) -> set[str]:
    """The addresses with a listening socket in a process's network namespace."""
    found: set[str] = set()
    if os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        return found  # the process is still in this namespace
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="utf-8").splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING:
                found.add(address(fields[1].partition(":")[0]))
    return found


def address(text: str) -> str:
    """Convert an address from the kernel's hexadecimal form; an IPv4-mapped IPv6 address becomes IPv4."""
    words = b"".join(struct.pack("<I", int(text[i : i + 8], 16)) for i in range(0, len(text), 8))
    if len(words) == 4:
        return socket.inet_ntoa(words)
    found = ipaddress.IPv6Address(words)
    return str(found.ipv4_mapped or found)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., set[str]]:
    """`run(command...)`: the addresses with listening sockets; SIGINT is sent when `ends_when` is in the output."""
    tmp_path = tmp_path_factory.mktemp("sockets")
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    settings |= {"GENFLOW_STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start(*arguments: str, ends_when: str = "") -> set[str]:
        log = tmp_path / "log"
        with log.open("w", encoding="utf-8") as out:
            process = subprocess.Popen(
                in_a_network(sys.executable, "-m", "genflow.cli", *arguments), cwd=tmp_path, env=settings,
                stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        seen: set[str] = set()
        interrupted = False
        while process.poll() is None:
            try:
                seen |= listening(process.pid)
            except OSError:
                break
            if ends_when and not interrupted and ends_when in log.read_text(encoding="utf-8"):
                interrupted = True
                process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert process.wait() in ((0, 130) if ends_when else (0,)), log.read_text(encoding="utf-8")
        return seen

    start("prepare", "digits")
    return start


def test_open_sockets_are_found(tmp_path: Path) -> None:
    """Servers on all interfaces, on the second one and on the loopback are found, so the tests below can fail."""
    for host in ("0.0.0.0", "10.99.0.2", "127.0.0.1"):
        program = f"import socket, time; s = socket.create_server(({host!r}, 0)); time.sleep(30)"
        process = subprocess.Popen(in_a_network(sys.executable, "-c", program))
        try:
            ends = time.monotonic() + 20
            while not (seen := listening(process.pid)) and time.monotonic() < ends:
                time.sleep(0.1)
            assert host in seen
        finally:
            process.kill()
            process.wait()


def test_train(run) -> None:
    """Training on two workers listens only on the loopback, including Ray's daemons and gloo."""
    assert run("train", "flow_matching", "--data", "digits", "--workers", "2", *NET) == {"127.0.0.1"}


def test_tune(run) -> None:
    """A search listens only on the loopback."""
    arguments = ["--trials", "2", "--set", "tune.confirm=0", "--set", "tune.rungs=1", "--set", "tune.samples=16"]
    assert run("tune", "flow_matching", "--data", "digits", *arguments, *NET) == {"127.0.0.1"}


def test_tables(run) -> None:
    """A pipeline, like the one of `genflow tables`, listens only on the loopback."""
    done = run("run", str(ROOT / "tests/support/tiny.yaml"))
    assert done == {"127.0.0.1"}


def test_serve(run) -> None:
    """Serving listens only on the loopback, including the proxy, the replicas and the metrics."""
    assert run("train", "flow_matching", "--data", "digits", *NET) <= {"127.0.0.1"}
    assert run("serve", "latest", "--port", "0", ends_when="playground") == {"127.0.0.1"}


def test_ui(run) -> None:
    """The MLflow server listens only on the loopback."""
    assert run("ui", "--port", "0", ends_when="press Ctrl-C") == {"127.0.0.1"}
