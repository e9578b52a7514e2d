"""The engine: a sample is a function of its seed, and an invalid request gives a one-line error."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small import FACTS, family, recipe, shaken

from genflow.errors import DataError, UsageError
from genflow.maths.rng import SampleRng
from genflow.nets.convolutions import Pointwise
from genflow.nets.rows import fit, restored_threads
from genflow.recipe.files import dump
from genflow.sampling.engine import Engine
from genflow.storage.store import Artifact, Store
from genflow.training import checkpoint, checkpoint_folders


def engine(data: str = "grey", kind: str = "flow_matching", **sample: object) -> Engine:
    chosen = recipe(kind, FACTS[data], "mlp", sample={"steps": 4, **sample} if kind != "vae" else sample)
    return Engine(shaken(family(kind, FACTS[data], "mlp")), chosen, step=7)


@pytest.fixture(scope="module")
def grey() -> Engine:
    return engine()


def test_images_are_grey_levels(grey: Engine) -> None:
    """(N, H, W, C) bytes 0..K-1, with the requested labels and the cost."""
    drawn = grey.draw(range(5), labels=[0, 9, 10, 3, 3])
    assert drawn.images.shape == (5, 8, 8, 1)
    assert drawn.images.dtype == np.uint8
    assert drawn.images.max() <= 16
    assert drawn.labels.tolist() == [0, 9, 10, 3, 3]
    assert drawn.nfe == 4
    assert drawn.seconds > 0


def test_points_are_in_their_own_coordinates() -> None:
    """(N, 1, 1, 2) floats, scaled back to the data's coordinates."""
    one = engine("points")
    drawn = one.draw(range(4))
    rng_free = one.draw(range(4), steps=4).images
    assert drawn.images.shape == (4, 1, 1, 2)
    assert drawn.images.dtype == np.float32
    assert np.array_equal(drawn.images, rng_free)
    x = one.to_x(drawn.images)
    np.testing.assert_allclose(x.numpy().transpose(0, 2, 3, 1) * 1.5, drawn.images, rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_batch_changes_no_image(grey: Engine, batch: int) -> None:
    """In any batch size and order a seed gives the same image to the bit, because short batches are padded."""
    whole = grey.draw(range(40), labels=[i % 10 for i in range(40)]).images
    parts = grey.draw(range(10), labels=list(range(10)), batch=batch).images
    turned = grey.draw(range(9, -1, -1), labels=list(range(9, -1, -1)), batch=batch).images[::-1]
    assert np.array_equal(parts, whole[:10])
    assert np.array_equal(turned, whole[:10])
    assert len({image.tobytes() for image in whole}) == 40


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores torch's number of threads."""
    with restored_threads():
        yield


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("kind", "net"),
    [("flow_matching", net) for net in ("mlp", "unet", "dit", "unet2d")]
    + [(kind, "auto") for kind in ("gan", "vae", "ddpm", "normalizing_flow")],
)
def test_a_sample_has_the_same_bytes_alone_and_in_company_on_any_number_of_threads(kind: str, net: str) -> None:
    """For each family and net, before numbers are rounded to grey levels."""
    model = shaken(family(kind, FACTS["grey"], net))
    unit = Engine(model, recipe(kind, FACTS["grey"], net)).unit
    options = {"steps": 1} if kind in ("flow_matching", "ddpm") else {}
    cases = {fit(rows, unit, allowed) for allowed in (1, 2, 4) for rows in (1, 28)}

    def drawn(rows: int, number: int) -> torch.Tensor:
        torch.set_num_threads(number)
        rng = SampleRng(range(rows), "sample")
        noise = rng.normal((rows, *model.noise_shape))
        return model.sample(noise, torch.arange(rows) % 10, rng, **options).x  # type: ignore[no-any-return]

    whole = drawn(max(rows for rows, _ in cases), 1)
    assert [case for case in cases if not torch.equal(drawn(*case), whole[: case[0]])] == []


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_sample_and_is_restored(grey: Engine) -> None:
    """Three and eight threads, whose kernels round differently, are not used to draw."""
    torch.set_num_threads(1)
    whole, used = grey.draw(range(40)).images, set()
    for number in (3, 8):
        torch.set_num_threads(number)
        for rows in (1, 7, 28):
            images = grey.draw(range(rows), on_step=lambda: used.add(torch.get_num_threads())).images
            assert np.array_equal(images, whole[:rows]), (number, rows)
            assert torch.get_num_threads() == number
    assert used == {1, 2, 4}


