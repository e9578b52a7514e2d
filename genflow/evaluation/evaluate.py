"""Measure one run: quality, variety, likelihood and speed, as one JSON document with pictures of samples.

    metrics       fd, kid, precision, recall, density, coverage, agreement, r_precision: {value, low, high, n, features,
                  floor}
    likelihood    {value, low, high, unit, kind, method, stderr, nfe, n, bars}; null without one or with guidance
    straightness  {value, low, high, n}: 0 for straight paths; null for families that integrate no ODE
    memorization  nearest, copies: metrics of the distance to training pictures; null for points
    modes         captured modes of a density in the plane or of stacks; null for other data
    classes       the share of each class among samples and in real data, by a classifier; null without classes
    sweep         quality against steps for one checkpoint: [{steps, sampler, nfe, fd, ms_per_image, ms_alone, own}],
                  one entry per number of evaluations: that of the best tried sampler (see `sweep`)
    guidance      the same against guidance, with r_precision, for runs of captions; null for others
    prompts       the captions of the pictures in grid.png, nearest.png and prompts.png; null for other runs
    speed         ms_batch_1, ms_batch_64, images_per_second, memory_mb while sampling, and the load of the machine

Every run is sampled from the same noise. The floor of a metric is its value for as many real training rows against the
same reference: the value of a perfect model. Sections and metrics are declared by the files in `metrics/`.
See docs/decisions/0006-metrics-with-intervals-and-floors.md.
"""

import json
import os
import platform
import time
from collections.abc import Sequence
from typing import Any, cast

import torch

from genflow import __version__, build
from genflow.data.shard_format import FACTS
from genflow.data.shards import Dataset
from genflow.evaluation import metrics, prompt_pictures, samples, sweep
from genflow.evaluation.features import ASKED, clip
from genflow.evaluation.features.extractor import Embed, Emit, address, load_features
from genflow.evaluation.headline import headline
from genflow.evaluation.metric_suite import MetricSuite
from genflow.evaluation.metrics.base import Metric, Samples
from genflow.evaluation.progress import BOUND, ESTIMATE, Progress
from genflow.evaluation.results import Evaluation, Identity, floors, headlines
from genflow.evaluation.sample_grids import render_all
from genflow.evaluation.samples import DrawnFeatures, Executor, Share, draw_features
from genflow.recipe.files import read
from genflow.recipe.schema import Evaluate, parse
from genflow.sampling.engine import AUTOENCODER, RECIPE, Engine
from genflow.specs import DataSpec
from genflow.storage.store import Artifact, Store
from genflow.system import devices, environment, source_hash
from genflow.system.source_hash import digest
from genflow.tracking.journal import Journal, journal_path
from genflow.training import checkpoint_folders

SCHEMA = "genflow.evaluate/1"
MIN_REFERENCE_ROWS = 100  # with fewer reference rows, a warning is emitted
TRAINING = ("steps", "images", "seconds", "cpu_seconds", "memory_mb", "parameters")  # copied from the manifest
_worker_tools: dict[tuple[str, ...], tuple[Engine, Embed]] = {}  # on a worker: those of its latest evaluation


def evaluation_id(
    run: Artifact, dataset: Artifact, options: Evaluate, sample: dict[str, Any] | None = None
) -> str:
    """The content address of an evaluation: a hash of the run, the data, the options, the features and the code."""
    facts = DataSpec.from_json(dataset.file(FACTS).read_text(encoding="utf-8"))
    settings = options.model_dump(mode="json", exclude={"features", "clip"})
    settings |= {"clip": clip.folder_id(options.clip)} if options.clip else {}
    features = address(dataset, facts, options.features)
    recipe = parse(read(run.file(RECIPE)))
    learned = DataSpec.from_json(run.file(FACTS).read_text(encoding="utf-8"))
    by_name = [*build.source_files(recipe, learned), *metrics.files()]
    if learned.is_latents:
        autoencoder = parse(read(run.file(f"{AUTOENCODER}/{RECIPE}")))
        by_name += build.source_files(autoencoder, facts)
    also = ("genflow/text_encoders",) if learned.text else ()
    code = source_hash.code_of("genflow/evaluation/evaluate.py", *by_name, also=also)
    deciding = [run.id, facts.fingerprint, settings, features, code, *([sample] if sample else [])]
    return f"{run.name}-{digest(deciding)}"


