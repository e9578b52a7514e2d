"""The configuration of HAProxy: the corrections to Ray's file, and that HAProxy accepts it."""

import subprocess
from pathlib import Path

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from jobs.runtime.serve import haproxy

pytestmark = pytest.mark.skipif(not haproxy.available(), reason="only Ray's wheels for Linux contain HAProxy")


@pytest.fixture
def written(tmp_path: Path) -> str:
    """The configuration that Ray writes for an application with two replicas."""
    config = HAProxyConfig(http_options=HTTPOptions(host="127.0.0.1", port=8000), socket_path=str(tmp_path / "socket"),
                           server_state_base=str(tmp_path), server_state_file=str(tmp_path / "state"))  # fmt: skip
    servers = [ServerConfig(f"replica-{i}", "127.0.0.1", 30000 + i) for i in range(2)]
    backend = BackendConfig("http-mine", "/", servers=servers, app_name="mine",
                            fallback_server=ServerConfig("ray", "127.0.0.1", 8500))  # fmt: skip
    path = tmp_path / "haproxy.cfg"
    HAProxyApi(config, {"http-mine": backend}, str(path))._generate_config_file_internal()
    return path.read_text(encoding="utf-8")


def test_only_one_port_is_open(written: str, tmp_path: Path) -> None:
    """The two further ports are removed, and the control socket is for this user only."""
    adapted = haproxy.adapt_config(written, str(tmp_path), "127.0.0.1", 160)
    assert [line.split()[1] for line in adapted.splitlines() if line.strip().startswith("bind ")] == ["127.0.0.1:8000"]
    assert "listen stats" in written
    assert "listen stats" not in adapted
    assert "mode 666" in written
    assert "mode 600" in adapted
    assert "mode 666" not in adapted


def test_rules_are_added_once(written: str, tmp_path: Path) -> None:
    """Each rule is added once at its place, and a corrected file stays unchanged."""
    adapted = haproxy.adapt_config(written, str(tmp_path), "127.0.0.1", 160)
    backend = adapted.partition("\nbackend http-mine\n")[2]
    assert backend.count("be_conn ge 160") == adapted.count("be_conn") == 1
    assert adapted.count("option http-buffer-request") == adapted.count("option forwardfor") == 1
    assert adapted.count("timeout check 2s") == 1
    assert backend.count("http-request del-header X-Forwarded-For") == 1  # the client cannot choose its address
    assert f"errorfile 503 {tmp_path}/503.http" in adapted
    assert "500.http" not in adapted.replace(f"errorfile 500 {tmp_path}/500.http", "")
    assert haproxy.adapt_config(adapted, str(tmp_path), "127.0.0.1", 160) == adapted


@pytest.mark.parametrize(("host", "bound"), [("0.0.0.0", "0.0.0.0"), ("::1", "[::1]"), ("127.0.0.1", "127.0.0.1")])
def test_the_requested_address_is_bound(written: str, host: str, bound: str, tmp_path: Path) -> None:
    """HAProxy binds the requested address, and the replicas stay on the loopback."""
    adapted = haproxy.adapt_config(written, str(tmp_path), host, 160)
    assert f"    bind {bound}:8000\n" in adapted
    assert "server replica-0 127.0.0.1:30000" in adapted


def test_haproxy_accepts_the_configuration(written: str, tmp_path: Path) -> None:
    """The script that Ray starts corrects the file, and HAProxy accepts it with the error files in the folder."""
    with haproxy.haproxy_variables(haproxy.available(), "127.0.0.1", 160) as variables:
        assert oct(Path(variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent.stat().st_mode)[-3:] == "700"
        path = tmp_path / "mine.cfg"
        path.write_text(written, encoding="utf-8")
        checked = subprocess.run([variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-c", "-f", str(path)],
                              capture_output=True, text=True, encoding="utf-8")  # fmt: skip
        assert checked.returncode == 0, checked.stderr
        assert path.read_text(encoding="utf-8").startswith("# adapted by genflow")
        folder = Path(variables["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    assert not folder.exists()
