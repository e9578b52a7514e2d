"""Reflow is a dataset: a pair is a function of its number, and a student trains on it by flow matching."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.small import FACTS, family
from support.trained_run import trained_run

from genflow import runs
from genflow.data.pairs import Pairs
from genflow.data.shards import Dataset
from genflow.data.stream import Stream
from genflow.errors import UsageError
from genflow.evaluation import sweep
from genflow.recipe.schema import Evaluate, Recipe, parse
from genflow.sampling import reflow
from genflow.sampling.engine import Engine
from genflow.storage.mirror import CHECKSUM, checksum
from genflow.storage.store import Artifact, Store

ASKED = parse({"reflow": {"pairs": 7}, "sample": {"sampler": "euler", "steps": 3}})


@pytest.fixture
def data(prepared) -> Dataset:
    return prepared("digits", val=0.2)


def task(store: Store, data: Dataset, kind: str = "flow_matching", recipe: Recipe = ASKED) -> reflow.ReflowPlan:
    return reflow.plan(store, trained_run(store, data, kind, steps=2).id, recipe)


def written(store: Store, plan: reflow.ReflowPlan) -> Artifact:
    folder = store.folder("pairs", plan.id)
    folder.mkdir(parents=True)
    for file, first, last in plan.shards:
        reflow.Teacher(plan).write(folder / file, first, last)
    return store.finalize("pairs", plan.id, name=plan.run.name, meta={"dataset": plan.dataset.id})


def test_a_pair_is_what_the_teacher_draws_from_its_noise(store: Store, data: Dataset) -> None:
    """Pair i has the same bits in any range, and its sample is the engine's from that noise."""
    plan = task(store, data)
    teacher = reflow.Teacher(plan)
    seeds, labels, noise, x, captions = teacher.pair(range(7))
    assert captions == []
    again = teacher.pair(range(5, 7))
    assert np.array_equal(seeds[5:], again[0])
    assert np.array_equal(noise[5:], again[2])
    np.testing.assert_allclose(x[5:], again[3], atol=1e-5)
    drawn = Engine.load(plan.run).draw(seeds.tolist(), labels.tolist(), **plan.options).images
    levels = np.clip(np.rint((x + 1) * 17 / 2 - 0.5), 0, 16).transpose(0, 2, 3, 1)
    assert np.abs(levels - drawn).max() <= 1


def test_other_tools_read_the_pairs(store: Store, data: Dataset) -> None:
    """A shard is an Arrow stream of label, seed, noise and x; x is not rounded to grey levels."""
    artifact = written(store, task(store, data))
    (file,) = artifact.path.glob("*.arrow")
    table = pa.ipc.open_stream(file).read_all()
    assert table.column_names == ["label", "seed", "noise", "x"]
    assert table.num_rows == 7
    levels = (np.array(table.column("x")[0].as_py()) + 1) * 17 / 2 - 0.5
    assert np.abs(levels - levels.round()).max() > 0.01


def test_a_student_sees_the_noise_of_each_sample(store: Store, data: Dataset) -> None:
    """A stream over pairs gives each row with its own noise, so the target velocity is exactly noise - x."""
    plan = task(store, data)
    pairs = Pairs.open(written(store, plan), data.facts)
    batch = Stream(pairs, 4, seed=1)(0)
    _, _, noise, x, _ = reflow.Teacher(plan).pair(range(7))
    rows = Stream(pairs, 4, seed=1).rows(0)
    torch.testing.assert_close(batch.noise, torch.from_numpy(noise[rows]))
    torch.testing.assert_close(batch.x, torch.from_numpy(x[rows]), rtol=0, atol=1e-5)


def test_pairs_are_part_of_a_runs_address(store: Store, data: Dataset) -> None:
    """A run on pairs has another id than one without, and pairs of another dataset are rejected."""
    artifact = written(store, task(store, data))
    document = {"family": {"kind": "flow_matching"}, "net": {"kind": "mlp", "width": 8}, "data": {"name": "digits"}}
    plain = runs.plan(store, parse(document))
    document["data"]["pairs"] = artifact.id[:-2]
    student = runs.plan(store, parse(document))
    assert student.recipe.data.pairs == artifact.id
    assert student.id != plain.id
    with pytest.raises(UsageError, match="VAE cannot learn from pairs"):
        runs.plan(store, parse({**document, "family": {"kind": "vae"}, "net": {}}))
    manifest = artifact.path / "manifest.json"
    changed = json.loads(manifest.read_text(encoding="utf-8").replace(data.artifact.id, "other-1"))
    manifest.write_text(json.dumps({**changed, CHECKSUM: checksum(changed)}), encoding="utf-8")
    with pytest.raises(UsageError, match="was trained on other-1"):
        runs.plan(store, parse(document))


