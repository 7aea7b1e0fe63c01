"""What a source was found to hold, in one file that every process maps: no process reads a set's listing twice.

An index is believed while everything that it was made of is as it was: size and times of each shard, times of each
folder, size and times of files spread over the set (of all, up to a thousand). What is no older than `SETTLED_S` is
listed again each time, for a change within the same tick of the clock would not show.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbench.data.encoded import Encoded, encoded_digest
from vqbench.data.hashing import digest_of, digest_of_each
from vqbench.data.names import Names
from vqbench.errors import UsageError
from vqbench.machine.home import home, keeping, remembered_digest

VERSION = 1
"""Goes up when an index holds other columns or is made in another way."""
SETTLED_S = 2.0
"""Seconds; some network disks count time in whole ones."""
SAMPLED = 1000
TRAIN, VALIDATION = "train", "validation"
_MAGIC = b"vqbench index\n"
_ALIGNED = 64

State = list[Any]
"""[path, size, mtime_ns, ctime_ns] of a shard, or of a folder with a size of 0."""


@dataclass
class Index:
    """Columns of one length, mapped from a file or in memory, and what was said of them when they were made."""

    header: dict[str, Any]
    """`count` of entries; `sides`: name → start, stop, key and digest; `watched`: states; `base` of paths; `facts`:
    what a dataset keeps."""
    columns: dict[str, NDArray[Any]]
    path: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is not None:  # a pickled map would be a copy of it all
            return _mapped_again, (self.path, self.header["made"])
        return Index, (self.header, self.columns)

    def names(self, column: str, start: int = 0, stop: int | None = None) -> Names:
        """A column of names, or a part of it."""
        return NamesOfIndex(self, column, start, self.header["count"] if stop is None else stop)

    @property
    def facts(self) -> dict[str, Any]:
        """What a dataset has kept beside the columns."""
        return dict(self.header["facts"])


class Found(ABC):
    """The entries of a source as a first look found them, from which an index is made."""

    names: Sequence[str]
    """Of each entry, as the source has it."""
    sizes: Sequence[int]
    """Bytes of each."""
    watched: list[State]
    """What was looked at, as it was before."""
    base: str = ""
    """What `paths` among the columns are relative to."""

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def where(self, i: int) -> str:
        """What errors call entry `i`."""

    @abstractmethod
    def state(self, i: int) -> tuple[Any, ...]:
        """What changes when entry `i` may have changed: its file, and where it lies in that."""

    @abstractmethod
    def ends(self, entries: Sequence[int]) -> list[str]:
        """`ends_digest` of entries. Raises UsageError that names those that cannot be read."""

    @abstractmethod
    def columns(self, entries: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What it takes to read these entries."""


def make_index(
    found: Found,
    ids: Sequence[str],
    sides: Mapping[str, Sequence[int]],
    facts: Mapping[str, Any] | None = None,
    more: Mapping[str, NDArray[Any]] | None = None,
) -> Index:
    """The index of a set: the entries of each side in the order of their ids.

    `ids` and the columns `more` have a place for each entry. Raises UsageError for an id that is there twice, and for
    images that cannot be read.
    """
    stated: dict[str, dict[str, Any]] = {}
    ordered: list[int] = []
    for side, entries in sides.items():
        entries = sorted(entries, key=ids.__getitem__)
        _refuse_twins(found, ids, entries)
        path_first = ((state[0], ids[i], *state[1:]) for i in entries for state in (found.state(i),))
        stated[side] = {
            "start": len(ordered),
            "stop": len(ordered) + len(entries),
            "key": digest_of_each(path_first),
        }
        stated[side]["digest"] = _contents(found, ids, entries, stated[side]["key"])
        ordered += entries
    chosen = np.array(ordered, np.int64)
    columns = {
        **named("ids", (ids[i] for i in ordered)),
        "size": np.array(found.sizes, np.int64)[chosen],
        **found.columns(chosen),
        **{name: column[chosen] for name, column in (more or {}).items()},
    }
    header = {
        "count": len(ordered),
        "sides": stated,
        "watched": found.watched,
        "base": found.base,
        "facts": dict(facts or {}),
    }
    return Index(header, columns)


def _contents(found: Found, ids: Sequence[str], entries: Sequence[int], key: str) -> str:
    """`encoded_digest` of entries, remembered: a folder's time changes oftener than its files."""

    def read() -> str:
        ends = found.ends(entries)
        return encoded_digest((ids[i], int(found.sizes[i]), end) for i, end in zip(entries, ends, strict=True))

    return remembered_contents(key, read)


def remembered_contents(key: str, read: Callable[[], str]) -> str:
    """The digest of what was listed under `key`, from the home or read now."""
    return remembered_digest(home() / "prepared" / f"contents-{key[:24]}.txt", read)


def _refuse_twins(found: Found, ids: Sequence[str], ordered: Sequence[int]) -> None:
    twins = [(a, b) for a, b in itertools.pairwise(ordered) if ids[a] == ids[b]]
    if twins:
        a, b = twins[0]
        more = f", and {len(twins) - 1:,} more are" if len(twins) > 1 else ""
        raise UsageError(f"two images are called '{ids[a]}': {found.where(a)} and {found.where(b)}{more}",
                         "remove or rename one of them: results know an image by its name")  # fmt: skip


