"""What `genflow sample` does."""

import json as jsonlib
from pathlib import Path
from typing import Any

import numpy as np

from genflow import build, terminal
from genflow.commands import find_run
from genflow.data import preview
from genflow.errors import SetupError, UsageError
from genflow.families.base import has_encoder
from genflow.recipe.compose import assignments
from genflow.sampling.engine import Drawn, Engine, labels_for
from genflow.specs import DataSpec
from genflow.storage.files import write_atomically
from genflow.storage.store import Artifact, Store

FEW = 64  # samples, if nobody says how many


def sample(
    reference: str, n: int | None, seed: int, flags: dict[str, Any], label: str, out: Path, sets: list[str], *,
    interpolate: bool = False, between: tuple[Path, Path] | None = None, json: bool,
    guide: str = "",
) -> None:  # fmt: skip
    """`genflow sample`: draw, and write a grid, a folder, an array or a table by the ending of `out`."""
    kind = "folder" if not out.suffix or str(out).endswith("/") else out.suffix
    if kind not in ("folder", ".png", ".npy", ".parquet"):
        raise UsageError(f"cannot write samples as {out.suffix}", "use grid.png, a folder/, samples.npy or .parquet")
    options = {key: value for key, value in flags.items() if value is not None}
    given = assignments(sets)
    unknown = sorted(set(given) - {"sample", "weights"})
    if unknown:
        raise UsageError(f"--set {unknown[0]} does not belong to sampling", "use --set sample.KEY=VALUE")
    options |= given.get("sample", {})
    weights = given.get("weights", "ema")
    if weights not in ("ema", "raw"):
        raise UsageError(f"weights are ema or raw, not {weights!r}", "use --set weights=raw")
    if reference.startswith(("http://", "https://")):
        if interpolate or between or guide or weights != "ema":
            raise UsageError("a served model is asked for samples alone", "leave out --interpolate, --guide, weights")
        _from_endpoint(reference, FEW if n is None else n, seed, options, label, out, kind, json=json)
        return
    store = Store()
    run = find_run(store, reference)
    engine = Engine.load(run, average=weights == "ema")
    if guide and (interpolate or between):
        raise UsageError("--guide has no say in --interpolate", "leave it out")
    if guide:
        engine.family.guided_by(Engine.load(find_run(store, guide)).family)
    about: dict[str, Any] = {}
    if interpolate or between:
        drawn, index, about = _interpolate(store, run, engine, n, seed, options, label, between)
        columns: int | None = about["interpolate"]["columns"]
    else:
        n = FEW if n is None else n
        drawn = engine.draw(range(seed, seed + n), labels_for(label, n, engine.facts), **options)
        index = {"seed": list(range(seed, seed + n))}
        columns = preview.columns(engine.facts)
    _write(out, kind, drawn.images, drawn.labels, index, engine.facts, columns)
    n = len(drawn.images)
    document = {
        "schema": "genflow.sample/1", "run": run.id, "path": str(out.absolute()), "n": n, "seed": seed,
        "step": engine.step, "options": {**engine.options, **options}, "nfe": drawn.nfe,
        "seconds": round(drawn.seconds, 4), **about,
    }  # fmt: skip
    if json:
        terminal.document(document)
        return
    print(f"samples  {out}  {n} of {run.id}")
    if about:
        walks = about["interpolate"]
        print(f"         {walks['rows']} rows of {walks['columns']}, between {walks['between']}")
        return
    each = 1000 * drawn.seconds / max(n, 1)
    evaluations = f"{drawn.nfe} evaluation{'s' if drawn.nfe != 1 else ''}"
    print(f"         {evaluations} and {each:.1f} ms each · seeds {seed}..{seed + n - 1}")


def _from_endpoint(
    address: str, n: int, seed: int, options: dict[str, Any], label: str, out: Path, kind: str, *, json: bool
) -> None:  # fmt: skip
    """Samples of a served model, `http://host:port` (its first model) or `http://host:port/v1/models/NAME`."""
    from urllib.parse import unquote

    from genflow.client import Client

    if kind not in (".png", ".npy"):
        raise UsageError(f"samples of a served model are written as .png or .npy, not {out}", "choose another --out")
    host, _, name = address.partition("/v1/models/")
    client = Client(host)
    model = unquote(name).strip("/") or client.models()[0]["id"]
    answer = client.draw(model, n=n, seed=seed, label=label, format=kind[1:], **options)
    try:
        write_atomically(out, answer.body)
    except OSError as error:
        raise SetupError(f"cannot write {out}: {error.strerror or error}", "choose another --out") from error
    told = {key: answer.headers.get(f"x-genflow-{key}", "") for key in ("checkpoint", "steps", "nfe", "seconds")}
    if json:
        document = {"schema": "genflow.sample/1", "endpoint": host, "model": model, "n": n, "seed": seed, **told}
        terminal.document({**document, "path": str(out.absolute())})
        return
    print(f"samples  {out}  {n} of {model} at {host}")
    print(f"         {told['checkpoint']}, {told['nfe']} evaluations each · seeds {seed}..{seed + n - 1}")


