"""What was measured as a page: ratios with intervals, the machine and the versions.

Each comparison is a part of the page between two marks, and a run replaces only the parts that it has measured.
"""

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.bench.pairs import LEVEL, Ratio
from benchmarks.bench.precision import HAS_BFLOAT16

PACKAGES = (
    "torch", "diffusers", "torchcfm", "denoising-diffusion-pytorch", "ema-pytorch", "datasets", "torchmetrics",
    "torch-fidelity", "typer",
)  # fmt: skip
PARTS = (
    "step", "step-fp32", "sampling", "data", "overhead", "memory", "evaluation", "quality", "quality-fp32"
)  # fmt: skip  of the page, in order
HEAD = f"""<!-- Written by `make bench`. -->
# Against other libraries

Contestants take turns, and their CPU seconds of the same round are compared. A ratio is the median over the rounds,
with its {LEVEL:.0%} interval. `make bench` repeats everything on this page but the time to quality, which
`make bench-quality` measures; `make bench PARTS="data memory"` repeats two parts. Trainings compute in bfloat16 where
the CPU multiplies it, and in fp32 elsewhere; both have a part of the page.
"""
PART = "<!-- {name} -->\n{text}\n<!-- end of {name} -->\n"


@dataclass(frozen=True)
class Row:
    """One pair.

    Args:
        ours: genflow's contestant.
        peer: the other one.
        ratio: of the peer's time to ours.
        scale: multiplies CPU seconds of a turn to the table's unit.
        per_second: whether the unit is one of speed: `scale` divided by the CPU seconds.
    """

    ours: str
    peer: str
    ratio: Ratio
    scale: float
    per_second: bool = False

    def in_unit(self, seconds: float) -> str:
        """CPU seconds of a turn in the table's unit."""
        return f"{self.scale / seconds if self.per_second else self.scale * seconds:.1f}"


@dataclass(frozen=True)
class Table:
    """The pairs of one comparison.

    Args:
        title: heading.
        text: what is compared, as Markdown.
        unit: of both times.
        rows: the pairs.
        missing: peers that could not run, and why.
        heads: of both columns.
        form: of the ratios.
        notes: Markdown after the table.
    """

    title: str
    text: str
    unit: str
    rows: Sequence[Row]
    missing: Sequence[str] = field(default=())
    heads: tuple[str, str] = ("genflow", "peer")
    form: str = ".2f"
    notes: str = ""


@dataclass(frozen=True)
class Listing:
    """A table without pairs: `heads` and `rows` of cells; the other fields are those of `Table`."""

    title: str
    text: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def page(parts: Mapping[str, str], names: Sequence[str]) -> str:
    """The page of parts, in the order of names."""
    found = [PART.format(name=name, text=parts[name]) for name in names if name in parts]
    return "\n".join([HEAD, *found])


def of_format(name: str) -> str:
    """The name of a comparison's part, which depends on the number format of this CPU if there are two."""
    own = f"{name}-fp32"
    return name if HAS_BFLOAT16 or own not in PARTS else own


def parts_of(text: str) -> dict[str, str]:
    """The parts of a page by name."""
    return dict(re.findall(r"<!-- ([a-z0-9-]+) -->\n(.*?)\n<!-- end of \1 -->\n", text, re.DOTALL))


def part(tables: Iterable[Table | Listing]) -> str:
    """The tables of a comparison as Markdown, with the machine and the versions."""
    texts: set[str] = set()
    found = []
    for table in tables:
        found.append(f"## {table.title}\n")
        if table.text not in texts:
            found.append(table.text)
            texts.add(table.text)
        found.append(_listed(table.heads, table.rows) if isinstance(table, Listing) else _table(table))
    return "\n".join([*found, machine()])


def _table(table: Table) -> str:
    ours, peer = table.heads
    rows = []
    for row in table.rows:
        r = row.ratio
        value, low, high = (format(each, table.form) for each in (r.value, r.low, r.high))
        times = row.in_unit(r.base), row.in_unit(r.seconds)
        rows.append((row.ours, row.peer, f"**{value}**", f"{low} to {high}", *times))
    text = _listed((ours, peer, "ratio", "interval", f"{ours}, {table.unit}", f"{peer}, {table.unit}"), rows)
    if table.missing:
        text += f"\nLeft out: {', '.join(table.missing)}.\n"
    return f"{text}\n{table.notes}\n" if table.notes else text


def _listed(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"|{'|'.join(cells)}|\n" if cells[0] == "---" else f"| {' | '.join(cells)} |\n" for cells in lines)


def machine() -> str:
    """The processor and the versions of what is compared."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return f"Measured on {_processor()}, one thread; Python {platform.python_version()}, {', '.join(found)}.\n"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"
