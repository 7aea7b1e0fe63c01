"""A row per method: mean over seeds and its 95 % interval, as text for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vqbench.facts import Facts
from vqbench.metrics.definitions import DEFINITIONS
from vqbench.metrics.row import SIZES
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
    origin: str = ""
    """What is known of a tokenizer that was not trained here; empty for one that was."""

    @property
    def state(self) -> str:
        """How many of its cells failed or collapsed, to stand behind its label: " (1 of 3 collapsed)"; or empty."""
        total = self.seeds + len(self.failures)
        states = ((len(self.failures), "failed"), (len(self.collapses), "collapsed"))
        said = [word if n == total else f"{n} of {total} {word}" for n, word in states if n]
        return f" ({', '.join(said)})" if said else ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What must be said below a table that shows it."""
        return (*([f"{self.method}: not trained here: {self.origin}"] if self.origin else []), *self.matched)


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
    gloss: str = ""
    """What it is in words that need no paper."""

    def text(self, estimate: Estimate | None, between: str = " ± ") -> str:
        """The estimate as "mean ± half width", or a dash where there is none."""
        if estimate is None:
            return "–"
        mean = f"{estimate.mean * self.scale:,.{self.digits}f}"
        if estimate.half_width is None or not self.interval:
            return mean
        return f"{mean}{between}{estimate.half_width * self.scale:,.{self.digits}f}"


_BESIDE = (
    Column("params_total", "params M", 3, interval=False, scale=1e-6,
           gloss="trainable parameters of encoder, quantizer and decoder, in millions"),
    Column("params_encoder", "encoder M", 3, interval=False, scale=1e-6, on_request=True),
    Column("params_quantizer", "quantizer M", 3, interval=False, scale=1e-6, on_request=True),
    Column("params_projections", "projections M", 3, interval=False, scale=1e-6, on_request=True),
    Column("params_decoder", "decoder M", 3, interval=False, scale=1e-6, on_request=True),
    Column("tokens_per_image", "tokens/image", 0, interval=False, on_request=True, gloss="tokens of one image"),
    Column("bits_per_image", "bits/image", 0, interval=False, on_request=True,
           gloss="bits of one image's tokens, as they are stored"),
    Column("mean_tokens_per_image", "mean tokens/image", 1, interval=False, on_request=True,
           gloss="tokens of an image, on average over images of sizes of their own"),
    Column("mean_bits_per_image", "mean bits/image", 1, interval=False, on_request=True,
           gloss="bits of an image's tokens, as they are stored, on average over images of sizes of their own"),
    Column("train_images_per_s", "images/s", 1, interval=False,
           gloss="training speed on the machine that ran it; compare within one machine only"),
)  # fmt: skip
"""What stands beside the scores."""


def all_columns() -> tuple[str, ...]:
    """The keys of all that may stand in a table."""
    return (*DEFINITIONS, *(column.key for column in _BESIDE))


def columns_of(present: Iterable[str]) -> dict[str, Column]:
    """The columns of what is `present`, by key, in the order of a table: scores, parameters, speed."""
    there = set(present)
    names = dict.fromkeys((*DEFINITIONS, *sorted(there)))
    scores = [DEFINITIONS[name] for name in names if name in there and name in DEFINITIONS]
    found = [Column(m.name, m.head, m.digits, m.interval, on_request=m.on_request, gloss=m.gloss) for m in scores]
    return {column.key: column for column in (*found, *(column for column in _BESIDE if column.key in there))}


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
    sizes = {name: float(row[name]) for name in SIZES if row.get(name)}
    return {**row["scores"], **params, **sizes, **({"train_images_per_s": speed} if speed else {})}


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
    origin = _origin([Facts.of(row["pretrained"]) for row in rows if "pretrained" in row])
    return MethodSummary(method, estimates, len(finished), failures, collapses, asked, matched, origin)


def _origin(found: Sequence[Facts]) -> str:
    """What is known of the tokenizers of a row: several are seeds of one training, and differ in their files."""
    seeds = [f"s{facts.seed} is sha256 {facts.sha256[:12]}" for facts in found[1:]]
    said = [text for facts in found for text in (*facts.remarks, *(f"not read: {text}" for text in facts.unread))]
    return "; ".join(dict.fromkeys([*(facts.in_words() for facts in found[:1]), *seeds, *said]))


def shown_columns(summaries: Iterable[MethodSummary]) -> list[Column]:
    """The columns for which at least one method has a value: the usual ones, and what was asked for."""
    known = list(summaries)
    asked = {key for summary in known for key in summary.asked}
    # nothing else makes tokenizers that were not trained here of one size
    asked |= set(SIZES) if any(summary.origin for summary in known) else set()
    return [
        column
        for key, column in columns_of(key for summary in known for key in summary.estimates).items()
        if not column.on_request or key in asked or (key in DEFINITIONS and DEFINITIONS[key].companion_of in asked)
    ]


def markdown_table(summaries: Sequence[MethodSummary], protocol: str, cautions: Iterable[str] = ()) -> str:
    """The comparison as a GitHub Markdown table, with the protocol's name, `cautions` and every failure below it."""
    shown = shown_columns(summaries)
    rows = [
        (
            summary.method + summary.state,
            *(column.text(summary.estimates.get(column.key)) for column in shown),
            str(summary.seeds),
        )
        for summary in summaries
    ]
    titles = ("method", *(column.title for column in shown), "n")
    table = markdown(Grid(titles, (False, *(True for _ in titles[1:])), tuple(rows)))
    said = [f"protocol {protocol}; {interval_note(summaries)}", *cautions]
    said += [f"failed: {text}" for summary in summaries for text in summary.failures]
    said += [text for summary in summaries for text in (*summary.remarks, *summary.collapses)]
    return "\n".join([table, "", *map(markdown_text, said)]) + "\n"


def interval_note(summaries: Sequence[MethodSummary]) -> str:
    """What the ± means, or why there is none."""
    counts = {summary.seeds for summary in summaries if summary.seeds}
    if counts <= {1}:
        return "n = 1, no interval"
    return "mean over n seeds ± half of the 95 % Student t interval"
