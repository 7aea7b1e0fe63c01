"""Files that are whole or absent: written beside their place, then put into it."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def is_partial(path: Path) -> bool:
    """Whether `write_bytes_atomically` left a file that it had not put into its place: its process was killed."""
    return path.name.startswith(".") and path.name.endswith(".part")


@contextlib.contextmanager
def replacing(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """A name to write to, which is put into the place of `path` afterwards; nothing is left of it where that fails.

    Without a `partial` name of one's own, only one process at a time may write `path`.
    """
    partial = partial or path.with_name(path.name + ".part")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Readers see the old content or the new, never half of one; of two writers the last one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    with replacing(path, own) as partial:
        partial.write_bytes(content)


def write_arrays_atomically(path: Path, **arrays: Any) -> None:
    """`write_bytes_atomically` for numpy arrays, as a compressed .npz."""
    import numpy as np

    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes_atomically(path, content.getvalue())


def write_text_atomically(path: Path, text: str) -> None:
    """`write_bytes_atomically` for text, as UTF-8."""
    write_bytes_atomically(path, text.encode("utf-8"))
