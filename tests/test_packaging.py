"""The wheel is whole and needs no checkout; a clone into an empty folder passes the README's commands (slow)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from helpers.commands import REPOSITORY

from vqbench import __version__
from vqbench.machine.provenance import versions


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked; built from a copy, since setuptools leaves a build folder behind."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout
    if not files:
        pytest.skip("not a git checkout")
    for name in files.splitlines():
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", root, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no wheel can be built here: {done.stderr.strip().splitlines()[-1]}")
    with zipfile.ZipFile(next(root.glob("*.whl"))) as archive:
        archive.extractall(root / "site")
    return root / "site"


def test_the_wheel_holds_the_rooms_and_no_tests(wheel: Path) -> None:
    names = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    assert {"vqbench/methods/vaevq.py", "vqbench/reports/summary.py", "vqbench/sweeps/__init__.py"} <= names
    assert {"vqbench/recipes/tiny.yaml", "vqbench/py.typed"} <= names
    assert {f"vqbench/reports/page/{name}" for name in ("template.html", "page.css", "page.js")} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vqbench"}
    assert not [name for name in names if "test" in name]


def test_the_version_is_said_once(wheel: Path) -> None:
    assert (wheel / f"vqbench-{__version__}.dist-info" / "METADATA").is_file()
    assert versions()["vqbench"] == __version__


def test_it_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(wheel)}
    where = "import vqbench, vqbench.methods, sys; print(vqbench.__file__, vqbench.methods.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(str(wheel)) for path in found.stdout.split())
    command = [
        sys.executable,
        "-m",
        "vqbench.cli",
        "run",
        "--methods",
        "vaevq",
        "--dataset",
        "photos",
        "--images",
        "32",
    ]
    command += ["--metrics", "psnr", "--validation-images", "4"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vaevq" in done.stdout


@pytest.mark.slow
def test_a_clone_into_an_empty_folder_runs_the_demo(tmp_path: Path) -> None:
    clone = tmp_path / "fresh"
    subprocess.run(["git", "clone", "-q", REPOSITORY, clone], check=True)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    subprocess.run(["make", ".venv/.installed"], cwd=clone, env=env, check=True)
    started = time.monotonic()
    done = subprocess.run(["make", "demo"], cwd=clone, env=env, capture_output=True, text=True, check=True)
    assert "rFID" in done.stdout
    assert time.monotonic() - started < 300
