"""What was measured as a page: ratios with intervals, the machine and the versions."""

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.bench.pairs import LEVEL, Ratio

PACKAGES = ("torch", "diffusers", "torchcfm", "denoising-diffusion-pytorch", "ema-pytorch", "typer")
HEAD = """<!-- Written by `make bench`. -->
# Against other libraries

Contestants take turns in one process, and the CPU seconds of the same round are compared. A ratio is the median over
the rounds, with its {level:.0%} interval. `make bench` repeats everything on this page.

{machine}
"""


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
    """

    title: str
    text: str
    unit: str
    rows: Sequence[Row]
    missing: Sequence[str] = field(default=())
    heads: tuple[str, str] = ("genflow", "peer")


def page(tables: Iterable[Table]) -> str:
    """All tables as Markdown."""
    parts, texts = [HEAD.format(level=LEVEL, machine=machine())], set()
    for table in tables:
        parts.append(f"## {table.title}\n")
        if table.text not in texts:
            parts.append(table.text)
            texts.add(table.text)
        parts.append(_table(table))
        if table.missing:
            parts.append(f"Left out: {', '.join(table.missing)}.\n")
    return "\n".join(parts)


def _table(table: Table) -> str:
    ours, peer = table.heads
    lines = [f"| {ours} | {peer} | ratio | interval | {ours}, {table.unit} | {peer}, {table.unit} |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in table.rows:
        r = row.ratio
        lines.append(
            f"| {row.ours} | {row.peer} | **{r.value:.2f}** | {r.low:.2f} to {r.high:.2f} "
            f"| {row.in_unit(r.base)} | {row.in_unit(r.seconds)} |"
        )
    return "\n".join(lines) + "\n"


def machine() -> str:
    """The processor and the versions of what is compared."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{_processor()}, one thread; Python {platform.python_version()}, {', '.join(found)}."


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"
