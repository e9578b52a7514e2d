"""Turn names into objects: recipe -> nets -> family. No other module does this.

The sections `net`, `family` and `sample` have no separate schema. Their schema is the signature of the net's `build`,
of the family's `__init__` and of its `sample`. `resolve` checks a recipe against these signatures, fills in every
default, and rejects what does not fit before a run starts.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import nn
from torch.overrides import TorchFunctionMode

from genflow import families, nets
from genflow.errors import UsageError
from genflow.families.base import Family
from genflow.recipe.schema import Recipe, explain
from genflow.specs import DataSpec
from genflow.system import environment


@functools.cache  # pydantic takes 0.1 to 0.3 ms to make one, and every draw asks for one
def schema(function: Callable[..., Any], kind: str | None = None) -> type[BaseModel]:
    """The keyword-only arguments of a function as a pydantic model, which rejects all other keys.

    Args:
        function: its annotations give types and ranges, its defaults the defaults.
        kind: adds a field `kind` with this constant value; None: no such field.
    """
    signature = inspect.signature(function, eval_str=True)
    fields: dict[str, Any] = {
        name: (p.annotation, p.default)
        for name, p in signature.parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    if kind is not None:
        fields = {"kind": (Literal[kind], kind), **fields}
    config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())
    return create_model(f"{kind or 'Sample'}Options", __config__=config, **fields)


def bind(section: str, function: Callable[..., Any], values: dict[str, Any], kind: str | None = None) -> dict[str, Any]:
    """Check the values of a recipe section against a signature, and fill in every default.

    Args:
        section: the name of the section, for messages.
        function: the function whose keyword-only arguments are the schema.
        values: the section.
        kind: the value of the field `kind`, if the section has one.

    Raises:
        UsageError: a key is unknown, a type is wrong or a value is out of range.
    """
    model = schema(function, kind)
    try:
        return model.model_validate(values).model_dump(mode="json")
    except ValidationError as error:
        line = explain(error, section, model)
        known = [name for name in model.model_fields if name != "kind"]
        raise UsageError(line, f"keys of {section}: {', '.join(known)}") from error


def resolve(recipe: Recipe, facts: DataSpec, init: Recipe | None = None, trained_on: DataSpec | None = None) -> Recipe:
    """Resolve a recipe: fill in every default of the family, its nets and its sampler, and check the result.

    Args:
        recipe: its sections may lack keys.
        facts: of the data.
        init: the resolved recipe of the run to start from; its net, and options that depend on it, become defaults.
        trained_on: the facts of that run's data; None: equal to `facts`.

    Raises:
        UsageError: a key, a value or a combination cannot work; the message is one line.
        SetupError: training needs an optional package that is not installed.
    """
    kind = str(recipe.family.get("kind", ""))
    if not kind:
        raise UsageError("the recipe names no family", f"family.kind is one of: {', '.join(families.kinds())}")
    family = families.family_class(kind)
    if family.teacher == "required" and init is None:
        data = recipe.data.name or "NAME"
        raise UsageError(
            f"{family.title} starts from a trained run, but none was named",
            f"genflow train flow_matching --data {data}, then add --init latest",
        )
    if trained_on and trained_on.shape != facts.shape:
        theirs, ours = ("×".join(map(str, shape)) for shape in (trained_on.shape, facts.shape))
        raise UsageError(
            f"the run of `init` was trained on data of {theirs}, and this is {ours}",
            "--init a run on data of this shape",
        )
    if trained_on and trained_on.autoencoder != facts.autoencoder:
        theirs, ours = (f"the latents of {s.autoencoder}" if s.is_latents else "pictures" for s in (trained_on, facts))
        raise UsageError(f"the run of `init` learned {theirs}, and this one learns {ours}", "--init another run")
    if trained_on and trained_on.text != facts.text:
        theirs, ours = (f"captions by {s.text.encoder}" if s.text else "no captions" for s in (trained_on, facts))
        raise UsageError(f"the run of `init` read {theirs}, and this one reads {ours}", "--init another run")
    given = {**(family.inherit(init.family) if init else {}), **recipe.family}
    options = bind("family", family.__init__, given, kind)
    family.require_packages(**options)
    if recipe.train.compile:
        family.check_compilation(**options)
    if recipe.data.pairs and not family.learns_pairs:
        raise UsageError(f"{family.title} cannot learn from pairs of noise and samples", "train flow_matching on them")
    sample = _sample_options(family, facts, recipe.sample, forget=options.get("forget", 1.0))
    chosen = dict(recipe.net) or (dict(init.net) if init else {})
    if chosen.get("kind", "auto") == "auto":
        default = family.default_net_for(facts)
        chosen = {**default, **chosen, "kind": default["kind"]}
    if recipe.net or not init:  # else the net is that of the run to start from, whatever the size
        sized = nets.of_size(chosen["kind"], recipe.size, facts.shape)
        chosen = {**chosen, **sized, **{key: value for key, value in recipe.net.items() if key != "kind"}}
    net = bind("net", nets.builder(chosen["kind"]), chosen, chosen["kind"])
    workers, batch = recipe.cluster.workers, recipe.train.batch
    if batch < workers:
        raise UsageError(f"train.batch={batch} cannot be shared by {workers} workers", f"use train.batch={workers}")
    if batch // workers < (parts := recipe.train.accumulate):
        raise UsageError(
            f"train.accumulate={parts}: a worker has {batch // workers} samples of a batch, which are fewer",
            f"use train.accumulate={batch // workers}, or a larger train.batch",
        )
    resolved = recipe.replace(family=options, net=net, sample=sample)
    made = outline_of(resolved, facts)  # raises for sizes and options that cannot work
    if init:
        made.init_from(outline_of(init, trained_on or facts))
    return resolved


def check_options(recipe: Recipe) -> None:
    """Check the options of a recipe's family, net and sampler as far as that needs no data; `resolve` checks the rest.

    Raises:
        UsageError: a key is unknown, a type is wrong or a value is out of range.
    """
    family = families.family_class(recipe.family["kind"])
    bind("family", family.__init__, recipe.family, recipe.family["kind"])
    bind("sample", family.sample, recipe.sample)
    if (net := recipe.net.get("kind", "auto")) != "auto":
        bind("net", nets.builder(net), recipe.net, net)


def outline_of(recipe: Recipe, facts: DataSpec) -> Family:
    """The family of a resolved recipe on torch's meta device: weights with a shape and no data, whatever their number.

    Raises:
        UsageError: as `family_of`.
    """
    with _Uninitialized():
        return family_of(recipe, facts, "meta").to("meta")


class _Uninitialized(TorchFunctionMode):
    """Give tensors on the meta device no values, which they cannot hold.

    torch would import its compiler for normal draws and for `logspace` on that device: more time than to import torch.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.normal_ or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        if func is torch.logspace:
            return torch.empty(args[2], device="meta")
        return func(*args, **kwargs)


