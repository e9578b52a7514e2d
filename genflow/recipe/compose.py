"""Compose a recipe from layers. Later layers win:

    defaults  <  preset (pipelines/<family>.yaml)  <  size  <  -c file  <  --set key=value  <  a flag of the command

A preset may have other settings of `family` and `train` for larger sizes (`larger`), and for a small net on latents
(`on_latents`).
"""

import json
from typing import Any

from genflow.errors import UsageError, nearest
from genflow.recipe import sizes
from genflow.recipe.files import read
from genflow.recipe.schema import TOP_LEVEL_KEYS, Recipe, parse
from genflow.system.source_hash import resources_dir

ON_LATENTS = "on_latents"  # the section of a preset
NETS_ON_LATENTS = "auto", "dit", "mmdit", "tarflow", "fixup"  # those that `auto` stands for


def parse_value(text: str) -> Any:
    """The value of a command-line text: JSON if it is valid JSON, so that `1e-4` is a number; otherwise a string."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    lowered = text.strip().lower()
    return {"true": True, "false": False, "null": None, "none": None}.get(lowered, text)


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Merge two documents section by section; values of `override` win. A section with another `kind` is replaced."""
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if "kind" in value and value["kind"] != old.get("kind", value["kind"]):
                old = {}
            merged[key] = {**old, **value}
        else:
            merged[key] = value
    return merged


def assignments(pairs: list[str]) -> dict[str, Any]:
    """`["train.lr=1e-4"]` as `{"train": {"lr": 0.0001}}`.

    Raises:
        UsageError: a pair has no `=`, or a key has no section.
    """
    document: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"--set {pair!r} does not have the form key=value", "example: --set train.lr=1e-3")
        section, dot, name = key.partition(".")
        if not dot:
            if section in Recipe.model_fields and section not in TOP_LEVEL_KEYS:
                raise UsageError(f"--set {key} names a section, not a key in it", f"example: --set {key}.KEY=VALUE")
            document[key] = parse_value(text)
            continue
        if section in Recipe.model_fields and section not in TOP_LEVEL_KEYS:
            document = merge(document, {section: {name: parse_value(text)}})
            continue
        raise UsageError(f"unknown section {section!r} in --set {pair}{nearest(section, list(Recipe.model_fields))}")
    return document


def preset(name: str) -> dict[str, Any]:
    """A family's preset of the size xs, or another recipe of `pipelines/` by name.

    Raises:
        UsageError: no preset has that name.
    """
    return {key: value for key, value in _preset(name).items() if key not in (sizes.LARGER, ON_LATENTS)}


def _preset(name: str) -> dict[str, Any]:
    folder = resources_dir() / "pipelines"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise UsageError(f"there is no preset {name!r}{nearest(name, known)}")
    return read(path)


def compose(kind: str | None, *layers: Any, where: str = "recipe") -> Recipe:
    """A recipe from the defaults, the family's preset, the size and the layers, in this order; later ones win.

    Args:
        kind: a family; None: no preset.
        layers: documents, or lists of documents.
        where: the name of the recipe in an error message.

    Raises:
        UsageError: from `preset` and `parse`.
    """
    document = _preset(kind) if kind else {}
    if "stages" in document:
        raise UsageError(f"{kind} is a pipeline, not a family", f"genflow run {kind}")
    parts = [part for layer in layers for part in (layer if isinstance(layer, list) else [layer])]
    if any("stages" in part for part in parts):
        raise UsageError(f"{where} has stages: it is a pipeline", "genflow run FILE")
    larger, on_latents = document.pop(sizes.LARGER, {}), document.pop(ON_LATENTS, {})
    own = sizes.training(document, larger.get("train", {}), parts)
    if own:
        document = merge(document, {"family": larger.get("family", {})})
    elif _is_on_latents(given := _sections(parts)):
        document = merge(document, {"family": on_latents.get("family", {})})
        own = {} if "optimizer" in given.get("train", {}) else on_latents.get("train", {})  # a rate fits one optimizer
    if own:
        document = merge(document, {"train": own, "tune": {"space": sizes.space(document, own)}})
    for part in parts:
        document = merge(document, part)
    return parse(document, where)


def _sections(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The sections of documents, of which later ones win."""
    given: dict[str, Any] = {}
    for part in parts:
        given = merge(given, {key: value for key, value in part.items() if isinstance(value, dict)})
    return given


def _is_on_latents(given: dict[str, Any]) -> bool:
    """Whether sections ask for latents, and for no net of which `on_latents` knows nothing."""
    latents = given.get("data", {}).get("latents") or "none"
    return latents != "none" and given.get("net", {}).get("kind", "auto") in NETS_ON_LATENTS
