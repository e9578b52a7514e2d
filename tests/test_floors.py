"""The layers of the code: imports run downwards, Ray and MLflow are imported in one place each, and --help is cheap."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support import ROOT

# Each floor imports only from the floors below it. A new module joins a package; a new package gets a floor here.
FLOORS = (
    ("errors", "specs", "batch"),
    ("system", "maths"),
    ("storage", "recipe", "client"),
    ("nets", "families"),
    ("data",),
    ("training", "build"),
    ("sampling",),
    ("runs", "tracking"),
    ("evaluation", "launch"),
    ("pipeline", "serving", "tuning"),
    ("tables",),
    ("cli",),
)
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
RAY = ("jobs", "genflow.launch.ray_jobs")  # in the second inside functions alone
MLFLOW = ("genflow.tracking.mlflow_client", "genflow.tracking.pyfunc_model")  # MLflow itself executes the second
ROOT_FILES = 8  # modules at the root of genflow/, at most
STAGES = {"prepare", "train", "reflow", "tune", "evaluate", "compare", "tables", "serve", "pipeline", "probe"}
SHIMS = {"replicas", "proxy"}  # import paths that Serve files written by genflow 0.1 name


@cache
def modules() -> dict[str, Path]:
    """Every module of genflow/ and jobs/, by name."""
    found = {}
    for package in ("genflow", "jobs"):
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def package_of(module: str) -> str:
    """`storage` of `genflow.storage.store`, `jobs` of `jobs.train`, empty for `genflow` itself."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "genflow" else first


@cache
def imports(module: str) -> tuple[tuple[str, bool], ...]:
    """The modules that a module imports, and whether it does so at load time rather than inside a function."""
    return tuple(_imports(modules()[module]))


def _imports(file: Path) -> Iterator[tuple[str, bool]]:
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
                yield (whole if whole in modules() else str(node.module)), id(node) not in inside


def own_imports(module: str) -> set[str]:
    """The modules of genflow/ and jobs/ that a module imports."""
    return {name for name, _ in imports(module) if name.partition(".")[0] in ("genflow", "jobs")}


def test_the_root_of_each_folder_is_small() -> None:
    """At most 8 modules at the root of genflow/, and only programs that a command starts at the root of jobs/."""
    assert len(list((ROOT / "genflow").glob("*.py"))) <= ROOT_FILES
    assert {file.stem for file in (ROOT / "jobs").glob("*.py")} == {"__init__"} | STAGES | SHIMS


def test_every_package_has_a_floor() -> None:
    """A new package in genflow/ gets a floor, and every floor names packages that exist."""
    packages = {package_of(module) for module in modules() if module.startswith("genflow.")}
    assert packages == set(FLOOR)


def test_imports_run_downwards() -> None:
    """A package imports only from lower floors, inside functions too; genflow/ never imports jobs/."""
    wrong = []
    for module in modules():
        here = package_of(module)
        for name in own_imports(module):
            there = package_of(name)
            if here in ("", "jobs") or here == there or not there:
                continue
            if there == "jobs" or FLOOR[there] >= FLOOR[here]:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_no_file_imports_itself_through_others() -> None:
    """There is no circle of imports between files, inside functions too."""
    graph = {module: own_imports(module) & modules().keys() for module in modules()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module):], module])
        if module not in done:
            for name in sorted(graph[module] - {module}):
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_jobs_do_not_import_the_command_line() -> None:
    """A job runs without Typer: it is told what to do by a document."""
    jobs = [module for module in modules() if module.startswith("jobs")]
    assert [m for m in jobs if any(name.startswith("genflow.cli") for name in own_imports(m))] == []


@pytest.mark.parametrize(("library", "places"), [("ray", RAY), ("mlflow", MLFLOW)])
def test_a_large_library_is_imported_in_one_place(library: str, places: tuple[str, ...]) -> None:
    """Ray in jobs/ and inside functions of launch/ray_jobs; MLflow inside functions of its client, and in its model."""
    for module in modules():
        for name, at_load in imports(module):
            if name.partition(".")[0] != library:
                continue
            assert module.startswith(places), f"{module} imports {name}"
            lazy = module.startswith("genflow") and module != "genflow.tracking.pyfunc_model"
            assert not (lazy and at_load), f"{module} imports {name} as it is loaded"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("genflow.cli.app", {"torch", "ray", "mlflow", "pydantic", "numpy", "pyarrow", "PIL", "genflow.recipe"}),
        ("genflow.system.environment", {"torch", "ray", "mlflow", "pydantic", "numpy", "yaml", "typer"}),
        ("genflow.training.loop", {"ray", "mlflow", "typer"}),
        ("genflow.sampling.engine", {"ray", "mlflow", "typer"}),
    ],
)
def test_what_loading_a_module_costs(module: str, absent: set[str]) -> None:
    """`genflow --help` loads none of the heavy libraries; the library knows neither Ray nor MLflow."""
    script = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & absent == set()
