"""A training step: genflow's loop on the network of other libraries' loops, and genflow's own nets on the same data."""

from collections.abc import Iterator
from typing import Any

from benchmarks.bench.limits import listing
from benchmarks.bench.page import Listing, Row, Table
from benchmarks.bench.pairs import Turn, ratio, take_turns
from benchmarks.bench.peers import PEERS
from benchmarks.bench.precision import FORMAT
from benchmarks.bench.steps import Genflow

BATCH, STEPS, ROUNDS = 64, 1, 20  # rows of a step, steps of a turn, turns of each contestant
DATA = {"Fashion-MNIST": (1, 28, 28), "32 x 32 in colour": (3, 32, 32)}
ADAMW = {"optimizer": "adamw", "lr": 1e-3}
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "genflow, AdamW": {"net": {"kind": "unet2d"}, "train": ADAMW},
    "genflow, Muon": {"net": {"kind": "unet2d"}},
    "genflow's `unet`, Muon": {"net": {"kind": "unet"}},
    "genflow's `dit`, Muon": {"net": {"kind": "dit"}},
}
TEXT = f"""One step on {BATCH} pictures with classes on one thread: draws, loss, backward, clipping, optimizer and
average. The peers train diffusers' `UNet2DModel`, and so does genflow where no other net is named. All start from
batches in memory. Each peer is the loop of its library's own example, with classes, a fused optimizer and averages by
operations on lists. **Above 1.00 genflow is faster.**
"""


def tables(rounds: int = ROUNDS) -> Iterator[Table | Listing]:
    """A table for each form of the data, and how near genflow's steps are to the machine's limit.

    Args:
        rounds: turns of each contestant.
    """
    for name, shape in DATA.items():
        ours = {each: Genflow(shape, BATCH, **sections) for each, sections in OURS.items()}
        options = ours["genflow, AdamW"].family.net._options
        peers: dict[str, Any] = {}
        missing = []
        for peer, loop in PEERS.items():
            try:
                peers[peer] = loop(options, shape, BATCH)
            except ImportError as error:
                missing.append(f"{peer} ({error.name or error} is not installed)")
        turns: dict[str, Turn] = {each: _turn(made) for each, made in (ours | peers).items()}
        seconds = take_turns(turns, rounds)
        rows = [
            Row(each, peer, ratio(seconds[peer], seconds[each]), 1000 / STEPS) for each in ours for peer in peers
        ]
        yield Table(f"A training step in {FORMAT}: {name}", TEXT, "ms a step", rows, missing)
        if shape[0] == 1:
            recipes = {each: made.recipe for each, made in ours.items()}
    yield listing(recipes, DATA["Fashion-MNIST"], BATCH)


def _turn(contestant: Any) -> Turn:
    return lambda: contestant.steps(STEPS)
