"""Read a constant of a module without importing the module.

A registry asks every file of a folder what it declares. Importing the files would cost seconds (torch, pyarrow) before
the first line of output, and the library must not import the programs in `jobs/` at all. So a declaration is written
as literals, and read from the syntax tree, as setuptools reads a version named by `attr:`.
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
        name: the constant's; its line begins with it.
        vocabulary: constructors that the value may call, by name.

    Returns:
        The value; None if the module assigns no such name.

    Raises:
        ValueError: the value is not made of literals and the vocabulary.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith(f"{name} = "):
            try:
                return _value(_statement(lines[number : number + MAX_LINES]), vocabulary or {})
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file}: {name} is not a literal that can be read unexecuted: {error}") from error
    return None


def _statement(lines: list[str]) -> ast.expr:
    """The right side of the assignment that begins with the first line: to parse it alone takes a tenth of the time.

    Raises:
        ValueError: it does not end.
    """
    for end in range(1, len(lines) + 1):
        try:
            (node,) = ast.parse("\n".join(lines[:end])).body
        except SyntaxError:
            continue
        if isinstance(node, ast.Assign):
            return node.value
    raise ValueError("the statement is too long, or incomplete")


def _value(node: ast.expr, vocabulary: Vocabulary) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in vocabulary:
        positional = [_value(argument, vocabulary) for argument in node.args]
        named = {str(keyword.arg): _value(keyword.value, vocabulary) for keyword in node.keywords}
        return vocabulary[node.func.id](*positional, **named)
    if isinstance(node, ast.Tuple):
        return tuple(_value(item, vocabulary) for item in node.elts)
    return ast.literal_eval(node)
