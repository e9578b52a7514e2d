"""Captions on the command line: `encode --text`, `train --text`, and the prompts of `sample`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import text_folders
from support.commands import Command, in_this_process
from support.latents import dataset
from support.served import train_captioned

from genflow.data.shards import Dataset
from genflow.storage.store import Store

SIDE = 16
Made = tuple[Store, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store with captioned pictures, a run on their captions and a run on their classes, and the text encoder."""
    store, _, encoder = train_captioned(tmp_path_factory.mktemp("prompts"))
    return store, encoder


@pytest.fixture
def genflow(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Runs a command on the store in an empty folder: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("GENFLOW_STORE", str(made[0].root))
    monkeypatch.chdir(tmp_path)
    return in_this_process(monkeypatch, capsys)


def test_a_row_of_pictures_for_one_prompt(genflow: Command, tmp_path: Path) -> None:
    """One prompt gives a row of eight seeds; the output names the prompt."""
    code, out, _ = genflow("sample", "words", "--prompt", "a red apple", "-o", "x.png")
    assert code == 0
    assert "prompts: a red apple\n" in out
    width, height = Image.open(tmp_path / "x.png").size
    assert width > 6 * height


def test_several_prompts_are_columns(genflow: Command, tmp_path: Path) -> None:
    """Prompts of flags and of a file are drawn in turn; a blank line is no prompt."""
    (tmp_path / "words.txt").write_text("a blue apple\n\n  a red tiger \n", encoding="utf-8")
    flags = ("--prompt", "a red apple", "--prompts", "words.txt", "-n", "6", "--json", "-o", "x.npy")
    code, out, _ = genflow("sample", "words", *flags)
    assert code == 0
    assert json.loads(out)["prompts"] == ["a red apple", "a blue apple", "a red tiger"]
    drawn = np.load(tmp_path / "x.npy")
    genflow("sample", "words", "--prompt", "a blue apple", "-n", "1", "--seed", "4", "-o", "y.npy")
    assert np.array_equal(drawn[4], np.load(tmp_path / "y.npy")[0])


def test_without_a_prompt_held_out_captions_are_drawn(genflow: Command) -> None:
    """They are named, and need no text encoder."""
    code, out, _ = genflow("sample", "words", "-n", "3", "--json")
    assert code == 0
    assert all("square, number" in prompt for prompt in json.loads(out)["prompts"])


def test_samples_in_a_folder_are_captioned_pictures(genflow: Command, tmp_path: Path, store: Store) -> None:
    """The folder has a metadata.jsonl, so it can be prepared as it is."""
    code, _, _ = genflow("sample", "words", "--prompt", "a red apple", "-n", "4", "-o", "out/")
    assert code == 0
    again = dataset(store, tmp_path / "out", name="again")
    assert again.splits["train"].captions == [("a red apple",)] * 4


@pytest.mark.parametrize(
    ("arguments", "code", "said", "cure"),
    [
        (("kinds", "--prompt", "a red apple"), 2, "--prompt: this run has classes, not captions", "--label 'green'"),
        (("kinds", "--negative", "blue"), 2, "--negative: this run has classes, not captions", "--label 'green'"),
        (("words", "--label", "red"), 2, "--label red: this run has captions, not classes", "--prompt 'red'"),
        (("words", "--negative", "x", "--guidance", "1"), 2, "--negative needs guidance above 1", "--guidance 3"),
        (("words", "--prompts", "no.txt"), 2, "--prompts no.txt: No such file", "one prompt on each line"),
        (("words", "--prompts", "empty.txt"), 2, "--prompts empty.txt has no prompt", "one prompt on each line"),
        (("words", "--prompts", "latin.txt"), 6, "--prompts latin.txt is not UTF-8: byte 3", "as UTF-8"),
    ],
)
def test_wrong_prompts_are_one_line(
    genflow: Command, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str, cure: str
) -> None:
    """Exit code, message and cure; nothing is written."""
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    found, out, err = genflow("sample", *arguments, "-o", "x.png")
    assert (found, out, len(err.splitlines())) == (code, "", 2)
    assert said in err
    assert cure in err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("prompt", ["red apple " * 400, "🍎🐯", "تفاحة حمراء", "a\0b", "", " "])
def test_every_text_is_a_prompt(genflow: Command, prompt: str) -> None:
    """Long ones are cut, with a warning; others are read as the text encoder reads them."""
    code, _, err = genflow("sample", "words", "--prompt", prompt, "-n", "1")
    assert code == 0, err
    assert ("the rest is cut" in err) == (len(prompt) > 100)


def test_bytes_that_are_not_utf8_are_one_line(genflow: Command) -> None:
    """The shell hands them over as surrogates."""
    code, _, err = genflow("sample", "words", "--prompt", "caf\udce9", "-n", "1")
    assert code == 6
    assert "is not valid Unicode" in err
    assert len(err.splitlines()) == 2


def test_train_embeds_the_captions_first(genflow: Command, made: Made) -> None:
    """`--text ENCODER` finds the embeddings or plans to make them; their name and id are found, too."""
    store, encoder = made
    (texts,) = store.artifacts("texts")
    for reference in (str(encoder), texts.id, "colours"):
        code, out, _ = genflow("train", "ddpm", "--data", "colours", "--text", reference, "--dry-run", "--json")
        assert code == 0
        assert json.loads(out)["recipe"]["data"]["text"] == texts.id
    other = text_folders.write(encoder.with_name("clip"), text_folders.CLIP)
    _, out, _ = genflow("train", "ddpm", "--data", "colours", "--text", str(other), "--dry-run", "--json")
    assert json.loads(out)["stages"][0]["job"] == "encode_text"


def test_text_none_is_labels(genflow: Command) -> None:
    """Also where latents are to be made first."""
    code, _, err = genflow("train", "ddpm", "--data", "colours", "--latents", "auto", "--text", "none", "--dry-run")
    assert code == 0, err


def test_a_search_reads_captions(genflow: Command, made: Made) -> None:
    """`tune --text` finds the embeddings."""
    (texts,) = (a for a in made[0].artifacts("texts") if a.meta["encoder_id"].startswith("bert@"))
    code, out, err = genflow("tune", "ddpm", "--data", "colours", "--text", texts.id, "--dry-run", "--json")
    assert code == 0, err
    assert texts.id in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "colours", "--text", "minilmm"), "--text minilmm: neither a text encoder nor text embeddings"),
        (("--data", "colours", "--text", "./nothing"), "there is no such folder; nothing is downloaded"),
        (("--data", "moons", "--text", "BERT"), "has no captions"),
    ],
)
def test_wrong_texts_are_one_line(genflow: Command, made: Made, arguments: tuple[str, ...], said: str) -> None:
    """An unknown encoder, and data without captions."""
    dataset(made[0], "moons", samples=100)
    named = tuple(str(made[1]) if argument == "BERT" else argument for argument in arguments)
    code, _, err = genflow("train", "ddpm", *named, "--dry-run")
    assert code == 2
    assert said in err


def test_encode_text_is_a_job(genflow: Command, made: Made, tmp_path: Path) -> None:
    """It embeds the captions and says so; the second time it is cached, and the embeddings can be deleted."""
    store, _ = made
    other = text_folders.write(tmp_path / "t5", text_folders.T5)
    code, out, err = genflow("encode", "colours", "--text", str(other))
    assert code == 0, err
    assert "60 captions of colours-" in out
    assert "genflow train flow_matching --data colours-" in out
    _, again, _ = genflow("encode", "colours", "--text", str(other))
    assert "cached" in again
    texts = next(a for a in store.artifacts("texts") if a.meta["encoder_id"].startswith("t5@"))
    assert Dataset.open(store.find("datasets", "colours")).artifact.id in texts.manifest["parents"]
