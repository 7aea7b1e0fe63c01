"""Files that are whole or absent: written beside their place, then put into it."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Readers see the old content or the new, never half of one; of two writers the last one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_arrays_atomically(path: Path, **arrays: Any) -> None:
    """`write_bytes_atomically` for numpy arrays, as a compressed .npz."""
    import numpy as np

    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes_atomically(path, content.getvalue())


def write_text_atomically(path: Path, text: str) -> None:
    """`write_bytes_atomically` for text, as UTF-8."""
    write_bytes_atomically(path, text.encode("utf-8"))
