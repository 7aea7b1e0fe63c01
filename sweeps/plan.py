"""A sweep before its trials: what was asked for, its studies, and what makes two sweeps the same."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqbench.metrics.definitions import digests
from vqbench.planning.choice import choose_method, read_settings
from vqbench.planning.plan import Plan
from vqbench.sweeps.request import SweepRequest
from vqbench.sweeps.studies import StudyPlan
from vqbench.sweeps.watched import images_seen
from vqbench.wording import shell_command


@dataclass(frozen=True)
class SweepPlan:
    """A sweep before its trials."""

    request: SweepRequest
    """With its space, its objectives and its name."""
    studies: tuple[StudyPlan, ...]
    base: Plan
    """The methods with nothing drawn; never run."""
    notes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the sweep's own files are; beside it lies SWEEP.json."""
        return self.base.folder / "sweeps" / self.request.title

    @property
    def file(self) -> Path:
        """What remembers the sweep."""
        return self.base.folder / "sweeps" / f"{self.request.title}.json"

    @property
    def resume(self) -> str:
        """The command that goes on with it, as it is typed into a shell."""
        words = ["vqbench", "sweep", "--resume", self.request.title, "--name", self.base.folder.name]
        runs = self.request.run.runs
        return shell_command([*words, *(["--runs", str(runs)] if runs != Path("runs") else [])])

    @functools.cached_property
    def found(self) -> dict[str, Any]:
        """What makes two sweeps the same beside what was asked for: contents of files, not their names.

        `code` has the digests of methods that are no part of vqbench.
        """
        settings = read_settings(self.request.run.settings)
        return {
            "code": {r: choose_method(r, self.base.recipe, settings).code for r in self.request.references},
            "protocol": self.base.protocol.hash,
            "recipe_fields": self.base.recipe.identity(),
            "training_images": self.base.cells[0].spec["dataset"]["training_digest"],
            **({"digests": known} if (known := digests(self.request.objectives)) else {}),
        }

    def seen(self, cell: str) -> int:
        """Training images of a cell so far, by its name."""
        return images_seen(self.base.folder / "cells" / cell)
