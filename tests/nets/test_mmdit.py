"""MM-DiT: exact padding, rows of any batch, other sizes, and what a compiler sees."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from support.small import NETS, TEXT, captions, shaken
from torch import Tensor, nn

from genflow import nets
from genflow.nets.layers import attend
from genflow.nets.mmdit import sine_positions
from genflow.specs import NetSpec, TextSpec
from genflow.text import Text

PORTS = NetSpec((2, 4, 4), (2, 4, 4), time=True, text=TEXT)
LONG = TextSpec(tokens=6, pooled=5, length=32)


def made(ports: NetSpec = PORTS, classes: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return shaken(nets.builder("mmdit")(ports, classes, **{**NETS["mmdit"], "depth": 3, **options}), 0.2).eval()


def inputs(rows: int, side: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 2, side, side, generator=generator), torch.linspace(5, 990, rows)


def with_padding(text: Text, value: Tensor) -> Text:
    """The same captions with other numbers in their padding."""
    return dataclasses.replace(text, tokens=torch.where(text.mask[..., None], text.tokens, value))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_padding_of_a_caption_changes_no_bit(precision: torch.dtype) -> None:
    """With 23 and more of 32 tokens padding, noise in the padding changes the answer by 0; a real token changes it."""
    net, (x, t) = made(dataclasses.replace(PORTS, text=LONG)), inputs(8)
    text = captions(list(range(1, 9)), LONG)
    assert int(text.mask.sum(1).max()) == 32 - 23
    noise = 50 * torch.randn(8, 32, 6)
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        plain = net(x, t, with_padding(text, torch.zeros(())))
        assert torch.equal(net(x, t, with_padding(text, noise)), plain)
        assert not torch.equal(net(x, t, dataclasses.replace(text, tokens=text.tokens + 1)), plain)


def test_longer_padding_only_rounds() -> None:
    """23 more padding tokens of noise give the same answer, up to the order of sums in another shape."""
    net, (x, t), text = made(), inputs(5), captions([1, 2, 3, 0, 5])
    longer = text.padded(4 + 23)
    longer = with_padding(longer, 50 * torch.randn(longer.tokens.shape))
    torch.testing.assert_close(net(x, t, longer), net(x, t, text), rtol=1e-5, atol=1e-5)


def test_every_token_of_a_caption_is_read_by_every_patch() -> None:
    """A change of one real token, with the pooled vector unchanged, changes the prediction of every patch."""
    net, (x, t), text = made(), inputs(1), captions([3])
    before = net(x, t, text)
    for token in range(4):
        tokens = text.tokens.clone()
        tokens[:, token] += torch.randn(6)
        change = (net(x, t, dataclasses.replace(text, tokens=tokens)) - before).abs().detach()
        assert float(F.max_pool2d(change.amax(1), 2).min()) > 0


def test_the_last_layer_writes_no_text_and_without_captions_there_is_no_text_stream() -> None:
    """Weights that cannot change the answer do not exist; labels and no condition at all work, too."""
    last = dict(made().layers[-1].text.named_parameters())
    assert {name.split(".")[0] for name in last} == {"qkv", "scale", "modulate"}
    assert last["qkv.weight"].shape[0] == 2 * 32
    bare = dataclasses.replace(PORTS, text=None)
    for classes in (0, 3):
        net, (x, t) = made(bare, classes), inputs(2)
        assert not any("text" in name for name, _ in net.named_parameters())
        answers = [net(x, t, torch.tensor([0, number])) for number in (1, 2)]
        assert torch.equal(*answers) == (classes == 0)


def test_it_serves_other_sizes() -> None:
    """The weights for 4 x 4 work for 8 x 8 and 4 x 8; a patch has the same position relative to the centre."""
    net, text = made(), captions([1, 2])
    for shape in ((2, 2, 8, 8), (2, 2, 4, 8)):
        assert net(torch.randn(shape), torch.tensor([5.0, 500.0]), text).shape == shape
    small, large = sine_positions(2, 4, 30).unflatten(0, (2, 4)), sine_positions(4, 8, 30).unflatten(0, (4, 8))
    assert torch.equal(small, large[1:3, 2:6])
    flat = large.flatten(0, 1)
    assert float(torch.cdist(flat, flat).add(torch.eye(32)).min()) > 0.1  # no two patches have the same position
    assert not [name for name in net.state_dict() if "position" in name]


def test_attention_with_a_mask_is_that_of_the_unmasked_tokens() -> None:
    """-inf in the mask removes a token: the result equals the attention to the others, and that of the fused kernel."""
    q, k, v = torch.randn(3, 2, 2, 5, 4).unbind(0)
    mask = torch.zeros(2, 1, 1, 5)
    mask[..., 3:] = -torch.inf
    torch.testing.assert_close(attend(q, k, v, mask=mask), attend(q, k[:, :, :3], v[:, :, :3]))
    torch.testing.assert_close(attend(q, k, v, mask=mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
