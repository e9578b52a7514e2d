"""Loading pipelines: stages, their dependencies and their order."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT

from genflow.errors import UsageError
from genflow.pipeline.graph import Pipeline, load
from genflow.recipe.files import read
from genflow.system.source_hash import resources_dir

DIGITS = {"job": "prepare", "data": {"source": "digits"}}
FLOW = {"job": "train", "preset": "flow_matching", "data": "digits"}


def pipeline(overrides: dict[str, Any] | None = None, **stages: Any) -> Pipeline:
    return load({"name": "test", "stages": stages}, "test.yaml", overrides)


def names(made: Pipeline) -> list[str]:
    return [stage.name for stage in made.stages]


def test_stages_come_after_what_they_need() -> None:
    """Stages are sorted topologically, and otherwise keep the order of the file."""
    report = {"job": "compare", "runs": ["flow", "vae"]}
    vae = {"job": "train", "preset": "vae", "data": "digits"}
    made = pipeline(report=report, vae=vae, flow=FLOW, digits=DIGITS)
    assert names(made) == ["digits", "vae", "flow", "report"]
    assert [stage.needs for stage in made.stages] == [(), ("digits",), ("digits",), ("flow", "vae")]


def test_names_that_are_not_stages_refer_to_the_store() -> None:
    """A dataset or run that no stage makes is read from the store and adds no dependency."""
    made = pipeline(flow={**FLOW, "data": "faces"}, report={"job": "evaluate", "runs": ["latest"]})
    assert [stage.needs for stage in made.stages] == [(), ()]
    assert made.stages[0].document({})["recipe"]["data"]["name"] == "faces"
    assert made.stages[1].document({})["inputs"] == {"runs": ["latest"]}


def test_documents_contain_the_ids_of_artifacts() -> None:
    """The documents of dependent stages contain the artifact's id of a finished stage."""
    compare = {"job": "compare", "runs": ["flow", "old"], "evaluate": {"samples": 64}}
    made = pipeline(digits=DIGITS, flow=FLOW, report=compare)
    digits, flow, report = made.stages
    done = {"digits": {"dataset": "digits-1a"}, "flow": {"run": "flow-2b"}}
    assert digits.document({})["recipe"]["data"]["source"] == "digits"
    assert flow.document(done)["recipe"]["data"]["name"] == "digits-1a"
    assert flow.document(done)["recipe"]["family"]["kind"] == "flow_matching"
    assert report.document(done)["inputs"] == {"runs": ["flow-2b", "old"]}
    assert report.document(done)["recipe"]["evaluate"]["samples"] == 64


def test_a_stage_overrides_its_preset_and_set_overrides_both() -> None:
    """Priority: defaults < preset < stage < --set; --set applies only to stages that have the section."""
    made = pipeline({"train": {"steps": 9}}, digits=DIGITS, flow={**FLOW, "train": {"steps": 5, "batch": 3}})
    flow = made.stages[1].recipe
    assert (flow.train.steps, flow.train.batch, flow.train.lr) == (9, 3, 0.02)
    assert made.stages[0].recipe.data.source == "digits"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"stages": {}, "stage": {}}, r"unknown key stage \(did you mean stages\?\)"),
        ({"name": "a/b", "stages": {"d": DIGITS}}, "name 'a/b' is invalid"),
        ({"name": "x"}, "a pipeline needs `stages`"),
        ({"stages": []}, "a pipeline needs `stages`"),
        ({"stages": {"d": 3}}, "job must be one of prepare, train, encode, .*, compare, tables, not 3"),
        ({"stages": {"d": {"job": "prepar"}}}, "stage d: job must be one of .* not 'prepar'"),
        ({"stages": {"d": {**DIGITS, "dat": 1}}}, r"stage d: unknown key dat \(did you mean data\?\)"),
        ({"stages": {"d": {"job": "prepare", "data": {"sauce": 1}}}}, "stage d: unknown key data.sauce"),
        ({"stages": {"d": {"job": "prepare", "data": 3}}}, "stage d: data is a section of keys, not 3"),
        ({"stages": {"f": {**FLOW, "data": 3}}}, "stage f: data must name a stage or a dataset, not 3"),
        ({"stages": {"f": {**FLOW, "preset": "flow_match"}}}, r"\(did you mean flow_matching\?\)"),
        ({"stages": {"f": {**FLOW, "preset": 5}}}, "there is no preset 5"),
        ({"stages": {"f": {**FLOW, "preset": "quickstart"}}}, "quickstart is a pipeline"),
        ({"stages": {"f": {**FLOW, "train": {"steps": 0}}}}, "stage f: train.steps: must be greater than 0"),
        ({"stages": {"r": {"job": "compare", "runs": "flow"}}}, "stage r: runs must be a list of stages or runs"),
        ({"stages": {"r": {"job": "compare", "runs": []}}}, "stage r: runs must be a list of stages or runs"),
        ({"stages": {"r": {"job": "compare", "runs": ["r"]}}}, "these stages depend on each other in a cycle: r"),
        ({"stages": {"a": {"job": "compare", "runs": ["b"]}, "b": {"job": "compare", "runs": ["a"]}}}, "cycle: a, b"),
    ],
)
def test_mistakes_name_the_file_the_stage_and_the_key(document: dict[str, Any], message: str) -> None:
    """The error is one line, raised before any stage runs."""
    with pytest.raises(UsageError, match=message) as refused:
        load(document, "test.yaml")
    assert "\n" not in refused.value.message


def test_the_default_name_is_that_of_the_file() -> None:
    """A pipeline without a name gets the file's name without suffix."""
    assert load({"stages": {"digits": DIGITS}}, "pipelines/nightly.yaml").name == "nightly"


@pytest.mark.parametrize("file", sorted(p.name for p in (resources_dir() / "pipelines").glob("*.yaml")))
def test_every_shipped_pipeline_loads(file: str) -> None:
    """Each file in pipelines/ with stages loads, and has the name of its file."""
    document = read(Path(resources_dir() / "pipelines" / file))
    if "stages" not in document:
        return
    made = load(document, file)
    assert set(names(made)) == set(document["stages"])
    assert made.name == Path(file).stem


def test_the_page_about_latents_has_a_pipeline() -> None:
    """Latents are made from the dataset and the autoencoder, and the last stage trains on them."""
    text = (ROOT / "docs" / "latents.md").read_text(encoding="utf-8")
    document = yaml.safe_load("stages:" + text.split("```yaml\nstages:")[1].split("```")[0])
    stages = {stage.name: stage for stage in load(document, "latents.yaml").stages}
    assert set(stages["latents"].needs) == {"data", "autoencoder"}
    assert stages["latents"].recipe.encode.flip
    made = {"data": {"dataset": "d-1"}, "autoencoder": {"run": "a-1"}, "latents": {"latents": "l-1"}}
    document = stages["latents"].document(made)
    assert (document["recipe"]["data"]["name"], document["inputs"]["autoencoder"]) == ("d-1", "a-1")
    assert stages["flow"].document(made)["recipe"]["data"]["latents"] == "l-1"
