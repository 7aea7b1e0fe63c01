"""Data at the size of ImageNet: what it costs to list it, once and again.

python tests/benchmarks/data.py [listing] [--entries 1281167 --json FILE]

listing: an ImageNet of one small JPEG over and over in 1,000 folders of classes, 50,000 for validation, opened by
processes of their own: the first lists it, the others read what it has left (5 GB of disk meanwhile). Seconds are
those of `open_dataset`; memory is that of the process after it, what the interpreter and its libraries take included
(`RssAnon` is private, `RssFile` mapped, of which other processes have the same pages).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ENTRIES, VALIDATION, CLASSES = 1_281_167, 50_000, 1_000

OPENED = """
import json, sys, time
from pathlib import Path
from vqbench.data.dataset import open_dataset
from vqbench.registry import DATASETS
DATASETS.get("imagenet")

def memory():
    words = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {word[0].strip(":"): int(word[1]) / 1024 for word in words if word[0] in ("RssAnon:", "RssFile:", "VmHWM:")}

root, options = Path(sys.argv[1]), json.loads(sys.argv[2])
before, started = memory()["RssAnon"], time.perf_counter()
dataset = open_dataset("imagenet", 64, root, **options)
seconds = time.perf_counter() - started
held = {name: round(value, 1) for name, value in memory().items()}
print(json.dumps({"seconds": round(seconds, 3), "RssAnon before": round(before, 1), **held,
                  "train": len(dataset.train), "validation": len(dataset.validation),
                  "digest": dataset.train_digest[:12], "last": dataset.train.ids[len(dataset.train) - 1]}))
"""


def generate(root: Path, entries: int) -> None:
    """Files named like ImageNet's; each takes 4 KiB of most disks. Of empty ones no size would be remembered."""
    held = io.BytesIO()
    Image.new("RGB", (8, 8)).save(held, "JPEG")
    for side, count in (("train", entries), ("val", min(VALIDATION, entries // 2))):
        for number in range(CLASSES):
            folder = root / side / f"n{number + 1_440_764:08d}"
            folder.mkdir(parents=True)
            for k in range(number, count, CLASSES):
                name = f"{folder.name}_{k}" if side == "train" else f"ILSVRC2012_val_{k + 1:08d}"
                (folder / f"{name}.JPEG").write_bytes(held.getvalue())


def opened(root: Path, home: Path, **options: object) -> dict[str, object]:
    """What a process of its own says after opening the set."""
    command = [sys.executable, "-c", OPENED, str(root), json.dumps(options)]
    done = subprocess.run(command, env={**os.environ, "VQBENCH_HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def listing(entries: int) -> dict[str, dict[str, object]]:
    """The first opening of a set, the next, and those that keep a part of it."""
    with tempfile.TemporaryDirectory() as place:
        root, home = Path(place) / "imagenet", Path(place) / "home"
        generate(root, entries)
        time.sleep(3)  # what is younger than two seconds is listed again each time
        ways: dict[str, dict[str, object]] = {
            "first time": {},
            "again": {},
            "of validation, 5,000": {"validation_images": 5000},
        }
        ways["holdout of 1 %"] = {"holdout": 0.01}
        found = {way: opened(root, home, **options) for way, options in ways.items()}
        found["the index"] = {"MB": round(sum(f.stat().st_size for f in home.rglob("*.index")) / 2**20, 1)}
    return found


SECTIONS = {"listing": lambda asked: listing(asked.entries)}


def main() -> None:
    """Measure the sections asked for, all without one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = {name: SECTIONS[name](asked) for name in asked.sections or SECTIONS}
    for name, rows in found.items():
        print(name)
        for row, values in rows.items():
            print(f"  {row:22} " + "  ".join(f"{key} {value}" for key, value in values.items()))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
