"""The command line: one command a verb. Everything heavy is imported inside a command, so that help is instant.

Results go to standard output, progress and errors to standard error; see `terminal` and `errors` for the
contract on JSON and exit codes.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from genflow import __version__
from genflow.data import sources
from genflow.errors import GenflowError, UsageError

app = typer.Typer(
    name="genflow",
    help="Train, compare, sample and serve families of image generators on your own images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="-v anywhere shows the traceback of an error. GENFLOW_STORE is where artifacts lie (default: .genflow).",
)
runs_app = typer.Typer(help="The runs in the store.", no_args_is_help=True)
data_app = typer.Typer(help="The datasets in the store.", no_args_is_help=True)
jobs_app = typer.Typer(help="Jobs on a cluster.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")
app.add_typer(data_app, name="data")
app.add_typer(jobs_app, name="jobs")
endpoints_app = typer.Typer(help="What is being served.", no_args_is_help=True)
app.add_typer(endpoints_app, name="endpoints")
cluster_app = typer.Typer(help="A cluster's machines: bring them up and down, and look at them.", no_args_is_help=True)
app.add_typer(cluster_app, name="cluster")


def _complete_family(incomplete: str) -> list[str]:
    from genflow.commands import families

    return [name for name in families() if name.startswith(incomplete)]


def _complete(kind: str, incomplete: str) -> list[str]:
    from genflow.storage.store import Store

    artifacts = Store().artifacts(kind)
    names = [a.name for a in artifacts] + [a.id for a in artifacts]
    return sorted({name for name in names if name.startswith(incomplete)})


def _complete_run(incomplete: str) -> list[str]:
    return _complete("runs", incomplete)


def _complete_data(incomplete: str) -> list[str]:
    return _complete("datasets", incomplete)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Sets = Annotated[list[str], typer.Option("--set", "-s", metavar="KEY=VALUE", help="Set any key of the recipe.")]
Config = Annotated[list[Path], typer.Option("--config", "-c", metavar="FILE", help="A recipe file; repeatable.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and stop.")]
OnCluster = Annotated[bool, typer.Option("--cluster/--local", help="Run on a Ray cluster, or on this machine.")]
Address = Annotated[str, typer.Option(help="The cluster's dashboard, such as http://127.0.0.1:8265.")]
Data = Annotated[str, typer.Option(help="The dataset.", autocompletion=_complete_data)]
Init = Annotated[str, typer.Option(help="A run to start from, or to learn from.", autocompletion=_complete_run)]
RunRef = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's id, prefix, name, `latest`, best:fd, or models:/NAME@ALIAS.",
        autocompletion=_complete_run,
    ),
]
RunRefs = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Runs of one dataset.", autocompletion=_complete_run)
]
DataRef = Annotated[
    str, typer.Argument(help="A dataset's id, prefix, name, or `latest`.", autocompletion=_complete_data)
]


def main() -> None:
    """The `genflow` program."""
    from genflow import terminal

    verbose = _take_verbose()
    command = typer.main.get_command(app)
    try:
        code = command.main(args=sys.argv[1:], prog_name="genflow", standalone_mode=False)
    except GenflowError as error:
        code = terminal.fail(error, verbose)
    except (KeyboardInterrupt, EOFError):
        terminal.note("interrupted")
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        if hasattr(error, "format_message"):  # Typer's own, of a wrong flag or argument
            sys.exit(_misused(error, verbose))
        first = str(error).strip().splitlines()
        wrapped = GenflowError(
            f"{type(error).__name__}: {first[0] if first else 'no message'}", "run it again with -v for the traceback"
        )
        wrapped.__cause__ = error
        code = terminal.fail(wrapped, verbose)
    sys.exit(code or 0)


def _misused(error: Any, verbose: bool) -> int:
    """A wrong flag or argument, in one line; a command without any shows its help."""
    from genflow import terminal

    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(context.get_help())
        return 2
    path = context.command_path if context else "genflow"
    text = str(error.format_message()).rstrip(".")
    return terminal.fail(UsageError(text[:1].lower() + text[1:], f"{path} --help"), verbose)


def _take_verbose() -> bool:
    """-v and --verbose may stand anywhere."""
    flags = [a for a in sys.argv[1:] if a in ("-v", "--verbose")]
    sys.argv[1:] = [a for a in sys.argv[1:] if a not in flags]
    if flags:
        os.environ["GENFLOW_VERBOSE"] = "1"  # the job that a command sends shall know it, too
    return bool(os.environ.get("GENFLOW_VERBOSE"))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(f"genflow {__version__}")
        raise typer.Exit


@app.command()
def quickstart(json: Json = False, dry_run: DryRun = False) -> None:
    """Prepare digits, train a VAE, a DDPM and flow matching, compare them, and write report.html."""
    from genflow import commands

    commands.run_pipeline("quickstart", [], dry_run=dry_run, json=json)


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help=f"{sources.described()}.")],
    name: Annotated[str, typer.Option(help="What to call the dataset.")] = "",
    size: Annotated[int | None, typer.Option(help="Side of the pictures in pixels.")] = None,
    channels: Annotated[str, typer.Option(help="auto, 1 or 3.")] = "auto",
    val: Annotated[float | None, typer.Option(help="Share held out for measuring.")] = None,
    max_bad: Annotated[int | None, typer.Option(help="Unreadable pictures to tolerate.")] = None,
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Turn pictures into a dataset of Arrow shards."""
    from genflow import commands

    flags: dict[str, Any] = {"name": name, "size": size, "channels": channels, "val": val, "max_bad": max_bad}
    commands.prepare(source, flags, sets, commands.Where(cluster, address), dry_run=dry_run, json=json)


