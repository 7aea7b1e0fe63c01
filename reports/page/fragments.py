"""The parts of the page that need no script: the verdict in words, figures, the protocol. All user text is escaped."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import TYPE_CHECKING, Any

from vqbench.metrics.definitions import DEFINITIONS
from vqbench.reports.grid import Grid
from vqbench.reports.page.pictures import figure_uri
from vqbench.reports.report import Report, ReportSection
from vqbench.reports.tables import Table, tables
from vqbench.reports.verdict import Ranking, verdict
from vqbench.wording import counted

if TYPE_CHECKING:
    from vqbench.reports.figures import Drawn


def escaped(value: object) -> str:
    """As it stands, for between tags and inside quoted attributes."""
    return html.escape(str(value), quote=True)


def _label(value: str) -> str:
    return f'<b dir="auto">{escaped(value)}</b>'


def section_html(
    template: str, index: int, section: ReportSection, drawn: Sequence[Drawn], published: bool = False
) -> str:
    """One protocol of the report; its main table, images and cells are filled in by the script.

    `published`: whether the numbers of the methods' papers are shown, in a table of their own.
    """
    stored, found, key = section.section, verdict(section), f"p{index}"
    found_tables = tables(section, published)
    return Template(template).substitute(
        id=key,
        hash=escaped(stored.protocol["hash"]),
        kicker="Experiment" if stored.experiment else "Protocol",
        name=escaped(stored.experiment or stored.protocol["name"]),
        more_name=escaped(stored.title if stored.experiment else stored.protocol["hash"]),
        headline=escaped(found.headline),
        measured=escaped(found.measured),
        problems=_list("problems", "What went wrong", found.problems),
        findings=_findings(found.findings),
        limits=_list("limits", "What these numbers cannot say", found.limits),
        intro=_intro(section),
        notes=_items("fine", found_tables[0].notes),
        more=_more_tables(key, found_tables[1:]),
        figures=_figures(f"{key}-figures", drawn),
        protocol=_protocol(stored.protocol),
    )


def navigation_html(report: Report) -> str:
    """Links to the parts of the first protocol, or to each protocol where there are several."""
    if len(report.sections) > 1:
        sections = [section.section for section in report.sections]
        alone = {name for name, number in Counter(s.experiment for s in sections).items() if name and number == 1}
        titles = [s.experiment if s.experiment in alone else s.heading for s in sections]
        places = [(f"#p{i}-title", title) for i, title in enumerate(titles)]
    else:
        parts = ("verdict", "table", "figures", "images", "cells", "protocol")
        words = ("Verdict", "Results", "Figures", "Images", "Runs", "Protocol")
        places = [(f"#p0-{part}", word) for part, word in zip(parts, words, strict=True)]
    return "".join(f'<a href="{escaped(place)}">{escaped(title)}</a>' for place, title in places)


def facts_html(report: Report) -> str:
    """How much there is, and how recent."""
    groups = report.experiment.groups
    cells = [cell for group in groups for cell in group.cells]
    days = sorted(str(cell.result["finished"])[:10] for cell in cells if cell.result.get("finished"))
    facts = [counted(len(groups), "method"), counted(len(cells), "run")]
    facts += [f"protocol {title}" for title in list(dict.fromkeys(s.section.title for s in report.sections))[:3]]
    if days:
        facts.append(days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}")
    return "".join(f"<span>{escaped(fact)}</span>" for fact in facts)


def notes_html(notes: Iterable[str]) -> str:
    """What must be said before anything is read off."""
    return "".join(f'<p class="note">{escaped(note)}.</p>' for note in notes)


def _list(kind: str, title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    return f'<aside class="{kind}" aria-label="{title}"><h4>{title}</h4>{_items("", items)}</aside>'


def _items(kind: str, items: Sequence[str]) -> str:
    listed = "".join(f'<li dir="auto">{escaped(item)}</li>' for item in items)
    return f'<ul class="{kind}">{listed}</ul>' if items else ""


def _more_tables(key: str, found: Sequence[Table]) -> str:
    """Ablations and published numbers, as the other formats have them; problems stand among the words already."""
    parts = [
        f'<section id="{key}-{table.key}" aria-labelledby="{key}-{table.key}-title">'
        f'<h3 id="{key}-{table.key}-title" dir="auto">{escaped(table.title)}</h3>'
        f'<div class="scroll framed" tabindex="0" role="region" aria-label="{escaped(table.title)}">'
        f"{grid_html(table.grid)}</div>{_items('fine', table.notes)}</section>"
        for table in found
        if table.key != "problems"
    ]
    return "".join(parts)


_MARKS = {"✓": "on", "✗": "off", "better": "good", "worse": "bad"}


def grid_html(grid: Grid) -> str:
    """A table of text as HTML: bold for what stands out, grey for what stands back; the first column names the row."""

    def entry(value: str, row: int, column: int) -> str:
        kinds = ["number"] * grid.numeric[column] + ["grey"] * (column in grid.grey)
        kinds += [_MARKS[value]] if column and value in _MARKS else []
        inner = f"<b>{escaped(value)}</b>" if (row, column) in grid.bold else escaped(value)
        tag, scope = ("th", ' scope="row"') if column == 0 else ("td", "")
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        return f'<{tag}{scope}{kind} dir="auto">{inner}</{tag}>'

    heads = "".join(
        f'<th scope="col" class="plain{" number" * numeric}" dir="auto">{escaped(title)}</th>'
        for title, numeric in zip(grid.titles, grid.numeric, strict=True)
    )
    rows = (f"<tr>{''.join(entry(value, i, k) for k, value in enumerate(row))}</tr>" for i, row in enumerate(grid.rows))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _findings(findings: Sequence[Ranking]) -> str:
    if not findings:
        return ""
    return f'<dl class="findings">{"".join(map(_finding, findings))}</dl>'


def _finding(finding: Ranking) -> str:
    arrow = "↑ higher is better" if finding.better == "higher" else "↓ lower is better"
    gloss = DEFINITIONS[finding.metric].gloss
    in_words = escaped(gloss[:1].upper() + gloss[1:])
    return (
        f'<div data-metric="{escaped(finding.metric)}"><dt>{escaped(finding.title)} <span>{arrow}</span></dt>'
        f'<dd><p>{finding.sentence(_label)}</p><p class="gloss">{in_words}.</p></dd></div>'
    )


def _intro(section: ReportSection) -> str:
    seeds = {group.summary.seeds for group in section.rows if group.summary.seeds}
    said = "± is half of the 95 % Student t interval over seeds; the dots are the seeds. "
    if seeds <= {1}:
        said = "One seed each: n = 1, no interval. "
    best = "the best mean of each size" if section.of_sizes else "the best mean"
    return said + f'<span class="best-mark">Marked</span> is {best}, and all that is not separated from it.'


def _figures(key: str, drawn: Sequence[Drawn]) -> str:
    """Figures with captions, each inside the file; nothing where none was drawn."""
    shown = [(figure, uri) for figure in drawn if (uri := figure_uri(figure.files)) is not None]
    if not shown:
        return ""
    inner = "".join(
        f'<figure><button type="button" data-enlarge aria-label="Enlarge: {escaped(figure.title)}">'
        f'<img src="{uri}" alt="{escaped(figure.caption or figure.title)}"></button>'
        f"<figcaption><b>{escaped(figure.title)}</b> {escaped(figure.caption)}</figcaption></figure>"
        for figure, uri in shown
    )
    return (
        f'<section id="{key}" aria-labelledby="{key}-title"><h3 id="{key}-title">Figures</h3>'
        f'<div class="figures">{inner}</div></section>'
    )


def _protocol(protocol: Mapping[str, Any]) -> str:
    """Every field of the protocol as it is hashed."""
    plain = {name: value for name, value in protocol.items() if not isinstance(value, Mapping)}
    tables = {name: value for name, value in protocol.items() if isinstance(value, Mapping)}
    parts = [f'<details class="protocol-text"><summary>{escaped(_title(protocol))}</summary>', _terms(plain)]
    for name, value in tables.items():
        known = {DEFINITIONS[key].title if key in DEFINITIONS else key: said for key, said in value.items()}
        parts.append(f"<h4>{escaped(name)}</h4>{_terms(known)}")
    return "".join([*parts, "</details>"])


def _title(protocol: Mapping[str, Any]) -> str:
    return f"All fields of {protocol['name']}, whose hash is {protocol['hash']}"


def _terms(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<div><dt>{escaped(name)}</dt><dd dir="auto">{escaped(value)}</dd></div>' for name, value in values.items()
    )
    return f'<dl class="terms">{rows}</dl>'
