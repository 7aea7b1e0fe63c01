"""`vqbench compare`: two methods of a stored experiment set against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vqbench import arguments
from vqbench.cli.options import AsJson, print_rows, takes_some

Who = 'A row of the experiment\'s table: a method, NAME@PRESET, or "NAME without PART".'


@takes_some("runs")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=Who)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    name: Annotated[
        str,
        typer.Option(metavar="NAME", envvar="VQBENCH_NAME", help="Experiment; may be left out where there is one."),
    ] = "",
    runs: Path = Path("runs"),
    metrics: Annotated[
        list[str] | None, typer.Option(metavar="LIST", help="Metrics instead of all that rank: rfid,psnr,…")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Is A better than B? Differences over the same seeds and images, from stored results."""
    from vqbench.reports.compare import compare_groups, objects, open_experiment

    comparison = compare_groups(open_experiment(runs, name), a, b, arguments.names("--metrics", metrics or ()))
    if as_json:
        print_rows(objects(comparison))
        return
    from vqbench.cli.terminal_compare import print_versus

    print_versus(comparison)
