"""Recipes become objects in one module, and signatures are the only schema of their sections."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Annotated, Literal

import pytest
import torch
from pydantic import Field
from support.small import FACTS, learns, recipe

from genflow import build, families, nets, runs
from genflow.errors import UsageError
from genflow.recipe.schema import parse
from genflow.specs import DataSpec

GREY = FACTS["grey"]


def function(
    self: object, *, steps: Annotated[int, Field(ge=1)] = 3, mode: Literal["a", "b"] = "a", wide: bool = True
) -> None:
    """An example of a signature."""


def test_a_signature_is_a_schema() -> None:
    """Defaults are filled in, and text is converted to the annotated type."""
    assert build.bind("sample", function, {}) == {"steps": 3, "mode": "a", "wide": True}
    assert build.bind("sample", function, {"steps": "7", "mode": "b"})["steps"] == 7
    assert build.bind("net", function, {"kind": "x"}, "x")["kind"] == "x"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 1}, r"sample: unknown key step \(did you mean steps\?\)"),
        ({"self": 1}, "sample: unknown key self"),
        ({"steps": 0}, "sample.steps: must be at least 1, not 0"),
        ({"steps": 2.5}, "sample.steps: must be a whole number"),
        ({"mode": "c"}, "sample.mode: must be 'a' or 'b', not 'c'"),
        ({"wide": "banana"}, "sample.wide: must be true or false"),
    ],
)
def test_values_that_do_not_fit_a_signature_are_rejected(values: dict[str, object], message: str) -> None:
    """The message is one line, and the hint lists the keys of the section."""
    with pytest.raises(UsageError, match=message) as refused:
        build.bind("sample", function, values)
    assert refused.value.hint == "keys of sample: steps, mode, wide"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "the recipe names no family"),
        ({"family": {"kind": "dppm"}}, r"unknown family 'dppm' \(did you mean ddpm\?\)"),
        ({"family": {"kind": ["ddpm"]}}, "unknown family"),
        ({"family": {"kind": "ddpm"}, "train": {"batch": 2}, "cluster": {"workers": 3}}, "batch=2 cannot be shared"),
        ({"family": {"kind": "vae"}, "net": {"kind": "unet"}}, "net unet turns pictures into pictures"),
    ],
)
def test_recipes_that_cannot_work_are_rejected(document: dict, message: str) -> None:
    """`resolve` rejects a recipe with any wrong part."""
    with pytest.raises(UsageError, match=message):
        build.resolve(parse(document), GREY)


def test_the_net_follows_from_the_data() -> None:
    """A family has a default net for points and one for pictures, and the recipe can override it."""
    for kind in families.kinds():
        if families.family_class(kind).teacher == "required":
            continue  # the net is the source's
        plain = parse({"family": {"kind": kind}})
        for facts in (FACTS["points"], GREY) if learns(kind, FACTS["points"]) else (GREY,):
            assert build.resolve(plain, facts).net["kind"] == families.family_class(kind).default_net_for(facts)["kind"]
        assert build.resolve(plain.replace(net={"kind": "auto"}), GREY) == build.resolve(plain, GREY)
        own = build.resolve(plain, GREY).net["kind"]
        assert build.resolve(plain.replace(net={"kind": own, "width": 8}), GREY).net["width"] == 8


def test_a_resolved_recipe_determines_the_family() -> None:
    """Equal seeds and recipes give equal weights, and options reach the family and its net."""
    chosen = recipe("ddpm", GREY, "mlp", family={"T": 50, "predict": "x"})
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append(build.family_of(chosen, GREY))
    assert (made[0].T, made[0].predict, made[0].net.enter.out_features) == (50, "x", 32)
    assert all(torch.equal(p, q) for p, q in zip(made[0].parameters(), made[1].parameters(), strict=True))


def test_folders_are_registries() -> None:
    """Helper modules are not kinds, and every kind gives one class or one builder."""
    assert "base" not in families.kinds()
    assert "layers" not in nets.kinds()
    assert {"ddpm", "flow_matching", "vae"} <= set(families.kinds())
    assert {"conv", "dit", "mlp", "unet"} <= set(nets.kinds())
    assert len({families.family_class(kind) for kind in families.kinds()}) == len(families.kinds())
    assert all(callable(nets.builder(kind)) for kind in nets.kinds())


def test_the_address_of_a_run_follows_from_what_decides_its_result() -> None:
    """Training options and data change the address; name, workers, evaluation and reporting do not."""
    base = recipe("ddpm", GREY, "mlp")
    address = runs.address(base, GREY)
    same = (
        {"name": "other"}, {"cluster": {"workers": 2}}, {"evaluate": {"samples": 16}},
        {"train": {"log_every": 1, "checkpoint_every": 7, "threads": 2}},
    )  # fmt: skip
    other = ({"train": {"seed": 1}}, {"train": {"lr": 0.5}}, {"family": {"T": 10}})
    assert {runs.address(recipe("ddpm", GREY, "mlp", **change), GREY) for change in same} == {address}
    assert address not in {runs.address(recipe("ddpm", GREY, "mlp", **change), GREY) for change in other}
    assert address != runs.address(base, replace(GREY, fingerprint="other"))


def test_the_files_that_a_recipe_loads_by_name_are_all_known() -> None:
    """A VAE's flow prior is another net; a consistency model answers by its source's family."""
    prior = build.source_files(recipe("vae", GREY, family={"prior": "flow"}), GREY)
    assert prior == ["genflow/families/vae.py", "genflow/nets/conv.py", "genflow/nets/mlp.py"]
    assert "genflow/families/flow_matching.py" in build.source_files(recipe("consistency", GREY), GREY)


def test_an_older_run_has_the_default_of_a_newer_option() -> None:
    """A recipe that lacks a newer option is read with its default."""
    whole = recipe("vae", GREY)
    older = whole.replace(family={key: value for key, value in whole.family.items() if key != "prior"})
    theirs, ours = build.family_of(older, GREY), build.family_of(whole, GREY)
    assert [p.shape for p in theirs.parameters()] == [p.shape for p in ours.parameters()]


def test_a_signature_is_made_a_schema_once() -> None:
    """The model of a function and a kind is kept: making one costs more than drawing a point."""
    assert build.schema(function) is build.schema(function)
    assert build.schema(function, "x") is build.schema(function, "x")
    assert "kind" not in build.schema(function).model_fields


def test_the_form_of_captions_comes_from_the_facts() -> None:
    """Nets read captions if the facts have them, and not labels; facts without the field have none."""
    facts = replace(FACTS["captioned"], class_names=("a", "b"))
    assert DataSpec.from_json(json.dumps(facts.to_json())) == facts
    later = facts.to_json() | {"text": {**facts.to_json()["text"], "later": 1}}
    assert DataSpec.from_json(later) == facts
    assert DataSpec.from_json({"shape": [1, 8, 8], "levels": 17}).text is None
    for kind in ("flow_matching", "vae", "gan"):
        names = dict(build.family_of(recipe(kind, facts), facts).named_parameters())
        assert any(name.endswith("condition.text.weight") for name in names)
        assert not any(name.endswith("condition.label.weight") for name in names)


def test_an_autoencoder_has_no_condition() -> None:
    """It learns captioned pictures as any others, although its net reads no captions."""
    facts = replace(GREY, text=FACTS["captioned"].text)
    assert recipe("autoencoder", facts).net["kind"] == "autoencoder"


def test_captions_allow_guidance() -> None:
    """Guidance needs labels or captions; the error names both."""
    assert recipe("flow_matching", FACTS["captioned"], sample={"guidance": 3}).sample["guidance"] == 3
    with pytest.raises(UsageError, match="needs data with labels or captions, and this data has none"):
        recipe("flow_matching", FACTS["colour"], sample={"guidance": 3})


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ("other", "the run of `init` read captions by other, and this one reads captions by small"),
        ("", "the run of `init` read no captions, and this one reads captions by small"),
    ],
)
def test_a_run_on_other_captions_is_no_start(theirs: str, message: str) -> None:
    """The weights of a net have a meaning for one text encoder only."""
    facts = FACTS["captioned"]
    assert facts.text
    other = replace(facts, text=replace(facts.text, encoder=theirs) if theirs else None)
    began = recipe("flow_matching", other)
    with pytest.raises(UsageError, match=f"^{message}$"):
        build.resolve(parse({"family": {"kind": "flow_matching"}}), facts, began, other)
    assert build.resolve(parse({"family": {"kind": "flow_matching"}}), facts, recipe("flow_matching", facts), facts)


@pytest.mark.parametrize(
    ("shape", "patch", "width"),
    [
        ((4, 16, 16), 4, 192), ((16, 8, 8), 2, 192), ((16, 32, 32), 4, 192), ((16, 10, 20), 2, 192),
        ((16, 9, 9), 3, 192), ((8, 8, 8), 2, 128), ((8, 7, 7), 1, 128),
    ],
)  # fmt: skip
def test_latents_have_a_transformer(shape: tuple[int, int, int], patch: int, width: int) -> None:
    """There are about 4 x 4 patches, and a small net for small latents; the recipe wins; a GAN keeps its own net."""
    latents = DataSpec(shape, None, autoencoder="ae-1")
    plain = parse({"family": {"kind": "flow_matching"}, "net": {"depth": 1}})
    net = build.resolve(plain, latents).net
    assert (net["kind"], net["depth"], net["width"]) == ("dit", 1, width)
    assert net["patch"] == patch
    assert build.resolve(parse({"family": {"kind": "gan"}}), latents).net["kind"] == "fixup"


def test_an_outline_needs_no_compiler() -> None:
    """Checking a recipe before a training takes less time than to import torch's compiler, for every family and net."""
    script = """
import sys
from genflow import build, families
from genflow.recipe.schema import parse
from genflow.specs import DataSpec
facts = DataSpec((1, 16, 16), 256, tuple("0123456789"), {"train": 10})
flow = build.resolve(parse({"family": {"kind": "flow_matching"}}), facts)
for kind in families.kinds():
    source = flow if families.family_class(kind).teacher == "required" else None
    build.resolve(parse({"family": {"kind": kind}}), facts, source)
for net in ("mlp", "dit", "unet"):
    build.resolve(parse({"family": {"kind": "ddpm"}, "net": {"kind": net}}), facts)
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
