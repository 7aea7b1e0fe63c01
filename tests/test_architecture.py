"""Rooms have walls: what `make lint` holds of the imports is seen to fail where somebody breaks through."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.commands import REPOSITORY

from vqbench.fetch import fetch_experiment
from vqbench.metrics import weights
from vqbench.tracking import fetch
from vqbench.weights import add_pin

ROOMS = ("vqbench", "methods", "sweeps", "reports")


def merged(into: Path) -> Path:
    """The package as an installation has it; in the checkout its methods, sweeps and reports lie beside it."""
    for room in ROOMS:
        target = into / "vqbench" if room == "vqbench" else into / "vqbench" / room
        shutil.copytree(REPOSITORY / room, target, ignore=shutil.ignore_patterns("__pycache__"))
    return into / "vqbench"


def lint(root: Path) -> tuple[int, str]:
    """Hold the contracts of pyproject.toml to the tree below `root`."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", REPOSITORY / "pyproject.toml"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def plant(package: Path, file: str, line: str) -> None:
    """Have a file of the tree import what it must not."""
    path = package / file
    path.write_text(f"{path.read_text(encoding='utf-8')}\n\n{line}\n", encoding="utf-8")


def test_walls_hold_and_are_seen_to_fall(tmp_path: Path) -> None:
    package = merged(tmp_path)
    code, out = lint(tmp_path)
    assert code == 0, out
    assert "3 kept, 0 broken" in out
    plant(package, "metrics/pixels.py", "from vqbench.cli import terminal")
    # the rooms beside the package are seen too, and so is an import that waits until it is needed
    plant(package, "reports/report.py", "def late():\n    import vqbench.cli")
    plant(package, "methods/nearest.py", "from vqbench import tokenizer")
    plant(package, "machine/atomic.py", "from vqbench.machine import home")
    code, out = lint(tmp_path)
    assert code != 0
    for file in ("metrics.pixels", "reports.report", "methods.nearest"):
        assert f"vqbench.{file} -> vqbench." in out
    assert ".home -> .atomic" in out


def test_a_room_without_a_place_is_seen(tmp_path: Path) -> None:
    (merged(tmp_path) / "corner.py").write_text('"""A room that nobody placed."""\n')
    code, out = lint(tmp_path)
    assert code != 0
    assert "corner" in out


def test_each_room_says_what_lives_in_it() -> None:
    """And what may be imported there: in words for people; the contract above holds the order of the rooms."""
    rooms = [path for path in (REPOSITORY / "vqbench").iterdir() if (path / "__init__.py").is_file()]
    rooms += [REPOSITORY / room for room in ROOMS[1:]]
    assert len(rooms) == 16
    for room in rooms:
        said = " ".join((room / "__init__.py").read_text(encoding="utf-8").split())
        assert re.match(r'"""[\w`][^"]{20,}\. (May import|Imports) [^"]+\. ?"""$', said), f"{room.name}: {said}"


def test_methods_import_nothing_of_the_harness(tmp_path: Path) -> None:
    """So that a method's file can be read, and taken away, by itself."""
    package = merged(tmp_path)
    plant(package, "methods/nearest.py", "from vqbench.results import curves")
    code, out = lint(tmp_path)
    assert code != 0
    assert "vqbench.methods.nearest -> vqbench.results" in out


def test_names_of_before_the_rooms_are_the_same_objects() -> None:
    """Stored plugins say them, and so did the documents."""
    assert add_pin is weights.add_pin
    assert fetch_experiment is fetch.fetch_experiment


def test_no_test_file_imports_another() -> None:
    """What two of them need is in `tests/helpers`; a file that somebody may split or rename is no library."""
    files = [*(REPOSITORY / "tests").rglob("*.py")]
    assert len(files) > 60
    for path in files:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"^\s*(?:from|import) ((?:test_|conftest)\w*)", text, re.MULTILINE)
        assert not found, f"{path} imports {found}"
