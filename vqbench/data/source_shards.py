"""Files that hold many images each: which there are, what their names say of a split, and how they are held open."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqbench.data.dataset import Dataset
from vqbench.data.decode import ImageFileError
from vqbench.data.encoded import unreadable
from vqbench.data.folder import is_validation
from vqbench.data.index import TRAIN, VALIDATION, Index, IndexedImages, State, state_of
from vqbench.errors import UsageError

TEST = "test"
_WORDS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("val", "valid", "validation", "dev"),
    TEST: ("test", "testing"),
}
_OF_WORD = {word: side for side, words in _WORDS.items() for word in words}
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COUNT = re.compile(r"^(.*)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?\.\w+$")


def side_named(name: str) -> str:
    """The side of a split ("train", "validation", "test") that a name speaks of as a word, or "".

    Of a path the last part that names one counts: `val/imagenet-train-00.tar` would be train.
    """
    for part in reversed(name.lower().split("/")):
        words = re.split(r"[^a-z]+", part)
        if found := [_OF_WORD[word] for word in words if word in _OF_WORD]:
            return found[0]
    return ""


def matching(pattern: str) -> list[str]:
    """The files that a pattern names (`*`, `?`, `[ab]`, `**`, and WebDataset's `{0000..1023}`), sorted."""
    found: set[str] = set()
    for one in _expanded(pattern):
        found.update(path for path in glob.glob(one, recursive=True) if os.path.isfile(path))
    return sorted(found)


def _expanded(pattern: str) -> Iterable[str]:
    """`a{08..10}` → a08, a09, a10; several ranges one after the other."""
    if not (braces := _BRACES.search(pattern)):
        yield pattern
        return
    first, last = braces.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{pattern[: braces.start()]}{number:0{len(first)}d}{pattern[braces.end() :]}")


def states_of(shards: Sequence[str]) -> list[State]:
    """What tells that a shard has changed. Raises UsageError for one that cannot be looked at, or is empty."""
    states = []
    for shard in shards:
        try:
            states.append(state_of(shard))
        except OSError as error:
            raise unreadable(shard, error) from None
        if not states[-1][1]:
            raise UsageError(f"{shard} is empty", "get the shard again, or remove it")
    return states


def same_as_listed(shard: str, size: int, mtime_ns: int, now: os.stat_result) -> None:
    """Raise ImageFileError where a shard is another than the one that was listed."""
    if (now.st_size, now.st_mtime_ns) != (size, mtime_ns):
        raise ImageFileError(f"{shard}: changed since it was listed", "start the command again")


def missing_shards(shards: Sequence[str]) -> list[str]:
    """Sentences on series (`train-00000-of-00294.parquet`) of which not every shard is here."""
    here: dict[tuple[str, int], set[int]] = {}
    for shard in shards:
        if found := _COUNT.match(os.path.basename(shard)):
            series = (os.path.join(os.path.dirname(shard), found[1]), int(found[3]))
            here.setdefault(series, set()).add(int(found[2]))
    return [
        f"{len(numbers):,} of {total:,} shards {Path(series).name}-… are here"
        for (series, total), numbers in here.items()
        if len(numbers) < total
    ]


BY_HASH = "hash90"
"""In the name of a protocol: nobody has split the images but us."""


@dataclass(frozen=True)
class Split:
    """Which entries of a set are trained on and which are validation, and what a dataset says of it."""

    sides: Mapping[str, list[int]]
    word: str
    """In the name of a protocol."""
    rule: str
    notes: Sequence[str]

    def facts(self) -> dict[str, Any]:
        """What an index keeps of it."""
        return {"word": self.word, "rule": self.rule, "notes": self.notes}


def split_of(ids: Sequence[str], shard_of: Sequence[int] = (), shards: Sequence[str] = ()) -> Split:
    """The sides of entries: as the names of their shards say, else as their top folders do, else by hash of the id."""
    tops = {name.partition("/")[0]: "" for name in ids if "/" in name}
    of_top = {top: side_named(top) for top in tops}
    by_shard = [side_named(shard) for shard in shards]
    for stated in ([by_shard[shard] for shard in shard_of], [of_top.get(name.partition("/")[0], "") for name in ids]):
        held_out = VALIDATION if VALIDATION in stated else TEST
        if TRAIN in stated and held_out in stated:
            sides = _both_sides(stated, held_out)
            rule = f"The {TRAIN} split is trained on, the {held_out} split is validation."
            left_out = len(ids) - len(sides[TRAIN]) - len(sides[VALIDATION])
            notes = [f"{left_out:,} images of other splits are not used"] if left_out else []
            return Split(sides, f"train-{'val' if held_out == VALIDATION else held_out}", rule, notes)
    sides = _both_sides([VALIDATION if is_validation(name) else TRAIN for name in ids], VALIDATION)
    amounts = f"{len(sides[TRAIN]):,} train, {len(sides[VALIDATION]):,} validation"
    return Split(
        sides,
        BY_HASH,
        "An image is validation where the sha256 of its id is 0 modulo 10 (about 10 %).",
        [f"{len(ids):,} images split by hash of the id: {amounts}"],
    )


def _both_sides(stated: Sequence[str], held_out: str) -> dict[str, list[int]]:
    wanted = {TRAIN: TRAIN, VALIDATION: held_out}
    return {side: [i for i, word in enumerate(stated) if word == name] for side, name in wanted.items()}


class SplitByNames(Dataset):
    """A dataset whose sides are what `split_of` has found: as names say, or by hash."""

    def give_sides(self, index: Index, reader: Callable[[Index, str], IndexedImages]) -> None:
        """Take both sides of an index, and what its facts (`Split.facts`) say of the split; `slug` is set before."""
        train, validation = reader(index, TRAIN), reader(index, VALIDATION)
        self.take_encoded(train, validation)
        word, notes = index.facts["word"], tuple(index.facts["notes"])
        self.has_own_split = word != BY_HASH
        self.protocol_name, self.split_rule = f"{self.slug}-{word}", index.facts["rule"]
        if self.has_own_split:  # which images are not used is so with a list, too
            self.notes += notes
        else:
            self.split_notes = notes
