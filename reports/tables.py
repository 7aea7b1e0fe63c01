"""The tables of a report as text, and what must be said of them: the same for Markdown and for LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vqbench.facts import BY, Facts
from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.ablation import delta_notes, delta_table, score_notes, score_table
from vqbench.reports.against import opposed_notes, opposed_table
from vqbench.reports.experiment import Group
from vqbench.reports.families import Ablation
from vqbench.reports.grid import Grid
from vqbench.reports.sizes import RULE
from vqbench.reports.statistics import LEVEL
from vqbench.reports.summary import Column, interval_note
from vqbench.wording import some

if TYPE_CHECKING:
    from vqbench.reports.report import ReportSection


@dataclass(frozen=True)
class Table:
    """A table with its heading and the notes that belong below it."""

    key: str
    """Short and without spaces, unique within a section."""
    title: str
    grid: Grid
    notes: Sequence[str]


def tables(section: ReportSection, published: bool) -> list[Table]:
    """What a report prints of one protocol: scores, failed and collapsed cells, ablations, published numbers."""
    outside = [group for group in section.rows if not group.is_trained_here]
    stated = Stated(section.rows if published else outside, section.columns)
    notes = _legend(section)
    if published and not stated.numbers:
        notes += (
            "no published numbers: the papers print none in these columns, or an older vqbench did not store them",
        )
    found = [Table("scores", f"Scores under {section.section.title}", scores(section, stated), notes)]
    if outside:
        found.append(Table("origins", "Not trained here", origins(outside), _said_of(outside)))
    if (problems := problem_cells(section.rows)).rows:
        found.append(Table("problems", "Failed and collapsed cells", problems, ()))
    for i, one in enumerate(section.against, start=1):
        title = f"{DEFINITIONS[one.metric].title}: each row less {one.base}"
        found.append(Table(f"against{i}", title, opposed_table(one), opposed_notes(one)))
    for i, ablation in enumerate(section.ablations, start=1):
        found += _ablation(ablation, f"ablation{i}" if len(section.ablations) > 1 else "ablation", published)
    if stated.numbers:
        note = "as printed there, under other protocols: to look at and not to compare"
        found.append(Table("published", "Published numbers", stated.grid(), (note,)))
    return found


def _ablation(ablation: Ablation, key: str, published: bool) -> list[Table]:
    rows, label = ablation.rows if published else ablation.without_published(), ablation.label
    deltas = Table(f"{key}-deltas", f"{label}: each row less the full method", delta_table(rows), delta_notes(rows))
    return [
        Table(key, f"{label}: components switched off", score_table(rows, apart=True), score_notes(rows)),
        deltas,
    ]


def scores(section: ReportSection, stated: Stated) -> Grid:
    """One line per group; what is best, or not separated from the best, is bold; published numbers are grey."""
    columns, printed = section.columns, stated.columns
    titles = ("method", *(c.title for c in columns), *(f"{_title(what)} published" for what in printed), "n")
    rows, bold = [], set()
    for i, group in enumerate(section.rows):
        estimates = group.summary.estimates
        cells = [column.text(estimates.get(column.key)) for column in columns]
        bold |= {(i, k) for k, column in enumerate(columns, start=1) if is_marked(section, group, column.key)}
        rows.append(
            (
                group.label + group.summary.state,
                *cells,
                *(stated.text(group, what) for what in printed),
                str(group.summary.seeds),
            )
        )
    numeric = (False, *(True for _ in titles[1:]))
    grey = frozenset(range(1 + len(columns), len(titles) - 1))
    return Grid(titles, numeric, tuple(rows), frozenset(bold), grey)


def origins(groups: Iterable[Group]) -> Grid:
    """A line for each tokenizer that was not trained here: what it is, and where it is from."""
    titles = ("row", "source", "family", "K", "d", "f", "weights", "trained on", "licence", "sha256 or digest")
    lines = []
    for label, known in ((group.label, Facts.of(row["pretrained"])) for group in groups for row in group.rows):
        size = "–" if known.codebook_size is None else f"{known.codebook_size:,}"
        books = f"{known.num_codebooks} × " if known.num_codebooks > 1 else ""
        numbers = (f"{books}{size}", _or_dash(known.code_dim), _or_dash(known.downsampling))
        words = (known.weights, known.trained_on, known.licence)
        source = Path(known.path).name
        lines.append((label, source, known.family or known.kind, *numbers, *map(_or_dash, words), known.sha256[:12]))
    return Grid(titles, (False, False, False, True, True, True, False, False, False, False), tuple(lines))


def _said_of(outside: Iterable[Group]) -> tuple[str, ...]:
    """What must be said of rows that were not trained here."""
    said = []
    for label, known in ((group.label, Facts.of(row["pretrained"])) for group in outside for row in group.rows):
        said += [f"{label}: {text}" for text in (*known.remarks, *(f"not read: {text}" for text in known.unread))]
    said = list(dict.fromkeys(said))
    said.append("sha256 of a file of weights; of an adapter or a folder a digest of all that its scores depend on")
    return tuple(said)


def _or_dash(value: object) -> str:
    return "–" if value in (None, "") else str(value)


def is_marked(section: ReportSection, group: Group, metric: str) -> bool:
    """Whether a group is the best of its peers, or not separated from it; a group that is alone is neither."""
    found = section.comparison_of(group.label, metric)
    return found is not None and bool(found.others) and group.label in found.unseparated


def problem_cells(groups: Iterable[Group]) -> Grid:
    """A line for each cell that failed or collapsed, with the reason."""
    lines = []
    for group in groups:
        for row in group.rows:
            error, collapse = row["error"], row["collapse"]
            if row["state"] == "failed":
                error = error or {}
                stage = f" in {error['stage']}" if error.get("stage") else ""
                lines.append((group.label, str(row["seed"]), f"failed{stage}", str(error.get("message") or "failed")))
            elif collapse:
                what = f"{collapse.get('kind') or 'collapsed'} after {collapse.get('images', 0):,} images"
                lines.append((group.label, str(row["seed"]), what, str(collapse.get("reason") or "")))
    return Grid(("method", "seed", "what", "reason"), (False, True, False, False), tuple(lines))


class Stated:
    """Published numbers of the groups of a section, of what its columns show, each definition in a column of its own;
    each protocol has a letter."""

    def __init__(self, groups: Sequence[Group], columns: Sequence[Column]) -> None:
        shown = [column.key for column in columns]
        self.numbers = [
            (group.label, number)
            for group in groups
            for number in (group.spec.get("paper") or {}).get("published") or ()
            if _beside(number["metric"], shown)
        ]
        there = dict.fromkeys(number["metric"] for _, number in self.numbers)
        # ours before those that other definitions of it give
        self.columns = sorted(there, key=lambda what: (shown.index(_beside(what, shown)), what not in shown))
        protocols = dict.fromkeys((number["measured_on"], number["source"]) for _, number in self.numbers)
        self._letters = {protocol: _letter(i) for i, protocol in enumerate(protocols)}

    def text(self, group: Group, what: str) -> str:
        """ "1.14 [a], 2.50 [b]": the values with the letters of their protocols, or a dash."""
        own = [n for label, n in self.numbers if label == group.label and n["metric"] == what]
        return (
            ", ".join(f"{as_printed(n['value'])} [{self._letters[n['measured_on'], n['source']]}]" for n in own) or "–"
        )

    def grid(self) -> Grid:
        """A line for each protocol: what was measured on what, and who says so."""
        lines = []
        for (measured_on, source), letter in self._letters.items():
            own = [(who, n) for who, n in self.numbers if (n["measured_on"], n["source"]) == (measured_on, source)]
            values = dict.fromkeys(f"{_title(n['metric'])} {as_printed(n['value'])}" for _, n in own)
            who = ", ".join(dict.fromkeys(label for label, _ in own))
            lines.append((f"[{letter}]", who, ", ".join(values), measured_on, source))
        titles = ("", "method", "published", "measured on", "source")
        return Grid(titles, (False,) * 5, tuple(lines), grey=frozenset({2}))


def _title(what: str) -> str:
    """What a published number is of: "rFID", "rFID (floats)", "rFID by OpenAI's evaluator"."""
    metric, by, whose = what.partition(BY)
    return f"{DEFINITIONS[metric].title}{by}{whose}"


def _beside(what: str, shown: Sequence[str]) -> str:
    """The column beside which people look for a published number: of its own metric, or of ours that it stands in the
    place of; empty where neither is shown."""
    metric = what.partition(BY)[0]
    ours = DEFINITIONS[metric].in_place_of if metric in DEFINITIONS else ""
    return next((key for key in (metric, ours) if key in shown), "")


def as_printed(value: float) -> str:
    """A published number with at least two decimals, as papers print it."""
    text = f"{value:.10g}"
    return text if len(text.partition(".")[2]) >= 2 else f"{value:.2f}"


def _letter(i: int) -> str:
    """a … z, aa, ab, …"""
    return (_letter(i // 26 - 1) if i >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[i % 26]


def _legend(section: ReportSection) -> tuple[str, ...]:
    """What the marks of the main table mean."""
    protocol = section.section.protocol
    size = f" at {protocol['resolution']} px" if protocol.get("resolution") else ""
    said = [f"N = {section.section.measured_on}{size}; {interval_note([g.summary for g in section.rows])}"]
    said += section.section.cautions(c.key for c in section.columns).values()
    said += [text for group in section.rows for text in group.summary.matched]
    compared = [peers.comparisons for peers in section.peers]
    shown = [found[c.key] for found in compared for c in section.columns if c.key in found]
    scored = [group for group in section.rows if group.finished]
    said += _of_sizes(section) if section.of_sizes else []
    if len(scored) > 1 and shown:
        best, tests = ("best of its size", "the metric and size") if section.of_sizes else ("best", "the metric")
        said.append(f"bold: {best}, or not separated from the best (p ≥ {LEVEL} after Holm over all pairs of {tests})")
        if any(pair.difference.over == "images" for found in shown for pair in found.pairs):
            said.append(
                "groups with one seed in common: tested over the validation images alone, without the noise of training"
            )
        said += [note for found in shown for note in found.notes][:_MOST_NOTES]
    elif scored:
        alone = "no two rows are of one size" if all(p.untested for p in section.peers) else "one group has scores"
        said.append(f"{alone}: there is nothing to compare, so nothing is bold")
    said += [text for group in scored if (text := _unlike_artifacts(group))]
    trained = [group for group in scored if group.is_trained_here]
    if trained:
        said.append(f"trained in {_precisions(trained)}")
    if any(column.key == "train_images_per_s" for column in section.columns) and trained:
        said.append(f"images/s: in training, on {_devices(trained)}; it depends on what else the machine did")
    return tuple(said)


def _of_sizes(section: ReportSection) -> list[str]:
    """By what rule rows are of one size, which are, and which are tested against nothing."""
    said = [RULE]
    together = [f"{some([g.label for g in p.rows])} ({p.size})" for p in section.peers if not p.untested]
    alone = [f"{p.rows[0].label} ({p.size}: {p.untested})" for p in section.peers if p.untested]
    said += [f"tested against each other: {'; '.join(together)}"] if together else []
    said += [f"not tested: {'; '.join(alone)}"] if alone else []
    return said


def _unlike_artifacts(group: Group) -> str:
    """That cells of a group are built around arrays that differ, though one rule made them; empty where they do not."""
    found = {cell.result["artifact_sha256"] for cell in group.cells if cell.result.get("artifact_sha256")}
    if len(found) < 2:
        return ""
    return (
        f"{group.label}: its cells are built around {len(found)} arrays of one rule, made at different times or places"
    )


_IN_WORDS = {
    "ieee": "float32 (ieee)",
    "tf32": "float32 with TF32 in convolutions (tf32)",
    "bf16": "bfloat16 under autocast (bf16)",
    "bf16_true": "bfloat16 throughout encoder and decoder (bf16_true)",
    "unknown": "float32, with TF32 in convolutions as torch's default was: their results are of before it was recorded",
}


def _precisions(groups: Iterable[Group]) -> str:
    """The arithmetic of the groups' trainings; whose it is, where there are several."""
    of: dict[str, list[str]] = {}
    for group in groups:
        for used in dict.fromkeys(cell.precision for cell in group.cells if not cell.failed):
            of.setdefault(_IN_WORDS.get(used, used), []).append(group.label)
    if len(of) == 1:
        return next(iter(of))
    return "; ".join(f"{used}: {', '.join(labels)}" for used, labels in of.items())


_MOST_NOTES = 12  # sentences on groups that no test reaches; report.json has them all


def _devices(groups: Iterable[Group]) -> str:
    names = {str(cell.result.get("device_name") or cell.result.get("device") or "an unnamed device")
             for group in groups for cell in group.cells if not cell.failed}  # fmt: skip
    return ", ".join(sorted(names))
