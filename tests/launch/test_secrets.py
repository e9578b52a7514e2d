"""Secrets do not leave the environment, and nothing in a store is executed."""

import ast
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError
from support import ROOT
from support.processes import descendants

from genflow.errors import GenflowError
from genflow.training import checkpoint

CANARIES = {
    "RAY_AUTH_TOKEN": "0ca11a" * 10,
    "GENFLOW_API_KEY": "canary-of-the-endpoint-5d0c",
    "MLFLOW_TRACKING_PASSWORD": "canary-of-mlflow-81f2",
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-bucket-77a0",
}
UNPICKLING = {
    "pickle.load", "pickle.loads", "torch.load", "joblib.load", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "dill.loads", "marshal.loads", "shelve.open", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load",
}  # fmt: skip


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_is_unpickled() -> None:
    """Only Ray Data's rows within a job are unpickled, never stored files; arrays are loaded without objects."""
    found = {
        (file.relative_to(ROOT).as_posix(), name)
        for folder in ("genflow", "jobs")
        for file in (ROOT / folder).rglob("*.py")
        for name, call in calls(file)
        if name in UNPICKLING
        or (name.endswith("np.load") and "allow_pickle=False" not in ast.unparse(call))
        or (name == "yaml.load" and "_Loader" not in ast.unparse(call))
    }
    assert found == {("jobs/prepare.py", "pickle.loads")}


class Attack:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """A pickle in place of any checkpoint file is rejected, and its code does not run."""
    from torch import nn

    mark, folder = tmp_path / "ran", tmp_path / "step_00000001"
    folder.mkdir()
    for name in ("weights.safetensors", "average.safetensors", "optimizer.safetensors", "state.json"):
        (folder / name).write_bytes(pickle.dumps(Attack(mark)))
    with pytest.raises((GenflowError, ValueError, SafetensorError)):
        checkpoint.load_weights(folder, nn.Linear(1, 1))
    assert not mark.exists()


def arguments_below(pid: int) -> str:
    """The command lines of a process's descendants, which all users of the machine can see."""
    lines = []
    for child in descendants(pid):
        try:
            lines.append(Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8"))
        except OSError:
            continue
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.ray
def test_secrets_do_not_leak(tmp_path: Path) -> None:
    """A run on two workers and its report leave no secret in command lines, output, Ray's logs, the store or MLflow."""
    temp = Path("/tmp") / f"gf-canary-{os.getpid()}"  # Ray's sockets need short paths
    temp.mkdir()
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    settings |= {"GENFLOW_STORE": str(tmp_path / "store"), "RAY_TMPDIR": str(temp), "PYTHONPATH": str(ROOT), **CANARIES}
    net = [f"--set={key}" for key in ("net.kind=mlp", "net.width=16", "net.depth=1", "train.steps=30")]
    commands = [
        ["prepare", "digits"],
        ["train", "flow_matching", "--data", "digits", "--workers", "2", *net, "-v"],
        ["compare", "latest", "--samples", "32", "--set", "evaluate.sweep_samples=16", "--set", "evaluate.steps=[1]"],
    ]
    seen = ""
    try:
        for command in commands:
            process = subprocess.Popen(
                [sys.executable, "-m", "genflow.cli", *command], cwd=tmp_path, env=settings, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
            )  # fmt: skip
            output: list[str] = []
            reader = threading.Thread(target=lambda p=process, o=output: o.append(p.stdout.read()))
            reader.start()
            while process.poll() is None:
                seen += arguments_below(process.pid)
                time.sleep(0.5)
            reader.join()
            seen += output[0]
            assert process.returncode == 0, output[0]
        files = [file for folder in (tmp_path, temp) for file in folder.rglob("*") if file.is_file()]
        assert len(files) > 30
        for name, canary in CANARIES.items():
            assert canary not in seen, name
            assert [str(file) for file in files if canary.encode() in file.read_bytes()] == [], name
    finally:
        shutil.rmtree(temp, ignore_errors=True)
