"""The recipe: the whole configuration of one run, as one typed, frozen value.

The sections that all families share (`data, train, evaluate, cluster, reflow, encode, tune`) are typed here. The
sections `net`, `family` and `sample` are the keyword arguments of a net's `__init__`, a family's `__init__` and a
family's `sample`. Their only schema is that signature, to which `genflow.build.resolve` binds them. An unknown key is
an error that suggests the nearest known key.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from genflow.errors import UsageError, nearest, plain
from genflow.recipe.aliases import our_name
from genflow.recipe.sizes import Size

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A frozen group of settings that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Data(Section):
    """The dataset: what to prepare, or which prepared dataset to use."""

    name: str = ""  # name of the dataset in the store; empty: derived from the source
    pairs: str = ""  # (noise, sample) pairs from `genflow reflow`, by id or name; empty: the dataset
    latents: str = ""  # latents of the dataset, by id or name; auto: made first; none or empty: the pictures
    text: str = ""  # text embeddings of the captions, by id or name, read in the place of labels; none or empty: labels
    source: str = ""  # digits | grid25 | ring8 | moons | checkerboard | a path | stack:NAME
    size: Annotated[int, Field(ge=4, le=1024)] | None = None  # side, 4 to 1024 pixels; null: the source's, at most 64
    channels: Literal["auto", 1, 3] = "auto"  # 1: grey, 3: RGB, auto: as in the source
    bits: Annotated[int, Field(ge=9, le=16)] = 16  # bits of the values in 16-bit grey pictures and arrays, 9 to 16
    crop: Literal["center", "random", "none"] = "center"  # square of a picture: its center, a random one, or padded
    labels: str = "auto"  # auto | none | folders | metadata | a column of the source's tables
    captions: str = "auto"  # auto | none | a column of the source's tables | the ending of caption files, .txt
    val: Annotated[float, Field(ge=0, lt=1)] = 0.1  # validation share, 0 to 1, for a source without a split of its own
    max_bad: Natural = 0  # largest number of unreadable images; preparing fails above it
    samples: Positive = 20_000  # number of points of a 2-D density, or of images of a stack
    seed: Natural = 0  # seed of the split, of a 2-D density and of a stack
    flip: bool = False  # random horizontal flips, on or off; a setting of a run, and all above are of its dataset

    @field_validator("latents", "text", mode="before")
    @classmethod
    def _none_is_a_word(cls, given: Any) -> Any:
        return "none" if given is None else given  # as `--set data.latents=none` and YAML read it


class Train(Section):
    """The settings of the training loop. `batch` is the global batch: the number of workers changes no result."""

    steps: Positive = 3000  # number of training steps
    minutes: Annotated[float, Field(gt=0)] | None = None  # wall-clock budget; training ends with it or with `steps`
    cpu_minutes: Annotated[float, Field(gt=0)] | None = (
        None  # budget in minutes of one worker's CPU time, which is fair on a busy machine
    )
    batch: Positive = 32  # global batch size in samples, over all workers
    accumulate: Positive = 1  # parts of a worker's batch, one after another; the memory is that of one part
    lr: Annotated[float, Field(gt=0, lt=10)] = 0.01  # peak learning rate, below 10
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: for matrices, and AdamW for the rest; adamw: for all
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9  # AdamW's beta1, 0 to 1
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99  # AdamW's beta2, 0 to 1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # weight decay, 0 or more
    warmup: Natural = 50  # steps of linear learning-rate warm-up
    decay: Annotated[float, Field(ge=0, le=1)] = 0.6  # final share of the budget, 0 to 1, over which lr falls to 0
    clip: Annotated[float, Field(gt=0)] = 5.0  # largest gradient norm
    ema: Annotated[float, Field(gt=0, le=0.25)] = 0.10  # sigma_rel of the power-function EMA, up to 0.25
    patience: Natural = 0  # ninths of the budget without a lower held-out loss after which training ends; 0: never
    seed: Natural = 0  # seed of weights, batches and noise
    on_trouble: Literal["stop", "rollback"] = "stop"  # on divergence: stop, or reload a checkpoint and halve lr
    checkpoint_every: Positive = 500  # steps between checkpoints
    log_every: Positive = 20  # steps between log entries
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # of products; auto: bf16 where the hardware is fast in it
    threads: Natural = 0  # CPU threads per worker; 0: one thread; more help only on idle cores
    compile: bool = False  # torch.compile on or off
    checkpoint_activations: bool = False  # layers computed again in the backward pass, to save memory, on or off


class Evaluate(Section):
    """What an evaluation measures, and on how many samples."""

    samples: Annotated[int, Field(ge=16)] = 2000  # number of samples, at least 16
    steps: tuple[Positive, ...] = (1, 2, 4, 8, 16, 32)  # sampling steps of the quality-against-steps sweep
    samplers: tuple[str, ...] = ()  # samplers of the sweep, the best kept per evaluation count; empty: the run's
    sweep_samples: Annotated[int, Field(ge=16)] = 500  # samples per point of the sweep, at least 16
    guidance: tuple[Annotated[float, Field(ge=0)], ...] = (1, 2, 4, 8)  # guidance scales tried for a run of captions
    likelihood: Natural = 256  # number of images whose likelihood is computed; 0: none
    features: str = "classifier"  # classifier | random | a path to a TorchScript module or safetensors
    clip: str = ""  # local folder of a whole CLIP model, to measure clip_score of a run of captions; empty: none
    classification: bool = False  # training of a classifier on the samples, tested on real images, on or off
    bootstrap: Positive = 50  # number of bootstrap resamples per confidence interval
    seed: Natural = 0  # seed of the samples


class Reflow(Section):
    """The (noise, sample) pairs that a teacher writes. The section `sample` sets how the teacher samples."""

    pairs: Positive = 15_000  # number of pairs
    seed: Natural = 0  # seed of the noise


class Encode(Section):
    """The latents that an autoencoder's encoder makes of a dataset, and the text embeddings of its captions."""

    flip: bool = False  # latents of the mirrored pictures as further rows, on or off
    text: str = "minilm"  # text encoder of the captions: minilm, or a local folder of CLIP, T5 or BERT; a+b: both


