"""Where vqbench keeps what outlives a run: weights and reference features."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from vqbench.atomic import write_text_atomically
from vqbench.errors import require_utf8


def home() -> Path:
    """`$VQBENCH_HOME`, or `vqbench` in the user's cache folder. The folder need not exist yet."""
    chosen = os.environ.get("VQBENCH_HOME")
    place = Path(chosen).expanduser() if chosen else cache_root() / "vqbench"
    require_utf8(place)
    return place


def folder_in_home(folder: Path) -> Path:
    """Make a folder of the home (`home()/prepared`), open to whom the home is open. Returns it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        open_like_its_folder(folder)
    return folder


def open_like_its_folder(path: Path, lock: bool = False) -> None:
    """Let others use what this process has just made in the home, if the folder that it lies in is open to them.

    Such a folder is one that its group or all may write (chmod g+w): they may then read what is in it, write in
    folders below it, and take a `lock`. Everything else is as the umask made it.
    """
    with contextlib.suppress(OSError):  # another user's by now, or on a disk without permissions
        mode = path.parent.stat().st_mode
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            now = path.stat().st_mode
            taken = (0o077 | stat.S_ISVTX) if stat.S_ISDIR(now) else 0o066 if lock else 0o044
            path.chmod(stat.S_IMODE(now | (mode & taken)))


def keep_text(path: Path, text: str) -> None:
    """Write a file of a folder of the home atomically, as open to others as the home is."""
    folder_in_home(path.parent)
    write_text_atomically(path, text)
    open_like_its_folder(path)


def cache_root() -> Path:
    """The user's cache folder: `$XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def torch_hub_checkpoints() -> Path:
    """Where `torch.hub` keeps downloaded weights; found without importing torch."""
    torch_home = os.environ.get("TORCH_HOME")
    root = Path(torch_home).expanduser() if torch_home else cache_root() / "torch"
    return root / "hub" / "checkpoints"
