"""What a method says may be searched: ranges and choices, declared beside its Config. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included. Raises ValueError for bounds that mean nothing."""

    low: float
    high: float
    log: bool = False
    """Draw the logarithm evenly."""
    step: float | None = None
    """low, low + step, …; None: every number, or every whole number for a field of whole numbers."""
    group: str = ""
    """What a space calls for by `declared:`, for example losses."""
    when: Mapping[str, Any] = field(default_factory=dict)
    """Drawn only where each of these fields has the value, or one of a list of values."""

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and math.isfinite(value)):
                raise ValueError(f"{name} must be a finite number, not {value!r}")
        if self.low >= self.high:
            raise ValueError(f"low must be below high, not {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be positive for a logarithmic range, not {self.low}")
        if self.step is not None and self.log:
            raise ValueError("a logarithmic range has no step; give choices")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step must be positive and fit between {self.low} and {self.high}, not {self.step}")

    @property
    def last(self) -> float:
        """The largest number of the range; with a step that may be less than `high`."""
        if self.step is None:
            return self.high
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        steps = (Decimal(str(self.high)) - low) // step
        whole = all(isinstance(number, int) for number in (self.low, self.step))
        return int(low + steps * step) if whole else float(low + steps * step)


@dataclass(frozen=True)
class Choices:
    """One of a few values, without an order. Raises ValueError for none, or for one that is there twice."""

    values: Sequence[Any]
    group: str = ""
    """What a space calls for by `declared:`, for example losses."""
    when: Mapping[str, Any] = field(default_factory=dict)
    """Drawn only where each of these fields has the value, or one of a list of values."""

    def __post_init__(self) -> None:
        if isinstance(self.values, str) or not isinstance(self.values, Sequence) or not self.values:
            raise ValueError(f"choices must be a list of values, not {self.values!r}")
        seen = [repr(value) for value in self.values]
        twice = next((text for text in seen if seen.count(text) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is there twice")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
