"""The recipe: precedence, number formats, and one-line errors before anything starts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import pytest
from pydantic import BaseModel
from support import ROOT
from support.small import FACTS, recipe, source

from genflow import build, families, nets
from genflow.errors import UsageError
from genflow.recipe.compose import assignments, compose, merge, preset
from genflow.recipe.files import dump, read
from genflow.recipe.schema import SECTIONS, Recipe, flatten, parse
from genflow.system.source_hash import digest

GREY = FACTS["grey"]


def yaml(tmp_path: Path, text: str) -> dict[str, Any]:
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    return read(tmp_path / "recipe.yaml")


def test_later_layers_win() -> None:
    """Layers override in this order: defaults < preset < file < --set < flag."""
    own = preset("ddpm")
    file = {"train": {"lr": 0.3, "batch": 7}, "family": {"schedule": "linear"}}
    made = compose("ddpm", file, assignments(["train.lr=1e-4", "sample.steps=9"]), {"train": {"batch": 5}})
    assert made.train.seed == 0  # a default
    assert made.train.steps == own["train"]["steps"]  # the preset
    assert made.family == {**own["family"], "schedule": "linear"}  # the file, over the preset
    assert made.train.lr == 1e-4  # --set
    assert made.train.batch == 5  # a flag


@pytest.mark.parametrize(
    ("more", "optimizer", "lr"),
    [
        ({}, "adamw", 0.005),
        ({"net": {"kind": "dit", "depth": 2}}, "adamw", 0.005),
        ({"train": {"lr": 0.1}}, "adamw", 0.1),
        ({"train": {"optimizer": "muon"}}, "muon", 0.02),
        ({"net": {"kind": "unet"}}, "muon", 0.02),
        ({"data": {"latents": "none"}}, "muon", 0.02),
    ],
)
def test_a_transformer_on_latents_has_its_own_training(more: dict[str, Any], optimizer: str, lr: float) -> None:
    """A rate belongs to an optimizer, so that of the preset's section `on_latents` applies only with its optimizer."""
    made = compose("flow_matching", {"data": {"latents": "auto"}}, more)
    assert (made.train.optimizer, made.train.lr) == (optimizer, lr)


def test_what_a_transformer_on_latents_predicts_does_not_depend_on_the_optimizer() -> None:
    """The family's part of `on_latents` holds with every optimizer, and the recipe's own setting wins."""
    latents = {"data": {"latents": "auto"}}
    assert compose("ddpm", latents, {"train": {"optimizer": "muon"}}).family["predict"] == "velocity"
    assert compose("ddpm", latents, {"family": {"predict": "v"}}).family["predict"] == "v"
    assert compose("ddpm", latents, {"net": {"kind": "unet2d"}}).family["predict"] == "v"
    assert compose("ddpm", latents, {"size": "s"}).family["predict"] == "v"


@pytest.mark.parametrize(
    ("kind", "net", "rate"),
    [("gan", "auto", 0.005), ("gan", "conv", 0.0014), ("normalizing_flow", "tarflow", 0.006), ("vae", "auto", 0.02)],
)
def test_only_nets_of_latents_have_a_rate_on_latents(kind: str, net: str, rate: float) -> None:
    """A net that `auto` does not choose on latents keeps the preset, and so does a family without that section."""
    assert compose(kind, {"data": {"latents": "auto"}, "net": {"kind": net}}).train.lr == rate


def test_a_search_on_latents_is_around_their_rate() -> None:
    """The space keeps its ratios to the rate of the preset."""
    assert compose("ddpm", {"data": {"latents": "auto"}}).tune.space["train.lr"] == "log:0.001:0.025"


def test_another_kind_replaces_its_section() -> None:
    """Options of the U-Net do not follow a change to the MLP."""
    base = {"net": {"kind": "unet", "multipliers": [1, 2]}, "train": {"lr": 1}}
    assert merge(base, {"net": {"kind": "mlp"}}) == {"net": {"kind": "mlp"}, "train": {"lr": 1}}
    assert merge(base, {"net": {"kind": "unet", "width": 8}})["net"] == {**base["net"], "width": 8}


