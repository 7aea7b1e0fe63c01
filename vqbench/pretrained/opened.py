"""A tokenizer that is trained already, opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vqbench.facts import Facts

if TYPE_CHECKING:
    from vqbench.metrics.evaluation import Codec


@dataclass(frozen=True)
class Opened:
    """A tokenizer, and what is known of it."""

    codec: Codec
    """In eval mode, on the CPU: evaluation asks it for `to_indices` and `from_indices`, people for `encode` and
    `decode`."""
    facts: Facts
