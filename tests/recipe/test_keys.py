"""`genflow recipe` and docs/recipe.md: every key with its meaning, default and range, from the code."""

import json
from typing import Any

import pytest
from support import ROOT
from support.commands import Command, in_this_process

from genflow import families, nets
from genflow.commands import keys
from genflow.commands.vocabulary import SECTIONS, key_of
from genflow.errors import UsageError
from genflow.recipe import schema
from genflow.recipe.aliases import OTHER_NAMES


@pytest.fixture
def genflow(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    """Run a command in this process; return (exit code, standard output, standard error)."""
    return in_this_process(monkeypatch, capsys)


def test_the_page_is_up_to_date() -> None:
    """docs/recipe.md equals what `genflow recipe --into` writes; `make docs` updates it."""
    assert (ROOT / "docs/recipe.md").read_text(encoding="utf-8") == keys.page()


def test_every_key_has_a_meaning() -> None:
    """No key of any section, family or net lacks a meaning, values or, unless it is required, a default."""
    every = keys.every()
    assert [key for key in every if not key.meaning or not key.values] == []
    sections = {key.name.partition(".")[0] for key in every}
    assert sections == {*schema.Recipe.model_fields}
    assert {key.of for key in every} == {"", *families.kinds(), *nets.kinds()}
    typed = [key.name for key in every if not key.of and "." in key.name]
    assert typed == [f"{s}.{name}" for s, model in schema.SECTIONS.items() for name in model.model_fields]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("train.lr", {"train.lr"}), ("learning_rate", {"train.lr"}), ("batch_size", {"train.batch"}),
        ("reflow", {"reflow.pairs", "reflow.seed"}), ("guidance_low", {"sample.guidance_low"}),
        ("dit", {"net.patch", "net.width", "net.depth", "net.heads"}),
    ],
)  # fmt: skip
def test_a_word_finds_its_keys(word: str, meant: set[str]) -> None:
    """A key, a section, a family, a net, a key without its section, or the word of another tool."""
    assert {key.name for key in keys.find(word)} == meant


def test_one_key_is_explained(genflow: Command) -> None:
    """Its meaning, default and range, and what the presets set it to."""
    code, out, _ = genflow("recipe", "train.lr")
    assert code == 0
    assert "peak learning rate" in out
    assert "default 0.01; number above 0 and below 10" in out
    assert "presets: autoencoder 0.01" in out
    (key,) = json.loads(genflow("recipe", "train.cpu_minutes", "--json")[1])["keys"]
    assert (key["default"], key["values"]) == ("null", "number above 0 or null")
    assert "fair on a busy machine" in key["meaning"]
    code, _, err = genflow("recipe", "train.lrr")
    assert code == 2
    assert "did you mean train.lr?" in err


def test_words_mean_keys_that_exist() -> None:
    """Every section of the vocabulary is one of the schema, and every word of another tool means something."""
    for sections in SECTIONS.values():
        for section, names in sections.items():
            known = {key.name for key in keys.every()}
            assert {f"{section}.{name}".lstrip(".") for name in names or ()} <= known
    assert key_of("train", "learning-rate") == "train.lr"
    assert key_of("evaluate", "num_inference_steps") == "sample.steps"
    assert key_of("tune", "steps") == "tune.steps"
    assert key_of("train", "nothing") == ""
    assert key_of("prepare", "labels") == "data.labels"  # the word of this command wins over that of another tool
    assert {"learning_rate", "batch_size", "epochs"} <= {*OTHER_NAMES, *OTHER_NAMES.values()}
    with pytest.raises(UsageError, match="no key 'nothing_at_all'"):
        keys.find("nothing_at_all")
