"""`genflow sample`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.options import AsJson, RunRef, Sets, complete_run
from genflow.commands.references import find_run
from genflow.errors import SetupError, UsageError
from genflow.system.documents import Json

SHOWN = 8  # prompts that are printed


def sample(
    run: RunRef = "",
    n: Annotated[int | None, typer.Option("-n", min=1, max=1_000_000, help="Number of samples; default: 64.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first sample; sample i uses seed + i.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Number of sampling steps.")] = None,
    sampler: Annotated[str, typer.Option(help="Sampler: ddim, euler, midpoint, heun, ab2 ...")] = "",
    label: Annotated[
        str, typer.Option(help="Class name or number; `all`: each class in turn; `none`: no class.")
    ] = "all",
    prompt: Annotated[
        list[str], typer.Option(help="Words for a run of captions; repeatable; --prompts FILE: one on each line.")
    ] = [],
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with a prompt on each line.", hidden=True)
    ] = None,
    negative: Annotated[str, typer.Option(help="Words that guidance leads away from.")] = "",
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1: no guidance.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output: x.png, folder/, x.npy, x.parquet.")] = Path(
        "grid.png"
    ),
    sets: Sets = [],
    guide: Annotated[
        str,
        typer.Option(
            help="Autoguidance: a weaker run for the guided prediction.", autocompletion=complete_run, hidden=True
        ),
    ] = "",
    interpolate: Annotated[
        bool,
        typer.Option(
            "--interpolate",
            help="Draw rows of 8 samples between two ends; -n 64 draws 8 rows, -n 5 one row of 5. A family with an "
            "encoder interpolates between held-out images, which are both ends of a row; other families between seeds. "
            "Two or more --prompt: from each prompt to the next one, with the noise of one seed.",
        ),
    ] = False,
    between: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Interpolate between two image files: one row of -n samples; default: 8."),
    ] = None,
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="Draw from a served model at this address; RUN is the model's name.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", hidden=True)] = "auto",
    json: AsJson = False,
) -> None:
    """Draw samples from a run, or from a served model with --endpoint."""
    if not run and not endpoint:
        raise UsageError("no run given", "genflow runs ls shows the runs; to use a served model, add --endpoint URL")
    from genflow.commands import prompting
    from genflow.data import preview
    from genflow.sampling import files, interpolation
    from genflow.sampling.autoencoders import require_sampler
    from genflow.sampling.engine import Engine, labels_for
    from genflow.storage.store import Store
    from genflow.system import devices

    devices.check(device)
    files.form_of(out)
    options, weights = _settings({"steps": steps, "sampler": sampler or None, "guidance": guidance}, sets)
    asked = prompting.given(prompt, prompts)
    run = f"{endpoint.rstrip('/')}/v1/models/{run}" if endpoint else run
    if run.startswith(("http://", "https://")):
        if interpolate or between or guide or weights != "ema":
            raise UsageError(
                "--interpolate, --between, --guide and --set weights need a local run, not a served model",
                "remove them, or remove --endpoint",
            )
        if asked:
            n = prompting.count(asked, n)
            options["prompt"] = asked[:n]  # the first n, as for a run
        options |= {"negative_prompt": negative} if negative else {}
        _from_endpoint(run, prompting.DEFAULT_COUNT if n is None else n, seed, options, label, out, json)
        return
    store = Store()
    found = find_run(store, run)
    if not (interpolate or between):
        require_sampler(found)
    engine = Engine.load(found, average=weights == "ema", device=devices.choose(device))
    if guide and (interpolate or between):
        raise UsageError("--guide cannot be combined with --interpolate or --between", "remove --guide")
    if guide:
        engine.family.guided_by(Engine.load(find_run(store, guide), device=engine.device).family)
    details: Json = {}
    prompting.check(engine, asked, negative, label, {**engine.options, **options})
    if interpolate or between:
        walk = interpolation.draw(
            store, found, engine, n, seed, options, label, between, prompts=asked, negative=negative
        )
        drawn, index, details = walk.drawn, walk.index, {"interpolate": walk.layout}
        columns: int | None = walk.columns
        if walk.between == "prompts":
            details |= {"prompts": asked, "negative": negative}
    else:
        words, n, columns = prompting.arrange(engine, asked, n)
        columns = columns or preview.columns(engine.facts)
        labels = None if engine.prompts else labels_for(label, n, engine.facts)
        drawn = engine.draw(range(seed, seed + n), labels, prompts=words, negative=negative, **options)
        index = {"seed": list(range(seed, seed + n))}
        if words:
            details = {"prompts": list(dict.fromkeys(words)), "negative": negative}
    files.write(out, drawn.images, drawn.labels, index, engine.facts, columns, drawn.prompts)
    document = {
        "schema": "genflow.sample/1", "run": found.id, "path": str(out.absolute()), "n": len(drawn.images),
        "seed": seed, "step": engine.step, "options": {**engine.options, **options}, "nfe": drawn.nfe,
        "seconds": round(drawn.seconds, 4), **details,
    }  # fmt: skip
    if json:
        console.document(document)
        return
    _show(document, out)


def _settings(options: dict[str, Any], sets: list[str]) -> tuple[dict[str, Any], str]:
    """The sampling options from flags and --set, and the kind of weights: ema or raw.

    Raises:
        UsageError: a key is not a sampling option, or the weights are unknown.
    """
    from genflow.recipe.compose import assignments

    options = {key: value for key, value in options.items() if value is not None}
    given = assignments(sets)
    unknown = sorted(set(given) - {"sample", "weights"})
    if unknown:
        raise UsageError(f"--set {unknown[0]} is not a sampling option", "use --set sample.KEY=VALUE")
    weights = given.get("weights", "ema")
    if weights not in ("ema", "raw"):
        raise UsageError(f"weights must be ema or raw, not {weights!r}", "use --set weights=raw")
    return options | given.get("sample", {}), weights


def _show(document: Json, out: Path) -> None:
    n, seed, nfe = document["n"], document["seed"], document["nfe"]
    print(f"samples  {out}  {n} from {document['run']}")
    if layout := document.get("interpolate"):
        rows = f"{layout['rows']} row{'s' if layout['rows'] != 1 else ''} of {layout['columns']}"
        print(f"         {rows}, between {layout['between']}")
        return
    each = 1000 * document["seconds"] / max(n, 1)
    evaluations = f"{nfe} evaluation{'s' if nfe != 1 else ''}"
    print(f"         {evaluations} and {each:.1f} ms per sample · seeds {seed}..{seed + n - 1}")
    if prompts := document.get("prompts"):
        more = f", and {len(prompts) - SHOWN} more" if len(prompts) > SHOWN else ""
        short = [" ".join(each[:60].split()) + "…" * (len(each) > 60) for each in prompts[:SHOWN]]
        print(f"         prompts: {', '.join(short)}{more}")


def _from_endpoint(
    address: str, n: int, seed: int, options: dict[str, Any], label: str, out: Path, json: bool
) -> None:  # fmt: skip
    """Draw from a served model: `http://host:port` (the first model) or `http://host:port/v1/models/NAME`."""
    from urllib.parse import unquote

    from genflow.client import Client
    from genflow.commands import prompting
    from genflow.storage.files import write_atomically

    if out.suffix not in (".png", ".npy"):
        raise UsageError(
            f"--out {out}: samples of a served model can be written as .png or .npy only", "--out samples.png"
        )
    host, _, name = address.partition("/v1/models/")
    client = Client(host)
    model = unquote(name).strip("/") or client.models()[0]["id"]
    answer = client.draw(model, n=n, seed=seed, label=label, format=out.suffix[1:], **options)
    try:
        write_atomically(out, answer.body)
    except OSError as error:
        raise SetupError(f"cannot write {out}: {error.strerror or error}", "choose another file with --out") from error
    prompting.note_cut(answer.headers.get("x-genflow-cut", ""))
    facts = {key: answer.headers.get(f"x-genflow-{key}", "") for key in ("checkpoint", "steps", "nfe", "seconds")}
    if json:
        document = {"schema": "genflow.sample/1", "endpoint": host, "model": model, "n": n, "seed": seed, **facts}
        console.document({**document, "path": str(out.absolute())})
        return
    print(f"samples  {out}  {n} from {model} at {host}")
    print(f"         {facts['checkpoint']}, {facts['nfe']} evaluations per sample · seeds {seed}..{seed + n - 1}")
