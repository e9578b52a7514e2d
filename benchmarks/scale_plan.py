"""What each part of a training on 64 GPUs and 100 million pictures costs, from pieces that are measured here.

    python -m benchmarks.scale --only plan --out docs/scaling.md

Rates of one CPU core are measured here; the times of GPUs are those of `genflow cost`. The public anchor is Stable
Diffusion 2, which Anyscale pre-trained with Ray, and MosaicML with its own tools. Its U-Net is counted in the same way,
so that the roofline is compared with hours that were measured.

References:
    Stable Diffusion pre-training with Ray (Anyscale, 2024), "Detailed cost analysis"
    https://github.com/anyscale/templates/tree/main/templates/stable-diffusion-pretraining
    MosaicML's Stable Diffusion training, "How many GPUs do I need?"   https://github.com/mosaicml/diffusion
"""

import hashlib
import io
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genflow.system.documents import Json

PICTURES, SIDE, GPUS, BATCH, NODE = 10**8, 256, 64, 2048, 8
ORIGINAL, CORES = 1024, 96  # side of the pictures that `prepare` reads; cores of its node
ANCHOR = {  # published by the two sources above
    "phases": [{"pictures": 1_126_400_000, "side": 32}, {"pictures": 1_740_800_000, "side": 64}],
    "anyscale": {"a100_hours": 13_165, "dollars_reserved": 39_511, "dollars_on_demand": 67_405, "batch": 4096},
    "mosaicml": {"gpus": 64, "images_per_second": [8530, 2340], "latents_a100_hours": 3784},
}  # fmt: skip


def plan() -> Json:
    """The measured pieces, the estimates, and the anchor."""
    return {"pieces": pieces(), "training": training(), "anchor": anchor()}


