"""Map float32 to an integer that sorts the same way, fine just below 1 and just above -1 too.

The bits of a float are such an integer, and cutting low bits off it keeps relative precision: fine
near 0, where probabilities vanish, but blind near 1, where they saturate. So the octave from 1/2
to 1 is written by the bits of its distance to 1, which float32 holds exactly (Sterbenz).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE_BITS = 16
HALF, ONE, INFINITY = 0x3F000000, 0x3F800000, 0x7F800000  # bits of these floats
STRETCH = 0x0B800000  # by how much 1 moves up, past 2 * HALF - bits of 2**-24
ZERO = INFINITY + STRETCH  # the key of 0, so that -inf has key 0
TOP = 2 * ZERO  # the key of inf
NUM_PAGES, ZERO_PAGE = (TOP >> PAGE_BITS) + 1, ZERO >> PAGE_BITS
MODERATE = 2.0**100  # scores below it have keys within 2**31 of ZERO


def to_keys(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return keys (…) in 0 .. TOP of scores (…) without NaN; -0.0 and 0.0 have one key."""
    return ZERO + centred_keys(scores, np.int64)


def centred_keys(scores: NDArray[np.float32], kind: type) -> Any:
    """Return key - ZERO (…) of scores (…) without NaN; int32 holds it for scores below MODERATE."""
    raw = scores.view(np.int32)
    bits: Any = (raw & 0x7FFFFFFF).astype(kind, copy=False)
    to_one = (np.float32(1) - np.abs(scores)).view(np.int32)
    moved = kind(2 * HALF) - to_one.astype(kind, copy=False)
    np.copyto(moved, bits + kind(STRETCH), where=bits >= ONE)
    np.copyto(bits, moved, where=bits > HALF)
    sign = raw >> 31  # -1 where negative: (bits ^ -1) + 1 is -bits
    bits ^= sign
    bits -= sign
    return bits


def to_score(key: int) -> float:
    """Return the lowest float32 whose key is at least this one."""
    bits = abs(key - ZERO)
    if HALF < bits < ONE + STRETCH:
        size = 1.0 - _float(2 * HALF - bits)
    else:
        size = _float(bits if bits <= HALF else bits - STRETCH)
    exact = size if key >= ZERO else -size
    score = np.float32(exact)
    # As Python floats: NumPy would round `exact` to float32 before comparing.
    return float(score if float(score) >= exact else np.nextafter(score, np.float32(np.inf)))


def first_key(score: float) -> int:
    """Return the lowest key of a float32 that is at least this score, any float but NaN."""
    with np.errstate(over="ignore"):
        nearest = np.float32(score)
    at_least = nearest if float(nearest) >= score else np.nextafter(nearest, np.float32(np.inf))
    return int(to_keys(np.array([at_least]))[0])


def _float(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))
