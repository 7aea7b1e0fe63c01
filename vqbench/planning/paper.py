"""What a method's own paper says of it: the rows of its ablation and its published numbers, as data for reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vqbench.config import components
from vqbench.errors import unknown
from vqbench.metrics.definitions import DEFINITIONS

if TYPE_CHECKING:
    from vqbench.quantizer import PaperRow, Published, Quantizer


def paper_rows(cls: type[Quantizer], name: str, preset: str | None) -> tuple[PaperRow, ...]:
    """The rows of the paper's ablation that this form of the method has. Raises UsageError for rows that are wrong."""
    for row in cls.paper_rows:
        for component in row.components - set(components(cls.Config)):
            raise unknown(
                f"component in row {row.name} of {name}", component, components(cls.Config), "mend paper_rows"
            )
        for metric in row.published.keys() - DEFINITIONS.keys():
            raise unknown(f"metric in row {row.name} of {name}", metric, DEFINITIONS, "mend paper_rows")
    return tuple(cls.paper_rows) if preset is None or preset in cls.paper_presets else ()


def published_numbers(cls: type[Quantizer], name: str, preset: str | None) -> tuple[Published, ...]:
    """The published numbers of this form of the method. Raises UsageError for one that makes no sense."""
    for number in cls.published:
        if number.metric not in DEFINITIONS:
            raise unknown(f"metric in the published numbers of {name}", number.metric, DEFINITIONS, "mend published")
        for form in set(number.presets) - {"", *cls.presets}:
            raise unknown(f"preset in the published numbers of {name}", form, cls.presets, "mend published")
    return tuple(number for number in cls.published if (preset or "") in number.presets)


def paper_facts(cls: type[Quantizer], name: str, preset: str | None, switches: Mapping[str, bool]) -> dict[str, Any]:
    """What a report may show of the paper beside this configuration, as JSON: it needs neither the method nor torch.

    published: numbers of the method as a whole, with all its components on; none where one is off. rows: whether the
    paper has an ablation. row: the row of it that has the same components on, or None.
    """
    rows = paper_rows(cls, name, preset)
    on = {component for component, is_on in switches.items() if is_on}
    row = next((row for row in rows if row.components == on), None)
    numbers = published_numbers(cls, name, preset) if all(switches.values()) else ()
    return {
        "published": [
            {key: value for key, value in dataclasses.asdict(number).items() if key != "presets"} for number in numbers
        ],
        "rows": bool(rows),
        "row": {"name": row.name, "published": {m: dict(v) for m, v in row.published.items()}} if row else None,
    }
