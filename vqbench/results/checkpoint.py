"""How far a checkpoint got, read without torch."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any


class _Nothing:
    """Stands for whatever a pickle would make beside plain values: tensors, for one."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> _Nothing:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        return None


class _PlainValues(pickle.Unpickler):
    """Reads numbers, texts and dictionaries; imports nothing and loads no tensor, whatever the file asks for."""

    def find_class(self, module: str, name: str) -> Any:
        return collections.OrderedDict if (module, name) == ("collections", "OrderedDict") else _Nothing

    def persistent_load(self, pid: Any) -> None:
        return None


def images_in_checkpoint(path: Path) -> int:
    """Training images that a checkpoint of `training.recorder` holds; 0 where there is none that can be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            state = _PlainValues(io.BytesIO(archive.read(name))).load()
        return int(state["images_seen"])
    except Exception:  # whatever a damaged file raises: training will say so when it resumes
        return 0
