"""What `sweep --dry-run --probe` says against what then happens: between what, and the actual time of all cells.

python tests/benchmarks/sweep_cost.py [--methods vqgan,fsq --space codebook --trials 12 --images 1500 --recipe tiny]

With 12 trials two of each method are not drawn when the probe is asked. One cell after the other, one thread; in both
clocks, for which see cost.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from cost import Timer, processor_clock

from vqbench.planning.request import make_request
from vqbench.planning.view import Silent
from vqbench.running.run import make_tracker
from vqbench.sweeps.costs import SweepCosts, probe_sweep
from vqbench.sweeps.forecast import forecast
from vqbench.sweeps.request import SweepRequest
from vqbench.sweeps.sweep import execute_sweep, plan_sweep


def predicted(request: SweepRequest) -> SweepCosts:
    """What is left to pay for the sweep."""
    plan = plan_sweep(request, Silent())
    return probe_sweep(plan, forecast(plan, guess=True), Silent())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="vqgan,fsq")
    parser.add_argument("--space", default="codebook")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--dataset", default="photos")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="vqbench-benchmark-") as root:
        run = make_request(
            asked.methods, asked.dataset, recipe=asked.recipe, images=asked.images, runs=Path(root) / "runs",
            name="cost",
        )  # fmt: skip
        request = SweepRequest(run, spaces=tuple(asked.space.split(",")), trials=asked.trials, name="cost")
        print(f"load before {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {' '.join(sys.argv[1:])}", flush=True)
        by_wall = predicted(request)
        with processor_clock(Path(root)):
            by_processor = predicted(request)
        timer = Timer()
        report = execute_sweep(request, timer, make_tracker(run))
        disk = sum(file.stat().st_size for file in (Path(root) / "runs").rglob("*") if file.is_file())
    print(f"load after {os.getloadavg()[0]:.1f}")
    for row in report.rows:
        print(row["method"], row["drawn"], row["state"])
    for clock, costs, actual in (
        ("wall clock", by_wall, sum(wall for wall, _ in timer.actual.values())),
        ("processor time", by_processor, sum(processor for _, processor in timer.actual.values())),
    ):
        least, most = costs.total()
        print(f"{clock}: {least.seconds:.1f} to {most.seconds:.1f} s predicted, {actual:.1f} s actual")
    least, most = by_wall.total()
    print(f"{sum(study.undrawn for study in by_wall.studies.values())} cells of them not drawn")
    predicted_disk = f"{least.disk_bytes / 1e6:.2f} to {most.disk_bytes / 1e6:.2f} MB"
    print(f"disk: predicted {predicted_disk}, actual {disk / 1e6:.2f} MB, with the command's databases")


if __name__ == "__main__":
    main()
