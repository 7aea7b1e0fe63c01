"""The reconstructions of several cells in one picture, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vqbench.machine.atomic import replacing


def draw_side_by_side(grids: Mapping[str, Path], target: Path) -> None:
    """One row of input images, then one row per method, from the `recon.png` of each; nothing where there is none."""
    from PIL import Image, ImageDraw, ImageFont

    images = {name: np.asarray(Image.open(path).convert("RGB")) for name, path in grids.items() if path.is_file()}
    if not images:
        return
    side = min(image.shape[0] for image in images.values()) // 2
    inputs = next(iter(images.values()))[:side]
    rows = {"input": inputs, **{name: image[side : 2 * side] for name, image in images.items()}}
    scale = max(1, 3 * 32 // side)
    font = ImageFont.load_default(size=14)
    margin = 12 + int(max(font.getlength(name) for name in rows))
    step = side * scale + 4
    canvas = Image.new("RGB", (margin + inputs.shape[1] * scale, step * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (name, row) in enumerate(rows.items()):
        picture = Image.fromarray(row)
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        canvas.paste(picture, (margin, i * step))
        draw.text((6, i * step + side * scale // 2 - 8), name, fill="black", font=font)
    with replacing(target) as partial:
        canvas.save(partial, format="PNG")
