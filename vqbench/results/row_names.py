"""How the rows of an ablation are called, in a command and in a report of stored cells alike."""

from __future__ import annotations

from collections.abc import Sequence

FULL = "full"


def row_name(kept: Sequence[str], dropped: Sequence[str]) -> str:
    """full, all off, without dcr, only vlq: whichever is shorter; components in the order of the method."""
    if not dropped:
        return FULL
    if not kept:
        return "all off"
    return f"without {', '.join(dropped)}" if len(dropped) <= len(kept) else f"only {', '.join(kept)}"
