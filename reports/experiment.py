"""A stored experiment as reports see it: cells under one protocol, gathered by what was trained. No model is loaded."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vqbench.errors import UsageError
from vqbench.facts import Facts
from vqbench.machine.json_files import read_json
from vqbench.metrics.definitions import asked_metrics, cautions, one_definition_each
from vqbench.metrics.row import cell_row
from vqbench.reports.summary import MethodSummary, summarise
from vqbench.results.cell_files import DONE, FAILED
from vqbench.results.cell_folder import FETCHED, CellFolder, cell_folders, results_of_nothing
from vqbench.results.training import training_of
from vqbench.wording import some


@dataclass(frozen=True)
class StoredCell:
    """One cell that has a result: scores, or the reason of its failure."""

    folder: CellFolder
    spec: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def failed(self) -> bool:
        """Whether it has no scores."""
        return bool(self.result.get("state") != DONE)

    @property
    def seed(self) -> int:
        """The seed among --seeds."""
        return int(self.spec["seed"])

    @property
    def reference(self) -> str:
        """The method as it was first asked for: its row's name, or METHOD@PRESET."""
        preset = self.spec.get("preset")
        return str(self.spec.get("label") or self.spec["method"] + (f"@{preset}" if preset else ""))

    @property
    def precision(self) -> str:
        """The arithmetic that its training did: a word of `Recipe.precision`, or unknown.

        Results of before it was recorded are of torch's default, which is ieee on a CPU alone.
        """
        if used := (self.result.get("execution") or {}).get("precision"):
            return str(used)
        asked = str(self.spec["recipe"].get("precision", "32"))
        if asked != "32":
            return asked
        return "ieee" if str(self.result.get("device")).startswith("cpu") else "unknown"

    @functools.cached_property
    def training(self) -> dict[str, Any]:
        """All that decides the trained weights but the seed, flat: `field`, `recipe.field`, `devices`, and digests.

        Of what was not trained here that is its file, or the training of a vqbench, where the file tells it.
        """
        if "pretrained" not in self.spec:
            return training_of(self.spec)
        known = Facts.of(self.spec["pretrained"])
        if not known.trained_as:
            return dict(known.in_hash)
        return {"kind": known.kind, "family": known.family, "training": known.trained_as[:8]}

    @property
    def setup(self) -> list[Any]:
        """The same for cells that differ in their seed alone, or in what they are measured with.

        A name that somebody gave a tokenizer makes it a row of its own; that of its file says nothing more.
        """
        known = self.spec.get("pretrained") or {}
        return [known.get("named", "") if known.get("trained_as") else self.spec["method"], self.training]

    @functools.cached_property
    def identity(self) -> str:
        """`setup` as text."""
        return json.dumps(self.setup, sort_keys=True)


