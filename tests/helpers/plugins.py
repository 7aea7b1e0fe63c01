"""Files of plugins that lie here, and what is registered by a test alone."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

FAULTY = Path(__file__).with_name("faulty.py")
OUTSIDE = Path(__file__).with_name("outside.py")


@contextlib.contextmanager
def own_plugins() -> Iterator[None]:
    """What is registered within is gone after it."""
    from vqbench.metrics.definitions import DEFINITIONS
    from vqbench.registry import REGISTRIES

    for registry in REGISTRIES:
        registry.names()  # vqbench's own metrics are registered once in a process
    places = (*REGISTRIES, DEFINITIONS)
    before = [{name: copy.copy(value) for name, value in vars(place).items()} for place in places]
    yield
    for place, state in zip(places, before, strict=True):
        vars(place).update(state)
