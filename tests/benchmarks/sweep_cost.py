"""What `sweep --dry-run --probe` says against what then happens: predicted over actual time of all cells of a method.

python tests/benchmarks/sweep_cost.py [--methods vqgan,fsq --space codebook --trials 12 --images 1500 --recipe tiny]

With 12 trials two of each method are guessed when the probe is asked. One cell after the other, one thread; in both
clocks, for which see cost.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from cost import Timer, processor_clock, show

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


def by_method(costs: SweepCosts) -> dict[str, float]:
    """Seconds of all cells of each; those of the reference features are the first one's."""
    found = {method.label: method.seconds for method in costs.expected.methods()}
    first = next(iter(found))
    return {**found, first: found[first] + costs.expected.reference_seconds}


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
    show(by_method(by_wall), by_method(by_processor), timer)
    whole, actual = by_wall.expected.total(), sum(wall for wall, _ in timer.actual.values())
    least, most = (3600 * hours for hours in by_wall.device_hours)
    print(f"in all {whole.seconds:.1f} s predicted, {actual:.1f} s actual, ratio {whole.seconds / actual:.2f}")
    print(f"{by_wall.undrawn} cells of them guessed, which makes it {least:.1f} to {most:.1f} s")
    print(f"disk: predicted {whole.disk_bytes / 1e6:.2f} MB, actual {disk / 1e6:.2f} MB, with the command's databases")


if __name__ == "__main__":
    main()
