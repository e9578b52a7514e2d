"""`genflow sample`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.dispatch import Document, find_run
from genflow.cli.options import AsJson, RunRef, Sets, complete_run
from genflow.errors import SetupError, UsageError

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.sampling.engine import Engine, SampleBatch
    from genflow.sampling.interpolation import EndImages
    from genflow.storage.store import Artifact, Store

FEW = 64  # samples, if nobody says how many


def sample(
    run: RunRef = "",
    n: Annotated[int | None, typer.Option("-n", min=1, max=1_000_000, help="How many; 64 if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first sample; the next has seed + 1.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    sampler: Annotated[str, typer.Option(help="ddim, euler, midpoint, heun, ab2 ...")] = "",
    label: Annotated[str, typer.Option(help="A class by name or number; `all` for each in turn; `none`.")] = "all",
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="grid.png, folder/, x.npy, x.parquet.")] = Path("grid.png"),
    sets: Sets = [],
    guide: Annotated[
        str, typer.Option(help="A weaker run that guidance leads away from.", autocompletion=complete_run)
    ] = "",
    interpolate: Annotated[
        bool,
        typer.Option(
            "--interpolate",
            help="Walk from one picture to another, 8 pictures a row: -n 64 is 8 rows, -n 5 one shorter row. A family "
            "with an encoder walks between held-out pictures, which are shown at both ends; any other between seeds.",
        ),
    ] = False,
    between: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Interpolate between two pictures of your own: one row of -n pictures, or 8."),
    ] = None,
    endpoint: Annotated[str, typer.Option(metavar="URL", help="Ask a served model; RUN is its name there.")] = "",
    json: AsJson = False,
) -> None:
    """Draw samples from a run, or with --endpoint from a served model."""
    if not run and not endpoint:
        raise UsageError("name a run to draw from", "genflow runs ls, or --endpoint http://127.0.0.1:8000")
    from genflow.data import preview
    from genflow.sampling import files
    from genflow.sampling.engine import Engine, labels_for
    from genflow.storage.store import Store

    files.form_of(out)
    options, weights = _settings({"steps": steps, "sampler": sampler or None, "guidance": guidance}, sets)
    run = f"{endpoint.rstrip('/')}/v1/models/{run}" if endpoint else run
    if run.startswith(("http://", "https://")):
        if interpolate or between or guide or weights != "ema":
            raise UsageError("a served model is asked for samples alone", "leave out --interpolate, --guide, weights")
        _from_endpoint(run, FEW if n is None else n, seed, options, label, out, json)
        return
    store = Store()
    found = find_run(store, run)
    engine = Engine.load(found, average=weights == "ema")
    if guide and (interpolate or between):
        raise UsageError("--guide has no say in --interpolate", "leave it out")
    if guide:
        engine.family.guided_by(Engine.load(find_run(store, guide)).family)
    about: Document = {}
    if interpolate or between:
        drawn, index, about = _interpolate(store, found, engine, n, seed, options, label, between)
        columns: int | None = about["interpolate"]["columns"]
    else:
        n = FEW if n is None else n
        drawn = engine.draw(range(seed, seed + n), labels_for(label, n, engine.facts), **options)
        index = {"seed": list(range(seed, seed + n))}
        columns = preview.columns(engine.facts)
    files.write(out, drawn.images, drawn.labels, index, engine.facts, columns)
    document = {
        "schema": "genflow.sample/1", "run": found.id, "path": str(out.absolute()), "n": len(drawn.images),
        "seed": seed, "step": engine.step, "options": {**engine.options, **options}, "nfe": drawn.nfe,
        "seconds": round(drawn.seconds, 4), **about,
    }  # fmt: skip
    if json:
        console.document(document)
        return
    _show(document, out)


def _settings(options: dict[str, Any], sets: list[str]) -> tuple[dict[str, Any], str]:
    """The sampler's options that were given, and which weights to draw with.

    Raises:
        UsageError: a key does not belong to sampling, or there are no such weights.
    """
    from genflow.recipe.compose import assignments

    options = {key: value for key, value in options.items() if value is not None}
    given = assignments(sets)
    unknown = sorted(set(given) - {"sample", "weights"})
    if unknown:
        raise UsageError(f"--set {unknown[0]} does not belong to sampling", "use --set sample.KEY=VALUE")
    weights = given.get("weights", "ema")
    if weights not in ("ema", "raw"):
        raise UsageError(f"weights are ema or raw, not {weights!r}", "use --set weights=raw")
    return options | given.get("sample", {}), weights


def _show(document: Document, out: Path) -> None:
    n, seed, nfe = document["n"], document["seed"], document["nfe"]
    print(f"samples  {out}  {n} of {document['run']}")
    if walks := document.get("interpolate"):
        print(f"         {walks['rows']} rows of {walks['columns']}, between {walks['between']}")
        return
    each = 1000 * document["seconds"] / max(n, 1)
    evaluations = f"{nfe} evaluation{'s' if nfe != 1 else ''}"
    print(f"         {evaluations} and {each:.1f} ms each · seeds {seed}..{seed + n - 1}")


def _from_endpoint(
    address: str, n: int, seed: int, options: dict[str, Any], label: str, out: Path, json: bool
) -> None:  # fmt: skip
    """Samples of a served model, `http://host:port` (its first model) or `http://host:port/v1/models/NAME`."""
    from urllib.parse import unquote

    from genflow.client import Client
    from genflow.storage.files import write_atomically

    if out.suffix not in (".png", ".npy"):
        raise UsageError(f"samples of a served model are written as .png or .npy, not {out}", "choose another --out")
    host, _, name = address.partition("/v1/models/")
    client = Client(host)
    model = unquote(name).strip("/") or client.models()[0]["id"]
    answer = client.draw(model, n=n, seed=seed, label=label, format=out.suffix[1:], **options)
    try:
        write_atomically(out, answer.body)
    except OSError as error:
        raise SetupError(f"cannot write {out}: {error.strerror or error}", "choose another --out") from error
    told = {key: answer.headers.get(f"x-genflow-{key}", "") for key in ("checkpoint", "steps", "nfe", "seconds")}
    if json:
        document = {"schema": "genflow.sample/1", "endpoint": host, "model": model, "n": n, "seed": seed, **told}
        console.document({**document, "path": str(out.absolute())})
        return
    print(f"samples  {out}  {n} of {model} at {host}")
    print(f"         {told['checkpoint']}, {told['nfe']} evaluations each · seeds {seed}..{seed + n - 1}")


def _interpolate(
    store: "Store", run: "Artifact", engine: "Engine", n: int | None, seed: int, options: dict[str, Any], label: str,
    between: tuple[Path, Path] | None,
) -> tuple["SampleBatch", dict[str, list[int]], Document]:  # fmt: skip
    """The pictures of --interpolate, each one's row and column, and what the document says of them."""
    from genflow import build
    from genflow.families.base import has_encoder
    from genflow.sampling import interpolation as walks
    from genflow.sampling.engine import labels_for

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
    ends: EndImages | None = None
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