@dataclass(frozen=True)
class Group:
    """Cells that differ in their seed alone: one row of a table."""

    label: str
    """Unique within a section: the method, and what tells it from others of the same name."""
    cells: tuple[StoredCell, ...]
    """By seed."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec of the first cell: the same for all but the seed."""
        return self.cells[0].spec

    @property
    def method(self) -> str:
        """The name of the method, without preset; of what was trained elsewhere, ours or that of its file."""
        known = self.spec.get("pretrained") or {}
        return str(known["family"] if "trained_as" in known else self.spec["method"])

    @property
    def is_trained_here(self) -> bool:
        """Whether it is a method, and no tokenizer that was found trained already."""
        return "pretrained" not in self.spec

    @property
    def has_seeds(self) -> bool:
        """Whether vqbench trained it, here or elsewhere, so that it can be trained again with another seed."""
        return self.is_trained_here or "seed" in self.spec["pretrained"]

    @property
    def components(self) -> dict[str, bool]:
        """Component → whether it is on."""
        return dict(self.spec["components"])

    @property
    def images(self) -> int:
        """Budget in training images."""
        return int(self.spec["recipe"]["images"])

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Its cells as `vqbench run --json` prints them, under the group's label."""
        return [cell_row(self.label, c.spec, c.folder, str(c.result["state"]), c.result) for c in self.cells]

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The rows that have scores."""
        return [row for row in self.rows if row["state"] != FAILED]

    @functools.cached_property
    def summary(self) -> MethodSummary:
        """Means over seeds with intervals, failures and collapses."""
        return summarise(self.rows, [name for cell in self.cells for name in asked_metrics(cell.spec)])[0]


@dataclass(frozen=True)
class Section:
    """Everything under one protocol: only these numbers may share a column."""

    protocol: Mapping[str, Any]
    """As the spec has it: name, hash, n_images, definitions, …"""
    groups: tuple[Group, ...]
    """By label."""
    experiment: str = ""
    """The experiment that it belongs to, where a report is of several."""

    @property
    def title(self) -> str:
        """Name and hash of the protocol."""
        return f"{self.protocol['name']} {self.protocol['hash']}"

    @property
    def heading(self) -> str:
        """What it is called in a report: the protocol, after the experiment's name where there are several."""
        return f"{self.experiment}: {self.title}" if self.experiment else self.title

    @property
    def key(self) -> str:
        """What it is told apart by within a report: the protocol's hash, after the experiment's name."""
        return f"{self.experiment}-{self.protocol['hash']}" if self.experiment else str(self.protocol["hash"])

    @property
    def measured_on(self) -> str:
        """How many of what: "1,000 validation images", or items where a protocol is of features."""
        unit = "images" if "resolution" in self.protocol else "items"
        return f"{self.protocol['n_images']:,} validation {unit}"

    def cautions(self, metrics: Iterable[str]) -> dict[str, str]:
        """Metric → what must be said wherever it is shown, of those of `metrics` that need it."""
        return cautions(metrics, int(self.protocol["n_images"]))

    @functools.cached_property
    def metrics(self) -> tuple[str, ...]:
        """Every score that a cell has, in the order in which they appear."""
        return tuple(dict.fromkeys(name for g in self.groups for row in g.rows for name in row["scores"]))


@dataclass(frozen=True)
class Experiment:
    """What a folder below the runs directory holds, or several: each then has sections of its own."""

    names: tuple[str, ...]
    """One for each folder, at least one."""
    runs: Path
    """Where the folders are."""
    sections: tuple[Section, ...]
    """One per protocol hash, the one with most cells first; in the order of the names."""
    unfinished: tuple[str, ...]
    """Names of cells that have no result yet."""
    unreadable: tuple[str, ...]
    """Names of cells whose spec or result is cut off or not ours, each with what is wrong; and what MLflow lacked."""
    measured_otherwise: tuple[str, ...] = ()
    """A sentence for each metric that some cells have by another definition than the rest."""

    @property
    def name(self) -> str:
        """The name, or all of them."""
        return ", ".join(self.names)

    @property
    def folder(self) -> Path:
        """The folder of the cells; of several experiments that of the first."""
        return self.runs / self.names[0]

    @property
    def groups(self) -> list[Group]:
        """The groups of all sections."""
        return [group for section in self.sections for group in section.groups]

    @property
    def has_scores(self) -> bool:
        """Whether any cell has finished."""
        return any(group.finished for group in self.groups)

    @property
    def notes(self) -> list[str]:
        """What must be said before anything is read off: several protocols, cells without a result."""
        said = []
        protocols = {str(section.protocol["hash"]): section.protocol["name"] for section in self.sections}
        if len(protocols) > 1:
            listed = ", ".join(f"{name} {digest}" for digest, name in protocols.items())
            said.append(
                f"{len(protocols)} protocols ({listed}): numbers under different ones do not compare, "
                "so each has a table of its own and nothing is compared across"
            )
        if len(self.names) > 1:
            said.append(
                f"{len(self.names)} experiments ({self.name}): each has tables of its own, nothing is compared across, "
                "and tests are adjusted over the pairs of one"
            )
        if self.unfinished:
            count = "1 cell has" if len(self.unfinished) == 1 else f"{len(self.unfinished)} cells have"
            said.append(f"{count} no result yet: {some(self.unfinished, 3)}")
        said += [f"left out, {text}" for text in self.unreadable]
        return said + list(self.measured_otherwise)


