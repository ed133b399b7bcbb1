"""Says in the type of a setting which numbers it may hold: `epochs: Count`, `weight: NotNegative`.

The fields of the schema and the arguments of parts are typed so, and `fault` reads the types.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, get_args, get_origin

LARGEST = 2**32 - 1  # size of any number; it is the largest seed of NumPy


class Range(NamedTuple):
    """Holds the lowest and the highest value of a number, or of each in a list of `length`."""

    low: float = -LARGEST
    high: float = LARGEST
    is_open: bool = False  # without its two ends
    length: int | None = None

    def __str__(self) -> str:
        if self.is_open:
            return f"above {self.low}" + ("" if self.high == LARGEST else f" and below {self.high}")
        return f"at least {self.low}" if self.high == LARGEST else f"from {self.low} to {self.high}"

    def has(self, number: float) -> bool:
        """Return whether a number lies in it; NaN and infinity lie nowhere."""
        if self.is_open and number in (self.low, self.high):
            return False
        return self.low <= number <= self.high


ANY = Range()
Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, is_open=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


def range_of(hint: Any) -> Range:
    """Return the range in a type, or in the one besides None: `Count | None`; ANY has none."""
    if get_origin(hint) is Annotated:
        return next(one for one in get_args(hint) if isinstance(one, Range))
    inner = (range_of(one) for one in get_args(hint) if get_origin(one) is Annotated)
    return next(inner, ANY)


def fault(value: Any, allowed: Range) -> str:
    """Say what is wrong with a number or a list of numbers; nothing is wrong with other values."""
    is_list = isinstance(value, (list, tuple))
    if is_list and allowed.length not in (None, len(value)):
        return f"must hold {allowed.length} numbers, got {value}"
    for one in value if is_list else [value]:
        if type(one) in (int, float) and not allowed.has(one):
            wanted = allowed if ANY.has(one) else f"a number of at most {LARGEST} in size"
            return f"must be {wanted}, got {one}"
    return ""
