"""Checkpoints are atomic, and restore what was saved."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.crashes import crashes
from torch import nn

from genflow.errors import DataError
from genflow.storage import files
from genflow.training import checkpoint, checkpoint_folders
from genflow.training.checkpoint_folders import Checkpoints
from genflow.training.muon import Muon


def write(text: str = "weights"):  # type: ignore[no-untyped-def]
    def into(folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps(text), encoding="utf-8")

    return into


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def optimizers(module: nn.Sequential) -> dict[str, torch.optim.Optimizer]:
    return {
        "net.muon": Muon([module[0].weight, module[2].weight], lr=0.1),
        "net.adamw": torch.optim.AdamW([module[0].bias, module[2].bias], lr=0.1, fused=True),
    }


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    """Two by default, ordered by step and not by date."""
    kept = Checkpoints(tmp_path / "checkpoints")
    assert kept.newest() is None
    for step in (500, 1000, 1500, 12_000):
        kept.save(step, write())
    assert [p.name for p in kept.steps()] == ["step_00001500", "step_00012000"]
    assert kept.newest() == tmp_path / "checkpoints" / "step_00012000"


def test_a_save_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    """No half-written folder is left."""
    kept = Checkpoints(tmp_path)
    kept.save(1, write())

    def fails(folder: Path) -> None:
        (folder / "half").write_text("written", encoding="utf-8")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        kept.save(2, fails)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    assert kept.newest() == tmp_path / "step_00000001"


def test_an_incomplete_save_is_ignored_and_deleted(tmp_path: Path) -> None:
    """The temporary folder of a killed process is no checkpoint, even if complete, and the next save deletes it."""
    kept = Checkpoints(tmp_path)
    kept.save(1, write())
    (tmp_path / "step_00000001").rename(tmp_path / "step_00000009.tmp-1-ab")
    (tmp_path / "step_00000005").mkdir()  # no manifest
    assert kept.newest() is None
    kept.save(2, write())
    assert kept.newest() == tmp_path / "step_00000002"
    assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize("exchange", [True, False])
def test_a_save_that_is_killed_at_any_moment_loses_nothing(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 3 is saved again over itself while step 2 is kept and step 1 is pruned: each is whole or gone."""
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    kept = Checkpoints(tmp_path / "checkpoints", keep=2)

    def begin() -> None:
        shutil.rmtree(kept.folder, ignore_errors=True)
        Checkpoints(kept.folder, keep=9).save(1, write("1"))
        for step in (2, 3):
            Checkpoints(kept.folder, keep=9).save(step, write(str(step)))

    begin()
    seen = set()
    for _ in crashes(lambda: kept.save(3, write("again"))):
        for path in kept.folder.glob("step_*"):  # what the run's manifest would list
            assert ".tmp-" in path.name or checkpoint_folders.is_complete(path)
        kept.tidy()
        newest = kept.newest()
        assert newest is not None
        assert newest.name == "step_00000003"
        seen.add(json.loads((newest / "state.json").read_text(encoding="utf-8")))
        assert kept.folder / "step_00000002" in kept.steps()
        assert all(".tmp-" not in path.name for path in kept.folder.iterdir())
        begin()
    assert seen == {"3", "again"}


def test_a_commit_of_two_workers_that_is_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    """Two workers have added their files; the first is killed while it commits them over the same step."""
    kept = Checkpoints(tmp_path / "checkpoints", keep=2)

    def begin() -> tuple[str, dict[str, Any]]:
        shutil.rmtree(kept.folder, ignore_errors=True)
        for step in (1, 2, 3):
            Checkpoints(kept.folder, keep=9).save(step, write(str(step)))
        attempt = kept.begin(3)
        write("again")(kept.folder_of(attempt))
        (kept.folder_of(attempt) / "other").touch()
        return attempt, kept.add(attempt, ["state.json"]) | kept.add(attempt, ["other"])

    begun = [begin()]
    seen = set()
    for _ in crashes(lambda: kept.commit(*begun[-1])):
        kept.tidy()
        newest = kept.newest()
        assert newest is not None
        assert newest.name == "step_00000003"
        seen.add(tuple(sorted(file.name for file in newest.iterdir())))
        assert kept.folder / "step_00000002" in kept.steps()
        begun.append(begin())
    assert seen == {("manifest.json", "state.json"), ("manifest.json", "other", "state.json")}


