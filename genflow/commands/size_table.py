"""The sizes of docs/recipe.md: what each sets, read from the nets and the presets."""

from typing import Any

from genflow import families, nets
from genflow.errors import UsageError
from genflow.recipe.compose import compose, preset
from genflow.recipe.sizes import AVERAGES

SHAPE = (4, 32, 32)  # the latents of pictures of 256 pixels


def page() -> list[str]:
    """The lines of the section."""
    sizes = list(AVERAGES)
    shape = "x".join(str(side) for side in SHAPE)
    by_net = [[f"`{kind}`", *found] for kind in nets.kinds() if (found := _options(kind, sizes))]
    lines = [
        "## Sizes", "",
        "`--size s`, `m`, `l` or `xl` sets the options of the net and these keys of `train`, between the preset and "
        "the files; `xs` is the preset. The sources are named in `genflow/recipe/sizes.py`, in the nets' `of_size` and "
        "in the presets. Another `train.batch` gives another `train.lr`: of AdamW, in proportion to the square root of "
        "the batch; of Muon, the preset's. `genflow cost` computes what a size costs.", "",
        f"Nets, for latents of {shape} (a patch depends on the side):", "",
        *_table(["net", *sizes], by_net), "Training, by family:", "",
    ]  # fmt: skip
    rows = []
    for kind in families.kinds():
        small, large = preset(kind)["train"], compose(kind, {"size": sizes[-1]}).train
        averages = dict.fromkeys(f"{compose(kind, {'size': size}).train.ema:g}" for size in sizes)
        keys = ("lr", "beta1", "beta2", "weight_decay")
        own = ", ".join(f"{key} {getattr(large, key):g}" for key in keys)
        before = f"{small['steps']:,} steps of {small['batch']}, lr {small['lr']:g}"
        now = f"{large.steps:,} steps of {large.batch}, {large.optimizer}, {own}, ema {', '.join(averages)}"
        rows.append([f"`{kind}`", before, now])
    return [*lines, *_table(["family", "xs", "s, m, l, xl"], rows)]


def _options(kind: str, sizes: list[Any]) -> list[str]:
    """The options of a net for each size, as text; empty if it has no sizes."""
    try:
        found = [nets.of_size(kind, size, SHAPE) for size in sizes]
    except UsageError:
        return []
    return [", ".join(f"{key} {value}" for key, value in options.items()) for options in found]


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    cells = [heads, ["---"] * len(heads), *rows]
    return [*("| " + " | ".join(row) + " |" for row in cells), ""]
