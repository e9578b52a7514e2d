"""The id of a stage's artifact before the artifact exists; the dry run calls these functions.

Each function takes the store and the job's document and returns the artifact's id. `jobs/<stage>.py` declares its
function. Imports are inside the functions, so a dry run of one stage loads only the modules of that stage.
"""

from genflow.pipeline.results import Prepared
from genflow.recipe.schema import parse
from genflow.storage.store import Artifact, Store
from genflow.system.documents import Json


def prepare(store: Store, document: Json) -> str:
    """The dataset's id."""
    from genflow.data import prepare
    from genflow.data.sources.find import find

    data = parse(document["recipe"]).data
    return prepare.identity(find(data), data)[1]


def prepared(store: Store, document: Json) -> Prepared | None:
    """The result of `jobs.prepare` if the dataset exists and has few enough unreadable records, else None."""
    from genflow.data import prepare

    artifact = prepare.find(store, parse(document["recipe"]).data)
    return dataset_result(artifact, cached=True) if artifact else None


def dataset_result(artifact: Artifact, *, cached: bool) -> Prepared:
    """The document that `genflow prepare` prints."""
    facts = artifact.meta["facts"]
    return {
        "schema": "genflow.prepare/1",
        "dataset": artifact.id,
        "name": artifact.name,
        "path": str(artifact.path),
        "cached": cached,
        "images": sum(facts["splits"].values()),
        "bad": artifact.meta["bad"],
        "skipped": artifact.meta["skipped"],
        "warnings": artifact.meta.get("warnings", []),  # datasets of an earlier version have none
        "facts": facts,
    }


def train(store: Store, document: Json) -> str:
    """The run's id."""
    import genflow.runs as runs

    return runs.plan(store, parse(document["recipe"])).id


def train_ended(store: Store, document: Json) -> Json | None:
    """The error {message, hint, code, kind} of a run that diverged and has not finished since; else None."""
    import genflow.runs as runs

    return runs.divergence(store, runs.plan(store, parse(document["recipe"])))


def reflow(store: Store, document: Json) -> str:
    """The id of a teacher's pairs."""
    from genflow.sampling import reflow

    return reflow.plan(store, document["inputs"]["run"], parse(document["recipe"])).id


def encode(store: Store, document: Json) -> str:
    """The id of the latents."""
    from genflow.sampling import encode

    return encode.plan(store, document["inputs"]["autoencoder"], parse(document["recipe"])).id


def encode_text(store: Store, document: Json) -> str:
    """The id of a dataset's text embeddings."""
    from genflow.sampling import encode_text

    return encode_text.plan(store, parse(document["recipe"])).id


def evaluate(store: Store, document: Json) -> str:
    """The evaluation's id; empty for several runs, because each has its own evaluation."""
    from genflow.evaluation import evaluate

    if len(document["inputs"]["runs"]) > 1:
        return ""
    recipe, run = parse(document["recipe"]), store.find("runs", document["inputs"]["runs"][0])
    data = store.find("datasets", run.meta["dataset"])
    return evaluate.evaluation_id(run, data, recipe.evaluate, recipe.sample)
