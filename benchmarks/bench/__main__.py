"""Compare genflow with other libraries, and write the page.

    python -m benchmarks.bench [step | sampling | data ...] [--rounds N] [--out docs/benchmarks.md]
"""

import argparse
import importlib
import sys
from pathlib import Path

import torch

from benchmarks.bench.page import PARTS, of_format, page, part, parts_of
from genflow.storage.files import write_atomically

COMPARISONS = ("step", "sampling", "data", "overhead", "memory", "evaluation")  # quality takes hours: its own command


def main() -> None:
    """Run the comparisons one after another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("comparisons", nargs="*", metavar="COMPARISON", help=f"of: {', '.join(COMPARISONS)}")
    parser.add_argument("--rounds", type=int, help="turns of each contestant; default: the comparison's own")
    parser.add_argument("--out", type=Path, help="page whose parts are replaced; without it they are printed")
    given = parser.parse_args()
    if unknown := set(given.comparisons) - set(COMPARISONS):
        parser.error(f"unknown comparison {', '.join(sorted(unknown))}; known: {', '.join(COMPARISONS)}")
    torch.set_num_threads(1)
    measured = {}
    for name in given.comparisons or COMPARISONS:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        module = importlib.import_module(f"benchmarks.bench.{name}")
        measured[of_format(name)] = part(module.tables(given.rounds or module.ROUNDS))
        if given.out:  # after each comparison, because later ones may fail
            before = parts_of(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
            write_atomically(given.out, page(before | measured, PARTS).encode())
        else:
            print(measured[of_format(name)])


if __name__ == "__main__":
    main()
