"""Text as a condition: the value that stands in the place of labels where rows have captions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Text:
    """The captions of a batch, as a frozen text encoder embeds them.

    "No condition" is the empty caption, in training and in sampling. A negative prompt is another text in its place.

    Args:
        tokens: (B, L, D) embeddings of the tokens, padded at the end. L is that of the data's facts
            (`DataSpec.text.length`), so that the padding of a row does not depend on the other rows of its batch.
        mask: (B, L) bool, True for tokens that are no padding.
        pooled: (B, P), one vector per caption.
        empty: what `unconditional` and `dropped` put in the place of the captions, with one row for all or one row for
            each; None: these captions are empty themselves.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor
    empty: "Text | None" = None

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, index: slice | Tensor) -> "Text":
        return self.rows(index)  # so that code that selects rows of labels selects rows of captions, too

    @property
    def device(self) -> torch.device:
        return self.pooled.device

    def to(self, device: torch.device | str) -> "Text":
        """The same text on a device."""
        empty, ahead = None if self.empty is None else self.empty.to(device), torch.device(device).type != "cpu"
        tokens, mask, pooled = (
            part.to(device, non_blocking=ahead) for part in (self.tokens, self.mask, self.pooled)
        )  # fmt: skip
        return Text(tokens, mask, pooled, empty)

    def rows(self, index: slice | Tensor) -> "Text":
        """The rows of an index: a slice, numbers, or True per row."""
        empty = self.empty.rows(index) if self.empty is not None and len(self.empty) > 1 else self.empty
        return Text(self.tokens[index], self.mask[index], self.pooled[index], empty)

    def split(self, size: int) -> list["Text"]:
        """Consecutive parts of `size` rows; the last part may be smaller."""
        return [self.rows(slice(first, first + size)) for first in range(0, len(self), size)]

    def padded(self, length: int) -> "Text":
        """The same text with L = `length`; nothing is cut off.

        Raises:
            ValueError: `length` is smaller than L.
        """
        more = length - self.mask.shape[1]
        if more < 0:
            raise ValueError(f"captions of {self.mask.shape[1]} tokens cannot be padded to {length}")
        empty = None if self.empty is None else self.empty.padded(length)
        return Text(F.pad(self.tokens, (0, 0, 0, more)), F.pad(self.mask, (0, more)), self.pooled, empty)

    def unconditional(self) -> "Text":
        """Every caption replaced by the empty one."""
        if self.empty is None:
            return self
        empty = self.empty
        tokens, mask, pooled = (
            part.expand(len(self), *part.shape[1:]) for part in (empty.tokens, empty.mask, empty.pooled)
        )
        return Text(tokens, mask, pooled, empty)

    def dropped(self, drop: Tensor) -> "Text":
        """The captions with True in `drop` (B,) replaced by the empty one."""
        drop, none = drop.to(self.device), self.unconditional()
        return Text(
            torch.where(drop[:, None, None], none.tokens, self.tokens),
            torch.where(drop[:, None], none.mask, self.mask),
            torch.where(drop[:, None], none.pooled, self.pooled),
            self.empty,
        )

    def against(self, negative: "Text") -> "Text":
        """The same captions with other words in the place of the empty caption, as a negative prompt has them.

        Args:
            negative: one row for all captions, or one row for each.

        Raises:
            ValueError: its number of rows is neither 1 nor B.
        """
        if len(negative) not in (1, len(self)):
            raise ValueError(f"{len(negative)} negative prompts for {len(self)} captions")
        length = max(self.mask.shape[1], negative.mask.shape[1])
        return replace(self.padded(length), empty=replace(negative, empty=None).padded(length))

    def between(self, other: "Text", share: Tensor) -> "Text":
        """Interpolate from these captions to those of `other`; at 0 and 1 a row has the bits of its own caption.

        In between, a row attends to every token of both captions. A position that only one of them has is scaled from
        zeros. "No condition" stays that of these captions.

        Args:
            other: (B,) captions of the same text encoder.
            share: (B,) in [0, 1].

        Raises:
            ValueError: the numbers of rows differ.
        """
        if not len(self) == len(other) == len(share):
            raise ValueError(f"{len(share)} shares between {len(self)} and {len(other)} captions")
        length = max(self.mask.shape[1], other.mask.shape[1])
        a, b, s = self.padded(length), other.padded(length), share.to(self.pooled)[:, None]  # lerp is exact at 0 and 1
        mask = a.mask & (s < 1) | b.mask & (s > 0)
        first, last = (text.tokens * text.mask[..., None] for text in (a, b))
        return Text(torch.lerp(first, last, s[..., None]), mask, torch.lerp(a.pooled, b.pooled, s), a.empty)

    @staticmethod
    def cat(parts: "Sequence[Text]") -> "Text":
        """The rows of all parts, padded to the longest part."""
        length = max(part.mask.shape[1] for part in parts)
        same = all(part.empty is parts[0].empty for part in parts)
        padded = [part.padded(length) for part in parts]
        tokens, mask, pooled = (
            torch.cat([getattr(part, name) for part in padded]) for name in ("tokens", "mask", "pooled")
        )
        if same:
            return Text(tokens, mask, pooled, padded[0].empty)
        none = [replace(part.unconditional(), empty=None) for part in padded]
        return Text(tokens, mask, pooled, Text.cat(none))


Label = Tensor | Text  # the condition of a batch: classes (B,), or captions
