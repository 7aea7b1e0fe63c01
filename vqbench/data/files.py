"""Images that are files in a tree: listing them, and reading them at a resolution."""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbench.data.decode import AS_EVER, SUFFIXES, ImageFileError, Reading, name_unusable, read_each
from vqbench.data.encoded import END, EncodedImages, encoded_digest, unreadable
from vqbench.data.hashing import digest_of_each
from vqbench.data.index import Found, Index, IndexedImages, named, remembered_contents, state_of
from vqbench.errors import UsageError, require_utf8
from vqbench.machine.home import expanded


@dataclass(frozen=True)
class ImageFile:
    """One listed file; what is known of it without opening it."""

    id: str
    """Path relative to the listed folder, with forward slashes."""
    path: Path
    size: int
    mtime_ns: int
    ctime_ns: int


def absolute(path: str | Path) -> Path:
    """An absolute path that keeps symbolic links: what they lead to may differ between machines, the name does not.

    Raises UsageError for one that is not UTF-8.
    """
    place = Path(os.path.abspath(expanded(path)))
    require_utf8(place)
    return place


def list_images(root: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[ImageFile]:
    """Every file below `root` with one of the suffixes, sorted by id. Hidden files and folders are left out.

    Links are followed; a folder that is reached twice (a loop of links, too) is listed once. Raises UsageError where
    there is no such folder or a part of it cannot be read: a set must not become smaller unnoticed.
    """
    files = FoundFiles(str(root))
    files.walk(root, suffixes)
    files.whole()
    listed = [
        ImageFile(name, Path(files.where(i)), files.sizes[i], files.mtimes[i], files.ctimes[i])
        for i, name in enumerate(files.names)
    ]
    return sorted(listed, key=lambda file: file.id)


class FoundFiles(Found):
    """Files below a folder, or of a list, with what is known of them without opening one."""

    def __init__(self, base: str) -> None:
        self.base, self.watched = base, []
        self.names: list[str] = []
        self.sizes: array[int] = array("q")
        self.mtimes, self.ctimes = array("q"), array("q")
        self.bad: list[ImageFileError] = []

    def whole(self) -> FoundFiles:
        """These. Raises UsageError where a part cannot be read."""
        if self.bad:
            raise name_unusable(sorted(self.bad, key=lambda error: error.what))
        return self

    def walk(self, root: Path, suffixes: tuple[str, ...] = SUFFIXES) -> None:
        """Look at every file with one of the suffixes below a folder, which is the base or lies in it."""
        if not root.is_dir():
            state = "is a file, not a folder" if root.exists() else "does not exist"
            raise UsageError(f"{root} {state}", "give a folder that holds images")
        seen: set[tuple[int, int]] = set()
        waiting, first = [str(root)], len(self.base.rstrip("/")) + 1
        try:
            while waiting:
                folder = waiting.pop()
                here = os.stat(folder)
                if (here.st_dev, here.st_ino) in seen:
                    continue
                seen.add((here.st_dev, here.st_ino))
                self.watched.append(state_of(folder))
                with os.scandir(folder) as entries:
                    # sorted: which of two links is taken is always one
                    for entry in sorted(entries, key=lambda e: e.name, reverse=True):
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir():
                            waiting.append(entry.path)
                        elif entry.name.lower().endswith(suffixes):
                            self.add(entry.path[first:])
        except OSError as error:
            raise UsageError(f"{error.filename}: cannot be listed ({error.strerror})", "mend its permissions") from None

    def add(self, name: str) -> None:
        """Look at one file, named from the base on."""
        path = os.path.join(self.base, name)
        require_utf8(path)
        try:
            status = os.stat(path)
        except OSError as error:  # a dangling link, most often
            self.bad.append(ImageFileError(f"{path}: cannot be read ({error.strerror})", "mend the link, or remove it"))
            return
        if not stat.S_ISREG(status.st_mode):
            self.bad.append(ImageFileError(f"{path}: not a regular file", "remove it"))
            return
        self.names.append(name)
        self.sizes.append(status.st_size)
        self.mtimes.append(status.st_mtime_ns)
        self.ctimes.append(status.st_ctime_ns)

    def where(self, i: int) -> str:
        """Its path."""
        return os.path.join(self.base, self.names[i])

    def state(self, i: int) -> tuple[Any, ...]:
        """Path, size and times."""
        return self.where(i), self.sizes[i], self.mtimes[i], self.ctimes[i]

    def ends(self, entries: Sequence[int]) -> list[str]:
        """sha256 over both ends of each file."""
        return read_each(lambda k: _ends(self.where(entries[k])), len(entries))

    def columns(self, entries: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Path and times."""
        times = {"mtime_ns": self.mtimes, "ctime_ns": self.ctimes}
        return {
            **named("paths", (self.names[i] for i in entries.tolist())),
            **{name: np.array(column, np.int64)[entries] for name, column in times.items()},
        }


def contents_digest(files: Sequence[ImageFile]) -> str:
    """sha256 over sorted (id, size, sha256 of the first and last 16 KiB): the same on every machine.

    A file that was made again keeps its size if it is a bitmap, so sizes alone would not tell. What was read is
    remembered in `home()/prepared` until the listing changes. Raises UsageError that names files that cannot be read.
    """

    return Files.of(files).digest()


def listing_key(files: Sequence[ImageFile]) -> str:
    """Changes whenever the content of a file may have changed; valid on this machine only."""
    # Paths and change times too: an archive unpacked over another keeps names and times, and bitmaps keep sizes.
    return digest_of_each((str(f.path), f.id, f.size, f.mtime_ns, f.ctime_ns) for f in files)


def _ends(path: str) -> str | ImageFileError:
    """`ends_digest` of a file, of which no more is read."""
    try:
        with open(path, "rb", buffering=0) as file:
            sha256 = hashlib.sha256(file.read(END))
            file.seek(max(END, os.fstat(file.fileno()).st_size - END))
            sha256.update(file.read(END))
    except OSError as error:
        return unreadable(path, error)
    return sha256.hexdigest()


class Files(IndexedImages):
    """Encoded images that are files."""

    def __init__(self, index: Index, side: str) -> None:
        super().__init__(index, side)
        self._paths = self.column_of_names("paths")
        self._is_stated = "mtime_ns" in index.columns

    @classmethod
    def of(cls, files: Sequence[ImageFile]) -> Files:
        """Files of a list that was made just now, in its order; no index is kept of them."""
        side = {"start": 0, "stop": len(files), "key": listing_key(files), "digest": ""}
        columns = {
            **named("ids", (f.id for f in files)),
            **named("paths", (str(f.path) for f in files)),
            "size": np.array([f.size for f in files], np.int64),
        }
        return cls(Index({"count": len(files), "sides": {"": side}, "base": ""}, columns), "")

    def digest(self) -> str:
        """`encoded_digest`, read now where nothing remembers it."""

        def read() -> str:
            ends = read_each(lambda i: _ends(self.name(i)), len(self))
            return encoded_digest(zip(self.ids, self.column("size").tolist(), ends, strict=True))

        return super().digest() or remembered_contents(self.key, read)

    def name(self, i: int) -> str:
        """Its path."""
        return os.path.join(self.base, self._paths[i])

    def header(self, i: int) -> Path:
        """The file, of which the first bytes are enough."""
        return Path(self.name(i))

    def read(self, i: int) -> bytes:
        """The bytes of file `i`, if it is the one that was listed."""
        path = self.name(i)
        try:
            with open(path, "rb", buffering=0) as file:
                if self._is_stated:
                    self._check(i, os.fstat(file.fileno()))
                return file.read()
        except OSError as error:
            raise unreadable(path, error) from None

    def _check(self, i: int, status: os.stat_result) -> None:
        listed = int(self.column("size")[i]), int(self.column("mtime_ns")[i])
        if listed != (status.st_size, status.st_mtime_ns):
            hint = f"rm {self.index.path} has the set listed again" if self.index.path else "start the command again"
            raise ImageFileError(f"{self.name(i)}: changed since the set was listed", hint)


class FileImages(EncodedImages):
    """Image files of a list, decoded each time they are asked for."""

    def __init__(self, files: Sequence[ImageFile], resolution: int, crop: bool, reading: Reading = AS_EVER) -> None:
        super().__init__(Files.of(files), resolution, crop, reading)
