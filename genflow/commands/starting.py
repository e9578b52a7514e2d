"""The run from which a training starts, if `init` names a local folder of Stable Diffusion 3: it becomes a run."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genflow.errors import UsageError
from genflow.system.streams import note

if TYPE_CHECKING:  # the command line checks words without importing torch
    from genflow.recipe.schema import Recipe
    from genflow.specs import DataSpec
    from genflow.storage.store import Artifact, Store


def is_folder(reference: str) -> bool:
    """Whether `init` names a folder, not a run."""
    path = Path(reference).expanduser()
    return (path / "transformer").is_dir() or (os.sep in reference and not reference.startswith("models:"))


def find(store: "Store", recipe: "Recipe", *, dry_run: bool = False) -> "tuple[Recipe, str]":
    """The recipe with `init` as the id of a run. The run of a folder is made unless it exists.

    Args:
        store: has the latents and the text embeddings that the recipe names.
        recipe: its `init` is the id of a run, a folder, or empty.
        dry_run: make no run.

    Returns:
        The recipe, and the name of the run if a dry run has found that it does not exist; else "".

    Raises:
        UsageError: the latents or the text embeddings do not fit the folder.
        DataError: a file of the folder is missing or damaged.
    """
    if not is_folder(recipe.init):
        return recipe, ""
    from genflow.sampling import diffusers_sd3
    from genflow.sampling.autoencoders import as_name

    folder = Path(recipe.init).expanduser().absolute()
    latents, texts = _fitting(store, folder, recipe)
    name = f"{as_name(folder)}-{diffusers_sd3.digest_of(folder)[:10]}"
    made = {"latents": latents.id, "texts": texts.id}
    known = (run for run in store.artifacts("runs") if run.name == name and made.items() <= run.meta.items())
    if (run := next(known, None)) is None:
        if dry_run:
            return recipe, name
        run = _write(store, folder, name, latents, texts)
        note(f"init     {folder} is the run {run.id}")
    return recipe.replace(init=run.id), ""


def _fitting(store: "Store", folder: Path, recipe: "Recipe") -> "tuple[Artifact, Artifact]":
    """The latents and the text embeddings that a recipe names, if the folder's net reads such.

    Raises:
        UsageError: it does not.
    """
    from genflow.data.shard_format import FACTS
    from genflow.data.texts import Texts
    from genflow.sampling.diffusers_sd3 import read_config
    from genflow.specs import DataSpec

    config, data = read_config(folder), recipe.data
    encode = f"genflow encode {data.name} --autoencoder {folder}"
    if data.latents in ("", "auto", "none"):
        raise UsageError(f"{folder} learned latents, and --latents names none", f"{encode}, then add --latents latest")
    has_encoders = (folder / "text_encoder").is_dir()
    embed = f"add --text {folder if has_encoders else 'ENCODER, the one with which it was trained'}"
    if data.text in ("", "none"):
        raise UsageError(f"{folder} reads captions, and --text names no text encoder", embed)
    latents, texts = store.find("latents", data.latents), store.find("texts", data.text)
    facts = DataSpec.from_json(latents.file(FACTS).read_text(encoding="utf-8"))
    _check_autoencoder(folder, latents.id, facts, encode)
    if facts.shape[0] != config.in_channels:
        theirs = f"{folder} learned latents of {config.in_channels} channels"
        raise UsageError(f"{theirs}, and {latents.id} have {facts.shape[0]}", encode)
    spec = Texts.of(texts, verify=False).spec
    read, made = (config.joint_attention_dim, config.pooled_projection_dim), (spec.tokens, spec.pooled)
    if read != made:
        numbers = f"tokens of {read[0]} and pooled vectors of {read[1]} numbers"
        raise UsageError(f"{folder} reads {numbers}, and {texts.id} have {made[0]} and {made[1]}", embed)
    return latents, texts


def _check_autoencoder(folder: Path, latents: str, facts: "DataSpec", encode: str) -> None:
    from genflow.sampling.diffusers_folder import digest_of

    if not (folder / "vae").is_dir():
        note(f"warning: {folder} has no vae, so it may have learned latents of another autoencoder")
    elif not facts.autoencoder.endswith(f"-{digest_of(folder)}"):
        raise UsageError(f"the latents {latents} are by {facts.autoencoder}, and {folder} has another vae", encode)


def _write(store: "Store", folder: Path, name: str, latents: "Artifact", texts: "Artifact") -> "Artifact":
    """Make the run."""
    from genflow import build
    from genflow.nets.sd3 import SD3
    from genflow.recipe.schema import parse
    from genflow.runs import create_folder, plan
    from genflow.sampling import diffusers_sd3
    from genflow.training import checkpoint, checkpoint_folders

    net, tensors = diffusers_sd3.read_net(folder)
    data = {"name": latents.meta["dataset"], "latents": latents.id, "text": texts.id}
    document = {"family": {"kind": "flow_matching"}, "net": net, "data": data, "name": name, "sample": _sample(folder)}
    run = plan(store, parse(document))
    family = build.family_of(run.recipe, run.facts)
    own = family.get_submodule("net")
    assert isinstance(own, SD3)
    diffusers_sd3.load(folder, own, tensors)  # first, because a damaged folder leaves no run
    parents = list(data.values())
    with store.lock("runs", run.id, uses=parents):
        if (made := store.get("runs", run.id)) is not None:
            return made
        create_folder(store, run)
        average = {key: parameter.detach() for key, parameter in family.named_parameters()}
        weights = checkpoint.gather(family, average, {})
        state: checkpoint.State = {
            "step": 0, "images": 0, "seconds": 0.0, "cpu_seconds": 0.0, "rollbacks": 0,
            "parameters": sum(parameter.numel() for parameter in average.values()),
        }  # fmt: skip
        checkpoints = checkpoint_folders.Checkpoints(store.folder("runs", run.id) / checkpoint_folders.FOLDER)
        checkpoints.save(0, lambda attempt: checkpoint.write(attempt, weights, state))
        meta = {
            "family": "flow_matching", "net": "sd3", "init": "", "dataset": run.dataset.id,
            "dataset_name": run.dataset.name, "latents": latents.id, "texts": texts.id,
            "fingerprint": run.data_facts.fingerprint, "steps": 0, "images": 0, "seconds": 0.0, "cpu_seconds": 0.0,
            "parameters": state["parameters"], "world": 1, "folder": str(folder),
        }  # fmt: skip
        return store.finalize("runs", run.id, name=name, parents=parents, meta=meta)


def _sample(folder: Path) -> dict[str, Any]:
    """The sampling options that the folder's scheduler has."""
    try:
        shift = json.loads((folder / "scheduler" / "scheduler_config.json").read_bytes())["shift"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {"shift": float(shift)} if isinstance(shift, int | float) and 1 <= shift <= 100 else {}
