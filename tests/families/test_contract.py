"""The contract of families, checked for every family in the registry."""

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from safetensors.torch import load_file
from support.small import FACTS, batch, condition, family, learns, recipe, shaken, source

from genflow import build, families
from genflow.batch import Batch
from genflow.errors import UsageError
from genflow.families.base import Family, Kind, LogLikelihood, has_encoder
from genflow.maths.rng import BatchRng, SampleRng
from genflow.recipe.compose import preset
from genflow.recipe.files import dump
from genflow.recipe.schema import Recipe
from genflow.sampling.engine import Engine
from genflow.specs import DataSpec
from genflow.system.source_hash import resources_dir
from genflow.training import checkpoint_folders
from genflow.training.ema import with_average
from genflow.training.loop import fit
from genflow.training.session import Session

KINDS = families.kinds()
SEEDS = [11, 3, 7, 42, 5]


def variants() -> list[tuple[str, str, dict[str, Any]]]:
    """Every family with all data and with each sampling option that its signature names."""
    found = []
    for kind in KINDS:
        options = build.schema(families.family_class(kind).sample).model_fields
        ways: list[dict[str, Any]] = [{}]
        for name, field in options.items():
            if get_origin(field.annotation) is Literal:
                ways += [{name: value} for value in get_args(field.annotation) if value != field.default]
            elif field.annotation is bool:
                ways += [{name: not field.default}]
        found += [(kind, data, way) for data in FACTS if learns(kind, FACTS[data])
                  for way in (ways if data != "colour" else [{}])]  # fmt: skip
    return found


def name(value: object) -> str:
    return ",".join(f"{k}={v}" for k, v in value.items()) or "default" if isinstance(value, dict) else str(value)


def options(model: Family, way: dict[str, Any]) -> dict[str, Any]:
    """The complete sampling options; the number of steps, if it is an option, is small."""
    known = build.schema(type(model).sample).model_fields
    return build.sample_options(model, {**({"steps": 4} if "steps" in known else {}), **way})


def draw(model: Family, seeds: list[int], **chosen: Any) -> torch.Tensor:
    rng = SampleRng(seeds, "sample")
    label = condition(model.facts, seeds)
    return model.sample(rng.normal((len(seeds), *model.noise_shape)), label, rng, **chosen).x


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=FACTS)
def facts(request: pytest.FixtureRequest, kind: str) -> DataSpec:
    if not learns(kind, FACTS[request.param]):
        pytest.skip("an autoencoder learns pictures only")
    return FACTS[request.param]


def test_every_option_is_documented(kind: str) -> None:
    """A family has a title, and its docstring explains each key of the recipe's section."""
    own = families.family_class(kind)
    assert own.title
    for option in build.schema(own.__init__).model_fields:
        assert f"{option}:" in (own.__doc__ or ""), f"{kind}.{option}"


def test_every_weight_of_a_player_learns_from_its_own_loss(kind: str, facts: DataSpec) -> None:
    """The loss is a finite scalar, and it has a gradient for every parameter; gates at zero are opened first.

    Only modulation weights may have none, in a net without inputs for time and class.
    """
    model = shaken(family(kind, facts)).train()
    conditioned = facts.classes or any(port.time for port in model.ports(facts, **recipe(kind, facts).family).values())
    for player in model.players:
        model.zero_grad()
        loss, numbers = model.loss(player, batch(facts), BatchRng(0, f"loss/{player}", 0))
        assert loss.shape == ()
        assert loss.isfinite()
        assert all(value.numel() == 1 for value in numbers.values())
        loss.backward()
        weights = getattr(model, player).named_parameters()
        dead = [n for n, p in weights if p.grad is None or not p.grad.abs().sum() > 0]
        assert [n for n in dead if conditioned or not n.endswith("modulate.weight")] == []


def test_a_loss_is_a_function_of_its_rows(kind: str) -> None:
    """The losses of two workers, weighted by their numbers of rows, give the loss of the whole batch."""
    facts = FACTS["grey"]
    model, whole = family(kind, facts), batch(facts)
    for player in model.players:
        loss, _ = model.loss(player, whole, BatchRng(0, "loss", 0))
        shares = [
            model.loss(player, Batch(whole.x[a:b], whole.label[a:b]), BatchRng(0, "loss", 0, start=a))[0]
            for a, b in ((0, 3), (3, 8))
        ]
        torch.testing.assert_close(3 / 8 * shares[0] + 5 / 8 * shares[1], loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "data", "way"), variants(), ids=name)
