"""Time to quality: the arithmetic and the section of the page; the trainings are those of `make bench-quality`."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.bench.examples import integral, padding
from benchmarks.bench.page import PARTS, of_format, page, parts_of
from benchmarks.bench.quality_page import ratio, read, section, write
from genflow.system.documents import Json


def result(name: str, fd: float, seed: int = 0, points: tuple[tuple[int, float], ...] = ()) -> Json:
    """A training's file: points are numbers of steps with the distance there."""
    def distance(value: float) -> Json:
        return {"value": value, "low": value - 1, "high": value + 1, "floor": 0.5, "features": "digits-scales@1"}

    return {
        "data": "digits", "name": name, "given": "tuned", "seed": seed, "budget": 60.0, "samples": 500, "batch": 32,
        "format": "bfloat16", "parameters": 10**6, "steps": points[-1][0] if points else 400, "evaluations": 10,
        "fd": distance(fd), "points": [{"steps": at, "fd": distance(value)} for at, value in points],
    } | ({"cost": {"value": 4.0, "seconds": 0.4, "base": 0.1}} if points else {"work": 600})  # fmt: skip


def test_the_time_to_a_distance() -> None:
    """It is interpolated in logarithms; without the distance it is the whole training, and not reached."""
    ours = result("genflow", 8.0)
    assert ratio(result("a", 4.0, points=((150, 16.0), (600, 4.0))), ours) == (pytest.approx(2.0), True)
    assert ratio(result("a", 7.0, points=((93, 7.0), (188, 7.0))), ours) == (pytest.approx(0.62), True)
    assert ratio(result("a", 9.0, points=((375, 9.0),)), ours) == (pytest.approx(2.5), False)


def test_the_section_of_the_page(tmp_path: Path) -> None:
    """Results of two seeds are one row; the section replaces itself, and the rest of the page stays."""
    for seed in (0, 1):
        peers = result("peer", 20.0, seed, ((375, 20.0),)), result("fast", 4.0, seed, ((150, 16.0), (600, 4.0)))
        for each in (result("genflow", 8.0, seed), *peers):
            (tmp_path / f"digits-{each['name']}-s{seed}.json").write_text(json.dumps(each), encoding="utf-8")
    text = section(read(tmp_path))
    assert "| peer | tuned | 2 | 1.0 | 32 | 400 | 375 | 150 | 10 | 20.00 (20.00 to 20.00) | 40.0 | **> 2.5** |" in text
    assert "| **2.00** (2.00 to 2.00) |" in text
    assert "Not measured: diffusers tuned, torchcfm tuned," in text
    file = tmp_path / "page.md"
    file.write_text(page({"data": "Data.", of_format("quality"): "Old."}, PARTS), encoding="utf-8")
    write(file, text)
    assert parts_of(file.read_text(encoding="utf-8")) == {"data": "Data.", of_format("quality"): text}


def test_padding_and_the_sampler_of_two_steps() -> None:
    """28 pixels become 32; the method of Adams and Bashforth is exact for velocities that are linear in time."""
    assert [padding(28, 32), padding(28, 8), padding(32, 32)] == [2, 2, 0]
    start = torch.zeros(2, 1, 1, 1)
    assert integral(lambda x, t: torch.ones_like(x), start, 4).flatten().tolist() == [1.0, 1.0]
    coarse, fine = (abs(float(integral(lambda x, t: x, start + 1, steps)[0]) - 2.718281828) for steps in (20, 40))
    assert fine < coarse / 3.5
