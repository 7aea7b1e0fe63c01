"""The table of gradients in docs/vaevq.md from its data: python tests/studies/vaevq_gradient_table.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parents[2] / "docs" / "vaevq" / "gradients.jsonl"
COLUMNS = {
    "RCS on codes": ("rcs", "codes"),
    "DCR on used": ("dcr", "codes_used"),
    "on unused": ("dcr", "codes_unused"),
    "pixel (codes) on means": ("pixel", "means"),
    "pixel (continuous) on means": ("continuous_pixel", "means"),
    "RCS on means": ("rcs", "means"),
    "KL on means": ("kl", "means"),
}


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.01 else f"{value:.1e}".replace("e-0", "e-")


def _line(row: dict[str, Any]) -> str:
    scales = (row["latent_rms"], row["code_rms_used"], row["code_rms_unused"], row["diagnostics"]["sigma_median"])
    norms = (row[term][of] for term, of in COLUMNS.values())
    about = (f"`{row['method']}`", str(row["dim"]), f"{row['budget']:,}", f"{row['images']:,}", str(row["used"]))
    return f"| {' | '.join((*about, *map(_number, (*scales, *norms))))} |"


def main() -> None:
    """Print it."""
    heads = (
        "form",
        "d",
        "budget",
        "images",
        "used",
        "latent rms",
        "code rms, used",
        "unused",
        "sigma, median",
        *COLUMNS,
    )
    print(f"| {' | '.join(heads)} |")
    print(f"| --- |{' ---: |' * (len(heads) - 1)}")
    for line in ROWS.read_text(encoding="utf-8").splitlines():
        print(_line(json.loads(line)))


if __name__ == "__main__":
    main()
