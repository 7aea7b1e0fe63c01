"""A trial under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vqbench.planning.plan import Cell
from vqbench.sweeps.backend import UNDER_WAY

if TYPE_CHECKING:
    import optuna

    from vqbench.sweeps.backend import OpenStudy


@dataclass
class LiveTrial:
    """A trial that was asked and not yet told."""

    study: OpenStudy
    trial: optuna.Trial
    drawn: dict[str, Any]
    cells: tuple[Cell, ...] = ()
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the cells that have ended, by name."""
    reported: int = 0
    """Images of the last point that the pruner has seen."""
    steps: set[int] = field(default_factory=set)
    """Of the points that it has seen, each in whole `log_images`."""

    @property
    def names(self) -> list[str]:
        """Of its cells."""
        return [cell.folder.name for cell in self.cells]

    @property
    def title(self) -> str:
        """For a person."""
        level = self.study.plan.level
        return f"{self.study.plan.method}{f' at {level:g} bits' if level is not None else ''} trial {self.trial.number}"

    def begin(self, cell: str, images: int) -> None:
        """Remember that a cell is under way, which had seen so many images: who finds the trial orphaned asks."""
        self.trial.set_user_attr(UNDER_WAY, {**self._under_way, cell: images})

    def end(self, cell: str) -> None:
        """A cell is under way no more."""
        self.trial.set_user_attr(UNDER_WAY, {name: n for name, n in self._under_way.items() if name != cell})

    @property
    def _under_way(self) -> dict[str, int]:
        known: dict[str, int] = self.trial.user_attrs.get(UNDER_WAY, {})
        return known
