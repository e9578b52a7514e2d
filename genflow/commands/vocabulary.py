"""Words for settings: the names that other tools use, and the recipe key that a word means in a command.

`genflow train --batch_size 64`, `--batch 64` and `genflow.train(batch=64)` all set `train.batch`. A flag that a command
declares itself wins over the words here.
"""

from typing import Any

from genflow.errors import UsageError, similar

OTHER_NAMES = {  # what other tools call a setting -> what genflow calls it
    "learning_rate": "lr", "base_lr": "lr", "max_lr": "lr",
    "batch_size": "batch", "train_batch_size": "batch", "per_device_train_batch_size": "batch", "bs": "batch",
    "num_epochs": "epochs", "num_train_epochs": "epochs", "max_epochs": "epochs", "epoch": "epochs",
    "max_steps": "steps", "num_steps": "steps", "max_train_steps": "steps", "train_steps": "steps", "iters": "steps",
    "iterations": "steps", "num_inference_steps": "steps", "sampling_steps": "steps", "total_steps": "steps",
    "max_minutes": "minutes", "time": "minutes", "wd": "weight_decay", "warmup_steps": "warmup",
    "num_warmup_steps": "warmup", "grad_clip": "clip", "max_grad_norm": "clip", "gradient_clip": "clip",
    "ema_decay": "ema", "mixed_precision": "precision", "optim": "optimizer", "random_seed": "seed",
    "random_state": "seed", "manual_seed": "seed", "guidance_scale": "guidance", "cfg": "guidance",
    "cfg_scale": "guidance", "solver": "sampler", "num_samples": "samples", "n_samples": "samples",
    "num_images": "samples", "class": "label", "labels": "label", "class_label": "label", "dataset": "data",
    "output": "out", "output_dir": "out", "resolution": "size", "image_size": "size", "img_size": "size",
    "num_workers": "workers", "num_gpus": "gpus", "num_trials": "trials", "n_trials": "trials", "run_name": "name",
    "random_flip": "flip", "horizontal_flip": "flip",
}  # fmt: skip
SAMPLING = ("sampler", "guidance", "steps")  # keys of the section `sample` that most families have
# The sections in which a command looks for a word, and the keys that count; None: every key of the section.
SECTIONS: dict[str, dict[str, tuple[str, ...] | None]] = {
    "prepare": {"data": None},
    "train": {"train": None, "sample": SAMPLING, "data": ("flip", "pairs"), "cluster": None},
    "tune": {"tune": None, "train": None, "sample": SAMPLING, "data": ("flip", "pairs"), "cluster": None},
    "evaluate": {"sample": SAMPLING, "evaluate": None, "cluster": None},
    "compare": {"sample": SAMPLING, "evaluate": None, "cluster": None},
    "tables": {"evaluate": ("samples", "features", "seed"), "train": ("batch", "lr"), "cluster": None},
    "reflow": {"sample": SAMPLING, "reflow": None, "cluster": None},
    "encode": {"encode": None, "cluster": None},
}
SYNONYMS = {  # a word that a command has under another name
    "sample": {"samples": "n", "labels": "label", "count": "n"},
    "tune": {"budget": "minutes"},
    "tables": {"budget": "cpu_minutes"},
}


def our_name(word: str) -> str:
    """The name that genflow uses for a word of another tool; an unknown word is returned as it is."""
    word = word.replace("-", "_")
    return OTHER_NAMES.get(word.lower(), word)


def key_of(command: str, word: str) -> str:
    """The recipe key that a word means in a command, such as `train.lr` of `learning_rate`; empty if there is none."""
    from genflow.recipe.schema import SECTIONS as SCHEMA

    names = dict.fromkeys((word.replace("-", "_"), our_name(word)))
    for name in names:
        for section, keys in SECTIONS.get(command, {}).items():
            known = keys if keys is not None else SCHEMA[section].model_fields
            if name in known:
                return f"{section}.{name}"
    return ""


def keys_of(command: str, words: dict[str, Any]) -> dict[str, Any]:
    """Words with their values as recipe keys, for the Python API.

    Raises:
        UsageError: a word means nothing in this command.
    """
    found = {}
    for word, value in words.items():
        key = key_of(command, word)
        if not key:
            from genflow.recipe.schema import SECTIONS as SCHEMA

            known = [name for section in SECTIONS.get(command, {}) if section in SCHEMA
                     for name in SCHEMA[section].model_fields]  # fmt: skip
            hint = f'set={{"section.{word}": {value!r}}} sets any key of the recipe; docs/recipe.md lists them'
            raise UsageError(f"{command} has no option {word!r}{similar(word, known)}", hint)
        found[key] = value
    return found
