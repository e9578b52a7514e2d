"""The cost of a training: equal to what a real step counts, the published numbers of known nets, and the limits."""

from typing import Any

import pytest
import torch
from support.small import FACTS, batch, recipe
from torch.utils.flop_counter import FlopCounterMode

from genflow import build
from genflow.cost import estimate as estimates
from genflow.cost.estimate import assumptions, estimate, to_json
from genflow.cost.gpus import GPUS, gpu_named
from genflow.cost.step import Ledger, measure
from genflow.errors import UsageError
from genflow.maths.rng import BatchRng
from genflow.recipe.compose import compose
from genflow.recipe.schema import Recipe
from genflow.specs import DataSpec

ROWS = 8
LATENTS = DataSpec((4, 32, 32), levels=None, class_names=tuple(map(str, range(1000))), sigma_data=1.0, autoencoder="a")
PICTURES = DataSpec((3, 32, 32), levels=256)


def whole(kind: str, facts: DataSpec, *layers: dict[str, Any]) -> Recipe:
    return build.resolve(compose(kind, *layers), facts)


@pytest.mark.parametrize(
    ("kind", "net", "options"),
    [
        ("flow_matching", "unet", {}), ("flow_matching", "dit", {}), ("normalizing_flow", "tarflow", {}),
        ("gan", "fixup", {"penalty": "difference"}),  # torch's counter cannot count second derivatives
    ],
)  # fmt: skip
def test_a_step_counts_what_a_real_one_does(kind: str, net: str, options: dict[str, Any]) -> None:
    """The arithmetic of torch's own counter over the losses and gradients of all players, on the CPU."""
    chosen, facts = recipe(kind, FACTS["grey"], net, family=options), FACTS["grey"]
    family, given = build.family_of(chosen, facts).train(), batch(facts, 0, ROWS)
    with FlopCounterMode(display=False) as counter:
        for player in family.players:
            for other in family.players:
                getattr(family, other).requires_grad_(other == player)
            family.loss(player, given, BatchRng(0, "loss", 0))[0].backward()
    within = 0.1 if net == "dit" else 0.02  # a GPU's attention computes the scores again in the backward pass
    assert measure(chosen, facts, ROWS).flops == pytest.approx(counter.get_total_flops(), rel=within)


def test_second_derivatives_are_counted() -> None:
    """Those of the exact penalty of a GAN; a ledger of the CPU's tensors counts the same."""
    chosen, facts, ledger = recipe("gan", FACTS["grey"]), FACTS["grey"], Ledger(torch.device("cpu"))
    family, given = build.family_of(chosen, facts).train(), batch(facts, 0, ROWS)
    for player in family.players:
        for other in family.players:
            getattr(family, other).requires_grad_(other == player)
        with ledger:
            family.loss(player, given, BatchRng(0, "loss", 0))[0].backward()
    counted = sum(operation.flops * count for operation, count in ledger.counted.items())
    assert measure(chosen, facts, ROWS).flops == pytest.approx(counted, rel=0.02)


def test_the_memory_is_that_of_a_real_step() -> None:
    """The largest sum of storages, which a ledger of the CPU's tensors sees too."""
    chosen = whole("flow_matching", PICTURES, {"net": {"kind": "unet", "width": 16, "attention": False}})
    family, given = build.family_of(chosen, PICTURES).train(), batch(PICTURES, 0, ROWS)
    with Ledger(torch.device("cpu")) as ledger:
        family.loss("net", given, BatchRng(0, "loss", 0))[0].backward()
    assert measure(chosen, PICTURES, ROWS, bf16=False).peak_bytes == pytest.approx(ledger.peak, rel=0.02)


def test_memory_grows_with_the_batch_and_falls_with_bfloat16() -> None:
    """Activations are proportional to the rows; weights and state do not depend on them."""
    chosen = recipe("flow_matching", PICTURES, "unet")
    small, large = (measure(chosen, PICTURES, rows) for rows in (8, 32))
    assert small.optimizer_bytes == large.optimizer_bytes
    assert large.peak_bytes / small.peak_bytes == pytest.approx(4, rel=0.2)
    assert large.flops == pytest.approx(4 * small.flops, rel=0.01)
    assert measure(chosen, PICTURES, 32, bf16=False).peak_bytes > large.peak_bytes


