"""Read a constant of a module without importing the module.

A registry asks every file of a folder what it declares. Importing the files would cost seconds (torch, pyarrow) before
the first line of output, and the library must not import the programs in `jobs/` at all. So a declaration is written
as literals, and read from the syntax tree, as setuptools reads a version named by `attr:`.
"""

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Vocabulary = Mapping[str, Callable[..., Any]]


def constant(file: Path, name: str, vocabulary: Vocabulary | None = None) -> Any:
    """The value that a module assigns to a name at its top level.

    Args:
        file: the module.
        name: the constant's.
        vocabulary: constructors that the value may call, by name.

    Returns:
        The value; None if the module assigns no such name.

    Raises:
        ValueError: the value is not made of literals and the vocabulary.
    """
    text = file.read_text(encoding="utf-8")
    if f"\n{name} = " not in f"\n{text}":  # most files declare nothing: do not parse them
        return None
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            try:
                return _value(node.value, vocabulary or {})
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file}: {name} is not a literal that can be read unexecuted: {error}") from error
    return None


def _value(node: ast.expr, vocabulary: Vocabulary) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in vocabulary:
        positional = [_value(argument, vocabulary) for argument in node.args]
        named = {str(keyword.arg): _value(keyword.value, vocabulary) for keyword in node.keywords}
        return vocabulary[node.func.id](*positional, **named)
    if isinstance(node, ast.Tuple):
        return tuple(_value(item, vocabulary) for item in node.elts)
    return ast.literal_eval(node)
