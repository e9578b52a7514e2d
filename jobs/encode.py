"""Encode: Ray actors with an autoencoder write the latents of a dataset; training on them is latent diffusion.

    python -m jobs.encode recipe.yaml
"""

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
from jobs.runtime.shard_stage import make

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
    store, recipe = Store(), parse(document["recipe"])
    task = encode.plan(store, document["inputs"]["autoencoder"], recipe)

    def write(folder: Path) -> float:
        task.dataset.verify()
        with explain_disk_errors(folder):
            store.upload(*encode.copy_autoencoder(task, folder))
        with ray_cluster(num_cpus=max(environment.cores(), recipe.cluster.workers)):
            return write_missing(
                partial(_encoder, task), folder, task.shards, recipe.cluster, emit,
                stage="encode", dataset=task.id, what="rows",
            )  # fmt: skip

    def finish(folder: Path) -> Json:
        measured = encode.finish(task, folder)
        for warning in measured.warnings:
            emit("warning", message=warning)
        return encode.describe(task, measured)

    latents, cached = make(store, "latents", task, write=write, finish=finish)
    return result(latents, cached=cached)


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
