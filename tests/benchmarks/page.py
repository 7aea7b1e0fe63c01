"""How large a page of 1,000 cells is, how long it takes to write, and how long a browser takes to show and sort it.

Run: python tests/benchmarks/page.py. 100 methods × 10 seeds, made, not trained; no figures. The aims: below 5 MB,
written in less than 2 s once the comparison is there, and on two quiet cores no more than 0.3 s for the first table and
for each sorting. Chromium's part is left out where there is none.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.browser import Browser
from helpers.stored import Made, make_runs

from vqbench.reports.experiment import load_experiment
from vqbench.reports.page import write_page
from vqbench.reports.report import Report, build_report

METHODS, SEEDS = 100, 10
BYTES, WRITING, ACTING = 5e6, 2.0, 0.3
SORT = """
const done = arguments[arguments.length - 1], times = [];
for (const view of ["Single runs", "Methods"]) {
  [...document.querySelectorAll("[data-part=table] .choice button")].find((b) => b.textContent === view).click();
  for (const key of ["psnr", "rfid", "name", "psnr"]) {
    const start = performance.now();
    document.querySelector(`[data-part=table] th[data-key=${key}] button`).click();
    document.body.offsetHeight; // laid out, too
    times.push(performance.now() - start);
  }
}
const shown = performance.getEntriesByName("first-contentful-paint")[0];
const began = performance.getEntriesByType("navigation")[0];
done([Math.max(...times) / 1000, (shown.startTime - began.responseEnd) / 1000]);
"""


def make_report(runs: Path) -> Report:
    """An experiment of many methods, compared."""
    methods = [
        Made(
            f"method {i:03d}", shift=i / 10, config={"codebook_size": 64, "dim": i}, failed={3: "no"} if i == 7 else {}
        )
        for i in range(METHODS)
    ]
    make_runs(runs, "many", methods, range(SEEDS))
    return build_report(load_experiment(runs, "many"))


def in_browser(page: Path, profile: Path) -> tuple[float, float] | None:
    """Seconds of the slowest sorting, and from having the file to seeing something; None without Chromium."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return None
    browser = Browser(profile)
    try:
        browser.open(page)
        slowest, first = browser.driver.execute_async_script(SORT)
    finally:
        browser.driver.quit()
    return float(slowest), float(first)


def main() -> None:
    """Measure, print, and fail where a limit is passed by far."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        report = make_report(Path(folder) / "runs")
        prepared = time.perf_counter()
        page = write_page(report, [], Path(folder) / "index.html")
        writing = time.perf_counter() - prepared
        size = page.stat().st_size
        seen = in_browser(page, Path(folder) / "profile")
    print(f"{METHODS * SEEDS} cells: made and compared in {prepared - started:.1f} s")
    print(f"page: {size / 1e6:.2f} MB (aim {BYTES / 1e6:.0f}), written in {writing:.2f} s (aim {WRITING})")
    if seen is not None:
        print(f"Chromium: slowest sorting {seen[0]:.3f} s, first sight {seen[1]:.3f} s (aim {ACTING} each)")
    slow = writing > 3 * WRITING or (seen is not None and max(seen) > 3 * ACTING)
    sys.exit("a limit is passed by more than a busy machine explains" if size > BYTES or slow else 0)


if __name__ == "__main__":
    main()
