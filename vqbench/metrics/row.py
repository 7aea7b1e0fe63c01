"""A cell as one row, as `--json` prints it and reports read it: scores, whose definitions they are by, cautions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vqbench.metrics.definitions import cautions, stored_digest
from vqbench.results.cell_files import FAILED
from vqbench.results.cell_folder import CellFolder
from vqbench.wording import size_text


def cell_row(
    label: str,
    spec: Mapping[str, Any],
    folder: CellFolder,
    state: str,
    stored: Mapping[str, Any],
    error: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A cell as one JSON object; `stored` is its result, `error` the reason of a failure that is not in its folder."""
    result = stored if state != FAILED else {}
    return {
        "cell": folder.name,
        "method": label,
        "dataset": spec["dataset"]["slug"],
        "recipe": spec["recipe"]["name"],
        "seed": spec["seed"],
        "protocol": spec["protocol"]["hash"],
        "state": state,
        "scores": result.get("scores", {}),
        "params": result.get("params") or {},
        "train_images_per_s": result.get("train_images_per_s"),
        "path": str(folder.path),
        **({"digests": known} if (known := _digests(result)) else {}),
        "collapse": stored.get("collapse"),
        "matched": size_text(spec.get("size")) or None,
        **({"pretrained": _with_remarks(spec["pretrained"], result)} if "pretrained" in spec else {}),
        **_sizes(spec, result),
        "error": (error or folder.error) if state == FAILED else None,
        **({"cautions": said} if (said := cautions(result.get("scores", {}), spec["protocol"]["n_images"])) else {}),
    }


def _with_remarks(planned: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a tokenizer that was trained already, with what was found out when it was scored."""
    found = result.get("pretrained") or {}
    remarks = dict.fromkeys((*planned.get("remarks", ()), *found.get("remarks", ())))
    return {**planned, **({"remarks": list(remarks)} if remarks else {})}


SIZES = ("tokens_per_image", "bits_per_image", "mean_tokens_per_image", "mean_bits_per_image")
"""Of one image; means where images have sizes of their own."""


def _sizes(spec: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, float]:
    """What is known of `SIZES`; results of before they were kept say them by scores, where they have these."""
    known = {name: result[name] for name in SIZES if name in result}
    scores, protocol = result.get("scores", {}), spec["protocol"]
    if known:
        return known
    tokens = scores["tokens"] / protocol["n_images"] if "tokens" in scores else 0.0
    if protocol.get("resolution"):
        known = {"tokens_per_image": tokens, "bits_per_image": scores.get("bpp", 0.0) * protocol["resolution"] ** 2}
    elif "pretrained" in spec:
        bits = tokens * scores.get("bits_per_token", 0.0)
        known = {"mean_tokens_per_image": tokens, "mean_bits_per_image": bits}
    return {name: value for name, value in known.items() if value}


def _digests(result: Mapping[str, Any]) -> dict[str, str]:
    found = {name: stored_digest(name, result) for name in result.get("scores", {}) if "/" not in name}
    return {name: digest for name, digest in found.items() if digest}
