"""Write a run as a folder of diffusers: a stock pipeline, or its parts.

    pixels, net `unet2d`                      DDIMPipeline or DDPMPipeline
    latents, net `unet2d`                     the parts: unet/, vae/ and scheduler/, for a short loop
    latents with captions, net `sd3`          StableDiffusion3Pipeline, with embeddings of some captions

The autoencoder of a run on latents needs the net `autoencoder_kl`. Its mean and deviation are part of its weights.

A `FlowMatchEulerDiscreteScheduler` uses the times of the sampler `euler` if it is given `sigmas`. By default its last
step is shorter.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genflow.errors import UsageError
from genflow.nets.sd3 import SD3
from genflow.nets.unet2d import UNet2D
from genflow.sampling.diffusers_config import CONFIG
from genflow.sampling.diffusers_folder import NET, WEIGHTS, misfit, write_autoencoder
from genflow.sampling.engine import Engine
from genflow.storage.files import write_atomically
from genflow.text import Text

FLOW, DDIM = "FlowMatchEulerDiscreteScheduler", "DDIMScheduler"
PROMPTS, CAPTIONS = "prompts.safetensors", "prompts.json"
NORMALIZED = "normalized"  # metadata of the embeddings: whether the net reads text of a root mean square of 1
EXAMPLES = 8  # held-out captions whose embeddings are written
# What `StableDiffusion3Pipeline` has and these folders lack: it loads only if each of them is named with None.
ABSENT = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3",
          "image_encoder", "feature_extractor")  # fmt: skip


def write_pipeline(run: str, engine: Engine, folder: Path, prompts: Sequence[str] = ()) -> tuple[str, str]:
    """Write a run's net, the scheduler of its path, and its autoencoder.

    Args:
        run: its id, for messages.
        engine: of the run.
        folder: an empty folder; created if it does not exist.
        prompts: of a run that reads captions, whose embeddings are written; empty: some captions of held-out rows.

    Returns:
        The code that draws pictures from the folder, and what else a reader of it must know.

    Raises:
        UsageError: no class of diffusers has the run's noise, its net or its autoencoder; or a prompt needs a text
            encoder that is not on this machine.
        SetupError: the package of the text encoder is not installed.
        OSError: the folder cannot be written.
    """
    problems, cures = misfits(engine)
    if problems:
        message = f"run {run} cannot be exported to diffusers: {', and '.join(problems)}"
        raise UsageError(message, ", then ".join(cures))
    net = getattr(engine.family, "net", None)
    if isinstance(net, SD3):
        assert engine.prompts is not None
        words = prompts or engine.prompts.examples(min(EXAMPLES, len(engine.prompts.captions)))
        captions = list(dict.fromkeys(["", *words]))
        return write_text_to_image(run, engine, folder, captions, engine.prompts.text(captions))
    assert isinstance(net, UNet2D)
    return _write_parts(engine, net, folder) if engine.autoencoder else _write_stock(engine, net, folder)


def misfits(engine: Engine) -> tuple[list[str], list[str]]:
    """All that no class of diffusers has, and the commands that make a run which fits."""
    family, data, problems, cures = engine.family, engine.recipe.data, [], []
    scheduler, net = family.stock_scheduler(), getattr(family, "net", None)
    path = scheduler[0] if scheduler else ""
    fits = isinstance(net, UNet2D) and bool(path)
    if family.facts.text:
        fits = isinstance(net, SD3) and engine.autoencoder is not None and path == FLOW
    why = misfit(engine.autoencoder) if engine.autoencoder else None
    if why:
        problems.append(f"the {why[0].replace(' ', ' of its autoencoder ', 1)}")
    latents = f"--latents {data.latents} " if data.latents else ""
    if why or (family.facts.text and not latents):
        latents = "--latents latest "
        cures.append(f"genflow train autoencoder --data {data.name} --set {why[1] if why else f'net.kind={NET}'}, "
                     f"then genflow encode {data.name} --autoencoder latest")  # fmt: skip
    if family.facts.text:
        problems += [] if fits else ["with captions it needs flow_matching on latents with the net sd3"]
        cures.append(f"genflow train flow_matching {latents}--text {data.text} --set net.kind=sd3")
    else:
        problems += [] if fits else [f"no stock pipeline supports its {'net' if scheduler else 'noise or prediction'}"]
        cures.append(f"train ddpm (linear or cosine, T=1000) or flow_matching with {latents}--set net.kind=unet2d")
    return problems, cures


def _scheduler(engine: Engine) -> tuple[str, dict[str, Any]]:
    """The class of the scheduler, and its options for the run."""
    scheduler = engine.family.stock_scheduler()
    assert scheduler is not None
    kind, options = scheduler
    own = {"clip_sample": _clips(engine)} if kind == DDIM else {"shift": engine.options.get("shift", 1.0)}
    return kind, {**options, **own}


def _clips(engine: Engine) -> bool:
    return bool(engine.options.get("clip")) and engine.family.facts.bounded


def _euler_steps(engine: Engine) -> int:
    """Steps of Euler's method: those of the run, or twice as many if it has a sampler of second order."""
    steps: int = engine.options["steps"]
    return steps if engine.options["sampler"] == "euler" else 2 * steps