@pytest.mark.parametrize(("kind", "recipe", "message"), [
    ("vae", ASKED, "no path between noise and data"),
    ("ddpm", parse({"sample": {"sampler": "ddpm"}}), "a stochastic sampler gives no pairs"),
    ("ddpm", parse({"sample": {"sampler": "ddim", "eta": 0.5}}), "a stochastic sampler gives no pairs"),
])  # fmt: skip
def test_a_run_without_pairs_is_rejected(store: Store, data: Dataset, kind: str, recipe: Recipe, message: str) -> None:
    """A family without an ODE, or a stochastic sampler."""
    with pytest.raises(UsageError, match=message):
        task(store, data, kind, recipe if kind != "vae" else parse({}))


def test_straightness_is_zero_for_lines_and_known_for_arcs() -> None:
    """S = 0 for a constant velocity; on an arc of angle a, S = (a/2 / sin(a/2))^2 - 1 (arc over chord, squared)."""
    model = family("flow_matching", FACTS["points"])
    noise, label = torch.randn(5, 2, 1, 1, generator=torch.Generator().manual_seed(0)), torch.zeros(5, dtype=torch.long)

    class Net(torch.nn.Module):
        angle = 0.0

        def forward(self, x, t, label, r=None):  # type: ignore[no-untyped-def]
            return self.angle * torch.stack([-x[:, 1], x[:, 0]], 1) if self.angle else torch.ones_like(x)

    model.net = Net()
    torch.testing.assert_close(model.straightness(noise, label), torch.zeros(5), rtol=0, atol=1e-6)
    model.net.angle = 0.5
    expected = (0.25 / np.sin(0.25)) ** 2 - 1
    torch.testing.assert_close(model.straightness(noise, label), torch.full((5,), expected), rtol=0.05, atol=0)


def test_the_curve_has_the_best_sampler_at_each_number_of_evaluations(store: Store, data: Dataset) -> None:
    """The budget is in evaluations, not steps; the run's own setting is kept; a student is compared to its teacher."""
    engine = Engine.load(trained_run(store, data, "flow_matching", steps=2, sample={"sampler": "ab2", "steps": 10}))
    found = sweep.settings_to_try(engine, Evaluate(steps=(1, 4), samplers=("euler", "midpoint", "heun")))
    assert found == [{"steps": 1, "sampler": "euler"}, {"steps": 1, "sampler": "heun"},
                     {"steps": 4, "sampler": "euler"}, {"steps": 2, "sampler": "midpoint"}]  # fmt: skip
    with pytest.raises(UsageError, match="unknown sampler eulr"):
        sweep.settings_to_try(engine, Evaluate(samplers=("eulr",)))
    point = lambda nfe, fd, sampler, own=False: {  # noqa: E731
        "nfe": nfe, "fd": {"value": fd}, "sampler": sampler, "own": own,
    }  # fmt: skip
    points = [point(4, 3.0, "ab2", True), point(4, 2.0, "midpoint"), point(1, 9.0, "euler"), point(1, 8.0, "heun")]
    curve = sweep.curve(points)
    assert [(p["nfe"], p["sampler"]) for p in curve] == [(1, "heun"), (4, "ab2")]
    rows = [{"run": "t", "name": "teacher", "sweep": curve},
            {"run": "s", "name": "student", "init": "t", "sweep": [point(1, 5.0, "euler")]}]  # fmt: skip
    (pair,) = sweep.compare_with_teachers(rows)
    assert (pair["name"], pair["nfe"], pair["fd"]["value"]) == ("student", 1, 5.0)
    assert (pair["teacher_sampler"], pair["teacher_fd"]["value"]) == ("heun", 8.0)
