"""How every figure looks, and what it is saved as: seaborn's colour-blind palette, each with a marker and dashes."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqbench.errors import UsageError, unknown
from vqbench.machine.atomic import write_bytes_atomically
from vqbench.metrics.definitions import DEFINITIONS

FIGURE_FORMATS = ("png", "svg", "pdf")
MOST = 12
"""Groups (or curves) in one figure: so many can be told apart."""
WIDTH = 6.6  # inches: the text width of a page, so that 9 points are printed as 9 points
DPI = 160
LEGEND_LETTERS = 40
"""Longer labels are shortened: two columns of a legend hold so much."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "h", "p")
_DASHES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), ":")
_OTHER_SCRIPTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Hiragino Sans", "PingFang SC", "Microsoft YaHei",
    "Malgun Gothic", "Noto Sans", "Arial Unicode MS", "Noto Emoji",
)  # fmt: skip
_RC = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
    "grid.linewidth": 0.6,
    "svg.fonttype": "path",  # the same picture on a machine without our fonts, and no text for a browser to run
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
}


@dataclass(frozen=True)
class Picture:
    """A figure that is drawn and not yet saved."""

    name: str
    """What its files are called, without suffix; unique within a section."""
    title: str
    caption: str
    """What it shows, of how many images and seeds, and every label that was shortened in it."""
    figure: Any
    """A matplotlib.figure.Figure."""
    cell: str = ""
    """The name of the cell's folder where it shows a single cell, and belongs to what is said of that."""


@dataclass(frozen=True)
class Mark:
    """What tells one group from the others: never the colour alone."""

    color: Any
    marker: str
    dashes: Any
    short: str
    """The label as it stands in the figure, safe for matplotlib."""


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """The style of all figures, to draw and to save them in; a glyph that the font lacks is a box, not a warning."""
    import matplotlib as mpl
    import seaborn as sns

    style = {**sns.axes_style("whitegrid"), **sns.plotting_context("paper"), **_RC, "font.family": _fonts()}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _fonts() -> list[str]:
    """The font that comes with matplotlib, then those of this machine that have the letters of other scripts."""
    from matplotlib.font_manager import fontManager

    there = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in _OTHER_SCRIPTS if name in there)]


def new_figure(height: float, width: float = WIDTH, lay_out: bool = True) -> Any:
    """An empty figure of `width` × `height` inches; not pyplot's, for it may be drawn in a thread.

    lay_out: whether panels find their own places, so that no label is cut off.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained" if lay_out else None)


def check_formats(formats: Sequence[str]) -> None:
    """Raise UsageError for a format that figures are not saved in."""
    for name in formats:
        if name not in FIGURE_FORMATS:
            raise unknown("figure format", name, FIGURE_FORMATS, f"figures are saved as {', '.join(FIGURE_FORMATS)}")
    if not formats:
        raise UsageError("no format to save figures in", f"give one of {', '.join(FIGURE_FORMATS)}")


def save(figure: Any, stem: Path, formats: Sequence[str]) -> tuple[Path, ...]:
    """Write the figure as `stem`.png, `stem`.svg…; the same figure gives the same bytes. Call it within `drawing`."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    FigureCanvasAgg(figure)
    if figure.get_layout_engine() is not None:
        figure.get_layout_engine().execute(figure)  # laid out once, not for each format
        figure.set_layout_engine("none")
    files = []
    for name in formats:
        target = stem.with_name(f"{stem.name}.{name}")
        # the salt makes the ids in an SVG unique to this figure: a page may hold several
        content = io.BytesIO()  # drawing takes long: whoever is killed meanwhile should leave no half of a file
        with mpl.rc_context({"svg.hashsalt": stem.name}):
            _print(figure, name, content)
        write_bytes_atomically(target, content.getvalue())
        files.append(target)
    return tuple(files)


def _print(figure: Any, name: str, target: io.BytesIO) -> None:
    """The backend's own method, which draws once where Figure.savefig draws twice. No file is dated."""
    # of one format only: that of PDF takes long to import
    backend = importlib.import_module(f"matplotlib.backends.backend_{'agg' if name == 'png' else name}")
    canvas: Any = backend.FigureCanvas(figure)
    figure.set_dpi(DPI)  # printing a vector format leaves it at 72
    undated: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    getattr(canvas, f"print_{name}")(target, metadata=undated[name])


def marks(labels: Iterable[str]) -> dict[str, Mark]:
    """Label → how it is drawn, in the order of the labels; after the twelfth they begin again."""
    import seaborn as sns

    labels = list(dict.fromkeys(labels))
    # yellow, the ninth, is lost on white paper
    colors = [color for i, color in enumerate(sns.color_palette("colorblind")) if i != 8] + [(0.1, 0.1, 0.1)]
    short = short_labels(labels, LEGEND_LETTERS)
    return {
        label: Mark(
            colors[i % len(colors)],
            _MARKERS[i % len(_MARKERS)],
            _DASHES[(i + 2 * (i // len(colors))) % len(_DASHES)],
            without_math(short[label]),
        )
        for i, label in enumerate(labels)
    }


def without_math(text: str) -> str:
    """Text as matplotlib draws it letter by letter: no mathematics between $, nothing that cannot be printed."""
    visible = "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")
    return f"\N{NO-BREAK SPACE}{visible}" if visible.startswith("_") else visible  # legends leave out what begins so


def short_labels(labels: Iterable[str], most: int) -> dict[str, str]:
    """Label → itself, or its two ends where it is longer than `most`; two labels never become the same."""
    short: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        text, number = _shortened(label, most), 1
        while text in short.values():
            number += 1
            text = _shortened(label, most - len(f" #{number}")) + f" #{number}"
        short[label] = text
    return short


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 1]}…{text[len(text) - tail :]}"


def shortened_note(labels: Iterable[str], most: int = LEGEND_LETTERS) -> str:
    """For a caption: the labels that a figure shows shortened, in full."""
    cut = [f"{short} = {label}" for label, short in short_labels(labels, most).items() if short != label]
    return f" Shortened: {'; '.join(cut)}." if cut else ""


def legend_below(figure: Any, handles: Mapping[str, Any]) -> None:
    """Short label → its artist, in as many columns as fit, outside the panels, so that no point is hidden."""
    longest = max(map(len, handles))
    columns = max(1, min(len(handles), 4, int(WIDTH * 15 / (longest + 6))))  # about 15 letters in an inch
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False,
        handlelength=3.2, columnspacing=1.2,
    )  # fmt: skip


def legend_handle(mark: Mark, line: bool = True) -> Any:
    """What stands in a legend for a group: its line and marker, or the marker alone."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=mark.color, marker=mark.marker, linestyle=mark.dashes if line else "none")


def metric_label(metric: str) -> str:
    """A metric as the name of an axis: title, unit, which way is better."""
    definition = DEFINITIONS[metric]
    unit = f" ({definition.unit})" if definition.unit else ""
    return f"{definition.title}{unit}" + (f", {definition.better} is better" if definition.better else "")


def logarithmic(axis: Any, values: Sequence[float]) -> bool:
    """Make an axis logarithmic, with numbers as people write them, where positive values span a factor of 8."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not values or min(values) <= 0 or max(values) < 8 * min(values):
        return False
    decades = math.log10(max(values) / min(values))
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value >= 1 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    return True
