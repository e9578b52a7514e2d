"""Recognise folders that cut one set of pictures into parts, and are no classes."""

import math
import re
from collections.abc import Collection

PART = re.compile(r"(.*?)([0-9]+)((?:[-_. ]?of[-_. ]?[0-9]+)?)", re.IGNORECASE)
WORDS = re.compile(r".*(?<![a-z])(part|chunk|shard|batch|block|volume|vol|archive|bucket|subset)s?", re.IGNORECASE)
CLASS_WORDS = re.compile(r".*(class|label|categor|cluster|digit|person|subject)[a-z]*", re.IGNORECASE)
HEX = re.compile(r"[0-9a-f]+|[0-9A-F]+")
HUNDRED = 100  # files of a part, if the folders are named by the first of them
SHARE = 0.5  # of all prefixes of a hash that occur as folders


def are_parts(names: Collection[str]) -> bool:
    """Whether the names of folders are numbers of parts of one set.

    They are, if all have one form:

    - three or more digits with leading zeros, after any word that does not mean a class, without a gap from 0 or 1 on
      (`000`, `img_001`), or all multiples of 100 (`00000`, `01000` of FFHQ);
    - any digits after a word that means a part, or before a total: `part-0`, `00000-of-00010`;
    - the first one or two digits of a hexadecimal hash, of which at least half occur: `0` to `f`, `00` to `ff`.
    """
    return len(names) > 1 and (_are_numbers(names) or _are_hash_prefixes(names))


def _are_numbers(names: Collection[str]) -> bool:
    matches = [match for name in names if (match := PART.fullmatch(name))]
    prefixes, totals = {match[1] for match in matches}, {match[3] for match in matches}
    if len(matches) < len(names) or len(prefixes) > 1 or len(totals) > 1:
        return False
    word = prefixes.pop().rstrip("-_. ")
    if totals != {""} or WORDS.fullmatch(word):
        return True
    digits = {len(match[2]) for match in matches}
    numbers = sorted(int(match[2]) for match in matches)
    complete = numbers[0] in (0, 1) and numbers[-1] - numbers[0] == len(numbers) - 1
    padded = len(digits) == 1 and digits.pop() >= 3
    return padded and (complete or math.gcd(*numbers) % HUNDRED == 0) and not CLASS_WORDS.fullmatch(word)


def _are_hash_prefixes(names: Collection[str]) -> bool:
    lengths = {len(name) for name in names}
    letters = any(not name.isdigit() for name in names)
    if not letters or len(lengths) > 1 or not all(map(HEX.fullmatch, names)):
        return False
    length = lengths.pop()
    return length <= 2 and len(names) >= SHARE * 16**length
