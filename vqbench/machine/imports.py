"""Imports of large packages, without the collector of cycles."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def lasting_imports() -> Iterator[None]:
    """What is made inside lasts as long as the process, as modules do: the collector of cycles never looks at it.

    torch and Lightning are hundreds of thousands of objects. Looked through again and again while they come, and a last
    time when the process ends, they cost a cell two seconds of CPU.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
