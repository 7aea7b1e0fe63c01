"""The curves of a cell, a point in each line of its metrics.jsonl: the one reader of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqbench.machine.json_files import read_json_lines


def read_curves(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, each an object with `images`; none where there is no file."""
    return [point for point in read_json_lines(path) if isinstance(point.get("images"), int | float)]
