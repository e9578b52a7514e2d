"""The README's samples of every family: one row a family, one class a column, the same seeds in every row.

    python -m benchmarks.families [RUN...] [--seed 0] [--out docs/families.png]

Without runs it runs `genflow run families` in the current folder, which finds what was trained before.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import genflow
from genflow import families
from genflow.api import Run

COLUMNS = 10
SCALE, GAP, WORDS, SIZE = 2, 4, 168, 16  # enlargement; pixels between pictures, and for a row's name; of its letters


def trained() -> list[str]:
    """The runs of the pipeline `families`, in its order."""
    command = [sys.executable, "-m", "genflow.cli", "run", "families", "--json"]
    done = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout)
    return [stage["run"] for stage in done["stages"] if stage["job"] == "train"]


def draw(rows: Sequence[Run], seed: int) -> Image.Image:
    """The rows, below each other."""
    side = SCALE * rows[0].facts.shape[2]
    size = WORDS + COLUMNS * (side + GAP), len(rows) * (side + GAP) + GAP
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(SIZE)
    for number, run in enumerate(rows):
        top = GAP + number * (side + GAP)
        pen.text((8, top + side / 2), families.family_class(run.family).title, "#1c2126", font, anchor="lm")
        for column, picture in enumerate(run.sample(COLUMNS, seed=seed)):
            enlarged = picture.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (WORDS + column * (side + GAP), top))
    return sheet


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/families.png"))
    given = parser.parse_args()
    draw([genflow.load(run) for run in given.runs or trained()], given.seed).save(given.out)


if __name__ == "__main__":
    main()
