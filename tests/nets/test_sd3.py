"""The net of Stable Diffusion 3: the numbers of diffusers, padding that changes no bit, other sizes, one graph."""

import dataclasses
from typing import Any

import pytest
import torch
from support.small import NETS, TEXT, captions, shaken
from torch import Tensor

from genflow import nets
from genflow.errors import UsageError
from genflow.specs import NetSpec
from genflow.text import Text

SHAPE = (2, 4, 4)
PORTS = NetSpec(SHAPE, SHAPE, time=True, text=TEXT)


def made(shape: tuple[int, int, int] = SHAPE, **options: object) -> Any:
    torch.manual_seed(0)
    ports = dataclasses.replace(PORTS, inputs=shape, outputs=shape)
    return shaken(nets.builder("sd3")(ports, 0, **{**NETS["sd3"], **options}), 0.2).eval()


def inputs(rows: int, shape: tuple[int, int, int] = SHAPE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, *shape, generator=generator), torch.linspace(0, 1000, rows)


@pytest.mark.parametrize(
    ("shape", "sizes", "options"),
    [
        (SHAPE, [(4, 4), (8, 8), (2, 6), (6, 4)], {}),
        ((3, 6, 9), [(6, 9), (9, 9), (12, 3)], {"patch": 3, "qk_norm": False, "depth": 1}),
        ((16, 5, 5), [(5, 5), (2, 3)], {"patch": 1, "heads": 4, "depth": 3}),
    ],
)
@torch.no_grad()
def test_the_outputs_are_those_of_diffusers(
    shape: tuple[int, int, int], sizes: list[tuple[int, int]], options: dict[str, Any]
) -> None:
    """The weights load strictly into `SD3Transformer2DModel`, which gives the same outputs for captions of any length,
    all times, and other sizes."""
    diffusers = pytest.importorskip("diffusers")
    ours = made(shape, **options)
    theirs = diffusers.SD3Transformer2DModel(**ours.options).eval()
    theirs.load_state_dict(ours.weights(), strict=True)
    text = captions([0, 1, 2, 3, 6])
    embeds, pooled = ours.prompt_embeds(text)
    for size in sizes:
        x, t = inputs(5, (shape[0], *size))
        own = ours(x, t, text)
        assert own.std() > 0.1
        torch.testing.assert_close(own, theirs(x, embeds, pooled, t).sample, rtol=1e-5, atol=1e-5)


def with_padding(text: Text, value: float) -> Text:
    """The same captions with another number in their padding."""
    return dataclasses.replace(text, tokens=text.tokens.masked_fill(~text.mask[..., None], value))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_padding_changes_no_bit(precision: torch.dtype) -> None:
    """Neither its numbers, even NaN, nor its length; a real token changes the output."""
    net, (x, t), text = made(), inputs(5), captions([1, 2, 3, 0, 5])
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        plain = net(x, t, text)
        for value in (0.0, 50.0, torch.nan):
            assert torch.equal(net(x, t, with_padding(text, value)), plain)
        assert torch.equal(net(x, t, with_padding(text.padded(27), 50.0)), plain)
        short = captions([4, 8])  # one token each
        cut = Text(short.tokens[:, :1], short.mask[:, :1], short.pooled)
        assert torch.equal(net(x[:2], t[:2], cut), net(x[:2], t[:2], short))
        assert not torch.equal(net(x, t, dataclasses.replace(text, tokens=text.tokens.flip(1))), plain)


def test_embeddings_have_one_scale() -> None:
    """Real tokens and pooled vectors have a root mean square of 1 at any scale of the text encoder, unless the net
    reads them as they are."""
    text = captions([3, 0])
    text = dataclasses.replace(text, tokens=9 * text.tokens, pooled=text.pooled / 9)
    embeds, pooled = made().prompt_embeds(text)
    assert (embeds.shape, pooled.shape) == ((2, 4, 6), (2, 5))
    assert embeds.square().mean(2).round(decimals=5).tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    torch.testing.assert_close(pooled.square().mean(1), torch.ones(2))
    embeds, pooled = made(normalize=False).prompt_embeds(text)
    assert torch.equal(pooled, text.pooled)
    assert torch.equal(embeds, text.tokens * text.mask[..., None])


def test_positions_are_those_of_diffusers() -> None:
    """A table and a base give the positions that diffusers computes for them; the default is 1 apart."""
    diffusers = pytest.importorskip("diffusers")
    for options in ({"table": 12, "base": 4, "patch": 1}, {"patch": 1}):
        ours = made(**options)
        sides = {"sample_size": options.get("base", ours.options["pos_embed_max_size"])}
        theirs = diffusers.SD3Transformer2DModel(**{**ours.options, **sides})
        torch.testing.assert_close(ours.weights()["pos_embed.pos_embed"], theirs.pos_embed.pos_embed)
    with pytest.raises(UsageError, match=r"net.table=3 is smaller than the 4 patches of the data's side"):
        made(table=3, patch=1)


def test_it_serves_other_sizes_than_those_of_the_table() -> None:
    """A patch has the same position relative to the centre in a picture larger than the table of diffusers."""
    net = made()
    small, large = net.positions(2, 2).unflatten(0, (2, 2)), net.positions(8, 16).unflatten(0, (8, 16))
    assert torch.equal(small, large[3:5, 7:9])
    flat = large.flatten(0, 1)
    assert float(torch.cdist(flat, flat).add(torch.eye(128)).min()) > 0.1  # no two patches have the same position
    assert net(*inputs(2, (2, 20, 12)), captions([1, 2])).shape == (2, 2, 20, 12)
