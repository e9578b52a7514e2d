"""`genflow cost`, the cost in a dry run, and `--size` as a flag."""

import json
from typing import Any

import pytest
from support.commands import Command, in_this_process

from genflow.storage.store import Store


@pytest.fixture
def genflow(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    """Run a command in this process; return (exit code, standard output, standard error)."""
    monkeypatch.setenv("GENFLOW_STORE", str(store.root))
    return in_this_process(monkeypatch, capsys)


def test_pictures_need_not_exist(genflow: Command) -> None:
    """Of 256 pixels, learned as latents by default: a row per GPU, the memory, the budget, and what was assumed."""
    code, out, _ = genflow("cost", "flow_matching", "--pixels", "256", "--size", "s", "--gpus", "8", "--steps", "1000")
    assert code == 0
    assert "size s, on latents 16×32×32" in out
    assert "256 pictures, 32 a GPU" in out
    assert "8 × GPU" in out
    assert "H100 SXM" in out
    assert "1,000 steps, 256,000 pictures" in out
    assert "assumed  products in bfloat16 reach 50%" in out
    code, out, _ = genflow("cost", "gan", "--pixels", "32", "--latents", "none", "--on", "l4", "--json")
    assert code == 0
    (only,) = (document := json.loads(out))["on"]
    assert (document["schema"], document["shape"], only["gpu"]) == ("genflow.cost/1", [3, 32, 32], "L4")


def test_pictures_that_are_learned_as_latents_have_the_preset_of_latents(genflow: Command) -> None:
    for more, optimizer in ((), "adamw"), (("--latents", "none"), "muon"):
        code, out, _ = genflow("cost", "flow_matching", "--pixels", "64", *more)
        assert code == 0
        assert f"a picture, {optimizer}\n" in out


def test_a_teacher_need_not_exist(genflow: Command) -> None:
    """A distilled family of pictures that do not exist yet starts from a teacher of the same net."""
    code, out, _ = genflow("cost", "consistency", "--pixels", "16", "--json")
    assert code == 0
    assert json.loads(out)["flops_per_image"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--pixels", "2"), "--pixels must be from 4 to 1024"),
        (("--pixels", "32", "--data", "digits"), "--pixels is for pictures that do not exist yet"),
        (("--pixels", "32", "--on", "h10"), "no GPU 'h10' in the table of limits"),
        (("--pixels", "32", "--gpus", "64"), "train.batch=32 cannot be shared by 64 GPUs"),
        (("--pixels", "32", "--size", "huge"), "size: must be 'xs', 's', 'm', 'l' or 'xl'"),
        (("--pixels", "32", "--set", "train.lr=x"), "train.lr"),
    ],
)
def test_wrong_words_are_one_line(genflow: Command, words: tuple[str, ...], says: str) -> None:
    """With exit code 2."""
    code, out, err = genflow("cost", "flow_matching", *words)
    assert (code, out) == (2, "")
    assert says in err


def test_a_dry_run_shows_the_cost_and_the_size(genflow: Command, prepared: Any) -> None:
    """As a comment of the recipe, and in the document; --size is resolved, and other flags win over it."""
    data = prepared("digits").artifact.id
    dry = ("train", "flow_matching", "--data", data, "--dry-run", "--size", "s", "--steps", "9")
    code, out, _ = genflow(*dry)
    assert code == 0
    assert "\nsize: s\n" in out
    assert "  steps: 9\n  " in out
    assert "  batch: 256\n" in out
    assert "\n# cost: " in out
    assert "H100 SXM" in out
    _, out, _ = genflow(*dry, "--json", "--batch", "64")
    document = json.loads(out)
    assert (document["cost"]["batch"], document["recipe"]["train"]["lr"]) == (64, 5e-5)
    code, _, err = genflow(*dry[:-4], "--image-size", "64")
    assert code == 2
    assert "genflow prepare --size" in err
