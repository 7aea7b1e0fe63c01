"""Pictures as data URIs: figures as they were drawn, reconstructions without loss, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench.results.kept_images import as_pictures

if TYPE_CHECKING:
    from vqbench.reports.figures import Drawn
    from vqbench.reports.figures.reconstructions import Pixels, Sheet

BUDGET = 3_000_000
"""Bytes of all reconstructions of a page, as base64: figures, tables and details keep 2 MB of the 5."""


def data_uri(kind: str, content: bytes) -> str:
    """`content` as a data: URI of the media type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def figure_uri(files: Sequence[Path]) -> str | None:
    """The smaller of a figure's SVG and PNG files; None where it has neither."""
    kinds = {".svg": "image/svg+xml", ".png": "image/png"}
    found = [(path.read_bytes(), kinds[path.suffix]) for path in files if path.suffix in kinds and path.is_file()]
    if not found:
        return None
    content, kind = min(found, key=lambda pair: len(pair[0]))
    return data_uri(kind, content)


def cell_figure(figure: Drawn | None) -> dict[str, str] | None:
    """The figure of a single cell as the page's script wants it; None where there is none."""
    uri = figure_uri(figure.files) if figure is not None else None
    return {"image": uri, "caption": figure.caption} if figure is not None and uri is not None else None


def lossless(pixels: Pixels) -> str:
    """One picture, (H, W, 3) or grey (H, W), as WebP or PNG, whichever is smaller.

    Its values survive, and the page computes with them.
    """
    from PIL import Image, features

    image, contents = Image.fromarray(pixels), []
    for kind, options in (("webp", {"lossless": True, "method": 2}), ("png", {"optimize": True})):
        if kind == "png" or features.check("webp"):
            target = io.BytesIO()
            image.save(target, format=kind, **options)
            contents.append((target.getvalue(), f"image/{kind}"))
    content, kind = min(contents, key=lambda pair: len(pair[0]))
    return data_uri(kind, content)


def sheet_data(sheets: Sequence[Sheet], order: Sequence[str], budget: int = BUDGET) -> list[dict[str, Any]]:
    """Sheets as the page's script wants them, methods in the given order.

    Where all images need more than `budget` bytes, methods from the end of the order and then images are left out,
    and the sheet's `left_out` says so; the first image of each sheet and the first two methods always stay.
    """
    share = budget // max(1, len(sheets))
    return [_sheet(sheet, [label for label in order if label in sheet.by_group], share) for sheet in sheets]


def _sheet(sheet: Sheet, labels: list[str], budget: int) -> dict[str, Any]:
    shown, by_group = as_pictures(sheet.originals), {label: as_pictures(sheet.by_group[label]) for label in labels}
    originals, rows = [lossless(shown[0])], {label: [lossless(by_group[label][0])] for label in labels}
    most = max(2, int(budget / 2 / max(1, len(originals[0]))) - 1)  # methods: two images of each must find room
    kept = labels[:most]
    used = len(originals[0]) + sum(len(rows[label][0]) for label in kept)
    for i in range(1, len(sheet.ids)):
        encoded = {label: lossless(by_group[label][i]) for label in kept}
        original = lossless(shown[i])
        used += len(original) + sum(map(len, encoded.values()))
        if used > budget:
            break
        originals.append(original)
        for label, uri in encoded.items():
            rows[label].append(uri)
    return {
        "reason": sheet.reason,
        "ids": list(sheet.ids[: len(originals)]),
        "side": int(sheet.originals.shape[1]),
        "aspect": shown.shape[2] // shown.shape[1],
        "originals": originals,
        "methods": [{"label": label, "images": rows[label]} for label in kept],
        "left_out": _left_out(len(sheet.ids) - len(originals), labels[most:]),
    }


def _left_out(images: int, methods: Sequence[str]) -> str:
    said = [f"{images} more images"] * (images > 0) + [f"{len(methods)} methods further down the table"] * bool(methods)
    return f"Left out to keep this file small: {' and '.join(said)}." if said else ""
