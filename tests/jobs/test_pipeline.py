"""Running pipelines: only missing stages run, and a failed stage does not stop the others."""

import functools
import sys
from types import SimpleNamespace

import pytest
from ray import cloudpickle
from support.without_mlflow import silence

from genflow.errors import GenflowError, UsageError
from genflow.pipeline.graph import load
from genflow.recipe.compose import assignments
from genflow.recipe.files import read
from genflow.system.source_hash import resources_dir
from jobs import pipeline
from jobs import pipeline as job

SMALL = {"steps": 3, "batch": 8, "checkpoint_every": 3}


def document(**stages):
    points = {"job": "prepare", "data": {"source": "ring8", "samples": 400}}
    return {"pipeline": {"name": "tiny", "stages": {"points": points, **stages}}}


def train(kind: str, **more):
    net = {"kind": "mlp", "width": 8}
    return {"job": "train", "preset": kind, "data": "points", "net": net, "train": SMALL, **more}


@pytest.fixture
def events():
    return []


def silent_stage_task(job, document, environment):
    """Run a stage in a Ray worker without sending anything to MLflow."""
    from jobs.pipeline import _stage_task

    silence()
    return _stage_task(job, document, environment)


@pytest.fixture
def run(store, monkeypatch, ray_local, events, without_mlflow):
    """Run a pipeline in its own store and collect its events."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    monkeypatch.setattr(job, "_stage_task", silent_stage_task)
    mine = [sys.modules[__name__], sys.modules[silence.__module__]]  # workers cannot import these
    for module in mine:
        cloudpickle.register_pickle_by_value(module)
    yield lambda doc: job.main(doc, lambda event, **fields: events.append({"event": event, **fields}))
    for module in mine:
        cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.ray
def test_a_pipeline_makes_what_is_missing_and_then_nothing(run, events):
    """In a second run every stage is cached; if one stage changes, only that one runs."""
    first = run(document(vae=train("vae"), flow=train("flow_matching")))
    events.clear()
    again = run(document(vae=train("vae"), flow=train("flow_matching")))
    statuses = [e["status"] for e in events if e["event"] == "stage"]
    changed = run(document(vae=train("vae"), flow=train("flow_matching", family={"density": "uniform"})))

    assert not first["cached"]
    assert again["cached"]
    assert statuses == ["cached"] * 3
    assert [stage["cached"] for stage in changed["stages"]] == [True, True, False]


@pytest.mark.ray
def test_a_failing_stage_leaves_the_others(run, store, events):
    """Stages that do not need the failed stage run, and the error names the failed stage."""
    broken = {"job": "evaluate", "runs": ["nowhere"]}
    with pytest.raises(GenflowError, match="stage broken"):
        run(document(broken=broken, flow=train("flow_matching")))

    assert [a.name for a in store.artifacts("runs")] == ["flow_matching-ring8"]
    statuses = {e["name"]: e["status"] for e in events if e["event"] == "stage"}
    assert statuses["broken"] == "failed"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"family": {"density": "unifrom"}}, "stage late: family.density"),
        ({"net": {"kind": "mlp", "widht": 8}}, "stage late: net: unknown key widht"),
        ({"sample": {"stps": 4}}, "stage late: sample: unknown key stps"),
    ],
)
def test_a_wrong_option_of_a_late_stage_costs_no_time(store, monkeypatch, wrong, said):
    """The options of every stage are checked before the first stage runs."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    late = {"job": "train", "preset": "flow_matching", "data": "points", "init": "first", **wrong}
    with pytest.raises(UsageError, match=said):
        job.main(document(first=train("flow_matching"), late=late), lambda event, **fields: None)
    assert not store.artifacts("datasets")


@pytest.mark.ray
def test_a_teacher_its_pairs_and_a_student(run, store):
    """Reflow as a pipeline: actors write the pairs, and the student trains on them."""
    stages = {
        "teacher": train("flow_matching", name="teacher"),
        "pairs": {"job": "reflow", "run": "teacher", "reflow": {"pairs": 1500}, "sample": {"steps": 2}},
        "student": train("flow_matching", name="student", pairs="pairs", init="teacher"),
    }
    done = run(document(**stages))
    made = {stage["stage"]: stage for stage in done["stages"]}
    student = store.get("runs", made["student"]["run"])

    assert made["pairs"]["count"] == 1500
    assert len(list(store.folder("pairs", made["pairs"]["pairs"]).glob("*.arrow"))) == 2
    assert student.manifest["parents"] == [made["points"]["dataset"], made["teacher"]["run"], made["pairs"]["pairs"]]
    assert run(document(**stages))["cached"]


@pytest.mark.ray
@pytest.mark.slow
def test_the_pipeline_of_rectified_flow(run, store):
    """The shipped pipeline runs on digits, and measures teacher and student for each number of evaluations."""
    pipeline = {"name": "rectified_flow", **read(resources_dir() / "pipelines" / "rectified_flow.yaml")}
    tiny = ["data.source=digits", "train.steps=60", "reflow.pairs=2000", "evaluate.samples=99", "evaluate.likelihood=0"]
    done = run({"pipeline": pipeline, "overrides": assignments(tiny)})
    report = next(stage for stage in done["stages"] if stage["stage"] == "report")
    assert len(report["rows"]) == 2
    for row in report["rows"]:
        assert {1, 2, 4, 8, 16} <= {point["nfe"] for point in row["sweep"]}
        assert len({point["sampler"] for point in row["sweep"]}) > 1


