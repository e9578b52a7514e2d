"""Read a constant of a module without importing the module.

A registry reads the declaration of every file in a folder. Importing the files would take seconds (torch, pyarrow)
before the first line of output, and the library must not import the programs in `jobs/`. So a declaration consists of
literals and is read from the syntax tree, as setuptools reads a version specified by `attr:`.
"""

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAX_LINES = 60  # lines of a declaration
Vocabulary = Mapping[str, Callable[..., Any]]


def constant(file: Path, name: str, vocabulary: Vocabulary | None = None) -> Any:
    """The value that a module assigns to a name at its top level.

    Args:
        file: the module.
        name: the name of the constant, at the beginning of its line.
        vocabulary: constructors that the value may call, by name.

    Returns:
        The value; None if the module assigns no such name.

    Raises:
        ValueError: the value has other parts than literals and calls of the vocabulary.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith(f"{name} = "):
            try:
                return _value(_statement(lines[number : number + MAX_LINES]), vocabulary or {})
            except (ValueError, TypeError) as error:
                message = f"{file}: {name} is not a literal, so it cannot be read without importing the module: {error}"
                raise ValueError(message) from error
    return None


def _statement(lines: list[str]) -> ast.expr:
    """The right side of the assignment that begins at the first line; parsing only it takes a tenth of the time.

    Raises:
        ValueError: the assignment does not end.
    """
    for end in range(1, len(lines) + 1):
        try:
            (node,) = ast.parse("\n".join(lines[:end])).body
        except SyntaxError:
            continue
        if isinstance(node, ast.Assign):
            return node.value
    raise ValueError(f"the statement is incomplete, or longer than {MAX_LINES} lines")


def _value(node: ast.expr, vocabulary: Vocabulary) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in vocabulary:
        positional = [_value(argument, vocabulary) for argument in node.args]
        named = {str(keyword.arg): _value(keyword.value, vocabulary) for keyword in node.keywords}
        return vocabulary[node.func.id](*positional, **named)
    if isinstance(node, ast.Tuple):
        return tuple(_value(item, vocabulary) for item in node.elts)
    return ast.literal_eval(node)
