"""The recipe: the whole configuration of one run, as one typed, frozen value.

Sections that belong to the pipeline (`data, train, evaluate, cluster`) are typed here. The sections
`net`, `family` and `sample` are the keyword arguments of a net's `__init__`, a family's `__init__` and its
`sample`; their one schema is that signature, and `genflow.build.resolve` binds them to it. A key that does
not exist is refused with the nearest one that does.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from genflow.errors import UsageError, nearest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A frozen group of settings that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Data(Section):
    """What to prepare, or which prepared dataset to use."""

    name: str = ""  # the dataset's name in the store; prepare takes it from the source if empty
    pairs: str = ""  # pairs of noise and samples that a teacher wrote (genflow reflow); empty: the dataset's own rows
    source: str = ""  # digits | grid25 | ring8 | moons | checkerboard | a path | stack:NAME
    size: Annotated[int, Field(ge=4, le=1024)] | None = None  # side in pixels; None: the source's own, at most 64
    channels: Literal["auto", 1, 3] = "auto"
    val: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share held out where the source has no split of its own
    max_bad: Natural = 0  # pictures that may be unreadable before preparing fails
    samples: Positive = 20_000  # rows of a 2-D density
    seed: Natural = 0


class Train(Section):
    """The one training loop's settings. `batch` is the global batch: the number of workers changes no result."""

    steps: Positive = 3000
    minutes: Annotated[float, Field(gt=0)] | None = None  # a wall-clock budget; whichever ends first
    cpu_minutes: Annotated[float, Field(gt=0)] | None = (
        None  # the same of one worker's CPU time: fair on a busy machine
    )
    batch: Positive = 32
    lr: Annotated[float, Field(gt=0, lt=10)] = 0.01
    optimizer: Literal["muon", "adamw"] = "muon"
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of AdamW
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup: Natural = 50  # steps of linear rise
    decay: Annotated[float, Field(ge=0, le=1)] = 0.6  # the last share of the budget, in which lr falls to 0
    clip: Annotated[float, Field(gt=0)] = 5.0  # largest gradient norm
    ema: Annotated[float, Field(gt=0, le=0.25)] = 0.10  # sigma_rel of the power-function average
    seed: Natural = 0
    on_trouble: Literal["stop", "rollback"] = "stop"  # a loss that diverges: end, or go back and halve the rate
    checkpoint_every: Positive = 500
    log_every: Positive = 20
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    threads: Natural = 0  # CPU threads a worker; 0: one; more help only where no other process wants the cores
    compile: bool = False


class Evaluate(Section):
    """What is measured, on how many samples."""

    samples: Annotated[int, Field(ge=16)] = 2000
    steps: tuple[Positive, ...] = (1, 2, 4, 8, 16, 32)  # the quality-against-steps sweep
    samplers: tuple[str, ...] = ()  # each tried at these numbers of *evaluations*, the best kept; empty: the run's own
    sweep_samples: Annotated[int, Field(ge=16)] = 500
    likelihood: Natural = 256  # images whose likelihood is computed; 0: none
    features: str = "classifier"  # or random, or a path to a TorchScript module or safetensors
    classification: bool = False  # whether a classifier is trained on the samples and tried on real pictures
    bootstrap: Positive = 50
    seed: Natural = 0


class Reflow(Section):
    """Pairs of noise and samples that a teacher writes; the section `sample` says how it samples."""

    pairs: Positive = 15_000
    seed: Natural = 0


