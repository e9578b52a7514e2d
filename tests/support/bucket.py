"""An S3 server on the loopback interface that can be made to fail."""

import logging
import os
import random
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


class Server:
    """moto's S3 server, with injected failures.

    Args:
        seed: of the choice of requests that fail.

    Attributes:
        share: share of requests that fail, in turn by a 500, a 503 or a closed connection.
        failed: number of failed requests.
        requests: number of requests.
    """

    def __init__(self, seed: int = 0) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.share, self.failed, self.requests = 0.0, 0, 0
        self.random = random.Random(seed)
        self.web = make_server("127.0.0.1", 0, self.answer, threaded=True)
        self.url = f"http://127.0.0.1:{self.web.server_port}"
        threading.Thread(target=self.web.serve_forever, daemon=True).start()

    def answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.requests += 1
        if self.random.random() >= self.share:
            return self.moto(environ, start)
        self.failed += 1
        kind = self.failed % 3
        if kind == 0:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start("503 Slow Down" if kind == 1 else "500 Internal Server Error", [("Content-Length", "0")])
        return []

    def create(self, bucket: str) -> None:
        from pyarrow import fs

        host = self.url.removeprefix("http://")
        fs.S3FileSystem(access_key="test", secret_key="test", endpoint_override=host, scheme="http",
                        region="us-east-1", allow_bucket_creation=True).create_dir(bucket)  # fmt: skip

    def variables(self, **more: str) -> dict[str, str]:
        """The environment variables with which a process reaches the server."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.url, "AWS_EC2_METADATA_DISABLED": "true", **more}

    def close(self) -> None:
        self.web.shutdown()


def machine(patch: pytest.MonkeyPatch, server: Server, cache: Any, url: str = "s3://bucket/a/b") -> None:
    """Make this process act as a machine with its own cache."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    own = {"GENFLOW_CACHE": str(cache), "GENFLOW_STORE": url, "GENFLOW_STORE_DEADLINE": "20"}
    for name, value in server.variables(**own).items():
        patch.setenv(name, value)