def family_of(recipe: Recipe, facts: DataSpec, device: str = "cpu") -> Family:
    """Build the family of a resolved recipe, with newly initialized weights.

    Args:
        recipe: resolved.
        facts: of what the family learns.
        device: on which the nets are made.

    Raises:
        UsageError: an option is unknown (the recipe may be of another version), or options and data do not fit.
    """
    environment.tune_malloc()
    family = families.family_class(recipe.family["kind"])
    # A run of an older version lacks newer options; `bind` fills them in.
    options = bind("family", family.__init__, recipe.family, recipe.family["kind"])
    del options["kind"]
    made: dict[str, nn.Module] = {}
    for name, ports in family.ports(facts, **options).items():
        kind = ports.net or recipe.net["kind"]
        given = recipe.net if kind == recipe.net["kind"] else {"kind": kind}  # a required kind of net uses its defaults
        own = bind("net", nets.builder(kind), given, kind)
        del own["kind"]
        text = None if family.is_autoencoder else facts.text  # an autoencoder has no condition
        with torch.device(device):
            made[name] = nets.builder(kind)(dataclasses.replace(ports, text=text), facts.classes, **own)
    return family(made, facts, **options)  # type: ignore[call-arg, arg-type]


def source_files(recipe: Recipe, facts: DataSpec) -> list[str]:
    """The files that a resolved recipe loads by name: its family, the family that this one speaks for, and their nets.

    A consistency model answers by its source's family.

    Raises:
        UsageError: the recipe is of another version, and has an option that there is no more.
    """
    family = families.family_class(recipe.family["kind"])
    options = bind("family", family.__init__, recipe.family, recipe.family["kind"])
    kinds = {options.pop("kind")}
    if isinstance(source := options.get("source"), dict) and "kind" in source:
        kinds.add(source["kind"])
    chosen = {port.net or recipe.net["kind"] for port in family.ports(facts, **options).values()}
    return sorted([f"genflow/families/{kind}.py" for kind in kinds] + [f"genflow/nets/{net}.py" for net in chosen])


def sample_options(family: Family, values: dict[str, Any]) -> dict[str, Any]:
    """Check sampling options of a family, and fill in every default.

    Raises:
        UsageError: an option is unknown, or a value cannot work.
    """
    forget = getattr(family, "forget", 1.0)
    return _sample_options(type(family), family.facts, values, guided=bool(family.weaker), forget=forget)


def _sample_options(
    family: type[Family], facts: DataSpec, values: dict[str, Any], *, guided: bool = False, forget: float = 1.0
) -> dict[str, Any]:
    options = bind("sample", family.sample, values)
    if options.get("guidance", 1.0) != 1.0 and not (facts.classes or facts.text or guided):
        raise UsageError(
            "sample.guidance needs data with labels or captions, and this data has none", "leave sample.guidance at 1"
        )
    if options.get("guidance", 1.0) != 1.0 and not (forget or guided):
        what = "the empty caption" if facts.text else "predictions without a label"
        raise UsageError(
            f"sample.guidance={options['guidance']:g} needs family.forget above 0, because guidance uses {what}",
            "train with --set family.forget=0.1, or use guidance 1",
        )
    return options
