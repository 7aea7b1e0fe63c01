"""A row of an ablation, as a command asks for it and as a report finds it in stored cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FULL = "full"


@dataclass(frozen=True)
class AblationRow:
    """One row: which components are on, and what its paper says of that."""

    name: str
    """full, all off, without dcr, only vlq."""
    label: str
    """What its cells are called."""
    components: dict[str, bool]
    """Component → whether it is on."""
    is_full: bool
    """Whether it is what the others are compared to."""
    paper_row: str | None
    """What the paper calls it."""
    published: Mapping[str, Mapping[str, float]]
    """Metric → what it was measured on → value."""


def row_name(kept: Sequence[str], dropped: Sequence[str]) -> str:
    """full, all off, without dcr, only vlq: whichever is shorter; components in the order of the method."""
    if not dropped:
        return FULL
    if not kept:
        return "all off"
    return f"without {', '.join(dropped)}" if len(dropped) <= len(kept) else f"only {', '.join(kept)}"