def test_the_arithmetic_of_dit_is_the_published_one() -> None:
    """DiT-XL/2: 118.6 billion multiplications per forward pass (Peebles, Xie, 2023, table 4)."""
    cost = estimate(whole("flow_matching", LATENTS, {"size": "xl", "net": {"kind": "dit"}}), LATENTS, gpus=8)
    assert cost.flops_per_image / 3 / 2 == pytest.approx(118.64e9, rel=0.02)
    assert cost.work.rows == 32
    fits = {speed.gpu.name: speed.fits for speed in cost.speeds}
    assert fits["H100 SXM"]
    assert not fits["L4"]


def test_more_gpus_are_faster_until_the_network_limits() -> None:
    """Of one global batch; FSDP divides weights and state; the order of GPUs is that of their limits."""
    chosen = whole("flow_matching", LATENTS, {"size": "l", "net": {"kind": "dit", "depth": 3}})
    one, eight, many = (estimate(chosen, LATENTS, gpus=gpus, kinds=(GPUS["h100"],)) for gpus in (1, 8, 64))
    rates = [cost.speeds[0].images_per_second for cost in (one, eight, many)]
    assert rates[0] < rates[1] < 8.1 * rates[0]
    assert many.speeds[0].limit == "network"
    sharded = chosen.replace(cluster={"strategy": "fsdp"})
    assert estimate(sharded, LATENTS, gpus=8).memory.optimizer == pytest.approx(eight.memory.optimizer / 8)
    hours = {speed.gpu.name: speed.hours for speed in estimate(chosen, LATENTS, gpus=8).speeds}
    assert hours["B200"] < hours["H100 SXM"] < hours["A100 SXM 80 GB"] < hours["L4"]
    tiny = recipe("flow_matching", FACTS["grey"])
    rates = [speed.images_per_second for speed in estimate(tiny, FACTS["grey"], gpus=8).speeds]
    assert rates[0] == max(rates)  # of a tiny net a faster GPU is not slower


def test_a_budget_of_minutes_limits_the_hours() -> None:
    """And the pictures that are seen in it."""
    chosen = whole("flow_matching", LATENTS, {"train": {"minutes": 30}})
    for speed in estimate(chosen, LATENTS).speeds:
        assert speed.hours <= 0.5 + 1e-9
        assert speed.images == pytest.approx(3600 * speed.hours * speed.images_per_second)


def test_muon_costs_more_than_adamw() -> None:
    """Its orthogonalization is counted; its state is half as large."""
    wide = {"net": {"kind": "dit", "depth": 2, "width": 512}}
    settings = ({**wide, "train": {"optimizer": name}} for name in ("adamw", "muon"))
    adamw, muon = (estimate(whole("flow_matching", LATENTS, each), LATENTS, gpus=8) for each in settings)
    assert muon.speeds[0].step_s > adamw.speeds[0].step_s
    assert muon.memory.optimizer < 0.6 * adamw.memory.optimizer


def test_the_document_has_every_assumption() -> None:
    """As sentences; and one entry per GPU."""
    cost = estimate(recipe("flow_matching", FACTS["grey"]), FACTS["grey"], gpus=2)
    document = to_json(cost)
    assert document["assumed"] == assumptions(cost)
    assert f"{estimates.ARITHMETIC:.0%} of the published peak" in document["assumed"][0]
    assert len(document["on"]) == len(GPUS)
    assert document["memory_bytes"]["total"] > sum(document["memory_bytes"].values()) / 2


def test_wrong_gpus_are_errors() -> None:
    """An unknown kind, and more GPUs than pictures in a batch."""
    assert gpu_named("RTX 4090") is GPUS["rtx4090"]
    with pytest.raises(UsageError, match="no GPU 'h10' in the table"):
        gpu_named("h10")
    with pytest.raises(UsageError, match="cannot be shared by 64 GPUs"):
        estimate(recipe("flow_matching", FACTS["grey"]), FACTS["grey"], gpus=64)
