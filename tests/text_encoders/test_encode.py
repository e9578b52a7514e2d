"""What text encoders make of captions: the numbers of transformers, the same bits in any company."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import text_folders
from support.text_folders import BERT, CLIP, T5

from genflow.errors import DataError, UsageError
from genflow.text_encoders import find
from genflow.text_encoders.base import Embedding, TextEncoder
from genflow.text_encoders.minilm import PACKAGES

pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
PROJECTED = {**CLIP, "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu"}
CONFIGS = {"bert": BERT, "clip": CLIP, "projected": PROJECTED, "t5": T5, "t5 relu": {**T5, "feed_forward_proj": "relu"}}
CAPTIONS = ["", "red apples on a blue tiger", "redred café 日本 🍎", "it's 12 Reds,\n and\tmore"]
# The third token and the pooled vector of the second caption, first numbers, as transformers 5.24 computes them.
NUMBERS = {
    "bert": ([0.95921, 0.54618, -0.02514, -0.56526], [0.5306, 0.48652, -0.02248, -0.39293]),
    "clip": ([1.15407, -2.26386, 1.77044, -2.63945], [-0.81648, -0.66324, 1.33768, -0.39344]),
    "projected": ([1.17659, -2.29682, 1.78824, -2.65997], [-0.26602, -0.6017, 0.55977, 0.98642]),
    "t5": ([0.51605, -1.75671, -0.12609, -1.71135], [0.40867, -2.20783, -0.14437, -1.43088]),
    "t5 relu": ([0.59171, -2.80923, -0.81741, -1.03682], [0.30117, -1.93968, -0.82742, -1.13941]),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("text")
    return {
        name: text_folders.write(root / name, config, projection=name == "projected")
        for name, config in CONFIGS.items()
    }


def same(a: Embedding, b: Embedding) -> bool:
    """Whether two embeddings are equal bit for bit."""
    return all(x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_numbers_are_those_of_transformers(folders: dict[str, Path], name: str) -> None:
    """As recorded from transformers, which need not be installed."""
    tokens, pooled = find(str(folders[name])).encode(CAPTIONS)[1]
    assert tokens.dtype == pooled.dtype == np.float32
    np.testing.assert_allclose(tokens[2, :4], NUMBERS[name][0], atol=2e-5)
    np.testing.assert_allclose(pooled[:4], NUMBERS[name][1], atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_agrees_with_an_installed_transformers(folders: dict[str, Path], name: str) -> None:
    """Tokens and hidden states of every caption, one by one."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    home, config = folders[name], CONFIGS[name]
    model = getattr(transformers, config["architectures"][0]).from_pretrained(home).eval()
    kinds = {"bert": "BertTokenizer", "clip_text_model": "CLIPTokenizer", "t5": "PreTrainedTokenizerFast"}
    tokenizer = getattr(transformers, kinds[config["model_type"]]).from_pretrained(home)
    compare(find(str(home)), model, tokenizer, CAPTIONS)


def compare(encoder: TextEncoder, model: torch.nn.Module, tokenizer: object, captions: Sequence[str]) -> None:
    """Compare an encoder with a model of transformers, caption by caption."""
    assert callable(tokenizer)
    for caption, (tokens, pooled) in zip(captions, encoder.encode(captions), strict=True):
        ids = tokenizer(caption, return_tensors="pt", truncation=True, max_length=encoder.length).input_ids
        with torch.no_grad():
            out = model(input_ids=ids, output_hidden_states=True)
        is_clip = "CLIP" in type(model).__name__
        states = (out.hidden_states[-2] if is_clip else out.last_hidden_state)[0]
        vector = out["text_embeds" if "text_embeds" in out else "pooler_output"][0] if is_clip else states.mean(0)
        if not is_clip:
            vector = torch.nn.functional.normalize(vector, dim=0) * len(vector) ** 0.5
        np.testing.assert_allclose(tokens, states.numpy(), atol=1e-5)
        np.testing.assert_allclose(pooled, vector.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "projected", "t5"])
def test_the_bits_of_a_caption_do_not_depend_on_its_company(folders: dict[str, Path], name: str) -> None:
    """Alone, at each place of a batch, and among captions of every length."""
    encoder = find(str(folders[name]))
    captions = [*CAPTIONS, *("red " * count for count in range(1, 24))]
    alone = {caption: encoder.encode([caption])[0] for caption in captions}
    draw = np.random.default_rng(0)
    for _ in range(6):
        mixed = [captions[k] for k in draw.integers(len(captions), size=90)]
        assert all(same(alone[c], e) for c, e in zip(mixed, encoder.encode(mixed), strict=True))
    with torch.autocast("cpu", torch.bfloat16):  # float32 also where the caller trains in bfloat16
        assert same(encoder.encode(["red apple"])[0], find(str(folders[name])).encode(["red apple"])[0])


