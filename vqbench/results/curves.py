"""The curves of a cell, a point in each line of its metrics.jsonl: the one reader of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_curves(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, each an object with `images`; none where there is no file.

    A line may be half written, now or by a process that was killed, also where others were appended to it.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    points = []
    for line in lines:
        try:
            point = json.loads(line)
        except ValueError:
            continue
        if isinstance(point, dict) and isinstance(point.get("images"), int | float):
            points.append(point)
    return points
