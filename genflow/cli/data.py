"""`genflow data`: the datasets in the store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import find_named
from genflow.cli.options import AsJson, DataRef, Yes
from genflow.cli.removal import remove
from genflow.data.skipped import describe
from genflow.system.documents import Json

SHOWN = 60  # characters of a caption

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.data.shards import Dataset

app = typer.Typer(help="List, show and delete datasets in the store.", no_args_is_help=True)


@app.command("ls")
def list_data(json: AsJson = False) -> None:
    """List the datasets in the store."""
    from genflow.storage.store import Store

    store = Store()
    datasets = store.artifacts("datasets")
    if json:
        documents = [{"dataset": d.id, "name": d.name, **d.meta.get("facts", {})} for d in datasets]
        console.document({"schema": "genflow.datasets/1", "datasets": documents})
        return
    if not datasets:
        print(f"no datasets in {store.url}")
        console.next_commands("genflow prepare digits", "genflow prepare ~/my_pictures --size 32")
        return
    rows = []
    for dataset in datasets:
        facts = dataset.meta.get("facts", {})
        shape = "×".join(str(n) for n in facts.get("shape", ()))
        made = console.date(dataset.manifest.get("created", 0))
        rows.append((dataset.id, dataset.name, f"{sum(facts.get('splits', {}).values()):,}", shape, made))
    print(console.table(("dataset", "name", "rows", "C×H×W", "made"), rows, left=2))


@app.command()
def show(
    dataset: DataRef,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the preview; default: NAME-preview.png.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Print a dataset's size, shape and classes, and write a preview image."""
    from genflow.data import preview
    from genflow.data.shards import Dataset
    from genflow.storage.files import write_atomically
    from genflow.storage.store import Store

    store = Store()
    opened = Dataset.open(find_named(store, "datasets", dataset))
    document = preview.describe(opened)
    file = write_atomically(out or Path(f"{opened.artifact.name}-preview.png"), preview.preview(opened))
    document["preview"] = str(file.absolute())
    if json:
        console.document(document)
        return
    for key, value in _lines(opened, file, document).items():
        print(f"{key:<12} {value}")
    for warning in document["warnings"]:
        print(f"{'warning':<12} {warning}")
    console.next_commands(f"genflow train flow_matching --data {store.reference(opened.artifact)}")


def _lines(dataset: "Dataset", preview: Path, document: Json) -> dict[str, Any]:
    facts = dataset.facts
    lines = {
        "dataset": dataset.artifact.id,
        "path": dataset.artifact.path,
        "rows": ", ".join(f"{rows:,} {name}" for name, rows in facts.splits.items()),
        "shape": "points in the plane" if facts.is_points else "{} × {} × {} (C × H × W)".format(*facts.shape),
        "levels": facts.levels or "continuous",
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


@app.command()
def rm(dataset: DataRef, yes: Yes = False) -> None:
    """Delete a dataset from the store."""
    remove("datasets", dataset, yes)
