"""Specifications as values: the properties of a dataset and its captions, and what a family needs of a net."""

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

RAW = "raw"  # the encoding of shards that store pixels
LATENTS_FROM = {"colour": 32, "grey": 48}  # pixels a side (docs/decisions/0021-latents-by-default.md)


@dataclass(frozen=True)
class TextSpec:
    """The form of captions as a text encoder embeds them.

    Args:
        tokens: D, the size of a token's embedding.
        pooled: P, the size of the vector that stands for the whole caption.
        length: L, the tokens that every caption is padded to.
        encoder: the id of the text encoder; equal ids embed a caption alike.
    """

    tokens: int
    pooled: int
    length: int
    encoder: str = ""


@dataclass(frozen=True)
class DataSpec:
    """The properties of what a family learns: pictures, points of the plane, or latents of pictures.

    Pictures are stored as grey levels k in 0..K-1; training uses the bin centres x = (2k + 1)/K - 1 in (-1, 1).
    Points of the plane (the 2-D densities) have no levels; training uses x = point / scale.
    Latents are what an autoencoder's encoder makes of pictures; each channel has mean 0 and deviation 1.

    Args:
        shape: (C, H, W); (2, 1, 1) for points of the plane.
        levels: K, the number of grey levels in the data; None for points and latents.
        class_names: the names of the labels in order; empty if the data has no labels.
        splits: rows per split, such as {"train": 1438, "val": 359}.
        mean: mean of x over the training split.
        sigma_data: standard deviation of x over the training split (EDM's sigma_data).
        scale: the divisor in x = point / scale; 1 for pictures.
        class_counts: rows per class in the training split.
        captions: whether the rows have captions; a row may have none or several.
        fingerprint: SHA-256 of the bytes of the shards; equal data has equal fingerprints.
        strip: length of the strips from which training crops; 0: the data has none.
        text: the form of the captions that condition a net; None: the condition is the label.
        autoencoder: the id of the autoencoder that turns these latents into pictures; empty for pictures and points.
        crop: how another picture that is not square gets the data's form: "center", or "none", which pads it.
        bits: the bits of the values above 255 in another picture.
        encoding: how the shards store pictures: "raw", or as files of "png", "webp" or "jpeg".
    """

    shape: tuple[int, int, int]
    levels: int | None
    class_names: tuple[str, ...] = ()
    splits: dict[str, int] = field(default_factory=dict)
    mean: float = 0.0
    sigma_data: float = 0.5
    scale: float = 1.0
    class_counts: tuple[int, ...] = ()
    fingerprint: str = ""
    captions: bool = False
    strip: int = 0
    text: TextSpec | None = None
    autoencoder: str = ""
    crop: str = "center"
    bits: int = 16
    encoding: str = RAW

    @property
    def classes(self) -> int:
        """The number of classes; 0 if the data has no labels."""
        return len(self.class_names)

    @property
    def dims(self) -> int:
        """D, the numbers in one sample: C H W."""
        return math.prod(self.shape)

    @property
    def is_points(self) -> bool:
        """Whether the data is points of the plane."""
        return self.levels is None and not self.is_latents

    @property
    def is_latents(self) -> bool:
        """Whether the data is latents of pictures."""
        return bool(self.autoencoder)

    @property
    def is_encoded(self) -> bool:
        """Whether the shards store pictures as files, which are decoded when rows are read."""
        return self.encoding != RAW

    @property
    def bounded(self) -> bool:
        """Whether every x is in (-1, 1), as of pictures; points and latents have no bounds."""
        return self.levels is not None

    @property
    def is_large(self) -> bool:
        """Whether these are pictures that are learned as latents by default."""
        side = min(self.shape[1:])
        return self.levels is not None and side >= LATENTS_FROM[self.colour] and side % 2 == 0

    @property
    def colour(self) -> str:
        """`colour` or `grey`, by the number of channels."""
        return "grey" if self.shape[0] == 1 else "colour"

    def of_latents(self, shape: tuple[int, int, int], autoencoder: str, times: int = 1) -> "DataSpec":
        """The specification of latents of these pictures, without a fingerprint.

        Args:
            shape: of the latents of one picture.
            autoencoder: its id.
            times: latents of each training picture; only the training split has latents.
        """
        return replace(
            self, shape=shape, levels=None, mean=0.0, sigma_data=1.0, scale=1.0, strip=0, fingerprint="",
            encoding=RAW, splits={"train": times * self.splits.get("train", 0)}, autoencoder=autoencoder,
            class_counts=tuple(times * count for count in self.class_counts),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any] | str) -> "DataSpec":
        """Read the result of `to_json`, as an object or as text; unknown fields of a later version are ignored."""
        values = json.loads(document) if isinstance(document, str) else dict(document)
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in values.items() if key in known}
        for key in ("shape", "class_names", "class_counts"):
            if key in values:
                values[key] = tuple(values[key])
        if values.get("text") is not None:
            form = {f.name for f in fields(TextSpec)}
            values["text"] = TextSpec(**{key: value for key, value in values["text"].items() if key in form})
        return cls(**values)


@dataclass(frozen=True)
class NetSpec:
    """The requirements of a family on one net, also called a port.

    Args:
        inputs: shape of the input, without the batch dimension.
        outputs: shape of the output, without the batch dimension.
        time: whether the net has a time input t (B,), on the scale of 0..1000.
        second_time: whether it also has an input r (B,) for the end of a step, on the same scale: net(x, t, label, r).
        flow: whether it is invertible: net(x, None, label) -> (z, log|det dz/dx|), and back with `inverse=True`.
        offset: whether the last layer has a bias; False if only differences of outputs count.
        net: the required kind of net; "": the recipe chooses it.
        parts: equal parts of the output's first dimension; 2 for a mean and a log-variance.
        text: the form of the captions that the net reads in the place of labels; `build.family_of` fills it in.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    time: bool = False
    second_time: bool = False
    flow: bool = False
    offset: bool = True
    net: str = ""
    parts: int = 1
    text: TextSpec | None = None