class Tune(Section):
    """A hyperparameter search: its space, its method and its metrics."""

    space: dict[str, Any] = {}  # recipe key -> range: log:LO:HI, uniform:LO:HI, int:LO:HI or choice:A,B
    trials: Positive = 20  # number of trials
    steps: Positive | None = None  # training steps per trial; null: the recipe's own budget
    minutes: Annotated[float, Field(gt=0)] | None = None  # wall-clock minutes for all trials; null: no limit
    metric: tuple[str, ...] = ("fd",)  # metrics to optimize; several: a Pareto front, ranked by the first
    searcher: Literal["tpe", "random", "grid"] = "tpe"  # settings by a model of the results, at random, or all
    scheduler: Annotated[Literal["asha", "pbt", "none"], BeforeValidator(lambda value: value or "none")] = (
        "asha"  # asha: the worse trials end early; pbt: they copy the better ones and change their settings
    )
    rungs: Annotated[int, Field(ge=1, le=20)] = 3  # measurements per trial, 1 to 20
    reduction: Annotated[int, Field(ge=2, le=10)] = 3  # ratio of the budgets of two successive rungs, 2 to 10
    samples: Annotated[int, Field(ge=16)] = 500  # samples at the last rung, at least 16; fewer at earlier rungs
    target: float | None = None  # value of the first metric at which the search ends; null: no target
    confirm: Natural = 3  # new seeds with which the best trial and the preset are retrained; 0: none
    seed: Natural = 0  # seed of the search

    @field_validator("space")
    @classmethod
    def _space(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, values in value.items():
            if "." not in key and key in Train.model_fields:
                raise ValueError(f"unknown key {key} (did you mean train.{key}?)")
            if "." not in key or not isinstance(values, str | list):
                raise ValueError(f"{key}: {values} is not of the form section.key: log:LO:HI")
        return value


class Cluster(Section):
    """The resources of a run."""

    workers: Positive = 1  # number of training workers
    gpus: Literal["auto"] | Annotated[float, Field(ge=0)] = (
        "auto"  # GPUs per worker, 0 or more, auto: 1 if there is one for each; a fraction shares a GPU
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # of a worker; auto: the GPU that Ray gave, else any GPU
    cpus: Annotated[float, Field(gt=0)] = 1  # CPUs per worker, above 0
    retries: Natural = 3  # restarts after a worker or a node fails
    strategy: Literal["ddp", "fsdp"] = "ddp"  # per worker, ddp: a copy of the net; fsdp: a shard


class Recipe(Section):
    """All settings of one run."""

    name: str = ""  # name of the run: letters, digits, '.', '_' and '-', at most 80; empty: derived
    init: str = ""  # run whose averaged weights are the start, and the teacher of a distilled family; empty: none
    size: Size = "xs"  # of net, batch and learning rate, from a laptop to a node of GPUs; xs: the family's preset
    data: Data = Data()
    net: dict[str, Any] = {}
    family: dict[str, Any] = {}
    train: Train = Train()
    sample: dict[str, Any] = {}
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()
    reflow: Reflow = Reflow()
    encode: Encode = Encode()
    tune: Tune = Tune()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value and not NAME.fullmatch(value):
            raise ValueError("use letters, digits, '.', '_' and '-', at most 80")
        return value

    @field_validator("size", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        if str(value).isdecimal():
            raise ValueError("xs, s, m, l or xl, not pixels; `genflow prepare --size` scales the pictures")
        return value.lower() if isinstance(value, str) else value

    def __str__(self) -> str:
        from genflow.recipe.files import dump

        return dump(self)

    def replace(self, **sections: Any) -> "Recipe":
        """A copy with whole sections replaced. Only these are validated; the others already were.

        Raises:
            UsageError: from `parse`.
        """
        given = parse(sections)
        return self.model_copy(update={name: getattr(given, name) for name in sections})


TOP_LEVEL_KEYS = ("name", "init", "size")  # keys that are not sections
SECTIONS: dict[str, type[Section]] = {
    "data": Data,
    "train": Train,
    "evaluate": Evaluate,
    "cluster": Cluster,
    "reflow": Reflow,
    "encode": Encode,
    "tune": Tune,
}


def parse(document: dict[str, Any], where: str = "recipe") -> Recipe:
    """A document as a recipe.

    Args:
        document: sections by name.
        where: the name of the document in an error message.

    Raises:
        UsageError: a key is unknown, or a value has a wrong type or is out of range; one line.
    """
    for section, value in document.items():
        if section in Recipe.model_fields and section not in TOP_LEVEL_KEYS and not isinstance(value, dict | Section):
            raise UsageError(f"{where}: {section} is a section of keys, not {value!r}")
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise UsageError(explain(error, where, Recipe)) from error


def explain(error: ValidationError, where: str, schema: type[BaseModel]) -> str:
    """The first problem of a validation error, as one line that suggests the nearest known key."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained-"))]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        fields: list[str] = list(schema.model_fields)
        ours = our_name(path[-1])
        if schema is Recipe and ours == "epochs":
            return f"{where}: unknown key {key}: training is counted in train.steps; --epochs N computes them"
        if len(path) > 1 and path[0] in SECTIONS:
            fields = [f"{path[0]}.{name}" for name in SECTIONS[path[0]].model_fields]
            if f"{path[0]}.{ours}" in fields:
                return f"{where}: unknown key {key} (did you mean {path[0]}.{ours}?)"
        elif schema is Recipe:  # `lr` alone: the section was forgotten
            fields += [f"{name}.{ours}" for name, section in SECTIONS.items() if ours in section.model_fields]
            ranked = sorted(fields, key=lambda field: not field.startswith("train."))  # its keys are asked for most
            key_there = next((field for field in ranked if field.endswith(f".{ours}")), "")
            if key_there:
                return f"{where}: unknown key {key} (did you mean {key_there}?)"
        return f"{where}: unknown key {key}{nearest(key, fields)}"
    # a union adds its members to the path; the key is the part before them
    parts = path[:2] if path and path[0] in SECTIONS else path
    if schema is not Recipe:  # a section whose schema is a signature: `where` is the section's name
        return f"{where}.{'.'.join(parts[:1])}: {plain(first['msg'])}, not {first['input']!r}"
    given = f", not {first['input']!r}" if not isinstance(first.get("input"), dict) else ""
    return f"{where}: {'.'.join(parts)}: {plain(first['msg'])}{given}"


def flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"lr": 1}}` as `{"train.lr": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
