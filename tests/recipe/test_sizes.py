"""The dial of size: what it sets, what stays above it, and that the smallest size is the preset."""

from typing import Any

import pytest
from support.small import FACTS, TEXT, learns, source

from genflow import build, families, nets, runs
from genflow.errors import UsageError
from genflow.recipe import sizes
from genflow.recipe.compose import assignments, compose
from genflow.recipe.schema import Recipe, parse
from genflow.specs import DataSpec

NAMES = [str(index) for index in range(1000)]
PICTURES = DataSpec((3, 256, 256), levels=256, class_names=tuple(NAMES))
LATENTS = DataSpec((4, 32, 32), levels=None, class_names=tuple(NAMES), sigma_data=1.0, autoencoder="autoencoder-0")
CAPTIONED = DataSpec((4, 32, 32), levels=None, sigma_data=1.0, text=TEXT, autoencoder="autoencoder-0")
LARGER = ("s", "m", "l", "xl")


def resolved(kind: str, facts: DataSpec, *layers: dict[str, Any]) -> Recipe:
    return build.resolve(compose(kind, *layers), facts, source(kind, facts))


def weights(recipe: Recipe, facts: DataSpec) -> int:
    """The number of weights, without memory for them."""
    return sum(p.numel() for p in build.outline_of(recipe, facts).parameters())


@pytest.mark.parametrize("kind", families.kinds())
def test_the_smallest_size_is_the_preset(kind: str) -> None:
    """To the run's address: with --size xs, and without a size."""
    plain, named = resolved(kind, FACTS["grey"]), resolved(kind, FACTS["grey"], {"size": "xs"})
    assert plain == named
    assert runs.deciding(plain, FACTS["grey"]) == runs.deciding(named, FACTS["grey"])
    assert "size" not in runs.deciding(plain, FACTS["grey"])


@pytest.mark.parametrize("kind", families.kinds())
def test_every_family_has_every_size(kind: str) -> None:
    """The net grows with the size, for every kind of data, and what is stored is resolved."""
    for data in [data for data, facts in FACTS.items() if learns(kind, facts)]:
        facts, counts = FACTS[data], []
        for size in LARGER if data == "grey" else ("s",):
            needs = families.family_class(kind).teacher == "required"  # its net is the teacher's
            began = resolved("flow_matching", facts, {"size": size}) if needs else None
            made = build.resolve(compose(kind, {"size": size}), facts, began)
            assert (made.size, made.train.optimizer) == (size, "adamw")
            assert began is None or made.net == began.net
            counts.append(weights(made, facts))
        assert build.resolve(parse(made.model_dump(mode="json")), facts, began) == made
        assert counts == sorted(set(counts))


def test_a_preset_has_other_options_for_larger_sizes() -> None:
    """Of the family, too; what the user gives is above them."""
    small, large = (compose("gan", {"size": size}).family for size in ("xs", "s"))
    assert small == {"kind": "gan"}
    assert large == {"kind": "gan", "gamma_fall": 10, "penalty_every": 1}
    given = compose("gan", {"size": "s", "family": {"penalty_every": 2}}).family
    assert given == {**large, "penalty_every": 2}


@pytest.mark.parametrize(
    ("net", "facts", "published"),
    [
        ("dit", LATENTS, (33, 130, 458, 675)),  # Peebles, Xie, 2023, table 1
        ("sd3", CAPTIONED, (None, None, None, 2028)),  # Stable Diffusion 3 Medium
        ("mmdit", CAPTIONED, (None, None, None, 2028)),
    ],
)
def test_nets_are_as_large_as_the_published_ones(net: str, facts: DataSpec, published: tuple[int | None, ...]) -> None:
    """In millions of weights, within 2 %."""
    for size, millions in zip(LARGER, published, strict=True):
        if millions:
            made = resolved("flow_matching", facts, {"size": size, "net": {"kind": net}})
            assert weights(made, facts) / 1e6 == pytest.approx(millions, rel=0.02)


