"""What a run draws, encodes and decodes."""

import io
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Union

import numpy as np

from genflow.api.datasets import Row
from genflow.api.pictures import Pictures, Samples
from genflow.data import images
from genflow.errors import DataError, UsageError
from genflow.recipe.aliases import our_name
from genflow.specs import DataSpec
from genflow.storage.artifact import Artifact
from genflow.storage.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

    from genflow.sampling.engine import Engine

Label = str | int | Sequence[str | int]  # a class by name or number, `all`, `none`, or one of each sample
Picture = Union[str, Path, "Image", Row]  # a file, an image of Pillow, or a row of a dataset
DEFAULT_COUNT = 16


class Drawing:
    """The part of a run that draws; see `genflow.api.run.Run`.

    Args:
        artifact: the run.
        store: holds it.
    """

    def __init__(self, artifact: Artifact, store: Store) -> None:
        self.artifact, self.store = artifact, store
        self._guide = ""  # the run that guides the engine now

    @property
    def id(self) -> str:
        """The id of the run."""
        return self.artifact.id

    @cached_property
    def engine(self) -> "Engine":
        """The engine that draws, with the averaged weights."""
        from genflow.sampling.engine import Engine
        from genflow.system import devices

        return Engine.load(self.artifact, device=devices.choose())

    @property
    def facts(self) -> DataSpec:
        """The specification of what it draws."""
        from genflow.sampling.engine import picture_facts

        return picture_facts(self.artifact)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that it can draw, in their order."""
        return self.facts.class_names

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
        guide: "str | Self" = "",
        **options: Any,
    ) -> Samples:
        """Draw samples; the same seed is the same sample, and the one that `genflow sample` writes.

        Args:
            n: number of samples; None: 16, or one for each prompt or label.
            label: a class by name or number; `all`: each class in turn; `none`: no class; a list: one for each sample.
            prompts: for a run that was trained with captions: one for all samples, or several that take turns; None:
                captions of held-out pictures.
            negative: what samples with guidance move away from.
            seed: of the first sample; sample i uses seed + i.
            steps, sampler, guidance: of sampling; by default those of the recipe.
            guide: autoguidance: a weaker run for the guided prediction.
            options: further options of the family's sampler; names of other tools, such as `num_inference_steps`, are
                understood.

        Raises:
            UsageError: an option or a class is unknown, or the run draws no samples.
        """
        from genflow.commands import prompting
        from genflow.sampling.autoencoders import require_sampler

        require_sampler(self.artifact)
        asked = [prompts] if isinstance(prompts, str) else list(prompts or ())
        labels = None if isinstance(label, str | int) else label
        n = n if n is not None else len(labels or ()) or (len(asked) if len(asked) > 1 else DEFAULT_COUNT)
        if n < 1:
            raise UsageError(f"n must be 1 or more, not {n}")
        given = {"steps": steps, "sampler": sampler or None, "guidance": guidance}
        options = {our_name(name): value for name, value in options.items()}
        options |= {key: value for key, value in given.items() if value is not None}
        kind = str(label) if labels is None else "one of each"
        prompting.check(self.engine, asked, negative, kind, {**self.engine.options, **options})
        words, _, columns = prompting.arrange(self.engine, asked, n)
        self._guide_by(guide)
        classes = None if self.engine.prompts else self._labels(label, n)
        seeds = list(range(seed, seed + n))
        drawn = self.engine.draw(seeds, classes, prompts=words, negative=negative, **options)
        return Samples(drawn.images, self.engine.facts, drawn.labels, {"seed": seeds}, columns, run=self.id,
                       nfe=drawn.nfe, seconds=drawn.seconds, prompts=words or ())  # fmt: skip

    def interpolate(
        self,
        n: int | None = None,
        *,
        between: tuple[Picture, Picture] | None = None,
        label: str | int = "all",
        seed: int = 0,
        prompts: str | Sequence[str] = (),
        negative: str = "",
        **options: Any,
    ) -> Samples:
        """Rows that change step by step from one sample, or one picture, to another.

        A family with an encoder interpolates between held-out pictures, which are both ends of a row; other families
        between the noises of two seeds. Several prompts give a row from each to the next, with the noise of one seed.

        Args:
            n: number of pictures: 3 to 8, or a multiple of 8; None: eight rows of 8, or one row between two pictures.
            between: two pictures of your own, for a family with an encoder.
            label: as in `sample`.
            seed: of the first row.
            prompts: of a run that reads captions.
            negative: what guidance leads away from.
            options: of the sampler, for a family without an encoder, or with prompts.

        Raises:
            UsageError: the family cannot do that, or n does not fill rows.
            DataError: a picture cannot be read, or the dataset is not in the store.
        """
        from genflow.commands import prompting
        from genflow.sampling import interpolation

        self._guide_by("")
        options = {our_name(name): value for name, value in options.items()}
        asked = [prompts] if isinstance(prompts, str) else list(prompts)
        prompting.check(self.engine, asked, negative, str(label), {**self.engine.options, **options})
        ends = None if between is None else self.records(between)
        walk = interpolation.draw(
            self.store, self.artifact, self.engine, n, seed, options, str(label), ends, prompts=asked, negative=negative
        )
        drawn = walk.drawn
        return Samples(drawn.images, self.engine.facts, drawn.labels, walk.index, walk.columns,
                       run=self.id, nfe=drawn.nfe, seconds=drawn.seconds)  # fmt: skip

    def encode(
        self, pictures: Pictures | np.ndarray | Picture | Sequence[Picture], label: Label = "none", seed: int = 0
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
        self._guide_by("")
        records = self.records(pictures)
        n = len(records)
        return self.engine.encode(records, self._labels(label, n), range(seed, seed + n))

    def decode(self, codes: np.ndarray, label: Label = "none", seed: int = 0) -> Samples:
        """The pictures of codes that `encode` returned; the other arguments are those of `encode`."""
        self._guide_by("")
        codes, n = np.asarray(codes, np.float32), len(codes)
        seeds = list(range(seed, seed + n))
        drawn = self.engine.decode(codes, self._labels(label, n), seeds)
        return Samples(drawn.images, self.engine.facts, drawn.labels, {"seed": seeds}, run=self.id, nfe=drawn.nfe,
                       seconds=drawn.seconds)  # fmt: skip

    def records(self, pictures: Any) -> np.ndarray:
        """Pictures in the form of the dataset's records: (N, H, W, C) uint8 grey levels 0..K-1, or points.

        Raises:
            DataError: a picture cannot be read.
            UsageError: an array does not have the shape of the data.
        """
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

    def _guide_by(self, guide: "str | Self") -> None:
        """Set the run that guides the engine; a new engine forgets it."""
        from genflow.commands.references import find_run

        found = guide.artifact if isinstance(guide, Drawing) else find_run(self.store, guide) if guide else None
        if (id := found.id if found else "") == self._guide:
            return
        self.__dict__.pop("engine", None)
        self._guide = ""
        if found:
            from genflow.sampling.engine import Engine

            self.engine.family.guided_by(Engine.load(found, device=self.engine.device).family)
        self._guide = id


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
