"""The quantities of the tables, from evaluations of several seeds."""

import numpy as np
import pytest
from scipy import stats
from support.made_up import evaluation, metric, study

from genflow.tables import formatting
from genflow.tables.quantities import quantities, spread, steps


def measured(found, failed=None, **more):
    return quantities(study(**more), found, failed or {})


def said(result):
    return formatting.cells({"quantities": result, "objective": "", "mathematics": ""}, 0.1)


def test_an_interval_over_seeds_is_students():
    """1, 2 and 3: mean 2, and t(0.975, 2) / sqrt(3) on either side."""
    found = measured({"gan": {seed: evaluation(fd) for seed, fd in enumerate((1.0, 2.0, 3.0))}})["gan"]["fd"]
    half_width = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((2, 2 - half_width, 2 + half_width))
    assert (found["each"], found["floor"]) == ([1.0, 2.0, 3.0], 0.5)


def test_one_seed_keeps_its_own_interval():
    """The interval of a single seed is that of its evaluation, over samples."""
    found = measured({"gan": {0: evaluation(2.0)}})["gan"]
    assert found["fd"]["low"] == pytest.approx(1.9)
    assert "spread" not in found


def test_the_spreads_interval_holds_the_truth():
    """For a true standard deviation of 0.1, 95 % of the intervals contain 0.1."""
    rng = np.random.default_rng(0)
    found = [spread(list(rng.normal(1.0, 0.1, 4))) for _ in range(2000)]
    assert np.mean([q["low"] <= 0.1 <= q["high"] for q in found]) == pytest.approx(0.95, abs=0.015)


def test_steps_are_the_median_and_the_widest_interval():
    """Seeds that need 8, 8 and 16 evaluations: the value is 8 and the interval 8 to 16."""
    one = {1: 9.0, 4: 3.0, 8: 1.0, 16: 1.0, 32: 1.0}
    late = {1: 9.0, 4: 3.0, 8: 2.0, 16: 1.0, 32: 1.0}
    found = steps([evaluation(sweep=sweep) for sweep in (one, one, late)], 0.11)
    assert (found["value"], found["each"], found["tried"]) == (8, [8, 8, 16], 32)
    assert found["low"] == 8
    assert found["high"] == 16


def test_steps_that_still_improve_have_no_upper_end():
    """If only the largest tried number is enough, the interval has no upper end."""
    found = steps([evaluation(sweep={1: 9.0, 2: 4.0, 4: 1.0})], 0.1)
    assert (found["value"], found["high"]) == (4, None)
    assert formatting.format_quantity(found, formatting.count) == "4 or more"


def test_an_interval_that_reaches_the_most_that_were_tried_is_open():
    """If the interval reaches 64, the largest tried number, it is open: it does not refute a claim of 100."""
    rough = evaluation(sweep={2: 1.02, 64: 1.0})
    for point in rough["sweep"]:
        point["fd"] = metric(point["fd"]["value"], half_width=0.3)
    found = steps([rough], 0.1)
    assert (found["value"], found["low"], found["high"]) == (2, 2, None)
    assert steps([evaluation(sweep={1: 1.0})], 0.1)["high"] == 1


def test_a_diverged_training_is_counted_and_others_are_not():
    """Two of five trainings diverged: a seed, and one at three times the rate. A full disk does not count."""
    found = {"gan": {0: evaluation(), 1: evaluation()}, "gan-slow": {0: evaluation()}}
    failed = {
        "gan-s2": {"stage": "gan-s2", "kind": "NonFinite", "message": "not finite"},
        "gan-m2": {"stage": "gan-s2", "kind": "NonFinite", "message": "not finite"},
        "gan-fast-s0": {"stage": "gan-fast-s0", "kind": "TrainingDiverged", "message": "dominated"},
        "gan-fast-m0": {"stage": "gan-fast-s0", "kind": "Trouble", "message": "dominated"},
    }
    result = measured(found, failed)["gan"]
    assert (result["diverged"]["value"], len(result["diverged"]["each"])) == (0.4, 5)
    assert result["lr_sensitivity"]["value"] is None
    assert "diverged at three times the learning rate" in said(result)["stability"]
    disk = {"gan-s2": {"stage": "gan-s2", "kind": "ResourceError", "message": "the disk is full"}}
    assert measured(found, disk)["gan"]["diverged"]["value"] == 0


def test_a_method_without_measurements_is_marked_so():
    """A training failed for another reason than divergence: every column is "not measured"."""
    gone = {"stage": "flow-s0", "kind": "DataError", "message": "gone"}
    result = measured({"gan": {0: evaluation()}}, {"flow-s0": gone})
    assert result["flow"] == {}
    assert said(result["flow"])["stability"] == ["not measured"]


def test_sensitivity_is_the_worse_ratio_of_the_same_seed():
    """fd is 2 at the preset's rate, 3 at a third and 8 at three times the rate: 4, with the errors of both fd."""
    found = {"gan": {0: evaluation(2.0), 1: evaluation(9.0)}, "gan-slow": {0: evaluation(3.0)},
             "gan-fast": {0: evaluation(8.0)}}  # fmt: skip
    result = measured(found)["gan"]["lr_sensitivity"]
    assert (result["value"], result["each"]) == (4.0, [1.5, 4.0])
    assert result["high"] - 4 == pytest.approx(4 * np.hypot(0.1 / 8, 0.1 / 2))


