"""Which code made an artifact: a hash of source files, the same from a checkout, a wheel and a bundle.

The files that decide a result are not listed by hand. They are found by following imports from a few roots, such as
the training loop:

    code_of("genflow/training/loop.py")   the loop and every module that it imports, directly or through others

The walk reads the syntax tree of each file, so it finds imports inside functions, and executes nothing. It leaves out
imports that only a type checker sees, and stops at `NOT_HASHED`. A module that is loaded by name (a family, a
net, a metric) is in no import statement: name its file as a root.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]

# Modules that cannot change a number. Options come from the recipe, whose values are hashed themselves; the store
# moves bytes whose hashes the manifest holds; the rest starts processes, talks to people or writes a log.
NOT_HASHED = (
    "genflow/__init__.py", "genflow/errors.py", "genflow/cli", "genflow/launch", "genflow/recipe", "genflow/storage",
    "genflow/system", "genflow/tracking", "genflow/tuning/tracking.py",
    "jobs/runtime/cluster.py", "jobs/runtime/entrypoint.py", "jobs/runtime/resources.py",
)  # fmt: skip


def resources_dir() -> Path:
    """The folder that holds `jobs/` and `pipelines/`: the checkout or bundle, or `genflow/_home` in a wheel."""
    inside = PACKAGE / "_home"
    return inside if inside.is_dir() else PACKAGE.parent


@cache
def code_of(*roots: str, also: tuple[str, ...] = ()) -> str:
    """The SHA-256 over some modules, what they import, and further files.

    Args:
        roots: files as the repository names them, such as `"genflow/training/loop.py"`.
        also: files and folders that no import names: templates, modules that are loaded by name.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return fingerprint(*dict.fromkeys((*imported(*roots), *also)))


def imported(*roots: str) -> tuple[str, ...]:
    """The roots and every module of genflow/ and jobs/ that they import, directly or not, sorted.

    Args:
        roots: files as the repository names them; a root that is in `NOT_HASHED` is followed all the same.

    Raises:
        FileNotFoundError: there is no such file.
    """
    found: set[str] = set()
    ahead = list(roots)
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            names = (_file_of(module) for module in _modules(_path(name)))
            ahead += [file for file in names if file and not _is_left_out(file)]
    return tuple(sorted(found))


@cache
def fingerprint(*names: str) -> str:
    """The SHA-256 over files and folders, whole.

    Args:
        names: as the repository names them, such as `"genflow/data"`, `"jobs/prepare.py"`.

    Raises:
        FileNotFoundError: there is no such file or folder.
    """
    whole = hashlib.sha256()
    for name in sorted(names):
        for each, file in sources(name):
            whole.update(f"{each}\0{_hash(file)}\n".encode())
    return whole.hexdigest()


def sources(name: str) -> list[tuple[str, Path]]:
    """The files of a file or folder with the names they have in the repository, in order.

    Raises:
        FileNotFoundError: there is no such file or folder.
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
    """A short hash of a JSON value: the same for equal values, whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _path(name: str) -> Path:
    return (PACKAGE.parent if name.partition("/")[0] == PACKAGE.name else resources_dir()) / name


@cache
def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _modules(file: Path) -> tuple[str, ...]:
    """The modules that a file imports, as `genflow.data.shards` or, of a name in a module, `genflow.batch.Batch`."""
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
        else:  # expressions hold no import, so that only blocks of statements are entered
            for block in ("body", "handlers", "orelse", "finalbody", "cases"):
                if isinstance(inside := getattr(node, block, None), list):
                    yield from _imports(inside)


def _is_for_types(test: ast.expr) -> bool:
    """Whether a condition is `TYPE_CHECKING` or `typing.TYPE_CHECKING`."""
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def _file_of(module: str) -> str:
    """The file of a module, or of the module that has this name in it; empty if it is none of ours."""
    if module.partition(".")[0] not in (PACKAGE.name, "jobs"):
        return ""
    for parts in (module.split("."), module.split(".")[:-1]):
        for name in ("/".join(parts) + ".py", "/".join((*parts, "__init__.py"))):
            if parts and _path(name).is_file():
                return name
    return ""


def _is_left_out(file: str) -> bool:
    return any(file == name or file.startswith(f"{name}/") for name in NOT_HASHED)