class IndexedImages(Encoded):
    """One side of an index. A subclass reads its entries."""

    def __init__(self, index: Index, side: str) -> None:
        stated = index.header["sides"][side]
        self.index, self.side, self.base = index, side, index.header["base"]
        self._place = slice(stated["start"], stated["stop"])
        self.ids = self.column_of_names("ids")
        self.key, self._digest = stated["key"], stated["digest"]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.index, self.side)

    def digest(self) -> str:
        """`encoded_digest` of this side."""
        return str(self._digest)

    def column(self, name: str) -> NDArray[Any]:
        """A number for each image."""
        return self.index.columns[name][self._place]

    def column_of_names(self, name: str) -> Names:
        """A name for each image."""
        return self.index.names(name, self._place.start, self._place.stop)


class NamesOfIndex(Names):
    """Names of an index, pickled as it is: a copy of them would go to every worker of a loader."""

    def __init__(self, index: Index, column: str, start: int, stop: int) -> None:
        super().__init__(index.columns[column], index.columns[f"{column} starts"][start : stop + 1])
        self._of = (index, column, start, stop)

    def __reduce__(self) -> tuple[Any, ...]:
        return NamesOfIndex, self._of


def state_of(path: str | Path) -> State:
    """What tells that a shard or a folder has changed. Raises OSError."""
    status = os.stat(path)
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return [str(path), size, status.st_mtime_ns, status.st_ctime_ns]


def named(column: str, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """A column of names as an index holds it."""
    held = Names.of(names)
    return {column: held.text, f"{column} starts": held.starts}


def kept_index(what: Sequence[object], make: Callable[[], Index], shards: Sequence[State] | None = None) -> Index:
    """The index of `what` (a kind of set, its place and its rule), from the home or made now.

    `shards` are those that there are now; without them what was watched is looked at. Where the home cannot be
    written, or what is listed has changed just now, an index is made each time and stays in memory.
    """
    path = home() / "prepared" / f"listing-{digest_of(VERSION, *what)[:24]}.index"
    known = _mapped(path)
    if known is not None and _is_current(known, shards):
        return known
    began = time.time()
    index = make()
    newest = max((max(state[2:]) for state in index.header["watched"]), default=0)
    if newest > (began - SETTLED_S) * 1e9:
        return index
    with contextlib.suppress(OSError):
        _write(index, path)
        return _mapped(path) or index
    return index


def _is_current(index: Index, shards: Sequence[State] | None) -> bool:
    watched = index.header["watched"]
    if shards is not None:
        return bool(watched == [list(state) for state in shards])
    try:
        return all(state_of(state[0]) == state for state in watched) and _files_are_current(index)
    except OSError:
        return False


def _files_are_current(index: Index) -> bool:
    """Of files, which change without their folder, some are looked at."""
    if "mtime_ns" not in index.columns:
        return True
    paths, count = index.names("paths"), len(index.columns["mtime_ns"])
    columns = [index.columns[name] for name in ("size", "mtime_ns", "ctime_ns")]
    for i in range(0, count, max(1, count // SAMPLED)):
        path = os.path.join(index.header["base"], paths[i])
        if state_of(path)[1:] != [int(column[i]) for column in columns]:
            return False
    return True


def _write(index: Index, path: Path) -> None:
    places: dict[str, tuple[str, int, int]] = {}
    at = 0
    for name, column in index.columns.items():
        places[name] = (column.dtype.str, at, len(column))
        at += -(-column.nbytes // _ALIGNED) * _ALIGNED
    header = index.header | {"made": digest_of(index.header["sides"], index.header["watched"], time.time_ns())}
    text = json.dumps(header | {"columns": places, "bytes": at}).encode()
    with keeping(path) as partial, open(partial, "wb") as file:
        file.write(_MAGIC + len(text).to_bytes(8, "little") + text)
        file.write(bytes(-file.tell() % _ALIGNED))
        for column in index.columns.values():
            file.write(np.ascontiguousarray(column).data)
            file.write(bytes(-column.nbytes % _ALIGNED))
        file.flush()
        os.fsync(file.fileno())  # else a power cut may keep the name and lose the columns


def _mapped(path: Path) -> Index | None:
    """The index that lies in a file; None where there is none, or none that is whole."""
    try:
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
            first = -(-file.tell() // _ALIGNED) * _ALIGNED
            if os.fstat(file.fileno()).st_size != first + header["bytes"]:
                return None
        raw = np.memmap(path, np.uint8, "r") if header["bytes"] else np.empty(0, np.uint8)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    columns = {}
    for name, (kind, at, count) in header.pop("columns").items():
        dtype = np.dtype(kind)
        part = raw[first + at : first + at + count * dtype.itemsize]
        columns[name] = np.asarray(part).view(dtype)
    return Index(header, columns, path)


def _mapped_again(path: Path, made: str) -> Index:
    """In another process: the same index, or an error, for positions in another would be other images."""
    index = _mapped(path)
    if index is None or index.header["made"] != made:
        raise UsageError(f"the listing {path} has been removed or made again meanwhile", "start the command again")
    return index
