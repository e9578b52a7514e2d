"""The selection of a measured setting to deploy."""

import pytest

from genflow.cli.recommend import commands, parse_latency, parse_quality
from genflow.errors import GateError, UsageError
from genflow.evaluation.selection import choose, front, warning


def choice(name: str, fd: float, ms: float, **options: object) -> dict:
    metric = {"value": fd, "low": fd - 0.1, "high": fd + 0.1, "floor": 0.5}
    found = {"run": f"{name}-1a", "name": name, "options": options, "nfe": 1, "fd": metric, "ms_alone": ms}
    return {**found, "fd_name": "fd of 500 samples", "run_fd": metric}


FOUND = [
    choice("gan", 5.0, 2.0),
    choice("flow", 1.0, 40.0, steps=16, sampler="ab2"),
    choice("flow4", 2.0, 10.0, steps=4),
    choice("slow", 1.05, 90.0, steps=64),
    choice("bad", 6.0, 20.0),
]


@pytest.mark.parametrize(
    ("most_ms", "most_fd", "name"),
    [(None, None, "flow"), (15.0, None, "flow4"), (1000.0, None, "flow"), (None, 5.5, "gan"), (None, 1.02, "flow"),
     (50.0, 3.0, "flow")],
)  # fmt: skip
def test_the_choice_within_the_limits(most_ms, most_fd, name):
    """With a limit on latency the best, on quality the fastest, without limits the fastest close to the best."""
    assert choose(FOUND, most_ms, most_fd)["name"] == name


def test_settings_that_do_not_differ_significantly_are_counted():
    """1.05 does not differ significantly from 1.0, with errors of 0.1 each."""
    assert choose(FOUND, 1000.0)["equal"] == 1


def test_the_pareto_front():
    """The front is sorted by latency, and contains neither "slow" nor "bad"."""
    assert [point["name"] for point in front(FOUND)] == ["gan", "flow4", "flow"]


def test_limits_that_no_setting_meets():
    """A missed limit is a GateError (exit code 7) whose hint names the closest setting."""
    with pytest.raises(GateError, match=r"no measured setting takes at most 1\.00 ms") as slow:
        choose(FOUND, 1.0)
    assert slow.value.hint == "the fastest is gan: --max-latency 2ms"
    with pytest.raises(GateError, match=r"no measured setting reaches fd of 500 samples 0\.50 within 15\.0 ms") as bad:
        choose(FOUND, 15.0, 0.5)
    assert "flow4 with fd of 500 samples 2.00" in bad.value.hint


@pytest.mark.parametrize("ms", [5.174, 0.0312, 41.96])
def test_the_suggested_latency_is_sufficient(ms):
    """With the latency from the hint, the setting that it names is selected."""
    with pytest.raises(GateError) as slow:
        choose([choice("vae", 1.0, ms)], 0.01)
    named = parse_latency(slow.value.hint.rpartition(" ")[2])
    assert choose([choice("vae", 1.0, ms)], named)["name"] == "vae"


def test_limits_are_parsed():
    """50ms, 0.2s and 50 are latencies, 2.5 and 3x qualities; other texts are a UsageError."""
    assert [parse_latency(text) for text in ("50ms", "0.2s", "50")] == [50, 200, 50]
    assert (parse_quality("2.5", 0.4), parse_quality("3x", 0.4)) == (2.5, pytest.approx(1.2))
    for read, wrong in ((parse_latency, "fast"), (parse_latency, "0ms"), (parse_latency, "1.2.3")):
        with pytest.raises(UsageError):
            read(wrong)
    with pytest.raises(UsageError):
        parse_quality("good", 0.4)


def test_the_commands_to_serve_and_request_a_setting():
    """The commands name the run by its id and the setting by flags."""
    assert commands(FOUND[1]) == [
        "genflow serve flow-1a", "genflow sample --endpoint http://127.0.0.1:8000 --steps 16 --sampler ab2",
    ]  # fmt: skip


def test_a_warning_if_nothing_is_near_real_data():
    """Ten times the fd of real data is far; one setting that is near is enough."""
    assert warning(FOUND) == ""
    far = [choice("gan", 6.0, 2.0), choice("flow", 5.5, 40.0)]
    said = "Nothing here is near real data: the smallest fd, that of flow, is 11 times that of real data."
    assert warning(far).startswith(said)
    assert warning([*far, choice("good", 4.9, 9.0)]) == ""
