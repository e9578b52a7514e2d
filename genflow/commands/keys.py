"""Every key of a recipe with its meaning, default and range, read from the schema and from the families and nets.

The meaning of a key of a typed section is the comment on its line in recipe/schema.py. The meaning of a key of `net`,
`family` and `sample` is the line of the `Args` of the net's, the family's or the sampler's docstring.
"""

import ast
import functools
import inspect
import io
import re
import tokenize
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from genflow import build, families, nets
from genflow.commands import size_table
from genflow.errors import UsageError, nearest
from genflow.recipe import schema
from genflow.recipe.aliases import our_name
from genflow.recipe.compose import preset

ITEM = re.compile(r"^( *)([A-Za-z_][\w, ]*): (.*)$")
BOUNDS = {"ge": "{} or more", "gt": "above {}", "le": "up to {}", "lt": "below {}"}


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    Args:
        name: such as `train.lr`.
        of: the family or net that has it; empty: every recipe.
        meaning: one or two sentences.
        default: as YAML.
        values: the type and the range, or the words that are allowed.
    """

    name: str
    of: str
    meaning: str
    default: str
    values: str


@functools.cache
def every() -> tuple[Key, ...]:
    """All keys: those of every recipe, then those of each family, then those of each net."""
    return (*_typed(), *_of_families(), *_of_nets())


def find(word: str) -> list[Key]:
    """The keys that a word means: a key, a section, a family, a net, or a key without its section.

    Raises:
        UsageError: there is none.
    """
    word = word.strip()
    bare = word.rpartition(".")[2]
    tests: list[Callable[[Key], bool]] = [
        lambda key: key.name == word,
        lambda key: key.name.startswith(f"{word}."),
        lambda key: key.of == word,
        lambda key: key.name.rpartition(".")[2] == bare,
        lambda key: key.name.rpartition(".")[2] == our_name(bare),
    ]
    for test in tests:
        if found := [key for key in every() if test(key)]:
            return found
    known = [name for key in every() for name in (key.name, key.name.rpartition(".")[2], key.of) if name]
    raise UsageError(f"no key {word!r} in a recipe{nearest(word, sorted(set(known)))}", "genflow recipe lists all keys")


def presets(name: str) -> dict[str, Any]:
    """What the presets of the families set a key to, by family."""
    section, _, key = name.partition(".")
    values = {kind: preset(kind).get(section) for kind in families.kinds()}
    return {kind: own[key] for kind, own in values.items() if isinstance(own, dict) and key in own}


def page() -> str:
    """docs/recipe.md."""
    lines = [HEAD]
    sections = [("", "## The whole run"), *((name, f"## {name}") for name in schema.SECTIONS)]
    for section, title in sections:
        own = [key for key in _typed() if key.name.rpartition(".")[0] == section]
        about = (schema.SECTIONS[section].__doc__ or "").strip() if section else (schema.Recipe.__doc__ or "")
        lines += [title, "", " ".join(about.split()), "", *_table(own)]
    lines += ["## family and sample", "", "`family.kind` names the family; the other keys are its own.", ""]
    for kind in families.kinds():
        own = [key for key in _of_families() if key.of == kind]
        lines += [f"### {kind}", "", *_table(own)]
    lines += ["## net", "", "`net.kind` names the net; auto: the choice of the family. The other keys are its own.", ""]
    for kind in nets.kinds():
        own = [key for key in _of_nets() if key.of == kind]
        lines += [f"### {kind}", "", *_table(own)]
    return "\n".join([*lines, *size_table.page()]).rstrip() + "\n"


HEAD = """# Every key of a recipe

This page is made from the code by `genflow recipe --into docs/recipe.md`, which `make docs` runs. `genflow recipe KEY`
prints one key, section, family or net.

