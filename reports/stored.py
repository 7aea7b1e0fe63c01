"""What cells keep beside their scores, read with care: a file that is missing or cut off is None, never an error."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_array(path: Path, name: str) -> NDArray[Any] | None:
    """The array `name` of an .npz; None where it is not kept, by a version that did not keep it, or not whole."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found: NDArray[Any] = arrays[name]
            return found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def read_columns(path: Path, *names: str) -> dict[str, list[Any]] | None:
    """Columns of a parquet file; None where it is not whole or lacks one of them."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=list(names))
    except (OSError, ValueError, pyarrow.ArrowException):
        return None
    found: dict[str, list[Any]] = table.to_pydict()
    return found if set(names) <= set(found) else None
