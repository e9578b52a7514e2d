"""What the commands that look into the store do: `genflow runs` and `genflow data`."""

import sys
import time
from pathlib import Path
from typing import Any

from genflow.cli import console
from genflow.cli.dispatch import find_run
from genflow.errors import UsageError
from genflow.recipe.files import read
from genflow.storage.files import write_atomically
from genflow.storage.store import Artifact, Store


def _when(artifact: Artifact) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(artifact.manifest.get("created", 0)))


def list_runs(*, json: bool) -> None:
    """`genflow runs ls`."""
    store = Store()
    finished = store.artifacts("runs")
    ids = {run.id for run in finished}
    broken = [name for name in store.names("runs") if name not in ids]
    if json:
        runs = [{"run": run.id, "name": run.name, "created": run.manifest["created"], **run.meta} for run in finished]
        console.document({"schema": "genflow.runs/1", "runs": runs, "unfinished": broken})
        return
    rows = [
        (run.id, run.meta.get("family", ""), run.meta.get("dataset_name", ""), f"{run.meta.get('steps', 0):,}",
         console.duration(run.meta.get("seconds")), _when(run))
        for run in finished
    ]  # fmt: skip
    rows += [(name, "", "", "", "", "unfinished: train it again to go on") for name in broken]
    if not rows:
        print(f"no runs in {store.url}")
        console.next_commands("genflow quickstart", "genflow train flow_matching --data NAME")
        return
    print(console.table(("run", "family", "data", "steps", "time", "made"), rows, left=3))


def show_run(reference: str, *, json: bool) -> None:
    """`genflow runs show`."""
    store = Store()
    run = find_run(store, reference)
    measured = [e for e in store.artifacts("evaluations") if run.id in e.manifest.get("parents", [])]
    document = {
        "schema": "genflow.run.show/1", "run": run.id, "name": run.name, "path": str(run.path), **run.meta,
        "recipe": read(run.path / "recipe.yaml"), "evaluations": [e.id for e in measured],
    }  # fmt: skip
    if json:
        console.document(document)
        return
    width = max(len(key) for key in run.meta)
    print(f"{'run'.ljust(width)}  {run.id}\n{'path'.ljust(width)}  {run.path}")
    for key, value in run.meta.items():
        print(f"{key.ljust(width)}  {value}")
    for evaluation in measured:
        print(f"{'measured'.ljust(width)}  {evaluation.id}")
    console.next_commands(f"genflow sample {run.id}", f"genflow evaluate {run.id}")


def list_data(*, json: bool) -> None:
    """`genflow data ls`."""
    store = Store()
    datasets = store.artifacts("datasets")
    if json:
        rows: list[Any] = [{"dataset": d.id, "name": d.name, **d.meta.get("facts", {})} for d in datasets]
        console.document({"schema": "genflow.datasets/1", "datasets": rows})
        return
    if not datasets:
        print(f"no datasets in {store.url}")
        console.next_commands("genflow prepare digits", "genflow prepare ~/my_pictures --size 32")
        return
    rows = []
    for dataset in datasets:
        facts = dataset.meta.get("facts", {})
        shape = "×".join(str(n) for n in facts.get("shape", ()))
        rows.append((dataset.id, dataset.name, f"{sum(facts.get('splits', {}).values()):,}", shape, _when(dataset)))
    print(console.table(("dataset", "name", "rows", "C×H×W", "made"), rows, left=2))


def show_data(reference: str, out: Path | None, *, json: bool) -> None:
    """`genflow data show`: facts, and a preview to look at."""
    from genflow.data import preview
    from genflow.data.shards import Dataset

    dataset = Dataset.open(Store().find("datasets", reference))
    document = preview.show(dataset)
    file = write_atomically(out or Path(f"{dataset.artifact.name}-preview.png"), preview.preview(dataset))
    document["preview"] = str(file.absolute())
    if json:
        console.document(document)
        return
    facts = dataset.facts
    splits = ", ".join(f"{rows:,} {name}" for name, rows in facts.splits.items())
    lines = {
        "dataset": dataset.artifact.id,
        "path": dataset.artifact.path,
        "rows": splits,
        "shape": "points of the plane" if facts.is_points else "{} × {} × {} (C × H × W)".format(*facts.shape),
        "levels": facts.levels or "continuous",
        "mean, sigma": f"{facts.mean:.4f}, {facts.sigma_data:.4f}",
        "fingerprint": facts.fingerprint[:16],
        "preview": file,
    }
    if facts.classes:
        counts = facts.class_counts or (0,) * facts.classes
        pairs = [f"{n} {c:,}" for n, c in zip(facts.class_names, counts, strict=False)]
        lines["classes"] = ", ".join(pairs[:20]) + (" …" if len(pairs) > 20 else "")
    for key, value in lines.items():
        print(f"{key:<12} {value}")
    console.next_commands(f"genflow train flow_matching --data {dataset.artifact.name}")


def remove(kind: str, reference: str, yes: bool) -> None:
    """`genflow runs rm` and `genflow data rm`."""
    store = Store()
    artifact = find_run(store, reference) if kind == "runs" else store.find(kind, reference)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{artifact.id} would be deleted", "say --yes")
        if input(f"delete {artifact.id} from {store.url}? [y/N] ").strip().lower() not in ("y", "yes"):
            return
    store.remove(artifact)
    print(f"deleted  {artifact.id}")
