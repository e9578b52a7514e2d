"""Shards are given to actors that have started."""

import threading
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from genflow.recipe.schema import Cluster
from genflow.storage.store import Store
from jobs.runtime import shard_actors

SHARDS = [(f"{number}.txt", number, number + 1) for number in range(5)]


@pytest.fixture
def folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an artifact that is written."""
    monkeypatch.setenv("GENFLOW_STORE", store.url)
    folder = store.folder("pairs", "some")
    folder.mkdir(parents=True)
    return folder


def busy(cpus: int) -> Any:
    """An actor of another job that has so many CPUs."""
    import ray

    class Other:
        def ready(self) -> None:
            pass

    other: Any = ray.remote(num_cpus=cpus)(Other).remote()
    ray.get(other.ready.remote())
    return other


def writing(folder: Path, seen: list[int]) -> threading.Thread:
    """Write all shards by two actors in a thread; `seen` receives the steps of the progress."""

    class TextWriter:  # not in the module, because the actors cannot import the tests
        def __init__(self, folder: Path, device: str) -> None:
            self.device = device

        def write(self, path: Path, first: int, last: int) -> None:
            path.write_text(f"{first}..{last} {self.device}", encoding="utf-8")

    def write() -> None:
        shard_actors.write_missing(
            TextWriter, folder, SHARDS, Cluster(workers=2), lambda event, **fields: seen.append(fields["step"])
        )

    work = threading.Thread(target=write, daemon=True)
    work.start()
    return work


@pytest.mark.ray
def test_an_actor_that_waits_for_a_cpu_delays_no_shard(ray_local: None, folder: Path) -> None:
    """Another job has one of the two CPUs: one of two actors never starts, and the other writes everything."""
    import ray

    other, seen = busy(1), []
    work = writing(folder, seen)
    work.join(60)
    ray.kill(other)
    assert not work.is_alive()
    assert {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()} == {
        name: f"{first}..{last} cpu" for name, first, last in SHARDS
    }
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.ray
def test_the_speed_is_measured_from_the_start_of_an_actor(
    ray_local: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another job has all CPUs, no clock runs."""
    import ray

    reads: list[float] = []
    monkeypatch.setattr(shard_actors, "time", SimpleNamespace(monotonic=lambda: reads.append(monotonic()) or reads[-1]))
    other, seen = busy(2), []
    work = writing(folder, seen)
    work.join(2)
    assert work.is_alive()
    assert not reads
    ray.kill(other)
    work.join(60)
    assert len(reads) == 1 + len(seen) == 1 + len(SHARDS)
