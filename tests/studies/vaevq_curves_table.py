"""How `vaevq@first` breaks, in docs/vaevq.md, from curves that are kept: python tests/studies/vaevq_curves_table.py"""

from __future__ import annotations

import json
from pathlib import Path

CURVES = Path(__file__).parents[1] / "golden" / "vaevq_curves.json"
SHOWN = (5120, 9216, 11264, 13312, 15360, 19456)
COLUMNS = {
    "loss/pixel": ("pixel loss, codes", ".3f"),
    "loss/continuous_pixel": ("pixel loss, continuous", ".3f"),
    "quantizer/alignment_rms": ("`alignment_rms`", ".1f"),
    "perplexity": ("perplexity of the batch", ".0f"),
}


def main() -> None:
    """Print it."""
    known = json.loads(CURVES.read_text(encoding="utf-8"))
    cell, at = known["cells"]["vlq_rcs_dcr"], {images: i for i, images in enumerate(known["images"])}
    print("| images |", " | ".join(title for title, _ in COLUMNS.values()), "|")
    print("| ---: |", " | ".join("---:" for _ in COLUMNS), "|")
    for images in SHOWN:
        print(f"| {images:,} |", " | ".join(f"{cell[c][at[images]]:{f}}" for c, (_, f) in COLUMNS.items()), "|")


if __name__ == "__main__":
    main()
