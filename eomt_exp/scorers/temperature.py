"""Divide evidence by a temperature (Guo et al., ICML 2017) before a score is formed from it."""

from __future__ import annotations

from eomt_exp.ranges import Positive


class Tempered:
    """Holds the temperature T of a score of the evidence L / T."""

    level = "semantic"

    def __init__(self, *, temperature: Positive = 1.0) -> None:
        self.temperature = temperature