def find(
    store: Store, run: Artifact, dataset: Artifact, options: Evaluate, sample: dict[str, Any] | None = None
) -> Evaluation | None:
    """The document of the finished evaluation; None if there is none.

    Raises:
        DataError: the run's checkpoint, or the evaluation, differs from its manifest.
    """
    checkpoint_folders.of_run(run)
    artifact = store.get("evaluations", evaluation_id(run, dataset, options, sample))
    if artifact is None:
        return None
    document: Evaluation = json.loads(artifact.verify().file("metrics.json").read_text(encoding="utf-8"))
    return {**document, "path": str(artifact.path), "cached": True}


def evaluate(
    store: Store, run: Artifact, dataset: Artifact, options: Evaluate, emit: Emit,
    sample: dict[str, Any] | None = None, executor: Executor | None = None, device: str = "auto",
) -> Evaluation:  # fmt: skip
    """Measure a run, or return its existing evaluation.

    Args:
        store: holds the run; the evaluation is written to it.
        run: a finished run.
        dataset: the dataset that it was trained on.
        options: the recipe's `evaluate` section.
        emit: receives progress events.
        sample: sampling options that override those of the run.
        executor: draws shares on workers (see `samples.draw_features`); only times depend on it.
        device: for `devices.choose`; the executor's workers have the same kind.

    Returns:
        A `genflow.evaluate/1` document.

    Raises:
        UsageError: `options.features`, or an option of `sample`, cannot be used.
        DataError: the dataset or the checkpoint is corrupt, or there is too little data.
    """
    id = evaluation_id(run, dataset, options, sample)
    with store.lock("evaluations", id, uses=[run.id, dataset.id]):
        if found := find(store, run, dataset, options, sample):
            return found
        document, drawn = _measure(store, run, dataset, options, emit, sample or {}, executor, device, id)
        with store.stage("evaluations", id, name=run.name) as staged:
            (staged.path / "metrics.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
            for name, png in drawn.items():
                (staged.path / name).parent.mkdir(exist_ok=True)
                (staged.path / name).write_bytes(png)
            headline = {name: metric["value"] for name, metric in document["metrics"].items()}
            meta = {"run": run.id, "dataset": dataset.id, "features": document["features"]["name"], "metrics": headline}
            artifact = staged.commit(parents=[run.id, dataset.id], meta=meta)
    _journal(store, run, dataset, document, artifact)
    return {**document, "path": str(artifact.path), "cached": False}


def engine_of(store: Store, run: Artifact, data: Dataset, sample: dict[str, Any], device: str = "auto") -> Engine:
    """The engine whose samples are measured; `sample` overrides the run's own sampling options."""
    engine = samples.with_captions(Engine.load(run, device=devices.choose(device)), store)
    engine.options = build.sample_options(engine.family, {**engine.options, **sample})
    return samples.measured(engine, data)


def draw_share(
    store: Store, run: Artifact, dataset: Artifact, features: str, sample: dict[str, Any], share: Share
) -> DrawnFeatures:
    """Draw a share of an evaluation's samples on a worker; the feature extractor must already be in the store."""
    key = (str(store.root), run.id, dataset.id, features, json.dumps(sample, sort_keys=True))
    if key not in _worker_tools:
        _worker_tools.clear()
        data = Dataset.open(dataset)
        embed = load_features(store, data, features, lambda event, **fields: None).embed
        _worker_tools[key] = engine_of(store, run, data, sample), embed
    engine, embed = _worker_tools[key]
    return samples.draw_share(engine, embed, share, lambda count: None)


def _measure(
    store: Store, run: Artifact, dataset: Artifact, options: Evaluate, emit: Emit, sample: dict[str, Any],
    executor: Executor | None, device: str, id: str,
) -> tuple[Evaluation, dict[str, bytes]]:  # fmt: skip
    """The document, and pictures by file name."""
    started = time.monotonic()
    data = Dataset.open(dataset)
    engine = engine_of(store, run, data, sample, device)
    suite = MetricSuite(load_features(store, data, options.features, emit), options)
    extractor = suite.extractor
    n = min(options.samples, len(extractor.floor))
    if n < options.samples:
        emit("note", message=f"{run.name}: measured on {n:,} samples only, because there are no more real rows")
    if len(extractor.reference) < MIN_REFERENCE_ROWS:
        rows = len(extractor.reference)
        emit("warning", message=f"{dataset.name} has only {rows} held-out rows, so the metrics are inaccurate",
             hint="prepare it with a larger --val")  # fmt: skip
    few = min(options.sweep_samples, n)
    settings, scales = sweep.settings_to_try(engine, options), sweep.guidance_to_try(engine, options)
    # guidance changes the distribution of samples, so the likelihood of the family would not describe them
    likely = options.likelihood if engine.options.get("guidance", 1.0) == 1.0 else 0
    likely_rows = min(likely, len(extractor.real.reference))
    unseen = min(n, ASKED, len(samples.unseen(data, extractor))) if engine.prompts else 0
    total = n + few * len(settings + scales) + likely_rows + unseen
    progress = Progress(emit, run.id, total, _work(engine, n, few, settings + scales, likely_rows, unseen))

    applicable = [metric for metric in metrics.every() if metric.applies(data, options)]
    # keep only as many pictures as some metric needs; points are small and are all kept, because they are plotted
    keep = n if data.facts.is_points else max(metric.records for metric in applicable)
    drawn = draw_features(
        engine, extractor.embed, samples.seeds_of(engine, extractor.real, options.seed, n),
        samples.labels(data, extractor.real, n), keep,
        lambda k: progress(k, "drawing samples"), executor, samples.prompts(engine, data, extractor.real, n),
    )  # fmt: skip
    inputs = Samples(
        store, engine, data, extractor, options.model_copy(update={"likelihood": likely}), drawn.labels, emit, progress,
        drawn.prompts, drawn.records, drawn.features, drawn.classes,
    )  # fmt: skip
    own = sweep.own_point(inputs, suite, drawn, few)
    points = [own, *sweep.measure(inputs, suite, few, settings)]
    guided = sorted([own, *sweep.measure(inputs, suite, few, scales)], key=lambda point: point.get("guidance", 0))
    measured = _metrics(suite, applicable, inputs)
    progress(total, "measured")
    document = {
        "schema": SCHEMA,
        "evaluation": id,
        **_identity(run, data, engine),
        "reference": {"split": extractor.real.split, "rows": len(extractor.reference)},
        "features": {**extractor.about, "artifact": extractor.artifact.id},
        "samples": n,
        "seed": options.seed,
        "evaluate": options.model_dump(mode="json"),
        "sample": sample,
        "nfe": drawn.nfe,
        **measured,
        "speed": {
            "ms_batch_1": own["ms_alone"],
            "ms_batch_64": drawn.ms,
            "images_per_second": 1000 / drawn.ms,
            "memory_mb": drawn.memory_mb,
            "device": engine.device,
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        },
        "sweep": sweep.curve(points),
        "guidance": guided if scales else None,
        "seconds": round(time.monotonic() - started, 1),
    }
    shown = render_all(engine, data, extractor, drawn, options.seed)
    return cast(Evaluation, {**document, "prompts": shown.prompts}), shown.files


def _metrics(suite: MetricSuite, applicable: Sequence[Metric], inputs: Samples) -> dict[str, Any]:
    """The document's `metrics`, and one entry per section; null for a section that does not apply."""
    found: dict[str, Any] = {"metrics": {}}
    found |= {metric.section: None for metric in metrics.every() if metric.section}
    for metric in applicable:
        if metric.section:
            found[metric.section] = found[metric.section] or metric.measure(inputs)
        else:
            suits = metric.needs == "features"
            readings = suite.measure(metric, inputs.features, inputs.labels) if suits else metric.measure(inputs)
            found["metrics"] |= {name: reading.metric(inputs.extractor) for name, reading in readings.items()}
    return found


def _identity(run: Artifact, data: Dataset, engine: Engine) -> Identity:
    """Whose numbers these are, and on what machine they were measured."""
    cores = environment.cores()
    return {
        "run": run.id,
        "name": run.name,
        "family": engine.recipe.family["kind"],
        "title": engine.family.title,
        "reconstructs": engine.family.is_autoencoder,
        "init": engine.recipe.init,
        "step": engine.step,
        "options": engine.options,
        "training": {key: run.meta.get(key) for key in TRAINING},
        "dataset": data.artifact.id,
        "dataset_name": data.artifact.name,
        "fingerprint": data.facts.fingerprint,
        "machine": f"{platform.system()} {platform.machine()}, {cores} core{'s' * (cores > 1)}",
        "cores": cores,
        "versions": {"genflow": __version__, "python": platform.python_version(), "torch": torch.__version__},
    }


def _work(
    engine: Engine, n: int, few: int, settings: Sequence[dict[str, Any]], likely: int, unseen: int
) -> dict[str, tuple[int, float]]:
    """What `Progress` counts: the records of each kind of work, and about how many network evaluations one needs."""
    own = float(engine.options.get("steps") or 1)
    work = {sweep.describe(setting): (few, float(setting.get("steps") or 2 * own)) for setting in settings}
    price = ESTIMATE if "steps" in engine.options else BOUND
    drawn = {"drawing samples": (n, own), "drawing samples of unseen captions": (unseen, own)}
    return {**drawn, **work, "likelihood": (likely, float(price))}


def _journal(store: Store, run: Artifact, dataset: Artifact, document: Evaluation, artifact: Artifact) -> None:
    """Log to the run's journal.

    Quality is at step 0: then MLflow ranks runs by bars, and a new measurement replaces the old one. The sweep has nfe
    as the step, so that MLflow plots quality against evaluations; its names say that it has fewer samples.
    """
    with Journal(journal_path(store.root, run.id), experiment=dataset.name, name=run.name) as journal:
        for point in document["sweep"]:
            name = f"sweep/fd_of_{point['fd']['n']}_samples"
            journal.metrics(point["nfe"], {name: point["fd"]["value"]}, stream=f"{artifact.id}/sweep")
        values = {f"quality/{name}": metric["value"] for name, metric in document["metrics"].items()}
        if multiple := floors(document):
            values["quality/fd_x_floor"] = multiple
        if document["likelihood"]:
            values[f"quality/{document['likelihood']['unit'].replace('/', '_per_')}"] = document["likelihood"]["value"]
        values["quality/ms_batch_64"] = document["speed"]["ms_batch_64"]
        if headlines(store).get(run.id, document)["evaluation"] == document["evaluation"]:  # a run has one fd
            # four digits are more than the interval gives, and fit into a column of MLflow's table
            journal.metrics(0, {name: float(f"{value:.4g}") for name, value in values.items()}, stream=artifact.id)
            quality, details = _described(run, document)
            journal.description(quality, artifact.file("grid.png"), details)
        journal.artifact(artifact.file("metrics.json"), "evaluation")
        journal.image(document["step"], "samples/evaluation", artifact.file("grid.png"))
        if artifact.files(f"{prompt_pictures.FOLDER}/*"):  # MLflow shows the tables that the tag names
            journal.artifact(artifact.path / prompt_pictures.FOLDER, prompt_pictures.IN_MLFLOW)
            table = {"path": f"{prompt_pictures.IN_MLFLOW}/{prompt_pictures.TABLE}", "type": "table"}
            journal.tags({"mlflow.loggedArtifacts": json.dumps([table])})


def _described(run: Artifact, document: Evaluation) -> tuple[str, str]:
    """A run's quality, and its likelihood, training and the command that draws from it, in Markdown."""
    quality, *likelihood = headline(document)
    steps, seconds = (document["training"].get(key) for key in ("steps", "seconds"))
    trained = [f"{steps:,} steps"] if steps else []
    trained += [f"{seconds / 60:.1f} min"] if seconds else []
    return f"**{quality}**", " · ".join([*likelihood, *trained, f"`genflow sample {run.id}`"])
