"""Seeds derived from names, so that adding one source of randomness never shifts another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from the named parts, e.g. `derive_seed("backbone", 0)`. Never give it a method's name:

    runs of different methods under one seed must see the same data order, the same initial backbone and the
    same noise, or their results could not be compared in pairs.
    """
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Within: torch draws from `derive_seed(*parts)`. After: its generator stands where it stood."""
    import torch

    with torch.random.fork_rng(devices=[]):  # modules are made on the CPU
        torch.manual_seed(derive_seed(*parts))
        yield