@app.command()
def train(
    family: Annotated[
        str, typer.Argument(help="vae, ddpm, flow_matching ...; left out: FILE's.", autocompletion=_complete_family)
    ] = "",
    data: Data = "",
    config: Config = [],
    sets: Sets = [],
    name: Annotated[str, typer.Option(help="What to call the run.")] = "",
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Wall-clock budget.")] = None,
    init: Init = "",
    workers: Annotated[int | None, typer.Option(help="Workers; they change no result.")] = None,
    cluster: OnCluster = False,
    address: Address = "",
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Go on where it broke off, or start anew.")] = True,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train a family on a dataset. The same command again goes on where it was broken off."""
    from genflow import commands

    flags: dict[str, Any] = {"name": name, "data.name": data, "train.steps": steps, "train.minutes": minutes}
    flags |= {"cluster.workers": workers, "init": init}
    where = commands.Where(cluster, address)
    commands.train(family, config, sets, flags, where, fresh=not resume, dry_run=dry_run, json=json)


@app.command()
def tune(
    family: Annotated[str, typer.Argument(help="vae, ddpm, flow_matching ...", autocompletion=_complete_family)],
    data: Data = "",
    param: Annotated[
        list[str],
        typer.Option(
            "--param", "-p", metavar="KEY=SPACE",
            help="log:LO:HI, uniform:LO:HI, int:LO:HI or choice:A,B; repeatable. Left out: the family's own space.",
        ),
    ] = [],
    trials: Annotated[int | None, typer.Option(help="Trials at the most.")] = None,
    budget: Annotated[float | None, typer.Option(help="Minutes for all of them.")] = None,
    metric: Annotated[list[str], typer.Option(help="fd, kid, bits_per_dim, ms ...; two give a Pareto front.")] = [],
    init: Init = "",
    config: Config = [],
    sets: Sets = [],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Copy best.yaml here.")] = None,
    objective: Annotated[str, typer.Option(help="FILE.py:FUNCTION to ask instead of training.", hidden=True)] = "",
    cluster: OnCluster = False,
    address: Address = "",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Search for better settings, and prove them. The same command again goes on where it was broken off.

    --set tune.KEY=VALUE: a trial's steps, searcher, scheduler, target; --set cluster.workers: how many at once.
    """
    from genflow import commands, searching

    flags: dict[str, Any] = {"data.name": data, "init": init, "tune.metric": metric or None}
    flags |= {"tune.trials": trials, "tune.minutes": budget}
    where = commands.Where(cluster, address)
    searching.tune(
        family, config, param, sets, flags, where, objective=objective, out=out, dry_run=dry_run, json=json
    )


@app.command()
def reflow(
    run: RunRef,
    pairs: Annotated[int | None, typer.Option(help="How many pairs.")] = None,
    sampler: Annotated[str, typer.Option(help="How the teacher draws: euler, midpoint, heun, ab2 ...")] = "",
    steps: Annotated[int | None, typer.Option(help="Its sampling steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Its guidance scale; 1 is none.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of noises and labels.")] = None,
    workers: Annotated[int | None, typer.Option(help="Teachers at work at once.")] = None,
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Let a trained run write pairs of noise and samples, from which a straighter one learns."""
    from genflow import commands

    flags: dict[str, Any] = {"reflow.pairs": pairs, "reflow.seed": seed, "cluster.workers": workers}
    flags |= {"sample.sampler": sampler, "sample.steps": steps, "sample.guidance": guidance}
    where = commands.Where(cluster, address)
    commands.reflow(run, sets, flags, where, dry_run=dry_run, json=json)


@app.command()
def evaluate(
    runs: RunRefs,
    samples: Annotated[int | None, typer.Option(help="Samples to measure on.")] = None,
    features: Annotated[str, typer.Option(help="classifier, random, or a module by path.")] = "",
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    json: Json = False,
) -> None:
    """Measure runs: distances with intervals and floors, likelihood, speed, quality against steps."""
    from genflow import commands

    flags = {"evaluate.samples": samples, "evaluate.features": features or None}
    commands.evaluate("evaluate", runs, sets, flags, commands.Where(cluster, address), json=json)


@app.command()
def compare(
    runs: RunRefs,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Copy report.html here.")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples to measure on.")] = None,
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    json: Json = False,
) -> None:
    """Compare runs by measurement: a table here, and one self-contained HTML file."""
    from genflow import commands

    flags = {"evaluate.samples": samples}
    commands.evaluate("compare", runs, sets, flags, commands.Where(cluster, address), json=json, out=out)