def _interpolate(
    store: Store, run: Artifact, engine: Engine, n: int | None, seed: int, options: dict[str, Any], label: str,
    between: tuple[Path, Path] | None,
) -> tuple[Drawn, dict[str, list[int]], dict[str, Any]]:  # fmt: skip
    """The pictures of --interpolate, each one's row and column, and what the document says of them."""
    from genflow.sampling import interpolation as walks

    facts, family = engine.facts, engine.family
    rows, columns = walks.layout(n, bool(between))
    encodes = has_encoder(type(family))
    if between and not encodes:
        raise UsageError(f"--between: {family.title} has no encoder", "use --interpolate: it walks between two seeds")
    if encodes and options:
        raise UsageError(
            f"{next(iter(options))} has no say in --interpolate: {family.title} decodes codes in one way",
            "leave it out",
        )
    ends: walks.Ends | None = None
    if between:
        labels = None if label == "all" else labels_for(label, rows, facts)
        ends = walks.from_files(between, labels, facts)
    elif encodes:
        ends = walks.held_out(store, run.meta["dataset"], rows, seed, labels_for(label, rows, facts), facts)
    if ends:
        drawn = walks.walk_pictures(engine, ends, columns, seed)
    else:
        chosen = build.sample_options(family, {**engine.options, **options})
        drawn = walks.walk_noise(engine, rows, columns, seed, labels_for(label, rows, facts), chosen)
    index = {"row": [i // columns for i in range(rows * columns)], "column": list(range(columns)) * rows}
    about = {"rows": rows, "columns": columns, "between": "pictures" if ends else "seeds"}
    return drawn, index, {"interpolate": {**about, "ends": ends.names if ends else None}}


def _write(
    out: Path, kind: str, images: np.ndarray, labels: np.ndarray, index: dict[str, list[int]], facts: DataSpec,
    columns: int | None,
) -> None:  # fmt: skip
    """Write the pictures; `index` has the numbers that tell them apart, by name."""
    try:
        if kind == ".png":
            write_atomically(out, preview.render(images, facts, columns))
        elif kind == ".npy":
            write_atomically(out, preview.npy(images, facts))
        elif kind == ".parquet":
            _write_parquet(out, images, labels, index, facts)
        else:
            _write_folder(out, images, labels, index, facts)
    except OSError as error:
        raise SetupError(f"cannot write {out}: {error.strerror or error}", "choose another --out") from error


def _write_folder(
    out: Path, images: np.ndarray, labels: np.ndarray, index: dict[str, list[int]], facts: DataSpec
) -> None:  # fmt: skip
    for i, png in enumerate(preview.pngs(images, facts)):
        name = facts.class_names[labels[i]] if labels[i] < facts.classes else ""
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        numbers = "_".join(f"{what}_{values[i]:06d}" for what, values in index.items())
        write_atomically(out / f"{numbers}{'_' + safe if safe else ''}.png", png)


def _write_parquet(
    out: Path, images: np.ndarray, labels: np.ndarray, index: dict[str, list[int]], facts: DataSpec
) -> None:  # fmt: skip
    import pyarrow as pa
    import pyarrow.parquet as pq

    pngs = preview.pngs(images, facts)
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {what: {"dtype": "int64", "_type": "Value"} for what in index}
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: dict[str, Any] = {
        "image": pa.array([{"bytes": png, "path": None} for png in pngs], picture),
        **{what: pa.array(values, pa.int64()) for what, values in index.items()},
    }
    if facts.classes:
        features["label"] = {"names": list(facts.class_names), "_type": "ClassLabel"}
        columns["label"] = pa.array([int(v) if v < facts.classes else None for v in labels], pa.int64())
    table = pa.table(columns).replace_schema_metadata({"huggingface": jsonlib.dumps({"info": {"features": features}})})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(out, sink.getvalue().to_pybytes())
