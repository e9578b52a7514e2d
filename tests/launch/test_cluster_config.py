"""cluster.yaml and deploy/: they match their templates, Ray and KubeRay accept them, and they are secure."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support import ROOT

from genflow.cli import serve
from genflow.launch import cluster_config
from genflow.system.documents import Json

LAUNCHED = ("cluster.yaml", "deploy/gcp.yaml", "deploy/onprem.yaml")
MANIFESTS = ("deploy/kuberay/cluster.yaml", "deploy/kuberay/job.yaml", "deploy/kuberay/service.yaml")


@pytest.fixture(autouse=True)
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a Ray token and an ssh key."""
    for name in (".ray/auth_token", ".ssh/id_ed25519"):
        (tmp_path / name).parent.mkdir(mode=0o700)
        (tmp_path / name).touch(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    return tmp_path / ".ray/auth_token"


def read(name: str) -> Json:
    return cluster_config.read(ROOT / name)


def test_the_files_match_their_templates() -> None:
    """`make deploy` would change no file."""
    done = subprocess.run(
        [sys.executable, "deploy/render.py", "--check"], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", LAUNCHED)
def test_rays_schema_accepts_it(name: str) -> None:
    """The shipped files satisfy the schema of `ray up`."""
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(read(name), schema)


@pytest.mark.parametrize("name", [*LAUNCHED, *MANIFESTS])
def test_a_shipped_file_has_no_problem(name: str) -> None:
    """`genflow cluster validate` finds no problem in a shipped file."""
    assert cluster_config.problems(read(name), ROOT) == []


@pytest.mark.parametrize("name", LAUNCHED)
def test_access_is_restricted(name: str) -> None:
    """Token authentication on every node, a private token file, the dashboard on the loopback; only workers on spot."""
    cluster = read(name)
    starts = [" ".join(cluster[f"{node}_start_ray_commands"]) for node in ("head", "worker")]
    assert all("RAY_AUTH_MODE=token" in start for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert any("chmod 600 ~/.ray/auth_token" in command for command in cluster["setup_commands"])
    for kind, node in cluster.get("available_node_types", {}).items():
        spot = "spot" in json.dumps(node["node_config"]) or "preemptible" in json.dumps(node["node_config"])
        assert spot == (kind != cluster["head_node_type"])
        assert node["min_workers"] == 0 <= node["max_workers"]


@pytest.mark.parametrize("name", LAUNCHED)
def test_its_first_line_is_the_command(name: str) -> None:
    """The first line of a cluster file shows the command that starts it."""
    assert f"up {name}" in (ROOT / name).read_text(encoding="utf-8").partition("\n")[0]


def start(which: str, old: str, new: str) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        key = f"{which}_start_ray_commands"
        document[key] = [command.replace(old, new) for command in document[key]]

    return change


def put(*path: Any, value: Any) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def drop(*path: str) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]

    return change


OPEN_RULE = {"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
SPOT = {"InstanceMarketOptions": {"MarketType": "spot"}}


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("cluster.yaml", put("max_worker", value=1), "'max_worker' was unexpected"),
        ("cluster.yaml", put("provider", "security_group", value={"IpPermissions": [OPEN_RULE]}), "open to the inter"),
        ("cluster.yaml", put("provider", value={}), "provider: 'type' is a required property"),
        ("cluster.yaml", start("head", "RAY_AUTH_MODE=token", ""), "head_start_ray_commands: Ray starts without RAY_A"),
        ("cluster.yaml", start("worker", "RAY_AUTH_MODE=token", ""), "worker_start_ray_commands: Ray starts without"),
        ("cluster.yaml", drop("head_start_ray_commands"), "no command starts Ray with RAY_AUTH_MODE=token"),
        ("cluster.yaml", start("head", "127.0.0.1", "0.0.0.0"), "exposes the dashboard to the network"),
        ("cluster.yaml", drop("file_mounts"), "token is not copied to the nodes"),
        ("cluster.yaml", put("setup_commands", value=["true"]), "other users on the nodes can read"),
        ("cluster.yaml", put("setup_commands", 0, value="export RAY_AUTH_TOKEN=x"), "a command contains a secret"),
        ("cluster.yaml", put("setup_commands", 1, value="pip install 'ray[train]==2.9.1'"), "Ray 2.9.1 on the cluster"),
        ("cluster.yaml", put("setup_commands", 1, value="uv venv --python 3.10"), "Python 3.10: genflow needs 3.11"),
        ("cluster.yaml", put("docker", value={"image": "rayproject/ray:2.50.0-py311"}), "docker: Ray 2.50.0 on"),
        ("cluster.yaml", put("head_node_type", value="gpu"), "the head is a spot machine"),
        ("cluster.yaml", put("head_node_type", value="unknown"), "'unknown' is not one of head, gpu, cpu"),
        ("cluster.yaml", drop("max_workers"), "max_workers: is missing"),
        ("cluster.yaml", drop("available_node_types", "gpu", "max_workers"), "gpu.max_workers: is missing"),
        ("cluster.yaml", put("available_node_types", "cpu", "min_workers", value=3), "min_workers is above max"),
        ("deploy/onprem.yaml", put("provider", "worker_ips", value=["10.0.0.1"]), "10.0.0.1 is listed twice"),
        ("deploy/onprem.yaml", drop("provider", "head_ip"), "provider.head_ip is missing"),
        ("deploy/onprem.yaml", put("auth", "ssh_private_key", value="/no/key"), "file /no/key does not exist"),
        ("deploy/kuberay/cluster.yaml", drop("spec", "authOptions"), "authOptions: mode is not token"),
        ("deploy/kuberay/cluster.yaml", put("spec", "rayVersion", value="2.9.0"), "rayVersion: 2.9.0 on the cluster"),
        ("deploy/kuberay/job.yaml", put("spec", "rayClusterSpec", "headGroupSpec", "serviceType", value="LoadBalancer"),
         "LoadBalancer exposes the dashboard"),
        ("deploy/kuberay/cluster.yaml", put("spec", "workerGroupSpecs", 0, "maxReplicas", value=-1), "minReplicas <="),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(name: str, change: Callable[[Json], None], line: str) -> None:
    """Each mistake is reported in one line, with at most one problem that follows from it."""
    document = copy.deepcopy(read(name))
    change(document)
    found = cluster_config.problems(document, ROOT)
    assert [problem for problem in found if line in problem], found
    assert len(found) <= 2
    assert not [problem for problem in found if "\n" in problem]


def test_a_token_that_others_can_read(token: Path) -> None:
    """A token file that other users can read is a problem, and a missing token file is another."""
    token.chmod(0o644)
    (problem,) = cluster_config.problems(read("cluster.yaml"), ROOT)
    assert "other users can read" in problem
    token.unlink()
    (problem,) = cluster_config.problems(read("cluster.yaml"), ROOT)
    assert "genflow doctor creates it" in problem


def clusters_of(name: str) -> Iterator[Json]:
    spec = read(name)["spec"]
    yield spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pod_of_kuberay(name: str) -> None:
    """Every pod mounts the store at GENFLOW_STORE, has resource limits and is not root; the head runs no tasks."""
    (cluster,) = clusters_of(name)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["securityContext"]["runAsNonRoot"] is True
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        assert variables["GENFLOW_STORE"] in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert [group["maxReplicas"] for group in cluster["workerGroupSpecs"]] == [2, 4]


def test_the_environment_of_a_serving_pod() -> None:
    """The RayService sets the same variables as `genflow serve` does when it starts Ray."""
    from jobs.serve import SERVE_VARIABLES

    (cluster,) = clusters_of("deploy/kuberay/service.yaml")
    (container,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert SERVE_VARIABLES.items() <= {entry["name"]: entry["value"] for entry in container["env"]}.items()


def test_a_rayservice_contains_the_config_of_serve(tmp_path: Path) -> None:
    """The config of `genflow serve --config-out` and the shipped example satisfy the schema of Ray Serve."""
    from ray.serve.schema import ServeDeploySchema

    model = {"name": "m", "run": "m-1", "path": "/srv/genflow/runs/m-1", "evaluation": ""}
    inputs = {"name": "m", "models": [model], "host": "0.0.0.0", "port": 8000, "replicas": 1, "most_replicas": 0,
              "memory_mb": 1, "keys": [], "threads": 1, "per_minute": 0}  # fmt: skip
    written = serve.configuration(inputs)
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    command = [sys.executable, "deploy/render.py", "--serve", tmp_path / "serve.yaml", "-o", tmp_path / "service.yaml"]
    subprocess.run(command, cwd=ROOT, check=True)
    made = yaml.safe_load(cluster_config.read(tmp_path / "service.yaml")["spec"]["serveConfigV2"])
    assert made == written
    example = yaml.safe_load(read("deploy/kuberay/service.yaml")["spec"]["serveConfigV2"])
    assert example["applications"][0]["args"].keys() == written["applications"][0]["args"].keys()
    for configuration in (made, example):
        ServeDeploySchema.model_validate(configuration)


def test_the_image_copies_existing_files() -> None:
    """Each COPY in the Containerfile names existing files, including all folders of the bundle."""
    lines = (ROOT / "deploy/Containerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert {"genflow", "jobs", "pipelines"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []


@pytest.mark.skipif("GENFLOW_KUBERAY_CRDS" not in os.environ, reason="GENFLOW_KUBERAY_CRDS: KubeRay's config/crd/bases")
@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_accepts_it(name: str) -> None:
    """KubeRay's resource definitions accept the manifest, without unknown keys."""
    document = read(name)
    file = Path(os.environ["GENFLOW_KUBERAY_CRDS"]) / f"ray.io_{document['kind'].lower()}s.yaml"
    (version,) = (v for v in yaml.safe_load(file.read_text(encoding="utf-8"))["spec"]["versions"] if v["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft202012Validator(schema).validate(document)


def strict(schema: Any) -> Any:
    """Make a Kubernetes schema reject unknown keys, as the API server does."""
    if isinstance(schema, dict):
        free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        if isinstance(schema.get("properties"), dict) and not free:
            schema["additionalProperties"] = False
        if schema.get("x-kubernetes-int-or-string"):
            for key in ("type", "anyOf", "pattern"):
                schema.pop(key, None)
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        strict(inner)
    return schema