@app.command()
def tables(
    data: Annotated[str, typer.Option(help="The dataset; digits is prepared.", autocompletion=_complete_data)],
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="Trainings of every family; 3 if left out.")] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="CPU minutes of each training; 0.12 if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Copy the report (.html) or .md, .json here.")] = None,
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Measure the two tables that the field quotes from memory: every family, a few seeds, one budget, your data."""
    from genflow import commands, tabulating

    if budget is not None and budget <= 0:
        raise UsageError(f"--budget is CPU minutes above 0, not {budget:g}", "genflow tables --data NAME --budget 1")
    where = commands.Where(cluster, address)
    tabulating.tables(data, seeds, budget, sets, where, out=out, dry_run=dry_run, json=json)


@app.command()
def recommend(
    max_latency: Annotated[str, typer.Option(metavar="TIME", help="One sample alone takes at most this: 50ms.")] = "",
    min_quality: Annotated[
        str, typer.Option(metavar="FD", help="The largest fd that is good enough: 2.5, or 3x the floor.")
    ] = "",
    data: Annotated[str, typer.Option(help="The dataset; else the newest.", autocompletion=_complete_data)] = "",
    json: Json = False,
) -> None:
    """Say which run, sampler and steps to deploy, from everything that was measured, with the serve command."""
    from genflow import recommending

    recommending.recommend(data, max_latency, min_quality, json=json)


@app.command()
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
        str, typer.Option(help="A weaker run that guidance leads away from.", autocompletion=_complete_run)
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
    json: Json = False,
) -> None:
    """Draw samples from a run, or with --endpoint from a served model."""
    from genflow import drawing

    if not run and not endpoint:
        raise UsageError("name a run to draw from", "genflow runs ls, or --endpoint http://127.0.0.1:8000")
    run = f"{endpoint.rstrip('/')}/v1/models/{run}" if endpoint else run
    options = {"steps": steps, "sampler": sampler or None, "guidance": guidance}
    walk: Any = {"interpolate": interpolate, "between": between}
    drawing.sample(run, n, seed, options, label, out, sets, **walk, guide=guide, json=json)


@app.command()
def export(
    run: RunRef,
    to: Annotated[str, typer.Option(help="safetensors, diffusers or torch_export.")] = "safetensors",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to write.")] = None,
    json: Json = False,
) -> None:
    """Write a run for other tools."""
    from genflow import exporting

    exporting.export(run, to, out, json=json)


@app.command()
def serve(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Models.", autocompletion=_complete_run)],
    name: Annotated[str, typer.Option(help="What to call the endpoint; by default as its first model.")] = "",
    host: Annotated[str, typer.Option(help="Where to listen; any but the loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, max=1000, help="Processes that draw.")] = 1,
    most: Annotated[int, typer.Option("--max-replicas", min=0, help="Grow to so many under load.")] = 0,
    memory: Annotated[int, typer.Option(min=1, help="MB of models that a replica keeps loaded.")] = 2048,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make an API key, show it once, and ask for it.")] = False,
    config_out: Annotated[Path | None, typer.Option(help="Write serve.yaml for `serve deploy`, and stop.")] = None,
    cluster: OnCluster = False,
    address: Address = "",
    json: Json = False,
) -> None:
    """Serve models on Ray Serve, with a playground, until Ctrl-C. Of a name that is served: change its models."""
    from genflow import commands, hosting

    where = commands.Where(cluster, address)
    hosting.serve(runs, name, host, port, (replicas, most), memory, new_key, config_out, where, json=json)


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="A file, or the name of one in pipelines/.")],
    sets: Sets = [],
    cluster: OnCluster = False,
    address: Address = "",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Run a pipeline: only what is missing, side by side."""
    from genflow import commands

    commands.run_pipeline(pipeline, sets, commands.Where(cluster, address), dry_run=dry_run, json=json)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 5000,
    open_browser: Annotated[bool, typer.Option("--open", help="Open a browser.")] = False,
) -> None:
    """Open MLflow on the loopback, and say where the Ray dashboard is."""
    from genflow import commands

    commands.ui(port, open_browser)


