"""Tiny folders of text encoders as transformers saves them, with random weights that every machine draws alike."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genflow.evaluation.features.clip import Config, Vision
from genflow.text_encoders.registry import architecture

WORDS = ["red", "apple", "on", "a", "blue", "##s", "tiger", ",", "[", "]", "sep", "cafe", "日"]
BERT = {
    "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 5 + len(WORDS), "hidden_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 20,
}  # fmt: skip
CLIP = {
    "model_type": "clip_text_model", "architectures": ["CLIPTextModel"], "vocab_size": 516, "hidden_size": 16,
    "intermediate_size": 32, "projection_dim": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 13, "bos_token_id": 514, "eos_token_id": 515,
}  # fmt: skip
T5 = {
    "model_type": "t5", "architectures": ["T5EncoderModel"], "vocab_size": 11, "d_model": 20, "d_kv": 6, "d_ff": 32,
    "num_layers": 2, "num_heads": 3, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
VISION = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"]}
WHOLE_CLIP: dict[str, Any] = {
    "model_type": "clip", "projection_dim": 12, "text_config": {**CLIP, "architectures": None},
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 3, "image_size": 16, "patch_size": 8, "projection_dim": 12,
    },
}  # fmt: skip
PREFIX = {"bert": "", "clip": "text_model.", "t5": "encoder."}  # of the names in a file


def write(home: Path, config: dict[str, Any], *, projection: bool = False) -> Path:
    """Write config.json, model.safetensors and a tokenizer; returns the folder."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.json").write_text(json.dumps(config), encoding="utf-8")
    module = architecture(config["model_type"])
    assert module is not None
    kind = module.__name__.rpartition(".")[2]
    net, _ = module.build(config, ["text_projection.weight"] if projection else [])
    save_file(drawn(net.state_dict(), kind), home / "model.safetensors", {"format": "pt"})
    {"bert": _bert_vocabulary, "clip": _clip_vocabulary, "t5": _t5_tokenizer}[kind](home)
    return home


def write_clip(home: Path) -> Path:
    """Write a CLIP model with both halves, as transformers' `CLIPModel` saves it; returns the folder."""
    write(home, CLIP, projection=True)
    (home / "config.json").write_text(json.dumps(WHOLE_CLIP), encoding="utf-8")
    net, generator = Vision(Config(**WHOLE_CLIP["vision_config"])), torch.Generator().manual_seed(1)
    tensors = load_file(home / "model.safetensors")
    for own, tensor in sorted(net.state_dict().items()):
        folder = "encoder." if own.startswith("layers.") else ""
        folder = "embeddings." if own.startswith(("patch_", "position_")) else folder
        stored = own if own.startswith("visual_projection") else f"vision_model.{folder}{own}"
        tensors[stored] = torch.randn(tensor.shape, generator=generator) * 0.3
    save_file(tensors, home / "model.safetensors", {"format": "pt"})
    return home


def drawn(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Random tensors in the order of their names; those of norms are around 1."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name in sorted(state):
        values = torch.randn(state[name].shape, generator=generator) * 0.3
        is_outside = name.startswith("text_projection") or name == "embed_tokens.weight"
        stored = {"embed_tokens.weight": "shared.weight"}.get(name, name) if is_outside else PREFIX[kind] + name
        found[stored] = values + 1 if "norm" in name.lower() and name.endswith("weight") else values
    return found


def _bert_vocabulary(home: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (home / "vocab.txt").write_text("\n".join([*special, *WORDS]) + "\n", encoding="utf-8")


def _clip_vocabulary(home: Path) -> None:
    """The bytes as the letters that byte-level BPE writes for them, each also at the end of a word, and two merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable]
    letters += [chr(256 + place) for place in range(256 - len(printable))]
    merged = ["re", "red</w>"]
    words = [*letters, *(letter + "</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    (home / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}), encoding="utf-8")
    (home / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n", encoding="utf-8")


def _t5_tokenizer(home: Path) -> None:
    words = ["<pad>", "</s>", "<unk>", "▁", "▁red", "▁apple", "s", "▁on", "▁a", "▁blue", "▁tiger"]
    template = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    document = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "decoder": None,
        "added_tokens": [{"id": number, "content": words[number], **flags} for number in range(3)],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": {
            "type": "TemplateProcessing", "single": template, "pair": template,
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": False,
                  "vocab": [[word, -float(number)] for number, word in enumerate(words)]},
    }  # fmt: skip
    (home / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