def load_experiments(runs: Path, names: Sequence[str]) -> Experiment:
    """Read experiments below `runs` as `load_experiment` does, at least one, each with sections of its own."""
    found = [load_experiment(runs, name) for name in dict.fromkeys(names)]
    if len(found) == 1:
        return found[0]
    return Experiment(
        tuple(one.name for one in found),
        found[0].runs,
        tuple(dataclasses.replace(section, experiment=one.name) for one in found for section in one.sections),
        tuple(f"{one.name}/{cell}" for one in found for cell in one.unfinished),
        tuple(f"{one.name}/{text}" for one in found for text in one.unreadable),
        tuple(f"{one.name}: {text}" for one in found for text in one.measured_otherwise),
    )


def load_experiment(runs: Path, name: str) -> Experiment:
    """Read the experiment `name` below `runs`; a spec or result that cannot be read is named, and does not stop it.

    Raises UsageError where there is no such experiment, or no cell in it has a result.
    """
    folder = runs.absolute() / name
    if not (folder / "cells").is_dir():
        raise _no_experiment(runs, name)
    cells, unfinished, unreadable = [], [], []
    for cell_folder in cell_folders(folder):
        cell, problem = _read(cell_folder)
        if cell is not None:
            cells.append(cell)
        elif problem:
            unreadable.append(f"{cell_folder.name}: {problem}")
        else:
            unfinished.append(cell_folder.name)
    if not cells:
        what = f"no cell of '{name}' has a result"
        if unfinished:
            what += f" yet; {len(unfinished)} are unfinished: {some(unfinished, 3)}"
        if unreadable:
            what += f"; cannot be read: {some(unreadable, 3)}"
        raise UsageError(what, "`vqbench run` with the options that began it goes on where it was")
    cells, copies = _without_copies(cells)
    unreadable += copies + results_of_nothing(folder)
    unreadable += (read_json(folder / FETCHED) or {}).get("missing", [])
    results, otherwise = one_definition_each({cell.folder.name: cell.result for cell in cells})
    cells = [dataclasses.replace(cell, result=results[cell.folder.name]) for cell in cells]
    sections = sections_of(cells)
    return Experiment((name,), runs.absolute(), sections, tuple(unfinished), tuple(unreadable), tuple(otherwise))


def _no_experiment(runs: Path, name: str) -> UsageError:
    known = sorted(path.parent.name for path in runs.glob("*/cells")) if runs.is_dir() else []
    if not known:
        return UsageError(f"there are no experiments in {runs}", "`vqbench run` makes one, or give --runs DIR")
    near = get_close_matches(name, known, n=2, cutoff=0.5)
    question = f"did you mean {' or '.join(near)}?" if near else f"there: {some(known)}"
    return UsageError(f"no experiment '{name}' in {runs}; {question}", "--runs DIR says where results are")


def _read(folder: CellFolder) -> tuple[StoredCell | None, str]:
    """The cell, or what is wrong with it; neither where it has no result."""
    result = folder.result
    if (problem := folder.problem) or result is None:
        return None, problem
    return StoredCell(folder, folder.spec, result), ""


def _without_copies(cells: Sequence[StoredCell]) -> tuple[list[StoredCell], list[str]]:
    """Cells, and a sentence for each that is another one once more: it would count as a seed and is none.

    Of such cells the one counts whose folder is named after its spec, as `vqbench run` names it.
    """
    kept: dict[tuple[str, str, int], StoredCell] = {}
    copies = []
    for cell in sorted(cells, key=lambda c: not c.folder.name.endswith(str(c.spec.get("hash"))[:8])):
        first = kept.setdefault((str(cell.spec["protocol"]["hash"]), cell.identity, cell.seed), cell)
        if first is not cell:
            is_same = cell.spec.get("hash") == first.spec.get("hash")
            same = "the same cell as" if is_same else "of the same training and seed as"
            copies.append(f"{cell.folder.name}: {same} {first.folder.name}")
    return sorted(kept.values(), key=lambda c: c.folder.name), sorted(copies)


