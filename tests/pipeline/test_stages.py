"""The stages that the programs in jobs/ declare; the declarations are read without importing the programs."""

import importlib
import inspect
import subprocess
import sys

import pytest
from support import ROOT

from genflow.pipeline import stages
from genflow.pipeline.stages import declared
from genflow.recipe.schema import Recipe

NAMES = ["prepare", "train", "encode", "encode_text", "reflow", "evaluate", "compare", "tables"]


def test_stages_are_in_their_declared_order() -> None:
    """The registry has the programs with a STAGE and no other program of jobs/."""
    assert list(declared()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_declaration_is_that_of_the_imported_module(name: str) -> None:
    """The declaration read from the file equals the constant of the imported module, which has main and find."""
    module = importlib.import_module(f"jobs.{name}")
    assert declared()[name] == module.STAGE
    assert list(inspect.signature(module.main).parameters) == ["document", "emit"]
    assert list(inspect.signature(module.find).parameters) == ["document"]


@pytest.mark.parametrize("name", NAMES)
def test_a_declaration_names_what_exists(name: str) -> None:
    """Sections are keys of the recipe, needs point into the document, functions can be imported, keys are unique."""
    stage = declared()[name]
    assert set(stage.sections) <= set(Recipe.model_fields)
    assert {need.section for need in stage.needs} <= {"recipe", "inputs"}
    assert all(callable(stages.function(reference)) for reference in (stage.address, stage.ended) if reference)
    assert len(set(stage.keys)) == len(stage.keys)


def test_declarations_are_read_without_importing_a_program() -> None:
    """Listing the stages imports neither the programs nor torch nor Ray."""
    script = "import sys; from genflow.pipeline.stages import declared; declared(); print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, encoding="utf-8")
    assert set(done.stdout.split()) & {"jobs", "jobs.train", "torch", "ray", "pydantic", "numpy"} == set()


@pytest.mark.parametrize(
    ("job", "result", "shown"),
    [
        ("prepare", {"dataset": "digits-1a"}, "digits-1a"),
        ("encode", {"latents": "faces-1a", "dataset": "faces-2b"}, "faces-1a"),
        ("reflow", {"pairs": "pairs-1a", "run": "teacher-1a"}, "pairs-1a"),
        ("tables", {"report": "tables-1a"}, "tables-1a"),
        ("evaluate", {"rows": [{"evaluation": "flow-1a"}]}, ""),
        ("train", {}, ""),
        ("tune", {"run": "x"}, ""),
    ],
)
def test_the_summary_shows_what_a_stage_makes(job: str, result: dict, shown: str) -> None:
    """The summary shows the artifact's id, but nothing for an evaluation or for a program that is not a stage."""
    assert stages.artifact(job, result) == shown


def test_look_up_inverts_nested() -> None:
    """`look_up` finds the value that `nested` puts at a path; a missing value is None."""
    assert stages.nested("rows.0.evaluation", "a") == {"rows": [{"evaluation": "a"}]}
    assert stages.look_up({"rows": [{"evaluation": "a"}]}, "rows.0.evaluation") == "a"
    assert stages.look_up({"rows": []}, "rows.0.evaluation") is None
    assert stages.look_up({}, "rows.0.evaluation") is None
