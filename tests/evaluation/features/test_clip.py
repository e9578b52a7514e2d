"""CLIP from a folder: the vectors of transformers for pictures and captions, and folders that are no CLIP."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import text_folders

from genflow.errors import DataError, UsageError
from genflow.evaluation.features.clip import Clip, folder_id

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3)).astype(np.uint8)
# The first numbers of the first picture's vector, as transformers 5.24 computes them.
RECORDED = (0.331962, 0.612081, 0.040212, -0.260831, -0.069856)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both halves."""
    return text_folders.write_clip(tmp_path_factory.mktemp("clip") / "clip")


def test_the_vectors_are_those_of_transformers(home: Path) -> None:
    """As recorded from transformers, which need not be installed; all are unit vectors."""
    clip = Clip(home)
    pictures, captions = clip.pictures(PICTURES), clip.captions(["a red apple", ""])
    assert pictures[0, : len(RECORDED)] == pytest.approx(RECORDED, abs=2e-5)
    assert pictures.shape == (3, 12)
    assert captions.shape == (2, 12)
    for vectors in (pictures, captions):
        assert np.square(vectors).sum(1) == pytest.approx(1, abs=1e-5)


def test_it_agrees_with_an_installed_transformers(home: Path) -> None:
    """The picture half, with its way of resizing."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.CLIPModel.from_pretrained(home).eval()
    resize = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    x = resize(images=list(PICTURES), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    with torch.no_grad():
        found = model.get_image_features(pixel_values=x)
    theirs = torch.nn.functional.normalize(getattr(found, "pooler_output", found), dim=1).numpy()
    assert Clip(home).pictures(PICTURES) == pytest.approx(theirs, abs=2e-5)


def test_grey_pictures_are_read_as_colours(home: Path) -> None:
    """One channel stands for three equal ones."""
    clip, grey = Clip(home), PICTURES[..., :1]
    assert np.array_equal(clip.pictures(grey), clip.pictures(grey.repeat(3, 3)))


def test_the_crop_is_inside_the_picture(home: Path) -> None:
    """For every side: a grey picture stays one grey."""
    clip = Clip(home)
    for side in range(3, 120):
        x = clip._input(np.full((side, side + side % 3, 3), 200, np.uint8))
        assert (x - x[:, :1, :1]).abs().max() < 1e-5, side


def test_the_name_depends_on_every_file(home: Path, tmp_path: Path) -> None:
    """On the sizes of the picture half and on the mean and deviation of pictures, too, but not on the path."""
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in home.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    assert folder_id(str(copied)) == folder_id(str(home)) == Clip(home).name
    (copied / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}', encoding="utf-8")
    assert folder_id(str(copied)) != folder_id(str(home))


def test_other_folders_are_refused(home: Path, tmp_path: Path) -> None:
    """Each message names evaluate.clip, the folder and what is wrong."""
    with pytest.raises(UsageError, match=r"evaluate\.clip: .* has no config\.json"):
        folder_id(str(tmp_path))
    text = text_folders.write(tmp_path / "text", text_folders.CLIP, projection=True)
    with pytest.raises(UsageError, match="'clip_text_model', not a whole CLIP model"):
        folder_id(str(text))
    (text / "config.json").write_bytes((home / "config.json").read_bytes())
    with pytest.raises(DataError, match=r"have no visual_projection\.weight"):
        folder_id(str(text))
