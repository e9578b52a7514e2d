"""The names that other tools use for settings."""

OTHER_NAMES = {  # what other tools call a setting -> what genflow calls it
    "learning_rate": "lr", "base_lr": "lr", "max_lr": "lr",
    "batch_size": "batch", "train_batch_size": "batch", "per_device_train_batch_size": "batch", "bs": "batch",
    "num_epochs": "epochs", "num_train_epochs": "epochs", "max_epochs": "epochs", "epoch": "epochs",
    "max_steps": "steps", "num_steps": "steps", "max_train_steps": "steps", "train_steps": "steps", "iters": "steps",
    "iterations": "steps", "num_inference_steps": "steps", "sampling_steps": "steps", "total_steps": "steps",
    "max_minutes": "minutes", "time": "minutes", "wd": "weight_decay", "warmup_steps": "warmup",
    "num_warmup_steps": "warmup", "grad_clip": "clip", "max_grad_norm": "clip", "gradient_clip": "clip",
    "gradient_accumulation_steps": "accumulate", "accumulate_grad_batches": "accumulate", "grad_accum": "accumulate",
    "gradient_checkpointing": "checkpoint_activations", "activation_checkpointing": "checkpoint_activations",
    "ema_decay": "ema", "mixed_precision": "precision", "optim": "optimizer", "random_seed": "seed",
    "random_state": "seed", "manual_seed": "seed", "guidance_scale": "guidance", "cfg": "guidance",
    "cfg_scale": "guidance", "solver": "sampler", "num_samples": "samples", "n_samples": "samples",
    "num_images": "samples", "class": "label", "labels": "label", "class_label": "label", "dataset": "data",
    "output": "out", "output_dir": "out", "resolution": "size", "image_size": "size", "img_size": "size",
    "num_workers": "workers", "num_gpus": "gpus", "num_trials": "trials", "n_trials": "trials", "run_name": "name",
    "random_flip": "flip", "horizontal_flip": "flip",
}  # fmt: skip


def our_name(word: str) -> str:
    """The name that genflow uses for a word of another tool; an unknown word is returned as it is."""
    word = word.replace("-", "_")
    return OTHER_NAMES.get(word.lower(), word)
