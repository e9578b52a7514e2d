"""The metrics that Ray exports for a run are those that the dashboard file shows."""

import json
import re
import time
import urllib.request

import pytest
from support import ROOT

from jobs.runtime.train.prometheus import NAMES, TrainingGauges


def queried() -> set[str]:
    """The metrics that the dashboard's panels query."""
    panels = json.loads((ROOT / "deploy/grafana-training.json").read_text(encoding="utf-8"))["panels"]
    return {name for panel in panels for t in panel["targets"] for name in re.findall(r"ray_genflow_\w+", t["expr"])}


def test_every_gauge_has_its_panel() -> None:
    """The dashboard queries each gauge, and no other."""
    assert queried() == {f"ray_genflow_train_{name}" for name in NAMES}


@pytest.mark.ray
def test_ray_exports_the_gauges(ray_local: None) -> None:
    """The numbers of a step with two players are on the metrics page of the node, with the run's name."""
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def __init__(self) -> None:
            self.gauges = TrainingGauges("gan-1", "gan")

        def step(self, step: int) -> None:
            numbers = {"loss/generator": 2.0, "loss/critic": 3.0, "gradient_norm/critic": 0.5}
            self.gauges({**numbers, "step": step, "images": 32 * step, "position": 0.5}, {"data": 0.001, "loss": 0.01})

    worker = Worker.remote()
    ray.get([worker.step.remote(n) for n in (1, 2)])
    node = next(node for node in ray.nodes() if node["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ends = time.monotonic() + 60
    text = ""
    while missing := {name for name in queried() if name not in text}:
        assert time.monotonic() < ends, missing
        time.sleep(1)
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    lines = [line for line in text.splitlines() if line.startswith("ray_genflow_train_loss{")]
    assert {re.search(r'player="(\w+)"', line)[1] for line in lines} == {"generator", "critic"}  # type: ignore[index]
    assert all('run="gan-1"' in line for line in lines)