@app.command()
def families(
    json: Json = False,
    into: Annotated[Path | None, typer.Option(help="Renew the table in this Markdown file.", hidden=True)] = None,
) -> None:
    """List the families: objective, evaluations, likelihood, codes."""
    from genflow import catalogue

    catalogue.show(json=json, into=into)


@app.command()
def doctor(cluster: OnCluster = False, address: Address = "", json: Json = False) -> None:
    """Check this machine (and a cluster), with the cure for what is wrong."""
    from genflow import doctor as checks

    checks.run(cluster=cluster, address=address, json=json)


@app.command()
def promote(
    run: RunRef,
    alias: Annotated[str, typer.Option(help="Which alias its model gets in MLflow.")] = "champion",
    name: Annotated[str, typer.Option(help="Of the model; by default the run's.")] = "",
    json: Json = False,
) -> None:
    """Give a run's model an alias in MLflow, by which it can be served: models:/NAME@ALIAS."""
    from genflow import hosting

    hosting.promote(run, name, alias, json=json)


@runs_app.command("ls")
def runs_ls(json: Json = False) -> None:
    """List the runs."""
    from genflow import listing

    listing.list_runs(json=json)


@runs_app.command("show")
def runs_show(run: RunRef, json: Json = False) -> None:
    """Show a run: what it is, where it lies, what was measured."""
    from genflow import listing

    listing.show_run(run, json=json)