A command sets a key with `--set train.lr=1e-3`, a recipe file with a section, Python with `set={"train.lr": 1e-3}`.
Later layers win: the defaults below, the preset of the family (`pipelines/FAMILY.yaml`), the size, the files of
`--config`, `--set`, the flags.
"""


def _table(keys: list[Key]) -> list[str]:
    cells = ([f"`{key.name}`", key.meaning, f"`{key.default}`" if key.default else "", key.values] for key in keys)
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return ["| key | meaning | default | values |", "| --- | --- | --- | --- |", *rows, ""]


@functools.cache
def _typed() -> tuple[Key, ...]:
    found = [_key("", schema.Recipe, "Recipe", only=schema.TOP_LEVEL_KEYS)]
    found += [_key(section, model, model.__name__) for section, model in schema.SECTIONS.items()]
    return tuple(key for keys in found for key in keys)


def _key(section: str, model: type[Any], name: str, only: tuple[str, ...] = ()) -> list[Key]:
    meanings = _comments()[name]
    return [
        Key(f"{section}.{field}" if section else field, "", meanings.get(field, ""), _default(info), _values(info))
        for field, info in model.model_fields.items()
        if not only or field in only
    ]


@functools.cache
def _of_families() -> tuple[Key, ...]:
    meanings: dict[str, str] = {}  # of options of `sample`, which a family may have without a docstring of its own
    for kind in families.kinds():
        meanings |= _args(families.family_class(kind).sample)
    found: list[Key] = []
    for kind in families.kinds():
        family = families.family_class(kind)
        found += _signature("family", kind, build.schema(family.__init__), _args(family))
        found += _signature("sample", kind, build.schema(family.sample), {**meanings, **_args(family.sample)})
    return tuple(found)


@functools.cache
def _of_nets() -> tuple[Key, ...]:
    found: list[Key] = []
    for kind in nets.kinds():
        builder = nets.builder(kind)
        found += _signature("net", kind, build.schema(builder), _args(builder))
    return tuple(found)


def _signature(section: str, of: str, model: type[Any], meanings: dict[str, str]) -> list[Key]:
    return [
        Key(f"{section}.{name}", of, meanings.get(name, ""), _default(info), _values(info))
        for name, info in model.model_fields.items()
    ]


@functools.cache
def _comments() -> dict[str, dict[str, str]]:
    """The comments of the fields of every class in recipe/schema.py, by class and field."""
    source = inspect.getsource(schema)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}

    def comment(field: ast.AnnAssign) -> str:
        lines = range(field.lineno, (field.end_lineno or field.lineno) + 1)
        return " ".join(by_line[line] for line in lines if line in by_line)

    return {
        node.name: {
            field.target.id: comment(field)
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def _args(documented: Any) -> dict[str, str]:
    """The meanings of arguments in the section `Args` of a docstring, by name."""
    found: dict[str, str] = {}
    names: list[str] = []
    inside, indent = False, 0
    for line in (inspect.getdoc(documented) or "").splitlines():
        if line.strip() and not line.startswith(" "):
            inside = line == "Args:"
            continue
        if not inside or not line.strip():
            continue
        match = ITEM.match(line)
        if match and (not names or len(match[1]) <= indent):
            indent, names = len(match[1]), [name.strip() for name in match[2].split(",")]
            found |= dict.fromkeys(names, match[3])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _default(info: Any) -> str:
    """The default of a field as YAML on one line."""
    import yaml

    value = info.default
    if value is PydanticUndefined:
        return ""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    return '""' if text == "''" else text


def _values(info: Any) -> str:
    """The allowed values of a field, as text."""
    limits = [bound for part in info.metadata for bound in _bounds(part)]
    return " ".join([_type(info.annotation), *_joined(limits)])


def _joined(limits: list[tuple[str, Any]]) -> list[str]:
    named = dict(limits)
    if "ge" in named and "le" in named:
        return [f"{named['ge']:g} to {named['le']:g}"]
    return [" and ".join(BOUNDS[name].format(f"{value:g}") for name, value in limits)] if limits else []


def _bounds(part: Any) -> Iterator[tuple[str, Any]]:
    """The limits in a part of an annotation's metadata."""
    for one in getattr(part, "metadata", [part]):
        for name in BOUNDS:
            if (value := getattr(one, name, None)) is not None:
                yield name, value


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(str(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in parts)
    if origin in (tuple, list):
        inner = [part for part in parts if part is not Ellipsis]
        kind, _, each = _type(inner[0]).partition(" ") if inner else ("value", "", "")
        return f"list of {kind}s{f', each {each}' if each else ''}"
    if origin is not None and hasattr(annotation, "__metadata__"):  # Annotated
        limits = [bound for part in annotation.__metadata__ for bound in _bounds(part)]
        return " ".join([_type(parts[0]), *_joined(limits)])
    names = {int: "integer", float: "number", bool: "true, false", str: "text", dict: "mapping", type(None): "null"}
    return names.get(origin or annotation, "mapping" if origin is dict else str(annotation))
