"""The table of the search in docs/vaevq.md, from docs/vaevq/search.jsonl: python tests/studies/vaevq_search_table.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parents[2] / "docs" / "vaevq" / "search.jsonl"


def _cell(row: dict[str, Any] | None, base: dict[str, Any] | None) -> str:
    """PSNR less that of `vqgan` in the same condition (of `vqgan` itself, the PSNR), usage and perplexity."""
    if row is None or base is None:
        return ""
    psnr = f"{row['psnr']:.2f}" if row is base else f"{row['psnr'] - base['psnr']:+.2f}"
    flag = " flagged" if row["collapse"] else ""
    return f"{psnr} · {row['usage']:.2f} · {row['perplexity']:.0f}{flag}"


def main() -> None:
    """Print it."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    found = {(row["form"], row["images"], row["dim"], row["seed"]): row for row in rows}
    conditions = sorted({(row["images"], row["seed"], row["dim"]) for row in rows})
    heads = [f"{images // 1000}k, d {dim}, s{seed}" for images, seed, dim in conditions]
    print("| form | settings over `vaevq@first` |", " | ".join(heads), "|")
    print("| --- | --- |", " | ".join(["---:"] * len(heads)), "|")
    for form in dict.fromkeys(row["form"] for row in rows):
        own = [row for row in rows if row["form"] == form]
        said = dict.fromkeys(" ".join(row["settings"]) for row in own)  # one that depends on the width has several
        of = [found.get((form, images, dim, seed)) for images, seed, dim in conditions]
        bases = [found.get(("vqgan", images, dim, seed)) for images, seed, dim in conditions]
        settings = "" if own[0]["method"] == "vqgan" else " or ".join(f"`{text}`" if text else "none" for text in said)
        print(f"| {form} | {settings} |", " | ".join(map(_cell, of, bases)), "|")


if __name__ == "__main__":
    main()
