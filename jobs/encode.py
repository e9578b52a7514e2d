"""Encode: Ray actors with an autoencoder write the latents of a dataset; training on them is latent diffusion.

    python -m jobs.encode recipe.yaml
"""

import time
from functools import partial
from pathlib import Path

from genflow.pipeline.results import Encoded
from genflow.pipeline.stages import Need, Stage
from genflow.recipe.schema import parse
from genflow.sampling import encode
from genflow.sampling.encode import EncodePlan, Encoder
from genflow.sampling.engine import AUTOENCODER
from genflow.storage import mirror
from genflow.storage.files import explain_disk_errors
from genflow.storage.store import Artifact, Store
from genflow.system import environment
from genflow.system.documents import Json
from jobs.runtime.cluster import ray_cluster
from jobs.runtime.entrypoint import Emit, execute
from jobs.runtime.shard_actors import write_missing

STAGE = Stage(
    makes="latents",
    folder="latents",
    sections=("name", "encode", "cluster"),
    needs=(
        Need("data", "dataset", into="recipe.data.name"),
        Need("autoencoder", "run", into="inputs.autoencoder"),
    ),
    cores=0,
    address="genflow.pipeline.addresses:encode",
    order=3,
)


def main(document: Json, emit: Emit) -> Encoded:
    """Encode the dataset `recipe.data.name` with the autoencoder `inputs.autoencoder`, unless the latents exist.

    Shards of an interrupted attempt are kept.

    Returns:
        A `genflow.encode/1` document.

    Raises:
        UsageError: the dataset or the autoencoder does not exist, or they do not fit.
        DataError: a file of them is damaged, or latents are not finite.
    """
    store, started = Store(), time.monotonic()
    recipe = parse(document["recipe"])
    task = encode.plan(store, document["inputs"]["autoencoder"], recipe)
    if done := store.get("latents", task.id):  # without the lock, so that a read-only store is enough
        return result(done, cached=True)
    with store.lock("latents", task.id, wait=True, uses=task.parents):
        if done := store.get("latents", task.id):
            return result(done, cached=True)
        task.dataset.verify()
        folder = store.folder("latents", task.id)
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if store.mirror:
                store.mirror.download_missing(folder)  # fetches what earlier attempts wrote on any machine
            store.upload(*encode.copy_autoencoder(task, folder))
        with ray_cluster(num_cpus=max(environment.cores(), recipe.cluster.workers)):
            cpu_seconds = write_missing(
                partial(_encoder, task), folder, task.shards, recipe.cluster, emit,
                stage="encode", dataset=task.id, what="rows",
            )  # fmt: skip
        with explain_disk_errors(folder):
            if store.mirror:
                store.mirror.download_missing(folder)  # fetches the shards that actors on other machines wrote
            measured = encode.finish(task, folder)
        for warning in measured.warnings:
            emit("warning", message=warning)
        seconds = round(time.monotonic() - started, 1)
        artifact = store.finalize(
            "latents", task.id, name=task.name, parents=task.parents,
            meta={**encode.describe(task, measured), "seconds": seconds, "cpu_seconds": cpu_seconds},
            only=lambda name: ".tmp-" not in name,
        )  # fmt: skip
    return result(artifact, cached=False)


def find(document: Json) -> Encoded | None:
    """The result if the latents exist, else None."""
    store = Store()
    task = encode.plan(store, document["inputs"]["autoencoder"], parse(document["recipe"]))
    done = store.get("latents", task.id)
    return result(done, cached=True) if done else None


def result(latents: Artifact, *, cached: bool) -> Encoded:
    """The document that the command prints."""
    meta = latents.meta
    return {
        "schema": "genflow.encode/1",
        "latents": latents.id,
        "name": latents.name,
        "path": str(latents.path),
        "cached": cached,
        "dataset": meta["dataset"],
        "autoencoder": meta["autoencoder"],
        "rows": meta["rows"],
        "shape": meta["shape"],
        "flip": meta["flip"],
        "deviation": meta["deviation"],
        "warnings": meta["warnings"],
        "seconds": meta["seconds"],
    }


def _encoder(task: EncodePlan, folder: Path, device: str) -> Encoder:
    """The writer of an actor, which may be on another machine than the copy of the autoencoder."""
    if bucket := mirror.containing(folder):
        bucket.download_missing(folder / AUTOENCODER)
    return Encoder(task, folder, device)


if __name__ == "__main__":
    execute(main)
