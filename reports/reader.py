"""What cells keep beside their scores, read with care: a file that is missing or cut off is None, never an error."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vqbench.results.cell_files import PER_IMAGE

Value = TypeVar("Value")
MOST_BYTES = 1 << 28
"""What one reader keeps: 800 cells of 10,000 images and 4 metrics, or 3 of their sets of Inception features."""


@dataclass(frozen=True)
class ImageTable:
    """A cell's per_image.parquet."""

    images: int
    """A number that stands for the ids: the same for the same images in the same order, within one reader."""
    columns: Mapping[str, NDArray[np.float64]]
    """Metric → (N,) values."""


def read_array(path: Path, name: str) -> NDArray[Any] | None:
    """The array `name` of an .npz; None where it is not kept, by a version that did not keep it, or not whole."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found: NDArray[Any] = arrays[name]
            return found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


class Reader:
    """Reads files of cells, each once while it is in use, and keeps what was used last, up to `most_bytes`.

    A comparison of a section makes one and drops it: a cell takes part in many pairs, and no file changes meanwhile.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0
        self._ids: list[Any] = []

    def once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What `make` returned for this key, made again only if it had to be dropped."""
        if key in self._kept:
            self._kept.move_to_end(key)
            found: Value = self._kept[key]
            return found
        value = self._kept[key] = make()
        self._bytes += _size(value)
        while self._bytes > self.most_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _size(dropped)
        return value

    def table(self, cell: Path) -> ImageTable | None:
        """The values of a cell's images; None where it kept none that can be read."""
        return self.once((cell, "per_image"), lambda: self._read_table(cell / PER_IMAGE))

    def ids(self, table: ImageTable) -> list[str]:
        """The images of a table that this reader has read, as their dataset names them."""
        return list(map(str, self._ids[table.images].to_pylist()))

    def array(self, path: Path, name: str) -> NDArray[Any] | None:
        """As `read_array`."""
        return self.once((path, name), lambda: read_array(path, name))

    def _read_table(self, path: Path) -> ImageTable | None:
        from pyarrow import ArrowException, parquet

        try:
            table = parquet.ParquetFile(path).read(use_threads=False).combine_chunks()
            ids = table.column("id").combine_chunks()
        except (OSError, ArrowException, KeyError):
            return None
        columns = {name: _numbers(table.column(name)) for name in table.column_names}
        return ImageTable(self._number_of(ids), {name: found for name, found in columns.items() if found is not None})

    def _number_of(self, ids: Any) -> int:
        for number, known in enumerate(self._ids):
            if known.equals(ids):
                return number
        self._ids.append(ids)
        return len(self._ids) - 1


def _numbers(column: Any) -> NDArray[np.float64] | None:
    """An Arrow column of floats, by its buffer, for its `to_numpy` imports pandas; None for others, and with gaps."""
    kind = {"double": np.float64, "float": np.float32}.get(str(column.type))
    if kind is None or column.null_count or column.num_chunks != 1:
        return None
    chunk = column.chunk(0)
    values = np.frombuffer(chunk.buffers()[1], kind, len(chunk), chunk.offset * np.dtype(kind).itemsize)
    return values.astype(np.float64)


def _size(value: Any) -> int:
    """Bytes of the arrays in a value, about."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    parts = value.columns if isinstance(value, ImageTable) else getattr(value, "__dict__", {})
    return sys.getsizeof(value) + sum(part.nbytes for part in parts.values() if isinstance(part, np.ndarray))
