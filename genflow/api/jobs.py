"""The commands as functions: prepare, train, tune, evaluate and compare send the jobs that the commands send.

Every function takes `cluster=True` and `address=` as the commands do, `set={"section.key": value}` for any key of the
recipe, and the words of `genflow.commands.vocabulary` for common keys, such as `lr=`, `batch=` and `seed=`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genflow.api.datasets import Data
from genflow.api.results import Comparison, Search
from genflow.api.run import Run
from genflow.api.stores import Place, store_at
from genflow.commands.recipes import nest, read_config
from genflow.commands.references import require_family
from genflow.commands.vocabulary import keys_of
from genflow.storage.store import Store
from genflow.system.documents import Json

Settings = Mapping[str, Any]  # recipe key -> value
Config = str | Path | Json | Sequence[str | Path | Json]  # recipe files, or their content


def prepare(
    source: str | Path,
    *,
    name: str = "",
    size: int | None = None,
    channels: str | int = "auto",
    crop: str | None = None,
    labels: str | None = None,
    captions: str | None = None,
    val: float | None = None,
    max_bad: int | None = None,
    set: Settings | None = None,
    cluster: bool = False,
    address: str = "",
    store: Place = None,
    **words: Any,
) -> Data:
    """Convert images to a dataset of the store, as `genflow prepare` does.

    Args:
        source: a folder of images, Parquet, idx or npz files, or a built-in source such as `digits`.
        name: of the dataset; empty: from the source.
        size: width and height in pixels; None: the source's, at most 64.
        channels: "auto", 1 or 3.
        crop: center, random, or none, which pads.
        labels, captions: where they come from; docs/data.md.
        val: fraction that is held out for evaluation.
        max_bad: fail if more images than this are unreadable.
        set, cluster, address, store, words: see the module.

    Raises:
        UsageError: there is no such source, or a value is invalid.
        DataError: more images than `max_bad` are unreadable.
    """
    from genflow.commands import prepare as commands

    place = store_at(store)
    layers = [nest(set or {}), nest(keys_of("prepare", words))]
    recipe = commands.recipe(
        place, str(source), str(channels), layers, [],
        name=name, size=size, crop=crop, labels=labels, captions=captions, val=val, max_bad=max_bad,
    )  # fmt: skip
    done = _send("prepare", {"recipe": recipe.model_dump(mode="json")}, place, cluster, address)
    return Data(place.find("datasets", done["dataset"]))


def tune(
    family: str,
    *,
    data: str | Data = "",
    latents: str = "",
    param: Mapping[str, str] | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    metric: str | Sequence[str] = (),
    init: str | Run = "",
    config: Config = (),
    set: Settings | None = None,
    cluster: bool = False,
    address: str = "",
    store: Place = None,
    **words: Any,
) -> Search:
    """Search for better hyperparameters, as `genflow tune` does; the same call resumes an interrupted search.

    Args:
        family: vae, ddpm, flow_matching, and so on.
        data: the dataset.
        latents: latents of it; `auto`: make them first; `none`: pixels.
        param: recipe key -> range, such as {"train.lr": "log:1e-4:1e-1"}; None: the family's own search space.
        trials: largest number of trials.
        minutes: wall-clock time of the whole search.
        metric: fd, kid, bits_per_dim, ms and so on; two of them for a Pareto front.
        init: the run whose weights are the start.
        config: recipe files.
        set, cluster, address, store, words: see the module.

    Raises:
        UsageError: a key or a value is invalid, or the dataset does not exist.
    """
    from genflow.commands import tune as commands

    require_family(family)
    place = store_at(store)
    flags: dict[str, Any] = {"data.name": _reference(data), "data.latents": latents, "init": _reference(init)}
    metrics = [metric] if isinstance(metric, str) else list(metric)
    flags |= {"tune.metric": metrics or None, "tune.trials": trials, "tune.minutes": minutes}
    layers = [*_configs(config), nest(set or {}), nest(keys_of("tune", words))]
    ranges = [f"{key}={space}" for key, space in (param or {}).items()]
    recipe = commands.recipe(place, family, layers, [], ranges, **flags)
    if recipe.data.latents == "auto":
        document, made = commands.latents_stages(place, recipe)
        if not made:
            done = _send("pipeline", {"pipeline": document, "overrides": {}}, place, cluster, address)
            made = str(done["stages"][-1]["latents"])
        recipe = commands.on_latents(recipe, made)
    document, _ = commands.document(place, recipe)
    return Search(_send("tune", document, place, cluster, address))


def evaluate(
    *runs: str | Run,
    samples: int | None = None,
    features: str = "",
    set: Settings | None = None,
    cluster: bool = False,
    address: str = "",
    store: Place = None,
    **words: Any,
) -> Comparison:
    """Measure sample quality, likelihood and speed of runs, as `genflow evaluate` does.

    Args:
        runs: trained on the same dataset.
        samples: number of samples to draw and measure.
        features: classifier, random, imagenet, or a file.
        set, cluster, address, store, words: see the module.

    Raises:
        UsageError: there is no such run, or the runs learned different datasets.
    """
    return _measure("evaluate", runs, samples, features, set, cluster, address, store, words)


def compare(
    *runs: str | Run,
    samples: int | None = None,
    features: str = "",
    set: Settings | None = None,
    cluster: bool = False,
    address: str = "",
    store: Place = None,
    **words: Any,
) -> Comparison:
    """Measure runs and write the HTML report, as `genflow compare` does; the arguments are those of `evaluate`."""
    return _measure("compare", runs, samples, features, set, cluster, address, store, words)


def _measure(
    job: str, runs: Sequence[str | Run], samples: int | None, features: str, set: Settings | None, cluster: bool,
    address: str, store: Place, words: dict[str, Any],
) -> Comparison:  # fmt: skip
    from genflow.commands import measure

    own = next((run.store for run in runs if isinstance(run, Run)), None)
    place = own if store is None and own else store_at(store)
    layers = [nest(set or {}), nest(keys_of(job, words))]
    flags = {"evaluate.samples": samples, "evaluate.features": features}
    document = measure.document(place, [_reference(run) for run in runs], layers, [], flags)
    return Comparison(_send(job, document, place, cluster, address), place)


def _reference(named: Any) -> str:
    """What a command would be given for a run or a dataset."""
    return named if isinstance(named, str) else str(named.id)


def _configs(config: Config) -> list[Json]:
    every = [config] if isinstance(config, str | Path | dict) else list(config)
    return [one if isinstance(one, dict) else read_config(Path(one).expanduser()) for one in every]


def _send(stage: str, document: Json, store: Store, cluster: bool, address: str) -> Json:
    """Send a job and show its progress on standard error; its result.

    Raises:
        GenflowError: the error of the job.
        KeyboardInterrupt: the job continues on the cluster.
    """
    from genflow.cli.dispatch import run
    from genflow.system import environment

    environment.ensure_home()
    done = run(stage, document, store, cluster, address)
    if done.get("schema") == "genflow.job/1":
        raise KeyboardInterrupt(f"the job {done.get('job', '')} continues on the cluster")
    return done
