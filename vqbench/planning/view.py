"""Whoever watches a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vqbench.planning.plan import Cell


class View(Protocol):
    """Whoever watches a run: the terminal, or nobody."""

    def note(self, text: str) -> None:
        """Something that must be said aloud."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """Images are being decoded."""

    def cell_started(self, cell: Cell, position: int, total: int) -> None:
        """A cell's process has started."""

    def cell_progress(self, cell: Cell, status: dict[str, Any]) -> None:
        """The content of the cell's status.json."""

    def cell_finished(self, cell: Cell, row: dict[str, Any]) -> None:
        """The cell has a result."""


class Silent:
    """A view that shows nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """Show nothing."""

    def cell_started(self, cell: Cell, position: int, total: int) -> None:
        """Show nothing."""

    def cell_progress(self, cell: Cell, status: dict[str, Any]) -> None:
        """Show nothing."""

    def cell_finished(self, cell: Cell, row: dict[str, Any]) -> None:
        """Show nothing."""
