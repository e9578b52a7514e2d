"""The contract of ordinary nets, checked for every such net in the registry."""

import dataclasses
import math

import pytest
import torch
from support.small import FACTS, NETS, TEXT, captions, recipe, shaken
from torch import Tensor, nn

from genflow import build, nets
from genflow.errors import UsageError
from genflow.nets.rows import least, make_equal
from genflow.recipe.schema import parse
from genflow.specs import DataSpec, NetSpec
from genflow.text import Label

KINDS = nets.kinds(flow=False)  # invertible nets have their own contract: test_flow_contract.py
SIZES = (7, 8, 9, 12, 28, 30, 33, 64)
CLASSES = 3


def picture(size: int) -> dict[str, NetSpec]:
    """The NetSpecs that families need for pictures of a size, by name."""
    shape = (1, size, size)
    return {
        "picture to picture": NetSpec(shape, shape, time=True),
        "picture to vector": NetSpec(shape, (2, 5)),
        "vector to picture": NetSpec((5,), (3, size, size)),
        "picture to latents": NetSpec(shape, (5, size // 2, size // 2)),
        "latents to picture": NetSpec((5, size // 2, size // 2), shape),
        "point to point": NetSpec((2, 1, 1), (2, 1, 1), time=True),
        "invertible": NetSpec(shape, shape, flow=True),
        "captioned picture to picture": NetSpec(shape, shape, time=True, text=TEXT),
        "captioned picture to vector": NetSpec(shape, (2, 5), text=TEXT),
        "vector to captioned picture": NetSpec((5,), (3, size, size), text=TEXT),
    }


UNCONDITIONAL = ("autoencoder", "autoencoder_kl")  # nets that ignore time and class


def fits(kind: str, ends: str) -> bool:
    """Whether the net can be built for this NetSpec; the answer is the same for every size."""
    try:
        nets.builder(kind)(picture(8)[ends], CLASSES, **NETS.get(kind, {}))
    except UsageError:
        return False
    return True


CASES = [(kind, ends) for kind in KINDS for ends in picture(8) if fits(kind, ends)]
CONDITIONAL = [(kind, ends) for kind, ends in CASES if kind not in UNCONDITIONAL]
WITH_WIDTH = [(kind, ends) for kind, ends in CASES if "width" in build.schema(nets.builder(kind)).model_fields]


def made(kind: str, ports: NetSpec, classes: int = CLASSES, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return shaken(nets.builder(kind)(ports, classes, **{**NETS.get(kind, {}), **options}))


def inputs(ports: NetSpec, rows: int = 4) -> tuple[Tensor, Tensor, Label]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, *ports.inputs, generator=generator)
    return x, torch.linspace(5, 990, rows), conditions(ports, rows)


def conditions(ports: NetSpec, rows: int = 4, first: int = 0) -> Label:
    """Labels, including "no label", or captions, including the empty one."""
    numbers = [(first + row) % (CLASSES + 1) for row in range(rows)]
    return captions(numbers) if ports.text else torch.tensor(numbers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_net_fits_some_port_and_documents_its_options(kind: str) -> None:
    """A net fits at least one kind of port, and its docstring explains every recipe key."""
    assert any(case[0] == kind for case in CASES)
    builder = nets.builder(kind)
    for option in build.schema(builder).model_fields:
        assert f"{option}:" in (builder.__doc__ or "")


@pytest.mark.parametrize(("kind", "ends"), CASES)
def test_shapes_at_every_size(kind: str, ends: str) -> None:
    """For odd and large sizes the output has the requested shape and is finite."""
    for size in SIZES if "picture" in ends else (1,):
        if "latents" in ends and size % 2:
            continue
        ports = picture(size)[ends]
        x, t, label = inputs(ports, 2)
        answer = made(kind, ports)(x, t if ports.time else None, label)
        assert answer.shape == (2, *ports.outputs)
        assert answer.isfinite().all()


@pytest.mark.parametrize(("kind", "ends"), [(k, e) for k in KINDS for e in picture(8) if not fits(k, e)])
def test_ports_that_do_not_fit_are_rejected(kind: str, ends: str) -> None:
    """The error is one line, and its hint names another net."""
    with pytest.raises(UsageError, match=f"net {kind}") as refused:
        nets.builder(kind)(picture(8)[ends], 0)
    assert "net.kind=" in refused.value.hint


@pytest.mark.parametrize(("kind", "ends"), CASES)
def test_gradients_reach_every_weight(kind: str, ends: str) -> None:
    """A batch with all labels or captions, "no label" too, and several times has a gradient for every weight."""
    ports = picture(8)[ends]
    net = made(kind, ports)
    x, t, label = inputs(ports)
    net(x, t if ports.time else None, label).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(("kind", "ends"), CONDITIONAL)
def test_time_and_class_matter(kind: str, ends: str) -> None:
    """Another time, label or caption changes the output; without classes and captions they are ignored."""
    ports = picture(8)[ends]
    net, (x, t, label) = made(kind, ports), inputs(ports)
    time = t if ports.time else None
    answer = net(x, time, label)
    assert not torch.allclose(answer, net(x, time, conditions(ports, first=1)))
    if ports.time:
        assert not torch.allclose(answer, net(x, 1000 - t, label))
    if kind == "sd3":  # it is rejected without captions
        return
    bare = made(kind, dataclasses.replace(ports, text=None), 0)
    assert torch.equal(bare(x, time, label), bare(x, time, conditions(ports, first=2)))
    assert torch.equal(bare(x, time, label), bare(x, time, None))


@pytest.mark.parametrize(("kind", "ends"), CASES)
def test_rows_do_not_see_each_other(kind: str, ends: str) -> None:
    """A row alone has the same output as in a batch: there are no batch statistics."""
    ports = picture(8)[ends]
    net, (x, t, label) = made(kind, ports).eval(), inputs(ports)
    whole = net(x, t if ports.time else None, label)
    alone = net(x[1:2], t[1:2] if ports.time else None, label[1:2])
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [8, 28, 36])
@pytest.mark.parametrize(("kind", "ends"), CASES)
def test_a_frozen_row_has_the_same_bits_in_every_batch(kind: str, ends: str, size: int) -> None:
    """On one thread, in as few rows as the engine draws."""
    ports = picture(size)[ends]
    net, (x, t, label) = made(kind, ports).eval().requires_grad_(False), inputs(ports, 17)
    make_equal(net)
    with torch.no_grad():
        whole, *parts = (
            net(x[:rows], t[:rows] if ports.time else None, label[:rows]) for rows in (17, least(net, "cpu"), 3)
        )
    assert all(torch.equal(part, whole[: len(part)]) for part in parts)


@pytest.mark.parametrize(("kind", "ends"), CASES)
def test_it_works_under_autocast(kind: str, ends: str) -> None:
    """In bfloat16 the output is near the exact one, and gradients are finite."""
    ports = picture(8 if "latents" in ends else 9)[ends]
    net, (x, t, label) = made(kind, ports), inputs(ports)
    exact = net(x, t if ports.time else None, label).detach()
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, t if ports.time else None, label)
    assert float((rough.detach().float() - exact).norm() / exact.norm()) < 0.1
    rough.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize(("kind", "ends"), WITH_WIDTH)
@pytest.mark.parametrize("width", [1, 6, 28, 80])
def test_any_width_works_or_is_rejected(kind: str, ends: str, width: int) -> None:
    """Every width is either rejected at once or gives a working net."""
    ports = picture(8)[ends]
    x, t, label = inputs(ports, 2)
    try:
        net = made(kind, ports, width=width)
    except UsageError:
        return
    assert net(x, t if ports.time else None, label).isfinite().all()


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ({"kind": "unet", "patch": 3}, "net.patch=3 does not divide the picture's side of 8"),
        ({"kind": "dit", "patch": 3}, "net.patch=3 does not divide the picture's side of 8"),
        ({"kind": "mmdit", "patch": 3}, "net.patch=3 does not divide the picture's side of 8"),
        ({"kind": "mmdit", "width": 100}, "net.heads=3 does not divide net.width=100"),
        ({"kind": "sd3"}, "net sd3 reads captions, and this run has none"),
        ({"kind": "sd3", "width": 30}, "net.width=30 must be a multiple of 4 for sd3"),
        ({"kind": "dit", "width": 100, "heads": 3}, "net.heads=3 does not divide net.width=100"),
        ({"kind": "conv"}, "net conv turns a picture into a vector or back"),
        ({"kind": "unet", "width": 0}, "net.width: must be at least 1, not 0"),
        ({"kind": "unet", "multipliers": [1, 0]}, "net.multipliers: must be at least 1"),
        ({"kind": "unet", "dropout": 1.0}, "net.dropout: must be less than 1"),
        ({"kind": "mlp", "depth": -1}, "net.depth: must be at least 1"),
        ({"kind": "dit", "heads": 0}, "net.heads: must be at least 1"),
        ({"kind": "nut"}, r"unknown net 'nut' \(did you mean unet\?\)"),
        ({"kind": 5}, "unknown net 5"),
    ],
)
def test_impossible_options_are_rejected(net: dict[str, object], message: str) -> None:
    """A recipe that cannot work is rejected in one line when it is resolved."""
    with pytest.raises(UsageError, match=message) as refused:
        build.resolve(parse({"family": {"kind": "ddpm"}, "net": net}), DataSpec((1, 8, 8), 17))
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("net", "message", "hint"),
    [
        (
            {"block_out_channels": [8, 16]},
            r"net.block_out_channels=\[8, 16\] divides the side by 2, not by 4",
            "name 3 numbers, or use family.factor=2",
        ),
        (
            {"block_out_channels": [8, 12, 16]},
            "net.norm_num_groups=32 does not divide the 8 of net.block_out_channels",
            "use net.norm_num_groups=4",
        ),
    ],
)
def test_levels_and_groups_of_the_net_of_diffusers_fit(net: dict[str, object], message: str, hint: str) -> None:
    """One line, with values that fit; without options it has as many levels as the factor needs."""
    facts, options = DataSpec((3, 16, 16), 256), {"kind": "autoencoder", "factor": 4}
    with pytest.raises(UsageError, match=message) as refused:
        build.resolve(parse({"family": options, "net": {"kind": "autoencoder_kl", **net}}), facts)
    assert refused.value.hint == hint
    build.resolve(parse({"family": options, "net": {"kind": "autoencoder_kl"}}), facts)


