"""`vqbench report` as a plain function: the tables, figures and page of a stored experiment."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench import arguments
from vqbench.arguments import option
from vqbench.errors import UsageError
from vqbench.wording import masked

if TYPE_CHECKING:
    from vqbench.reports.experiment import Experiment
    from vqbench.reports.report import Report


@dataclass(frozen=True)
class ReportRequest:
    """What `vqbench report` was asked for. Each option is declared here: command line and Python follow."""

    name: tuple[str, ...] = option(
        (), arguments.texts, "Experiments, each with its own tables; may be left out where there is one.", "[NAME]..."
    )
    runs: Path = option(Path("runs"), arguments.path, "Where results are kept.", "DIR", has_variable=True)
    formats: tuple[str, ...] = option(
        (), arguments.names, "Of md,csv,tex,json,html,cells; default: all but cells.", "LIST", typed_as="format"
    )
    out: Path | None = option(
        None, arguments.path, "Where the files go; default: report, in the experiment's folder.", "DIR"
    )
    """`NAME-report` for what comes from MLflow; several experiments have no folder of their own."""
    columns: tuple[str, ...] = option((), arguments.names, "Columns of the tables: rfid,psnr,params_total,…", "LIST")
    """Empty: those that have a value."""
    sort: str = option("", arguments.text, "Sort by this column, the best first; or method.", "COLUMN")
    against: tuple[str, ...] = option(
        (), arguments.names, "Rows that each get a table of all differences to them: vqgan,…", "LIST"
    )
    published: bool = option(False, arguments.flag, "Show what the methods' papers print, in grey, with its protocol.")
    from_mlflow: str = option("", arguments.text, "Take the results from MLflow alone, instead of --runs.", "URI")

    def __post_init__(self) -> None:
        """Each field may be given as the command line or Python does. Raises UsageError for what it does not take."""
        arguments.settle(self)


@dataclass(frozen=True)
class WrittenReport:
    """What a request came to."""

    report: Report
    out: Path
    """The folder of the files."""
    files: tuple[Path, ...]
    """The page last, where there is one."""


def execute_report(request: ReportRequest) -> WrittenReport:
    """Read, compare and write. Raises UsageError for what cannot be reported on, before anything is written."""
    from vqbench.reports.compare import open_experiment
    from vqbench.reports.experiment import load_experiments
    from vqbench.reports.write import check_formats

    check_formats(request.formats)
    names = tuple(dict.fromkeys(request.name))
    if len(names) > 1 and request.out is None:
        raise UsageError(f"where do the files of {len(names)} experiments go?", "--out DIR")
    if len(names) > 1 and (paths := [name for name in names if name != Path(name).name]):
        raise UsageError(f"'{paths[0]}' is a path, and several experiments are named", "--runs DIR, and names in it")
    if not request.from_mlflow:
        if names:
            experiment = load_experiments(request.runs, names)
        else:
            experiment = open_experiment(request.runs, option="vqbench report ")
        return _write(request, experiment, request.out or experiment.folder / "report")
    if not names:
        raise UsageError("which experiment of the MLflow server?", "--experiment NAME")
    with tempfile.TemporaryDirectory(prefix="vqbench-report-") as folder:
        from vqbench.tracking.fetch import fetch_experiment

        for name in names:
            fetch_experiment(request.from_mlflow, name, Path(folder))
            _refuse_nothing(Path(folder) / name, request.from_mlflow)
        experiment = load_experiments(Path(folder), names)
        return _write(request, experiment, request.out or Path(f"{experiment.name}-report"))


def _refuse_nothing(fetched: Path, uri: str) -> None:
    """Say what is missing where MLflow knows the cells, and the place where their files were does not have them."""
    from vqbench.machine.json_files import read_json
    from vqbench.results.cell_files import RESULT, SPEC
    from vqbench.results.cell_folder import FETCHED

    missing = (read_json(fetched / FETCHED) or {}).get("missing")
    if any(fetched.glob(f"cells/*/{RESULT}")) or (not missing and any(fetched.glob(f"cells/*/{SPEC}"))):
        return
    missing = missing or ["no cell has a file"]
    raise UsageError(
        f"the files of '{fetched.name}' are not where MLflow at {masked(uri)} has put them: {missing[0]}",
        "its artifact store must be reachable from here; `vqbench sync --runs DIR`, where the results are, sends them",
    )


def _write(request: ReportRequest, experiment: Experiment, out: Path) -> WrittenReport:
    from vqbench.reports.report import build_report
    from vqbench.reports.write import FORMATS, write_report

    report = build_report(experiment, request.columns, request.sort, request.published, request.against)
    files = write_report(report, out, request.formats or FORMATS)
    report.notes  # noqa: B018  what is fetched is gone when they are read
    return WrittenReport(report, out, tuple(files))


@arguments.offers(ReportRequest)
def report(name: str | Iterable[str] = (), **options: Any) -> list[Path]:
    """Write the report of stored experiments, as `vqbench report` does; returns the files, the page last.

    `options` are the command's, see ReportRequest. Raises UsageError where there is nothing to report on.
    """
    (asked,) = arguments.by_keyword(report, options, ReportRequest)
    return list(execute_report(arguments.asked(ReportRequest, name=name, **asked)).files)
