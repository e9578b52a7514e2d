"""`genflow evaluate` and `genflow compare`."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import check_output_path, send, use_of
from genflow.cli.options import Address, AsJson, Device, OnCluster, RunRefs, Samples, Sets
from genflow.errors import UsageError
from genflow.system.documents import Json

PAGE, POSTER = "report.html", "poster.png"
FORMS = {"": PAGE, ".html": PAGE, ".htm": PAGE, ".png": POSTER}  # the file to copy for each suffix of --out
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Also copy the page (.html), or its first screen (.png).")
]


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
    out: Out = None,
    samples: Samples = None,
    device: Device = "",
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    json: AsJson = False,
) -> None:
    """Measure runs, print a table, and write a self-contained HTML report; --out poster.png draws its first screen."""
    check_report_path(out)
    flags = {"evaluate.samples": samples, "cluster.device": device}
    ids, done = _measure("compare", runs, sets, flags, cluster, address, json)
    copy_report(done, out)
    if json:
        console.document(done)
        return
    show_table(done)
    show_report(done, out)
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
    document = measure.document(store, references, [], sets, flags, job)
    return document["inputs"]["runs"], send(job, document, store, cluster, address, json=json)


def show_table(done: Json) -> None:
    """Print the table of a comparison."""
    from genflow.evaluation.report.table import columns, rows

    if cautions := done.get("cautions"):
        print("\n".join(console.wrapped(sentence) for sentence in cautions) + "\n")
    print(console.table(columns(done), rows(done), left=2))


def check_report_path(out: Path | None) -> None:
    """Raise UsageError if --out cannot be written, or is neither a page nor a poster."""
    check_output_path(out)
    if out and out.suffix not in FORMS:
        cure = f"--out {out.with_suffix('.png')}, or --out {out.with_suffix('.html')}"
        raise UsageError(f"--out {out}: a report is written as .html, and its first screen as .png", cure)


def copy_report(done: Json, out: Path | None) -> None:
    """Copy the page or the poster of a comparison to --out; the result's `path` is then that of the copied page."""
    if not out or "path" not in done:
        return
    form = FORMS[out.suffix]
    shutil.copyfile(Path(done["path"]) / form, out)
    if form == PAGE:
        done["path"] = str(out.absolute())
    else:
        done["poster"] = str(out.absolute())


def show_report(done: Json, out: Path | None) -> None:
    """Print where the page is, and the poster if there is one."""
    print(f"\nreport   {report_file(done)}")
    if out and "poster" in done:
        print(f"poster   {out}")


def report_file(done: Json) -> str:
    """Path of the page of a comparison."""
    path = Path(done["path"])
    return str(path if path.suffix in (".html", ".htm") else path / PAGE)