@pytest.mark.parametrize(
    ("rows", "unit", "allowed", "expected"),
    [
        (1, 1, 1, (1, 1)), (1, 2, 1, (2, 1)), (1, 2, 2, (2, 1)), (3, 2, 2, (4, 2)), (6, 1, 2, (8, 2)),
        (1, 16, 2, (16, 2)), (1, 2, 4, (2, 1)), (28, 2, 4, (32, 4)), (48, 2, 3, (48, 2)),
        (80, 2, 4, (128, 4)), (64, 2, 64, (64, 4)),
    ],
)  # fmt: skip
def test_rows_and_threads_of_a_batch(rows: int, unit: int, allowed: int, expected: tuple[int, int]) -> None:
    """A batch is filled up to rows that round as on one thread, and takes the number of threads that is quickest."""
    assert fit(rows, unit, allowed) == expected


@pytest.mark.parametrize("side", [4, 28])
def test_a_convolution_of_one_pixel_is_the_same_in_every_batch(side: int) -> None:
    """Torch's own rounds a picture differently in batches of fewer than 16 pictures."""
    torch.manual_seed(0)
    layer, x = Pointwise(64, 32, 1), torch.randn(64, 64, side, side)
    with torch.no_grad():
        whole = layer(x)
        assert all(torch.equal(layer(x[:rows]), whole[:rows]) for rows in (1, 4, 8, 12, 16))
    torch.testing.assert_close(layer(x), whole)


def test_toward_interpolates_from_seed_to_seed(grey: Engine) -> None:
    """At share 0 it is the first seed's sample, at 1 the second seed's, to the bit."""
    walk = grey.draw([1] * 3, toward=[(2, 0.0), (2, 0.5), (2, 1.0)]).images
    assert np.array_equal(walk[[0, 2]], grey.draw([1, 2]).images)
    assert not np.array_equal(walk[1], walk[0])


def test_every_evaluation_can_be_watched(grey: Engine) -> None:
    """The watcher gets x_t and the estimate of x_0, at last the sample; its exceptions end the sampling."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    drawn = grey.draw([3], steps=5, sampler="euler", watch=lambda x, guess: seen.append((x, guess)))
    assert len(seen) == drawn.nfe == 5
    levels = ((seen[-1][1][0] + 1) * 8.5 - 0.5).round().clamp(0, 16).permute(1, 2, 0)
    assert np.array_equal(levels.numpy(), drawn.images[0])

    def stop(x: torch.Tensor, guess: torch.Tensor) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        grey.draw([3], watch=stop)
    assert np.array_equal(grey.draw([3], steps=5, sampler="euler").images, drawn.images)


def test_any_integer_is_a_seed(grey: Engine) -> None:
    """Negative and huge integers, too; no seeds give no images."""
    drawn = grey.draw([-1, 2**70, 0, 0])
    assert np.array_equal(drawn.images[2], drawn.images[3])
    assert not np.array_equal(drawn.images[0], drawn.images[1])
    assert grey.draw([]).images.shape == (0, 8, 8, 1)


def test_options_override_the_recipes(grey: Engine) -> None:
    """They change one request; the engine's options stay."""
    assert grey.draw([1], steps=9, sampler="euler").nfe == 9
    assert grey.draw([1], guidance=2.0, steps=3).nfe == 6
    assert grey.draw([1]).nfe == 4


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([11], {}, "label 11 is out of range"),
        ([-1], {}, "label -1 is out of range"),
        ([1, 2], {}, "2 labels for 1 seeds"),
        (None, {"stepz": 3}, r"unknown key stepz \(did you mean steps\?\)"),
        (None, {"steps": 0}, "sample.steps: must be at least 1, not 0"),
        (None, {"sampler": "magic"}, "sample.sampler: must be 'ddpm'"),
        (None, {"guidance": float("nan")}, "sample.guidance: must be a finite number"),
    ],
)
def test_invalid_requests_give_one_line(grey: Engine, labels: list[int] | None, options: dict, message: str) -> None:
    """It has the field, the allowed values and the given value."""
    with pytest.raises(UsageError, match=message) as caught:
        grey.draw([0], labels, **options)
    assert "\n" not in caught.value.message


def test_a_model_without_classes_rejects_labels_and_guidance() -> None:
    """Both give a UsageError; label 0, which means no label, is allowed."""
    one = engine("colour")
    with pytest.raises(UsageError, match="label 1 is out of range") as caught:
        one.draw([0], [1])
    assert caught.value.hint == "this model has no classes"
    with pytest.raises(UsageError, match="guidance needs data with labels"):
        one.draw([0], guidance=2.0)
    assert one.draw([0], [0]).images.shape == (1, 8, 8, 3)


