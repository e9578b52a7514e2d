"""The quality table: its plan is valid, its numbers are those of the evaluations, and its command writes it."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import ROOT
from support.small import FACTS
from support.trained_run import trained_run

from genflow import build
from genflow.errors import UsageError
from genflow.evaluation import evaluate
from genflow.evaluation.features import classifier
from genflow.pipeline import graph
from genflow.recipe.schema import Evaluate, Recipe
from genflow.specs import DataSpec
from genflow.storage.store import Store

HOME = ROOT
spec = importlib.util.spec_from_file_location("results", HOME / "benchmarks" / "results.py")
results = importlib.util.module_from_spec(spec)
sys.modules["results"] = results  # dataclasses look up their module
spec.loader.exec_module(results)


@pytest.mark.parametrize("path", [results.PLAN, results.PLAN.with_name("latents.yaml")], ids=lambda path: path.stem)
def test_every_stage_of_the_plan_fits_its_family(path: Path) -> None:
    """Each run resolves with its initial run, and its family accepts the sampling options of each row."""
    plan, resolved, learned = results.Plan.load(path), dict[str, Recipe](), dict[str, DataSpec]()
    for stage in graph.load(plan.pipeline("results"), path.name).stages:
        if stage.job == "train":
            latents = any(need.startswith("latents") for need in stage.needs)
            facts = learned[stage.name] = FACTS["latents" if latents else "grey"]
            recipe = stage.recipe.replace(data={})  # the pairs do not exist yet
            source = resolved.get(recipe.init)
            resolved[stage.name] = build.resolve(recipe, facts, source, facts if source else None)
        elif stage.job in ("reflow", "evaluate"):
            run = resolved[stage.needs[0]]
            build.sample_options(
                build.family_of(run, learned[stage.needs[0]]), {**run.sample, **stage.recipe.sample}
            )


def test_the_goals_name_rows_of_the_plan() -> None:
    """A goal that is relative to another row names an existing row with the same seeds."""
    plan = results.Plan.load(results.PLAN.with_name("latents.yaml"))
    others = [row["goal"]["fd_of"]["row"] for row in plan.rows.values() if "goal" in row]
    assert others
    assert all(plan.seeds_of(plan.rows[other]["run"]) == plan.seeds for other in others)


def test_seeds_reach_training_pairs_and_measuring() -> None:
    """The stages of a seed use this seed, and depend only on stages of the same seed."""
    stages = graph.load(results.Plan.load(results.PLAN).pipeline("results"), "results.yaml").stages
    for stage in stages:
        seed = stage.name[-1]
        section = {"train": stage.recipe.train, "reflow": stage.recipe.reflow, "evaluate": stage.recipe.evaluate}
        if stage.job in section:
            assert section[stage.job].seed == int(seed)
            assert all(need == "data" or need[-1] == seed for need in stage.needs)


def test_selected_rows_include_the_runs_that_they_need() -> None:
    """A reflow row selects its run, its pairs and their teacher; an unknown row is an error."""
    plan = results.Plan.load(results.PLAN)
    assert set(plan.select_rows(["reflow_1"]).runs) == {"flow", "pairs", "reflow"}
    with pytest.raises(UsageError, match="no row gann"):
        plan.select_rows(["gann"])


@pytest.fixture
def found(store, prepared, monkeypatch):
    """Two seeds of a VAE and one of flow matching, measured; the third run failed."""
    monkeypatch.setattr(classifier, "MAX_STEPS", 20)
    monkeypatch.setattr(classifier, "MIN_STEPS", 20)
    data = prepared("digits", val=0.2)

    def measured(kind, seed):
        run = trained_run(store, data, kind, name=f"{kind}-{seed}")
        options = Evaluate(samples=60, steps=(), likelihood=4, bootstrap=3, seed=seed)
        return evaluate.evaluate(store, run, data.artifact, options, lambda event, **fields: None)

    return {"vae": {s: measured("vae", s) for s in (0, 1)}, "flow": {0: measured("flow_matching", 0)}, "gan": {}}


def test_the_page_agrees_with_the_evaluations(found, store, tmp_path) -> None:
    """The page has the means over seeds and the failures, and its folder has the grids and numbers."""
    rows = {name: {"title": name.upper(), "run": name, "goal": {"fd": 1e-9, "recall": 0.0}} for name in found}
    plan = results.Plan(seeds=[0, 1], goal_floor=0.65, rows=rows)
    out = tmp_path / "results.md"
    results.write(plan, found, ["gan-s0: the loss is not finite"], "make results", store, out)
    text = out.read_text(encoding="utf-8")

    cells = {line.split(" | ")[0].strip("| "): line.strip("|\n ").split(" | ") for line in text.splitlines()}
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| VAE")]
    values = [m["metrics"]["fd"]["value"] for m in found["vae"].values()]
    assert table[0][3].startswith(f"{results.number(float(np.mean(values)))} (")
    assert table[0][0] == "VAE"
    assert table[0][-1] == "≤ 0.0 × floor: no; recall ≥ 0.00: yes"
    assert table[1][1:] == [results.number(value) for value in values]
    assert cells["GAN"][1] == "—"
    assert "- gan-s0: the loss is not finite" in text
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "flow.png", "real.png", "results.json", "vae.png",
    ]  # fmt: skip
    numbers = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))
    assert [m["metrics"]["fd"]["value"] for m in numbers["vae"]] == values


def test_a_goal_relative_to_another_row_holds_for_every_seed(found, store, tmp_path) -> None:
    """The ratio is of the seeds that both rows have; one seed above the goal is enough to miss it."""
    fd = {row: [m["metrics"]["fd"]["value"] for m in found[row].values()] for row in found}
    ratio = fd["vae"][0] / fd["flow"][0]
    for times, verdict in ((1.01 * ratio, "yes"), (0.99 * ratio, "no")):
        goals = {"vae": {"fd_of": {"row": "flow", "times": times}}, "flow": {"fd_of": {"row": "gan", "times": 1}}}
        rows = {name: {"title": name.upper(), "run": name, "goal": goals.get(name, {})} for name in found}
        plan = results.Plan(seeds=[0, 1], title="Latents", about="Two rows.\n", rows=rows)
        results.write(plan, found, [], "make results-latents", store, tmp_path / "page.md")
        text = (tmp_path / "page.md").read_text(encoding="utf-8")
        assert f"≤ {times} × FLOW, for every seed: {verdict} ({ratio:.2f})" in text
        assert "≤ 1 × GAN, for every seed: not measured" in text
        alone = replace(plan, rows={"vae": plan.rows["vae"]})
        text_alone = results.page(alone, {"vae": found["vae"]}, [], "make results-latents", store, "page")
        assert f"≤ {times} × flow, for every seed: not measured" in text_alone
    assert "# Latents\n\nTwo rows.\n\n" in text
    assert "1 to 2 seeds per run" in text
    agreement = [m["metrics"]["agreement"]["value"] for m in found["vae"].values()]
    assert f"| {100 * np.mean(agreement):.1f} % |" in text
    assert "rec. fd / dB |" not in text  # no run has an autoencoder


@pytest.mark.slow
@pytest.mark.ray
def test_the_command_makes_the_table(tmp_path) -> None:
    """The command makes every row on digits with tiny budgets; a second run makes no artifact and the same page."""
    out = tmp_path / "results.md"
    tiny = ("data.source=digits", "train.steps=5", "reflow.pairs=40", "evaluate.samples=64", "evaluate.likelihood=4")
    command = [sys.executable, "benchmarks/results.py", "--seeds", "0", "--out", str(out)]
    command += [word for value in tiny for word in ("--set", value)]
    variables = {**os.environ, "GENFLOW_STORE": str(tmp_path / "store"), "PYTHONPATH": str(HOME)}
    subprocess.run(command, cwd=HOME, env=variables, check=True, timeout=1200)
    first, kept = out.read_text(encoding="utf-8"), len(Store(tmp_path / "store").artifacts("evaluations"))
    subprocess.run(command, cwd=HOME, env=variables, check=True, timeout=300)
    assert kept == len(results.Plan.load(results.PLAN).rows)
    assert out.read_text(encoding="utf-8") == first
    assert "What failed" not in first
