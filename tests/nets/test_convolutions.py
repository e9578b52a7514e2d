"""Layers that a CPU computes in another way give the results and gradients of torch's, and of diffusers', layers."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.small import shaken
from torch import Tensor, nn

from genflow import nets
from genflow.nets import unet2d
from genflow.nets.convolutions import Enlarge, Pointwise
from genflow.specs import NetSpec


def gradients(module: nn.Module, call: Callable[[], Tensor], x: Tensor) -> list[Tensor]:
    """The result, and the gradients of a fixed function of it, with respect to parameters and to x."""
    out = call()
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), [*module.parameters(), x])]


@pytest.mark.parametrize("side", [7, 14])
@pytest.mark.parametrize("kind", [Enlarge, Pointwise])
def test_the_results_are_those_of_torchs_layers(kind: type[nn.Conv2d], side: int) -> None:
    """Up to the rounding of sums in another order, with gradients of parameters and inputs."""
    torch.manual_seed(0)
    layer = Enlarge(6, 5, 3, padding=1) if kind is Enlarge else Pointwise(6, 5, 1)
    x = torch.randn(3, 6, side, side, requires_grad=True)

    def stock() -> Tensor:
        pictures = F.interpolate(x, scale_factor=2.0, mode="nearest") if kind is Enlarge else x
        return nn.Conv2d.forward(layer, pictures)

    expected = gradients(layer, stock, x)
    for a, b in zip(gradients(layer, lambda: layer(x), x), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))


def test_enlarging_to_an_odd_size() -> None:
    """A size that is not doubled has the stock layers."""
    layer, x = Enlarge(2, 2, 3, padding=1), torch.randn(1, 2, 4, 4)
    expected = nn.Conv2d.forward(layer, F.interpolate(x, size=(7, 7), mode="nearest"))
    assert torch.equal(layer(x, (7, 7)), expected)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_network_is_that_of_diffusers(bf16: bool) -> None:
    """Same weights, same outputs and gradients; in bfloat16 as near as diffusers' own are to those of float32."""
    from diffusers import UNet2DModel

    net = nets.builder("unet2d")(NetSpec((3, 28, 28), (3, 28, 28), time=True), 3, width=16)
    assert isinstance(net, unet2d.UNet2D)
    ours = copy.deepcopy(shaken(net).model)  # a copy computes as the original does
    stock = UNet2DModel(**net._options)
    stock.load_state_dict(ours.state_dict())
    x, t, c = torch.randn(4, 3, 28, 28), torch.tensor([1.0, 30, 500, 999]), torch.randn(4, 64)

    def measured(model: nn.Module, enabled: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = model(x, t, class_labels=c).sample.float()
        parts = torch.autograd.grad((out - x).square().mean(), list(model.parameters()))
        return torch.cat([part.flatten() / part.norm().clamp(min=1e-6) for part in [out.detach(), *parts]])

    exact = measured(stock, False)
    if not bf16:
        assert torch.dist(measured(ours, False), exact) < 1e-3 * exact.norm()
    else:
        assert torch.dist(measured(ours, True), exact) < 1.2 * torch.dist(measured(stock, True), exact)
