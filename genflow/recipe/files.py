"""Read and write recipe files (YAML)."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from genflow.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel


def read(path: Path) -> dict[str, Any]:
    """A recipe file as a document.

    Raises:
        UsageError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read recipe {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        document = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the date 2026-13-45; 10,000 brackets
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise UsageError(f"{path}{line}: not valid YAML: {problem}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"{path}: a recipe is a mapping of sections, not a {type(document).__name__}")
    return document


def dump(recipe: "BaseModel | dict[str, Any]") -> str:
    """The recipe as YAML, sections in the order of the schema."""
    document = recipe if isinstance(recipe, dict) else recipe.model_dump(mode="json")
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a scalar", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML with lists in flow style: `[1, 2]`."""


for _class in (_Loader, _Dumper):  # the dumper too, so that a name such as 1e-4 is written in quotes
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )

_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)
