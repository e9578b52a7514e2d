"""Train a small run in this process, without Ray."""

from dataclasses import asdict, replace
from typing import Any

import torch

from genflow import build, runs
from genflow.data.shards import Dataset
from genflow.data.stream import Stream
from genflow.data.texts import Texts
from genflow.maths.rng import key
from genflow.storage.store import Artifact, Store
from genflow.tracking.journal import Journal, journal_path
from genflow.training import loop
from genflow.training.checkpoint_folders import Checkpoints
from genflow.training.session import Session
from support.small import recipe


def trained_run(
    store: Store, data: Dataset, kind: str, name: str = "", steps: int = 20, net: str = "",
    latents: Artifact | None = None, texts: Artifact | None = None, **sections: Any,
) -> Artifact:  # fmt: skip
    """Train the family `kind` on the data, or on latents of it, for a few steps, and finalize the run."""
    learned = Dataset.open(latents) if latents else data
    embedded = Texts.open(texts.folder) if texts else None
    if embedded:
        learned = replace(learned, facts=replace(learned.facts, text=embedded.spec))
    train = {"steps": steps, "batch": 16, "log_every": 5, "checkpoint_every": steps}
    whole = recipe(kind, learned.facts, net or ("mlp" if kind != "vae" else "auto"), train=train, name=name,
                   data={"name": data.artifact.name, "latents": latents.id if latents else "",
                         "text": texts.id if texts else ""}, **sections)  # fmt: skip
    run = runs.plan(store, whole)
    runs.create_folder(store, run)
    torch.manual_seed(key(0, "weights"))
    family = build.family_of(whole, learned.facts)
    folder = store.folder("runs", run.id)
    with Journal(journal_path(store.root, run.id), experiment=data.artifact.name, name=run.name) as journal:

        def log(numbers: dict[str, Any]) -> None:
            journal.metrics(numbers["step"], {f"train/{k}": v for k, v in numbers.items() if k != "step"})

        session = Session(save=Checkpoints(folder / "checkpoints").save, log=log)
        fitted = loop.fit(family, Stream(learned.splits["train"], 16, 0, texts=embedded), session, whole.train)
    meta = {
        **asdict(fitted), "steps": fitted.step, "family": kind, "net": whole.net["kind"], "dataset": data.artifact.id,
        "dataset_name": data.artifact.name, "fingerprint": data.facts.fingerprint,
        "latents": whole.data.latents, "texts": whole.data.text,
        "parameters": sum(p.numel() for p in family.parameters()), "world": 1,
    }  # fmt: skip
    parents = [data.artifact.id, *(made.id for made in (latents, texts) if made)]
    return store.finalize("runs", run.id, name=run.name, parents=parents, meta=meta)
