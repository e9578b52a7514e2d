"""Prompts of a command: read them, check that they fit the run, and give each sample one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genflow.errors import DataError, UsageError
from genflow.system.streams import note

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.sampling.engine import Engine

DEFAULT_COUNT = 64  # samples without -n
SAMPLES_PER_PROMPT = 8  # without -n, of at most as many prompts


def given(flags: list[str], file: Path | None) -> list[str]:
    """The prompts of --prompt, then those of --prompts.

    Raises:
        UsageError: the file does not exist, or has no prompt.
        DataError: the file is not UTF-8.
    """
    if file is None:
        return flags
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        cure = "name a text file with one prompt on each line"
        raise UsageError(f"--prompts {file}: {error.strerror or error}", cure) from error
    except UnicodeDecodeError as error:
        raise DataError(f"--prompts {file} is not UTF-8: byte {error.start}", "save it again as UTF-8") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UsageError(f"--prompts {file} has no prompt", "write one prompt on each line")
    return [*flags, *found]


def check(engine: "Engine", prompts: list[str], negative: str, label: str, options: dict[str, Any]) -> None:
    """Check that prompts fit the run, and say which of them are cut.

    Raises:
        UsageError: they do not fit.
    """

    if engine.prompts is None:
        if prompts or negative:
            flag, names = "--prompt" if prompts else "--negative", engine.facts.class_names
            has, use = ("classes", f"--label '{names[0]}'") if names else ("no condition", f"omit {flag}")
            raise UsageError(f"{flag}: this run has {has}, not captions", use)
        return
    if label not in ("all", "none"):
        raise UsageError(f"--label {label}: this run has captions, not classes", f"--prompt '{label}'")
    if negative and options.get("guidance", 1.0) == 1.0:
        raise UsageError("--negative needs guidance above 1", "add --guidance 3")
    name_cut(engine, [*prompts, negative])


def name_cut(engine: "Engine", prompts: list[str]) -> None:
    """Say which prompts for a run of captions are cut."""
    from genflow.sampling.prompts import shown

    if engine.prompts is None:
        return
    limit = engine.prompts.spec.length
    for cut, count in engine.prompts.cut(prompts).items():
        note(f"warning: the prompt {shown(cut)} has {count} tokens, and this run reads {limit}: the rest is cut")


def arrange(engine: "Engine", prompts: list[str], n: int | None) -> tuple[list[str] | None, int, int | None]:
    """The prompt of each sample in turn, the number of samples, and the columns of a grid; None for runs of labels.

    Without prompts, they are captions of held-out rows.
    """
    from genflow.sampling.prompts import in_turn

    if engine.prompts is None:
        return None, count(prompts, n), None
    n = count(prompts, n)
    words, columns = in_turn(prompts or engine.prompts.examples(n), n)
    return words, n, columns


def count(prompts: list[str], n: int | None) -> int:
    """The number of samples: -n, or a row or a column for each of a few prompts, or one for each of many."""
    if n is not None or not prompts:
        return DEFAULT_COUNT if n is None else n
    return len(prompts) if len(prompts) > SAMPLES_PER_PROMPT else SAMPLES_PER_PROMPT * len(prompts)


def note_cut(header: str) -> None:
    """Say that a served model reads only a part of a prompt; `16/62` is the header of its answer."""
    if header:
        read, _, tokens = header.partition("/")
        note(f"warning: the longest prompt has {tokens} tokens, and this model reads {read}: the rest is cut")
