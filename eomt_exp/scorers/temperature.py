"""Divide evidence by a temperature (Guo et al., ICML 2017) before a score is formed from it."""

from __future__ import annotations

from eomt_exp.contracts import UserError


class Tempered:
    """Holds the temperature T of a score of the evidence L / T; UserError unless it is above 0."""

    level = "semantic"

    def __init__(self, *, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise UserError(f"temperature must be above 0, got {temperature}.")
        self.temperature = temperature