def sections_of(cells: Iterable[StoredCell]) -> tuple[Section, ...]:
    """Cells by protocol hash, and there by everything but the seed; the order depends on what they are alone."""
    by_protocol: dict[str, list[StoredCell]] = {}
    for cell in cells:
        by_protocol.setdefault(str(cell.spec["protocol"]["hash"]), []).append(cell)
    ordered = sorted(by_protocol.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(Section(found[0].spec["protocol"], _groups(found)) for _, found in ordered)


def _groups(cells: Iterable[StoredCell]) -> tuple[Group, ...]:
    by_training: dict[str, list[StoredCell]] = {}
    for cell in cells:
        by_training.setdefault(cell.identity, []).append(cell)
    alike: dict[str, list[list[StoredCell]]] = {}
    for found in by_training.values():
        found.sort(key=lambda c: (c.seed, c.folder.name))
        alike.setdefault(found[0].reference, []).append(found)
    groups = [Group(label, tuple(found)) for name, several in alike.items() for label, found in _named(name, several)]
    return tuple(sorted(groups, key=lambda g: by_label(g.label)))


def by_label(label: str) -> tuple[object, ...]:
    """What to sort labels by: without case, and whole numbers by their size, so that dim=8 precedes dim=16."""
    parts = re.split(r"([0-9]+)", label.lower())
    return (*((len(digits := part.lstrip("0")), digits) if i % 2 else part for i, part in enumerate(parts)), label)


def _named(name: str, several: list[list[StoredCell]]) -> list[tuple[str, list[StoredCell]]]:
    """Groups of one name, each with a label of its own: the name, and the settings in which they differ."""
    if len(several) == 1:
        return [(name, several[0])]
    switches = {c for found in several for c, on in found[0].spec["components"].items() if on}
    differ = _differing([found[0] for found in several])
    labels = []
    for found in several:
        first, parts = found[0], [name]
        off = [c for c in first.spec["components"] if c in switches and not first.spec["components"][c]]
        parts += [f"without {', '.join(off)}"] if off else []
        # a cell that is older than a field has no value of it
        known = {**first.spec.get("paper_unspecified", {}), **first.training}
        parts += [f"{field}={setting_text(known[field])}" for field in differ if field in known]
        labels.append(" ".join(parts))
    if len(set(labels)) < len(labels):  # settings that were added to the method between two of its cells
        labels = [f"{label} {found[0].spec.get('hash', '')[:8]}" for label, found in zip(labels, several, strict=True)]
    return list(zip(labels, several, strict=True))


def _differing(cells: Sequence[StoredCell]) -> list[str]:
    """Settings that are not the same in all cells, less the switches, which have words of their own."""
    fields = dict.fromkeys(field for cell in cells for field in cell.training)
    values = {field: {json.dumps(cell.training.get(field)) for cell in cells} for field in fields}
    components = {c for cell in cells for c in cell.spec["components"]}
    differ = [field for field in fields if len(values[field]) > 1 and field not in components]
    own = [field for field in differ if not field.startswith("recipe.")]
    return [field for field in differ if field not in _ASKED or not _is_said(field, own, cells)]


_ASKED = ("recipe.codebook_size", "recipe.codebook_dim")
"""What a recipe asks of every method, which has it in fields of its own."""


def _is_said(field: str, own: Sequence[str], cells: Sequence[StoredCell]) -> bool:
    """Whether one of the `own` fields has the same value in every cell, and so says it."""
    return any(all(cell.training.get(name) == cell.training.get(field) for cell in cells) for name in own)


def setting_text(value: Any) -> str:
    """A setting as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-".join(map(setting_text, value)) if isinstance(value, list | tuple) else str(value)
