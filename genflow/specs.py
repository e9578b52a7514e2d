"""What is known of a dataset, and what a family asks of a net, as values."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class DataSpec:
    """The facts of a prepared dataset.

    Pictures are stored as grey levels k in 0..K-1 and trained on as bin centres x = (2k + 1)/K - 1 in
    (-1, 1). Points of the plane (the 2-D densities) have no levels; they are trained on as x = point / scale.

    Args:
        shape: (C, H, W); a point of the plane is (2, 1, 1).
        levels: K, the number of grey levels that the data uses; None for points.
        class_names: the labels' names in order; empty where the data has none.
        splits: rows a split, such as {"train": 1438, "val": 359}.
        mean: mean of x over the training split.
        sigma_data: standard deviation of x over the training split (EDM's sigma_data).
        scale: x = point / scale; 1 for pictures.
        class_counts: rows a class in the training split.
        fingerprint: SHA-256 over the shards' bytes: equal data, equal fingerprint.
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

    @property
    def classes(self) -> int:
        """The number of classes; 0 where the data has no labels."""
        return len(self.class_names)

    @property
    def dims(self) -> int:
        """D, the numbers in one sample."""
        return math.prod(self.shape)

    @property
    def is_points(self) -> bool:
        """Whether this is a density in the plane rather than pictures."""
        return self.levels is None

    def to_json(self) -> dict[str, Any]:
        """A JSON document that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any] | str) -> "DataSpec":
        """Read what `to_json` wrote; fields of a later version are left aside."""
        values = json.loads(document) if isinstance(document, str) else dict(document)
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in values.items() if key in known}
        for key in ("shape", "class_names", "class_counts"):
            if key in values:
                values[key] = tuple(values[key])
        return cls(**values)


@dataclass(frozen=True)
class NetSpec:
    """What a family asks of a net.

    Args:
        inputs: the shape that goes in.
        outputs: the shape that comes out.
        time: whether it is told the time.
        second_time: whether it is told where a step ends, too: net(x, t, label, r) with r (B,) on the scale of t.
        flow: whether it is invertible: net(x, None, label) -> (z, log|det dz/dx|), and back with `inverse=True`.
        offset: whether the answer has a free constant; False where only differences of answers count.
        net: the kind of net it takes, where that is not the recipe's to choose; "": it is.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    time: bool = False
    second_time: bool = False
    flow: bool = False
    offset: bool = True
    net: str = ""