def _write_stock(engine: Engine, net: UNet2D, folder: Path) -> tuple[str, str]:
    """A pipeline of pixels, as diffusers saves it."""
    import diffusers

    kind, options = _scheduler(engine)
    stock: Any = diffusers.DDIMPipeline if kind == DDIM else diffusers.DDPMPipeline
    _save(stock(net.unconditional(), getattr(diffusers, kind)(**options)), folder)
    # As in the run: the noise is computed from the clipped x_0.
    more = ", use_clipped_model_output=True" if kind == DDIM and _clips(engine) else ""
    use = f"""from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(".")
images = pipeline(batch_size=16, num_inference_steps={engine.options["steps"]}{more}).images"""
    return use, 'The samples are those of the run for "no label", because a stock pipeline has no labels.'


def _write_parts(engine: Engine, net: UNet2D, folder: Path) -> tuple[str, str]:
    """The parts of a pipeline of latents, for which diffusers has no stock pipeline."""
    import diffusers

    kind, options = _scheduler(engine)
    _save(net.unconditional(), folder / "unet")
    _save(getattr(diffusers, kind)(**options), folder / "scheduler")
    assert engine.autoencoder is not None
    write_autoencoder(engine.autoencoder, folder / "vae")
    steps = _euler_steps(engine)
    times = f"sigmas=[1 - i / {steps} for i in range({steps})]" if kind == FLOW else str(engine.options["steps"])
    use = f"""import torch
from diffusers import AutoencoderKL, {kind}, UNet2DModel
from diffusers.image_processor import VaeImageProcessor

unet = UNet2DModel.from_pretrained(".", subfolder="unet")
vae = AutoencoderKL.from_pretrained(".", subfolder="vae")
scheduler = {kind}.from_pretrained(".", subfolder="scheduler")
scheduler.set_timesteps({times})
x = torch.randn(16, {", ".join(map(str, engine.family.noise_shape))})
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    pictures = vae.decode(x).sample  # (16, {", ".join(map(str, engine.facts.shape))}), black is -1 and white is 1
images = VaeImageProcessor().postprocess(pictures)  # of PIL"""
    return use, 'The samples are those of the run for "no label": a `UNet2DModel` has no labels here.'


def _save(part: Any, folder: Path) -> None:
    """Write what `save_pretrained` of diffusers writes."""
    with tempfile.TemporaryDirectory() as scratch:
        part.save_pretrained(scratch)
        for file in sorted(Path(scratch).rglob("*")):
            if file.is_file():
                write_atomically(folder / file.relative_to(scratch), file.read_bytes())


