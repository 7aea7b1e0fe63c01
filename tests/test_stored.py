"""Cells that an earlier vqbench trained are found, reported and compared by this one."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import typed

CELLS = Path(__file__).parent / "golden" / "stored_cells.tar.xz"
"""Cells of vqbench 0.1.0 at 392fe09: `run` and `ablate` on photos, 64 images, 8 of validation, seeds 0 and 1; `run` of
recipe atomic, 512 images. Their result, curves, values per image and codes, without weights."""

PHOTOS = ("--dataset", "photos", "--images", 64, "--validation-images", 8, "--set", "recipe.log_images=32")
SAME = (*PHOTOS, "--seeds", "0,1", "--metrics", "psnr,ssim,usage,perplexity", "--name", "tiny")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("stored")
    with tarfile.open(CELLS) as archive:
        archive.extractall(runs, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # from 3.11.4
    return runs


def states(stored: Path, *command: object) -> dict[str, str]:
    answer = typed(*command, "--runs", stored, "--dry-run", "--json")
    assert answer.code == 0, answer.err
    return {Path(cell["path"]).name: cell["state"] for cell in answer.objects if "state" in cell}


FORMS = "vaevq@first,vqgan,vaevq@paper,vaevq@released,sqvae"


@pytest.mark.parametrize(
    ("command", "cells"),
    [
        (("run", "--methods", FORMS, *SAME), 10),
        (("ablate", "vaevq@first", "--rows", "paper", *SAME), 10),
        (("run", "--recipe", "atomic", "--methods", "vqgan,vaevq@first", "--dataset", "photos", "--images", 512,
          "--seeds", "0,1", "--name", "atomic"), 4),
    ],
)  # fmt: skip
def test_they_are_found_under_their_names(stored: Path, command: tuple[object, ...], cells: int) -> None:
    found = states(stored, *command)
    assert len(found) == cells
    assert set(found.values()) == {"cached"}
    there = {cell.name for cell in stored.glob("*/cells/*")}
    assert set(found) <= there


def test_the_default_of_today_is_another_cell(stored: Path) -> None:
    found = states(stored, "run", "--methods", "vaevq", *SAME)
    assert set(found.values()) == {"missing"}


def test_they_are_reported_and_compared(stored: Path, tmp_path: Path) -> None:
    answer = typed("report", "tiny", "--runs", stored, "--out", tmp_path / "report")
    assert answer.code == 0, answer.err
    rows: list[dict[str, Any]] = [
        json.loads(path.read_text()) for path in stored.glob("tiny/cells/vqgan-*/result.json")
    ]
    psnr = sum(row["scores"]["psnr"] for row in rows) / len(rows)
    assert f"{psnr:.2f}" in (tmp_path / "report" / "report.md").read_text()
    compared = typed("compare", "vqgan", "sqvae", "--runs", stored, "--name", "tiny")
    assert compared.code == 0, compared.err


@pytest.mark.parametrize(("methods", "fits"), [("vaevq@first,vqgan", False), ("vqgan", True)])
def test_where_a_table_is_too_wide_the_continuous_scores_go_first(
    stored: Path, tmp_path: Path, methods: str, fits: bool
) -> None:
    runs = shutil.copytree(stored, tmp_path / "runs")
    more = {"rfid": 144.1, "lpips_alex": 0.123, "bits_per_token": 9.0, "psnr_continuous": 21.2}
    for i, file in enumerate(sorted(runs.glob("tiny/cells/*/result.json"))):
        result = json.loads(file.read_text())
        result["scores"] |= {name: value * (1 + i / 100) for name, value in more.items()}
        file.write_text(json.dumps(result))
    answer = typed("run", "--methods", methods, *SAME, "--runs", runs)
    assert answer.code == 0, answer.err
    head = next(line for line in answer.out.splitlines() if line.startswith("method "))
    assert "PSNR ↑" in head  # it is a table
    assert ("PSNR cont." in answer.out.split("protocol")[0]) == fits
    assert ("PSNR cont.: only in the report" in answer.out) != fits
    widths = [len(line) for line in answer.out.splitlines() if str(runs) not in line]
    assert max(widths) <= 100