def test_a_caption_that_is_too_long_is_cut_and_counted(folders: dict[str, Path]) -> None:
    """Its last token still marks the end, so it equals the caption that fits."""
    encoder = find(str(folders["bert"]))
    long, fits = "red " * 40, "red " * 18
    assert encoder.counts([fits, long]) == [20, 42]
    assert encoder.cut(["red", long, fits, long]) == [1, 3]
    assert same(*encoder.encode([long, fits]))


def test_special_tokens_in_a_caption_are_words(folders: dict[str, Path]) -> None:
    """`[SEP]` is three words, and a caption that contains CLIP's end is pooled at its own end."""
    bert, clip = find(str(folders["bert"])), find(str(folders["clip"]))
    assert bert.counts(["[SEP]"]) == [5]
    assert same(*bert.encode(["[SEP]", "[ sep ]"]))
    assert clip.counts(["<|endoftext|>"])[0] > 3


def test_odd_captions_are_encoded(folders: dict[str, Path]) -> None:
    """NUL, right-to-left text, emoji, 4,000 characters; a byte that is not UTF-8 is an error."""
    for encoder in (find(str(folder)) for folder in folders.values()):
        odd = ["\0", "مرحبا", "👩‍👩‍👧", "x" * 4000, "red " * 1000, " \n "]
        assert all(np.isfinite(tokens).all() and np.isfinite(pooled).all() for tokens, pooled in encoder.encode(odd))
        assert encoder.encode([]) == []
        with pytest.raises(DataError, match=r"caption 2 is not valid UTF-8: 'caf\\udce9'"):
            encoder.encode(["red", "caf\udce9"])


def test_several_encoders_are_joined(folders: dict[str, Path]) -> None:
    """Tokens along the length, padded with zeros to the widest; pooled vectors one after another."""
    names = [str(folders[name]) for name in ("projected", "bert")]
    clip, bert = (find(name) for name in names)
    both = find("+".join(names))
    assert both.id == f"{clip.id}+{bert.id}"
    assert (both.tokens, both.pooled, both.length) == (24, 36, 33)
    (tokens, pooled), (first, _), (second, _) = (e.encode(["red apple"])[0] for e in (both, clip, bert))
    assert np.array_equal(tokens[: len(first), :16], first)
    assert not tokens[: len(first), 16:].any()
    assert np.array_equal(tokens[len(first) :], second)
    assert np.array_equal(pooled, np.concatenate([e.encode(["red apple"])[0][1] for e in (clip, bert)]))
    assert both.counts(["red"]) == [sum(e.counts(["red"])[0] for e in (clip, bert))]
    assert both.cut(["red", "red " * 15]) == [1]  # CLIP cuts it, BERT does not


def test_the_encoders_of_a_pipeline_are_joined_as_in_stable_diffusion_3(tmp_path: Path) -> None:
    """Both CLIPs side by side, then T5; narrower tokens are padded with zeros, and T5 has no pooled vector."""
    kinds = {"text_encoder": text_folders.CLIP, "text_encoder_2": {**text_folders.CLIP, "num_hidden_layers": 3}}
    for name, config in {**kinds, "text_encoder_3": text_folders.T5}.items():
        text_folders.write(tmp_path / name, config, projection=config is not text_folders.T5)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}', encoding="utf-8")
    parts = [find(str(tmp_path / name)) for name in (*kinds, "text_encoder_3")]
    whole = find(str(tmp_path))
    assert (whole.tokens, whole.pooled, whole.length) == (32, 24, 13 + min(256, parts[2].length))
    (tokens, pooled), *own = (each.encode(["", "red apple"])[1] for each in (whole, *parts))
    split = len(own[0][0])
    assert np.array_equal(tokens[:split], np.concatenate([each for each, _ in own[:2]], 1))
    assert np.array_equal(tokens[split:, :20], own[2][0])
    assert not tokens[split:, 20:].any()
    assert np.array_equal(pooled, np.concatenate([vector for _, vector in own[:2]]))
    assert whole.counts(["red apple"]) == [split + len(own[2][0])]
    assert whole.cut(["red", "red " * 15]) == [1]
    assert whole.encode([]) == []
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"joint_attention_dim": 40}', encoding="utf-8")
    wider = find(str(tmp_path))
    assert wider.tokens == 40
    assert wider.id != whole.id
    (tmp_path / "text_encoder_3").rename(tmp_path / "no_t5")
    assert find(str(tmp_path)).encode(["red apple"])[0][0].shape == (split, 40)
    (tmp_path / "text_encoder_2").rename(tmp_path / "no_clip")
    with pytest.raises(UsageError, match=r"has no text_encoder_2/config\.json"):
        find(str(tmp_path))


