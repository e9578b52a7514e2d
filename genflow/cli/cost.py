"""`genflow cost`."""

import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genflow.cli import console
from genflow.cli.options import AsJson, Config, Data, FamilyOrFile, Init, Latents, Sets, Size, Text
from genflow.commands.recipes import read_config

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.cost.estimate import Cost, Speed

WIDTH = 100  # columns of the assumptions


def cost(
    family: FamilyOrFile = "",
    data: Data = "",
    pixels: Annotated[
        int | None, typer.Option(help="Side of colour pictures that do not exist yet, in place of --data.")
    ] = None,
    latents: Latents = "",
    text: Text = "",
    config: Config = [],
    sets: Sets = [],
    size: Size = "",
    steps: Annotated[int | None, typer.Option(help="Number of training steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after this wall-clock time in minutes.")] = None,
    init: Init = "",
    gpus: Annotated[int | None, typer.Option(min=1, help="Number of GPUs; default: the recipe's workers.")] = None,
    on: Annotated[str, typer.Option(metavar="GPU", help="h100, a100, l4 ...; default: a table of all.")] = "",
    json: AsJson = False,
) -> None:
    """Compute what a training costs: arithmetic, memory per GPU, images per second and hours.

    Nothing is trained, and no weight is allocated. The flags are those of genflow train.
    """
    from genflow.commands import cost as commands
    from genflow.cost.estimate import to_json
    from genflow.cost.gpus import gpu_named
    from genflow.storage.store import Store

    flags: dict[str, Any] = {"data.name": data, "data.latents": latents, "data.text": text, "init": init, "size": size}
    flags |= {"train.steps": steps, "train.minutes": minutes}
    files = [read_config(path) for path in config]
    kinds = (gpu_named(on),) if on else ()
    found = commands.estimate(Store(), family, files, sets, pixels=pixels, gpus=gpus, kinds=kinds, **flags)
    if json:
        console.document(to_json(found))
        return
    show(found)


def show(cost: "Cost") -> None:
    """Print the net, the step, the memory of a GPU, a row per kind of GPU, and what was assumed."""
    from genflow.cost.estimate import assumptions

    recipe, train, work = cost.recipe, cost.recipe.train, cost.work
    shape = "×".join(str(side) for side in cost.facts.shape)
    what = "points" if cost.facts.is_points else f"{'latents' if cost.facts.is_latents else 'pictures'} {shape}"
    net = f"{recipe.net['kind']} of {work.parameters / 1e6:,.1f} million weights"
    print(f"training {recipe.family['kind']}, {net}, size {recipe.size}, on {what}")
    batch = f"{train.batch:,} pictures"
    if cost.gpus > 1 or cost.accumulate > 1:
        times = f"{cost.accumulate} times " if cost.accumulate > 1 else ""
        batch += f", {times}{work.rows:,} a GPU"
    print(
        f"step     {batch}: {scaled(work.flops * cost.accumulate * cost.gpus)}FLOP, "
        f"{scaled(cost.flops_per_image)}FLOP a picture, {train.optimizer}"
    )
    memory = cost.memory
    parts = ("weights", "gradients", "optimizer", "average", "activations")
    sizes = ", ".join(f"{name} {getattr(memory, name) / 1e9:.2f}" for name in parts)
    print(f"memory   {memory.total / 1e9:.1f} GB a GPU: {sizes}, the rest CUDA's")
    first = f"{cost.gpus} × GPU" if cost.gpus > 1 else "GPU"
    heads = (first, "GB", "fits", "images/s", "of peak", "time", "limited by")
    print(console.table(heads, [_row(speed) for speed in cost.speeds]))
    print(f"         the time is that of {budget(cost)}")
    for number, text in enumerate(assumptions(cost)):
        lines = textwrap.wrap(text, WIDTH)
        print("\n".join(f"{'assumed' if not (number or row) else '':<9}{line}" for row, line in enumerate(lines)))
    if not any(speed.fits for speed in cost.speeds):
        console.next_commands("--set train.accumulate=4 ...", "--set train.checkpoint_activations=true ...")


def _row(speed: "Speed") -> tuple[str, ...]:
    return (
        speed.gpu.name, f"{speed.gpu.memory / 1e9:.0f}", "yes" if speed.fits else "no",
        f"{speed.images_per_second:,.0f}", f"{speed.of_peak:.0%}", hours(speed.hours), speed.limit,
    )  # fmt: skip


def budget(cost: "Cost") -> str:
    """The budget of a training, in words."""
    train = cost.recipe.train
    if train.minutes and len({round(speed.images) for speed in cost.speeds}) > 1:
        return f"{train.minutes:g} minutes"
    return f"{train.steps:,} steps, {train.steps * train.batch:,} pictures"


def hours(time: float) -> str:
    """Hours in readable form: 41s, 3m05s, 2h10m, 12.3 days."""
    return console.duration(3600 * time) if time < 100 else f"{time / 24:,.1f} days"


def scaled(number: float) -> str:
    """A number with a decimal prefix: `3.4 T`."""
    for prefix, unit in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= unit:
            return f"{number / unit:,.3g} {prefix}"
    return f"{number:,.0f} "


def short(cost: "Cost") -> str:
    """The cost in one line, on an H100 or the kind that was asked for."""
    speed = next((speed for speed in cost.speeds if speed.gpu.name.startswith("H100")), cost.speeds[0])
    number = f"{cost.gpus} × " if cost.gpus > 1 else ""
    return (
        f"{cost.work.parameters / 1e6:,.1f} million weights, {scaled(cost.flops_per_image)}FLOP a picture, "
        f"{cost.memory.total / 1e9:.1f} GB a GPU; {number}{speed.gpu.name}: {speed.images_per_second:,.0f} images/s, "
        f"{hours(speed.hours)} for {budget(cost)} (genflow cost shows more, and what it assumes)"
    )
