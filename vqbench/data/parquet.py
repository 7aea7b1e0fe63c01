"""Images in the rows of parquet files and of Arrow files, as `datasets` writes them; pyarrow reads both.

A row is read with its whole group of rows, so an order in which neighbours are neighbours is much cheaper than any
other: `stored_order`.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbench.data.decode import ImageFileError, short_side
from vqbench.data.encoded import Opened, ends_digest, unreadable
from vqbench.data.index import Found, Index, IndexedImages
from vqbench.data.source_shards import same_as_listed, states_of
from vqbench.errors import UsageError
from vqbench.wording import reason_of_library

_READERS = 4  # each has a group of rows in memory
_USUAL = ("image", "img", "jpg", "jpeg", "png", "webp")
"""Names of the column that is meant where several hold bytes."""
_GROUPS_HELD = 2
_FILES_HELD = 64


@dataclass(frozen=True)
class _Table:
    """One file of rows, open."""

    file: Any
    """A ParquetFile, or the record batches of an Arrow file, mapped."""
    schema: Any
    column: str
    """The column of images."""
    has_path: bool
    """Whether it is struct{bytes, path}, else plain bytes."""
    groups: int

    def group(self, number: int, columns: Sequence[str]) -> Any:
        """A group of rows, as a table."""
        import pyarrow

        if isinstance(self.file, list):
            return pyarrow.Table.from_batches([self.file[number]]).select([c.partition(".")[0] for c in columns])
        return self.file.read_row_group(number, columns=list(columns), use_threads=False)

    def images(self, number: int) -> Any:
        """Encoded images of a group, a chunked array of bytes."""
        column = self.group(number, [f"{self.column}.bytes" if self.has_path else self.column])[self.column]
        return _part(column, "bytes") if self.has_path else column


def _part(column: Any, name: str) -> Any:
    """A field of a column of structs."""
    import pyarrow.compute

    return pyarrow.compute.struct_field(column, name)


def _open(path: str) -> _Table:
    """Raises UsageError for a file that is none of rows of images."""
    import pyarrow
    from pyarrow import ipc, parquet

    try:
        if path.endswith(".arrow"):
            stream = ipc.open_stream(pyarrow.memory_map(path))
            file, schema = list(stream), stream.schema
            groups = count = len(file)
        else:
            file = parquet.ParquetFile(path, memory_map=False, pre_buffer=False)
            schema, groups, count = file.schema_arrow, file.metadata.num_row_groups, file.metadata.num_rows
        if not count:
            raise UsageError(f"{path} holds no row", "get the shard again, or remove it")
        return _Table(file, schema, *_image_column(schema, path), groups)
    except pyarrow.ArrowException as error:
        kind = "Arrow" if path.endswith(".arrow") else "parquet"
        what = f"{path}: truncated, or no {kind} file ({reason_of_library(error)})"
        raise UsageError(what, "get the shard again, or remove it") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _image_column(schema: Any, path: str) -> tuple[str, bool]:
    """Name of the column of images, found by its type, and whether it is struct{bytes, path}. Raises UsageError."""
    import pyarrow.types as kinds

    def is_bytes(kind: Any) -> bool:
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    def is_image(kind: Any) -> bool:
        return kinds.is_struct(kind) and any(f.name == "bytes" and is_bytes(f.type) for f in kind)

    found = [f.name for f in schema if is_image(f.type)] or [f.name for f in schema if is_bytes(f.type)]
    usual = [name for name in _USUAL if name in found]
    if len(found) > 1 and usual:
        found = usual[:1]
    columns = ", ".join(f"{f.name}: {f.type}" for f in schema)
    if not found:
        what = f"{path} has no column of images, which is struct<bytes, path> or binary; it has {columns}"
        raise UsageError(what, "write the images themselves into it: `datasets` does for a column of type Image")
    if len(found) > 1:
        raise UsageError(f"{path} has several columns that may be images: {', '.join(found)}",
                         "write a file with one of them, or call it image")  # fmt: skip
    return found[0], is_image(schema.field(found[0]).type)


class FoundRows(Found):
    """Rows of parquet or Arrow files."""

    def __init__(self, shards: Sequence[str]) -> None:
        """Look through `shards`: all of their bytes are read once.

        Raises UsageError for a shard without images, a truncated one, and rows without bytes.
        """
        self.shards, self.watched = list(shards), states_of(shards)
        self.names: list[str] = []
        """The path that a row states, or ""."""
        self.labels: list[int] = []
        """Number in the column `label`, or -1."""
        self.sizes, self.shard_of, self.group_of, self.row_of = array("q"), array("q"), array("q"), array("q")
        self.number_of, self.short_sides = array("q"), array("q")
        """Of the row in its file, and of its image: to read them later would read every group again."""
        self._ends: list[str] = []
        with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
            for number, rows in enumerate(pool.map(lambda shard: list(_rows(shard)), shards)):
                for k, (group, row, name, label, size, end, short) in enumerate(rows):
                    self.names.append(name)
                    self.labels.append(label)
                    self.sizes.append(size)
                    self.shard_of.append(number)
                    self.group_of.append(group)
                    self.row_of.append(row)
                    self.number_of.append(k)
                    self._ends.append(end)
                    self.short_sides.append(short)

    def where(self, i: int) -> str:
        """File and row."""
        return f"{self.shards[self.shard_of[i]]}: row {self.number_of[i]}"

    def state(self, i: int) -> tuple[Any, ...]:
        """Its file, and where it lies in that."""
        return *self.watched[self.shard_of[i]], self.number_of[i], self.sizes[i]

    def ends(self, entries: Sequence[int]) -> list[str]:
        """sha256 over both ends of each row's bytes."""
        return [self._ends[i] for i in entries]

    def columns(self, entries: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """File, group and row."""
        held = {
            "shard": self.shard_of,
            "group": self.group_of,
            "row": self.row_of,
            "number": self.number_of,
            "short_side": self.short_sides,
        }
        return {name: np.array(column, np.int32)[entries] for name, column in held.items()}


def _rows(path: str) -> Iterator[tuple[int, int, str, int, int, str, int]]:
    """Group, row in it, path, label, size, `ends_digest` and short side of each row of a file."""
    import pyarrow

    table, number = _open(path), 0
    for group in range(table.groups):
        try:
            entries = zip(table.images(group), *_paths_and_labels(table, group), strict=False)
            for row, (value, name, label) in enumerate(entries):
                data = value.as_py()
                if data is None:
                    says = f", only the path {name}" if name else ""
                    what = f"{path}: row {number} has no bytes{says}"
                    raise ImageFileError(what, "write the images themselves into it, as push_to_hub of `datasets` does")
                yield group, row, name or "", label, len(data), ends_digest(data), _short_side(data)
                number += 1
        except (pyarrow.ArrowException, OSError) as error:
            what = f"{path}: truncated or damaged ({reason_of_library(error)})"
            raise UsageError(what, "get the shard again, or remove it") from None


def _short_side(data: bytes) -> int:
    try:
        return short_side(data, "row")
    except ImageFileError:  # it is named when it is decoded
        return 0


def _paths_and_labels(table: _Table, group: int) -> tuple[Iterable[str | None], Iterable[int]]:
    """Of each row of a group; without an end where the file states none."""
    import pyarrow.types as kinds

    schema = table.schema
    paths: Iterable[str | None] = itertools.repeat(None)
    labels: Iterable[int] = itertools.repeat(-1)
    if table.has_path and any(f.name == "path" for f in schema.field(table.column).type):
        paths = _part(table.group(group, [f"{table.column}.path"])[table.column], "path").to_pylist()
    if "label" in schema.names and kinds.is_integer(schema.field("label").type):
        labels = (-1 if label is None else label for label in table.group(group, ["label"])["label"].to_pylist())
    return paths, labels


_tables: Opened[_Table] = Opened(_FILES_HELD)
_groups: Opened[Any] = Opened(_GROUPS_HELD)


class Rows(IndexedImages):
    """Encoded images that are rows of parquet or Arrow files."""

    def __init__(self, index: Index, side: str) -> None:
        super().__init__(index, side)
        names = ("shard", "group", "row", "number")
        self._shard, self._group, self._row, self._number = (self.column(name) for name in names)

    def name(self, i: int) -> str:
        """File, row and id."""
        return f"{self.index.header['watched'][self._shard[i]][0]}: row {self._number[i]} ({self.ids[i]})"

    def read(self, i: int) -> bytes:
        """The bytes of row `i`, read with its whole group; the last groups are held."""
        state, group = tuple(self.index.header["watched"][self._shard[i]]), int(self._group[i])
        try:
            images = _groups.get((state, group), lambda: _tables.get(state, lambda: _opened(state)).images(group))
            data: bytes = images[int(self._row[i])].as_py()
        except (ValueError, IndexError, OSError) as error:  # pyarrow's own errors are ValueErrors and OSErrors
            what = f"{self.name(i)}: cannot be read ({reason_of_library(error)})"
            raise ImageFileError(what, "get the shard again") from None
        return data

    def short_sides(self) -> NDArray[np.int32]:
        """(N,) as they were found when every row was read."""
        return self.column("short_side")

    def stored_order(self) -> NDArray[np.int64]:
        """Positions in the order of files and rows: any other reads a group of rows for each image."""
        return np.lexsort((self._number, self._shard))


def _opened(state: Sequence[Any]) -> _Table:
    path, size, mtime_ns, _ = state
    same_as_listed(path, size, mtime_ns, os.stat(path))
    return _open(path)
