"""The page that a command leaves behind: written anew where an experiment has results that it does not show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vqbench.errors import UsageError
from vqbench.wording import shell_command

PAGE = "index.html"


def page_of(experiment: Path) -> Path:
    """Where the page of an experiment's folder is, whether it is there or not."""
    return experiment / "report" / PAGE


def is_current(experiment: Path) -> bool:
    """Whether the page is there, and no cell has a later result, or was asked for another metric since."""
    try:
        written = page_of(experiment).stat().st_mtime_ns
    except OSError:
        return False
    found = (path for name in ("result", "spec") for path in experiment.glob(f"cells/*/{name}.json"))
    return all(path.stat().st_mtime_ns <= written for path in found)


def command_for(experiment: Path) -> str:
    """The command that writes the page of an experiment's folder."""
    return shell_command(["vqbench", "report", experiment.name, "--runs", experiment.parent])


def refresh_page(experiment: Path, say: Callable[[str], None]) -> Path | None:
    """Write the page of an experiment's folder; None, and why is said, where it cannot be.

    Whatever goes wrong with a picture must not cost the command that trained what it shows.
    """
    from vqbench.reports.experiment import load_experiment
    from vqbench.reports.report import build_report
    from vqbench.reports.write import write_report

    page = page_of(experiment)
    try:
        report = build_report(load_experiment(experiment.parent, experiment.name))
        write_report(report, page.parent, ("html",))
    except UsageError:  # no cell has a result: there is nothing to show
        return None
    except Exception as error:
        say(f"the page could not be written ({type(error).__name__}: {error}); `{command_for(experiment)}` tries")
        return None
    return page
