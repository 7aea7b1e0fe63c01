"""A folder of the decoded cache: made aside, moved into place when it is whole, never read before."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from vqbench.machine.home import folder_in_home, open_like_its_folder

PIXELS, META = "pixels.bin", "meta.json"


def cached_folder(base: Path, name: str, fill: Callable[[Path], None], arrays: tuple[str, ...] = ()) -> Path:
    """`base/name`, made by `fill(folder)` unless an earlier call has made it; `arrays` are its .npy files.

    `fill` writes `pixels.bin` and last `meta.json` with its length as "bytes". Processes that want the same folder
    wait for one another; where they cannot lock they work twice, and the first to finish is kept. Raises OSError.
    """
    final = base / name
    if is_whole(final, arrays):
        return final
    folder_in_home(base)
    with locked(base / f".{name}.lock"):
        if not is_whole(final, arrays):
            refuse_unreadable(final)
            _remove_leftovers(base, name)
            _make(base, name, fill, arrays)
    return final


def is_whole(folder: Path, arrays: tuple[str, ...] = ()) -> bool:
    """Whether the folder was finished and its files, and its .npy files, still have their full length."""
    import numpy as np

    try:
        for name in arrays:
            np.load(folder / name, mmap_mode="r", allow_pickle=False)
        said = json.loads((folder / META).read_text(encoding="utf-8"))
        files = said["files"] if "files" in said else {PIXELS: said["bytes"]}  # of shards, or of what is in one file
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return False


def refuse_unreadable(folder: Path) -> None:
    """Raise PermissionError for a folder that is another user's: it may be whole, and cannot be replaced."""
    for name in (META, PIXELS):
        with contextlib.suppress(FileNotFoundError), open(folder / name, "rb"):
            pass


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder, or of the nearest one above it that can be looked at."""
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


def _make(base: Path, name: str, fill: Callable[[Path], None], arrays: tuple[str, ...]) -> None:
    final = base / name
    temporary = base / f"{_prefix(name)}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()  # as the umask says, which tempfile's own does not ask
    try:
        open_like_its_folder(temporary)
        fill(temporary)
        for file in temporary.iterdir():
            _flush(file)  # else a power cut may keep the rename and lose the pixels
            open_like_its_folder(file)
        if final.exists() and not is_whole(final, arrays):
            os.replace(final, temporary / "damaged")
        os.replace(temporary, final)
        shutil.rmtree(final / "damaged", ignore_errors=True)
    except OSError as error:
        lost_race = error.errno in (errno.ENOTEMPTY, errno.EEXIST) and is_whole(final, arrays)
        if not lost_race:
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def _prefix(name: str) -> str:
    return f".{name}-{socket.gethostname()}-"


def _remove_leftovers(base: Path, name: str) -> None:
    """Remove what processes of this host left behind when they were killed."""
    for folder in base.glob(f"{_prefix(name)}*-*"):
        process = folder.name.removeprefix(_prefix(name)).split("-")[0]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, where the disk knows locks; waits for whoever holds it."""
    with contextlib.ExitStack() as held:
        for mode in ("a", "r"):  # another user's can be locked too where it can be read, on most disks
            try:
                handle = held.enter_context(open(path, mode, encoding="utf-8"))
            except (PermissionError, FileNotFoundError):  # not ours to make: what is made below it says so
                continue
            open_like_its_folder(path, lock=True)
            with contextlib.suppress(ImportError, OSError):  # no fcntl on Windows, no locks on some network disks
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX)
            break
        yield
