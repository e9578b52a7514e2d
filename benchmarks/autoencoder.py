"""Measure the reconstructions of held-out pictures by the autoencoder, against the CPU time of its training.

    python -m benchmarks.autoencoder NAME... [--cpu 120 600] [--seeds 0 1 2] [--set KEY=VALUE ...]
    python -m benchmarks.autoencoder --cut PHOTOGRAPHS FOLDER [--side 64]

Prints a Markdown table. NAME is a prepared dataset in the store. Each row is one setting: the preset with a budget in
CPU seconds of one thread, the mean over seeds and the smallest and the largest value. PSNR and SSIM are means over
held-out pictures, from averaged weights; `fd` and everything else is measured by `genflow evaluate`.

`--cut` cuts photographs into squares at three scales, as pictures for `genflow prepare`: squares of the right quarter
of each photograph are held out, and no other square overlaps them. The class of a square is its photograph.
"""

import argparse
import resource
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from genflow import build
from genflow.data.shards import Dataset, Split
from genflow.data.stream import Stream
from genflow.data.values import from_x, to_x
from genflow.families.base import Family
from genflow.maths.rng import SampleRng
from genflow.maths.similarity import psnr, ssim
from genflow.recipe.compose import assignments, compose
from genflow.recipe.schema import Recipe
from genflow.storage.store import Store
from genflow.training.loop import fit, with_average
from genflow.training.session import Session

HELD_OUT = 256  # rows
SCALES = (1.0, 0.5, 0.25)  # of a photograph, before it is cut


def cut(photographs: Path, folder: Path, side: int) -> None:
    """Write squares of photographs as PNG files in FOLDER/train/NAME and FOLDER/val/NAME: a class each photograph."""
    for file in sorted(photographs.iterdir()):
        with Image.open(file) as opened:
            whole = opened.convert("RGB")
        for scale in SCALES:
            width, height = round(whole.width * scale), round(whole.height * scale)
            pixels = np.asarray(whole.resize((width, height), Image.Resampling.LANCZOS))
            border = max(side, width - max(side, width // 4))
            for split, start, stop, step in (("train", 0, border, side // 2), ("val", border, width, side)):
                for top in range(0, height - side + 1, step):
                    for left in range(start, stop - side + 1, step):
                        target = folder / split / file.stem / f"{scale}-{top}-{left}.png"
                        target.parent.mkdir(parents=True, exist_ok=True)
                        Image.fromarray(pixels[top : top + side, left : left + side]).save(target)


def held_out(split: Split) -> torch.Tensor:
    """Evenly spaced held-out pictures, (N, C, H, W)."""
    rows = np.unique(np.linspace(0, len(split) - 1, HELD_OUT).astype(int))
    return to_x(split.take(rows), split.facts)


@torch.no_grad()
def reconstructions(family: Family, x: torch.Tensor) -> torch.Tensor:
    """decode(encode(x)), rounded to grey levels."""
    parts = []
    for part in x.split(16):
        label, rng = torch.full((len(part),), family.facts.classes), SampleRng(range(len(part)), "code")
        parts.append(family.decode(family.encode(part, label, rng), label, rng))
    return to_x(from_x(torch.cat(parts), family.facts), family.facts)


def train(recipe: Recipe, data: Dataset, cpu_seconds: float, seed: int) -> tuple[Family, dict[str, float]]:
    """An autoencoder with averaged weights, and its figures."""
    settings = {**recipe.train.model_dump(), "cpu_minutes": cpu_seconds / 60, "steps": 10**6, "seed": seed}
    recipe = recipe.replace(train={**settings, "checkpoint_every": 10**6})
    torch.manual_seed(seed)
    family = build.family_of(build.resolve(recipe, data.facts), data.facts)
    batches, average = Stream(data.splits["train"], recipe.train.batch, seed), dict[str, torch.Tensor]()
    fitted = fit(family, batches, Session(threads=1), recipe.train, lambda step, weights: average.update(weights))
    x = held_out(data.splits[data.reference])

    def measure() -> dict[str, float]:
        back = reconstructions(family, x)
        return {"psnr": float(psnr(x, back).mean()), "ssim": float(ssim(x, back).mean())}

    found = with_average(family, average, measure)
    family.load_state_dict(average, strict=False)
    return family, {**found, "steps": fitted.step, "cpu": fitted.cpu_seconds}


def grid(family: Family, x: torch.Tensor, file: Path) -> None:
    """Write held-out pictures above their reconstructions."""
    back = reconstructions(family.eval(), x)
    rows = [np.concatenate(list(from_x(part, family.facts)), 1) for part in (x, back)]
    Image.fromarray(np.concatenate(rows).squeeze()).save(file)


def spread(values: list[float], digits: int) -> str:
    """The mean, and the smallest and the largest value."""
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--cpu", type=float, nargs="+", default=[120, 600])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="sets", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--grid", type=Path, help="write pictures above reconstructions to this file, of the last run")
    parser.add_argument("--cut", nargs=2, type=Path, metavar=("PHOTOGRAPHS", "FOLDER"))
    parser.add_argument("--side", type=int, default=64)
    given = parser.parse_args()
    if given.cut:
        cut(*given.cut, given.side)
        return
    torch.set_num_threads(1)
    store, recipe = Store(), compose("autoencoder", assignments(given.sets))
    print("| data | latents | CPU seconds | steps | PSNR in dB | SSIM | peak RSS in GB |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name in given.names:
        data = Dataset.open(store.find("datasets", name))
        for cpu_seconds in given.cpu:
            runs = [train(recipe, data, cpu_seconds, seed) for seed in given.seeds]
            family, figures = runs[-1][0], [numbers for _, numbers in runs]
            columns = [
                name, "×".join(map(str, family.noise_shape)), f"{cpu_seconds:g}",
                f"{sum(numbers['steps'] for numbers in figures) / len(figures):,.0f}",
                spread([numbers["psnr"] for numbers in figures], 2),
                spread([numbers["ssim"] for numbers in figures], 3),
                f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f}",
            ]  # fmt: skip
            print(f"| {' | '.join(columns)} |", flush=True)
            if given.grid:
                grid(family, held_out(data.splits[data.reference])[:12], given.grid)


if __name__ == "__main__":
    main()