def test_an_engine_does_not_train() -> None:
    """Its family is in eval mode without gradients; with frozen=False a family in training stays unchanged."""
    made = engine()
    assert not made.family.training
    assert not any(p.requires_grad for p in made.family.parameters())
    model = family("flow_matching", FACTS["grey"], "mlp").train()
    watching = Engine(model, made.recipe, frozen=False)
    watching.draw([0])
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.fixture
def run(store: Store) -> Artifact:
    """A finished run's folder, with an averaged checkpoint of zeros."""
    model, folder = family("flow_matching", FACTS["grey"], "mlp"), store.folder("runs", "r-1")
    folder.mkdir(parents=True)
    text = dump(recipe("flow_matching", FACTS["grey"], "mlp", sample={"steps": 2}))
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    (folder / "facts.json").write_text(json.dumps(FACTS["grey"].to_json()), encoding="utf-8")
    average = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    checkpoints = checkpoint_folders.Checkpoints(folder / "checkpoints")
    checkpoints.save(5, lambda into: checkpoint.write(into, checkpoint.gather(model, average, {}), {"step": 5}))
    return store.finalize("runs", "r-1")


def test_a_finished_run_is_loaded(run: Artifact) -> None:
    """With its averaged or its raw weights, its step and its sampling options."""
    made = Engine.load(run)
    assert (made.step, made.options["steps"], made.facts) == (5, 2, FACTS["grey"])
    assert not any(p.any() for p in made.family.parameters())
    assert any(p.any() for p in Engine.load(run, average=False).family.parameters())


@pytest.mark.parametrize("harm", ["remove", "flip"])
@pytest.mark.parametrize("name", ["ema.safetensors", "weights.safetensors", "state.json", "recipe.yaml", "facts.json"])
def test_a_finished_run_is_read_as_its_manifest_says(run: Artifact, name: str, harm: str) -> None:
    """A file that differs is an error with its name; an older checkpoint is never used in its place."""
    newest = Path(run.path / "checkpoints" / "step_00000005")
    older = newest.with_name("step_00000001")
    shutil.copytree(newest, older)
    store, manifest = Store(run.folder.parents[1]), run.manifest
    run = store.finalize("runs", run.id, parents=manifest["parents"], meta=manifest["meta"])
    file = newest / name if (newest / name).exists() else run.path / name
    file.unlink() if harm == "remove" else file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=f"{file} is {'missing' if harm == 'remove' else 'corrupt'}") as caught:
        Engine.load(run)
    assert caught.value.code == 6
    if file.parent == newest:
        assert caught.value.hint.startswith(f"rm {run.path / 'manifest.json'}, then run the same genflow train again")


@pytest.mark.parametrize("section", ["family", "net"])
def test_a_run_of_another_version_is_one_clear_line(run: Artifact, section: str, tmp_path: Path) -> None:
    """An option of its recipe that this version lacks is named with the file."""
    folder = shutil.copytree(run.path, tmp_path / "copy", ignore=shutil.ignore_patterns("manifest.json"))
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    (folder / "recipe.yaml").write_text(text.replace(f"{section}:\n", f"{section}:\n  former: 3\n"), encoding="utf-8")
    with pytest.raises(DataError, match=f"{folder / 'recipe.yaml'}: {section}: unknown key former") as caught:
        Engine.from_folder(folder, folder / "checkpoints" / "step_00000005")
    assert "\n" not in caught.value.message
    assert caught.value.hint.startswith("draw with the version of genflow that trained it")


def test_a_missing_package_keeps_its_own_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run whose net needs diffusers names the package, not another version of genflow."""
    text = dump(recipe("flow_matching", FACTS["grey"], "unet2d", sample={"steps": 2}))
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "facts.json").write_text(json.dumps(FACTS["grey"].to_json()), encoding="utf-8")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match="net unet2d needs diffusers") as caught:
        Engine.from_folder(tmp_path)
    assert caught.value.hint.startswith("pip install")


def test_deterministic_kernels_see_whole_batches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a kernel, and with it the order of a sum, is chosen by the size of the batch."""
    engine = Engine(family("flow_matching", FACTS["points"]), recipe("flow_matching", FACTS["points"]))
    seen, sample = [], engine.family.sample

    def watched(noise: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(len(noise))
        return sample(noise, *arguments, **options)

    monkeypatch.setattr(engine.family, "sample", watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    expected = engine.draw(range(9), batch=8).images
    monkeypatch.setenv("GENFLOW_DETERMINISTIC", "1")
    assert np.allclose(engine.draw(range(9), batch=8).images, expected, atol=1e-5)
    assert seen == [8, 1, 8, 8]