def test_pictures_of_256_pixels_have_no_small_net() -> None:
    """The default net of a family has at least 20 million weights in size s, and 100 million in size l."""
    for kind in ("flow_matching", "ddpm", "meanflow", "normalizing_flow"):
        counts = [weights(resolved(kind, PICTURES, {"size": size}), PICTURES) for size in ("s", "l")]
        assert counts[0] > 20e6, kind
        assert counts[1] > 100e6, kind


def test_files_sets_and_flags_win_over_the_size() -> None:
    """Also over the net's options, one by one; the size wins over the preset."""
    made = resolved(
        "flow_matching", LATENTS, {"size": "m", "net": {"kind": "dit", "depth": 3}},
        assignments(["train.lr=3e-4", "train.ema=0.05"]), {"train": {"steps": 7}},
    )  # fmt: skip
    assert (made.net["depth"], made.net["width"], made.net["patch"]) == (3, 768, 2)
    assert (made.train.lr, made.train.ema, made.train.steps, made.train.batch) == (3e-4, 0.05, 7, 256)


def test_the_learning_rate_follows_batch_and_optimizer() -> None:
    """AdamW's as the square root of the batch; Muon's is that of the preset for every batch; a given one stays."""
    def lr(*pairs: str) -> float:
        return compose("flow_matching", {"size": "l"}, assignments(list(pairs))).train.lr

    assert lr() == 1e-4
    assert lr("train.batch=1024") == 2e-4
    assert lr("train.batch=64") == 5e-5
    assert lr("train.batch=1024", "train.lr=0.5") == 0.5
    assert lr("train.optimizer=muon") == lr("train.optimizer=muon", "train.batch=4096") == 0.02
    assert compose("gan", {"size": "l"}, assignments(["train.batch=1024"])).train.lr == 4e-4  # its preset's own rate
    assert compose("flow_matching", assignments(["train.batch=1024"])).train.lr == 0.02  # xs: as before


def test_a_search_is_around_the_learning_rate_of_the_size() -> None:
    """The preset's range moves with the learning rate, and widths of small nets are no part of it."""
    assert compose("flow_matching").tune.space["train.lr"] == "log:0.004:0.1"
    assert compose("flow_matching", {"size": "s"}).tune.space["train.lr"] == "log:2e-05:0.0005"
    assert "net.width" in compose("autoencoder").tune.space
    assert "net.width" not in compose("autoencoder", {"size": "s"}).tune.space
    given = {"size": "s", "tune": {"space": {"net.width": [8]}}}
    assert compose("autoencoder", given).tune.space == {"net.width": [8]}


def test_a_size_is_a_key_of_the_recipe() -> None:
    """In any layer, the last wins; a word that is no size is an error, and pixels have a hint."""
    assert compose("ddpm", {"size": "l"}, assignments(["size=M"])).size == "m"
    for wrong in ("huge", "1", ""):
        with pytest.raises(UsageError, match="size: "):
            compose("ddpm", assignments([f"size={wrong}"]))
    with pytest.raises(UsageError, match="genflow prepare --size"):
        compose("ddpm", {"size": 64})


def test_a_net_without_sizes_is_refused() -> None:
    """In one line; its own keys still work with xs."""
    for kind in nets.kinds():
        if kind != "autoencoder_kl":
            assert nets.of_size(kind, "m", LATENTS.shape)
    with pytest.raises(UsageError, match="net autoencoder_kl has no size m"):
        resolved("autoencoder", PICTURES, {"size": "m", "net": {"kind": "autoencoder_kl"}})


def test_a_run_that_starts_from_another_has_its_net() -> None:
    """Whatever the size; the training is that of the size."""
    began = resolved("flow_matching", FACTS["grey"])
    made = build.resolve(compose("flow_matching", {"size": "s"}), FACTS["grey"], began, FACTS["grey"])
    assert made.net == began.net
    assert made.train.batch == sizes.TRAINING["batch"]


def test_a_stage_of_a_pipeline_has_a_size() -> None:
    """As a key of the stage, and with --set size=l for all stages that train."""
    from genflow.pipeline.graph import load

    stages = {"flow": {"job": "train", "preset": "flow_matching", "data": "digits", "size": "s"}}
    assert load({"stages": stages}, "file").stages[0].recipe.train.batch == 256
    assert load({"stages": stages}, "file", {"size": "l"}).stages[0].recipe.size == "l"
