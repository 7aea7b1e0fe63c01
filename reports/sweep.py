"""A sweep as tables, objects and files: the best of each method, the budget it was tuned at, the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqbench.machine.atomic import write_text_atomically
from vqbench.metrics.kinds import Metric
from vqbench.reports.figures.sweep import draw_importances, draw_pareto
from vqbench.reports.grid import Grid, as_csv, markdown, markdown_list

Row = dict[str, Any]
"""A trial, as `vqbench sweep --json` prints it."""
_FINISHED = ("done", "cached")


@dataclass(frozen=True)
class StudySummary:
    """What became of one study."""

    method: str
    level: float | None
    """Bits per image that the study is at; None without --same-bits."""
    bits: float | None
    """The method's own bits per image there."""
    planned: int
    counts: Mapping[str, int]
    """Trials by state: done, cached, failed, pruned."""
    parameters: tuple[str, ...]
    importances: Mapping[str, Mapping[str, float]]
    """Objective → parameter → share; empty where too few trials say it."""

    @property
    def title(self) -> str:
        """Method, and bits where there are levels."""
        return self.method if self.level is None else f"{self.method} at {self.level:g} bits"

    @property
    def trials(self) -> str:
        """The budget at which the method was tuned: 20 (2 failed, 5 pruned)."""
        parts = [f"{n} {state}" for state, n in self.counts.items() if n and state != "done"]
        total = sum(self.counts.values())
        of = f"{total} of {self.planned}" if total < self.planned else f"{total}"
        return f"{of} ({', '.join(parts)})" if parts else of


def dominates(one: Sequence[float], other: Sequence[float], lower: Sequence[bool]) -> bool:
    """Whether `one` is nowhere worse than `other`, and somewhere better; `lower` says where less is better."""
    pairs = [(a, b) if less else (-a, -b) for a, b, less in zip(one, other, lower, strict=True)]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@dataclass(frozen=True)
