"""`vqbench report`: the tables, figures and page of a stored experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vqbench import arguments
from vqbench.cli.options import Typed, takes
from vqbench.errors import UsageError
from vqbench.machine.streams import say
from vqbench.running.report import ReportRequest, execute_report
from vqbench.wording import shell_command

_NAME = arguments.options(ReportRequest)["name"]


@takes(ReportRequest)
def report(
    options: Typed,
    name: Annotated[list[str] | None, typer.Argument(metavar=_NAME.metavar, help=_NAME.help)] = None,
    experiment: Annotated[str, typer.Option(metavar="NAME", help="With --from-mlflow: the experiment there.")] = "",
) -> None:
    """Write experiments' tables (Markdown, CSV, LaTeX, JSON), figures and page; print where they are."""
    asked = options.fields[ReportRequest]
    if experiment and not asked["from_mlflow"]:
        raise UsageError(
            "--experiment names an experiment of an MLflow server", shell_command(["vqbench", "report", experiment])
        )
    if experiment and name and name != [experiment]:
        raise UsageError(f"'{name[0]}' is named, and '{experiment}' by --experiment", "name all of them without it")
    request = arguments.asked(ReportRequest, name=experiment or name, **asked)
    written = execute_report(request)
    for note in written.report.notes:
        say(f"note: {note}")
    _print_files(written.out, written.files)
    if not written.report.experiment.has_scores:
        say("note: no cell has scores; the tables list what failed")
        raise typer.Exit(1)


def _print_files(out: Path, files: tuple[Path, ...]) -> None:
    """One path a line; of figures and cells their folder; the page last."""
    for name in dict.fromkeys(path.relative_to(out).parts[0] for path in files):
        print(out / name)
