"""What Ray exports of a run is what the dashboard file shows."""

import json
import re
import time
import urllib.request

import pytest
from support import ROOT

from jobs.runtime.train.prometheus import NAMES, TrainingGauges


def shown() -> set[str]:
    """The metrics that the dashboard's panels ask for."""
    panels = json.loads((ROOT / "deploy/grafana-training.json").read_text())["panels"]
    return {name for panel in panels for t in panel["targets"] for name in re.findall(r"ray_genflow_\w+", t["expr"])}


def test_every_number_has_its_panel() -> None:
    """The dashboard shows each gauge, and none that there is not."""
    assert shown() == {f"ray_genflow_train_{name}" for name in NAMES}


@pytest.mark.ray
def test_ray_exports_them(ray_local: None) -> None:
    """A step's numbers, of a game's two players, are found where Prometheus looks, with the run's name."""
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def __init__(self) -> None:
            self.meters = TrainingGauges("gan-1", "gan")

        def step(self, step: int) -> None:
            numbers = {"loss/generator": 2.0, "loss/critic": 3.0, "gradient_norm/critic": 0.5}
            self.meters({**numbers, "step": step, "images": 32 * step, "position": 0.5}, {"data": 0.001, "loss": 0.01})

    worker = Worker.remote()
    ray.get([worker.step.remote(n) for n in (1, 2)])
    node = next(node for node in ray.nodes() if node["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ends = time.monotonic() + 60
    text = ""
    while lacking := {name for name in shown() if name not in text}:
        assert time.monotonic() < ends, lacking
        time.sleep(1)
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    lines = [line for line in text.splitlines() if line.startswith("ray_genflow_train_loss{")]
    assert {re.search(r'player="(\w+)"', line)[1] for line in lines} == {"generator", "critic"}  # type: ignore[index]
    assert all('run="gan-1"' in line for line in lines)