@pytest.mark.parametrize(
    ("text", "lr"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.e-4", 1e-4), (".1e-3", 1e-4), ("+1e-4", 1e-4), ("0.0001", 1e-4), ("2e0", 2)],
)
def test_a_number_is_a_number(text: str, lr: float, tmp_path: Path) -> None:
    """1e-4 is a number in a file (where YAML 1.1 reads a string) and after --set."""
    assert parse(yaml(tmp_path, f"train: {{lr: {text}}}")).train.lr == pytest.approx(lr)
    assert parse(assignments([f"train.lr={text}"])).train.lr == pytest.approx(lr)


@pytest.mark.parametrize("text", ["true", "True", "null", "None", "[1, 2]", '{"a": 1}', "word", "12", "1e-4"])
def test_values_of_set_are_read_as_json_or_words(text: str) -> None:
    """A value that is not JSON is a string; Python's spellings of true and none are accepted."""
    known = {"true": True, "True": True, "null": None, "None": None, "[1, 2]": [1, 2], '{"a": 1}': {"a": 1},
             "word": "word", "12": 12, "1e-4": 1e-4}  # fmt: skip
    assert assignments([f"net.x={text}"]) == {"net": {"x": known[text]}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"trian": {}}, "unknown key trian (did you mean train?)"),
        ({"train": {"stepz": 1}}, "unknown key train.stepz (did you mean train.steps?)"),
        ({"lr": 1}, "unknown key lr (did you mean train.lr?)"),
        ({5: 1}, "5: keys should be strings, not 5"),
        ({"train": 3}, "train is a section of keys, not 3"),
        ({"net": ["mlp"]}, "net is a section of keys, not ['mlp']"),
        ({"name": "a/b"}, "name: use letters, digits, '.', '_' and '-', at most 80, not 'a/b'"),
        ({"evaluate": {"steps": [1, 0]}}, "evaluate.steps: must be greater than 0, not 0"),
        ({"data": {"channels": 4}}, "data.channels: must be 'auto', 1 or 3, not 4"),
    ],
)
def test_an_error_names_the_key_and_the_allowed_values(document: dict[Any, Any], message: str) -> None:
    """The message has the file, the key, the allowed values and the given value."""
    with pytest.raises(UsageError) as refused:
        parse(document, "my.yaml")
    assert refused.value.message == f"my.yaml: {message}"


@pytest.mark.parametrize(
    "text",
    [
        "train: {lr: 1, lr: 2}", "a: [", "- 1", "just words", "? [1, 2]\n: 3", "train: *nowhere", "\tname: x",
        "name: 2026-13-45", "train: {lr: !!int x}", "[" * 3000, "\x00", "a: 1\n---\nb: 2",
        "name: !!python/object/apply:os.getcwd []",
    ],
)  # fmt: skip
def test_an_invalid_file_is_a_one_line_error(text: str, tmp_path: Path) -> None:
    """Duplicate keys, invalid YAML, invalid dates, deep nesting and unknown tags: one line with the file's name."""
    with pytest.raises(UsageError) as refused:
        yaml(tmp_path, text)
    assert "recipe.yaml" in refused.value.message
    assert "\n" not in refused.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder and invalid UTF-8 are errors; an empty file is an empty recipe."""
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    for path in (tmp_path / "nowhere.yaml", tmp_path, tmp_path / "bytes.yaml"):
        with pytest.raises(UsageError, match="cannot read recipe"):
            read(path)
    assert yaml(tmp_path, "") == {}


def test_a_pipeline_is_not_a_preset() -> None:
    """Composing a pipeline or an unknown preset is an error."""
    with pytest.raises(UsageError, match="is a pipeline"):
        compose("quickstart")
    with pytest.raises(UsageError, match=r"no preset 'dppm' \(did you mean ddpm\?\)"):
        compose("dppm")


@pytest.mark.parametrize("kind", families.kinds())
def test_every_family_has_a_preset_that_resolves(kind: str) -> None:
    """pipelines/<family>.yaml matches the family's signature, and its first line is the command."""
    made = build.resolve(compose(kind), GREY, source(kind, GREY))
    assert made.family["kind"] == kind
    text = (ROOT / "pipelines" / f"{kind}.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# genflow train {kind} --data ")


