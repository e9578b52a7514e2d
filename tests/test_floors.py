"""The floors: imports run downwards, Ray lives in jobs/, MLflow behind its door, and --help costs nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room's name is a module or a package; the longest that fits decides.
FLOORS: dict[int, tuple[str, ...]] = {
    0: (
        "genflow", "genflow.errors", "genflow.events", "genflow.facts", "genflow.batch", "genflow.recipe",
        "genflow.env", "genflow.beside", "genflow.sharding", "genflow.session", "genflow.code", "genflow.capacity",
        "genflow.maths",
    ),
    1: (
        "genflow.nets", "genflow.data", "genflow.store", "genflow.journal", "genflow.shared", "genflow.lease",
        "genflow.remote", "genflow.json_lines",
    ),
    2: ("genflow.families",),
    3: (
        "genflow.training", "genflow.engine", "genflow.checkpoint", "genflow.build", "genflow.runs", "genflow.pipeline",
        "genflow.plans", "genflow.study", "genflow.tables", "genflow.teaching", "genflow.evaluation", "genflow.tuning",
        "genflow.tracking", "genflow.mlflow_door", "genflow.registry", "genflow.pyfunc_model",
        "genflow.serving", "genflow.endpoints", "genflow.gradients", "genflow.optimizers",
    ),
    4: ("jobs",),
    5: (
        "genflow.cli", "genflow.commands", "genflow.drawing", "genflow.exporting", "genflow.listing",
        "genflow.catalogue", "genflow.terminal", "genflow.doctor", "genflow.submit", "genflow.child", "genflow.parcel",
        "genflow.dashboard", "genflow.jobs_api", "genflow.interpolation", "genflow.hosting", "genflow.client",
        "genflow.searching", "genflow.tabulating", "genflow.recommending", "genflow.clusters", "genflow.cluster_file",
        "genflow.preflight",
    ),
}  # fmt: skip
ROOMS = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
STRANGERS = {"genflow.nets", "genflow.data", "genflow.store"}  # on one floor, and strangers to each other, but:
KNOWN = {("genflow.data", "genflow.store")}  # a dataset is an artifact
RAY = ("jobs", "genflow.jobs_api")  # the second: Ray's own client, inside a function
MLFLOW = ("genflow.mlflow_door", "genflow.pyfunc_model")  # MLflow itself executes the second


def modules() -> dict[str, Path]:
    """Every module of the two packages, by name."""
    found = {}
    for package in ("genflow", "jobs"):
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def room(module: str) -> str:
    """The room that a module stands in."""
    parts = module.split(".")
    return next(name for i in range(len(parts), 0, -1) if (name := ".".join(parts[:i])) in ROOMS)


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, and whether it does so as it is loaded rather than inside a function."""
    tree = ast.parse(file.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in MODULES else str(node.module)), id(node) not in inside


def test_every_module_has_its_floor() -> None:
    """A new file in genflow/ belongs to a room of the house, or the house gets a new room."""
    assert [module for module in MODULES if module.startswith("genflow.") and room(module) == "genflow"] == []
    assert [name for name in ROOMS if name not in MODULES and not (ROOT / name.replace(".", "/")).is_dir()] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module: str) -> None:
    """Inside functions too; rooms of one floor may know each other, but for those that are named strangers."""
    here = room(module)
    for name, _ in imports(MODULES[module]):
        if name.split(".")[0] not in ("genflow", "jobs"):
            continue
        there = room(name)
        assert ROOMS[there] <= ROOMS[here], f"{module} (floor {ROOMS[here]}) imports {name} (floor {ROOMS[there]})"
        if here != there and {here, there} <= STRANGERS:
            assert (here, there) in KNOWN, f"{module} imports {name}: {here} and {there} do not know each other"
        if here.startswith("genflow"):
            assert there != "jobs", f"{module} imports {name}: genflow/ names jobs by strings"


@pytest.mark.parametrize("module", MODULES)
def test_ray_and_mlflow_have_one_door_each(module: str) -> None:
    """Ray in jobs/, and inside functions of jobs_api; MLflow inside functions of its door, and in what it executes."""
    here = room(module)
    for name, at_load in imports(MODULES[module]):
        stranger = name.split(".")[0]
        if stranger == "ray":
            assert here in RAY, f"{module} imports {name}"
            assert here == "jobs" or not at_load, f"{module} imports {name} as it is loaded"
        if stranger == "mlflow":
            assert here in MLFLOW, f"{module} imports {name}"
            assert here == "genflow.pyfunc_model" or not at_load, f"{module} imports {name} as it is loaded"


def test_families_know_no_net() -> None:
    """A net is handed in: `build` introduces them."""
    for module, file in MODULES.items():
        if room(module) == "genflow.families":
            assert not [name for name, _ in imports(file) if name.startswith("genflow.nets")]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("genflow.cli", {"torch", "ray", "mlflow", "pydantic", "numpy", "pyarrow", "PIL", "genflow.recipe"}),
        ("genflow.env", {"torch", "ray", "mlflow", "pydantic", "numpy", "yaml", "typer"}),
        ("genflow.training", {"ray", "mlflow", "typer"}),
        ("genflow.engine", {"ray", "mlflow", "typer"}),
    ],
)
def test_what_loading_a_module_costs(module: str, absent: set[str]) -> None:
    """`genflow --help` loads none of the heavy libraries; the library knows neither Ray nor MLflow."""
    script = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & absent == set()
