"""Start-up of `vqbench --help`, `vqbench methods` and completion, as ratios to a bare Typer program.

Run: python tests/benchmarks/startup.py. Interleaved, median of the repeats; the aim is below 3.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 15
BARE = """import typer

app = typer.Typer()


@app.command()
def hello(name: str = "world") -> None:
    print(name)


@app.command()
def other() -> None:
    pass


if __name__ == "__main__":
    app()
"""


def seconds(command: list[str], env: dict[str, str]) -> float:
    """Wall time of one run of `command`."""
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, env={**os.environ, **env}, check=False)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        entry = "import sys; sys.argv[0] = 'vqbench'; from vqbench.cli.app import main; main()"
        complete = {"_VQBENCH_COMPLETE": "complete_bash", "COMP_WORDS": "vqbench run --methods v", "COMP_CWORD": "3"}
        cases: dict[str, tuple[list[str], dict[str, str]]] = {
            "bare typer --help": ([sys.executable, str(bare), "--help"], {}),
            "vqbench --help": ([sys.executable, "-c", entry, "--help"], {}),
            "vqbench methods": ([sys.executable, "-c", entry, "methods"], {}),
            "completion": ([sys.executable, "-c", entry], complete),
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(REPEATS):
            for name, (command, env) in cases.items():
                times[name].append(seconds(command, env))
    base = statistics.median(times["bare typer --help"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:18} {1000 * median:7.0f} ms  ratio {median / base:4.2f}")


if __name__ == "__main__":
    main()
