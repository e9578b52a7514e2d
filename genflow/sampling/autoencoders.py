"""Find, load and copy the autoencoder of a dataset: a run, or a local folder of diffusers' `AutoencoderKL`.

The copy is a folder `autoencoder/` with the files that `Engine.from_folder` reads. Its facts are those of the pictures.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genflow.data.shards import Split
from genflow.errors import DataError, UsageError
from genflow.families.base import Family
from genflow.recipe.schema import Recipe
from genflow.sampling.diffusers_config import CONFIG, home_of
from genflow.sampling.engine import AUTOENCODER, Engine
from genflow.specs import DataSpec
from genflow.storage.files import write_atomically
from genflow.storage.store import Artifact, Store

NAME_LENGTH = 40  # of a diffusers folder's name in its id


@dataclass(frozen=True)
class Loaded:
    """An autoencoder with its averaged weights.

    Args:
        id: the run's id; of a folder, its name and a hash of its files.
        deciding: what decides its latents: hashes of the weights, which training a run again may change.
        recipe: resolved, for `build.family_of`.
        family: for the facts with which it was loaded.
        step: the training step of the weights; 0 for a folder.
        scaled: whether its latents have a mean and a deviation; a folder may not state them.
    """

    id: str
    deciding: Any
    recipe: Recipe
    family: Family
    step: int = 0
    scaled: bool = True


def decoder_of(latents: Artifact) -> Engine:
    """The autoencoder in the folder of latents, which decodes them."""
    return Engine.from_folder(latents.path / AUTOENCODER)


def decode_rows(decoder: Engine, split: Split, rows: np.ndarray) -> np.ndarray:
    """Rows of latents as the pictures that they decode to, (N, H, W, C) grey levels; row n is drawn with seed n."""
    codes = split.take(rows).astype(np.float32).transpose(0, 3, 1, 2)
    return decoder.decode(codes, None, rows.tolist()).images


def find(store: Store, reference: str) -> Artifact | Path:
    """The run or the diffusers folder that a reference names; a folder comes first.

    Raises:
        UsageError: there is neither, the run is no autoencoder, or the folder has no config.json.
    """
    path = Path(reference).expanduser()
    if any((home / CONFIG).is_file() for home in (path, path / "vae")):
        return path.absolute()
    try:
        run = store.find("runs", reference)
    except UsageError as error:
        if os.sep in reference or path.is_dir():
            try:
                home_of(path)
            except UsageError as of_folder:
                raise of_folder from error
        raise
    if not is_autoencoder(run):
        others = [other.id for other in store.artifacts("runs") if is_autoencoder(other)]
        data = run.meta.get("dataset_name") or "NAME"
        cure = f"--autoencoder {others[-1]}" if others else f"genflow train autoencoder --data {data}"
        raise UsageError(f"run {run.id} is a {run.meta.get('family', 'run')}, not an autoencoder", cure)
    return run


def is_autoencoder(run: Artifact) -> bool:
    """Whether a finished run is an autoencoder."""
    from genflow import families

    return run.meta.get("family") in families.AUTOENCODERS


def require_sampler(run: Artifact) -> None:
    """Check that a run draws samples by itself.

    Raises:
        UsageError: it is an autoencoder.
    """
    if is_autoencoder(run):
        data = run.meta.get("dataset_name") or "DATASET"
        raise UsageError(
            f"{run.id} is an autoencoder: it draws no pictures by itself",
            f"genflow encode {data} --autoencoder {run.id}, then train another family on the latents",
        )


def load(found: Artifact | Path, facts: DataSpec, name: str) -> Loaded:
    """Load an autoencoder for pictures that may have another side than those that it was trained on.

    Args:
        found: the result of `find`.
        facts: of the pictures.
        name: the name of their dataset, for messages.

    Raises:
        UsageError: the pictures do not fit: their channels or their side are others.
        DataError: its files are damaged.
    """
    if isinstance(found, Path):
        from genflow.sampling import diffusers_folder

        recipe, family = diffusers_folder.read_autoencoder(found, facts)
        hashed, scaled = diffusers_folder.digest_of(found), diffusers_folder.scale_of(found).known
        return Loaded(f"{as_name(found)}-{hashed}", hashed, recipe, family, scaled=scaled)
    return _load_run(found, facts, name)


def _load_run(run: Artifact, facts: DataSpec, name: str) -> Loaded:
    from genflow import build
    from genflow.recipe.files import read
    from genflow.recipe.schema import parse
    from genflow.training import checkpoint, checkpoint_folders

    recipe = parse(read(run.file("recipe.yaml")), run.id)
    theirs = DataSpec.from_json(run.file("facts.json").read_text(encoding="utf-8"))
    factor = theirs.shape[1] // build.family_of(recipe, theirs).code_shape[1]
    own = f"genflow train autoencoder --data {name}"
    if facts.shape[0] != theirs.shape[0]:
        channels, wanted = facts.shape[0], theirs.shape[0]
        raise UsageError(
            f"autoencoder {run.id} is of pictures with {wanted} channels, and {name} has {channels}",
            f"genflow prepare SOURCE --channels {wanted}, or {own}",
        )
    if any(side % factor for side in facts.shape[1:]):
        side = facts.shape[1]
        sizes = [size for size in (side // factor * factor, -(-side // factor) * factor) if size >= factor]
        raise UsageError(
            f"autoencoder {run.id} has factor {factor}, which does not divide {side}, the side of {name}",
            f"genflow prepare SOURCE --size {' or '.join(map(str, dict.fromkeys(sizes)))}, or {own}",
        )
    if "factor" in recipe.family:  # its default depends on the side
        recipe = recipe.replace(family={**recipe.family, "factor": factor})
    family = build.family_of(recipe, facts)
    folder = checkpoint_folders.of_run(run)
    try:
        state = checkpoint.load_weights(folder, family)
    except DataError as error:
        if facts.shape == theirs.shape:
            raise
        sides = [f"{H}x{W}" for _, H, W in (theirs.shape, facts.shape)]
        message = f"autoencoder {run.id} is of {sides[0]} pictures, and its net is of no other side such as {sides[1]}"
        raise UsageError(message, own) from error
    prefix = f"{checkpoint_folders.FOLDER}/{folder.name}/"
    weights = {
        name: run.manifest["files"][name]["sha256"]
        for name in run.files(f"{prefix}*.safetensors")
        if name.removeprefix(prefix) in checkpoint.READ_BY_SAMPLING
    }
    return Loaded(run.id, [run.id, weights], recipe, family, int(state["step"]))


def files(copy: Path) -> list[Path]:
    """The files of a copy."""
    return [copy / name for name in ("weights.safetensors", "facts.json", "recipe.yaml", "state.json")]


def write(loaded: Loaded, facts: DataSpec, folder: Path) -> None:
    """Write the copy.

    Args:
        loaded: the autoencoder.
        facts: of the pictures.
        folder: of the copy.
    """
    from safetensors.torch import save

    from genflow.recipe.files import dump

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in loaded.family.state_dict().items()}
    contents: tuple[str | bytes, ...] = (
        save(tensors, {"format": "pt"}),  # one key: the order of several is random, and so would be the bytes
        json.dumps(facts.to_json(), indent=1),
        dump(loaded.recipe),
        json.dumps({"step": loaded.step, "run": loaded.id}),
    )
    for file, content in zip(files(folder), contents, strict=True):
        write_atomically(file, content)


def as_name(folder: Path) -> str:
    """The name of a folder in letters that an id may have; a folder `vae` takes that of the pipeline around it."""
    name = folder.parent.name if folder.name == "vae" and folder.parent.name else folder.name
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)
    return kept.strip(".-")[:NAME_LENGTH] or AUTOENCODER
