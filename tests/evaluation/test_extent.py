"""How much a comparison measures by default, and the time that an evaluation still takes."""

from types import SimpleNamespace

from genflow.evaluation.extent import Extent, Speed, largest_that_fits, said
from genflow.evaluation.progress import Progress
from genflow.recipe.schema import Evaluate

SIZES = [Evaluate(samples=n) for n in (2000, 1000, 500)]


def test_the_largest_size_that_takes_no_longer_than_training():
    """Two runs of 30 s each: 1,000 samples a run take 50 s and fit; without time for any size, the smallest is used."""
    def cost(run: str, options: Evaluate) -> float:
        return options.samples / 40

    def size(seconds: float) -> int:
        return largest_that_fits(SIZES, lambda options: ["a", "b"], cost, lambda run: seconds).samples

    assert [size(seconds) for seconds in (100.0, 30.0, 13.0, 1.0)] == [2000, 1000, 500, 500]


def test_what_was_measured_before_costs_nothing():
    """If only one run is missing at the largest size, only its time counts."""
    def missing(options: Evaluate) -> list[str]:
        return ["b"] if options.samples == 2000 else ["a", "b"]

    assert largest_that_fits(SIZES, missing, lambda run, options: 50.0, lambda run: 60.0).samples == 2000


def test_an_evaluation_with_more_steps_takes_longer():
    """Other numbers of steps and the likelihood cost more than the samples of a run with few steps."""
    options = Evaluate(samples=1000, steps=(1, 32), sweep_samples=500, likelihood=0)
    plain, swept = (Speed(10.0, 10, steps, False, False).seconds(options) for steps in (False, True))
    assert swept - plain == 500 * 33 / 1000
    assert Speed(10.0, 10, True, False, True).seconds(options.model_copy(update={"likelihood": 100})) > swept


def test_the_plan_says_what_is_found_and_what_is_smaller():
    """One line: what was measured before, the samples, the time, and the flag that measures more."""
    run = SimpleNamespace(meta={"seconds": 41.0})
    asked = SIZES[0]
    assert said(Extent(SIZES[2], [], 0.0), 2, asked) == "compare  2 runs, measured before on 500 samples a run"
    small = said(Extent(SIZES[2], [(run, run)], 30.0), 3, asked)
    assert small == (
        "compare  3 runs, 2 of them measured before; to measure on 500 samples a run: about 30 s, for the training "
        "took 41 s; --samples 2000 measures more"
    )
    assert said(Extent(asked, [(run, run)], None), 1, asked) == "compare  1 run; to measure on 2,000 samples a run"


def test_the_time_left_counts_network_evaluations_and_not_samples():
    """Half of the samples with one step are a small part of the work if the other half has nine."""
    seconds, events = iter([0.0, 10.0, 100.0]), []
    work = {"drawing samples": (100, 1.0), "quality with 9 steps": (100, 9.0)}
    progress = Progress(lambda event, **fields: events.append(fields), "run", 200, work, lambda: next(seconds))
    progress(100, "drawing samples")
    progress(100, "quality with 9 steps")
    assert events[0] == {"stage": "evaluate", "run": "run", "step": 100, "steps": 200, "what": "drawing samples",
                         "position": 0.1, "eta": 90.0}  # fmt: skip
    assert (events[1]["position"], events[1]["eta"]) == (1.0, 0.0)