class SweepReport:
    """What a sweep came to."""

    name: str
    experiment: Path
    objectives: tuple[str, ...]
    definitions: Mapping[str, Metric]
    studies: tuple[StudySummary, ...]
    rows: tuple[Row, ...]
    """By study, then in the order in which they were asked."""
    protocol: str
    how: str
    reason: str
    """What ended it before its trials did."""
    also: tuple[str, ...] = ()
    """Metrics that were asked for by name and are no objectives."""
    cautions: Mapping[str, str] = field(default_factory=dict)
    """Metric → what must be said wherever it is shown."""
    resume: str = ""
    """The command that goes on with it."""
    holdout: float | None = None
    """The share of the training images by which it chose, if it did not look at the validation images."""
    page: Path | None = None
    """The experiment's page, where it was asked for."""

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.experiment / "sweeps" / self.name

    @property
    def _lower(self) -> list[bool]:
        return [self.definitions[name].better == "lower" for name in self.objectives]

    def best(self, study: StudySummary, objective: str) -> Row | None:
        """The finished trial of a study with the best value; of equal ones the first."""
        rows = [row for row in self._of(study) if row["state"] in _FINISHED]
        sign = 1 if self.definitions[objective].better == "lower" else -1
        return min(rows, key=lambda row: sign * row["values"][objective], default=None)

    def _of(self, study: StudySummary) -> list[Row]:
        return [row for row in self.rows if (row["method"], row["level"]) == (study.method, study.level)]

    def bests(self) -> list[tuple[StudySummary, str, Row | None]]:
        """(study, objective, its best trial or None), by level of bits, then as the methods were given."""
        ordered = sorted(self.studies, key=lambda study: study.level or 0)
        return [(study, name, self.best(study, name)) for study in ordered for name in self.objectives]

    def pareto(self) -> list[Row]:
        """The finished trials that none of the same level dominates, whatever the method."""
        rows, names = [row for row in self.rows if row["state"] in _FINISHED], self.objectives
        points = [[row["values"][name] for name in names] for row in rows]
        return [
            row for row, point in zip(rows, points, strict=True)
            if not any(dominates(q, point, self._lower) and o["level"] == row["level"]
                       for o, q in zip(rows, points, strict=True))
        ]  # fmt: skip

    @property
    def without_best(self) -> list[str]:
        """The studies that have trials and no finished one."""
        return [s.title for s in self.studies if sum(s.counts.values()) and not (s.counts["done"] + s.counts["cached"])]

    def table(self) -> Grid:
        """One line per method, level and objective: the best value and what it was found with."""
        levels, several = any(s.level is not None for s in self.studies), len(self.objectives) > 1
        titles = [*(["bits/image"] if levels else []), "method", *(["best in"] if several else []),
                  *(self._title(name) for name in self._shown), "trials", "settings"]  # fmt: skip
        lines = []
        for study, objective, row in self.bests():
            flag = " (collapsed)" if row is not None and row["collapse"] else ""
            line = [f"{study.bits:,.5g}"] if study.bits is not None else []
            line += [study.method + flag, *([objective] if several else [])]
            line += [self._score(row, name) for name in self._shown]
            lines.append((*line, study.trials, " ".join(row["settings"]) if row is not None else "–"))
        numeric = [*([True] if levels else []), False, *([False] if several else []),
                   *(True for _ in self._shown), False, False]  # fmt: skip
        return Grid(tuple(titles), tuple(numeric), tuple(lines))

    def front(self) -> Grid:
        """The Pareto front as a table."""
        titles = ("method", "trial", *(self._title(name) for name in self._shown), "settings")
        lines = tuple(
            (row["method"], str(row["trial"]), *(self._score(row, name) for name in self._shown),
             " ".join(row["settings"]))
            for row in self.pareto()
        )  # fmt: skip
        return Grid(titles, (False, True, *(True for _ in self._shown), False), lines)

    @property
    def _shown(self) -> tuple[str, ...]:
        return (*self.objectives, *self.also)

    def _score(self, row: Row | None, name: str) -> str:
        values = {} if row is None else {**row["scores"], **row["values"]}
        return _number(values[name]) if name in values else "–"

    def _title(self, name: str) -> str:
        definition = self.definitions[name]
        return f"{definition.title}{definition.arrow}"

    def commands(self) -> list[tuple[str, str]]:
        """(whose best and how, the command that runs it again with more seeds), each command once."""
        how = "with more seeds" if self.holdout is None else "with more seeds, on the validation images"
        found: dict[str, str] = {}
        for study, objective, row in self.bests():
            if row is not None:
                found.setdefault(row["command"], study.title + (f", {objective}" if len(self.objectives) > 1 else ""))
        return [(f"{title}, {how}", command) for command, title in found.items()]

    def notes(self) -> list[str]:
        """What must be said below the tables."""
        said = [f"protocol {self.protocol}", f"tuned by {self.how}; value: mean over the seeds"]
        said += [text for name, text in self.cautions.items() if name in self._shown]
        if self.reason:
            said.append(f"ended early: {self.reason}; go on with `{self.resume}`")
        if len({study.planned for study in self.studies}) > 1:
            said.append("the methods were tuned with different numbers of trials")
        said += [f"{title}: no trial finished" for title in self.without_best]
        few = [s.title for s in self.studies if s.parameters and not any(s.importances.values())]
        if few:
            said.append(f"importances: too few finished trials of {', '.join(few)}, or all with one value")
        for row in self.rows:
            if row["collapse"] and row["state"] in _FINISHED:
                said.append(f"{row['method']} trial {row['trial']} collapsed: {row['collapse']['reason']}")
            if row["error"]:
                said.append(f"{row['method']} trial {row['trial']} failed: {row['error']['message']}")
        return said

    def markdown(self) -> str:
        """The tables, what must be said, and the commands."""
        parts = [f"# {self.name}", markdown(self.table())]
        if len(self.objectives) > 1:
            parts += ["## Pareto front", markdown(self.front())]
        parts.append(markdown_list(self.notes()))
        parts += [f"{title}:\n\n    {command}" for title, command in self.commands()]
        return "\n\n".join(parts) + "\n"

    def flat(self) -> list[Row]:
        """Trials with a column for each drawn parameter, score and parameter count."""
        return [
            {
                **{key: row[key] for key in ("sweep", "method", "trial", "state", "bits_per_image")},
                **row["drawn"],
                **row["scores"],
                **{f"params_{part}": count for part, count in row["params"].items()},
                "trained_images": row["images"],  # `images` may have been drawn
                "seeds": ",".join(map(str, row["seeds"])),
                "cells": " ".join(row["cells"]),
                "collapse": (row["collapse"] or {}).get("kind"),
                "error": (row["error"] or {}).get("message"),
                **({"cautions": "; ".join(row["cautions"].values())} if "cautions" in row else {}),
                "command": row["command"],
            }
            for row in self.rows
        ]

    def best_cells(self) -> list[Row]:
        """The first cell of each study's best, as `method` and `path`."""
        found = [(study, row) for study, objective, row in self.bests() if objective == self.objectives[0] and row]
        return [{"method": study.title, "path": row["paths"][0]} for study, row in found if row["paths"]]

    def write(self) -> list[Path]:
        """summary.md, trials.csv and the pictures; returns what was written."""
        folder = self.folder
        files = [folder / "summary.md", folder / "trials.csv"]
        write_text_atomically(files[0], self.markdown())
        write_text_atomically(files[1], as_csv(self.flat()))
        for study in self.studies:
            if any(study.importances.values()):
                files.append(folder / f"importances-{study.title.replace(' ', '-')}.png")
                draw_importances(study.importances, study.title, files[-1])
        finished = [row for row in self.rows if row["state"] in _FINISHED]
        if len(self.objectives) > 1 and finished:
            files.append(folder / "pareto.png")
            draw_pareto(finished, self.pareto(), self.objectives, files[-1])
        return files


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
