"""The autoencoder: facts of its loss, its latents and the pictures that it accepts."""

import sys

import pytest
import torch
from support.small import FACTS, batch, family, learns, recipe, shaken

from genflow import build
from genflow.batch import Batch
from genflow.errors import SetupError, UsageError
from genflow.families.autoencoder import Autoencoder, BlockDct, _ratio_of_gradients
from genflow.maths.imagenet import PerceptualDistance
from genflow.maths.rng import BatchRng, SampleRng
from genflow.nets.autoencoder import linear_code
from genflow.recipe.compose import compose
from genflow.recipe.schema import parse
from genflow.specs import DataSpec
from genflow.training.loop import fit
from genflow.training.session import Session


def autoencoder(data: str = "colour", **options: object) -> Autoencoder:
    return shaken(family("autoencoder", FACTS[data], family={"channels": 4, **options}))


def rng(rows: int = 8) -> BatchRng:
    return BatchRng(0, "loss", 0)


@pytest.mark.parametrize("posterior", ["gaussian", "deterministic"])
def test_latents_have_mean_zero_and_deviation_one(posterior: str) -> None:
    """After `finish` each channel of the training data's latents is standardized; before, it is not."""
    model = autoencoder(posterior=posterior)
    whole = [batch(FACTS["colour"], step) for step in range(256)]

    def latents() -> torch.Tensor:
        rows = torch.cat([part.x for part in whole])
        return model.encode(rows, torch.zeros(len(rows)).long(), SampleRng(range(len(rows)), "code"))

    before = latents()
    model.finish(lambda number: whole[number])
    after = latents()
    torch.testing.assert_close(after.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(after.std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=0)
    assert not torch.allclose(before.std((0, 2, 3)), torch.ones(4), atol=0.05)
    assert {"latent_mean", "latent_deviation"} <= set(model.state_dict())


@pytest.mark.parametrize("posterior", ["gaussian", "deterministic"])
def test_encode_and_decode_draw_nothing(posterior: str) -> None:
    """Latents depend on the picture alone, and pictures on the latents alone; labels change neither."""
    model, data = autoencoder("grey", posterior=posterior), batch(FACTS["grey"])
    z = model.encode(data.x, data.label, SampleRng(range(8), "code"))
    assert torch.equal(z, model.encode(data.x, (data.label + 1) % 10, SampleRng(range(8, 16), "other")))
    x = model.decode(z, data.label, SampleRng(range(8), "code"))
    assert torch.equal(x, model.decode(z, (data.label + 1) % 10, SampleRng(range(8, 16), "other")))
    assert torch.equal(x, model.sample(z, data.label, SampleRng(range(8), "sample")).x)
    assert x.abs().max() <= 1


def test_standardization_changes_no_reconstruction() -> None:
    """decode(encode(x)) is the same before and after `finish`."""
    model, data = autoencoder(), batch(FACTS["colour"])

    def back() -> torch.Tensor:
        draws = SampleRng(range(8), "code")
        return model.decode(model.encode(data.x, data.label, draws), data.label, draws)

    before = back()
    model.finish(lambda number: batch(FACTS["colour"], number))
    torch.testing.assert_close(back(), before, rtol=0, atol=1e-5)


def test_the_kl_is_the_closed_form() -> None:
    """The KL term equals that of torch.distributions, per number of the latents."""
    model, data = autoencoder(), batch(FACTS["colour"])
    mean, log_variance = model._posterior(data.x)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    _, numbers = model.loss("model", data, rng())
    torch.testing.assert_close(numbers["kl"], torch.distributions.kl_divergence(posterior, prior).mean())


def test_a_deterministic_position_has_root_mean_square_one() -> None:
    """The mean of a deterministic posterior has norm sqrt(c) at each position."""
    mean, _ = autoencoder(posterior="deterministic")._posterior(batch(FACTS["colour"]).x)
    torch.testing.assert_close(mean.square().mean(1), torch.ones(8, 4, 4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("side", [4, 8, 12, 16, 28])
def test_the_transform_of_blocks_is_orthonormal_and_shifts(side: int) -> None:
    """Coefficients keep the energy of the pixels that they cover; the first one is the block's mean."""
    transform, x = BlockDct((side, side)), torch.randn(3, 2, side, side)
    block, offsets = min(8, side), len(transform.get_buffer("h"))
    covered = transform.get_buffer("h").shape[1]
    for offset in range(offsets):
        share = torch.full((3, 2), (offset + 0.5) / offsets)
        found, part = transform(x, share), x[..., offset : offset + covered, offset : offset + covered]
        torch.testing.assert_close(found.square().sum((1, 2, 3)), part.square().sum((1, 2, 3)), rtol=1e-4, atol=1e-4)
        mean = part[:, :, :block, :block].mean((2, 3))
        torch.testing.assert_close(found[:, :, 0, 0], block * mean, rtol=1e-4, atol=1e-4)
    assert offsets == min(block, side - covered + 1)


def test_weights_fit_every_side_that_the_factor_divides() -> None:
    """Weights of one side load for another, and give the same interior of the latents."""
    small, large = (DataSpec((3, side, side), levels=256) for side in (32, 64))
    options = {"family": {"factor": 4, "channels": 4}}
    trained, other = shaken(family("autoencoder", small, **options)), family("autoencoder", large, **options)
    other.load_state_dict(trained.state_dict())
    x = torch.rand(2, 3, 64, 64) - 0.5
    label, draws = torch.zeros(2).long(), SampleRng([1, 2], "code")
    z = other.encode(x, label, draws)
    assert z.shape == (2, 4, 16, 16)
    torch.testing.assert_close(z[:, :, 0, 0], trained.encode(x[..., :32, :32], label, draws)[:, :, 0, 0])


@pytest.mark.parametrize(
    ("side", "options", "latents"),
    [
        (8, {}, (4, 4, 4)),
        (28, {}, (8, 7, 7)),
        (34, {}, (4, 17, 17)),
        (64, {}, (8, 16, 16)),
        (128, {}, (16, 16, 16)),
        (256, {}, (16, 32, 32)),
        (64, {"factor": 8}, (16, 8, 8)),
        (64, {"channels": 7}, (7, 16, 16)),
        (96, {"factor": 32, "channels": 5}, (5, 3, 3)),
    ],
)
def test_the_latents_follow_from_the_side(side: int, options: dict[str, int], latents: tuple[int, int, int]) -> None:
    """By default the factor is 4 up to 64 pixels and 8 above, and colour latents have a twelfth of the numbers."""
    facts = DataSpec((3, side, side), levels=256)
    ports = Autoencoder.ports(facts, **recipe("autoencoder", facts, family=options).family)
    assert ports["decoder"].inputs == latents
    assert ports["encoder"].outputs == (2 * latents[0], *latents[1:])


@pytest.mark.parametrize(
    ("facts", "options", "message", "hint"),
    [
        (DataSpec((1, 28, 28), 256), {"factor": 8},
         "^factor=8 needs a side that 8 divides; this data is 28x28: use factor=4$",
         "--set family.factor=4"),
        (DataSpec((1, 33, 33), 256), {}, "an autoencoder needs an even side; this data is 33x33",
         "genflow prepare SOURCE --size 32"),
        (FACTS["points"], {}, "learns pictures, and this data is points of the plane", "train vae"),
        (FACTS["latents"], {}, "learns pictures, and this data is latents", "omit --latents"),
        (DataSpec((3, 64, 64), 256), {"factor": 3}, "family.factor", "keys of family"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_is_rejected_in_one_line(
    facts: DataSpec, options: dict[str, object], message: str, hint: str
) -> None:
    """The message says what is wrong, and the hint what to use."""
    with pytest.raises(UsageError, match=message) as refused:
        build.resolve(parse({"family": {"kind": "autoencoder", **options}}), facts)
    assert hint in refused.value.hint
    assert "\n" not in refused.value.message


def test_it_learns_pictures_only() -> None:
    """Points and latents are left to other families."""
    assert [name for name in FACTS if learns("autoencoder", FACTS[name])] == ["grey", "colour"]


def test_a_wrong_number_of_levels_is_rejected() -> None:
    """Lists of the net have one entry for each halving of the side."""
    facts = DataSpec((3, 64, 64), levels=256)
    for key in ("multipliers", "encoder_blocks", "decoder_blocks"):
        with pytest.raises(UsageError, match=f"net.{key} has 3 numbers, and a factor of 4 has 2 levels"):
            build.resolve(parse({"family": {"kind": "autoencoder"}, "net": {key: [1, 2, 3]}}), facts)


@pytest.mark.parametrize(("channels", "factor", "latents"), [(3, 2, 12), (3, 2, 14), (1, 4, 16), (4, 2, 16)])
def test_an_untrained_code_with_as_many_numbers_as_pixels_loses_nothing(
    channels: int, factor: int, latents: int
) -> None:
    """The net begins as an orthogonal transform of blocks and its inverse."""
    facts = DataSpec((channels, 16, 16), levels=256)
    model = family("autoencoder", facts, family={"factor": factor, "channels": latents})
    x, label, draws = torch.rand(2, channels, 16, 16) - 0.5, torch.zeros(2).long(), SampleRng([1, 2], "code")
    torch.testing.assert_close(model.decode(model.encode(x, label, draws), label, draws), x, atol=1e-5, rtol=0)


def test_the_linear_code_keeps_means_and_slopes_of_blocks() -> None:
    """The eight coefficients of each block of 4 x 4 are those of low frequencies, most of them without colour."""
    weights, deviations = map(torch.from_numpy, linear_code(3, 4, 8))
    means, slopes = torch.ones(3, 4, 4), torch.linspace(-1, 1, 4).expand(3, 4, 4)
    red = means * torch.tensor([1.0, 0, 0])[:, None, None]
    for block, share in ((means, 0.999), (red, 0.999), (slopes, 0.98), (slopes.mT, 0.98)):
        kept = torch.einsum("nchw,chw->n", weights, block).square().sum() / block.square().sum()
        assert kept > share
    gram = weights.flatten(1) @ weights.flatten(1).mT
    torch.testing.assert_close(gram, torch.eye(8))
    assert (deviations.flatten().diff() <= 0).all()


def test_it_learns_to_reconstruct() -> None:
    """The linear code alone has 15 dB on smooth pictures, and 150 steps raise it by seven."""
    facts = DataSpec((3, 16, 16), levels=256)
    preset = compose("autoencoder").replace(train={"steps": 150, "batch": 8, "lr": 0.02, "warmup": 5, "log_every": 1})
    small = preset.replace(net={"width": 8}, family={"kind": "autoencoder", "factor": 2})
    torch.manual_seed(0)
    model = build.family_of(build.resolve(small, facts), facts)
    grid, found = torch.linspace(-1, 1, 16), list[float]()

    def pictures(step: int) -> Batch:
        a, b, c = torch.rand(3, 8, 3, 1, 1, generator=torch.Generator().manual_seed(step)) * 2 - 1
        return Batch((a * grid[:, None] + b * grid + c).clamp(-1, 1), torch.zeros(8).long())

    fit(model, pictures, Session(log=lambda numbers: found.append(numbers["psnr"])), preset.train)
    assert found[0] > 15
    assert sum(found[-5:]) / 5 > found[0] + 7


def test_the_perceptual_term_is_zero_for_equal_pictures_and_its_weights_stay_out_of_the_checkpoint() -> None:
    """With the extra `imagenet`: a term that grows with the error, whose network is neither trained nor saved."""
    pytest.importorskip("efficientnet_lite_pytorch")
    distance, x = PerceptualDistance(), batch(FACTS["colour"]).x
    near, far = (distance(x, x + size * torch.randn(x.shape)) for size in (0.05, 0.5))
    torch.testing.assert_close(distance(x, x), torch.zeros(8), rtol=0, atol=1e-5)
    assert (far > near).all()
    plain, model = autoencoder(), autoencoder(perceptual=1.0)
    loss, numbers = model.loss("model", batch(FACTS["colour"]), rng())
    torch.testing.assert_close(loss, plain.loss("model", batch(FACTS["colour"]), rng())[0] + numbers["perceptual"])
    assert set(model.state_dict()) == set(plain.state_dict())


def test_without_its_package_the_perceptual_term_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names the option, and the hint is the command; a trained run needs no package to decode."""
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    document = parse({"family": {"kind": "autoencoder", "perceptual": 0.5}})
    with pytest.raises(SetupError, match=r"^family\.perceptual needs a package that is not installed$") as refused:
        build.resolve(document, FACTS["colour"])
    assert refused.value.hint == 'pip install "genflow-ray[imagenet]"'
    whole = recipe("autoencoder", FACTS["colour"])
    model = build.family_of(whole.replace(family={**whole.family, "perceptual": 0.5}), FACTS["colour"])
    assert model.sample(torch.randn(2, *model.noise_shape), torch.zeros(2).long(), SampleRng([1, 2], "sample")).x.shape


def test_the_discriminator_plays_after_its_start_alone() -> None:
    """Before it neither player notices the other; after it both losses have gradients for their own weights only."""
    data = batch(FACTS["colour"])
    model, plain = autoencoder(adversarial=0.5, adversarial_start=0.25), autoencoder()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert model.players == ("model", "discriminator")
    for position, plays in ((0.2, False), (0.25, True)):
        model.prepare(position)
        loss, numbers = model.loss("model", data, rng())
        assert torch.equal(loss, plain.loss("model", data, rng())[0]) != plays
        assert ("fooled" in numbers) == plays
        model.zero_grad()
        model.loss("discriminator", data, rng())[0].backward()
        slopes = [float(p.grad.abs().sum()) for p in model.discriminator.parameters() if p.grad is not None]
        assert any(slopes) == plays
        assert len(slopes) == len(list(model.discriminator.parameters()))
        assert all(p.grad is None for p in model.model.parameters())


def test_the_weight_of_the_discriminator_balances_gradients_in_each_row() -> None:
    """With weight 1 the adversarial gradient has the length of the gradient of all other terms; rows stay apart."""
    x = torch.randn(3, 5, requires_grad=True)
    one, other = (x * torch.tensor([[1.0], [2.0], [5.0]])).sum(1), (x.square()).sum(1)
    found = _ratio_of_gradients(one, other, x)
    expected = torch.tensor([1.0, 2.0, 5.0]) * 5**0.5 / (2 * x.detach().norm(dim=1))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_its_losses_are_means_over_rows(adversarial: float) -> None:
    """The losses of two workers, weighted by their rows, give the loss of the whole batch."""
    model, whole = autoencoder(adversarial=adversarial), batch(FACTS["colour"])
    for player in model.players:
        loss, _ = model.loss(player, whole, rng())
        shares = [
            model.loss(player, Batch(whole.x[a:b], whole.label[a:b]), BatchRng(0, "loss", 0, start=a))[0]
            for a, b in ((0, 3), (3, 8))
        ]
        torch.testing.assert_close(3 / 8 * shares[0] + 5 / 8 * shares[1], loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_training_loop_moves_the_discriminator_from_its_start_on(precision: str) -> None:
    """In the first half of the steps its weights stay the same to the bit, and in the second half they change."""
    facts, states = FACTS["colour"], list[torch.Tensor]()
    train = {"steps": 4, "batch": 8, "log_every": 1, "precision": precision}
    whole = recipe("autoencoder", facts, family={"adversarial": 0.5}, train=train)
    model = build.family_of(whole, facts)

    def keep(numbers: dict[str, float]) -> None:
        states.append(torch.cat([p.detach().flatten().clone() for p in model.discriminator.parameters()]))

    first = torch.cat([p.detach().flatten().clone() for p in model.discriminator.parameters()])
    fit(model, lambda step: batch(facts, step), Session(log=keep), whole.train)
    assert torch.equal(states[0], first)
    assert torch.equal(states[1], first)
    assert not torch.equal(states[2], first)
    assert all(p.isfinite().all() for p in model.parameters())
