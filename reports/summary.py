"""A row per method: mean over seeds and its 95 % interval, as text for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vqbench.feature_protocol import FEATURE_METRICS
from vqbench.metrics.definitions import COMPANIONS, METRICS, companions
from vqbench.reports.grid import Grid, markdown, markdown_text


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    half_width: float | None
    """Half the 95 % Student t interval; None for one seed, which has no interval."""
    n: int


@dataclass(frozen=True)
class MethodSummary:
    """One method of a comparison, under one protocol."""

    method: str
    estimates: dict[str, Estimate]
    seeds: int
    """Finished cells."""
    failures: tuple[str, ...]
    """One sentence for each failed cell."""
    collapses: tuple[str, ...] = ()
    """One sentence for each finished cell that had collapsed."""
    asked: tuple[str, ...] = ()
    """The metrics that were asked for by name."""
    matched: tuple[str, ...] = ()
    """What it was matched to, where its size is not what was asked for."""


@dataclass(frozen=True)
class Column:
    """One column of the comparison table."""

    key: str
    title: str
    digits: int
    interval: bool = True
    scale: float = 1.0
    on_request: bool = False
    """Whether it is shown only where it, or what it stands beside, is asked for, by --metrics or --columns."""

    def text(self, estimate: Estimate | None, between: str = " ± ") -> str:
        """The estimate as "mean ± half width", or a dash where there is none."""
        if estimate is None:
            return "–"
        mean = f"{estimate.mean * self.scale:,.{self.digits}f}"
        if estimate.half_width is None or not self.interval:
            return mean
        return f"{mean}{between}{estimate.half_width * self.scale:,.{self.digits}f}"


DEFINITIONS = {**FEATURE_METRICS, **METRICS, **COMPANIONS}
"""Every score of both tracks; what they share means the same."""

_TABLE = (
    Column("rfid", "rFID ↓", 2),
    Column("rfid_continuous", "rFID cont.", 2, on_request=True),
    Column("kid", "KID ↓", 4, on_request=True),
    Column("psnr", "PSNR ↑", 2),
    Column("psnr_continuous", "PSNR cont.", 2),
    Column("ssim", "SSIM ↑", 3),
    Column("lpips_alex", "LPIPS alex ↓", 3),
    Column("lpips_vgg", "LPIPS vgg ↓", 3),
    Column("lpips_squeeze", "LPIPS sqz ↓", 3),
    Column("quantization_error", "q. error ↓", 4),
    Column("usage", "usage ↑", 3),
    Column("perplexity", "perplexity ↑", 1),
    Column("tokens", "tokens", 0, interval=False, on_request=True),
    Column("dead_codes", "dead codes ↓", 1, on_request=True),
    Column("bits_per_token", "bits/token", 2, interval=False),
    Column("entropy_bits_per_token", "bits/token (entropy)", 2, on_request=True),
    Column("bpp", "bpp", 3, interval=False, on_request=True),
    Column("bpp_entropy", "bpp (entropy)", 3, on_request=True),
    Column("params_total", "params M", 3, interval=False, scale=1e-6),
    Column("params_encoder", "encoder M", 3, interval=False, scale=1e-6, on_request=True),
    Column("params_quantizer", "quantizer M", 3, interval=False, scale=1e-6, on_request=True),
    Column("params_projections", "projections M", 3, interval=False, scale=1e-6, on_request=True),
    Column("params_decoder", "decoder M", 3, interval=False, scale=1e-6, on_request=True),
    Column("train_images_per_s", "images/s", 1, interval=False),
)
COLUMNS = tuple(column for column in _TABLE if not column.on_request)
MORE_COLUMNS = tuple(column for column in _TABLE if column.on_request)
"""Together with COLUMNS every score has one."""


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval of one value per seed. Raises ValueError for no value."""
    if not values:
        raise ValueError("no values to summarise")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    from scipy.special import stdtrit  # Student's quantile; scipy.stats would take a second to import

    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return Estimate(mean, float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n), n)


def _values(row: dict[str, Any]) -> dict[str, float]:
    params = {f"params_{part}": float(count) for part, count in row["params"].items()}
    speed = row["train_images_per_s"]
    return {**row["scores"], **params, **({"train_images_per_s": speed} if speed else {})}


def _failure(row: dict[str, Any]) -> str:
    error = row["error"] or {}
    return f"{row['method']} s{row['seed']}: {error.get('message', 'failed')}"


def _collapse(row: dict[str, Any]) -> str:
    found = row["collapse"]
    return f"{row['method']} s{row['seed']}: collapsed after {found['images']:,} images: {found['reason']}"


def summarise(rows: Iterable[dict[str, Any]], asked: Iterable[str] = ()) -> list[MethodSummary]:
    """Rows as `vqbench run --json` prints them → one summary per method, in the order of the rows.

    `asked` are the metrics that were asked for by name, which a table then shows.
    Raises ValueError for rows of different protocols: their numbers may not share a column.
    """
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    protocols = {row["protocol"] for group in by_method.values() for row in group}
    if len(protocols) > 1:
        raise ValueError(f"rows of several protocols cannot share a table: {', '.join(sorted(protocols))}")
    named = tuple(dict.fromkeys(asked))
    return [_summary(method, group, named) for method, group in by_method.items()]


def _summary(method: str, rows: list[dict[str, Any]], asked: tuple[str, ...]) -> MethodSummary:
    finished = [_values(row) for row in rows if row["state"] != "failed"]
    keys = [key for key in (finished[0] if finished else {}) if all(key in values for values in finished)]
    estimates = {key: estimate([values[key] for values in finished]) for key in keys}
    failures = tuple(_failure(row) for row in rows if row["state"] == "failed")
    collapses = tuple(_collapse(row) for row in rows if row["state"] != "failed" and row.get("collapse"))
    matched = tuple(dict.fromkeys(f"{method}: {row['matched']}" for row in rows if row.get("matched")))
    return MethodSummary(method, estimates, len(finished), failures, collapses, asked, matched)


def shown_columns(summaries: Iterable[MethodSummary]) -> list[Column]:
    """The columns for which at least one method has a value: the usual ones, and what was asked for."""
    known = list(summaries)
    present = {key for summary in known for key in summary.estimates}
    asked = {key for summary in known for key in summary.asked}
    asked |= {*companions(asked)}
    return [c for c in _TABLE if c.key in present and (c.key in asked or not c.on_request)]


def markdown_table(summaries: Sequence[MethodSummary], protocol: str, cautions: Iterable[str] = ()) -> str:
    """The comparison as a GitHub Markdown table, with the protocol's name, `cautions` and every failure below it."""
    columns = shown_columns(summaries)
    rows = [
        (
            summary.method + (" (collapsed)" if summary.collapses else ""),
            *(column.text(summary.estimates.get(column.key)) for column in columns),
            str(summary.seeds),
        )
        for summary in summaries
    ]
    titles = ("method", *(column.title for column in columns), "n")
    table = markdown(Grid(titles, (False, *(True for _ in titles[1:])), tuple(rows)))
    said = [f"protocol {protocol}; {interval_note(summaries)}", *cautions]
    said += [f"failed: {text}" for summary in summaries for text in summary.failures]
    said += [text for summary in summaries for text in (*summary.matched, *summary.collapses)]
    return "\n".join([table, "", *map(markdown_text, said)]) + "\n"


def interval_note(summaries: Sequence[MethodSummary]) -> str:
    """What the ± means, or why there is none."""
    counts = {summary.seeds for summary in summaries if summary.seeds}
    if counts <= {1}:
        return "n = 1, no interval"
    return "mean over n seeds ± half of the 95 % Student t interval"
