"""`genflow evaluate` and `genflow compare`."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import check_output_path, send, use_of
from genflow.cli.options import Address, AsJson, Device, OnCluster, RunRefs, Samples, Sets
from genflow.system.documents import Json


def evaluate(
    runs: RunRefs,
    samples: Samples = None,
    features: Annotated[str, typer.Option(help="Feature extractor: classifier, random, imagenet, or a file.")] = "",
    device: Device = "",
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    json: AsJson = False,
) -> None:
    """Measure sample quality, likelihood and speed of runs.

    Distances such as fd come with a confidence interval and the floor: the value that held-out data reaches.

    Quality is also measured for several numbers of sampling steps.
    """
    flags = {"evaluate.samples": samples, "evaluate.features": features, "cluster.device": device}
    ids, done = _measure("evaluate", runs, sets, flags, cluster, address, json)
    if json:
        console.document(done)
        return
    show_table(done)
    console.next_commands(_use_of_best(done, ids), "genflow ui", f"genflow compare {' '.join(ids)}")


def compare(
    runs: RunRefs,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also copy report.html to this file.")] = None,
    samples: Samples = None,
    device: Device = "",
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    json: AsJson = False,
) -> None:
    """Measure runs, print a table, and write a self-contained HTML report."""
    check_output_path(out)
    flags = {"evaluate.samples": samples, "cluster.device": device}
    ids, done = _measure("compare", runs, sets, flags, cluster, address, json)
    if out and "path" in done:
        shutil.copyfile(Path(done["path"]) / "report.html", out)
        done["path"] = str(out.absolute())
    if json:
        console.document(done)
        return
    show_table(done)
    print(f"\nreport   {report_file(done)}")
    console.next_commands(_use_of_best(done, ids), "genflow ui")


def _use_of_best(done: Json, ids: list[str]) -> str:
    """The command that uses the best run; autoencoders are the best ones only among themselves."""
    best = done.get("best") or ids[0]
    from genflow.storage.store import Store

    row: Json = next((row for row in done.get("rows", []) if row["run"] == best), {})
    run = Store().get("runs", best)
    return use_of(best, row.get("family"), row.get("dataset"), texts=run.meta.get("texts") if run else "")


def _measure(
    job: str, references: list[str], sets: list[str], flags: dict[str, Any], cluster: bool, address: str, json: bool
) -> tuple[list[str], Json]:
    """Send a job that measures runs; return the ids of the runs and the job's result."""
    from genflow.commands import measure
    from genflow.storage.store import Store

    store = Store()
    document = measure.document(store, references, [], sets, flags)
    return document["inputs"]["runs"], send(job, document, store, cluster, address, json=json)


def show_table(done: Json) -> None:
    """Print the table of a comparison."""
    from genflow.evaluation.report.table import columns, rows

    if cautions := done.get("cautions"):
        print("\n".join(console.wrapped(sentence) for sentence in cautions) + "\n")
    print(console.table(columns(done), rows(done), left=2))


def report_file(done: Json) -> str:
    """Path of the report file of a comparison."""
    path = Path(done["path"])
    return str(path if path.suffix == ".html" else path / "report.html")
