"""Compare genflow with other libraries, and write the page.

    python -m benchmarks.bench [step | sampling ...] [--rounds N] [--out docs/benchmarks.md]
"""

import argparse
import importlib
import sys
from pathlib import Path

import torch

from benchmarks.bench.page import Table, page
from benchmarks.bench.quality_page import kept
from genflow.storage.files import write_atomically

COMPARISONS = ("step", "sampling")


def main() -> None:
    """Run the comparisons one after another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("comparisons", nargs="*", metavar="COMPARISON", help=f"of: {', '.join(COMPARISONS)}")
    parser.add_argument("--rounds", type=int, help="turns of each contestant; default: the comparison's own")
    parser.add_argument("--out", type=Path, help="page to write; without it the page is printed")
    given = parser.parse_args()
    if unknown := set(given.comparisons) - set(COMPARISONS):
        parser.error(f"unknown comparison {', '.join(sorted(unknown))}; known: {', '.join(COMPARISONS)}")
    torch.set_num_threads(1)
    tables: list[Table] = []
    for name in given.comparisons or COMPARISONS:
        module = importlib.import_module(f"benchmarks.bench.{name}")
        for table in module.tables(given.rounds or module.ROUNDS):
            print(f"measured: {table.title}", file=sys.stderr)
            tables.append(table)
    text = page(tables)
    if given.out:
        old = given.out.read_text(encoding="utf-8") if given.out.exists() else ""
        write_atomically(given.out, "\n".join(filter(None, [text, kept(old)])).encode())
    else:
        print(text)


if __name__ == "__main__":
    main()
