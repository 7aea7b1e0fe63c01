"""A folder of the decoded cache: read when all of it is there, never before."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vqbench.machine.home import folder_in_home, keep_text, keeping, open_like_its_folder

PIXELS, META = "pixels.bin", "meta.json"


def cached_folder(base: Path, name: str, fill: Callable[[Path], Mapping[str, Any]]) -> Path:
    """`base/name`, made unless an earlier call has made it: `pixels.bin`, which `fill(file)` writes, and `meta.json`.

    That has the length as "bytes", and what `fill` returns. Processes that want the same folder wait for one another;
    where they cannot lock they work twice, which gives the same. Raises OSError.
    """
    final = base / name
    if is_whole(final):
        return final
    with locked(folder_in_home(base) / f".{name}.lock") as is_alone:
        if not is_whole(final):
            refuse_unreadable(final)
            if is_alone:  # what a process that was killed has left may take the room that is needed now
                _clear_up(final)
            try:
                _make(folder_in_home(final), fill)
            except OSError:  # of two that could not lock, the other has cleared up
                if not is_whole(final):
                    raise
    return final


def _make(folder: Path, fill: Callable[[Path], Mapping[str, Any]]) -> None:
    with keeping(folder / PIXELS) as partial:
        said = fill(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may keep the name and lose the pixels
            size = os.fstat(file.fileno()).st_size
    keep_text(folder / META, json.dumps({"bytes": size, **said}))
    _clear_up(folder)


def _clear_up(folder: Path) -> None:
    for left in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # of a process that was killed, perhaps another user's
            left.unlink()


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


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, where the disk knows locks; waits for whoever holds it. Gives whether it is held."""
    is_held = False
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
                is_held = True
            break
        yield is_held