class Tune(Section):
    """A search for better settings: over what, how, and by which measure."""

    space: dict[str, Any] = {}  # by key of the recipe: log:lo:hi, uniform:lo:hi, int:lo:hi, choice:a,b
    trials: Positive = 20
    steps: Positive | None = None  # training steps of a trial; null: the recipe's own budget
    minutes: Annotated[float, Field(gt=0)] | None = None  # of wall-clock time for all trials; whichever ends first
    metric: tuple[str, ...] = ("fd",)  # two or more: a Pareto front, and the first decides
    searcher: Literal["tpe", "random", "grid"] = "tpe"
    scheduler: Annotated[Literal["asha", "pbt", "none"], BeforeValidator(lambda said: said or "none")] = "asha"
    rungs: Annotated[int, Field(ge=1, le=20)] = 3  # times that a trial is measured
    reduction: Annotated[int, Field(ge=2, le=10)] = 3  # of a trial's budget from one rung down to the one before
    samples: Annotated[int, Field(ge=16)] = 500  # at the last rung; fewer before
    target: float | None = None  # a value of the first metric at which the search may end
    confirm: Natural = 3  # fresh seeds with which the best and the preset are trained again; 0: none
    seed: Natural = 0

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
    """Where it runs."""

    workers: Positive = 1
    gpus: Annotated[float, Field(ge=0)] = 0  # GPUs a worker
    cpus: Annotated[float, Field(gt=0)] = 1  # CPUs a worker
    retries: Natural = 3
    strategy: Literal["ddp", "fsdp"] = "ddp"  # a copy of the net on every worker, or a share of it


class Recipe(Section):
    """One run, whole."""

    name: str = ""
    init: str = ""  # a run to start from: its averaged weights, and the teacher of a family that learns from one
    data: Data = Data()
    net: dict[str, Any] = {}
    family: dict[str, Any] = {}
    train: Train = Train()
    sample: dict[str, Any] = {}
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()
    reflow: Reflow = Reflow()
    tune: Tune = Tune()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value and not NAME.fullmatch(value):
            raise ValueError("use letters, digits, '.', '_' and '-', at most 80")
        return value

    def replace(self, **sections: Any) -> "Recipe":
        """A copy with whole sections replaced. Only these are validated: the others were when the recipe was parsed.

        Raises:
            UsageError: from `parse`.
        """
        given = parse(sections)
        return self.model_copy(update={name: getattr(given, name) for name in sections})


TOP_LEVEL_KEYS = ("name", "init")  # keys that are no section
SECTIONS: dict[str, type[Section]] = {
    "data": Data,
    "train": Train,
    "evaluate": Evaluate,
    "cluster": Cluster,
    "reflow": Reflow,
    "tune": Tune,
}


def parse(document: dict[str, Any], where: str = "recipe") -> Recipe:
    """A document as a recipe.

    Args:
        document: sections by name.
        where: what to call the document in an error.

    Raises:
        UsageError: an unknown key, a wrong type or a value out of range, in one line.
    """
    for section, value in document.items():
        if section in Recipe.model_fields and section not in TOP_LEVEL_KEYS and not isinstance(value, dict | Section):
            raise UsageError(f"{where}: {section} is a section of keys, not {value!r}")
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise UsageError(explain(error, where, Recipe)) from error


def explain(error: ValidationError, where: str, schema: type[BaseModel]) -> str:
    """The first mistake of a validation error, as one line with the nearest right key."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained-"))]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        fields: list[str] = list(schema.model_fields)
        if len(path) > 1 and path[0] in SECTIONS:
            fields = [f"{path[0]}.{name}" for name in SECTIONS[path[0]].model_fields]
        elif schema is Recipe:  # `lr` alone: the section was forgotten
            fields += [f"{name}.{key}" for name, section in SECTIONS.items() if key in section.model_fields]
            key_there = next((field for field in fields if field.endswith(f".{key}")), "")
            if key_there:
                return f"{where}: unknown key {key} (did you mean {key_there}?)"
        return f"{where}: unknown key {key}{nearest(key, fields)}"
    # a union reports each of its members; the key is what comes before them
    parts = path[:2] if path and path[0] in SECTIONS else path
    if schema is not Recipe:  # a section whose schema is a signature: where is its name
        return f"{where}.{'.'.join(parts[:1])}: {_lowercase_first(first['msg'])}, not {first['input']!r}"
    given = f", not {first['input']!r}" if not isinstance(first.get("input"), dict) else ""
    return f"{where}: {'.'.join(parts)}: {_lowercase_first(first['msg'])}{given}"


def _lowercase_first(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"lr": 1}}` as `{"train.lr": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