def write_text_to_image(
    run: str, engine: Engine, folder: Path, captions: Sequence[str], text: Text
) -> tuple[str, str]:
    """Write a folder for `StableDiffusion3Pipeline`, whose text encoders are absent. It needs no diffusers.

    Args:
        run: its id.
        engine: of a run of flow matching on latents with the net `sd3` and an autoencoder that can be exported.
        folder: an empty folder; created if it does not exist.
        captions: whose embeddings are written; the first one is the empty caption.
        text: the captions, embedded.

    Returns:
        The code that draws pictures from the folder, and what else a reader of it must know.
    """
    from safetensors.torch import save

    net = getattr(engine.family, "net", None)
    assert isinstance(net, SD3)
    assert engine.autoencoder is not None
    kind, options = _scheduler(engine)
    write_autoencoder(engine.autoencoder, folder / "vae")
    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in net.weights().items()}
    write_atomically(folder / "transformer" / f"{WEIGHTS}.safetensors", save(weights, {"format": "pt"}))
    embeds, pooled = (part.float().cpu().contiguous() for part in net.prompt_embeds(text))
    prompts = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    write_atomically(folder / PROMPTS, save(prompts, {NORMALIZED: str(net.normalize).lower()}))
    model = "SD3Transformer2DModel"
    index = {"scheduler": kind, "transformer": model, "vae": "AutoencoderKL"}
    documents: dict[str, Any] = {
        f"transformer/{CONFIG}": {"_class_name": model, **net.options},
        "scheduler/scheduler_config.json": {"_class_name": kind, **options},
        "model_index.json": {
            "_class_name": "StableDiffusion3Pipeline", **{name: [None, None] for name in ABSENT},
            **{name: ["diffusers", part] for name, part in index.items()},
        },
        CAPTIONS: list(captions),
    }  # fmt: skip
    for name, document in documents.items():
        write_atomically(folder / name, json.dumps(document, indent=2, ensure_ascii=False))
    return _use_of_prompts(engine), _about_prompts(run, engine, net)


def _use_of_prompts(engine: Engine) -> str:
    steps, (_, H, W) = _euler_steps(engine), engine.facts.shape
    size = f"\n    height={H}, width={W}," if H != W else ""
    return f"""import json
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

absent = {list(ABSENT[:4])} \\
    + {list(ABSENT[4:])}
pipeline = StableDiffusion3Pipeline.from_pretrained(".", **dict.fromkeys(absent))
prompts = load_file("{PROMPTS}")  # a row for each caption in {CAPTIONS}; the first one is the empty caption
embeds, pooled = prompts["prompt_embeds"], prompts["pooled_prompt_embeds"]
captions = json.load(open("{CAPTIONS}", encoding="utf-8"))
rows = list(range(1, len(captions))) or [0]
none = [0] * len(rows)
images = pipeline(
    prompt_embeds=embeds[rows], pooled_prompt_embeds=pooled[rows],
    negative_prompt_embeds=embeds[none], negative_pooled_prompt_embeds=pooled[none],{size}
    guidance_scale={engine.options["guidance"]}, sigmas=[1 - i / {steps} for i in range({steps})],
).images"""


def _about_prompts(run: str, engine: Engine, net: SD3) -> str:
    text, options = engine.family.facts.text, engine.options
    assert text is not None
    lost = [f"the sampler {options['sampler']}"] if options["sampler"] != "euler" else []
    lost += [f"the spacing {options['spacing']}"] if options["spacing"] not in ("auto", "uniform") else []
    lost += ["a guidance interval"] if (options["guidance_low"], options["guidance_high"]) != (0.0, 1.0) else []
    but = f"The run itself samples with {' and '.join(lost)}, which the pipeline does not have.\n" if lost else ""
    of_pooled = " with a root mean square of 1" if net.normalize else ""
    of_token = "; a token has a root mean square of 1" if net.normalize else ""
    return f"""It needs `pip install diffusers transformers`. The text encoder ({text.encoder}) is no part of the
folder, so prompts are embeddings. On a machine with genflow and the text encoder, this makes those of other words:

```
genflow export {run} --to diffusers --prompt "WORDS" --prompt "OTHER WORDS"
```

In Python they are `engine.family.net.prompt_embeds(engine.prompts.text(["WORDS"]))`, for an `Engine` of the run.

- `prompt_embeds`: {net.length} tokens of {text.tokens} numbers, padded with zeros{of_token}.
- `pooled_prompt_embeds`: {text.pooled} numbers{of_pooled}.
- "No prompt" is the embedding of the empty caption.

{but}With `--sampler euler --steps {_euler_steps(engine)}`, genflow draws the pictures of this pipeline, because
`sigmas` are the times of genflow. The scheduler shifts them."""
