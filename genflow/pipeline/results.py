"""The results of the programs in `jobs/`: the documents that `--json` prints.

Each is a `TypedDict`: the type checker knows its keys, and events, Ray tasks and the command pass it on as a JSON
object. The documents of `tune` and `tables` are stored in their artifacts and described where they are written:
`tuning/results.py` and `tables/document.py`.
"""

from typing import Any, NotRequired, TypedDict

from genflow.evaluation.results import Evaluation
from genflow.system.documents import Json


class Made(TypedDict):
    """The keys that the result of every stage has.

    Attributes:
        schema: name and version of the document, such as `genflow.train/1`.
        path: the artifact's folder.
        cached: whether the artifact existed before.
    """

    schema: str
    path: str
    cached: bool


class Prepared(Made):
    """`genflow.prepare/1`.

    Attributes:
        dataset: the dataset's id.
        name: the dataset's name.
        images: the number of rows in all splits.
        bad: the number of unreadable records.
        skipped: the number of skipped files by reason.
        warnings: what a person should know about the data, one sentence each.
        facts: the dataset's `DataSpec`.
        seconds: the duration of the command; absent if the dataset is only looked up.
    """

    dataset: str
    name: str
    images: int
    bad: int
    skipped: dict[str, int]
    warnings: list[str]
    facts: Json
    seconds: NotRequired[float]


class Trained(Made):
    """`genflow.train/1`. A figure is None for a run of a genflow version that did not record it.

    Attributes:
        run: the run's id.
        name: the run's name.
        family, net: the kinds of the family and the net.
        dataset: the dataset's id.
        steps: training steps.
        images: images that the loss has been computed on.
        seconds, cpu_seconds: wall-clock and CPU time of training.
        parameters: the number of parameters of the nets.
        world: the number of workers.
        texts: the id of the text embeddings that it reads; empty or None: it reads labels.
        passes: how often training has seen each row, on average.
        trend: the loss in the last quarter of training, a `training.verdict.Trend`.
        stopped_early: whether training ended before its budget (`train.patience`).
        longer: the command that continues the training.
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
    texts: str | None
    passes: float | None
    trend: Json | None
    stopped_early: bool | None
    longer: str


class PairsWritten(Made):
    """`genflow.reflow/1`.

    Attributes:
        pairs: the id of the pairs.
        count: the number of pairs.
        run: the teacher's id.
        dataset: the id of the teacher's dataset.
        options: the teacher's sampling options.
        seconds: the duration of writing.
    """

    pairs: str
    count: int
    run: str
    dataset: str
    options: Json
    seconds: float


class Encoded(Made):
    """`genflow.encode/1`.

    Attributes:
        latents: the id of the latents.
        name: the name of the latents.
        dataset: the id of the dataset of the pictures.
        autoencoder: the id of the autoencoder's run; for a folder, its name and a hash of its files.
        rows: the number of rows.
        shape: (C, H, W) of the latents of a row.
        flip: whether the second half of the rows is of the mirrored pictures.
        deviation: the standard deviation of each channel.
        warnings: what a person should know about the latents, one sentence each.
        seconds: the duration of encoding.
    """

    latents: str
    name: str
    dataset: str
    autoencoder: str
    rows: int
    shape: list[int]
    flip: bool
    deviation: list[float]
    warnings: list[str]
    seconds: float


class TextEncoded(Made):
    """`genflow.encode_text/1`.

    Attributes:
        texts: the id of the text embeddings.
        name: their name.
        dataset: the id of the dataset of the captions.
        encoder: the name of the text encoder.
        encoder_id: its name and a hash of its files.
        captions: the number of distinct captions.
        spec: the size of a token's vector and of a caption's, and the number of tokens to which captions are padded.
        warnings: what a person should know about the embeddings, one sentence each.
        seconds: the duration of encoding.
    """

    texts: str
    name: str
    dataset: str
    encoder: str
    encoder_id: str
    captions: int
    spec: Json
    warnings: list[str]
    seconds: float


class Evaluated(Made):
    """`genflow.evaluate/1`.

    Attributes:
        runs: the ids of the runs.
        best: the id of the run with the smallest `fd`.
        rows: one evaluation per run, with its id as `evaluation`.
    """

    runs: list[str]
    best: str
    rows: list[Evaluation]


class Compared(Evaluated):
    """`genflow.compare/1`.

    Attributes:
        report: the report's id.
        cautions: what limits the comparison: budgets that differ, and models that are barely trained.
        verdict: the conclusions, as sentences; the cautions come first.
    """

    report: str
    cautions: list[str]
    verdict: list[str]


class PipelineDone(TypedDict):
    """`genflow.run/1`.

    Attributes:
        schema: name and version of the document.
        pipeline: the pipeline's name.
        cached: whether the artifacts of all stages existed before.
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
        name: the name of the application.
        address: its URL from this machine.
        state: `ended`, or `changed` if the models of a running application were replaced.
        models: {name, run} of each model.
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
        nodes: the name and address of each node, and its problems with `requirements`, `store` and `MLflow`.
    """

    schema: str
    nodes: list[dict[str, Any]]
