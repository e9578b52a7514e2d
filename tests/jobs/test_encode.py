"""Encoding on Ray: the bytes depend on no number of actors, and an interrupted attempt is continued."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.trained_run import trained_run

from genflow.data.shards import Dataset
from genflow.errors import DataError, ResourceError
from genflow.recipe.schema import Cluster, parse
from genflow.sampling import autoencoders, encode
from genflow.storage.store import Artifact, Store
from jobs import encode as job
from jobs.runtime import shard_actors


@pytest.fixture
def run(store: Store, prepared: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """An autoencoder of digits; shards have 400 rows, so that there are four."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    monkeypatch.setattr(encode, "SHARD", 400)
    return trained_run(store, prepared("digits"), "autoencoder", steps=1, net="autoencoder", family={"channels": 2})


def document(run: Artifact, **sections: Any) -> dict[str, Any]:
    recipe = parse({"data": {"name": "digits"}, **sections})
    return {"recipe": recipe.model_dump(mode="json"), "inputs": {"autoencoder": run.id}}


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.ray
def test_any_number_of_actors_and_attempts_gives_the_same_bytes(
    run: Artifact, store: Store, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One actor; then two after an attempt that was killed, whose shards are kept, but not its torn files."""
    events: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(shard_actors, "_actors", lambda cluster, gpus: 1)
        made = job.main(document(run), lambda event, **fields: events.append({"is": event, **fields}))
    assert not made["cached"]
    folder = Path(made["path"])
    first = contents(folder)
    name = sorted(name for name in first if name.endswith(".arrow"))[2]
    store.delete("latents", made["latents"])
    (folder / "train").mkdir(parents=True)
    torn = folder / "train" / f".{Path(name).name}.tmp-other-1"
    torn.write_bytes(b"half")
    (folder / name).write_bytes(first[name])
    before = (folder / name).stat().st_mtime_ns
    again = job.main(document(run), lambda *_, **__: None)
    assert contents(folder) == first
    assert ((folder / name).stat().st_mtime_ns, torn.exists()) == (before, False)
    progress = [event for event in events if event["is"] == "progress"]
    assert (progress[-1]["step"], progress[-1]["steps"], progress[-1]["what"]) == (made["rows"], made["rows"], "rows")
    assert job.main(document(run), lambda *_, **__: None) == {**again, "cached": True} == job.find(document(run))


def test_the_error_of_an_actor_is_a_value(run: Artifact, store: Store) -> None:
    """So that Ray adds no traceback to the line; nothing is written."""
    plan = encode.plan(store, run.id, parse({"data": {"name": "digits"}}))
    loaded = autoencoders.load(run, plan.pictures, "digits")
    loaded.family.latent_deviation.fill_(float("nan"))
    folder = store.folder("latents", plan.id)
    autoencoders.write(loaded, plan.pictures, folder / "autoencoder")
    actor = shard_actors._ShardActor(partial(job._encoder, plan), store.url, "latents", plan.id)
    file, first, last = plan.shards[1]
    rows, error = actor.write(file, first, last)
    assert rows == 0
    assert isinstance(error, DataError)
    assert re.fullmatch(r"row 400 of digits-\w+ \(digits/\d+\): its latents are not finite", error.message)
    assert list(folder.rglob("*.arrow*")) == []


@pytest.mark.parametrize(("nodes", "workers", "gpus", "actors"), [
    ([{"CPU": 8, "GPU": 1}], 1, 0, 8),
    ([{"CPU": 8, "GPU": 1}], 1, 1, 1),  # an actor without a GPU would wait forever
    ([{"CPU": 8, "GPU": 1}, {"CPU": 2}], 1, 0.5, 2),
    ([{"CPU": 8}], 3, 0, 3),
    ([{"CPU": 8}], 1, 1, "a worker needs 1 CPU and 1 GPU"),
    ([{"CPU": 2}], 3, 0, "3 workers need 1 CPU each"),
])  # fmt: skip
def test_as_many_actors_as_fit(
    nodes: list[dict[str, float]], workers: int, gpus: float, actors: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each CPU or GPU, unless a number was asked for; more than fit are an error."""
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    cluster = Cluster(workers=workers, gpus=gpus)
    if isinstance(actors, int):
        assert shard_actors._actors(cluster, gpus) == actors
        return
    with pytest.raises(ResourceError, match=actors):
        shard_actors._actors(cluster, gpus)
