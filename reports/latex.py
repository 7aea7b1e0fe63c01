r"""Tables as LaTeX that compiles as it stands: booktabs, every text escaped, scaled down where it is too wide."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

from vqbench.reports.grid import Grid, one_line

PREAMBLE = r"""% Needs in the preamble: \usepackage{booktabs,graphicx,xcolor,amssymb}
% \input{report} then gives the tables; each can be copied out alone, with this definition before it.
\ifdefined\vqunicode\else % a character that pdfLaTeX has no letter for: its number; in LuaLaTeX and XeLaTeX itself
  \protected\def\vqunicode#1#2{\ifdefined\Umathcode #2\else\texttt{U+#1}\fi}
\fi
"""
LINES_PER_PAGE = 42
"""A longer table goes on in the next float: one cannot break over pages."""
_ACROSS = 105  # characters in a line; so many are scaled to two thirds of an article's letters
_PER_LINE = 24  # characters of an entry that is broken, at least
_WIDE = 44  # characters; a longer first entry is broken over lines
_ASCII = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"{\char36}", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "`": r"\`{}",  # OT1, LaTeX's default encoding, lacks the straight quotes
}  # fmt: skip
_MATHS = {
    "±": r"\pm", "Δ": r"\Delta", "↑": r"\uparrow", "↓": r"\downarrow", "→": r"\rightarrow", "←": r"\leftarrow",
    "↔": r"\leftrightarrow", "−": "-", "×": r"\times", "·": r"\cdot", "≥": r"\geq", "≤": r"\leq", "≠": r"\neq",
    "≈": r"\approx", "∞": r"\infty", "√": r"\surd", "∑": r"\sum", "✓": r"\checkmark", "✔": r"\checkmark",
    "✗": r"\times", "✘": r"\times", "²": "^2", "³": "^3", "¹": "^1", "°": r"^\circ", "¬": r"\neg", "÷": r"\div",
    "†": r"\dagger", "‡": r"\ddagger", "§": r"\mathsection", "¶": r"\mathparagraph", "£": r"\mathsterling",
    "∈": r"\in", "½": r"\frac12", "¼": r"\frac14", "¾": r"\frac34", "★": r"\star", "•": r"\bullet",
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma",
    "τ": "tau", "υ": "upsilon", "φ": "varphi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Θ": "Theta",
    "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_TEXTS = {  # nothing here or above needs a font beyond Computer Modern, which every TeX has
    "–": "--", "—": "---", "…": r"\dots{}", "‘": "`", "’": "'", "“": "``", "”": "''", "„": ",,", "ß": r"\ss{}",
    "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ł": r"\l{}",
    "Ł": r"\L{}", "ı": r"\i{}", "µ": r"\(\mu\)", "¿": "?`", "¡": "!`", "\u00a0": "~", "\u2009": r"\,",
    "\u202f": r"\,", "\u00ad": "", "\u200b": "", "\ufeff": "",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip
"""Combining mark → LaTeX's command for it; an ogonek has none in OT1."""


def latex_text(text: str) -> str:
    """Plain text as LaTeX that shows it, in pdfLaTeX with any font encoding; a line end becomes a space."""
    plain = unicodedata.normalize("NFC", one_line(text))
    before = " " + plain  # two hyphens are a dash to LaTeX, unless something stands between them
    return "".join("{}-" if a + c == "--" else _character(c) for a, c in zip(before, plain, strict=False))


def _character(c: str) -> str:
    if c.isascii():
        return _ASCII.get(c, c)
    if c in _TEXTS:
        return _TEXTS[c]
    if (symbol := _MATHS.get(c)) or (symbol := _GREEK.get(c) and f"\\{_GREEK[c]}"):
        return rf"\({symbol}\)"
    parts = unicodedata.normalize("NFD", c)
    base, marks = parts[0], parts[1:]
    if marks in _ACCENTS and base.isascii() and base.isalpha():
        dotless = {"i": r"\i", "j": r"\j"}.get(base, base) if _ACCENTS[marks] != "c" else base
        return rf"\{_ACCENTS[marks]}{{{dotless}}}"
    return rf"\vqunicode{{{ord(c):04X}}}{{{c}}}"


