"""Encode text: Ray actors with a text encoder embed every distinct caption of a dataset.

python -m jobs.encode_text recipe.yaml
"""

import time
from functools import partial
from pathlib import Path

from genflow.data import texts
from genflow.pipeline.results import TextEncoded
from genflow.pipeline.stages import Need, Stage
from genflow.recipe.schema import Cluster, parse
from genflow.sampling import encode_text
from genflow.sampling.encode_text import TextPlan, TextWriter
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
    makes="texts",
    folder="texts",
    sections=("name", "encode", "cluster"),
    needs=(Need("data", "dataset", into="recipe.data.name"),),
    cores=0,
    address="genflow.pipeline.addresses:encode_text",
    outside=("encode.text",),
    order=3,
)


def main(document: Json, emit: Emit) -> TextEncoded:
    """Embed the captions of the dataset `recipe.data.name` with the encoder `recipe.encode.text`, unless that is done.

    Shards of an interrupted attempt are kept.

    Returns:
        A `genflow.encode_text/1` document.

    Raises:
        UsageError: the dataset does not exist or has no captions, or there is no such text encoder.
        DataError: a file of them is damaged, or embeddings are not finite.
    """
    store, recipe = Store(), parse(document["recipe"])
    task = encode_text.plan(store, recipe)

    def write(folder: Path) -> float:
        task.dataset.verify()
        with explain_disk_errors(folder):
            store.upload(encode_text.write_captions(task, folder))
        return _write(task, folder, encode_text.shards(folder), recipe.cluster, emit)

    def finish(folder: Path) -> Json:
        measured = encode_text.finish(task, folder)
        for warning in measured.warnings:
            emit("warning", message=warning)
        return encode_text.describe(task, measured)

    made, cached = make(store, "texts", task, write=write, finish=finish)
    return result(made, cached=cached)


def find(document: Json) -> TextEncoded | None:
    """The result if the embeddings exist, else None."""
    store = Store()
    done = store.get("texts", encode_text.plan(store, parse(document["recipe"])).id)
    return result(done, cached=True) if done else None


def result(made: Artifact, *, cached: bool) -> TextEncoded:
    """The document that the command prints."""
    meta = made.meta
    return {
        "schema": "genflow.encode_text/1",
        "texts": made.id,
        "name": made.name,
        "path": str(made.path),
        "cached": cached,
        "dataset": meta["dataset"],
        "encoder": meta["encoder"],
        "encoder_id": meta["encoder_id"],
        "captions": meta["captions"],
        "spec": meta["spec"],
        "warnings": meta["warnings"],
        "seconds": meta["seconds"],
    }


def _write(
    task: TextPlan, folder: Path, shards: list[tuple[str, int, int]], cluster: Cluster, emit: Emit
) -> float:
    """Write the missing shards, on actors if there are several; return the CPU seconds."""
    if len(shards) == 1:  # starting Ray takes longer than embedding a few thousand captions
        import torch

        began, threads = time.process_time(), torch.get_num_threads()
        torch.set_num_threads(1)  # as the actors do: the number of threads may change how sums are rounded
        if not (folder / shards[0][0]).exists():
            TextWriter(task, folder).write(folder / shards[0][0], *shards[0][1:])
        torch.set_num_threads(threads)
        Store().upload(folder / shards[0][0])
        return round(time.process_time() - began, 2)
    with ray_cluster(num_cpus=max(environment.cores(), cluster.workers)):
        return write_missing(
            partial(_writer, task), folder, shards, cluster, emit,
            with_gpu=False, stage="encode_text", dataset=task.id, what="captions",
        )  # fmt: skip


def _writer(task: TextPlan, folder: Path, device: str) -> TextWriter:
    """The writer of an actor, which may be on another machine than captions.arrow; text encoders use the CPU."""
    if bucket := mirror.containing(folder):
        bucket.download_file(folder / texts.CAPTIONS)
    return TextWriter(task, folder)


if __name__ == "__main__":
    execute(main)
