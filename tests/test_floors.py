"""The layers of the code: imports go downwards, Ray and MLflow are imported in few modules, and --help is fast."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support import ROOT

# Each layer imports only from earlier layers. A new module goes into a package; add a new package to a layer here.
FLOORS = (
    ("errors", "specs", "text"),
    ("batch",),
    ("system", "maths"),
    ("storage", "recipe", "client", "text_encoders"),
    ("nets", "families"),
    ("data",),
    ("training", "build"),
    ("sampling",),
    ("runs", "tracking"),
    ("evaluation", "launch", "cost"),
    ("pipeline", "serving", "tuning"),
    ("tables",),
    ("commands",),
    ("cli",),
    ("api",),
)
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
RAY = ("jobs", "genflow.launch.ray_jobs")  # in the second only inside functions
MLFLOW = tuple(
    f"genflow.tracking.{name}" for name in ("mlflow_client", "journal_replay", "model_package", "pyfunc_model", "pages")
)
ROOT_FILES = 8  # modules at the root of genflow/, at most
SHIMS = {"replicas", "proxy"}  # old import paths, for Serve configuration files written by genflow 0.1


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
    """The modules that a module imports, and whether at load time instead of inside a function."""
    return tuple(_imports(modules()[module]))


def _imports(file: Path) -> Iterator[tuple[str, bool]]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
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
    """The root of genflow/ has at most 8 modules, and the root of jobs/ has only programs and the two shims."""
    assert len(list((ROOT / "genflow").glob("*.py"))) <= ROOT_FILES
    texts = {file.stem: file.read_text(encoding="utf-8") for file in (ROOT / "jobs").glob("*.py")}
    others = {name for name, text in texts.items() if "\n    execute(main)\n" not in text}
    assert others == {"__init__"} | SHIMS


def test_every_package_has_a_floor() -> None:
    """FLOORS lists exactly the packages of genflow/."""
    packages = {package_of(module) for module in modules() if module.startswith("genflow.")}
    assert packages == set(FLOOR)


def test_imports_go_downwards() -> None:
    """A package imports only from lower layers, also inside functions; genflow/ never imports jobs/."""
    wrong = []
    for module in modules():
        own = package_of(module)
        for name in own_imports(module):
            other = package_of(name)
            if own in ("", "jobs") or own == other or not other:
                continue
            if other == "jobs" or FLOOR[other] >= FLOOR[own]:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_there_is_no_import_cycle() -> None:
    """No file imports itself through others, also not inside functions."""
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
    """A job does not need Typer, because a document configures it."""
    jobs = [module for module in modules() if module.startswith("jobs")]
    assert [m for m in jobs if any(name.startswith("genflow.cli") for name in own_imports(m))] == []


@pytest.mark.parametrize(("library", "places"), [("ray", RAY), ("mlflow", MLFLOW)])
def test_a_large_library_is_imported_in_few_modules(library: str, places: tuple[str, ...]) -> None:
    """Ray in jobs/ and in functions of launch/ray_jobs; MLflow in functions of its client, and in its model."""
    for module in modules():
        for name, at_load in imports(module):
            if name.partition(".")[0] != library:
                continue
            assert module.startswith(places), f"{module} imports {name}"
            lazy = module.startswith("genflow") and module != "genflow.tracking.pyfunc_model"
            assert not (lazy and at_load), f"{module} imports {name} at load time"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("genflow.cli.app", {"torch", "ray", "mlflow", "pydantic", "numpy", "pyarrow", "PIL", "genflow.recipe"}),
        ("genflow", {"torch", "ray", "mlflow", "pydantic", "numpy", "pyarrow", "PIL", "yaml", "typer", "genflow.api"}),
        ("genflow.api", {"torch", "ray", "mlflow", "typer", "pandas"}),
        ("genflow.system.environment", {"torch", "ray", "mlflow", "pydantic", "numpy", "yaml", "typer"}),
        ("genflow.training.loop", {"ray", "mlflow", "typer"}),
        ("genflow.sampling.engine", {"ray", "mlflow", "typer"}),
        ("jobs.runtime.train.worker", {"ray"}),
    ],
)
def test_what_loading_a_module_costs(module: str, absent: set[str]) -> None:
    """`genflow --help` imports no heavy library; training and sampling import neither Ray nor MLflow.

    The program of a worker imports Ray only if there are several.
    """
    script = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, encoding="utf-8")
    assert set(done.stdout.split()) & absent == set()
