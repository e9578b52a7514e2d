"""Studies: seeds x runs x rows as one pipeline."""

from pathlib import Path

import pytest
from support.small import FACTS

from genflow import build
from genflow.errors import UsageError
from genflow.pipeline import graph
from genflow.pipeline.study import Study
from genflow.recipe.schema import Recipe
from genflow.tables import plan

RUNS = {"flow": {"preset": "flow_matching"}, "few": {"preset": "consistency", "init": "flow", "share": 0.4}}
ROWS = {"flow_4": {"title": "a", "run": "flow", "sample": {"steps": 4}}, "few": {"title": "b", "run": "few"},
        "flow_8": {"title": "c", "run": "flow", "sample": {"steps": 8}}}  # fmt: skip


def study(**more) -> Study:
    base = {"seeds": [0, 1], "budget": 0.5, "data": {"data": "digits-1a"}, "runs": RUNS, "rows": ROWS}
    return Study(**{**base, "measured": {"samples": 50, "likelihood": 8}, **more})


def stages(made: Study) -> dict[str, graph.Node]:
    return {stage.name: stage for stage in graph.load(made.pipeline("study"), "study").stages}


def test_a_budget_is_shared_and_reaches_every_training():
    """A share of 1 gets 0.5 minutes of CPU time, and a share of 0.4 gets 0.2."""
    found = stages(study())
    assert (found["flow-s1"].recipe.train.cpu_minutes, found["few-s1"].recipe.train.cpu_minutes) == (0.5, 0.2)
    assert found["flow-s1"].recipe.train.seed == 1
    assert found["few-s1"].needs == ("flow-s1",)
    assert found["flow-s0"].recipe.data.name == "digits-1a"


def test_a_likelihood_is_measured_once_a_run():
    """Only the first row of a run measures the likelihood."""
    found = stages(study())
    counts = {name: found[f"{name}-m0"].recipe.evaluate.likelihood for name in ROWS}
    assert counts == {"flow_4": 8, "few": 8, "flow_8": 0}


def test_a_trial_trains_again_and_samples_as_the_first_row():
    """One trial halves the learning rate for one seed; another trains every seed on data that a stage prepares."""
    trials = {"slow": {"of": ["flow"], "lr_times": 0.5, "seeds": 1, "measured": {"steps": []}},
              "grid": {"of": ["flow"], "data": "grid", "share": 0.1}}  # fmt: skip
    found = stages(study(trials=trials, data={"data": "digits-1a", "grid": {"source": "grid25"}}))
    assert found["flow-slow-s0"].recipe.train.lr == found["flow-s0"].recipe.train.lr / 2
    assert "flow-slow-s1" not in found
    assert found["flow-slow-m0"].recipe.sample == {"steps": 4}
    assert found["flow-slow-m0"].recipe.evaluate.steps == ()
    assert found["flow-grid-s1"].needs == ("grid",)
    assert found["flow-grid-s1"].recipe.train.cpu_minutes == pytest.approx(0.05)
    assert found["grid"].recipe.data.source == "grid25"


def test_all_seeds_learn_the_same_latents():
    """`auto` adds one autoencoder and its latents; a trial on other data, and a student's teacher, stay as they are."""
    trials = {"slow": {"of": ["flow"], "lr_times": 0.5}, "grid": {"of": ["flow"], "data": "grid"}}
    data = {"data": {"source": "digits"}, "grid": {"source": "grid25"}}
    made = study(trials=trials, data=data, latents="auto")
    found = stages(made)
    assert [name for name, stage in found.items() if stage.job == "encode"] == ["latents"]
    assert found["autoencoder"].needs == ("data",)
    assert found["latents"].needs == ("data", "autoencoder")
    assert found["flow-s1"].needs == ("data", "latents")
    assert set(found["few-s0"].needs) == {"data", "latents", "flow-s0"}
    assert found["flow-slow-s0"].recipe.data.latents == "latents"
    assert (found["flow-grid-s0"].needs, found["flow-grid-s0"].recipe.data.latents) == (("grid",), "")
    named = stages(study(latents="digits-2b"))
    assert "autoencoder" not in named
    assert (named["flow-s0"].needs, named["flow-s0"].recipe.data.latents) == ((), "digits-2b")


def test_an_unknown_key_is_an_error(tmp_path: Path):
    """The error suggests the nearest valid key."""
    file = tmp_path / "plan.yaml"
    file.write_text("seeds: [0]\nrunz: {}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="did you mean runs"):
        Study.load(file)


def test_every_stage_of_the_tables_fits_its_family():
    """Each run resolves, on pictures and on points, and its family accepts the sampling options of each row."""
    made = graph.load(plan.load().of("mine-1a", seeds=1).stages("tables"), "tables.yaml")
    resolved: dict[str, tuple[Recipe, str]] = {}
    for stage in made.stages:
        if stage.job == "train":
            points = stage.name.split("-")[1] in ("grid", "uneven")
            source = resolved.get(stage.recipe.init, (None, ""))[0]
            facts = FACTS["points" if points else "grey"]
            recipe = build.resolve(stage.recipe, facts, source, facts if source else None)
            resolved[stage.name] = recipe, "points" if points else "grey"
        elif stage.job == "evaluate":
            run, kind = resolved[stage.needs[0]]
            build.sample_options(build.family_of(run, FACTS[kind]), {**run.sample, **stage.recipe.sample})


def test_the_teachers_cost_is_within_the_budget():
    """The shares of a teacher and of the run that starts from it add up to 1."""
    made = plan.load()
    for run in made.runs.values():
        if "init" in run:
            assert run["share"] + made.runs[run["init"]]["share"] == pytest.approx(1)


def test_the_last_stage_runs_even_if_another_failed():
    """Its document contains the evaluations and the failures; no other stage accepts failures."""
    made = graph.load(plan.load().of("mine-1a", seeds=1).stages("tables"), "tables.yaml")
    last = made.stages[-1]
    assert last.takes_failures
    failed = {"gan-s0": {"stage": "gan-s0", "kind": "NonFinite", "message": "not finite"}}
    document = last.document({"vae-m0": {"rows": [{"evaluation": "vae-1"}]}, "vae-s0": {"run": "vae-1a"}}, failed)
    assert document["inputs"] == {"evaluations": {"vae-m0": "vae-1"}, "failed": failed}
    assert not made.stages[0].takes_failures
