"""`genflow data`: the datasets in the store, and the latents of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import training_of
from genflow.cli.options import AsJson, DataRef, Yes
from genflow.cli.removal import NOUN, remove
from genflow.cli.words import Listing
from genflow.commands.references import find_named, kind_of_data
from genflow.data.skipped import describe
from genflow.system.documents import Json

EXAMPLES = 3  # captions that `data show` prints
SHOWN = 60  # characters of a caption

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.data.shards import Dataset
    from genflow.storage.store import Artifact

app = typer.Typer(cls=Listing, help="List, show and delete datasets and latents in the store; alone, list them.")


@app.command("ls")
def list_data(json: AsJson = False) -> None:
    """List the datasets, the latents and the text embeddings in the store."""
    from genflow.storage.store import Store

    store = Store()
    found = {kind: store.artifacts(kind) for kind in ("datasets", "latents", "texts")}
    if json:
        datasets = [{"dataset": d.id, "name": d.name, **d.meta.get("facts", {})} for d in found["datasets"]]
        latents = [
            {"latents": a.id, "name": a.name, "dataset": a.meta["dataset"], **a.meta["facts"]} for a in found["latents"]
        ]
        texts = [{"texts": a.id, "name": a.name, **a.meta} for a in found["texts"]]
        console.document({"schema": "genflow.datasets/1", "datasets": datasets, "latents": latents, "texts": texts})
        return
    if not any(found.values()):
        print(f"no datasets in {store.url}")
        console.next_commands("genflow prepare digits", "genflow prepare ~/my_pictures --size 32")
        return
    tables = [
        console.table(
            (NOUN[kind], "name", *of, "rows", "C×H×W", "made"), [_row(artifact) for artifact in artifacts],
            left=2 + len(of),
        )
        for kind, of in (("datasets", ()), ("latents", ("of",)))
        if (artifacts := found[kind])
    ]
    if found["texts"]:
        heads = ("text embeddings", "name", "of", "encoder", "captions", "tokens", "made")
        tables.append(console.table(heads, [_row_of_texts(artifact) for artifact in found["texts"]], left=4))
    print("\n\n".join(tables))


def _row(artifact: "Artifact") -> tuple[str, ...]:
    facts = artifact.meta.get("facts", {})
    shape = "×".join(str(n) for n in facts.get("shape", ()))
    rows = f"{sum(facts.get('splits', {}).values()):,}"
    of = [artifact.meta["dataset"]] if artifact.kind == "latents" else []
    return artifact.id, artifact.name, *of, rows, shape, console.date(artifact.manifest.get("created", 0))


def _row_of_texts(artifact: "Artifact") -> tuple[str, ...]:
    meta = artifact.meta
    numbers = (f"{meta['captions']:,}", f"{meta['spec']['length']}×{meta['spec']['tokens']}")
    made = console.date(artifact.manifest.get("created", 0))
    return artifact.id, artifact.name, meta["dataset"], meta["encoder_id"], *numbers, made


@app.command()
def show(
    dataset: DataRef,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the preview; default: NAME-preview.png.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Print the size, shape and classes of a dataset or of latents, and write a preview image."""
    from genflow.data import preview
    from genflow.data.shards import Dataset
    from genflow.storage.files import write_atomically
    from genflow.storage.store import Store

    store = Store()
    if (kind := kind_of_data(store, dataset)) == "texts":
        _show_texts(store.find(kind, dataset), json)
        return
    opened = Dataset.open(find_named(store, kind, dataset))
    document = preview.describe(opened)
    picture = _decoded(opened) if opened.facts.is_latents else preview.preview(opened)
    name = opened.artifact.id if opened.facts.is_latents else opened.artifact.name
    file = write_atomically(out or Path(f"{name}-preview.png"), picture)
    document["preview"] = str(file.absolute())
    if json:
        console.document(document)
        return
    for key, value in _lines(opened, file, document).items():
        print(f"{key:<12} {value}")
    for warning in document["warnings"]:
        print(f"{'warning':<12} {warning}")
    if opened.facts.is_latents:
        console.next_commands(f"genflow train flow_matching --latents {opened.artifact.id}")
    else:
        console.next_commands(training_of(store.reference(opened.artifact), opened.facts.to_json()))