def pieces() -> Json:
    """Rates of one core of this machine, per second."""
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from genflow.maths.rng import BatchRng
    from genflow.pipeline.latents import latents_of
    from genflow.training.workers import digest

    torch.set_num_threads(1)
    facts = _pictures()
    latents = latents_of(facts, "l")
    noise = torch.randn(3, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    smooth = torch.nn.functional.interpolate(noise[None], (SIDE, SIDE), mode="bicubic")[0].clamp(-1, 1)
    picture = Image.fromarray(((smooth + 1) * 127.5).byte().permute(1, 2, 0).numpy())
    small, original = _jpeg(picture), _jpeg(picture.resize((ORIGINAL, ORIGINAL)))
    block, weights = bytes(1 << 25), {"w": torch.zeros(1 << 24)}
    rows = 64

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            save_file(weights, Path(folder) / "w.safetensors")

    return {
        "jpeg_bytes": len(small),
        "latent_bytes": 2 * latents.dims,
        "picture_bytes": facts.dims,
        "decoded": 1 / _took(lambda: Image.open(io.BytesIO(small)).convert("RGB")),
        "prepared": 1 / _took(lambda: Image.open(io.BytesIO(original)).convert("RGB").resize((SIDE, SIDE))),
        "hashed_bytes": len(block) / _took(lambda: hashlib.sha256(block).digest()),
        "compared_bytes": 4 * (1 << 24) / _took(lambda: digest(weights)),
        "written_bytes": 4 * (1 << 24) / _took(write),
        "noise_rows": rows / _took(lambda: BatchRng(0, "plan", 0).normal((rows, *latents.shape))),
    }


def _jpeg(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=90)
    return file.getvalue()


def _took(use: Callable[[], Any], rounds: int = 5) -> float:
    """Seconds of processor time of one call: the least of some rounds, because other programs run here, too."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        use()
        found.append(time.process_time() - start)
    return max(min(found), 1e-9)


def _pictures() -> Any:
    from genflow.specs import DataSpec

    names = tuple(str(number) for number in range(1000))
    return DataSpec((3, SIDE, SIDE), levels=256, class_names=names, splits={"train": PICTURES})


def training() -> Json:
    """A transformer of size xl on latents, and encoding all pictures with an autoencoder of size l, on two GPUs."""
    import torch

    from genflow import build
    from genflow.cost.estimate import estimate, exchange_s, seconds_of
    from genflow.cost.gpus import GPUS as KINDS
    from genflow.cost.step import META, count
    from genflow.pipeline.latents import latents_of
    from genflow.recipe.compose import compose

    pictures = _pictures()
    latents = latents_of(pictures, "l")
    chosen = {"size": "xl", "net": {"kind": "dit"}, "train": {"batch": BATCH, "steps": math.ceil(PICTURES / BATCH)}}
    recipe = build.resolve(compose("flow_matching", chosen), latents)
    cost = estimate(recipe, latents, gpus=GPUS)
    autoencoder = build.outline_of(build.resolve(compose("autoencoder", {"size": "l"}), pictures), pictures).eval()
    rows = 64
    x, label = torch.empty(rows, *pictures.shape, device=META), torch.empty(rows, dtype=torch.int64, device=META)
    encoded = count(lambda: autoencoder.encode(x, label, None)).counted  # type: ignore[arg-type]
    found: Json = {
        "parameters": cost.work.parameters, "flops_per_image": cost.flops_per_image, "lr": recipe.train.lr,
        "steps": recipe.train.steps, "memory_bytes": cost.memory.total, "on": {},
    }  # fmt: skip
    for name in ("h100", "a100"):
        gpu = KINDS[name]
        speed = next(each for each in cost.speeds if each.gpu is gpu)
        found["on"][gpu.name] = {
            "step_s": speed.step_s, "images_per_second": speed.images_per_second, "hours": speed.hours,
            "limit": speed.limit, "exchange_s": exchange_s(cost.work, gpu, GPUS, sharded=False),
            "encoded": rows / seconds_of(encoded, gpu)["all"],
        }  # fmt: skip
    return found


def anchor() -> Json:
    """A100 hours of the U-Net of Stable Diffusion 2, by the roofline and as published."""
    import torch
    from diffusers import UNet2DConditionModel

    from genflow.cost.estimate import BACKWARD, LINK, NETWORK, seconds_of
    from genflow.cost.gpus import GPUS as KINDS
    from genflow.cost.step import META, count

    rows, gpu = ANCHOR["anyscale"]["batch"] // GPUS, KINDS["a100"]
    rates, parameters = [], 0
    for phase in ANCHOR["phases"]:
        with META:
            model: Any = UNet2DConditionModel(
                sample_size=phase["side"], cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20),
                block_out_channels=(320, 640, 1280, 1280), use_linear_projection=True,
            )  # fmt: skip
            x, text = torch.empty(rows, 4, phase["side"], phase["side"]), torch.empty(rows, 77, 1024)
            t = torch.empty(rows)

        def step(model: Any = model, x: Any = x, t: Any = t, text: Any = text) -> None:
            model(x, t, text).sample.float().square().mean().backward()

        computed = seconds_of(count(step).counted, gpu)["all"]
        parameters = sum(p.numel() for p in model.parameters())
        waited = max(0.0, 2 * 4 * parameters / (LINK * NETWORK) - BACKWARD * computed)
        rates.append(rows / (computed + waited))
    hours = sum(phase["pictures"] / rate / 3600 for phase, rate in zip(ANCHOR["phases"], rates, strict=True))
    return {**ANCHOR, "parameters": parameters, "images_per_second_per_gpu": rates, "a100_hours": hours}


def section(document: Json) -> list[str]:
    """The plan as Markdown."""
    piece, train, anchor = document["pieces"], document["training"], document["anchor"]
    h100, a100 = (train["on"][name] for name in ("H100 SXM", "A100 SXM 80 GB"))
    rate, step, share = h100["images_per_second"], h100["step_s"], BATCH // GPUS
    state = 16 * train["parameters"]
    lines = [
        f"## {GPUS} GPUs and {PICTURES:,} pictures",
        "",
        f"What each part costs for one pass over {PICTURES:,} pictures of {SIDE}x{SIDE} on {GPUS // NODE} nodes of "
        f"{NODE} GPUs. Rates of a core are processor time on this machine, without disks; times of GPUs are those of "
        f"`genflow cost`, with its assumptions. The net is `dit` of size xl on latents, "
        f"{train['parameters'] / 1e6:,.0f} million weights, with batches of {BATCH:,} and a learning rate of "
        f"{train['lr']:g}. Nothing of this was run.",
        "",
        "| part | from | cost |",
        "|---|---|---|",
    ]
    sizes = [piece[f"{form}_bytes"] for form in ("jpeg", "picture", "latent")]
    terabytes = ", ".join(f"{PICTURES * size / 1e12:,.1f} TB" for size in sizes)
    prepared, hashed = PICTURES / piece["prepared"] / 3600, PICTURES / piece["hashed_bytes"] / 3600
    noise, written = piece["noise_rows"], piece["written_bytes"]
    rows = [
        (
            "pictures as JPEG, in shards as pixels, and as latents",
            f"{sizes[0]:,}, {sizes[1]:,} and {sizes[2]:,} bytes each", terabytes,
        ), (
            f"`genflow prepare`, from pictures of {ORIGINAL}x{ORIGINAL}", f"{piece['prepared']:,.0f} pictures/s a core",
            f"{prepared:,.0f} core hours; it runs on one node, with {CORES} cores for {prepared / CORES:,.1f} hours",
        ), (
            "hashing every shard when it is first read, on every node",
            f"{piece['hashed_bytes'] / 1e9:,.2f} GB/s a core",
            f"{piece['picture_bytes'] * hashed:,.1f} hours of a core for pixels, {piece['latent_bytes'] * hashed:,.1f} "
            "for latents",
        ), (
            "`genflow encode`: latents",
            f"{h100['encoded']:,.0f} pictures/s on an H100, {a100['encoded']:,.0f} on an A100",
            f"{PICTURES / h100['encoded'] / 3600:,.1f} H100 hours, {PICTURES / a100['encoded'] / 3600:,.1f} A100 hours",
        ), (
            "training", f"{rate:,.0f} images/s on {GPUS} H100, {a100['images_per_second']:,.0f} on {GPUS} A100",
            f"{h100['hours']:,.1f} hours on H100 ({GPUS * h100['hours']:,.0f} GPU hours), {a100['hours']:,.1f} on A100 "
            f"({GPUS * a100['hours']:,.0f})",
        ), (
            "a step", f"{share} pictures a GPU",
            f"{step:,.3f} s on H100, limited by {h100['limit']}; {a100['step_s']:,.3f} s on A100, limited by "
            f"{a100['limit']}",
        ), (
            "the sum of gradients, in a step", "200 Gbit/s a GPU, 70 % of it used",
            f"{h100['exchange_s']:,.3f} s, in part while the backward pass runs",
        ), (
            "noise, in a step", f"{noise:,.0f} rows/s a core; each worker draws its own rows, on its GPU",
            f"on the CPU it would be {share / noise:,.4f} s of a core",
        ), (
            "reading latents, while training", f"{rate:,.0f} images/s",
            f"{rate * piece['latent_bytes'] / 1e9:,.2f} GB/s from the store",
        ), (
            "reading pixels instead", f"{rate:,.0f} images/s",
            f"{rate * piece['picture_bytes'] / 1e9:,.2f} GB/s from the store; as JPEG "
            f"{rate * piece['jpeg_bytes'] / 1e9:,.2f} GB/s, and {rate / piece['decoded']:,.1f} cores that decode",
        ), (
            "a checkpoint",
            f"{state / 1e9:,.1f} GB of weights, average and optimizer; {written / 1e9:,.2f} GB/s a core",
            f"copies of the net: {state / written:,.2f} s by one worker while {GPUS - 1} wait, on a disk of 1 GB/s "
            f"{state / 1e9:,.1f} s; shards: {state / GPUS / written:,.3f} s by each worker, while training continues",
        ), (
            "comparing the workers' weights, at a checkpoint", f"{piece['compared_bytes'] / 1e9:,.2f} GB/s a core",
            f"{8 * train['parameters'] / piece['compared_bytes']:,.1f} s of a core",
        ),
    ]  # fmt: skip
    lines += [f"| {part} | {source} | {cost} |" for part, source, cost in rows]
    public, own = anchor["anyscale"], anchor["images_per_second_per_gpu"]
    mosaic = [rate / anchor["mosaicml"]["gpus"] for rate in anchor["mosaicml"]["images_per_second"]]
    mosaic_hours = sum(p["pictures"] / r / 3600 for p, r in zip(anchor["phases"], mosaic, strict=True))
    lines += [
        "",
        "### The public anchor",
        "",
        "Stable Diffusion 2: 1.13 billion pictures of 256x256, then 1.74 billion of 512x512. "
        "[Anyscale](https://github.com/anyscale/templates/tree/main/templates/stable-diffusion-pretraining) "
        "pre-trained it with Ray Data and Ray Train, [MosaicML](https://github.com/mosaicml/diffusion) with its own "
        "tools. Its U-Net "
        f"({anchor['parameters'] / 1e6:,.0f} million weights), counted as `genflow cost` counts nets, with "
        f"{public['batch'] // GPUS} pictures per GPU:",
        "",
        "| | images/s per A100, 256x256 | 512x512 | A100 hours | dollars |",
        "|---|---:|---:|---:|---:|",
        f"| Anyscale, published | | | {public['a100_hours']:,} | {public['dollars_reserved']:,} reserved, "
        f"{public['dollars_on_demand']:,} on demand |",
        f"| MosaicML, published, 64 GPUs | {mosaic[0]:,.0f} | {mosaic[1]:,.0f} | {mosaic_hours:,.0f} | |",
        f"| the roofline of `genflow cost` | {own[0]:,.0f} | {own[1]:,.0f} | {anchor['a100_hours']:,.0f} | |",
        "",
        f"The roofline's hours are {anchor['a100_hours'] / public['a100_hours']:.2f} times those of Anyscale and "
        f"{anchor['a100_hours'] / mosaic_hours:.2f} times those of MosaicML.",
        "",
    ]
    return lines
