"""Words for settings: the flag or the recipe key that a word means in a command, also the word of another tool.

`genflow train --batch_size 64`, `--batch 64` and `genflow.train(batch=64)` all set `train.batch`. A flag that a command
declares itself wins over the words here.
"""

from collections.abc import Container
from typing import Any

from genflow.errors import UsageError, similar
from genflow.recipe.aliases import our_name

SAMPLING = ("sampler", "guidance", "steps")  # keys of the section `sample` that most families have
# The sections in which a command looks for a word, and the keys that count; None: every key of the section. Section "":
# keys of the whole recipe.
SECTIONS: dict[str, dict[str, tuple[str, ...] | None]] = {
    "prepare": {"data": None},
    "train": {"": ("size",), "train": None, "sample": SAMPLING, "data": ("flip", "pairs"), "cluster": None},
    "tune": {
        "": ("size",), "tune": None, "train": None, "sample": SAMPLING, "data": ("flip", "pairs"), "cluster": None,
    },
    "evaluate": {"sample": SAMPLING, "evaluate": None, "cluster": None},
    "compare": {"sample": SAMPLING, "evaluate": None, "cluster": None},
    "report": {"sample": SAMPLING, "evaluate": None, "cluster": None},
    "cost": {"": ("size",), "train": None, "data": ("flip", "pairs"), "cluster": None},
    "tables": {"": ("size",), "evaluate": ("samples", "features", "seed"), "train": ("batch", "lr"), "cluster": None},
    "reflow": {"sample": SAMPLING, "reflow": None, "cluster": None},
    "encode": {"encode": None, "cluster": None},
}
SYNONYMS = {  # a word -> the flag of a command that means it
    "sample": {"samples": "n", "labels": "label", "count": "n", "samplers": "sampler"},
    "tune": {"budget": "minutes"},  # as these flags were called before
    "tables": {"budget": "cpu_minutes"},
}


def flag_of(command: str, word: str, flags: Container[str]) -> str:
    """The flag of a command that a word means, such as `--max-bad` of `max_bad`; empty if there is none.

    Args:
        command: its name.
        word: without dashes at its start.
        flags: that the command declares.
    """
    plain = word.replace("-", "_")
    ours = our_name(plain)
    own = SYNONYMS.get(command, {})
    for name in (plain, own.get(plain, ""), ours, own.get(ours, "")):
        flag = f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}"
        if name and flag in flags:
            return flag
    return ""


def key_of(command: str, word: str) -> str:
    """The recipe key that a word means in a command, such as `train.lr` of `learning_rate`; empty if there is none."""
    known = _known(command)
    return next((known[name] for name in (word.replace("-", "_"), our_name(word)) if name in known), "")


def _known(command: str) -> dict[str, str]:
    """The names that a command accepts, with their recipe keys; the first section that has a name decides."""
    from genflow.recipe.schema import SECTIONS as SCHEMA

    found: dict[str, str] = {}
    for section, keys in SECTIONS.get(command, {}).items():
        for name in keys if keys is not None else SCHEMA[section].model_fields:
            found.setdefault(name, f"{section}.{name}" if section else name)
    return found


def keys_of(command: str, words: dict[str, Any]) -> dict[str, Any]:
    """Words with their values as recipe keys, for the Python API.

    Raises:
        UsageError: a word means nothing in this command.
    """
    found = {}
    for word, value in words.items():
        key = key_of(command, word)
        if not key:
            hint = 'set={"SECTION.KEY": VALUE} sets any key of the recipe; docs/recipe.md lists them'
            raise UsageError(f"{command} has no option {word!r}{similar(word, list(_known(command)))}", hint)
        found[key] = value
    return found
