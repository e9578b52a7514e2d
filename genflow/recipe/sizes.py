"""The dial of size: how a training grows from a laptop (xs) to a node of GPUs (xl).

A size is two layers of settings: the net's, which each module of `genflow.nets` states itself (`of_size`), and the
training's, which is here. A preset may state what differs for its family in a section `larger`. Both are below the
files, `--set` and the flags, and both are resolved before they are stored. xs changes nothing: it is the preset.

The settings are those of DiT, which trains nets of all sizes alike: AdamW with a rate of 1e-4, 256 pictures per step,
400,000 steps, and no weight decay. The warm-up is that of Stable Diffusion 3. The average's width falls with the size
of the net as in EDM2, whose nets XS, XS, S and M are about as large as s, m, l and xl here.

Another batch gives another learning rate, as long as none is set. AdamW's is proportional to the square root of the
batch. Muon's stays that of the preset: the spectral norm of its update is the rate itself, so that it depends neither
on the width nor on the scale of the gradient, and its published runs use 0.02 with batches of half a million tokens.
Every worker orthogonalizes every matrix, which many GPUs do not share. So the larger sizes use AdamW.

References:
    Scalable Diffusion Models with Transformers, DiT (Peebles, Xie, 2023), section 4   https://arxiv.org/abs/2212.09748
    Analyzing and Improving the Training Dynamics of Diffusion Models, EDM2 (Karras et al., 2024), table 2, for the
    averages   https://arxiv.org/abs/2312.02696
    Scaling Rectified Flow Transformers (Esser et al., 2024), for the warm-up   https://arxiv.org/abs/2403.03206
    On the SDEs and Scaling Rules for Adaptive Gradient Algorithms (Malladi et al., 2022), for the square root
    https://arxiv.org/abs/2205.10287
    A Spectral Condition for Feature Learning (Yang et al., 2023), for Muon and width   https://arxiv.org/abs/2310.17813
    Muon: an optimizer for hidden layers (Jordan et al., 2024)   https://kellerjordan.github.io/posts/muon/
"""

import math
from typing import Any, Literal

Size = Literal["xs", "s", "m", "l", "xl"]
SMALLEST: Size = "xs"
LARGER = "larger"  # the section of a preset
TRAINING: dict[str, Any] = {
    "steps": 400_000, "batch": 256, "lr": 1e-4, "optimizer": "adamw", "beta2": 0.999, "warmup": 1000,
    "checkpoint_every": 5000, "log_every": 100,
}  # fmt: skip
AVERAGES = {"s": 0.135, "m": 0.135, "l": 0.13, "xl": 0.1}


def size_of(layers: list[dict[str, Any]]) -> str:
    """The size that the last of some documents names; xs if none does."""
    return next((str(layer["size"]) for layer in reversed(layers) if "size" in layer), SMALLEST)


def training(preset: dict[str, Any], larger: dict[str, Any], layers: list[dict[str, Any]]) -> dict[str, Any]:
    """The keys of `train` that the size sets, between the preset and the layers above it; {} for xs.

    Args:
        preset: the document of the family's preset.
        larger: the keys of `train` in the preset's section `larger`, which replace those of `TRAINING`.
        layers: the documents above the preset, from which the size is read, and the batch and the optimizer.
    """
    size = size_of(layers)
    if size not in AVERAGES:  # xs, or a word that the schema rejects
        return {}
    given: dict[str, Any] = {}
    for layer in layers:
        given |= train if isinstance(train := layer.get("train"), dict) else {}
    own = {**TRAINING, "ema": AVERAGES[size], **larger}
    if given.get("optimizer", own["optimizer"]) != own["optimizer"]:
        before = preset.get("train", {})
        same = before.get("optimizer", "muon") == given["optimizer"]
        del own["lr"]
        return own | ({"lr": before["lr"]} if same and "lr" in before else {})
    batch = given.get("batch")
    if isinstance(batch, int) and batch > 0:
        own["lr"] = float(f"{own['lr'] * math.sqrt(batch / own['batch']):.3g}")
    return own


def space(preset: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The search space of a preset for the training of a size: around its learning rate, and without the small nets.

    Args:
        preset: the document of the family's preset.
        own: what `training` returned.
    """
    found = {key: values for key, values in preset.get("tune", {}).get("space", {}).items() if key[:4] != "net."}
    rates, before = found.get("train.lr"), preset.get("train", {}).get("lr")
    if isinstance(rates, str) and rates.startswith("log:") and before and "lr" in own:
        ends = (float(end) * own["lr"] / before for end in rates.removeprefix("log:").split(":"))
        found["train.lr"] = ":".join(["log", *(f"{end:.3g}" for end in ends)])
    return found
