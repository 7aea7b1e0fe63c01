"""What `--dry-run --probe` says against what then happens: predicted over actual time of each method's cell.

python tests/benchmarks/cost.py [--methods vqgan,vaevq --images 3000 --recipe tiny --set METHOD.FIELD=VALUE …]

Wall clock, which is what the probe promises on a quiet machine; and processor time, which other work on the machine
changes little: with one thread it is what the wall clock would show if the machine were quiet.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqbench.planning.plan import check_request
from vqbench.planning.request import RunRequest
from vqbench.planning.view import Silent
from vqbench.running import pricing
from vqbench.running.run import execute, make_tracker, prepare_plan

PROCESSOR_CLOCK = """import sys, time
if "vqbench.cell.probe" in sys.orig_argv:
    time.monotonic = time.process_time
"""


def processor_seconds() -> float:
    """Of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Timer(Silent):
    """Wall and processor seconds of each method's cells, one at a time."""

    def __init__(self) -> None:
        self.actual: dict[str, tuple[float, float]] = {}

    def cell_started(self, cell: Any, position: int, total: int) -> None:
        self.started = time.perf_counter(), processor_seconds()

    def cell_finished(self, cell: Any, row: dict[str, Any]) -> None:
        assert row["state"] == "done", row["error"]
        wall, processor = time.perf_counter() - self.started[0], processor_seconds() - self.started[1]
        before = self.actual.get(cell.label, (0.0, 0.0))
        self.actual[cell.label] = before[0] + wall, before[1] + processor


@contextmanager
def processor_clock(folder: Path) -> Iterator[None]:
    """Within: probes measure in processor time."""
    (folder / "sitecustomize.py").write_text(PROCESSOR_CLOCK)
    before, real = os.environ.get("PYTHONPATH"), pricing.time
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    pricing.time = types.SimpleNamespace(monotonic=lambda: 0.0, perf_counter=time.process_time)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        pricing.time = real  # type: ignore[attr-defined]
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def predicted(request: RunRequest) -> dict[str, tuple[float, pricing.CellCost]]:
    """Seconds of each method's one cell, those of the reference features included."""
    plan = prepare_plan(check_request(request), Silent())
    costs = pricing.probe_costs(request, plan, Silent())
    return {cell.label: (cost.seconds, cost) for cell, cost in zip(plan.cells, costs.cells, strict=True)}


def show(by_wall: dict[str, float], by_processor: dict[str, float], timer: Timer) -> None:
    """A line for each method: what was predicted and what it was, in both clocks."""
    columns = f"{'actual':>9}{'ratio':>7}"
    print(f"{'':<12}{'wall: predicted':>18}{columns}{'processor: predicted':>23}{columns}")
    for label, (wall, processor) in timer.actual.items():
        w, p = by_wall[label], by_processor[label]
        print(f"{label:<12}{w:>16.1f} s{wall:>7.1f} s{w / wall:>7.2f}", end="")
        print(f"{p:>21.1f} s{processor:>7.1f} s{p / processor:>7.2f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="vqgan,vaevq")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--dataset", default="photos")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="vqbench-benchmark-") as root:
        request = RunRequest(
            tuple(asked.methods.split(",")), asked.dataset, recipe=asked.recipe, images=asked.images,
            runs=Path(root) / "runs", settings=tuple(asked.settings), name="cost",
        )  # fmt: skip
        print(f"load before {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {' '.join(sys.argv[1:])}", flush=True)
        by_wall = predicted(request)
        with processor_clock(Path(root)):
            by_processor = predicted(request)
        timer = Timer()
        execute(check_request(request), timer, make_tracker(request))
        disk = sum(file.stat().st_size for file in (request.runs / "cost").rglob("*") if file.is_file())
    print(f"load after {os.getloadavg()[0]:.1f}")
    show({m: wall for m, (wall, _) in by_wall.items()}, {m: used for m, (used, _) in by_processor.items()}, timer)
    expected = sum(cost.disk_bytes for _, cost in by_wall.values())
    print(f"disk: predicted {expected / 1e6:.2f} MB, actual {disk / 1e6:.2f} MB")
    for label, (_, cost) in by_processor.items():
        print(label, cost.as_dict())


if __name__ == "__main__":
    main()
