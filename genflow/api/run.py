"""A trained run: samples, interpolations, codes, its history, its recipe and its quality."""

import io
import os
from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from genflow.api.pictures import Pictures, Samples
from genflow.api.tables import Table, picture_html
from genflow.commands import listing
from genflow.data import images
from genflow.errors import DataError, UsageError
from genflow.recipe.files import read
from genflow.recipe.schema import Recipe, parse
from genflow.specs import DataSpec
from genflow.storage.artifact import Artifact
from genflow.storage.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

    from genflow.api.datasets import Data, Row
    from genflow.api.results import Comparison
    from genflow.sampling.engine import Engine

Label = str | int | Sequence[str | int]  # a class by name or number, `all`, `none`, or one of each sample
Picture = Union[str, Path, "Image", "Row"]  # a file, an image of Pillow, or a row of a dataset
DEFAULT_COUNT = 16


class Run:
    """A finished run of the store.

    Args:
        artifact: the run.
        store: holds it.
    """

    def __init__(self, artifact: Artifact, store: Store) -> None:
        self.artifact, self.store = artifact, store
        self._guide = ""  # the run that guides the engine now

    id: str = property(lambda self: self.artifact.id)  # type: ignore[assignment]
    name: str = property(lambda self: self.artifact.name)  # type: ignore[assignment]
    path: Path = property(lambda self: self.artifact.path)  # type: ignore[assignment]
    family: str = property(lambda self: str(self.artifact.meta.get("family", "")))  # type: ignore[assignment]

    @property
    def meta(self) -> dict[str, Any]:
        """What the manifest says of the training: steps, images, seconds, parameters and so on."""
        return dict(self.artifact.meta)

    @cached_property
    def recipe(self) -> Recipe:
        """Every setting, with its default where none was given; `print(run.recipe)` prints YAML."""
        return parse(read(self.artifact.file("recipe.yaml")))

    @property
    def data(self) -> "Data":
        """The dataset that it was trained on; of a run on latents, the pictures.

        Raises:
            DataError: the dataset is not in the store.
        """
        from genflow.api.datasets import Data

        dataset = str(self.artifact.meta.get("dataset", ""))
        if (found := self.store.get("datasets", dataset)) is None:
            raise DataError(f"the dataset {dataset} of {self.id} is not in the store", "prepare it again")
        return Data(found)

    @cached_property
    def engine(self) -> "Engine":
        """The engine that draws, with the averaged weights."""
        from genflow.sampling.engine import Engine

        return Engine.load(self.artifact)

    @property
    def facts(self) -> DataSpec:
        """The specification of what it draws."""
        from genflow.sampling.engine import picture_facts

        return picture_facts(self.artifact)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that it can draw, in their order."""
        return self.facts.class_names

    @property
    def history(self) -> Table:
        """The measurements of the training: step, loss, learning rate and so on; a notebook shows the loss as a chart.

        Raises:
            DataError: the store has no journal of the run.
        """
        from genflow.evaluation.report import loss_curves
        from genflow.tracking.journal import curves, journal_path

        path = journal_path(self.store.root, self.id)
        if not self.store.available(path):
            raise DataError(f"the journal of {self.id} is not in the store: {path} is missing")
        found = curves(path)
        steps = sorted({step for pairs in found.values() for step, _ in pairs})
        columns: dict[str, list[Any]] = {"step": list(steps)}
        for name, pairs in found.items():
            values = dict(pairs)
            columns[name.removeprefix("train/")] = [values.get(step) for step in steps]
        losses = {name: pairs for name, pairs in found.items() if name.startswith("train/loss")}
        return Table(columns, above=_chart(loss_curves.chart(losses, self.name, 0, self.recipe.train.batch)))

    def sample(
        self,
        n: int | None = None,
        *,
        label: Label = "all",
        prompts: str | Sequence[str] | None = None,
        negative: str = "",
        seed: int = 0,
        steps: int | None = None,
        sampler: str = "",
        guidance: float | None = None,
        guide: "str | Run" = "",
        **options: Any,
    ) -> Samples:
        """Draw samples; the same seed is the same sample, and the one that `genflow sample` writes.

        Args:
            n: number of samples; None: 16, or one for each prompt or label.
            label: a class by name or number; `all`: each class in turn; `none`: no class; a list: one for each sample.
            prompts: for a run that was trained with captions: one for all samples, or one for each.
            negative: what samples with guidance move away from.
            seed: of the first sample; sample i uses seed + i.
            steps, sampler, guidance: of sampling; by default those of the recipe.
            guide: autoguidance: a weaker run for the guided prediction.
            options: further options of the family's sampler.

        Raises:
            UsageError: an option or a class is unknown, or the run draws no samples.
        """
        from genflow.sampling.autoencoders import require_sampler

        require_sampler(self.artifact)
        several = next((v for v in (prompts, label) if v is not None and not isinstance(v, str | int)), None)
        n = n if n is not None else len(several) if several is not None else DEFAULT_COUNT
        if n < 1:
            raise UsageError(f"n must be 1 or more, not {n}")
        given = {"steps": steps, "sampler": sampler or None, "guidance": guidance}
        options |= {key: value for key, value in given.items() if value is not None}
        asked = [prompts] * n if isinstance(prompts, str) else list(prompts or ())
        if prompts is not None and len(asked) != n:
            raise UsageError(f"{len(asked)} prompts for {n} samples")
        if prompts is not None:
            options |= {"prompts": asked, "negative": negative}
        self._guide_by(guide)
        drawn = self.engine.draw(range(seed, seed + n), self._labels(label, n), **options)
        return Samples(drawn.images, self.engine.facts, drawn.labels, {"seed": list(range(seed, seed + n))},
                       run=self.id, nfe=drawn.nfe, seconds=drawn.seconds, prompts=asked)  # fmt: skip

    def interpolate(
        self,
        n: int | None = None,
        *,
        between: tuple[Picture, Picture] | None = None,
        label: str | int = "all",
        seed: int = 0,
        **options: Any,
    ) -> Samples:
        """Rows that change step by step from one sample, or one picture, to another.

        A family with an encoder interpolates between held-out pictures, which are both ends of a row; other families
        between the noises of two seeds.

        Args:
            n: number of pictures: 3 to 8, or a multiple of 8; None: eight rows of 8, or one row between two pictures.
            between: two pictures of your own, for a family with an encoder.
            label: as in `sample`.
            seed: of the first row.
            options: of the sampler, for a family without an encoder.

        Raises:
            UsageError: the family cannot do that, or n does not fill rows.
            DataError: a picture cannot be read, or the dataset is not in the store.
        """
        from genflow.sampling import interpolation

        ends = None if between is None else self.records(between)
        walk = interpolation.draw(
            self.engine, self.store, self.artifact, n, seed=seed, label=str(label), options=options, between=ends
        )
        drawn = walk.drawn
        return Samples(drawn.images, self.engine.facts, drawn.labels, walk.index, walk.columns,
                       run=self.id, nfe=drawn.nfe, seconds=drawn.seconds)  # fmt: skip

    def encode(
        self, pictures: "Pictures | np.ndarray | Picture | Sequence[Picture]", label: Label = "none", seed: int = 0
    ) -> np.ndarray:
        """The codes of pictures; `decode` turns them back into pictures.

        Args:
            pictures: samples, rows of a dataset, files, images of Pillow, or an array (N, H, W, C) of 0..255. Files and
                images are resized and cropped as the dataset was.
            label: their class, or one of each; see `sample`.
            seed: of the random draws of encoding.

        Returns:
            (N, ...) float32, in the shape of the noise or of the latent space.

        Raises:
            UsageError: the family has no encoder.
            DataError: a picture cannot be read.
        """
        records = self.records(pictures)
        n = len(records)
        return self.engine.encode(records, self._labels(label, n), range(seed, seed + n))

    def decode(self, codes: np.ndarray, label: Label = "none", seed: int = 0) -> Samples:
        """The pictures of codes that `encode` returned; the other arguments are those of `encode`."""
        codes, n = np.asarray(codes, np.float32), len(codes)
        seeds = list(range(seed, seed + n))
        drawn = self.engine.decode(codes, self._labels(label, n), seeds)
        return Samples(drawn.images, self.engine.facts, drawn.labels, {"seed": seeds}, run=self.id, nfe=drawn.nfe,
                       seconds=drawn.seconds)  # fmt: skip

    def evaluate(self, samples: int | None = None, **options: Any) -> "Comparison":
        """Measure it, as `genflow.evaluate` does."""
        from genflow.api.jobs import evaluate

        return evaluate(self, samples=samples, store=self.store, **options)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The documents of its evaluations, oldest first; docs/python.md names the main keys."""
        from genflow.evaluation.results import documents

        return [document for _, document in documents(self.store) if document["run"] == self.id]

    @property
    def headline(self) -> str:
        """One line: fd and its multiple of the floor, bits/dim, steps and minutes."""
        return listing.headline(self._row)

    @property
    def _row(self) -> listing.RunRow:
        return next(row for row in listing.runs(self.store, [self.artifact]) if row.run == self.id)

    def records(self, pictures: Any) -> np.ndarray:
        """Pictures in the form of the dataset's records: (N, H, W, C) uint8 grey levels 0..K-1, or points.

        Raises:
            DataError: a picture cannot be read.
            UsageError: an array does not have the shape of the data.
        """
        from genflow.api.datasets import Row

        facts = self.facts
        if isinstance(pictures, Row):
            pictures = pictures.pictures
        if isinstance(pictures, Pictures):
            if (pictures.facts.shape, pictures.facts.levels) == (facts.shape, facts.levels):
                return pictures.records
            return np.stack([_record(image, facts) for image in pictures])
        if isinstance(pictures, np.ndarray):
            C, H, W = facts.shape
            if pictures.shape[1:] != (H, W, C) or (pictures.dtype != np.uint8 and not facts.is_points):
                form = f"(N, {H}, {W}, {C}) {'float32' if facts.is_points else 'uint8, 0..255'}"
                raise UsageError(f"an array of {pictures.dtype} {pictures.shape} is not {form}")
            if facts.is_points or facts.levels == 256:
                return pictures
            return np.rint(pictures * (((facts.levels or 256) - 1) / 255)).astype(np.uint8)
        if isinstance(pictures, str | os.PathLike) or hasattr(pictures, "getbands"):
            pictures = [pictures]
        return np.concatenate([
            self.records(picture) if isinstance(picture, Row | Pictures) else _record(picture, facts)[None]
            for picture in pictures
        ])  # fmt: skip

    def _labels(self, label: Label, n: int) -> list[int] | None:
        from genflow.sampling.engine import labels_for

        if isinstance(label, str | int):
            return labels_for(str(label), n, self.engine.facts)
        if len(label) != n:
            raise UsageError(f"{len(label)} labels for {n} pictures")
        none = self.engine.facts.classes
        return [(labels_for(str(one), 1, self.engine.facts) or [none])[0] for one in label]

    def _guide_by(self, guide: "str | Run") -> None:
        """Set the run that guides the engine; a new engine forgets it."""
        from genflow.commands.references import find_run

        found = guide.artifact if isinstance(guide, Run) else find_run(self.store, guide) if guide else None
        if (id := found.id if found else "") == self._guide:
            return
        self.__dict__.pop("engine", None)
        self._guide = id
        if found:
            from genflow.sampling.engine import Engine

            self.engine.family.guided_by(Engine.load(found).family)

    def _repr_html_(self) -> str:
        picture = self._row.picture
        grid = picture_html(picture.read_bytes(), self.name, "32em") if picture and picture.is_file() else ""
        about = f"{escape(self.family)} on {escape(str(self.artifact.meta.get('dataset', '')))}"
        return f"<p><b>{escape(self.id)}</b> · {about}<br/>{escape(self.headline)}</p>{grid}"

    def __repr__(self) -> str:
        return f"<{self.id}: {self.family} on {self.artifact.meta.get('dataset', '')}; {self.headline}>"


