"""The section of the page about time to quality, written from the files of the trainings."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.bench.page import PARTS, machine, of_format, page, parts_of
from benchmarks.bench.peers import PEERS
from genflow.evaluation.interval import mean
from genflow.storage.files import write_atomically
from genflow.system.documents import Json

OURS, GIVEN = "genflow", {"tuned": "tuned", "published": "as published"}
COLUMNS = (
    "training", "given", "seeds", "weights, M", "batch", "ms a step", "steps", "CPU s", "evaluations", "fd", "× floor",
    "ratio",
)  # fmt: skip
HEAD = """## Time to quality in {format}

CPU time of training until the samples have a stated Fréchet distance. `make bench-quality` repeats it.

`genflow train flow_matching` with a budget of {budget:.0f} CPU seconds by its own clock and nothing else set reaches
the distance that is the threshold. On latents, the CPU seconds of the autoencoder and of encoding are added. The ratio
is the CPU time at which a peer reaches it, in multiples of genflow's. **`> 2.5`: the peer has trained for 2.5 times as
long and has not reached it.** Between two measurements the time is interpolated in logarithms. CPU time is the number
of steps times the median time of a step, for which the peer and genflow take turns in one process: other processes on
the machine change the seconds of both, and not their ratio.

- **as published**: the example's own net, number format, batch size, optimizer, learning rate and average, and pictures
  of the data's size, padded to 32 pixels where its net cannot halve 28. [diffusers](https://github.com/huggingface/diffusers/tree/main/examples/unconditional_image_generation):
  `train_unconditional.py`; [torchcfm](https://github.com/atong01/conditional-flow-matching): `conditional_mnist.ipynb`;
  [denoising_diffusion_pytorch](https://github.com/lucidrains/denoising-diffusion-pytorch): the README's `Trainer`, in
  {format}. Batches come from memory.
- **tuned**: the library's loop with diffusers' `UNet2DModel` as genflow configures it (`unet2d`), classes, {format},
  genflow's batch size, a fused optimizer, a learning rate of 1e-3 that falls to 0 at the end of the budget, and an
  average with a warm-up.
- **fd**: of {samples} samples, on the features of the data set, at the end of the budget; the floor is that of as many
  real rows. genflow draws with the sampler of its recipe, diffusers and denoising_diffusion_pytorch with DDIM, torchcfm
  with the method of Adams and Bashforth. The seconds of sampling do not count.
"""


def read(folder: Path) -> list[Json]:
    """The results in a folder, in the order of names and seeds."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*-s*.json"))]


def multiple(peer: Json, steps: int, ours: Json) -> float:
    """The CPU time of a number of a peer's steps, in multiples of that of genflow's training."""
    return float(steps * peer["cost"]["value"] / ours["work"])


def ratio(peer: Json, ours: Json) -> tuple[float, bool]:
    """The CPU time at which a peer reaches the distance of genflow, in multiples of genflow's; whether it does.

    Without it, the multiple is that of the whole training. The time of a peer that is there at its first point is that
    of the point.
    """
    threshold, before = ours["fd"]["value"], None
    for point in peer["points"]:
        value, steps = point["fd"]["value"], point["steps"]
        if value <= threshold:
            if before is not None:
                share = math.log(before[1] / threshold) / math.log(before[1] / value)
                steps = before[0] * (steps / before[0]) ** share
            return multiple(peer, steps, ours), True
        before = steps, value
    return multiple(peer, peer["points"][-1]["steps"], ours), False


def section(results: Sequence[Json]) -> str:
    """The section as Markdown; empty without results."""
    ours = {(each["data"], each["seed"]): each for each in results if each["name"] == OURS}
    if not ours:
        return ""
    first = next(iter(ours.values()))
    parts = [HEAD.format(budget=first["budget"], samples=first["samples"], format=first["format"])]
    for data in sorted({each["data"] for each in results}, key=lambda name: (name != "fashion", name)):
        own = [each for each in results if each["data"] == data]
        floor = statistics.mean(each["fd"]["floor"] for each in own)
        features = own[0]["fd"]["features"]
        parts.append(f"### {data}\n\nThe floor is {floor:.2f}; features: {features}.\n")
        parts.append(_table(own, {seed: each for (name, seed), each in ours.items() if name == data}))
        measured = {(each["name"], each["given"]) for each in own}
        missing = [f"{peer} {GIVEN[given]}" for given in GIVEN for peer in PEERS if (peer, given) not in measured]
        if missing:
            parts.append(f"Not measured: {', '.join(missing)}.\n")
    return "\n".join([*parts, machine()])


def _table(results: Sequence[Json], ours: dict[int, Json]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    base = [each["cost"]["base"] for each in results if "cost" in each]
    by_contestant: dict[tuple[str, str], list[Json]] = {}
    for each in results:
        by_contestant.setdefault((each["name"], each["given"]), []).append(each)
    ranks = [OURS, *GIVEN]
    for (name, given), own in sorted(by_contestant.items(), key=lambda item: _rank(item[0], ranks)):
        paired = [each for each in own if each["seed"] in ours]
        rate = "1" if name == OURS else _ratios([ratio(each, ours[each["seed"]]) for each in paired])
        fd = [each["fd"]["value"] for each in own]
        costs = base if name == OURS else [each["cost"]["seconds"] for each in own]
        seconds = statistics.median(costs) if costs else math.nan
        work = _mean(own, "work" if name == OURS else "steps")
        cells = [
            name, "recipe's defaults" if name == OURS else GIVEN[given], str(len(own)),
            f"{own[0]['parameters'] / 1e6:.1f}", str(own[0]["batch"]),
            f"{1000 * seconds:.0f}", f"{_mean(own, 'steps'):,.0f}", f"{seconds * work:.0f}",
            str(own[0]["evaluations"]), _distance(own),
            f"{statistics.mean(fd) / statistics.mean(each['fd']['floor'] for each in own):.1f}", rate,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rank(contestant: tuple[str, str], ranks: Sequence[str]) -> tuple[int, str]:
    name, given = contestant
    return ranks.index(OURS if name == OURS else given), name


def _mean(results: Sequence[Json], key: str) -> float:
    return statistics.mean(float(each[key]) for each in results)


def _distance(results: Sequence[Json]) -> str:
    """The mean over seeds with its interval; for one seed, that over samples."""
    if len(results) == 1:
        fd = results[0]["fd"]
        return f"{fd['value']:.2f} ({fd['low']:.2f} to {fd['high']:.2f})"
    found = mean(np.array([each["fd"]["value"] for each in results]))
    return f"{found.value:.2f} ({max(0.0, found.low):.2f} to {found.high:.2f})"


def _ratios(found: Sequence[tuple[float, bool]]) -> str:
    """The ratios of the seeds: their mean with an interval if all reached the distance, else the smallest bound."""
    values = [value for value, _ in found]
    if not any(reached for _, reached in found):
        return f"**> {min(values):.1f}**"
    if not all(reached for _, reached in found):
        least = statistics.mean(values)
        return f"**> {least:.1f}** ({sum(reached for _, reached in found)} of {len(found)} reach it)"
    if len(values) == 1:
        return f"**{values[0]:.2f}**"
    over = mean(np.array(values))
    return f"**{over.value:.2f}** ({max(0.0, over.low):.2f} to {over.high:.2f})"


def write(file: Path, text: str) -> None:
    """Replace the section of the page, or add it."""
    before = parts_of(file.read_text(encoding="utf-8")) if file.exists() else {}
    write_atomically(file, page(before | {of_format("quality"): text}, PARTS).encode())