def _show_texts(texts: "Artifact", json: bool) -> None:
    from genflow.data.texts import Texts

    meta = {key: value for key, value in texts.meta.items() if key != "spec"} | texts.meta["spec"]
    if json:
        console.document({"schema": "genflow.texts/1", "texts": texts.id, "path": str(texts.path), **meta})
        return
    for key, value in {"texts": texts.id, "path": texts.path, **meta}.items():
        if key != "warnings":
            print(f"{key:<12} {value}")
    examples = Texts.open(texts.path).captions[:EXAMPLES]
    print(f"{'such as':<12} {', '.join(map(repr, examples))}")
    console.next_commands(f"genflow train flow_matching --data {meta['dataset']} --text {texts.id}")


def _decoded(latents: "Dataset") -> bytes:
    """Some latents as pictures that their autoencoder decodes, as PNG bytes."""
    import numpy as np

    from genflow.data import preview
    from genflow.sampling.autoencoders import decode_rows, decoder_of

    split, decoder = latents.splits["train"], decoder_of(latents.artifact)
    rows = np.unique(np.linspace(0, len(split) - 1, 64).astype(int))
    return preview.render(decode_rows(decoder, split, rows), decoder.facts)


def _lines(dataset: "Dataset", preview: Path, document: Json) -> dict[str, Any]:
    from genflow.data import encoding

    facts = dataset.facts
    lines = {
        **_identity(dataset),
        "path": dataset.artifact.path,
        "rows": ", ".join(f"{rows:,} {name}" for name, rows in facts.splits.items()),
        "shape": "points in the plane" if facts.is_points else "{} × {} × {} (C × H × W)".format(*facts.shape),
        "levels": facts.levels or "continuous",
        **({"encoding": encoding.describe(facts.encoding)} if facts.bounded else {}),
        "mean, sigma": f"{facts.mean:.4f}, {facts.sigma_data:.4f}",
        "fingerprint": facts.fingerprint[:16],
        "preview": preview,
    }
    if skipped := dataset.artifact.meta.get("skipped"):
        lines["skipped"] = describe(skipped)
    if bad := dataset.artifact.meta.get("bad"):
        lines["unreadable"] = f"{bad:,}, listed in {dataset.artifact.path}/bad.csv"
    if facts.classes:
        counts = facts.class_counts or (0,) * facts.classes
        pairs = [f"{n} {c:,}" for n, c in zip(facts.class_names, counts, strict=False)]
        lines["classes"] = ", ".join(pairs[:20]) + (" …" if len(pairs) > 20 else "")
    if captions := document.get("captions"):
        examples = ", ".join(repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…") for text in captions["examples"])
        rows = f"{captions['rows']:,} of {sum(facts.splits.values()):,} rows"
        lines["captions"] = f"{rows}, such as {examples}" if examples else rows
    return lines


def _identity(dataset: "Dataset") -> dict[str, str]:
    if not dataset.facts.is_latents:
        return {"dataset": dataset.artifact.id}
    meta = dataset.artifact.meta
    deviation = f"{min(meta['deviation']):.2f} to {max(meta['deviation']):.2f}"
    return {"latents": dataset.artifact.id, "dataset": meta["dataset"], "autoencoder": meta["autoencoder"],
            "deviation": deviation}  # fmt: skip


@app.command()
def rm(dataset: DataRef, yes: Yes = False) -> None:
    """Delete a dataset, latents or text embeddings from the store."""
    from genflow.storage.store import Store

    remove(kind_of_data(Store(), dataset), dataset, yes)
