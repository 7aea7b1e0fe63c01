"""The check that waits for a GPU goes through on a machine without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import REPOSITORY

CHECK = REPOSITORY / "tests" / "gpu" / "check.py"


@pytest.mark.slow
def test_every_part_of_the_gpu_check_runs_on_the_cpu_in_its_quick_form(tmp_path: Path) -> None:
    command = [sys.executable, str(CHECK), "--cpu", "--quick", "--minutes", "60"]
    done = subprocess.run(
        command, env={**os.environ, "OUT": str(tmp_path)}, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    states = {part: {row["state"] for row in found["rows"] if row["part"] == part} for part in found["seconds"]}
    assert len(states) == 10
    assert all(state <= {"ok", "not run"} and "ok" in state for state in states.values())
    lost = [row["reason"] for row in found["rows"] if row["state"] == "not run"]
    assert not [reason for reason in lost if "module" in reason]
