"""Where a stage's artifact will be, before it is made: what the dry run asks.

Each function takes the store and the job's document and returns the artifact's id. `jobs/<stage>.py` declares which one
is its own. Imports stand inside the functions: a dry run of one stage loads what that stage needs.
"""

from genflow.recipe.schema import parse
from genflow.storage.store import Store
from genflow.system.documents import Json


def prepare(store: Store, document: Json) -> str:
    """The dataset's id."""
    from genflow.data import prepare
    from genflow.data.sources.find import find

    data = parse(document["recipe"]).data
    return prepare.identity(find(data), data)[1]


def train(store: Store, document: Json) -> str:
    """The run's id."""
    from genflow import runs

    return runs.plan(store, parse(document["recipe"])).id


def train_ended(store: Store, document: Json) -> Json | None:
    """How the run diverged, {message, hint, code, kind}, if it did and was not finished since."""
    from genflow import runs

    return runs.divergence(store, runs.plan(store, parse(document["recipe"])))


def reflow(store: Store, document: Json) -> str:
    """The id of a teacher's pairs."""
    from genflow.sampling import reflow

    return reflow.plan(store, document["inputs"]["run"], parse(document["recipe"])).id


def evaluate(store: Store, document: Json) -> str:
    """The evaluation's id; empty for several runs, which have one each."""
    from genflow.evaluation import evaluate

    if len(document["inputs"]["runs"]) > 1:
        return ""
    recipe, run = parse(document["recipe"]), store.find("runs", document["inputs"]["runs"][0])
    data = store.find("datasets", run.meta["dataset"])
    return evaluate.evaluation_id(run, data, recipe.evaluate, recipe.sample)
