"""Quality against what it cost: training images, and hours of a device."""

from __future__ import annotations

from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.experiment import Group
from vqbench.reports.figures.captions import first_of, means
from vqbench.reports.figures.points import Place, draw_panels, share_places
from vqbench.reports.figures.series import BUDGET, curves, device_hours, device_names, shown_qualities
from vqbench.reports.figures.style import MOST, Picture, short_labels, shortened_note, without_math
from vqbench.reports.report import ReportSection
from vqbench.reports.summary import Estimate


def quality_by_budget(section: ReportSection) -> Picture | None:
    """A row of panels per metric, against training images (where there are several budgets) and device-hours."""
    shown_metrics, known = shown_qualities(section.rows, 2)
    groups = [group for group in known if group.finished]
    if not shown_metrics or not groups:
        return None
    every = curves(groups, lambda g: g.images, lambda _: BUDGET)
    drawn = every[:MOST]
    shown = [group for curve in drawn for group in curve.groups]
    places: dict[str, Place] = {}
    budgets = sorted({group.images for group in shown})
    if len(budgets) > 1:
        places["training images"] = lambda g: Estimate(g.images, None, 1)
    hours = {group.label: found for group in shown if (found := device_hours(group)) is not None}
    if len(hours) == len(shown):
        unit, factor = _unit(max(found.mean for found in hours.values()))
        places[_time_label(shown, unit)] = lambda g: _scaled(hours[g.label], factor)
    if not places:
        return None
    figure, intervals = draw_panels(drawn, shown_metrics, places, may_be_logarithmic=True)
    titles = " and ".join(DEFINITIONS[name].title for name in shown_metrics)
    caption = f"{titles} against {' and against '.join(_in_words(label) for label in places)}."
    caption += f" Every group was trained on {budgets[0]:,} images." if len(budgets) == 1 else ""
    caption += _devices(shown) + f" {means(section.section, shown)}{intervals}"
    if len(budgets) > 1 and share_places([group.images for group in shown]):
        caption += " Points at one budget are set side by side."
    caption += first_of(len(drawn), len(every), "curves")
    caption += shortened_note(curve.label for curve in drawn)
    return Picture("budget", "Quality by budget", caption, figure)


def _unit(hours: float) -> tuple[str, float]:
    """The unit in which so many hours are a number that people read, and how many of it an hour has."""
    units = {"hours": 1.0, "minutes": 60.0, "seconds": 3600.0}
    return next(((name, n) for name, n in units.items() if hours * n >= 0.5), ("seconds", 3600.0))


def _scaled(found: Estimate, factor: float) -> Estimate:
    half = None if found.half_width is None else found.half_width * factor
    return Estimate(found.mean * factor, half, found.n)


def _time_label(groups: list[Group], unit: str) -> str:
    """GPU-hours or CPU-hours, and of which device."""
    names = device_names(groups)
    (name,) = names if len(names) == 1 else (f"{len(names)} kinds of device",)
    return f"{_kind(groups)}-{unit} ({without_math(short_labels([name], 28)[name])})"


def _kind(groups: list[Group]) -> str:
    kinds = set(device_names(groups).values())
    return kinds.pop() if len(kinds) == 1 else "device"


def _in_words(label: str) -> str:
    return label.partition(" (")[0]


def _devices(groups: list[Group]) -> str:
    names = device_names(groups)
    said = f" {_kind(groups)} time: training time times devices, on {', '.join(names)}."
    return said if len(names) == 1 else f"{said} Times on different devices do not compare."
