"""Small trained models, and a service with an HTTP client in this process, shared by the tests of serving."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from genflow.data.prepare import in_process, prepare
from genflow.data.shards import Dataset
from genflow.recipe.schema import Data
from genflow.serving import app
from genflow.serving.middleware import Limits
from genflow.serving.model_list import ServedModel
from genflow.serving.service import Service
from genflow.storage.store import Artifact, Store
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


@contextmanager
def client(models: list[ServedModel], limits: Limits | None = None, **options: Any) -> Iterator[TestClient]:
    """Yield an HTTP client of a service in this process."""
    service = Service(models, **options)
    with TestClient(app.create(service, limits), base_url="http://127.0.0.1") as made:
        made.service = service  # type: ignore[attr-defined]
        yield made
    service.close()
