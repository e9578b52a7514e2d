"""Code shared by commands: send a job and show its progress, show a plan, name the next command."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from genflow.cli import console
from genflow.cli.progress import Progress
from genflow.errors import UsageError
from genflow.specs import DataSpec
from genflow.system.documents import Json

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.cost.estimate import Cost
    from genflow.pipeline.graph import Pipeline
    from genflow.recipe.schema import Recipe
    from genflow.storage.store import Store

OnEvent = Callable[[Json], float | None]


def is_verbose() -> bool:
    """Whether -v was given."""
    return bool(os.environ.get("GENFLOW_VERBOSE"))


def send(
    stage: str, document: Json, store: "Store", cluster: bool, address: str,
    *, json: bool, on_event: OnEvent | None = None, details: bool = True,
) -> Json:  # fmt: skip
    """`run` for a command: if the user detaches with Ctrl-C, the command exits, and prints the job if `json`."""
    done = run(stage, document, store, cluster, address, on_event, details=details, pictures=not json)
    if done.get("schema") == "genflow.job/1":
        if json:
            console.document(done)
        raise SystemExit(0)
    return done


def run(
    stage: str, document: Json, store: "Store", cluster: bool, address: str,
    on_event: OnEvent | None = None, *, details: bool = True, pictures: bool = True,
) -> Json:  # fmt: skip
    """Send a job, show its progress, and return its result; after Ctrl-C on a cluster, a `genflow.job/1` document.

    Args:
        stage: name of the job.
        document: recipe and inputs of the job.
        store: store of this machine.
        cluster: True runs the job on a Ray cluster, False in a child process on this machine.
        address: address of the cluster's dashboard; empty uses RAY_API_SERVER_ADDRESS, RAY_ADDRESS or 127.0.0.1:8265.
        on_event: an additional callback for every event; it may return the seconds that are left.
        details: whether to show the plans and pictures of a pipeline's stages.
        pictures: whether to show pictures in a terminal.
    """
    from genflow.launch import local
    from genflow.pipeline import answers

    with Progress(details=details, pictures=pictures) as progress:

        def handle(event: Json) -> None:
            progress(event)
            left = on_event(event) if on_event else None
            if left is not None:
                progress.remaining(left)

        if not cluster and (known := answers.find(stage, document, store, handle)):
            return known
        progress({"event": "waiting", "stage": stage, "what": "starting PyTorch"})
        if cluster:
            from genflow.launch import remote

            return remote.run_on_cluster(stage, document, store, handle, address=address, verbose=is_verbose())
        done = local.run_local(stage, document, store, handle, verbose=is_verbose())
    answers.record(stage, document, store, done)
    return done


def show_plan(
    recipe: "Recipe | Json", stages: list[tuple[str, str, str]], json: bool, cost: "Cost | None" = None
) -> None:  # fmt: skip
    """Print the complete recipe, the jobs that would run: (job, artifact, state), and what the training costs."""
    from genflow.recipe.files import dump

    if cost:
        from genflow.cli.cost import short
        from genflow.cost.estimate import to_json as cost_document
    document = recipe if isinstance(recipe, dict) else recipe.model_dump(mode="json")
    if json:
        rows = [{"job": job, "artifact": artifact, "state": state} for job, artifact, state in stages]
        own = {"cost": cost_document(cost)} if cost else {}
        console.document({"schema": "genflow.plan/1", "recipe": document, "stages": rows, **own})
        return
    print(dump(document).rstrip())
    for job, artifact, state in stages:
        print(f"# {job} {artifact}: {state}")
    if cost:
        print(f"# cost: {short(cost)}")


def show_stages(pipeline: "Pipeline", json: bool) -> None:
    """Print the plan of a dry run: the state of each stage, as far as it is known before the pipeline runs."""
    from genflow.pipeline.plan import dry_run
    from genflow.storage.store import Store

    rows = dry_run(pipeline, Store())
    if json:
        console.document({"schema": "genflow.plan/1", "pipeline": pipeline.name, "stages": rows})
        return
    table = [(row["stage"], row["job"], ", ".join(row["needs"]), row["artifact"], row["state"]) for row in rows]
    print(console.table(("stage", "job", "needs", "artifact", "state"), table, left=5))


def use_of(run: str, family: str | None, dataset: str | None, command: str = "", texts: str | None = "") -> str:
    """The command that uses a run: `encode` of an autoencoder; else `command`, by default `sample RUN`.

    With `texts`, the embeddings that a run of captions reads, it has a prompt.
    """
    from genflow.families import AUTOENCODERS

    encode = f"encode {dataset or 'DATASET'} --autoencoder {run}"
    sample = f"sample {run} --prompt 'WORDS'" if texts else f"sample {run}"
    return f"genflow {encode if family in AUTOENCODERS else command or sample}"


def budget_of(recipe: "Recipe") -> str:
    """What limits a training, for a plan: `2 CPU minutes`, or `4,000 steps of 32`."""
    train = recipe.train
    budgets = ((train.minutes, "minutes"), (train.cpu_minutes, "CPU minutes"))
    limits = [f"{limit:g} {unit}" for limit, unit in budgets if limit] or [f"{train.steps:,} steps of {train.batch}"]
    return limits[0]


def training_of(dataset: str, facts: Json) -> str:
    """The command that trains on a dataset; of large pictures, on their latents."""
    latents = " --latents auto" if DataSpec.from_json(facts).is_large else ""
    return f"genflow train flow_matching --data {dataset}{latents}"


def make_texts(
    store: "Store", recipe: "Recipe", cluster: bool, address: str, *, dry_run: bool, json: bool
) -> "Recipe | None":
    """The recipe with `data.text` as an id. If it names a text encoder, the captions are embedded first.

    Returns:
        The recipe; None if a dry run has shown that the captions are to be embedded.

    Raises:
        UsageError: there is neither such a text encoder nor such an artifact, or the data has no captions.
    """
    from genflow.commands import texts

    found, to_do = texts.find(store, recipe)
    if to_do is None:
        return found
    if dry_run:
        show_plan(to_do["recipe"], [("encode_text", found.data.text, "to do, then the rest")], json)
        return None
    texts.note_made(send("encode_text", to_do, store, cluster, address, json=json))
    return found


def import_init(store: "Store", recipe: "Recipe", *, dry_run: bool, json: bool) -> "Recipe | None":
    """The recipe with `init` as the id of a run. If it names a folder of Stable Diffusion 3, this becomes a run first.

    Returns:
        The recipe; None if a dry run has shown that the run is to be made.

    Raises:
        UsageError, DataError: the folder is none, is damaged, or does not fit the recipe's data.
    """
    from genflow.commands import starting

    found, missing = starting.find(store, recipe, dry_run=dry_run)
    if missing:
        show_plan(found, [("import", missing, "to do, then the rest")], json)
        return None
    return found


def check_output_path(out: Path | None) -> None:
    """Raise UsageError if --out cannot be written, so that a long job does not fail at its end."""
    if out is None:
        return
    folder = out.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"--out {out}: folder {folder} does not exist", f"mkdir -p {folder}")
    if out.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"--out {out}: this file cannot be written", "choose another file")
