"""The captions of a dataset as possible answers to "which words describe this picture?".

Two captions are the same answer if they have the same words, or if some row has both. Neither is a wrong answer to the
other, so neither is drawn as one.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from genflow.data.shards import Dataset
from genflow.maths.rng import key

OTHERS = 99  # wrong captions for each true one
MAX_CAPTIONS = 10_000  # wrong captions are drawn from at most so many


class _Spaces(dict[int, int | str]):
    """For `str.translate`: a space in the place of punctuation, spaces and control characters."""

    def __missing__(self, code: int) -> int | str:
        kind = unicodedata.category(chr(code))
        self[code] = " " if kind[0] in "PZ" or kind == "Cc" else code
        return self[code]


_spaces = _Spaces()


def words(caption: str) -> str:
    """A caption without letter case, punctuation and spaces; captions with the same words have the same."""
    text = unicodedata.normalize("NFKC", caption).casefold()
    return " ".join(text.translate(_spaces).split()) or text.strip()


@dataclass(frozen=True)
class CaptionPool:
    """The distinct captions of a dataset.

    Args:
        captions: one spelling of each, sorted by their words.
        numbers: the number of a caption by its `words`.
        alike: the numbers of the captions that some row has together with a caption, by its number.
    """

    captions: list[str]
    numbers: dict[str, int]
    alike: dict[int, set[int]]

    @classmethod
    def of(cls, data: Dataset) -> "CaptionPool":
        """The captions of all splits, without the empty one."""
        spelling: dict[str, str] = {}
        rows: set[tuple[str, ...]] = set()
        for split in data.splits.values():
            for own in set(split.captions):
                found = {words(caption): caption for caption in own if caption.strip()}
                for short, caption in found.items():
                    spelling[short] = min(caption, spelling.get(short, caption))
                rows.add(tuple(sorted(found)))
        numbers = {short: number for number, short in enumerate(sorted(spelling))}
        alike: dict[int, set[int]] = defaultdict(set)
        for row in rows:
            together = {numbers[short] for short in row}
            for number in together if len(together) > 1 else ():
                alike[number] |= together
        return cls([spelling[short] for short in numbers], numbers, dict(alike))

    def find(self, captions: Iterable[str]) -> np.ndarray:
        """The number of each caption, (N,)."""
        return np.array([self.numbers[words(caption)] for caption in captions], np.int64)

    def same(self, number: int) -> list[int]:
        """The numbers of a caption and of those that are the same answer."""
        return sorted(self.alike.get(number, set()) | {number})

    def candidates(self, asked: np.ndarray) -> np.ndarray:
        """The numbers of the captions that are asked for, and of all others, or 10,000 of them; sorted."""
        count = len(self.captions)
        some = np.arange(count) if count <= MAX_CAPTIONS else np.random.default_rng(0).permutation(count)[:MAX_CAPTIONS]
        return np.union1d(asked, some)

    def wrong(
        self, asked: np.ndarray, candidates: np.ndarray, seed: int, vectors: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Up to 99 wrong answers for each caption, as places among the candidates.

        Args:
            asked: (N,) the numbers of the true captions.
            candidates: (K,) sorted numbers, such as those of `candidates`.
            seed: seed of the choice, which is a function of (seed, place of the caption).
            vectors: (K, P) unit vectors of the candidates; choose those nearest to the true caption. None: choose at
                random.
        """
        chosen = []
        for place, number in enumerate(asked):
            others = np.flatnonzero(~np.isin(candidates, self.same(int(number))))
            if vectors is None:
                others = np.random.default_rng(key("wrong captions", seed, place)).permutation(others)
            else:
                nearness = vectors[others] @ vectors[np.searchsorted(candidates, number)]
                others = others[np.argsort(-nearness, kind="stable")]
            chosen.append(others[:OTHERS])
        return chosen
