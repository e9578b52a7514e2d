"""The README's walk between two pictures that a run was trained on.

    python -m benchmarks.hero RUN [--from CAPTION] [--to CAPTION] [--out docs/walk.png]

With files of your own pictures, `genflow sample RUN --between A.png B.png` draws the same.
"""

import argparse

import genflow


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--from", dest="start", default="lion face on a red background")
    parser.add_argument("--to", default="strawberry on a orange background")
    parser.add_argument("--out", default="docs/walk.png")
    given = parser.parse_args()
    run = genflow.load(given.run)
    data = genflow.data(run.recipe.data.name)
    captions = {caption: row for row in range(len(data)) for caption in data[row].captions}
    ends = data[captions[given.start]].image, data[captions[given.to]].image
    run.interpolate(8, between=ends).save(given.out)


if __name__ == "__main__":
    main()
