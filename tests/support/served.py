"""Small trained models, and a service with an HTTP client in this process, shared by the tests of serving."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.testclient import TestClient

from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.recipe.schema import Data
from genflow.serving import app
from genflow.serving.middleware import Limits
from genflow.serving.model_list import ServedModel
from genflow.serving.service import Service
from genflow.storage.store import Artifact, Store
from genflow.system import ports
from support import text_folders
from support.latents import dataset, embedded, pictures
from support.trained_run import trained_run


def train_models(root: Path) -> tuple[Store, list[Artifact]]:
    """Return a store with two runs on digits, `flow` and `vae`, and one on points, `ring`."""
    store = Store(root)
    quiet = lambda event, **fields: None  # noqa: E731
    digits = Dataset.open(prepare(store, Data(source="digits"), in_process, quiet)[0])
    ring = Dataset.open(prepare(store, Data(source="ring8", samples=500), in_process, quiet)[0])
    return store, [
        trained_run(store, digits, "flow_matching", "flow", steps=30, sample={"steps": 4}),
        trained_run(store, digits, "vae", "vae", steps=5),
        trained_run(store, ring, "flow_matching", "ring", steps=5, sample={"steps": 3}),
    ]


def train_captioned(root: Path) -> tuple[Store, list[Artifact], Path]:
    """Return a store with a run on captions, `words`, and one on the classes of the same pictures, `kinds`.

    The last value is the folder of the text encoder.
    """
    store, encoder = Store(root / "store"), text_folders.write(root / "bert", text_folders.BERT)
    data = dataset(store, pictures(root / "colours", 60), val=0.3)
    sections: Any = {"steps": 12, "texts": embedded(store, encoder), "sample": {"steps": 2, "guidance": 2.0}}
    return store, [
        trained_run(store, data, "flow_matching", "words", **sections),
        trained_run(store, data, "flow_matching", "kinds", steps=2, sample={"steps": 2}, family={"forget": 0}),
    ], encoder  # fmt: skip


@contextmanager
def server(models: list[ServedModel]) -> Iterator[str]:
    """Yield the URL of a server in a thread of this process."""
    service, port = Service(models), ports.free_port()
    running = uvicorn.Server(uvicorn.Config(app.create(service), port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    running.should_exit = True
    thread.join(timeout=30)
    service.close()


@contextmanager
def client(models: list[ServedModel], limits: Limits | None = None, **options: Any) -> Iterator[TestClient]:
    """Yield an HTTP client of a service in this process."""
    service = Service(models, **options)
    with TestClient(app.create(service, limits), base_url="http://127.0.0.1") as made:
        made.service = service  # type: ignore[attr-defined]
        yield made
    service.close()
