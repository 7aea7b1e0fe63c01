"""The report as one HTML file that needs nothing else: no network, no server, no library."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from vqbench.machine.atomic import write_text_atomically
from vqbench.machine.json_files import read_json
from vqbench.reports.page.content import page_data
from vqbench.reports.page.fragments import escaped, facts_html, navigation_html, notes_html, section_html
from vqbench.reports.report import Report, ReportSection
from vqbench.results.cell_folder import FETCHED
from vqbench.wording import masked, shell_command

if TYPE_CHECKING:
    from vqbench.reports.figures import Drawn
    from vqbench.reports.figures.reconstructions import Sheet

_OF_IMAGES = ("reconstructions", "most-different")
_SCRIPTS = ("elements.js", "table.js", "sheet.js", "compare.js", "cells.js", "page.js")
"""In the order in which they are read; together they are one script."""


def write_page(report: Report, drawn: Sequence[Drawn], target: Path) -> Path:
    """Write the report as a self-contained page to `target`, with the figures that were drawn; returns `target`."""
    from vqbench.reports.figures.reconstructions import reconstruction_sheets

    sheets = {s.section.key: reconstruction_sheets(s) for s in report.sections}
    write_text_atomically(target, page_html(report, drawn, sheets))
    return target


def page_html(report: Report, drawn: Sequence[Drawn], sheets: Mapping[str, Sequence[Sheet]]) -> str:
    """The page as text; `sheets` are the reconstructions to show, by section's key."""
    experiment = report.experiment
    runs, names = experiment.runs, shell_command(experiment.names)
    if fetched := read_json(runs / experiment.names[0] / FETCHED):  # into a folder that is gone soon
        uri = shown_address(fetched["uri"])
        source, root = f"{names} --from-mlflow {uri}", runs
        ui = f"MLFLOW_TRACKING_URI={uri} vqbench ui"
    else:
        source, root = f"{names} --runs {shown_path(runs)}", runs.parent
        ui = f"vqbench ui --runs {shown_path(runs)}"
    script = "(() => {\n'use strict';\n" + "\n".join(map(_resource, _SCRIPTS)) + "\n})();"
    style = _resource("page.css")
    return Template(_resource("template.html")).substitute(
        policy=_policy(script, style),
        title=escaped(f"{experiment.name} – vqbench"),
        style=style,
        navigation=navigation_html(report),
        experiment=escaped(experiment.name),
        facts=facts_html(report),
        notes=notes_html(report.notes),
        sections="\n".join(
            section_html(_resource("section.html"), i, section, _shown(section, drawn, sheets), report.published)
            for i, section in enumerate(report.sections)
        ),
        version=escaped(metadata.version("vqbench")),
        command=escaped(f"vqbench report {source}"),
        data=script_json(page_data(report, drawn, sheets, root, ui)),
        script=script,
    )


def _shown(section: ReportSection, drawn: Sequence[Drawn], sheets: Mapping[str, Sequence[Sheet]]) -> list[Drawn]:
    """The figures of one protocol, but those that stand beside the cell that they show.

    Where its images can be looked at one by one, a picture of them adds nothing.
    """
    key = section.section.key
    return [
        figure
        for figure in drawn
        if figure.section == key and not figure.cell and not (sheets.get(key) and figure.name.startswith(_OF_IMAGES))
    ]


def script_json(value: object) -> str:
    """JSON that may stand inside a <script>: no text in it can end the element or begin a comment.

    Raises ValueError for NaN and infinities, which are not JSON.
    """
    plain = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        plain = plain.replace(character, f"\\u{ord(character):04x}")
    return plain


def shown_path(path: Path, home: str = "~/") -> str:
    """A folder as one would type it here; the name of the user's home is not printed, since pages are passed on."""
    for folder, prefix in ((Path.cwd, ""), (Path.home, home)):
        with contextlib.suppress(OSError, RuntimeError):  # a folder that is deleted, a user without a home
            if path.is_relative_to(start := folder()):
                return prefix + shlex.quote(str(path.relative_to(start)))
    return shlex.quote(str(path))


def shown_address(uri: str) -> str:
    """An address of MLflow as one would type it here, without user, password, query and the name of the home."""
    scheme, separator, rest = masked(uri).partition("://")
    if scheme.startswith("sqlite") and rest.startswith("/"):
        return f"{scheme}:///{shown_path(Path(rest[1:].partition('?')[0]), '$HOME/')}"
    place, slash, path = rest.partition("?")[0].partition("/")
    return shlex.quote(f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path}")


def _policy(script: str, style: str) -> str:
    """A browser runs this script and this style and loads nothing, even if some text were to get through as markup."""
    hashes = [base64.b64encode(hashlib.sha256(part.encode("utf-8")).digest()).decode() for part in (script, style)]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
