"""Pictures of a sweep: what each parameter explains, and the trials of several objectives with their front."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def _figure(target: Path, width: float, height: float) -> Iterator[Any]:
    """A figure that is saved to `target` as a PNG at the end."""
    import matplotlib as mpl
    import seaborn as sns
    from matplotlib.figure import Figure

    with mpl.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("notebook")}):
        figure = Figure(figsize=(width, height), layout="constrained")  # not pyplot: this may run in a thread
        yield figure
        partial = target.with_name(target.name + ".part")
        figure.savefig(partial, format="png", dpi=120)
    os.replace(partial, target)


def draw_importances(importances: Mapping[str, Mapping[str, float]], title: str, target: Path) -> None:
    """Objective → parameter → share, as bars, the most important first."""
    shown = {name: shares for name, shares in importances.items() if shares}
    height = 1.2 + 0.4 * max(len(shares) for shares in shown.values())
    with _figure(target, 6.4 * len(shown), height) as figure:
        for axes, (objective, shares) in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
        ):
            names = sorted(shares, key=lambda name: shares[name])
            axes.barh(names, [shares[name] for name in names])
            axes.set(xlim=(0, 1), xlabel=f"what tells good trials in {objective} from the rest, in shares", title=title)


def draw_pareto(
    rows: Sequence[Mapping[str, Any]], front: Sequence[Mapping[str, Any]], titles: Mapping[str, str], target: Path
) -> None:
    """Every trial by two objectives at a time, a colour per method, rings about those on the front."""
    pairs = list(itertools.combinations(titles, 2))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with _figure(target, 6.4 * len(pairs), 4.8) as figure:
        for axes, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
            for method in methods:
                own = [row["values"] for row in rows if row["method"] == method]
                axes.scatter([v[x] for v in own], [v[y] for v in own], label=method, alpha=0.8)
            best = [row["values"] for row in front]
            axes.scatter([v[x] for v in best], [v[y] for v in best], s=140, facecolors="none", edgecolors="black",
                         label="Pareto front")  # fmt: skip
            axes.set(xlabel=titles[x], ylabel=titles[y])
            axes.legend()
