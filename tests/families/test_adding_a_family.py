"""The page docs/adding-a-family.md is correct: its family is found, keeps the contract, and passes its test."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from families import test_contract
from support import ROOT
from support.small import FACTS

from genflow import build, families
from genflow.recipe.schema import parse

GUIDE = (ROOT / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^## \d\. .*?`([\w/.]+)`\n.*?```(?:python|yaml)\n(.*?)```", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The files of the page; the folder of its family is added to the registry."""
    folder = tmp_path_factory.mktemp("guide")
    files = dict(BLOCKS)
    (folder / "trig_flow.py").write_text(files["genflow/families/trig_flow.py"], encoding="utf-8")
    families.__path__.append(str(folder))
    yield files
    families.__path__.remove(str(folder))
    sys.modules.pop("genflow.families.trig_flow", None)


def test_the_page_has_a_family_a_test_and_a_preset(guide: dict[str, str]) -> None:
    """The page has three files, and its family is a kind as soon as its file exists."""
    assert list(guide) == [
        "genflow/families/trig_flow.py", "tests/families/test_trig_flow.py", "pipelines/trig_flow.yaml",
    ]  # fmt: skip
    assert "trig_flow" in families.kinds()


PROMISES = [value for name, value in vars(test_contract).items() if name.startswith("test_")]
CONTRACT = [test for test in PROMISES if "way" not in inspect.signature(test).parameters]


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda f: f.__name__)
def test_its_family_keeps_the_contract(guide: dict[str, str], promise, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The page's family passes every function of the contract test."""
    wanted = inspect.signature(promise).parameters
    given = {"kind": "trig_flow", "tmp_path": tmp_path}
    for facts in FACTS.values() if "facts" in wanted else [FACTS["grey"]]:
        promise(**{name: {**given, "facts": facts}[name] for name in wanted})


def test_its_samples_are_functions_of_their_seeds(guide: dict[str, str]) -> None:
    """Its samples are functions of their seeds, for all data and samplers."""
    for data in FACTS:
        for sampler in ("ddim", "euler", "heun", "ab2", "ddpm"):
            test_contract.test_a_sample_is_a_function_of_its_seed("trig_flow", data, {"sampler": sampler})


def test_its_test_passes(guide: dict[str, str]) -> None:
    """The test on the page passes."""
    module = ModuleType("test_trig_flow")
    exec(compile(guide["tests/families/test_trig_flow.py"], "test_trig_flow.py", "exec"), module.__dict__)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_its_preset_resolves(guide: dict[str, str]) -> None:
    """The preset on the page fits the signature of the family."""
    text = guide["pipelines/trig_flow.yaml"]
    assert text.startswith("# genflow train trig_flow --data ")
    assert build.resolve(parse(yaml.safe_load(text)), FACTS["grey"]).sample["steps"] == 10
