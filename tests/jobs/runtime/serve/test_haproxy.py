"""What HAProxy is told: Ray's own file, mended; and that HAProxy takes it."""

import subprocess
from pathlib import Path

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from jobs.runtime.serve import haproxy

pytestmark = pytest.mark.skipif(not haproxy.available(), reason="HAProxy: Ray's wheels for Linux alone bring it")


@pytest.fixture
def written(tmp_path: Path) -> str:
    """What Ray writes for an application with two replicas."""
    config = HAProxyConfig(http_options=HTTPOptions(host="127.0.0.1", port=8000), socket_path=str(tmp_path / "socket"),
                           server_state_base=str(tmp_path), server_state_file=str(tmp_path / "state"))  # fmt: skip
    servers = [ServerConfig(f"replica-{i}", "127.0.0.1", 30000 + i) for i in range(2)]
    backend = BackendConfig("http-mine", "/", servers=servers, app_name="mine",
                            fallback_server=ServerConfig("ray", "127.0.0.1", 8500))  # fmt: skip
    path = tmp_path / "haproxy.cfg"
    HAProxyApi(config, {"http-mine": backend}, str(path))._generate_config_file_internal()
    return path.read_text()


def test_nothing_else_listens(written: str, tmp_path: Path) -> None:
    """Of two more ports, and a socket that anybody may give orders through, nothing is left."""
    mended = haproxy.adapt_config(written, str(tmp_path), "127.0.0.1", 160)
    assert [line.split()[1] for line in mended.splitlines() if line.strip().startswith("bind ")] == ["127.0.0.1:8000"]
    assert "listen stats" in written
    assert "listen stats" not in mended
    assert "mode 666" in written
    assert "mode 600" in mended
    assert "mode 666" not in mended


def test_the_door_stands_before_the_replicas(written: str, tmp_path: Path) -> None:
    """Each rule once, where Ray's file has its place; a file that was mended stays as it is."""
    mended = haproxy.adapt_config(written, str(tmp_path), "127.0.0.1", 160)
    backend = mended.partition("\nbackend http-mine\n")[2]
    assert backend.count("be_conn ge 160") == mended.count("be_conn") == 1
    assert mended.count("option http-buffer-request") == mended.count("option forwardfor") == 1
    assert f"errorfile 503 {tmp_path}/503.http" in mended
    assert "500.http" not in mended.replace(f"errorfile 500 {tmp_path}/500.http", "")
    assert haproxy.adapt_config(mended, str(tmp_path), "127.0.0.1", 160) == mended


@pytest.mark.parametrize(("host", "bound"), [("0.0.0.0", "0.0.0.0"), ("::1", "[::1]"), ("127.0.0.1", "127.0.0.1")])
def test_the_address_that_was_asked_for(written: str, host: str, bound: str, tmp_path: Path) -> None:
    """HAProxy has it, and the replicas the loopback."""
    mended = haproxy.adapt_config(written, str(tmp_path), host, 160)
    assert f"    bind {bound}:8000\n" in mended
    assert "server replica-0 127.0.0.1:30000" in mended


def test_haproxy_takes_it(written: str, tmp_path: Path) -> None:
    """With the answers that it finds in the folder, through the program that Ray starts."""
    with haproxy.haproxy_variables(haproxy.available(), "127.0.0.1", 160) as variables:
        assert oct(Path(variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent.stat().st_mode)[-3:] == "700"
        path = tmp_path / "mine.cfg"
        path.write_text(written)
        said = subprocess.run([variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-c", "-f", str(path)],
                              capture_output=True, text=True)  # fmt: skip
        assert said.returncode == 0, said.stderr
        assert path.read_text().startswith("# mended")
        folder = Path(variables["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    assert not folder.exists()
