"""The running endpoints: one small file for each in the store, written when it is ready, removed when it ends."""

import contextlib
import json
import os
from pathlib import Path

from genflow.storage.files import HOSTNAME, write_atomically
from genflow.storage.lock import process_start_time
from genflow.storage.store import Store
from genflow.system import http
from genflow.system.documents import Json


def _folder(store: Store) -> Path:
    return store.root / "endpoints"


def write(store: Store, inputs: Json, running: Json | None = None) -> None:
    """Record a running endpoint; `running` is its earlier record if only its models change."""
    document = {
        "schema": "genflow.endpoint/1",
        "name": inputs["name"],
        "node": running["node"] if running else HOSTNAME,
        "pid": running["pid"] if running else os.getpid(),
        "born": running["born"] if running else process_start_time(os.getpid()),
        "gcs": running["gcs"] if running else os.environ.get("RAY_ADDRESS", ""),
        "inputs": {key: value for key, value in inputs.items() if key != "running"},
    }
    path = write_atomically(_folder(store) / f"{inputs['name']}.json", json.dumps(document, indent=1))
    path.chmod(0o600)


def remove(store: Store, name: str) -> None:
    """Remove the record of an endpoint."""
    with contextlib.suppress(OSError):  # a read-only store holds no record
        (_folder(store) / f"{name}.json").unlink(missing_ok=True)


def list_running(store: Store) -> list[Json]:
    """Return the endpoints whose process is running, and remove the files of the others."""
    found = []
    for path in sorted(_folder(store).glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if is_running(document):
            found.append(document)
        else:
            with contextlib.suppress(OSError):  # a read-only store
                path.unlink(missing_ok=True)
    return found


def get(store: Store, name: str) -> Json | None:
    """Return the endpoint of this name if it is running."""
    return next((document for document in list_running(store) if document["name"] == name), None)


def is_running(document: Json) -> bool:
    """Whether the process of an endpoint is running; assumed for an endpoint on another machine."""
    return bool(document["node"] != HOSTNAME or document["born"] == process_start_time(document["pid"]))


def address(inputs: Json) -> str:
    """Return the URL of an endpoint on its machine, from the host and the port that it listens on."""
    host = str(inputs["host"])  # a socket can listen on every address, and a client needs one
    return f"http://{http.netloc({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host), inputs['port'])}"


def is_healthy(address: str) -> bool:
    """Whether an endpoint answers its health check."""
    try:
        return http.request(f"{address}/healthz", timeout=5).status == 200
    except http.RequestFailed:
        return False