def latex_table(grid: Grid, caption: str, label: str, notes: Sequence[str] = ()) -> str:
    """A table environment, or several where there are more rows than a page holds; the notes are below the last.

    A table with more columns of numbers than one can read across is set as several, one below the other.
    """
    panels = _panels(grid)
    pages = _pages(grid, panels)
    opening = [
        r"\begin{table}[tbp]",
        r"\centering",
        _caption(caption),
        rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', label)}}}",
    ]
    going_on = [r"\clearpage", r"\begin{table}[p]", r"\centering", r"\textit{continued}\par\smallskip"]
    lines: list[str] = []
    for rows in pages:
        lines += going_on if rows.start else opening
        lines += [r"\footnotesize"] if len(panels) > 1 else []
        for i, columns in enumerate(panels):
            lines += [*([r"\par\medskip"] if i else []), *_tabular(grid, rows, columns)]
        lines += [*(_notes(notes) if rows is pages[-1] else ()), r"\end{table}", ""]
    return "\n".join(lines)


def _caption(text: str) -> str:
    """A caption, and its form for a list of tables, which comes before the definition of vqunicode."""
    shown = latex_text(text)
    listed = re.sub(r"\\vqunicode\{(\w+)\}\{.\}", r"U+\1", shown)
    return rf"\caption{{{shown}}}" if listed == shown else rf"\caption[{{{listed}}}]{{{shown}}}"


def _panels(grid: Grid) -> list[list[int]]:
    """Columns of each panel: all, or where there are too many numbers the first of the grid and as many as fit."""
    widths = [max(len(row[k]) for row in (grid.titles, *grid.rows)) + 2 for k in range(len(grid.titles))]
    first, rest = min(widths[0], _WIDE), sum(widths[1:])
    if not all(grid.numeric[1:]) or first + rest <= _ACROSS:
        return [list(range(len(widths)))]
    each = rest / math.ceil(rest / max(_ACROSS - first, 1))  # alike in width, and so in the size of their letters
    panels, used = [[0]], 0.0
    for column in range(1, len(widths)):
        if len(panels[-1]) > 1 and used + widths[column] / 2 > each * len(panels):
            panels.append([0])
        panels[-1].append(column)
        used += widths[column]
    return panels


def _pages(grid: Grid, panels: Sequence[Sequence[int]]) -> list[range]:
    """Rows of each float, so that its panels fit a page; at least one row each."""
    broken = [column for column in range(len(grid.titles)) if _breaks(grid, column)]
    pages, start, used = [], 0, 0
    for i, row in enumerate(grid.rows):
        lines = max((math.ceil(len(row[k]) / _PER_LINE) for k in broken), default=1) or 1
        if i > start and (used + lines + 2) * len(panels) > LINES_PER_PAGE:
            pages.append(range(start, i))
            start, used = i, 0
        used += lines
    return [*pages, range(start, len(grid.rows))]


def _tabular(grid: Grid, rows: range, columns: Sequence[int]) -> list[str]:
    broken = {column: _breaks(grid, column) for column in columns}
    kinds = "".join(r"p{0.42\linewidth}" if broken[k] else "r" if grid.numeric[k] else "l" for k in columns)
    return [
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        _line(latex_text(grid.titles[k]) for k in columns),
        r"\midrule",
        *(_line(_entry(grid, i, k, broken[k]) for k in columns) for i in rows),
        r"\bottomrule",
        r"\end{tabular}}",
    ]


def _notes(notes: Sequence[str]) -> list[str]:
    if not notes:
        return []
    lines = [rf"{latex_text(note)}.\par" for note in notes]
    return [r"\par\medskip\begin{minipage}{\linewidth}\footnotesize\raggedright", *lines, r"\end{minipage}"]


def _line(cells: Iterable[str]) -> str:
    line = " & ".join(cells)
    return ("{}" if line[:1] in "[*" else "") + line + r" \tabularnewline"  # \\ would take a bracket that follows


def _entry(grid: Grid, row: int, column: int, broken: bool) -> str:
    text = grid.rows[row][column]
    if grid.numeric[column]:
        text = re.sub(r"-(?=\d)", "−", text)
    shown = _breakable(text) if broken else latex_text(text)
    if (row, column) in grid.bold:
        return rf"\textbf{{{shown}}}"
    return rf"\textcolor{{gray}}{{{shown}}}" if column in grid.grey else shown


def _breaks(grid: Grid, column: int) -> bool:
    """Whether a column of text is so long that it must be set in several lines."""
    return not grid.numeric[column] and any(len(row[column]) > _WIDE for row in grid.rows)


def _breakable(text: str) -> str:
    """Text in a column that is set in lines; a long one may break after a sign, and within a word of 20 letters."""
    if len(text) <= _WIDE:
        return rf"\raggedright {latex_text(text)}"
    pieces = re.findall(r"[^\W_]{1,20}[\W_]?|[\W_]", unicodedata.normalize("NFC", one_line(text)))
    shown = "".join(latex_text(piece) + ("" if piece.endswith(" ") else r"\allowbreak{}") for piece in pieces)
    return r"\raggedright " + shown
