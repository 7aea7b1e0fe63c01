"""Images in plain tars: each member is found once, then read by its place, in any order and without the tar."""

from __future__ import annotations

import hashlib
import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbench.data.decode import SUFFIXES, ImageFileError, read_each
from vqbench.data.encoded import END, Opened, unreadable
from vqbench.data.index import Found, Index, IndexedImages, named
from vqbench.data.source_shards import same_as_listed, states_of
from vqbench.errors import UsageError, require_utf8

_BLOCK = 512
_READERS = 16  # on a network disk, a header is mostly waited for
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_HELD_OPEN = 64


class _Tar:
    """A tar that is open for reading at any place."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)

    def read(self, offset: int, size: int) -> bytes:
        """As many of `size` bytes as there are."""
        parts = []
        while size and (part := os.pread(self.file, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)


_tars: Opened[_Tar] = Opened(_HELD_OPEN)


def sample_key(name: str) -> str:
    """What members of a sample have in common, as WebDataset has it: the path up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


class FoundMembers(Found):
    """Image members of tars."""

    def __init__(self, shards: Sequence[str], beside: Sequence[str] = ()) -> None:
        """Look through `shards`. `beside` are suffixes (".cls") of members of a sample that are wanted, too.

        Raises UsageError for a shard that is compressed, empty, truncated or no tar.
        """
        self.shards, self.watched = list(shards), states_of(shards)
        self.names: list[str] = []
        self.sizes, self.offsets, self.shard_of = array("q"), array("q"), array("q")
        self.beside: dict[str, dict[int, tuple[int, int]]] = {suffix: {} for suffix in beside}
        """Suffix → entry → offset and size of the member of its sample."""
        with ThreadPoolExecutor(_READERS) as pool:
            for number, found in enumerate(pool.map(lambda shard: _members(shard, beside), shards)):
                images, others = found
                for name, offset, size in images:
                    for suffix in beside:
                        if (place := others.get(sample_key(name) + suffix)) is not None:
                            self.beside[suffix][len(self.names)] = place
                    self.names.append(name)
                    self.offsets.append(offset)
                    self.sizes.append(size)
                    self.shard_of.append(number)

    def where(self, i: int) -> str:
        """Tar and member."""
        return f"{self.shards[self.shard_of[i]]}: member {self.names[i]}"

    def state(self, i: int) -> tuple[Any, ...]:
        """Its tar, and where it lies in that."""
        return *self.watched[self.shard_of[i]], self.offsets[i], self.sizes[i]

    def text_beside(self, i: int, suffix: str) -> str:
        """What the member of the same sample with this suffix holds, or ""."""
        if (place := self.beside[suffix].get(i)) is None:
            return ""
        return self._tar(i).read(*place).decode(errors="replace")

    def _tar(self, i: int) -> _Tar:
        state = self.watched[self.shard_of[i]]
        return _tars.get(tuple(state), lambda: _Tar(state[0]))

    def ends(self, entries: Sequence[int]) -> list[str]:
        """sha256 over both ends of each member."""

        def end(k: int) -> str | ImageFileError:
            offset, size = self.offsets[entries[k]], self.sizes[entries[k]]
            last = max(END, size - END)
            try:
                tar = self._tar(entries[k])
                first = tar.read(offset, min(END, size))
                return hashlib.sha256(first + tar.read(offset + last, max(0, size - last))).hexdigest()
            except OSError as error:
                return unreadable(self.where(entries[k]), error)

        return read_each(end, len(entries))

    def columns(self, entries: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Tar, member and offset."""
        return {
            **named("members", (self.names[i] for i in entries.tolist())),
            "shard": np.array(self.shard_of, np.int32)[entries],
            "offset": np.array(self.offsets, np.int64)[entries],
        }


Member = tuple[str, int, int]
"""Name, offset and size."""


def _members(path: str, beside: Sequence[str]) -> tuple[list[Member], dict[str, tuple[int, int]]]:
    """The images of a tar, and name → place of its other members with one of these suffixes."""
    images: list[Member] = []
    others: dict[str, tuple[int, int]] = {}
    try:
        with open(path, "rb") as file:
            _refuse_compressed(path, file.read(8))
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # which would hold all that were read
                name = member.name.removeprefix("./")
                if os.path.basename(name).startswith(".") or member.isdir():
                    continue
                if name.lower().endswith(SUFFIXES):
                    _refuse_other_kinds(path, member)
                    images.append((name, member.offset_data, member.size))
                elif name.endswith(tuple(beside)) and beside:
                    others[name] = (member.offset_data, member.size)
            _require_end(path, archive.offset)
    except tarfile.TarError as error:
        raise _broken(path, str(error)) from None
    except OSError as error:
        raise unreadable(path, error) from None
    if not images:
        raise UsageError(f"{path} holds no image", f"give tars of {' '.join(SUFFIXES)}")
    twins = [key for key, count in Counter(sample_key(name) for name, _, _ in images).items() if count > 1]
    if twins:
        names = ", ".join(name for name, _, _ in images if sample_key(name) == twins[0])
        raise UsageError(
            f"{path}: sample '{twins[0]}' has several images: {names}",
            "write shards with one image a sample: nobody could say which of them is meant",
        )
    return images, others


def _refuse_compressed(path: str, first: bytes) -> None:
    for magic, kind in _COMPRESSED.items():
        if first.startswith(magic):
            what = f"{path} is compressed ({kind}): to read one image of it, all before it would have to be unpacked"
            raise UsageError(
                what, f"unpack it to a plain tar ({kind} -d), which is hardly larger: images are compressed"
            )


def _refuse_other_kinds(path: str, member: tarfile.TarInfo) -> None:
    require_utf8(member.name)
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "not a regular file"
        raise UsageError(f"{path}: member {member.name} is {kind}", "write the tar with the files themselves (tar -h)")


def _require_end(path: str, offset: int) -> None:
    """Every tar ends with blocks of zeros. One that was cut between two members reads like a shorter one."""
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise _broken(path, f"no member and no end at byte {offset:,}")


def _broken(path: str, reason: str) -> UsageError:
    return UsageError(f"{path}: truncated, or no tar ({reason})", "get the shard again, or remove it")


class Members(IndexedImages):
    """Encoded images that are members of tars."""

    def __init__(self, index: Index, side: str) -> None:
        super().__init__(index, side)
        self._shard, self._offset, self._size = (self.column(name) for name in ("shard", "offset", "size"))
        self._members = self.column_of_names("members")

    def name(self, i: int) -> str:
        """Tar and member."""
        return f"{self.index.header['watched'][self._shard[i]][0]}: member {self._members[i]}"

    def read(self, i: int) -> bytes:
        """The bytes of member `i`."""
        state, size = self.index.header["watched"][self._shard[i]], int(self._size[i])
        try:
            data = _tars.get(tuple(state), lambda: _opened(state)).read(int(self._offset[i]), size)
        except OSError as error:
            raise unreadable(self.name(i), error) from None
        if len(data) < size:
            what = f"{self.name(i)}: {len(data):,} of its {size:,} bytes are there"
            raise ImageFileError(what, "get the shard again")
        return data


def _opened(state: Sequence[Any]) -> _Tar:
    path, size, mtime_ns, _ = state
    tar = _Tar(path)
    same_as_listed(path, size, mtime_ns, os.fstat(tar.file))
    return tar