def test_other_forms_of_a_folder_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """Shards with an index, half precision, and a CLIP with both halves."""
    home, want = folders["projected"], find(str(folders["projected"])).encode(["red apple"])[0]
    tensors = load_file(home / "model.safetensors")
    files = {path.name: path.read_bytes() for path in home.iterdir() if path.name != "model.safetensors"}
    for form in ("shards", "half", "whole"):
        (tmp_path / form).mkdir()
        for name, content in files.items():
            (tmp_path / form / name).write_bytes(content)
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in halves.items():
        save_file({name: tensors[name] for name in own}, tmp_path / "shards" / file)
    index = {"weight_map": {name: file for file, own in halves.items() for name in own}}
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    half = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(half, tmp_path / "half" / "model.fp16.safetensors")
    save_file({**tensors, "visual_projection.weight": torch.zeros(1)}, tmp_path / "whole" / "model.safetensors")
    text = {key: value for key, value in PROJECTED.items() if key != "projection_dim"}
    whole = {"model_type": "clip", "projection_dim": 12, "text_config": text, "vision_config": {"hidden_size": 9}}
    (tmp_path / "whole" / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    assert same(find(str(tmp_path / "shards")).encode(["red apple"])[0], want)
    assert same(find(str(tmp_path / "whole")).encode(["red apple"])[0], want)
    np.testing.assert_allclose(find(str(tmp_path / "half")).encode(["red apple"])[0][0], want[0], atol=0.02)


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_do_not_fit_are_named(folders: dict[str, Path], tmp_path: Path, change: str) -> None:
    """One tensor is missing, or has another shape than config.json says."""
    text_folders.write(tmp_path, BERT)
    tensors, name = load_file(tmp_path / "model.safetensors"), "embeddings.LayerNorm.bias"
    message = f"the weights have no tensor {name}"
    if change == "missing":
        del tensors[name]
    else:
        tensors[name], message = torch.zeros(7), rf"tensor {name} is \(7,\), and config.json says \(24,\)"
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=message):
        find(str(tmp_path)).encode(["red"])


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """It has more tokens than the net; a caption without them is encoded."""
    encoder = find(str(text_folders.write(tmp_path, BERT)))
    with open(tmp_path / "vocab.txt", "a", encoding="utf-8") as vocabulary:
        vocabulary.write("penguin\n")
    assert len(encoder.encode(["red apple"])) == 1
    with pytest.raises(DataError, match="the tokenizer has token 18, and the net 18 tokens"):
        encoder.encode(["red penguin"])
    home = text_folders.write(tmp_path / "t5", T5)
    document = json.loads((home / "tokenizer.json").read_text(encoding="utf-8"))
    (home / "tokenizer.json").write_text(json.dumps({**document, "post_processor": None}), encoding="utf-8")
    with pytest.raises(DataError, match="the tokenizer does not mark the end of a caption"):
        find(str(home)).encode([""])


def test_the_real_minilm() -> None:
    """Facts of all-MiniLM-L6-v2, its file's digest through the id, and meaning: paraphrases are near."""
    if not any(importlib.util.find_spec(package) for package in PACKAGES):
        pytest.skip('minilm is not installed: pip install "genflow-ray[text]"')
    encoder = find("minilm")
    assert (encoder.tokens, encoder.pooled, encoder.length) == (384, 384, 256)
    assert encoder.id == "minilm@e4116a5fc4"
    captions = ["a red apple", "apple that is red", "two sailing boats"]
    found = [pooled / 384**0.5 for _, pooled in encoder.encode(captions)]
    assert found[0] @ found[1] > 0.8 > 0.4 > found[0] @ found[2]
    tokens, pooled = encoder.encode(["red apples on a blue tiger"])[0]  # as transformers 5.24 computes them
    np.testing.assert_allclose(tokens[2, :4], [-0.44504, 0.06368, -0.01515, 0.73672], atol=2e-5)
    np.testing.assert_allclose(pooled[:4], [-1.0878, 0.77487, 0.08314, 1.39898], atol=2e-5)