class Inline:
    """Ray's functions that the runner calls, executed in this process, to test only the pipeline's bookkeeping."""

    def remote(self, **options):
        return lambda function: SimpleNamespace(remote=lambda *args: functools.partial(function, *args))

    def is_initialized(self):
        return False  # so the GPUs of this machine count

    def wait(self, tasks):
        return tasks[:1], tasks[1:]

    def get(self, task):
        return task()


def test_tables_are_written_even_if_a_training_diverged(store, monkeypatch):
    """The last stage receives the evaluations and the failures, and the pipeline does not fail."""
    received = []

    def stage_task(name, document, environment):
        if name == "tables":
            received.append(document)
            return {"document": {"report": "tables-1a", "cached": False}}
        if name == "train" and document["recipe"]["name"] == "bad":
            return {"error": {"message": "not finite", "hint": "", "code": 1, "kind": "NonFinite"}}
        return {"document": {"rows": [{"evaluation": "good-2b"}]} if name == "evaluate" else {"run": "good-1a"}}

    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    monkeypatch.setitem(sys.modules, "ray", Inline())
    monkeypatch.setattr(job, "_stage_task", stage_task)
    stages = {
        "good": {**train("vae"), "name": "good", "data": "mine"},
        "bad": {**train("gan"), "name": "bad", "data": "mine"},
        "good-m0": {"job": "evaluate", "runs": ["good"]},
        "bad-m0": {"job": "evaluate", "runs": ["bad"]},
    }
    last = {"job": "tables", "needs": list(stages), "study": {"seeds": [0]}}
    made = {}
    whole = load({"name": "tiny", "stages": {**stages, "tables": last}}, "tiny")
    failed = {}
    job._run(whole, made, failed, lambda event, **fields: None)
    pipeline._raise_failures(whole, made, failed)

    assert received[0]["inputs"]["evaluations"] == {"good-m0": "good-2b"}
    failed = received[0]["inputs"]["failed"]
    assert {name: (f["stage"], f["kind"]) for name, f in failed.items()} == {
        "bad": ("bad", "NonFinite"), "bad-m0": ("bad", "NonFinite"),
    }  # fmt: skip
    assert made["tables"]["report"] == "tables-1a"

    made, failed, whole = {}, {}, load({"name": "tiny", "stages": stages}, "tiny")
    job._run(whole, made, failed, lambda event, **fields: None)
    with pytest.raises(GenflowError, match="stage bad: not finite"):
        pipeline._raise_failures(whole, made, failed)
    assert set(made) == {"good", "good-m0"}


def test_data_is_prepared_before_trainings_reserve_cores(store, monkeypatch):
    """Prepare stages run first: with all cores reserved by trainings, Ray Data would give up waiting for one."""
    order = []

    def stage_task(name, document, environment):
        order.append(name)
        return {"document": {"run": "a-1a", "dataset": "points-1a"}}

    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    monkeypatch.setitem(sys.modules, "ray", Inline())
    monkeypatch.setattr(job, "_stage_task", stage_task)
    mine = {f"mine{i}": {**train("vae"), "data": "mine"} for i in range(2)}
    stages = {**mine, **document(theirs=train("gan"))["pipeline"]["stages"]}
    made = {}
    job._run(load({"stages": stages}, "tiny"), made, {}, lambda event, **fields: None)
    assert order == ["prepare", "train", "train", "train"]
    assert len(made) == 4


def test_a_training_that_diverged_is_counted_once_and_kept(store, prepared, monkeypatch, events, without_mlflow):
    """The failure is stored with the run: a pipeline with tables does not train it again, one without does."""
    from genflow import runs
    from genflow.pipeline import plan
    from genflow.training import loop
    from jobs import train as training_job

    data = prepared("ring8", samples=400)
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))

    def diverge(*args, **more):
        raise loop.NonFinite("the loss is not finite (step 7)", "lower the rate")

    monkeypatch.setattr(training_job, "_fit", diverge)
    stages = {"bad": {**train("vae"), "data": data.artifact.id}, "bad-m0": {"job": "evaluate", "runs": ["bad"]}}
    last = {"job": "tables", "needs": list(stages), "study": {"seeds": [0]}}
    alone, whole = load({"stages": stages}, "tiny"), load({"stages": {**stages, "tables": last}}, "tiny")
    with pytest.raises(loop.NonFinite):
        training_job.main(alone.stages[0].document({}), lambda event, **fields: None)

    made, failed = {}, {}
    pipeline._find_existing(whole, made, failed, lambda event, **fields: events.append(fields))
    assert {name: failure["kind"] for name, failure in failed.items()} == {"bad": "NonFinite", "bad-m0": "NonFinite"}
    assert failed["bad"]["message"] == "the loss is not finite (step 7)"
    assert [event["status"] for event in events] == ["failed", "skipped"]
    assert plan.dry_run(whole, store)[0]["state"] == "diverged"
    assert plan.dry_run(alone, store)[0]["state"] == "to do"
    made, failed = {}, {}
    pipeline._find_existing(alone, made, failed, lambda event, **fields: None)
    assert (made, failed) == ({}, {})
    assert runs.divergence(store, runs.plan(store, alone.stages[0].recipe))["code"] == 1