@runs_app.command("rm")
def runs_rm(run: RunRef, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete a run."""
    from genflow import listing

    listing.remove("runs", run, yes)


@data_app.command("ls")
def data_ls(json: Json = False) -> None:
    """List the datasets."""
    from genflow import listing

    listing.list_data(json=json)


@data_app.command("show")
def data_show(
    dataset: DataRef,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The preview's file.")] = None,
    json: Json = False,
) -> None:
    """Print a dataset's facts and write a preview."""
    from genflow import listing

    listing.show_data(dataset, out, json=json)


@data_app.command("rm")
def data_rm(
    dataset: DataRef,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a dataset."""
    from genflow import listing

    listing.remove("datasets", dataset, yes)


@jobs_app.command("ls")
def jobs_ls(address: Address = "", json: Json = False) -> None:
    """List a cluster's genflow jobs."""
    from genflow import commands

    commands.list_jobs(address, json=json)


@jobs_app.command("logs")
def jobs_logs(
    job: Annotated[str, typer.Argument(help="The job's id.")],
    address: Address = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job ends.")] = False,
) -> None:
    """Print a job's log."""
    from genflow import commands

    commands.job_logs(job, address, follow)


@jobs_app.command("attach")
def jobs_attach(
    job: Annotated[str, typer.Argument(help="The job's id, a prefix, or `latest`.")],
    address: Address = "",
    json: Json = False,
) -> None:
    """Follow a job again."""
    from genflow import commands

    commands.attach(job, address, json=json)


@jobs_app.command("stop")
def jobs_stop(job: Annotated[str, typer.Argument(help="The job's id.")], address: Address = "") -> None:
    """Stop a job; its run can go on later."""
    from genflow import commands

    commands.stop_job(job, address)


@endpoints_app.command("ls")
def endpoints_ls(json: Json = False) -> None:
    """List what is being served, and whether it answers."""
    from genflow import hosting

    hosting.list_endpoints(json=json)


@endpoints_app.command("down")
def endpoints_down(name: Annotated[str, typer.Argument(help="The endpoint's name.")]) -> None:
    """End an endpoint; what is under way is answered first."""
    from genflow import hosting

    hosting.take_down(name)


ClusterFile = Annotated[str, typer.Argument(metavar="[FILE]", help="The cluster's file; cluster.yaml if left out.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@cluster_app.command("validate")
def cluster_validate(file: ClusterFile = "", json: Json = False) -> None:
    """Check a cluster's file, or a manifest of KubeRay's, without asking any machine."""
    from genflow import clusters

    clusters.validate(file, json=json)


@cluster_app.command("up")
def cluster_up(file: ClusterFile = "", yes: Yes = False) -> None:
    """Bring a cluster up by Ray's launcher, with token authentication."""
    from genflow import clusters

    clusters.up(file, yes=yes)


@cluster_app.command("status")
def cluster_status(file: ClusterFile = "", address: Address = "", json: Json = False) -> None:
    """Show a cluster's nodes, their resources, and the versions there."""
    from genflow import clusters

    clusters.status(file, address, json=json)


@cluster_app.command("dashboard")
def cluster_dashboard(
    file: ClusterFile = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine; 0 takes a free one.")] = 8265,
) -> None:
    """Open a tunnel to a cluster's dashboard, until Ctrl-C."""
    from genflow import clusters

    clusters.dashboard(file, port)


@cluster_app.command("down")
def cluster_down(file: ClusterFile = "", yes: Yes = False) -> None:
    """Take a cluster down."""
    from genflow import clusters

    clusters.down(file, yes=yes)


if __name__ == "__main__":
    main()
