"""Pictures of stored results: code histograms and reconstructions side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vqbench.atomic import replacing


def draw_code_histogram(histogram: Path, target: Path) -> None:
    """How often each code was used over the whole split, most used first, on logarithmic axes, as a PNG."""
    import matplotlib as mpl
    import seaborn as sns
    from matplotlib.figure import Figure

    counts = np.load(histogram)["histogram"]
    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("notebook")}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")  # not pyplot: this runs in a thread
        axes = figure.subplots()
        for group, row in enumerate(counts):
            label = f"codebook {group}" if len(counts) > 1 else None
            frequency = np.sort(row)[::-1]
            axes.step(np.arange(1, len(row) + 1), np.where(frequency > 0, frequency, np.nan), where="mid", label=label)
        axes.set(xscale="log", yscale="log", xlabel="code, by rank", ylabel="times used over the validation split")
        used, size = int((counts > 0).sum()), counts.size
        axes.set_title(f"{used:,} of {size:,} codes used by {int(counts[0].sum()):,} tokens")
        axes.set_xlim(1, counts.shape[1])
        if len(counts) > 1:
            axes.legend()
        with replacing(target) as partial:
            figure.savefig(partial, format="png", dpi=120)


def draw_side_by_side(grids: Mapping[str, Path], target: Path, scale: int = 3) -> None:
    """One row of input images, then one row per method, from the `recon.png` of each; nothing where there is none."""
    from PIL import Image, ImageDraw, ImageFont

    images = {name: np.asarray(Image.open(path).convert("RGB")) for name, path in grids.items() if path.is_file()}
    if not images:
        return
    side = min(image.shape[0] for image in images.values()) // 2
    inputs = next(iter(images.values()))[:side]
    rows = {"input": inputs, **{name: image[side : 2 * side] for name, image in images.items()}}
    scale = max(1, scale * 32 // side)
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
