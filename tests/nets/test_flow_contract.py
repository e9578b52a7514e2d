"""The contract of invertible nets, checked for every invertible net in the registry."""

import pytest
import torch
from support.small import NETS, TEXT, captions, shaken
from torch import Tensor, nn

from genflow import build, nets
from genflow.errors import UsageError
from genflow.specs import NetSpec

KINDS = nets.kinds(flow=True)
CLASSES = 3
SHAPES = [(2, 1, 1), (1, 8, 8), (3, 8, 8), (1, 9, 9)]


def fits(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether the net can be built for this shape."""
    try:
        nets.builder(kind)(NetSpec(shape, shape, flow=True), CLASSES, **NETS[kind])
    except UsageError as refused:
        return "net.kind=" not in refused.hint  # a rejection that names no other net becomes a failing case
    return True


CASES = [(kind, shape) for kind in KINDS for shape in SHAPES if fits(kind, shape)]


def made(kind: str, shape: tuple[int, ...], classes: int = CLASSES, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return shaken(nets.builder(kind)(NetSpec(shape, shape, flow=True), classes, **{**NETS[kind], **options}))


def inputs(shape: tuple[int, ...], rows: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 1.5 * torch.randn(rows, *shape, generator=generator), torch.arange(rows) % (CLASSES + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_net_fits_some_shape_and_documents_its_options(kind: str) -> None:
    """A net fits at least one shape, and its docstring explains every recipe key."""
    assert any(case[0] == kind for case in CASES)
    builder = nets.builder(kind)
    for option in build.schema(builder).model_fields:
        assert f"{option}:" in (builder.__doc__ or "")


@pytest.mark.parametrize("kind", KINDS)
def test_ports_of_ordinary_nets_are_rejected(kind: str) -> None:
    """Ports without `flow=True` are rejected in one line that names the nets that fit."""
    with pytest.raises(UsageError, match="no invertible net is needed") as refused:
        nets.builder(kind)(NetSpec((1, 8, 8), (1, 8, 8), time=True), CLASSES)
    assert "conv or dit" in refused.value.hint


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_the_inverse_undoes_the_map(kind: str, shape: tuple[int, ...]) -> None:
    """The inverse undoes the map to numerical precision, and the log-determinants cancel."""
    x, label = inputs(shape)
    for dtype, within in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
        net = made(kind, shape).to(dtype)
        z, log_det = net(x.to(dtype), None, label)
        back, log_det_back = net(z, None, label, inverse=True)
        assert z.shape == x.shape
        assert log_det.shape == (4,)
        assert not torch.allclose(z.float(), x, atol=0.1)
        torch.testing.assert_close(back, x.to(dtype), rtol=0, atol=within)
        torch.testing.assert_close(log_det, -log_det_back, rtol=within, atol=10 * within)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_the_log_determinant_is_that_of_the_jacobian(kind: str, shape: tuple[int, ...]) -> None:
    """The log-determinant equals that of autograd's full Jacobian."""
    net, (x, label) = made(kind, shape).double(), inputs(shape, 1)
    x = x.double()
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, None, label)[0].flatten(), x).flatten(1)
    torch.testing.assert_close(net(x, None, label)[1][0], torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_a_new_net_is_the_identity(kind: str, shape: tuple[int, ...]) -> None:
    """With new weights z = x, so the initial density is N(0, I)."""
    net = nets.builder(kind)(NetSpec(shape, shape, flow=True), CLASSES, **NETS[kind])
    x, label = inputs(shape)
    z, log_det = net(x, None, label)
    torch.testing.assert_close(z, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_det, torch.zeros(4), rtol=0, atol=1e-2)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_gradients_reach_every_weight(kind: str, shape: tuple[int, ...]) -> None:
    """The likelihood of a batch with all labels, including "no label", has a gradient for every weight."""
    net, (x, label) = made(kind, shape), inputs(shape)
    z, log_det = net(x, None, label)
    (z.square().flatten(1).sum(1) / 2 - log_det).mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_the_class_matters_and_rows_do_not_see_each_other(kind: str, shape: tuple[int, ...]) -> None:
    """Another class changes the output; a row alone has the same output; without classes labels are ignored."""
    net, (x, label) = made(kind, shape), inputs(shape)
    z, log_det = net(x, None, label)
    assert not torch.allclose(z, net(x, None, (label + 1) % (CLASSES + 1))[0])
    alone, log_det_alone = net(x[1:2], None, label[1:2])
    torch.testing.assert_close(z[1:2], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_det[1:2], log_det_alone, rtol=1e-4, atol=1e-4)
    bare = made(kind, shape, 0)
    assert torch.equal(bare(x, None, label)[0], bare(x, None, None)[0])


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_guidance_of_equal_labels_changes_nothing(kind: str, shape: tuple[int, ...]) -> None:
    """If both halves have the same labels, any guidance gives the plain inverse; with "no label" it does not."""
    net, (z, label) = made(kind, shape), inputs(shape)
    plain = net(z, None, label, inverse=True)[0]
    both = net(torch.cat([z, z]), None, torch.cat([label, label]), inverse=True, guidance=3.0)[0]
    torch.testing.assert_close(both, torch.cat([plain, plain]), rtol=1e-3, atol=1e-3)
    no_label = torch.full_like(label, CLASSES)
    guided = net(torch.cat([z, z]), None, torch.cat([label, no_label]), inverse=True, guidance=3.0)[0]
    torch.testing.assert_close(guided[:4], guided[4:], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(guided[:3], plain[:3], atol=1e-2)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_it_works_under_autocast(kind: str, shape: tuple[int, ...]) -> None:
    """In bfloat16 the output is near the exact one, and gradients are finite."""
    net, (x, label) = made(kind, shape), inputs(shape)
    exact = net(x, None, label)[0].detach()
    with torch.autocast("cpu", torch.bfloat16):
        rough, log_det = net(x, None, label)
    assert rough.dtype == log_det.dtype == torch.float32
    assert float((rough.detach() - exact).norm() / exact.norm()) < 0.1
    (rough.square().mean() + log_det.mean()).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize(("kind", "shape"), CASES)
@pytest.mark.parametrize("width", [1, 6, 28])
def test_any_width_works_or_is_rejected(kind: str, shape: tuple[int, ...], width: int) -> None:
    """Every width is either rejected at once or gives a working net."""
    try:
        net = made(kind, shape, width=width)
    except UsageError:
        return
    x, label = inputs(shape)
    assert net(x, None, label)[0].isfinite().all()


def test_a_tarflow_sees_only_earlier_patches() -> None:
    """A block's output for a patch depends on earlier patches, and on each number of the patch separately."""
    net = made("tarflow", (1, 8, 8), blocks=1).double()
    x, label = inputs((1, 8, 8), 1)
    J = torch.autograd.functional.jacobian(lambda x: net(x, None, label)[0], x.double())
    J = J.reshape(4, 2, 4, 2, 4, 2, 4, 2).permute(0, 2, 1, 3, 4, 6, 5, 7).reshape(16, 4, 16, 4)  # by patches of 2 x 2
    blocks = J.abs().amax((1, 3))
    assert float(blocks.triu(1).max()) == 0
    assert float(blocks.tril(-1)[1:, 0].min()) > 0
    own = J[torch.arange(16), :, torch.arange(16), :]
    assert float((own - torch.diag_embed(own.diagonal(dim1=1, dim2=2))).abs().max()) == 0


def test_the_cache_does_not_change_the_inverse() -> None:
    """The inverse with cached keys and values equals the one that evaluates the whole block for every patch."""
    block = made("tarflow", (1, 8, 8)).double().blocks[0]
    z, label = inputs((1, 8, 8), 2)
    z = z.reshape(2, 16, 4).double()
    x = torch.zeros_like(z)
    for i in range(16):  # the parameters for patch i are right once all earlier patches are
        x[:, i] = solve(block, x, z, label, i)
    torch.testing.assert_close(block(z, label, inverse=True)[0], x, rtol=0, atol=1e-6)


@torch.no_grad()
def solve(block: nn.Module, x: Tensor, z: Tensor, label: Tensor, i: int) -> Tensor:
    """Find patch i of x by bisection, as each number's map is monotonic."""
    low, high = torch.full_like(z[:, i], -60), torch.full_like(z[:, i], 60)
    for _ in range(45):
        trial = x.clone()
        trial[:, i] = (low + high) / 2
        below = block(trial, label)[0][:, i] < z[:, i]
        low, high = torch.where(below, trial[:, i], low), torch.where(below, high, trial[:, i])
    return (low + high) / 2


@pytest.mark.parametrize(("kind", "shape"), [(kind, shape) for kind, shape in CASES if shape in SHAPES[:2]])
def test_captions_stand_in_the_place_of_classes(kind: str, shape: tuple[int, ...]) -> None:
    """Another caption changes the output, the inverse undoes the map, and every weight has a gradient."""
    torch.manual_seed(0)
    net = shaken(nets.builder(kind)(NetSpec(shape, shape, flow=True, text=TEXT), CLASSES, **NETS[kind])).double()
    x = inputs(shape)[0].double()
    z, log_det = net(x, None, captions([0, 1, 2, 3]))
    assert not torch.allclose(z, net(x, None, captions([1, 2, 3, 0]))[0])
    torch.testing.assert_close(net(z, None, captions([0, 1, 2, 3]), inverse=True)[0], x, rtol=0, atol=1e-8)
    (z.square().flatten(1).sum(1) / 2 - log_det).mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
