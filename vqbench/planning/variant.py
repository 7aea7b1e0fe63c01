"""A method as it is asked for: with a preset, and with components switched off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """A method with some of its components switched off."""

    reference: str
    """method or method@preset."""
    off: frozenset[str]
    label: str
    """The name of its row."""
