"""Images that are files in a tree: listing them, and reading them at a resolution."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vqbench.data.dataset import Images, Pixels, centre_crop, digest_of
from vqbench.data.decode import (
    AS_EVER,
    SUFFIXES,
    ImageFileError,
    Reading,
    decode_image,
    measure_image,
    name_unusable,
    short_side,
)
from vqbench.errors import UsageError, require_utf8
from vqbench.machine.home import expanded, home, remembered_digest

_END = 2**14
_READERS = 16  # more than cores: on a network disk, opening a file is mostly waiting


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


def list_images(root: Path) -> list[ImageFile]:
    """Every image file below `root`, sorted by id. Hidden files and folders are left out.

    Links are followed; a folder that is reached twice (a loop of links, too) is listed once. Raises UsageError where
    there is no such folder or a part of it cannot be read: a set must not become smaller unnoticed.
    """
    if not root.is_dir():
        state = "is a file, not a folder" if root.exists() else "does not exist"
        raise UsageError(f"{root} {state}", "give a folder that holds images")
    try:
        files = list(_walk(root))
        if bad := [file for file in files if isinstance(file, ImageFileError)]:
            raise name_unusable(sorted(bad, key=lambda error: error.what))
        return sorted((file for file in files if isinstance(file, ImageFile)), key=lambda file: file.id)
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be listed ({error.strerror})", "mend its permissions") from None


def _walk(root: Path) -> Iterator[ImageFile | ImageFileError]:
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            continue
        seen.add((here.st_dev, here.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name, reverse=True):  # which of two links is taken: always one
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif entry.name.lower().endswith(SUFFIXES):
                    yield _image_file(root, Path(entry.path))


def _image_file(root: Path, path: Path) -> ImageFile | ImageFileError:
    name = path.relative_to(root).as_posix()
    require_utf8(path)
    try:
        status = path.stat()
    except OSError as error:  # a dangling link, most often
        return ImageFileError(f"{path}: cannot be read ({error.strerror})", "mend the link, or remove it")
    if not stat.S_ISREG(status.st_mode):
        return ImageFileError(f"{path}: not a regular file", "remove it")
    return ImageFile(name, path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def contents_digest(files: Sequence[ImageFile]) -> str:
    """sha256 over sorted (id, size, sha256 of the first and last 16 KiB): the same on every machine.

    A file that was made again keeps its size if it is a bitmap, so sizes alone would not tell. What was read is
    remembered in `home()/prepared` until the listing changes. Raises UsageError that names files that cannot be read.
    """

    def read() -> str:
        with ThreadPoolExecutor(_READERS) as pool:
            ends = list(pool.map(_ends, (file.path for file in files)))
        if bad := [end for end in ends if isinstance(end, ImageFileError)]:
            raise name_unusable(bad)
        return digest_of(*sorted((file.id, file.size, end) for file, end in zip(files, ends, strict=True)))

    return remembered_digest(home() / "prepared" / f"contents-{listing_key(files)[:24]}.txt", read)


def listing_key(files: Sequence[ImageFile]) -> str:
    """Changes whenever the content of a file may have changed; valid on this machine only."""
    # Paths and change times too: an archive unpacked over another keeps names and times, and bitmaps keep sizes.
    return digest_of(*((str(f.path), f.id, f.size, f.mtime_ns, f.ctime_ns) for f in files))


def _ends(path: Path) -> str | ImageFileError:
    """sha256 over the first and last 16 KiB of a file; over all of it where it is no longer than both."""
    try:
        with open(path, "rb", buffering=0) as file:
            sha256 = hashlib.sha256(file.read(_END))
            file.seek(max(_END, os.fstat(file.fileno()).st_size - _END))
            sha256.update(file.read(_END))
    except OSError as error:
        return ImageFileError(f"{path}: cannot be read ({error.strerror})", "mend it, or remove it")
    return sha256.hexdigest()


class FileImages(Images):
    """Image files, decoded each time they are asked for."""

    def __init__(self, files: Sequence[ImageFile], resolution: int, crop: bool, reading: Reading = AS_EVER) -> None:
        self.files = list(files)
        self.ids = [file.id for file in self.files]
        self.resolution = resolution
        self.crop = crop
        self.reading: Reading = reading
        self.content_key = listing_key(self.files)

    def load(self, i: int) -> Pixels:
        """Decode image `i`: resized, and centre-cropped where this is a validation set. Raises ImageFileError."""
        pixels = decode_image(self.files[i].path, self.resolution, self.reading)
        return centre_crop(pixels, self.resolution) if self.crop else pixels

    def encoded(self, i: int) -> bytes:
        """The bytes of file `i`. Raises ImageFileError."""
        path = self.files[i].path
        try:
            return path.read_bytes()
        except OSError as error:
            raise ImageFileError(f"{path}: cannot be read ({error.strerror})", "mend it, or remove it") from None

    def decode(self, i: int, encoded: bytes) -> Pixels:
        """What `load(i)` makes of file `i`, of its bytes. Raises ImageFileError, which names the file."""
        pixels = decode_image(encoded, self.resolution, self.reading, str(self.files[i].path))
        return centre_crop(pixels, self.resolution) if self.crop else pixels

    def measure(self, i: int) -> tuple[int, int]:
        """(H, W) of `load(i)`, from the file's header."""
        height, width = measure_image(self.files[i].path, self.resolution, self.reading)
        return (self.resolution, self.resolution) if self.crop else (height, width)

    def read_as(self, reading: Reading, crop: bool) -> FileImages:
        """The same files, read so."""
        return FileImages(self.files, self.resolution, crop, reading)

    def contents(self) -> str:
        """`contents_digest` of the files."""
        return contents_digest(self.files)

    def short_side(self, i: int) -> int:
        """Of file `i`, from its header. Raises ImageFileError."""
        return short_side(self.files[i].path)
