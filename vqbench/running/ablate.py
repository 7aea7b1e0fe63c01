"""`vqbench ablate` from its request to its table: the rows as a run, and each set against the full one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqbench import arguments
from vqbench.planning.ablation_rows import make_rows, rows_of_paper
from vqbench.planning.request import AblateRequest, RunRequest
from vqbench.planning.view import View
from vqbench.running.run import Outcome, make_tracker

if TYPE_CHECKING:
    import pandas as pd

    from vqbench.reports.ablation import AnalysedRow
    from vqbench.tracking.tracker import Tracker


@dataclass(frozen=True)
class AblationOutcome:
    """What a request came to."""

    outcome: Outcome
    rows: tuple[AnalysedRow, ...]


def execute_ablation(
    request: AblateRequest, view: View | None = None, tracker: Tracker | None = None
) -> AblationOutcome:
    """Train what has no result, as `run` would, and compare the rows. Raises UsageError like `make_rows`."""
    from vqbench.planning.view import Silent
    from vqbench.reports.ablation import analyse, markdown, objects
    from vqbench.running.run import execute

    view = view or Silent()
    rows, run, notes = make_rows(request)
    for note in notes:
        view.note(note)
    has_paper_rows = bool(rows_of_paper(request.reference))
    analysed: list[AnalysedRow] = []

    def attach(found: Outcome) -> dict[str, str]:
        if len(found.rows) < len(found.plan.cells):  # interrupted
            return {}
        analysed[:] = analyse(rows, found.rows, has_paper_rows, found.plan.asked)
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in objects(analysed))
        return {"md": markdown(analysed, found.plan.protocol.name), "jsonl": lines}

    outcome = execute(run, view, tracker, attach, "ablate")
    return AblationOutcome(outcome, tuple(analysed) or analyse(rows, outcome.rows, has_paper_rows, outcome.plan.asked))


@arguments.offers(AblateRequest, RunRequest)
def ablate(method: str, dataset: str | os.PathLike[str] = "", *, track: bool = True, **options: Any) -> pd.DataFrame:
    """Switch components of a method off and compare, as `vqbench ablate` does; one row per row and metric.

    `options` are the command's, see AblateRequest and RunRequest. Columns: row, paper_row, metric, score, delta,
    delta_low, delta_high, p. Raises UsageError for what cannot be switched or run at all.
    """
    import pandas as pd

    from vqbench.reports.ablation import objects

    of_rows, of_run = arguments.by_keyword(ablate, options, AblateRequest, RunRequest)
    run = arguments.asked(RunRequest, methods=method, dataset=dataset, **of_run)
    request = arguments.asked(AblateRequest, run=run, **of_rows)
    found = objects(execute_ablation(request, tracker=make_tracker(request.run, track)).rows)
    deltas = ("delta", "delta_low", "delta_high", "p")
    return pd.DataFrame(
        {"row": o["row"], "paper_row": o["paper_row"], "metric": metric, "score": score}
        | {key: o[key].get(metric) for key in deltas}
        for o in found
        for metric, score in o["scores"].items()
    )