def _record(picture: Any, facts: DataSpec) -> np.ndarray:
    """A file or an image of Pillow as a record of a dataset.

    Raises:
        DataError: it cannot be read.
        UsageError: the data is points.
    """
    if facts.is_points:
        raise UsageError("this run's data is points of the plane, not pictures", "pass an array (N, 1, 1, 2)")
    try:
        with images.strict_pillow_warnings():
            if hasattr(picture, "getbands"):  # an image of Pillow
                file = io.BytesIO()
                picture.save(file, "PNG")
                return images.decode_for_dataset(io.BytesIO(file.getvalue()), facts)
            with images.open_image_file(str(Path(picture).expanduser())) as opened:
                return images.decode_for_dataset(opened, facts)
    except images.UnreadableImage as error:
        name = "the image" if hasattr(picture, "getbands") else str(picture)
        raise DataError(f"{name}: {error}", "use PNG, JPEG, WebP, BMP, TIFF or GIF") from error


def _chart(svg: str) -> str:
    """A chart of the report outside of its page, whose style sheet has the colours."""
    if not svg:
        return ""
    style = (
        ".genflow-chart{max-width:36em;--ink:#1c2126;--soft:#6b7580;--line:#8885;--page:#fff;--c0:#0072b2;--c1:#d55e00;"
        "--c2:#009e73;--c3:#b5548c}.genflow-chart text{font:12px sans-serif;fill:var(--soft)}"
        ".genflow-chart .grid{stroke:var(--line)}.genflow-chart .line{stroke:var(--c);stroke-width:2.2;fill:none}"
    )
    return f'<style>{style}</style><div class="genflow-chart">{svg}</div>'
