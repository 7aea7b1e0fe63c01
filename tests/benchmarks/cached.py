"""How long a command takes that finds all of its 200 cells trained. The aim is below 3 seconds on two quiet cores.

Run: python tests/benchmarks/cached.py. One cell is trained, the other 199 are copies of it under their own names: four
methods, 50 seeds. Median of five, beside the same of a bare `import torch`, which such a command does without.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vqbench.planning.plan import check_request
from vqbench.planning.request import make_request
from vqbench.planning.view import Silent
from vqbench.running.run import prepare_plan

METHODS, SEEDS, IMAGES = "vqgan,fsq,sqvae,vaevq", range(50), 2000


def make_cells(runs: Path) -> list[str]:
    """The command whose cells now lie below `runs`."""
    command = [sys.executable, "-m", "vqbench.cli", "run", "--recipe", "atomic", "--dataset", "photos"]
    command += ["--images", str(IMAGES), "--runs", str(runs), "--name", "cached"]
    subprocess.run([*command, "--methods", "fsq"], check=True, capture_output=True)
    trained = next(runs.glob("cached/cells/*"))
    result = json.loads((trained / "result.json").read_text())
    request = make_request(METHODS, "photos", recipe="atomic", images=IMAGES, runs=runs, name="cached", seeds=SEEDS)
    for cell in prepare_plan(check_request(request), Silent()).cells:
        if cell.folder.path != trained:
            shutil.copytree(trained, cell.folder.path)
            own = {key: cell.spec[key] for key in ("seed", "hash", "method", "config")}
            (cell.folder.path / "spec.json").write_text(json.dumps(cell.spec))
            (cell.folder.path / "result.json").write_text(json.dumps({**result, **own}))
    return [*command, "--methods", METHODS, "--seeds", ",".join(map(str, SEEDS))]


def seconds(command: list[str]) -> float:
    """Wall time of one run of `command`."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        command = make_cells(Path(folder))
        seconds(command)  # from here on the methods' settings are known
        cached = statistics.median(seconds(command) for _ in range(5))
        torch = statistics.median(seconds([sys.executable, "-c", "import torch"]) for _ in range(5))
    print(f"200 cached cells: {cached:.2f} s; a bare `import torch`: {torch:.2f} s; ratio {cached / torch:.2f}")


if __name__ == "__main__":
    main()
