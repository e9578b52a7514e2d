"""Shards are given to actors that have started."""

import threading
from pathlib import Path
from typing import Any

import pytest

from genflow.recipe.schema import Cluster
from genflow.storage.store import Store
from jobs.runtime import shard_actors

SHARDS = [(f"{number}.txt", number, number + 1) for number in range(5)]


@pytest.mark.ray
def test_an_actor_that_waits_for_a_cpu_delays_no_shard(
    ray_local: None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job has one of the two CPUs: one of two actors never starts, and the other writes everything."""
    import ray

    class TextWriter:  # not in a module, because the actors cannot import the tests
        def __init__(self, folder: Path, device: str) -> None:
            self.device = device

        def write(self, path: Path, first: int, last: int) -> None:
            path.write_text(f"{first}..{last} {self.device}", encoding="utf-8")

    class Other:
        def ready(self) -> None:
            pass

    monkeypatch.setenv("GENFLOW_STORE", store.url)
    folder = store.folder("pairs", "some")
    folder.mkdir(parents=True)
    other: Any = ray.remote(num_cpus=1)(Other).remote()
    ray.get(other.ready.remote())
    cluster, seen = Cluster(workers=2), []
    work = threading.Thread(
        target=lambda: shard_actors.write_missing(
            TextWriter, folder, SHARDS, cluster, lambda event, **fields: seen.append(fields["step"])
        ),
        daemon=True,
    )
    work.start()
    work.join(60)
    ray.kill(other)
    assert not work.is_alive()
    assert {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()} == {
        name: f"{first}..{last} cpu" for name, first, last in SHARDS
    }
    assert seen == [1, 2, 3, 4, 5]
