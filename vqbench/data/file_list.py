"""The files that a list names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from vqbench.data.dataset import path_safe
from vqbench.data.decode import SUFFIXES
from vqbench.data.files import Files, FoundFiles, absolute
from vqbench.data.index import make_index
from vqbench.data.source_shards import SplitByNames, split_of
from vqbench.errors import UsageError
from vqbench.registry import DATASETS


@DATASETS.register("files")
class FileList(SplitByNames):
    """Image files that a text file names, one a line (files:LIST.txt; a split by hash)."""

    takes_argument: ClassVar[str] = "LIST.txt"

    def __init__(self, argument: str, resolution: int, data_root: Path | None) -> None:
        super().__init__(argument, resolution, data_root)
        listed = absolute(argument)
        root = absolute(data_root) if data_root is not None else listed.parent
        self.reference, self.slug = f"files:{listed}", f"files-{path_safe(listed.stem)}"
        found = FoundFiles(str(root))
        for name in _lines(listed):
            found.add(_from(root, name))
        found.whole()
        split = split_of(found.names)
        self.give_sides(make_index(found, found.names, split.sides, split.facts()), Files)


def _from(root: Path, name: str) -> str:
    """A listed path as seen from `root`, however it was written; whole where it lies elsewhere."""
    path = os.path.normpath(root / name)
    return path.removeprefix(f"{root}/")


def _lines(path: Path) -> list[str]:
    """The paths that a file lists. Raises UsageError where it cannot be read, or names what is no image."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"{path} cannot be read ({reason})", "give a text file with a path a line") from None
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise UsageError(f"{path} names no file", "write a path a line, relative to the list or to --data-root")
    if others := [name for name in names if not name.lower().endswith(SUFFIXES)]:
        raise UsageError(f"{path} names {others[0]}, which is no {' '.join(SUFFIXES)}", "list images, one path a line")
    return names
