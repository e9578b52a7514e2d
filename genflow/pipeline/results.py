"""What the programs in `jobs/` return: the document that `--json` prints, by the program's name.

Each is a `TypedDict`, so that the type checker knows its keys while it stays the JSON object that events, Ray tasks and
the command carry. The documents of `tune` and `tables` are stored in their artifacts and described where they are
written: `tuning/results.py` and `tables/document.py`.
"""

from typing import Any, NotRequired, TypedDict

from genflow.evaluation.results import Evaluation
from genflow.system.documents import Json


class Made(TypedDict):
    """What every stage's result has.

    Attributes:
        schema: name and version of the document, such as `genflow.train/1`.
        path: the artifact's folder.
        cached: whether it was there already.
    """

    schema: str
    path: str
    cached: bool


class Prepared(Made):
    """`genflow.prepare/1`.

    Attributes:
        dataset: its id.
        name: as people say it.
        images: rows of all splits.
        bad: records that could not be read.
        skipped: files that were left out, by reason.
        facts: the dataset's `DataSpec`.
        seconds: what the command took; absent where the dataset is only looked up.
    """

    dataset: str
    name: str
    images: int
    bad: int
    skipped: dict[str, int]
    facts: Json
    seconds: NotRequired[float]


class Trained(Made):
    """`genflow.train/1`. The figures are None for a run of a version that did not record them.

    Attributes:
        run: its id.
        name: as people say it.
        family, net: their kinds.
        dataset: the id of the data.
        steps: of training.
        images: that the loss has seen.
        seconds, cpu_seconds: of training.
        parameters: of the nets.
        world: workers.
    """

    run: str
    name: str
    family: str | None
    net: str | None
    dataset: str | None
    steps: int | None
    images: int | None
    seconds: float | None
    cpu_seconds: float | None
    parameters: int | None
    world: int | None


class PairsWritten(Made):
    """`genflow.reflow/1`.

    Attributes:
        pairs: their id.
        count: of pairs.
        run: the teacher's id.
        dataset: the id of the teacher's data.
        options: how the teacher sampled.
        seconds: what writing took.
    """

    pairs: str
    count: int
    run: str
    dataset: str
    options: Json
    seconds: float


class Evaluated(Made):
    """`genflow.evaluate/1`.

    Attributes:
        runs: their ids.
        best: the id of the run with the smallest `fd`.
        rows: one evaluation a run, with its id as `evaluation`.
    """

    runs: list[str]
    best: str
    rows: list[Evaluation]


class Compared(Evaluated):
    """`genflow.compare/1`.

    Attributes:
        report: its id.
        verdict: in sentences.
    """

    report: str
    verdict: list[str]


class PipelineDone(TypedDict):
    """`genflow.run/1`.

    Attributes:
        schema: name and version of the document.
        pipeline: its name.
        cached: whether every stage was made already.
        stages: each stage's result, with its name as `stage` and its program as `job`.
    """

    schema: str
    pipeline: str
    cached: bool
    stages: list[Json]


class Served(TypedDict):
    """`genflow.serve/1`.

    Attributes:
        schema: name and version of the document.
        name: of the application.
        address: its URL from this machine.
        state: `ended`, or `changed` where an application that runs was given other models.
        models: {name, run} of each.
        version: a hash of the models.
    """

    schema: str
    name: str
    address: str
    state: str
    models: list[dict[str, str]]
    version: str


class Probed(TypedDict):
    """`genflow.probe/1`.

    Attributes:
        schema: name and version of the document.
        nodes: of each its name and address, and what is wrong with `requirements`, `store` and `MLflow`.
    """

    schema: str
    nodes: list[dict[str, Any]]
