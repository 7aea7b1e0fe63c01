"""What names alone decide: digests, an order of ids, and which training images are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqbench.errors import UsageError

SEE = "see docs/adding-a-dataset.md"
"""Where a plugin's author reads on."""


def digest_of(*lines: object) -> str:
    """sha256, as hex, over the parts in the order given; parts cannot run into one another."""
    return digest_of_each(lines)


def digest_of_each(lines: Iterable[object]) -> str:
    """`digest_of` a million parts, none of which is kept."""
    digest = hashlib.sha256()
    for k, line in enumerate(lines):
        digest.update((f"\0{line!r}" if k else repr(line)).encode())
    return digest.hexdigest()


def _hashes(names: Iterable[str], purpose: str) -> NDArray[np.uint64]:
    """(N, 4): `digest_of(purpose, name)` of each, as numbers that sort as the digests do."""
    before, digests = hashlib.sha256(f"{purpose!r}\0".encode()), bytearray()
    for name in names:
        digest = before.copy()
        digest.update(repr(name).encode())
        digests += digest.digest()
    return np.frombuffer(digests, ">u8").reshape(-1, 4).astype(np.uint64)


def _ascending(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.lexsort(hashes.T[::-1])


def by_hash(ids: Sequence[str], purpose: str) -> NDArray[np.int64]:
    """Positions of the ids in an order that depends on the ids alone, and on what it is for."""
    return _ascending(_hashes(ids, purpose))


def first_by_hash(ids: Sequence[str], count: int, purpose: str) -> list[int]:
    """Positions, ascending, of the first `count` of the ids in the order of `by_hash`."""
    return sorted(by_hash(ids, purpose)[:count].tolist())


@dataclass(frozen=True)
class HeldOut:
    """A share of the training items on which nothing trains: what is chosen by them looks at no validation item."""

    chosen: tuple[int, ...]
    """Positions of the items, ascending."""
    left: tuple[int, ...]
    """Those of the others."""
    suffix: str
    """Of the protocol's name."""
    rule: str
    """A sentence for the split's rule."""
    note: str

    @classmethod
    def of(cls, ids: Sequence[str], share: float, reference: str, groups: Sequence[str] = ()) -> HeldOut:
        """The first items by hash of the id; with `groups`, one name for each item, the first whole groups by theirs.

        Raises UsageError where nothing would score, or nothing be trained on.
        """
        if len(groups) not in (0, len(ids)):
            raise UsageError(f"{reference} names {len(groups)} groups for {len(ids)} training items", SEE)
        hashes = _hashes(groups if len(groups) else ids, "holdout")
        order = _ascending(hashes)
        is_next = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
        rank = np.concatenate([np.zeros(min(1, len(ids)), np.int64), is_next.cumsum()])  # of the group of each item
        counts = np.concatenate([[0], np.bincount(rank).cumsum()])  # items in the first groups
        among, known = int(np.searchsorted(counts, round(share * len(ids)))), len(counts) - 1
        if not 0 < among < known:
            of = f"{len(ids)} training items" + (f" in {known} groups" if len(groups) else "")
            lacks = "train on" if among else "score"
            raise UsageError(f"--holdout {share:g} of the {of} of {reference} leaves nothing to {lacks}",
                             "for example: --holdout 0.1")  # fmt: skip
        is_held, percent = np.zeros(len(ids), bool), f"{100 * share:g}"
        is_held[order[rank < among]] = True
        what = f"{percent} % of the training items, by hash of the id,"
        if len(groups):
            what = f"Whole groups of training items, by hash of their names and {percent} % of the items at least,"
        return cls(
            tuple(np.flatnonzero(is_held).tolist()),
            tuple(np.flatnonzero(~is_held).tolist()),
            f"-holdout{percent}",
            f" {what} are not trained on and take the place of the validation items.",
            f"{counts[among]} of {len(ids)} training items are held out and score, in place of the validation items",
        )