@pytest.mark.parametrize("kind", families.kinds())
@pytest.mark.parametrize("name", ["plain", "1e-4", "007", "yes", "null", "2026-01-01", "1_000", "0x1F", "1.5"])
def test_a_dumped_recipe_is_read_back(kind: str, name: str, tmp_path: Path) -> None:
    """A resolved recipe survives a round trip, also if its name looks like a number, a date or a boolean."""
    whole = recipe(kind, GREY, name=name, train={"lr": 1e-4, "minutes": 3}, data={"source": "1e5", "name": name})
    (tmp_path / "recipe.yaml").write_text(dump(whole), encoding="utf-8")
    assert parse(read(tmp_path / "recipe.yaml")) == whole


def test_digests_are_of_values() -> None:
    """A digest does not depend on the order of keys, but on every value."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert flatten({"train": {"lr": 1}, "name": "x"}) == {"train.lr": 1, "name": "x"}


def leaves(kind: str) -> Iterator[tuple[str, str, Any]]:
    """Every key of a recipe with its field: of the typed sections, and of those whose schema is a signature."""
    own = families.family_class(kind)
    schemas: dict[str, type[BaseModel]] = {**SECTIONS, "sample": build.schema(own.sample)}
    schemas["family"] = build.schema(own.__init__)
    schemas |= {f"net:{net}": build.schema(nets.builder(net)) for net in nets.kinds()}
    for section, schema in schemas.items():
        yield from ((section, key, field) for key, field in schema.model_fields.items())


def wrong(field: Any) -> Iterator[Any]:
    """Values of a wrong type and values just out of range."""
    yield {"a": "mapping"}
    if field.annotation is not str:
        yield "banana"
    if get_origin(field.annotation) is not tuple:
        yield [[1]]
    yield float("nan")
    for bound in field.metadata:
        for name, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
            if hasattr(bound, name):
                yield getattr(bound, name) + step
    if get_origin(field.annotation) is tuple:
        yield [-1]
        yield from () if "float" in str(field.annotation) else ([0.5],)


MUTATIONS = [(kind, *leaf) for kind in families.kinds() for leaf in leaves(kind)]


@pytest.mark.parametrize(("kind", "section", "key", "field"), MUTATIONS, ids=[".".join(m[:3]) for m in MUTATIONS])
def test_every_key_rejects_invalid_values(kind: str, section: str, key: str, field: Any) -> None:
    """A misspelt key, a wrong type and a value out of range are one-line errors that name the key."""
    section, _, net = section.partition(":")
    base = {"kind": kind} if section == "family" else {"kind": net} if net else {}
    changes = [{f"{key}x": 1}, *({key: value} for value in wrong(field))]
    for change in changes:
        document = {"family": {"kind": kind}, section: {**base, **change}}
        with pytest.raises(UsageError) as refused:
            build.resolve(parse(document), GREY, source(kind, GREY))
        assert f"{section}.{key}" in refused.value.message or f"{key}x" in refused.value.message, change
        assert "\n" not in refused.value.message


def test_the_empty_recipe_is_the_defaults() -> None:
    """An empty document is the default recipe, which is frozen."""
    assert parse({}) == Recipe()
    with pytest.raises(ValueError, match="frozen"):
        Recipe().train.lr = 1  # type: ignore[misc]


def test_a_replaced_section_is_validated_and_the_others_are_kept() -> None:
    """`replace` parses the given sections and keeps all others."""
    whole = parse({"name": "a", "train": {"steps": 7}, "net": {"kind": "mlp"}})
    changed = whole.replace(train={"lr": 0.5}, init="b")
    assert changed.train == parse({"train": {"lr": 0.5}}).train
    assert (changed.name, changed.init, changed.net) == ("a", "b", {"kind": "mlp"})
    assert changed == parse(changed.model_dump(mode="json"))
    assert whole.train.steps == 7
    with pytest.raises(UsageError, match=r"did you mean train\.lr"):
        whole.replace(train={"lrr": 1})
