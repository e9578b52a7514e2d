"""The commands as functions: prepare, train, tune, evaluate and compare send the jobs that the commands send.

Every function takes `cluster=True` and `address=` as the commands do, `set={"section.key": value}` for any key of the
recipe, and the words of `genflow.commands.vocabulary` for common keys, such as `lr=`, `batch=` and `seed=`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genflow.api.datasets import Data
from genflow.api.run import Comparison, Run, measure
from genflow.api.search import Search
from genflow.api.sending import send
from genflow.api.stores import Place, store_at
from genflow.commands.recipes import nest, read_config
from genflow.commands.references import require_family
from genflow.commands.vocabulary import keys_of
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
    encoding: str | None = None,
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
        encoding: raw, webp, png or jpeg: how the shards store pictures.
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
        name=name, size=size, crop=crop, encoding=encoding, labels=labels, captions=captions, val=val,
        max_bad=max_bad,
    )  # fmt: skip
    done = send("prepare", {"recipe": recipe.model_dump(mode="json")}, place, cluster, address)
    return Data(place.find("datasets", done["dataset"]))


def train(
    family: str = "",
    *,
    data: str | Data = "",
    latents: str = "",
    text: str = "",
    config: Config = (),
    name: str = "",
    size: str = "",
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    cpu_minutes: float | None = None,
    init: str | Run = "",
    workers: int | None = None,
    resume: bool = True,
    set: Settings | None = None,
    cluster: bool = False,
    address: str = "",
    store: Place = None,
    **words: Any,
) -> Run:
    """Train a model family on a dataset, as `genflow train` does; the same call resumes an interrupted training.

    Args:
        family: vae, ddpm, flow_matching, and so on; empty: the family in `config`.
        data: the dataset.
        latents: train on these latents; `auto`: make them first; `none`: train on pixels.
        text: text encoder of the captions, text embeddings, or `none`.
        config: recipe files.
        name: of the run.
        size: of net, batch and learning rate: xs (the preset), s, m, l or xl.
        steps, epochs: training steps, or passes over the data.
        minutes, cpu_minutes: stop after this wall-clock or CPU time.
        init: the run, or the local folder of Stable Diffusion 3, whose weights are the start; or the teacher.
        workers: training workers; the result does not depend on them.
        resume: False trains from scratch.
        set, cluster, address, store, words: see the module.

    Raises:
        UsageError: a key or a value is invalid, or the family or the dataset does not exist.
    """
    from genflow.commands import starting, texts
    from genflow.commands import train as commands

    place = store_at(store)
    flags: dict[str, Any] = {"name": name, "data.name": _reference(data), "data.latents": latents, "data.text": text}
    flags |= {"train.steps": steps, "train.minutes": minutes, "train.cpu_minutes": cpu_minutes}
    flags |= {"cluster.workers": workers, "init": _reference(init), "size": size}
    layers = [nest(set or {}), nest(keys_of("train", words))]
    recipe = commands.recipe(place, family, _configs(config), layers, [], epochs=epochs, **flags)
    recipe, to_do = texts.find(place, recipe)
    if to_do:
        texts.note_made(send("encode_text", to_do, place, cluster, address))
    recipe, _ = starting.find(place, recipe)
    recipe, pipeline = commands.with_latents(place, recipe)
    if pipeline:
        done = send("pipeline", {"pipeline": pipeline, "overrides": {}}, place, cluster, address)["stages"][-1]
    else:
        document = commands.document(place, recipe, fresh=not resume, planned=cluster)
        done = send("train", document, place, cluster, address)
    return Run(place.find("runs", done["run"]), place)


def tune(
    family: str,
    *,
    data: str | Data = "",
    latents: str = "",
    text: str = "",
    param: Mapping[str, str] | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    epochs: float | None = None,
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
        text: a text encoder or text embeddings of it, to read captions in the place of labels.
        param: recipe key -> range, such as {"train.lr": "log:1e-4:1e-1"}; None: the family's own search space.
        trials: largest number of trials.
        minutes: wall-clock time of the whole search.
        epochs: passes over the data of each trial.
        metric: fd, kid, bits_per_dim, ms and so on; two of them for a Pareto front.
        init: the run whose weights are the start.
        config: recipe files.
        set, cluster, address, store, words: see the module.

    Raises:
        UsageError: a key or a value is invalid, or the dataset does not exist.
    """
    from genflow.commands import starting, texts
    from genflow.commands import tune as commands
    from genflow.commands.train import on_latents

    require_family(family)
    place = store_at(store)
    flags: dict[str, Any] = {"data.name": _reference(data), "data.latents": latents, "data.text": text}
    flags["init"] = _reference(init)
    metrics = [metric] if isinstance(metric, str) else list(metric)
    flags |= {"tune.metric": metrics or None, "tune.trials": trials, "tune.minutes": minutes}
    layers = [*_configs(config), nest(set or {}), nest(keys_of("tune", words))]
    ranges = [f"{key}={space}" for key, space in (param or {}).items()]
    recipe, to_do = texts.find(place, commands.recipe(place, family, layers, [], ranges, epochs, **flags))
    if to_do:
        texts.note_made(send("encode_text", to_do, place, cluster, address))
    recipe, _ = starting.find(place, recipe)
    if recipe.data.latents == "auto":
        document, made = commands.latents_stages(place, recipe)
        if not made:
            done = send("pipeline", {"pipeline": document, "overrides": {}}, place, cluster, address)
            made = str(done["stages"][-1]["latents"])
        recipe = on_latents(recipe, made)
    document, _ = commands.document(place, recipe)
    return Search(send("tune", document, place, cluster, address))


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
    own = next((run.store for run in runs if isinstance(run, Run)), None)
    place = own if store is None and own else store_at(store)
    return measure(job, runs, place, samples, features, set, cluster, address, **words)


def _reference(named: Any) -> str:
    """What a command would be given for a run or a dataset."""
    return named if isinstance(named, str) else str(named.id)


def _configs(config: Config) -> list[Json]:
    every = [config] if isinstance(config, str | Path | dict) else list(config)
    return [one if isinstance(one, dict) else read_config(Path(one).expanduser()) for one in every]