def test_the_proposed_number_of_heads_divides_the_width() -> None:
    """The number of heads in the hint divides the width."""
    with pytest.raises(UsageError) as refused:
        nets.builder("dit")(picture(8)["picture to picture"], 0, width=100, heads=3)
    assert refused.value.hint == "use net.heads=2"
    assert recipe("ddpm", DataSpec((1, 8, 8), 17), "dit", train={"steps": 1}).net["heads"] == 2


def test_the_fast_unet_folds_large_pictures() -> None:
    """From 8 pixels on pixels are folded 2 x 2, and the lowest resolution is at most 8 x 8."""
    for size in (4, 8, 28, 33, 64):
        net = nets.builder("unet")(NetSpec((1, size, size), (1, size, size), time=True), 0, width=8, blocks=1)
        fold = net.patch
        assert fold == (1 if size < 8 or size % 2 else 2)
        halvings = sum(isinstance(m, nn.Conv2d) and m.stride == (2, 2) for m in net.down)
        assert math.ceil(size / fold / 2**halvings) <= 8


@pytest.mark.parametrize(("kind", "ends"), CONDITIONAL)
def test_a_second_time_has_no_effect_at_first_and_can_be_learnt(kind: str, ends: str) -> None:
    """A new second time input does not change the output until its weights change; every net supports it."""
    ports = dataclasses.replace(picture(8)[ends], time=True)
    with_second = dataclasses.replace(ports, second_time=True)
    plain, second = made(kind, ports), nets.builder(kind)(with_second, CLASSES, **NETS.get(kind, {}))
    second.load_state_dict(plain.state_dict(), strict=False)
    assert {name for name in second.state_dict() if name not in plain.state_dict()} != set()
    x, t, label = inputs(ports)
    torch.testing.assert_close(second(x, t, label, t / 2), plain(x, t, label), rtol=1e-5, atol=1e-5)
    shaken(second)
    assert not torch.equal(second(x, t, label, t / 2), second(x, t, label, t / 3))


@pytest.mark.parametrize("kind", [*UNCONDITIONAL, "unet2d"])
def test_a_net_that_cannot_read_captions_is_rejected(kind: str) -> None:
    """One line that names nets which read them, because the net would learn as if there were no captions."""
    ports = picture(8)["captioned picture to picture"]
    with pytest.raises(UsageError, match=f"^net {kind} cannot read captions, and this data has some$") as refused:
        nets.builder(kind)(ports, 0)
    assert refused.value.hint == "use net.kind=conv or dit or fixup or mlp or mmdit or sd3 or unet"
    with pytest.raises(UsageError, match="net unet2d cannot read captions"):
        build.resolve(parse({"family": {"kind": "ddpm"}, "net": {"kind": "unet2d"}}), FACTS["captioned"])
