"""What a run keeps of its training: pictures, an animation, held-out losses and how it went; also if it is killed."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence

from genflow.errors import UsageError
from genflow.recipe.compose import compose
from genflow.storage.store import Store
from genflow.system import events
from genflow.tracking.journal import curves, entries, journal_path
from jobs import train
from jobs.runtime.train.display import Display

pytestmark = pytest.mark.usefixtures("without_mlflow")
TINY = {"data": {"name": "digits"}, "net": {"kind": "mlp", "width": 32, "depth": 1}, "sample": {"steps": 2}}
STEPS = 45
MOMENTS = [0, 5, 35, STEPS]


class KilledError(BaseException):
    """Raised where a test would kill the process."""


@pytest.fixture(scope="module")
def store(digits_store: Store) -> Store:
    return digits_store


def document(name: str, family: str = "flow_matching", **settings: Any) -> dict[str, Any]:
    train = {"steps": STEPS, "batch": 15, "log_every": 5, "checkpoint_every": 10, "warmup": 0, **settings}
    recipe = compose(family, TINY, {"name": name, "train": train})
    return {"recipe": recipe.model_dump(mode="json"), "inputs": {}}


def run(document: dict[str, Any]) -> dict[str, Any]:
    return dict(train.main(document, lambda event, **fields: None))


def kept(result: dict[str, Any]) -> dict[str, bytes]:
    """The bytes of the pictures and the animation of a run."""
    folder = Path(result["path"])
    return {file.name: file.read_bytes() for file in [*folder.glob("samples/*"), folder / "training.gif"]}


def test_a_run_keeps_its_moments_and_a_killed_one_has_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures, the frames of the animation, held-out losses at three moments; the same bytes after a kill."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(events, "emit", lambda event, **fields: seen.append({"event": event, **fields}))
    result = run(document("whole"))
    pictures = kept(result)
    assert sorted(pictures) == [*(f"step_{step:08d}.png" for step in MOMENTS), "training.gif"]
    with Image.open(Path(result["path"]) / "training.gif") as animation:
        assert len(list(ImageSequence.Iterator(animation))) == len(MOMENTS)
    journal = journal_path(store.root, result["run"])
    assert [step for step, _ in curves(journal)["val/loss"]] == MOMENTS[1:]
    logged = [entry["step"] for _, entry in entries(journal) if "image" in entry]
    assert logged == MOMENTS
    assert [event["step"] for event in seen if event["event"] == "picture"] == MOMENTS
    assert [event["message"].split()[0] for event in seen if event["event"] == "plan"] == ["net", "budget", "few;"]
    waits = [event["what"] for event in seen if event["event"] == "waiting"]
    assert waits == ["opening the data", "the first step"]
    assert result["passes"] == pytest.approx(STEPS * 15 / 1618, rel=0.01)
    assert result["trend"]["loss"] == "held-out"
    assert f"--init {result['run']} --steps {STEPS}" in result["longer"]

    def tick(self: Display, step: int, position: float) -> None:
        if step == 23:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Display, "tick", tick)
        with pytest.raises(KilledError):
            run(document("killed"))
    resumed = run(document("killed"))
    assert kept(resumed) == pictures
    assert curves(journal_path(store.root, resumed["run"]))["val/loss"] == curves(journal)["val/loss"]


def test_pictures_of_steps_after_the_last_checkpoint_are_forgotten(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a budget of time the moments of another attempt are at other steps; the animation has those of one."""
    result = run(document("stale"))
    folder = Path(result["path"])
    (folder / "manifest.json").unlink()
    stale = folder / "samples" / "step_00000099.png"
    stale.write_bytes(b"")
    assert run(document("stale"))["run"] == result["run"]
    assert not stale.exists()


def test_a_game_has_no_held_out_loss(store: Store) -> None:
    """A GAN has pictures, but neither a held-out loss nor early stopping, and nothing is said about its losses."""
    layers = {"net": {"kind": "mlp", "width": 32, "depth": 1}, "data": {"name": "digits"}}
    settings = {"steps": 9, "batch": 8, "log_every": 5, "warmup": 0}
    recipe = compose("gan", layers, {"name": "game", "train": settings}).model_dump(mode="json")
    result = run({"recipe": recipe, "inputs": {}})
    assert result["trend"] is None
    assert len(kept(result)) == 5
    recipe["train"]["patience"] = 1
    with pytest.raises(UsageError, match=r"train\.patience: there is no held-out loss, because the losses of GAN"):
        run({"recipe": recipe, "inputs": {}})


def test_a_run_stops_early_where_the_recipe_asks(store: Store) -> None:
    """The manifest says so, and the run is finished."""
    result = run(document("early", lr=1e-30, patience=2, optimizer="adamw"))
    assert (result["steps"], result["stopped_early"]) == (15, True)
    assert run(document("early", lr=1e-30, patience=2, optimizer="adamw"))["cached"]