def test_a_file_of_another_worker_that_is_not_visible_ends_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on nodes that mount two different disks."""
    monkeypatch.setattr(checkpoint_folders, "LOOKS", 1)
    kept = Checkpoints(tmp_path)
    attempt = kept.begin(1)
    write()(kept.folder_of(attempt))
    files = kept.add(attempt, ["state.json"])
    with pytest.raises(DataError, match="other, which another worker wrote, is not there"):
        kept.commit(attempt, {**files, "other": {"size": 1, "sha256": ""}})
    kept.abandon(attempt)
    assert list(tmp_path.iterdir()) == []


def test_a_half_deleted_checkpoint_of_an_older_version_is_deleted(tmp_path: Path) -> None:
    """A folder with a manifest and without its files is no checkpoint, and the next attempt deletes it."""
    kept = Checkpoints(tmp_path)
    kept.save(1, write())
    kept.save(2, write())
    (tmp_path / "step_00000001" / "state.json").unlink()
    kept.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "manifest"])
def test_a_corrupt_checkpoint_is_skipped(harm: str, tmp_path: Path) -> None:
    """After a flipped bit, a missing byte, a missing file or an incomplete manifest, the previous one is the newest."""
    kept = Checkpoints(tmp_path)
    kept.save(1, write())
    kept.save(2, write())
    file = tmp_path / "step_00000002" / ("manifest.json" if harm == "manifest" else "state.json")
    content = file.read_bytes()
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:] if harm == "flip" else content[:-1])
    assert kept.newest() == tmp_path / "step_00000001"
    kept.save(2, write("again"))
    assert kept.newest() == tmp_path / "step_00000002"


def test_everything_is_restored(tmp_path: Path) -> None:
    """Weights, buffers, average, both optimizers' states and the clock; the next step has the same result."""
    model = net()
    own = optimizers(model)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def step(module: nn.Module, movers: dict[str, torch.optim.Optimizer]) -> None:
        module(x).square().mean().backward()
        for optimizer in movers.values():
            optimizer.step()
            optimizer.zero_grad()

    step(model, own)
    average = {name: p.detach() / 2 for name, p in model.named_parameters()}
    checkpoint.write(tmp_path, checkpoint.gather(model, average, own), {"step": 1, "seconds": 2.5})
    fresh = net()
    theirs = optimizers(fresh)
    back, state = checkpoint.read(tmp_path, fresh, theirs)
    assert state == {"step": 1, "seconds": 2.5}
    assert all(torch.equal(back[name], value) for name, value in average.items())
    step(model, own)
    step(fresh, theirs)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in model.state_dict().items())


def test_sampling_loads_the_average_and_the_buffers(tmp_path: Path) -> None:
    """load_weights gives averaged parameters with the raw buffers, or the raw weights."""
    model = net()
    model[1].running_mean.fill_(3.0)
    average = {name: torch.full_like(p, 0.5) for name, p in model.named_parameters()}
    checkpoint.write(tmp_path, checkpoint.gather(model, average, {}), {"step": 7})
    fresh = net()
    assert checkpoint.load_weights(tmp_path, fresh)["step"] == 7
    assert all((p == 0.5).all() for p in fresh.parameters())
    assert (fresh[1].running_mean == 3).all()
    checkpoint.load_weights(tmp_path, fresh, average=False)
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), model.parameters(), strict=True))


def test_weights_of_another_net_give_a_one_line_error(tmp_path: Path) -> None:
    """It has the name and both shapes of a tensor, and a hint; the net stays unchanged."""
    module = net()
    checkpoint.write(tmp_path, checkpoint.gather(module, {}, {}), {"step": 1})
    other = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    for load in (checkpoint.load_weights, lambda folder, module: checkpoint.read(folder, module, {})):
        with pytest.raises(DataError, match=r"8 tensors .*: 0\.weight is \(6, 4\), not \(7, 4\)") as caught:
            load(tmp_path, other)  # type: ignore[operator]
        assert "\n" not in caught.value.message
        assert "retrain it" in caught.value.hint
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_nothing_is_pickled(tmp_path: Path) -> None:
    """safetensors and JSON only."""
    model = net()
    checkpoint.write(tmp_path, checkpoint.gather(model, {}, optimizers(model)), {"step": 0})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ema.safetensors", "optimizer.safetensors", "state.json", "weights.safetensors",
    ]  # fmt: skip
    assert set(load_file(tmp_path / "weights.safetensors")) == set(model.state_dict())
