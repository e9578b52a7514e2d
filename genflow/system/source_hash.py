"""A hash of the source files that made an artifact: the same for a checkout, a wheel and a bundle.

The files that decide a result are found by following imports from a few roots, such as the training loop:

    code_of("genflow/training/loop.py")   the loop and every module that it imports, directly or indirectly

The search reads the syntax tree of each file, so it finds imports inside functions and executes nothing. It skips
imports under `TYPE_CHECKING` and the modules of `NOT_HASHED`. A module that is loaded by name (a family, a net, a
metric) is in no import statement: pass its file as a root.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]

# Modules that cannot change a result. The values of the recipe are hashed themselves; the store copies bytes whose
# hashes are in the manifest; the others start processes, print messages or write logs.
NOT_HASHED = (
    "genflow/__init__.py", "genflow/errors.py", "genflow/cli", "genflow/launch", "genflow/recipe", "genflow/storage",
    "genflow/system", "genflow/tracking", "genflow/tuning/tracking.py",
    "jobs/runtime/cluster.py", "jobs/runtime/entrypoint.py", "jobs/runtime/resources.py",
)  # fmt: skip


def resources_dir() -> Path:
    """The folder that contains `jobs/` and `pipelines/`: the checkout or bundle, or `genflow/_home` in a wheel."""
    inside = PACKAGE / "_home"
    return inside if inside.is_dir() else PACKAGE.parent


@cache
def code_of(*roots: str, also: tuple[str, ...] = ()) -> str:
    """The SHA-256 of some modules, their imports, and further files.

    Args:
        roots: paths in the repository, such as `"genflow/training/loop.py"`.
        also: files and folders that no import leads to: templates, modules that are loaded by name.

    Raises:
        FileNotFoundError: a file does not exist.
    """
    return fingerprint(*dict.fromkeys((*imported(*roots), *also)))


def imported(*roots: str) -> tuple[str, ...]:
    """The roots and every module of genflow/ and jobs/ that they import, directly or indirectly, sorted.

    Args:
        roots: paths in the repository; a root is followed even if it is in `NOT_HASHED`.

    Raises:
        FileNotFoundError: a file does not exist.
    """
    found: set[str] = set()
    queue = list(roots)
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            names = (_file_of(module) for module in _modules(_path(name)))
            queue += [file for file in names if file and not _is_left_out(file)]
    return tuple(sorted(found))


@cache
def fingerprint(*names: str) -> str:
    """The SHA-256 of files and of all files in folders.

    Args:
        names: paths in the repository, such as `"genflow/data"`, `"jobs/prepare.py"`.

    Raises:
        FileNotFoundError: a file or folder does not exist.
    """
    whole = hashlib.sha256()
    for name in sorted(names):
        for each, file in sources(name):
            whole.update(f"{each}\0{_hash(file)}\n".encode())
    return whole.hexdigest()


def sources(name: str) -> list[tuple[str, Path]]:
    """The files of a file or folder, with their paths in the repository, sorted.

    Raises:
        FileNotFoundError: the file or folder does not exist.
    """
    start = _path(name)
    if start.is_file():
        return [(name, start)]
    root = start.parents[name.count("/")]
    if not start.exists():
        raise FileNotFoundError(f"no source at {start}")
    named = [(file.relative_to(root).as_posix(), file) for file in start.rglob("*") if file.is_file()]
    return sorted((each, file) for each, file in named if "__pycache__" not in each and "_home/" not in each)


def digest(value: Any, length: int = 10) -> str:
    """A short hash of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _path(name: str) -> Path:
    return (PACKAGE.parent if name.partition("/")[0] == PACKAGE.name else resources_dir()) / name


@cache
def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _modules(file: Path) -> tuple[str, ...]:
    """The modules or names that a file imports, such as `genflow.data.shards` and `genflow.batch.Batch`."""
    return tuple(_imports(ast.parse(file.read_bytes()).body))


def _imports(body: Sequence[ast.AST]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: a relative import")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and _is_for_types(node.test):
            yield from _imports(node.orelse)
        else:  # expressions contain no imports, so visit only blocks of statements
            for block in ("body", "handlers", "orelse", "finalbody", "cases"):
                if isinstance(inside := getattr(node, block, None), list):
                    yield from _imports(inside)


def _is_for_types(test: ast.expr) -> bool:
    """Whether a condition is `TYPE_CHECKING` or `typing.TYPE_CHECKING`."""
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def _file_of(module: str) -> str:
    """The file of a module, or of the module that contains this name; empty for modules outside genflow and jobs."""
    if module.partition(".")[0] not in (PACKAGE.name, "jobs"):
        return ""
    for parts in (module.split("."), module.split(".")[:-1]):
        for name in ("/".join(parts) + ".py", "/".join((*parts, "__init__.py"))):
            if parts and _path(name).is_file():
                return name
    return ""


def _is_left_out(file: str) -> bool:
    return any(file == name or file.startswith(f"{name}/") for name in NOT_HASHED)
