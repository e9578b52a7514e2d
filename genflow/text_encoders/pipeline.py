"""The text encoders in a folder of diffusers' `StableDiffusion3Pipeline` as one, as this pipeline joins them.

    tokens    those of both CLIPs, concatenated along the channels; then those of T5, if the folder has it
    pooled    those of both CLIPs, concatenated

Narrower tokens are padded with zeros. The pipeline pads every caption to 77 and 256 tokens; here it has its own tokens.

Reference: Stable Diffusion 3 (Esser et al., 2024) https://arxiv.org/abs/2403.03206
"""

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from genflow.errors import UsageError
from genflow.system.source_hash import digest
from genflow.text_encoders.base import Embedding, TextEncoder
from genflow.text_encoders.folder_encoder import FolderEncoder

CLIPS, T5 = ("text_encoder", "text_encoder_2"), "text_encoder_3"
T5_LENGTH = 256  # tokens of T5 that the pipeline reads by default


def is_folder(home: Path) -> bool:
    """Whether a folder is of such a pipeline with text encoders."""
    index = _read(home / "model_index.json")
    return index.get("_class_name") == "StableDiffusion3Pipeline" and any((home / name).is_dir() for name in CLIPS)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


class PipelineEncoder(TextEncoder):
    """The text encoders of a folder.

    Args:
        home: the folder.

    Raises:
        UsageError: a CLIP is missing, or the net of the folder reads narrower tokens.
        DataError: a file is missing or damaged.
    """

    def __init__(self, home: Path) -> None:
        for name in CLIPS:
            if not (home / name / "config.json").is_file():
                raise UsageError(f"{home} has no {name}/config.json", "copy the folder again, with both of its CLIPs")
        self.name = str(home)
        self.clips = [FolderEncoder(home / name, str(home / name)) for name in CLIPS]
        self.others: list[FolderEncoder] = []
        if (home / T5 / "config.json").is_file():
            self.others = [FolderEncoder(home / T5, str(home / T5))]
            self.others[0].length = min(self.others[0].length, T5_LENGTH)
        widest = max(sum(each.tokens for each in self.clips), *(each.tokens for each in self.others), 1)
        self.tokens = _read(home / "transformer" / "config.json").get("joint_attention_dim", widest)
        if self.tokens < widest:
            problem = f"its text encoders have tokens of {widest} numbers, and its net reads {self.tokens}"
            raise UsageError(f"{home}: {problem}", "copy the folder again")
        self.pooled = sum(each.pooled for each in self.clips)
        self.length = max(each.length for each in self.clips) + sum(each.length for each in self.others)

    @property
    def id(self) -> str:
        return f"sd3@{digest([[each.id for each in (*self.clips, *self.others)], self.tokens])}"

    def encode(self, captions: Sequence[str]) -> list[Embedding]:
        clips = zip(*(each.encode(captions) for each in self.clips), strict=True)
        others = zip(*(each.encode(captions) for each in self.others), strict=True)
        return [self._join(clip, other or ()) for clip, other in zip_longest(clips, others)]

    def counts(self, captions: Sequence[str]) -> list[int]:
        clips = zip(*(each.counts(captions) for each in self.clips), strict=True)
        others = zip(*(each.counts(captions) for each in self.others), strict=True)
        return [max(clip) + sum(other or ()) for clip, other in zip_longest(clips, others)]

    def cut(self, captions: Sequence[str]) -> list[int]:  # each encoder cuts at its own length
        return sorted({position for each in (*self.clips, *self.others) for position in each.cut(captions)})

    def _join(self, clips: Sequence[Embedding], others: Sequence[Embedding]) -> Embedding:
        length = max(len(tokens) for tokens, _ in clips)
        joined = np.concatenate([np.pad(tokens, ((0, length - len(tokens)), (0, 0))) for tokens, _ in clips], 1)
        rows = [joined, *(tokens for tokens, _ in others)]
        wide = [np.pad(tokens, ((0, 0), (0, self.tokens - tokens.shape[1]))) for tokens in rows]
        return np.concatenate(wide), np.concatenate([pooled for _, pooled in clips])