def test_a_family_without_likelihood_says_none():
    """A family with a likelihood states its kind and the number of evaluations."""
    bits = {**metric(2.0), "kind": "lower-bound", "method": "IWAE", "unit": "bits/dim", "nfe": 5, "bars": {}}
    bits["stderr"] = 0.02
    found = measured({"gan": {0: evaluation()}, "flow": {0: evaluation(likelihood=bits)}})
    assert found["gan"]["likelihood"]["kind"] == "none"
    assert said(found["gan"])["likelihood"] == ["none"]
    result = said(found["flow"])["likelihood"]
    assert result == [
        "≤ 2.000 ± 0.020 bits/dim", "lower bound of the likelihood, IWAE", "5 network evaluations per picture",
    ]  # fmt: skip


def trained(fd: float, seconds: float):
    return evaluation(fd, training={"images": 100, "cpu_seconds": seconds})


def test_the_time_to_a_quality_is_that_of_the_shortest_sufficient_training():
    """fd is 9, 4 and 2 after 5, 10 and 20 CPU seconds, and the floor is 0.5. A target of 8 floors is clearly reached
    after 20 seconds, just reached after 10, and clearly missed after 5. A target of 2 floors is never reached."""
    found = {"gan-quarter": {0: trained(9.0, 5)}, "gan-half": {0: trained(4.0, 10)}, "gan": {0: trained(2.0, 20)}}
    result = measured(found, target=8)["gan"]["seconds_to"]
    assert (result["value"], result["low"], result["high"]) == (10, 5, 20)
    method = {"quantities": measured(found, target=8)["gan"], "objective": "", "mathematics": ""}
    assert "fd within 8 × floor after 10.0 (5.00–20.0) CPU s of training" in formatting.cells(method, 0.1, 8)["speed"]
    never = measured(found, target=2)["gan"]["seconds_to"]
    assert (never["value"], never["high"], never["tried"]) == (None, None, 20)


def test_modes_of_stacks_are_compared_with_the_ceiling():
    """The captured modes have an interval, and the cell states how many modes as many real stacks show."""
    kl = {"value": 0.5, "low": 0.4, "high": 0.6, "floor": 0.2}
    modes = {"captured": 700, "of": 1000, "interval": [670.0, 730.0], "ceiling": 918, "kl": kl}
    result = measured({"gan": {0: evaluation()}, "gan-stacked": {0: evaluation(modes=modes)}})["gan"]
    assert (result["stacked_captured"]["low"], result["stacked_ceiling"]["value"]) == (670, 918)
    assert "stacked_share" not in result
    assert said(result)["coverage"][-3:] == [
        "700 (670–730) of 1,000 modes of stacked digits", "real data 918",
        "KL divergence 0.50 (0.40–0.60), real data 0.20",
    ]  # fmt: skip


def test_runs_on_latents_have_a_limit_and_no_likelihood():
    """The fd of reconstructions stands below fd; the column of likelihoods has a dash, for exact families, too."""
    limited = evaluation(reconstruction={"fd": metric(1.5)}, has_likelihood="exact-dequantized")
    found = measured({"flow": {0: limited}})["flow"]
    assert found["reconstruction_fd"]["value"] == 1.5
    assert "likelihood" not in found
    cells = said(found)
    assert cells["likelihood"] == ["—"]
    assert "fd of reconstructions 1.50 (1.40–1.60), the limit" in cells["quality"]
    pixels = said(measured({"flow": {0: evaluation(has_likelihood="exact-dequantized")}})["flow"])
    assert pixels["likelihood"] == ["not measured"]


def test_training_times_contain_the_autoencoder_and_the_latents():
    """A training of 16 CPU seconds on latents that took 100 reaches its fd after 116."""
    found = {"gan": {0: evaluation(2.0)}, "gan-half": {0: evaluation(9.0, training={"images": 1, "cpu_seconds": 8.0})}}
    result = quantities(study(target=10), found, {}, before=100.0)["gan"]["seconds_to"]
    assert (result["value"], result["low"]) == (116.0, 108.0)


def test_prompt_fidelity_stands_in_the_cell_of_quality():
    """For runs of captions, with the value of real data; other runs have no such line."""
    found = evaluation(2.0)
    found["metrics"] |= {"r_precision": metric(0.9, floor=0.99), "r_precision_unseen": metric(0.8, floor=0.98)}
    (method,) = (value for name, value in measured({"gan": {0: found}}).items() if name == "gan")
    text = " ".join(said(method)["quality"])
    assert "own caption found among others 0.90" in text
    assert "real data 0.99" in text
    assert "the same for unseen captions 0.80" in text
    assert "caption" not in " ".join(said(measured({"gan": {0: evaluation(2.0)}})["gan"])["quality"])
