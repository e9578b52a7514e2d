"""Small datasets and models that several tests share."""

from typing import Any

import torch
from torch import Tensor

from genflow import build, families
from genflow.batch import Batch
from genflow.families.base import Family
from genflow.recipe.schema import Recipe, parse
from genflow.specs import DataSpec, TextSpec
from genflow.text import Label, Text

TEXT = TextSpec(tokens=6, pooled=5, length=4, encoder="small")
FACTS = {
    "grey": DataSpec((1, 8, 8), levels=17, class_names=tuple("0123456789")),
    "colour": DataSpec((3, 8, 8), levels=256),
    "points": DataSpec((2, 1, 1), levels=None, scale=1.5),
    "latents": DataSpec((4, 4, 4), levels=None, class_names=tuple("abc"), sigma_data=1.0, autoencoder="autoencoder-0"),
    "captioned": DataSpec((2, 4, 4), levels=None, sigma_data=1.0, text=TEXT, autoencoder="autoencoder-0"),
}
NETS: dict[str, dict[str, Any]] = {  # other nets use their own defaults
    "mlp": {"width": 32, "depth": 2, "waves": 0},  # with waves, random weights are too rough for any solver
    "conv": {"width": 16, "blocks": 1},
    "unet": {"width": 16, "blocks": 1},
    "fixup": {"width": 8, "blocks": 1},
    "dit": {"width": 32, "depth": 2, "heads": 2},
    "mmdit": {"width": 32, "depth": 2, "heads": 2},
    "sd3": {"width": 32, "depth": 2, "heads": 2},
    "unet2d": {"width": 8},
    "tarflow": {"width": 32, "blocks": 2, "depth": 1, "heads": 2, "bins": 4},
    "spline": {"width": 32, "layers": 4, "bins": 8},
    "autoencoder": {"width": 8},
    "autoencoder_kl": {"block_out_channels": [4, 8], "norm_num_groups": 2},
}


def recipe(kind: str, facts: DataSpec, net: str = "auto", **sections: Any) -> Recipe:
    """A resolved recipe with a small net: `recipe("ddpm", FACTS["grey"], train={"steps": 4})`."""
    if net == "auto":
        net = families.family_class(kind).default_net_for(facts)["kind"]
    own = sections.pop("family", {})
    document = {"family": {"kind": kind, **own}, "net": {"kind": net, **NETS.get(net, {})}, **sections}
    return build.resolve(parse(document), facts, source(kind, facts, net))


def learns(kind: str, facts: DataSpec) -> bool:
    """Whether a family learns such data; an autoencoder learns pictures only."""
    return facts.bounded or not families.family_class(kind).is_autoencoder


def source(kind: str, facts: DataSpec, net: str = "auto") -> Recipe | None:
    """The resolved recipe of a teacher run, if the family requires one; else None."""
    needs = families.family_class(kind).teacher == "required"
    return recipe("flow_matching", facts, net) if needs else None


def family(kind: str, facts: DataSpec, net: str = "auto", *, seed: int = 0, **sections: Any) -> Family:
    """A family with a small net in eval mode. Its weights are a function of the seed."""
    chosen = recipe(kind, facts, net, **sections)
    torch.manual_seed(seed)
    return build.family_of(chosen, facts).eval()


@torch.no_grad()
def shaken(module: Any, size: float = 0.05) -> Any:
    """Add noise to every weight, so that gates that start at zero are open. Returns the module."""
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        p.add_(size * torch.randn(p.shape, generator=generator))
    return module


def captions(numbers: list[int], spec: TextSpec = TEXT) -> Text:
    """A caption for each number, as if a text encoder had embedded it; 0 is the empty caption, of one token.

    Caption n has 1 + n % L tokens. Equal numbers give equal captions, and the padding is not zero.
    """

    def embedded(numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        draws = [torch.Generator().manual_seed(1000 + number) for number in numbers]
        tokens = torch.stack([3 * torch.randn(spec.length, spec.tokens, generator=draw) for draw in draws])
        pooled = torch.stack([torch.randn(spec.pooled, generator=draw) for draw in draws])
        real = torch.tensor([1 + number % spec.length for number in numbers])
        return tokens, torch.arange(spec.length) < real[:, None], pooled

    return Text(*embedded(numbers), empty=Text(*embedded([0])))


def condition(facts: DataSpec, numbers: list[int]) -> Label:
    """The condition of each number: the label `number`, modulo the classes and "no label", or a caption."""
    if facts.text:
        return captions(numbers, facts.text)
    return torch.tensor([number % (facts.classes + 1) for number in numbers])


def batch(facts: DataSpec, step: int = 0, rows: int = 8) -> Batch:
    """A batch as a function of the step: grey levels at bin centres, or points."""
    generator = torch.Generator().manual_seed(step)
    number = torch.randint(facts.classes + 1 + 7 * bool(facts.text), (rows,), generator=generator)
    if facts.levels is None:
        x: Tensor = torch.randn(rows, *facts.shape, generator=generator) / 2
    else:
        k = torch.randint(facts.levels, (rows, *facts.shape), generator=generator)
        x = (2 * k + 1) / facts.levels - 1
    return Batch(x, condition(facts, number.tolist()))