def test_a_sample_is_a_function_of_its_seed(kind: str, data: str, way: dict[str, Any]) -> None:
    """It has the data's shape, is finite, reproducible to the bit, and independent of the rest of the batch."""
    model = shaken(family(kind, FACTS[data]))
    chosen = options(model, way)
    x = draw(model, SEEDS, **chosen)
    assert x.shape == (5, *FACTS[data].shape)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert torch.equal(x, draw(model, SEEDS, **chosen))
    assert (x[0] - x[1]).abs().max() > 1e-4
    turned = draw(model, SEEDS[::-1], **chosen)
    torch.testing.assert_close(x, turned.flip(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x[2:3], draw(model, [SEEDS[2]], **chosen), rtol=1e-4, atol=1e-4)


def test_sampling_counts_its_evaluations(kind: str) -> None:
    """Samples.nfe is the number of network calls per sample, with and without guidance."""
    model = family(kind, FACTS["grey"])
    calls: list[int] = []
    names = [n for n, m in model.named_modules() if type(m).__module__.startswith("genflow.nets.")]
    for n in names:
        if not any(n.startswith(f"{other}.") for other in names):  # a whole net, not a part of one
            model.get_submodule(n).register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    for way in ({}, {"guidance": 2.0}):
        known = build.schema(type(model).sample).model_fields
        if not set(way) <= set(known):
            continue
        calls.clear()
        rng = SampleRng([1, 2], "sample")
        noise = rng.normal((2, *model.noise_shape))
        samples = model.sample(noise, torch.tensor([0, 10]), rng, **options(model, way))
        assert samples.nfe == sum(calls) / 2 > 0


def test_guidance_needs_labels(kind: str) -> None:
    """Guidance changes samples of labelled data, is rejected without labels, and is no option of a likelihood."""
    known = build.schema(families.family_class(kind).sample).model_fields
    if "guidance" not in known:
        with pytest.raises(UsageError, match="guidance"):
            recipe(kind, FACTS["grey"], sample={"guidance": 2.0})
        return
    model = shaken(family(kind, FACTS["grey"]), 0.1)
    plain, guided = (draw(model, SEEDS, **options(model, {"guidance": weight})) for weight in (1.0, 3.0))
    assert not torch.equal(plain, guided)
    with pytest.raises(UsageError, match="needs data with labels"):
        recipe(kind, FACTS["colour"], sample={"guidance": 2.0})
    with pytest.raises(UsageError, match="needs data with labels"):
        build.sample_options(family(kind, FACTS["colour"]), {"guidance": 2.0})
    with pytest.raises(TypeError):
        model.log_likelihood(batch(FACTS["grey"]).x, batch(FACTS["grey"]).label, SampleRng(range(8), "l"), guidance=2.0)


def test_a_likelihood_carries_its_kind(kind: str, facts: DataSpec) -> None:
    """A likelihood is finite, has a standard error, and is the same for the same seeds; or it is None."""
    model, data = shaken(family(kind, facts)), batch(facts, rows=3)

    def measure() -> LogLikelihood | None:
        return model.log_likelihood(data.x, data.label, SampleRng([5, 6, 7], "likelihood"))

    found = measure()
    if found is None:
        return
    assert found.kind in get_args(Kind)
    assert found.nats.shape == found.stderr.shape == (3,)
    assert found.nats.isfinite().all()
    assert (found.stderr >= 0).all()
    assert found.nfe >= 1
    assert torch.equal(found.nats, measure().nats)  # type: ignore[union-attr]
    assert not found.nats.requires_grad


def test_a_checkpoint_restores_samples_to_the_bit(kind: str, tmp_path: Path) -> None:
    """An engine built from the folder alone gives the samples of the averaged weights."""
    facts = FACTS["grey"]
    chosen = recipe(kind, facts, train={"steps": 3, "batch": 8})
    model = build.family_of(chosen, facts)
    checkpoints = checkpoint_folders.Checkpoints(tmp_path / "checkpoints")
    fit(model, lambda step: batch(facts, step), Session(save=checkpoints.save), chosen.train)
    folder = checkpoints.newest()
    assert folder is not None
    (tmp_path / "recipe.yaml").write_text(dump(chosen), encoding="utf-8")
    (tmp_path / "facts.json").write_text(json.dumps(facts.to_json()), encoding="utf-8")
    fresh = Engine.from_folder(tmp_path, folder)
    average = load_file(folder / "ema.safetensors")
    way = options(model, {})
    expected = with_average(model, average, lambda: draw(model, SEEDS, **way))
    assert torch.equal(draw(fresh.family, SEEDS, **way), expected)
    assert fresh.step == 3
    raw = Engine.from_folder(tmp_path, folder, average=False)
    assert torch.equal(draw(raw.family, SEEDS, **way), draw(model.eval(), SEEDS, **way))


def test_the_recipe_is_the_signature(kind: str) -> None:
    """`resolve` fills in every option of family, net and sample, and rejects all others."""
    facts = FACTS["grey"]
    whole, own = recipe(kind, facts), families.family_class(kind)
    assert set(whole.family) == {"kind", *build.schema(own.__init__).model_fields}
    assert set(whole.sample) == set(build.schema(own.sample).model_fields)
    assert build.resolve(whole, facts, source(kind, facts)) == whole
    for section in ("family", "net", "sample"):
        changed = whole.replace(**{section: {**getattr(whole, section), "nonsense": 1}})
        with pytest.raises(UsageError, match="unknown key nonsense"):
            build.resolve(changed, facts, source(kind, facts))


def test_a_family_can_be_printed(kind: str, facts: DataSpec) -> None:
    """repr names the class and its nets."""
    model = family(kind, facts)
    assert type(model).__name__ in repr(model)
    assert all(hasattr(model, player) for player in model.players)


@pytest.mark.usefixtures("number_format")
def test_it_learns_two_blobs_of_points(kind: str) -> None:
    """A few hundred steps of a tiny net, as the preset trains: the samples' mean and spread are the data's."""
    facts = DataSpec((2, 1, 1), levels=None)
    if not learns(kind, facts):
        pytest.skip("an autoencoder learns pictures only")
    centres = torch.tensor([[0.9, 0.3], [-0.7, -0.5]])

    def blobs(step: int, rows: int = 64) -> Batch:
        generator = torch.Generator().manual_seed(step)
        which = (torch.rand(rows, generator=generator) < 0.3).long()
        x = centres[which] + 0.15 * torch.randn(rows, 2, generator=generator)
        return Batch(x[:, :, None, None], torch.zeros(rows, dtype=torch.long))

    def as_preset(kind: str) -> Recipe:
        has_preset = (resources_dir() / "pipelines" / f"{kind}.yaml").is_file()
        own = preset(kind) if has_preset else {"family": {}, "train": {"lr": 0.02}}
        options = {key: value for key, value in own["family"].items() if key != "kind"}
        return recipe(kind, facts, family=options, train={**own["train"], "steps": 300, "batch": 64, "log_every": 300})

    torch.manual_seed(0)
    chosen, began = as_preset(kind), source(kind, facts)
    model = build.family_of(chosen, facts)
    average: dict[str, torch.Tensor] = {}
    if began:
        theirs = as_preset(str(began.family["kind"]))
        teacher = build.family_of(theirs, facts)
        fit(teacher, blobs, Session(), theirs.train, lambda step, weights: average.update(weights))
        teacher.load_state_dict(average, strict=False)
        model.init_from(teacher)
    fit(model, blobs, Session(), chosen.train, lambda step, weights: average.update(weights))
    steps = {"steps": max(4, chosen.sample["steps"])} if "steps" in chosen.sample else {}  # fewer are less exact
    drawn = with_average(model, average, lambda: draw(model, list(range(2400)), **{**chosen.sample, **steps}))
    drawn = drawn.flatten(1)
    real = blobs(10_000, 4000).x.flatten(1)
    torch.testing.assert_close(drawn.mean(0), real.mean(0), rtol=0, atol=0.12)
    torch.testing.assert_close(drawn.std(0), real.std(0), rtol=0.35, atol=0)  # a VAE shows its decoder's mean
    near = torch.cdist(drawn, centres).argmin(1).float().mean()
    assert float(near) == pytest.approx(0.3, abs=0.15)


def test_a_code_leads_back_to_its_picture(kind: str, facts: DataSpec) -> None:
    """decode(encode(x)) is x to the precision of the solver; a net that encodes gives a finite mean; others raise."""
    own = families.family_class(kind)
    if not has_encoder(own):
        with pytest.raises(UsageError, match="no encoder"):
            family(kind, facts).encode(batch(facts).x, batch(facts).label, SampleRng(range(8), "code"))
        return
    model, data = shaken(family(kind, facts), 0.02), batch(facts)
    code = model.encode(data.x, data.label, SampleRng(range(8), "code"))
    assert code.shape[1:] == model.code_shape
    back = model.decode(code, data.label, SampleRng(range(8), "code"))
    assert back.shape == data.x.shape
    assert len(code) == 8
    assert back.isfinite().all()
    if "encoder" not in model.ports(facts, **recipe(kind, facts).family):
        torch.testing.assert_close(back, data.x, rtol=0, atol=0.02)


def test_a_run_can_start_from_another(kind: str) -> None:
    """`init_from` copies every weight, and rejects a source whose net has other shapes."""
    facts = FACTS["grey"]
    trained, fresh = shaken(family(kind, facts)), family(kind, facts, seed=1)
    fresh.init_from(trained)
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), trained.parameters(), strict=True))
    with pytest.raises(UsageError, match="cannot start from"):
        family(kind, facts).init_from(family("ddpm", facts, "dit" if kind != "dit" else "unet"))


def test_the_class_says_what_it_is(kind: str) -> None:
    """A family describes its objective and steps, and declares the kind of likelihood that it computes."""
    own, facts = families.family_class(kind), FACTS["grey"]
    assert own.objective
    assert own.steps
    assert own.is_autoencoder == (kind in families.AUTOENCODERS)
    data = batch(facts, rows=2)
    found = family(kind, facts).log_likelihood(data.x, data.label, SampleRng([1, 2], "likelihood"))
    assert own.likelihood == (found.kind if found else None)
    assert not found or found.method
