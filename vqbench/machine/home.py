"""Where vqbench keeps what outlives a run: weights and reference features."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from vqbench.errors import UsageError, require_utf8
from vqbench.machine.atomic import replacing


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` as the user's home; as it stands where there is no such user, as a shell has it."""
    return Path(os.path.expanduser(path))


def home() -> Path:
    """`$VQBENCH_HOME`, or `vqbench` in the user's cache folder. The folder need not exist yet.

    Raises UsageError where the user has no home either.
    """
    chosen = os.environ.get("VQBENCH_HOME")
    if chosen:
        place = expanded(chosen)
    elif (cache := cache_root()) is not None:
        place = cache / "vqbench"
    else:
        raise UsageError(
            f"there is no folder for weights and prepared images: HOME is not set, and user {os.getuid()} has no entry "
            "among the users of this machine",
            "export VQBENCH_HOME=DIR with a folder that can be written",
        )
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


@contextlib.contextmanager
def keeping(path: Path) -> Iterator[Path]:
    """A name to write to, which is put into the place of a file of a folder of the home, open as the home is."""
    folder_in_home(path.parent)
    with replacing(path, path.with_name(f".{path.stem[:16]}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")) as partial:
        yield partial
    open_like_its_folder(path)


def keep_text(path: Path, text: str) -> None:
    """Write a file of a folder of the home atomically, as open to others as the home is."""
    with keeping(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def remembered_digest(kept: Path, make: Callable[[], str]) -> str:
    """The sha256, as hex, that the file `kept` of a folder of the home holds; what `make` gives, where it holds none.

    `kept` must have a name of its own for everything that the digest depends on.
    """
    with contextlib.suppress(OSError, ValueError):
        digest = kept.read_text(encoding="ascii")
        if re.fullmatch(r"[0-9a-f]{64}", digest):
            return digest
    digest = make()
    with contextlib.suppress(OSError):  # a home that cannot be written costs the work each time, no result
        keep_text(kept, digest)
    return digest


def home_of_nobody() -> dict[str, str]:
    """`HOME` for what insists on one, as MLflow does: ours, for a user without. Empty for everybody else."""
    return {"HOME": str(home())} if os.path.expanduser("~") == "~" else {}


def cache_root() -> Path | None:
    """The user's cache folder: `$XDG_CACHE_HOME`, or `~/.cache`; None for a user without a home."""
    root = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return None if root.parts[:1] == ("~",) else root


def torch_hub_checkpoints() -> Path | None:
    """Where `torch.hub` keeps downloaded weights, found without importing torch; None for a user without a home."""
    torch_home, cache = os.environ.get("TORCH_HOME"), cache_root()
    root = expanded(torch_home) if torch_home else cache / "torch" if cache is not None else None
    return root / "hub" / "checkpoints" if root is not None else None


def working_folder() -> Path:
    """The folder in which a command was given. Raises UsageError where somebody has deleted it."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UsageError(
            "the folder in which this command was given no longer exists",
            "go to one that does (`cd DIR`), then give the command again",
        ) from None
