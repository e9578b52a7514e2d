"""The files of a text encoder that transformers saved, in a local folder.

    config.json                                  the net
    model.safetensors                            the weights, or their index and shards; variants .fp16 and .bf16
    tokenizer.json | vocab.json, merges.txt | vocab.txt
                                                 the tokenizer, also in the folder tokenizer_2 next to text_encoder_2
    tokenizer_config.json, sentence_bert_config.json
                                                 the largest number of tokens, if it is less than the net's
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genflow.errors import DataError, SetupError, UsageError
from genflow.text_encoders.minilm import INSTALL

CONFIG = "config.json"
VARIANTS = ("", ".fp16", ".bf16")  # in the order in which they are looked for
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))  # in this order
LENGTHS = {"tokenizer_config.json": "model_max_length", "sentence_bert_config.json": "max_seq_length"}
UNLIMITED = 512  # tokens, where neither the net nor a file states a limit; T5 was trained with as many
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
COPY_AGAIN = "copy the folder again"


class ModelFolder:
    """The files of a text encoder.

    Args:
        home: the folder, which contains config.json.

    Raises:
        UsageError: it contains no text encoder.
        DataError: a file is missing or damaged.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.config = read_json(home / CONFIG)
        model_type = self.config.get("model_type")
        if not isinstance(model_type, str):
            raise UsageError(f"{home / CONFIG} has no model_type, so it is no model of transformers",
                             "name a folder of CLIP text, T5 or BERT")  # fmt: skip
        self.model_type = model_type
        self.weights = self._weights()
        self.tokenizer_files = self._tokenizer_files()

    def tensors(self) -> set[str]:
        """The names of the tensors in the weights.

        Raises:
            DataError: a file is damaged.
        """
        return {name for file in self.weights for name in self._read(file, lambda opened: list(opened.keys()))}

    def load(self, shapes: Mapping[str, torch.Size], own_name: Callable[[str], str]) -> dict[str, Tensor]:
        """The tensors of a net in float32, by the net's own names; further tensors in the files are ignored.

        Raises:
            DataError: a tensor is missing or has another shape, or a file is damaged.
        """
        found: dict[str, Tensor] = {}
        for file in self.weights:
            names = self._read(file, lambda opened: list(opened.keys()))
            wanted = {own: name for name in names if (own := own_name(name)) in shapes}

            def read(opened: Any, wanted: dict[str, str] = wanted) -> dict[str, Tensor]:
                return {own: opened.get_tensor(name).float() for own, name in wanted.items()}

            found |= self._read(file, read)
        for name, shape in shapes.items():
            if name not in found:
                raise DataError(f"{self.home}: the weights have no tensor {name}", COPY_AGAIN)
            if found[name].shape != shape:
                have, want = tuple(found[name].shape), tuple(shape)
                raise DataError(f"{self.home}: tensor {name} is {have}, and {CONFIG} says {want}", COPY_AGAIN)
        return found

    def length(self, positions: int) -> int:
        """The largest number of tokens of a caption; `positions` is the net's own limit, or 0."""
        limits = [positions] if positions else []
        for folder in dict.fromkeys((self.home, self.tokenizer_files[0].parent)):
            for name, key in LENGTHS.items():
                stated = read_json(folder / name).get(key) if (folder / name).is_file() else None
                if isinstance(stated, int) and 2 <= stated < 10**6:  # transformers writes 10**30 for "no limit"
                    limits.append(stated)
        return min(limits, default=UNLIMITED)

    def tokenizer(self) -> Any:
        """The tokenizer, without padding and truncation. It reads the words of a caption, never as special tokens.

        Raises:
            SetupError: the package `tokenizers` is not installed.
            DataError: a file is damaged.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise SetupError("text encoders need the package tokenizers, which is not installed", INSTALL) from error

        first = self.tokenizer_files[0]
        try:
            if first.name == "tokenizer.json":
                found = tokenizers.Tokenizer.from_file(str(first))
            elif first.name == "vocab.json":
                found = _clip_tokenizer(*self.tokenizer_files)
            else:
                options = first.parent / "tokenizer_config.json"
                lower = read_json(options).get("do_lower_case", True) if options.is_file() else True
                found = tokenizers.BertWordPieceTokenizer(str(first), lowercase=lower)._tokenizer
        except Exception as error:  # the library raises plain exceptions
            raise DataError(f"{first} is no tokenizer: {error}", COPY_AGAIN) from error
        found.no_truncation()
        found.no_padding()
        found.encode_special_tokens = True
        return found

    def digest_parts(self) -> list[str]:
        """SHA-256 hashes of tokenizer and weights. They are computed once per file and process."""
        return [_hash(file, *_state(file)) for file in (*self.tokenizer_files, *self.weights)]

    def _weights(self) -> list[Path]:
        for variant in VARIANTS:
            if (file := self.home / f"model{variant}.safetensors").is_file():
                return [file]
            if (index := self.home / f"model.safetensors.index{variant}.json").is_file():
                return self._shards(index)
        if pickles := sorted(self.home.glob("pytorch_model*.bin*")):
            raise DataError(
                f"{pickles[0]} is a pickle, which can execute code; genflow reads safetensors alone",
                f"with transformers: AutoModel.from_pretrained({str(self.home)!r}).save_pretrained({str(self.home)!r})",
            )
        raise DataError(f"{self.home} has no model.safetensors", "copy the folder again, with its weights")

    def _shards(self, index: Path) -> list[Path]:
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
            files = [self.home / name for name in names if Path(name).name == name]
        except (KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{index} is no index of weights", COPY_AGAIN) from error
        missing = [name for name in names if not (self.home / name).is_file() or Path(name).name != name]
        if missing or not files:
            raise DataError(f"{index} names {missing[0] if missing else 'no file'}, which is not there", COPY_AGAIN)
        return files

    def _tokenizer_files(self) -> list[Path]:
        """The files of the tokenizer: here, or in `tokenizer_2` next to `text_encoder_2`, as in diffusers' folders."""
        sibling = self.home.resolve().name.replace("text_encoder", "tokenizer")
        folders = dict.fromkeys((self.home, self.home.resolve().parent / sibling))
        for folder in folders:
            for names in TOKENIZERS:
                if all((folder / name).is_file() for name in names):
                    return [folder / name for name in names]
        where = " and ".join(str(folder) for folder in folders)
        raise DataError(
            f"{where}: no tokenizer.json, vocab.json with merges.txt, or vocab.txt",
            f"with transformers: AutoTokenizer.from_pretrained(NAME).save_pretrained({str(self.home)!r})",
        )

    @staticmethod
    def _read(file: Path, use: Callable[[Any], Any]) -> Any:
        try:
            with safe_open(file, framework="pt") as opened:
                return use(opened)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file} cannot be read: {error}", COPY_AGAIN) from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that contains an object.

    Raises:
        DataError: it cannot be read, or contains something else.
    """
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", f"ls -l {file}") from error
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{file} is no JSON object", COPY_AGAIN)
    return found


def _clip_tokenizer(vocabulary: Path, merges: Path) -> Any:
    """CLIP's tokenizer from its two files, with the parts that transformers' `CLIPTokenizer` has."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    start, end = "<|startoftext|>", "<|endoftext|>"
    model = models.BPE.from_file(
        str(vocabulary), str(merges), unk_token=end, continuing_subword_prefix="", end_of_word_suffix="</w>"
    )
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    first, last = made.token_to_id(start), made.token_to_id(end)
    if first is None or last is None:
        raise ValueError(f"{start} or {end} is missing")
    made.post_processor = processors.RobertaProcessing(
        (end, last), (start, first), trim_offsets=False, add_prefix_space=False
    )
    return made


def _state(file: Path) -> tuple[int, int]:
    facts = file.stat()
    return facts.st_size, facts.st_mtime_ns


@cache
def _hash(file: Path, size: int, changed: int) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
