"""JSON objects in files: one that is whole or absent, or one in each line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vqbench.machine.atomic import write_text_atomically


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. Raises ValueError for NaN and infinities, which are not JSON."""
    write_text_atomically(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file or no whole object in it."""
    try:
        return _object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in the lines of a file; none where there is no file.

    A line may be half written, now or by a process that was killed, also where others were appended to it.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [found for line in lines if (found := _object(line)) is not None]


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
