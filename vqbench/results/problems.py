"""What is wrong with a spec or a result that somebody else wrote, a later version, or half a disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from vqbench.results.cell_files import DONE, FAILED, RESULT, SPEC, later_version

_SPEC: tuple[tuple[str, type], ...] = (
    ("method", str),
    ("config", dict),
    ("components", dict),
    ("recipe", dict),
    ("recipe.name", str),
    ("recipe.images", int),
    ("dataset", dict),
    ("dataset.slug", str),
    ("protocol", dict),
    ("protocol.name", str),
    ("protocol.hash", str),
    ("protocol.n_images", int),
    ("seed", int),
)
"""What is read of a spec, by its path, and its type."""
_KINDS = {str: "text", dict: "an object", int: "a whole number"}


def spec_problem(spec: Mapping[str, Any]) -> str:
    """What is wrong with a spec; empty if nothing is."""
    if newer := later_version(SPEC, spec):
        return newer
    if missing := [key for key in dict.fromkeys(path.split(".")[0] for path, _ in _SPEC) if key not in spec]:
        return f"spec.json is not whole (no {', '.join(missing)}); the command that made the cell writes it again"
    for path, kind in _SPEC:
        if not isinstance(_at(spec, path), kind):
            return f"spec.json is not what vqbench wrote ({path} is not {_KINDS[kind]})"
    return _odd_object(SPEC, spec, ("paper", "plugin", "part_of", "paper_unspecified", "size"))


def result_problem(result: Mapping[str, Any]) -> str:
    """What is wrong with a result; empty if nothing is."""
    if newer := later_version(RESULT, result):
        return newer
    if result.get("state") not in (DONE, FAILED):
        return "result.json names no state"
    if odd := _odd_object(RESULT, result, ("scores", "params", "collapse", "error", "metrics")):
        return odd
    if odd := _odd_object(RESULT, result.get("metrics") or {}, result.get("metrics") or {}):
        return odd
    collapse = result.get("collapse")
    if collapse and not (isinstance(collapse.get("images"), int) and isinstance(collapse.get("reason"), str)):
        return "result.json is not what vqbench wrote (collapse has no images or no reason)"
    if result["state"] == FAILED:
        return ""
    if not result.get("scores"):
        return "result.json has no scores"
    speed = {name: result[name] for name in ("train_images_per_s",) if result.get(name) is not None}
    numbers = (*result["scores"].items(), *(result.get("params") or {}).items(), *speed.items())
    odd_names = [name for name, value in numbers if not _is_finite(value)]
    return f"result.json is not what vqbench wrote ({', '.join(odd_names)}: no finite number)" if odd_names else ""


def _at(spec: Mapping[str, Any], path: str) -> Any:
    found: Any = spec
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _odd_object(file: str, found: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Names the first of `keys` that is there and no object."""
    odd = next((key for key in keys if key in found and not isinstance(found[key], dict | None)), "")
    return f"{file} is not what vqbench wrote ({odd} is not an object)" if odd else ""


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
