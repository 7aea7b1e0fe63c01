"""A report as data for programs: one line per group as CSV, everything as JSON; numbers, not their text."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vqbench.metrics.definitions import DEFINITIONS
from vqbench.metrics.row import SIZES
from vqbench.reports.ablation import objects
from vqbench.reports.against import objects as of_pairs
from vqbench.reports.all_pairs import MetricComparison, Pair
from vqbench.reports.experiment import Group
from vqbench.reports.grid import as_csv
from vqbench.reports.sizes import bits_of
from vqbench.reports.summary import Estimate

if TYPE_CHECKING:
    from vqbench.reports.report import Peers, Report, ReportSection

SCHEMA = 1
_OF_RESULT = ("seed", "cell", "state", "scores", "params", "train_images_per_s", "collapse")


def csv_text(report: Report) -> str:
    """One line per group; every score with its mean, interval and whether it is not separated from the best."""
    lines = [_line(section, group) for section in report.sections for group in section.rows]
    return as_csv(lines, csv.QUOTE_NONNUMERIC)


def _line(section: ReportSection, group: Group) -> dict[str, Any]:
    protocol, summary = section.section.protocol, group.summary
    line = {
        **({"experiment": whose} if (whose := section.section.experiment) else {}),
        "label": group.label,
        "method": group.method,
        "preset": group.spec.get("preset") or "",
        "protocol": protocol["name"],
        "protocol_hash": protocol["hash"],
        "training_images": group.images if group.is_trained_here else None,
        "n": summary.seeds,
        "failed": len(summary.failures),
        "collapsed": len(summary.collapses),
        "failures": "; ".join(summary.failures),
        "collapses": "; ".join(summary.collapses),
        "matched": "; ".join(summary.matched),
    }
    if summary.origin:
        line["not_trained_here"] = summary.origin
    if section.of_sizes:
        line["size"] = next((_least_bits(peers) for peers in section.peers if group in peers.rows), None)
    if said := section.section.cautions(section.section.metrics):
        line["cautions"] = "; ".join(said.values())
    for name in section.section.metrics:
        found = summary.estimates.get(name)
        line |= {f"{name}_{end}": value for end, value in _ends(found).items()}
        if any(name in peers.comparisons for peers in section.peers):
            line[f"{name}_tied"] = _tied(section, group, name)
    speed = summary.estimates.get("train_images_per_s")
    line["train_images_per_s"] = None if speed is None else speed.mean
    of_images = {key: summary.estimates[key].mean for key in SIZES if key in summary.estimates}
    fixed = {key: found.mean for key, found in summary.estimates.items() if key.startswith("params_")}
    return _finite(line | of_images | {key: int(value) for key, value in fixed.items()})


def _ends(found: Estimate | None) -> dict[str, float | None]:
    if found is None:
        return {"mean": None, "low": None, "high": None}
    half = found.half_width
    ends = (None, None) if half is None else (found.mean - half, found.mean + half)
    return {"mean": found.mean, "low": ends[0], "high": ends[1]}


def _tied(section: ReportSection, group: Group, metric: str) -> str:
    """Whether it is the best of its peers or not separated from it; empty without a score, and without peers."""
    found = section.comparison_of(group.label, metric)
    there = found is not None and metric in group.summary.estimates
    return str(group.label in found.unseparated).lower() if found is not None and there else ""


def json_text(report: Report) -> str:
    """Everything that the report knows, as one JSON object."""
    found = {
        "schema": SCHEMA,
        "experiment": report.experiment.name,
        "notes": list(report.notes),
        "sections": [_section(section) for section in report.sections],
    }
    return json.dumps(_finite(found), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _section(section: ReportSection) -> dict[str, Any]:
    return {
        **({"experiment": whose} if (whose := section.section.experiment) else {}),
        "protocol": dict(section.section.protocol),
        "cautions": section.section.cautions(section.section.metrics),
        "columns": [column.key for column in section.columns],
        **({"metrics": later} if (later := _later_metrics(section)) else {}),
        "groups": [_group(section, group) for group in section.rows],
        **(
            {"comparisons": {}, "sizes": [_size(p) for p in section.peers]}
            if section.of_sizes
            else _compared(section.peers[0])
        ),
        **({"against": [of_pairs(found) for found in section.against]} if section.against else {}),
        "ablations": [{"full": found.label, "rows": objects(found.rows)} for found in section.ablations],
    }


def _later_metrics(section: ReportSection) -> dict[str, dict[str, Any]]:
    """What each metric is that the protocol does not say."""
    known = {name: DEFINITIONS[name] for name in section.section.metrics if name in DEFINITIONS}
    return {name: metric.as_dict() for name, metric in known.items() if metric.digest}


def _group(section: ReportSection, group: Group) -> dict[str, Any]:
    spec, summary = group.spec, group.summary
    return {
        "label": group.label,
        "method": group.method,
        "preset": spec.get("preset"),
        "config": dict(spec["config"]),
        "components": group.components,
        "paper_unspecified": spec.get("paper_unspecified") or {},
        "recipe": dict(spec["recipe"]),
        "dataset": {key: value for key, value in spec["dataset"].items() if key in ("reference", "slug")},
        "devices": spec.get("devices", 1),
        "n": summary.seeds,
        "estimates": {key: {**_ends(found), "n": found.n} for key, found in summary.estimates.items()},
        "tied": [name for name in section.section.metrics if _tied(section, group, name) == "true"],
        "failures": list(summary.failures),
        "collapses": list(summary.collapses),
        "matched": list(summary.matched),
        "paper": spec.get("paper"),
        **({"pretrained": spec["pretrained"]} if not group.is_trained_here else {}),
        "cells": [_cell(row) for row in group.rows],
    }


def _cell(row: Mapping[str, Any]) -> dict[str, Any]:
    error = row["error"]
    kept = {key: error.get(key) for key in ("type", "message", "hint", "stage")} if error else None
    return {**{key: row[key] for key in _OF_RESULT}, "error": kept}


def _size(peers: Peers) -> dict[str, Any]:
    """Rows that are tested against each other, where a section is of several sizes."""
    return {
        "size": _least_bits(peers),
        "groups": [group.label for group in peers.rows],
        **({"untested": peers.untested} if peers.untested else {}),
        **_compared(peers),
    }


def _least_bits(peers: Peers) -> float | None:
    return min(filter(None, map(bits_of, peers.rows)), default=None)


def _compared(peers: Peers) -> dict[str, Any]:
    return {"comparisons": {metric: _comparison(found) for metric, found in peers.comparisons.items()}}


def _comparison(found: MetricComparison) -> dict[str, Any]:
    return {
        "best": found.best,
        "tied": sorted(found.unseparated),
        "untested": dict(found.untested),
        "adjusted_over": "all pairs",
        "pairs": [_pair(pair) for pair in found.pairs],
    }


def _pair(pair: Pair) -> dict[str, Any]:
    found = pair.difference
    return {
        "base": pair.base,
        "other": pair.other,
        "delta": found.delta,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "p_adjusted": pair.p,
        "verdict": pair.verdict,
        "seeds": found.seeds,
        "images": found.images,
        "over": found.over,
    }


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinities, which are not JSON: a result that was edited by hand may hold some."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
