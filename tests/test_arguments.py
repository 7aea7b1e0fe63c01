"""What Python gives is read as what is typed: one coercion, refusals before anything is written."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import stored
from helpers.commands import typed

import vqbench
from vqbench.arguments import options
from vqbench.errors import UsageError
from vqbench.planning.request import AblateRequest, RunRequest, make_request
from vqbench.results.cell_folder import CellFolder
from vqbench.running.report import ReportRequest
from vqbench.sweeps.request import SweepRequest


@pytest.mark.parametrize(
    "given",
    [
        "0,10", " 0 , 10,", ["0", "10"], ["0,10"], (0, 10), [0, "10"], {10, 0}, range(0, 20, 10), np.array([0, 10]),
        pd.Series([0, 10]), torch.tensor([0, 10]), (n for n in (0, 10)), [np.int64(0), np.array(10)],
        {0: "", 10: ""}.keys(),
    ],
)  # fmt: skip
def test_seeds_in_every_form_are_the_numbers_that_are_typed(given: Any) -> None:
    seeds = make_request("vqgan", "photos", seeds=given).seeds
    assert seeds == (0, 10)
    assert [type(seed) for seed in seeds] == [int, int]
    assert json.dumps(seeds) == "[0, 10]"


def test_one_seed_needs_no_list() -> None:
    assert [make_request("fsq", "photos", seeds=one).seeds for one in ("10", 10, np.int64(10), np.array(10))] == [
        (10,)
    ] * 4
    assert make_request("fsq", "photos", seeds=None).seeds == (0,)
    assert make_request("fsq", "photos", seeds=-1).seeds == (-1,)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("seeds", [1.0], "--seeds 1.0 are not whole numbers"),
        ("seeds", [True], "--seeds True are not whole numbers"),
        ("seeds", [np.bool_(False), 1], "--seeds False,1 are not whole numbers"),
        ("seeds", "0,one", "--seeds 0,one are not whole numbers"),
        ("seeds", [[0, 1]], "are not whole numbers"),
        ("seeds", {0: 1}, "--seeds takes a list"),
        ("seeds", b"01", "--seeds takes a list"),
        ("metrics", 3, "--metrics takes text, not 3"),
        ("metrics", ["psnr", None], "--metrics takes text, not None"),
        ("images", 1e5, "--images takes a whole number, not 100000.0"),
        ("images", True, "--images takes a whole number, not True"),
        ("images", "1e5", "--images takes a whole number, not '1e5'"),
        ("holdout", 10**400, "--holdout is a share between 0 and 1"),
        ("devices", np.float64(2), "--devices takes a whole number"),
        ("workers", [2], "--workers takes a whole number"),
        ("validation_images", 2.5, "--validation-images takes a whole number"),
        ("cell_timeout", math.nan, "--cell-timeout nan is not a time"),
        ("cell_timeout", math.inf, "is not a time"),
        ("cell_timeout", -1, "is not a time"),
        ("cell_timeout", 0, "is not a time"),
        ("cell_timeout", True, "is not a time"),
        ("cell_timeout", "soon", "--cell-timeout soon is not a time"),
        ("cell_timeout", b"9", "is not a time"),
        ("cell_timeout", np.array([1, 2]), "is not a time"),
        ("cell_timeout", pd.NA, "is not a time"),
        ("seeds", memoryview(b"1"), "--seeds takes a list"),
        ("plugins", "a\0b.py", "--plugin holds a NUL character"),
        ("runs", "a\0b", "--runs holds a NUL character"),
        ("rerun", "false", "--rerun is True or False, not 'false'"),
        ("page", 1, "--page is True or False, not 1"),
        ("runs", 3, "--runs takes a path, not 3"),
        ("features", np.zeros((2, 2)), "--features takes a path"),
        ("plugins", [None], "--plugin takes a path"),
        ("settings", [3], "--set takes text, not 3"),
        ("settings", {"fsq": {"levels": 1}}, "--set fsq takes a value"),
        ("settings", {"recipe.dropout": math.nan}, "takes a value"),
        ("recipe", 3, "--recipe takes text"),
        ("name", Ellipsis, "--name takes text"),
        ("lpips", True, "--lpips takes text"),
        ("dataset", 3, "--dataset takes text"),
        ("methods", [3], "--methods takes text"),
    ],
)  # fmt: skip
def test_what_an_option_does_not_take_is_refused_before_anything_is_written(
    field: str, value: Any, said: str, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"methods": "fsq", "dataset": "photos", "runs": tmp_path / "runs", field: value}
    for call in (
        vqbench.run,
        vqbench.ablate,
        lambda methods, **rest: vqbench.sweep(methods, space="optimiser", **rest),
    ):
        given = dict(asked)
        with pytest.raises(UsageError) as refused:
            call(given.pop("methods"), **given)
        assert said in refused.value.what
        assert refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_lists_numbers_paths_and_times_mean_what_they_mean_on_the_command_line(tmp_path: Path) -> None:
    request = make_request(
        ["vqgan, ", "fsq,vaevq@paper"], tmp_path, metrics="usage, psnr", images="100", devices=np.int64(1), workers="2",
        cell_timeout="2m", plugins="my,own.py", settings="fsq.levels=8,5", runs=str(tmp_path), recipe=Path("my.yaml"),
        validation_images=np.array(4), rerun=np.bool_(True), page=None, scheduler=Path("scheduler.json"),
    )  # fmt: skip
    assert request == RunRequest(
        methods=("vqgan", "fsq", "vaevq@paper"), dataset=f"folder:{tmp_path}", metrics=("usage", "psnr"), images=100,
        devices=1, workers=2, cell_timeout=120.0, plugins=(Path("my,own.py"),), settings=("fsq.levels=8,5",),
        runs=tmp_path, recipe="my.yaml", validation_images=4, rerun=True, scheduler="scheduler.json",
    )  # fmt: skip
    assert type(request.devices) is type(request.validation_images) is int
    assert request.rerun is True
    mapped = {"fsq.levels": [8, 5], "dropout": np.float32(0.5), "vqgan.beta": "1e-3", "flip": True}
    typed_so = ("fsq.levels=[8, 5]", "dropout=0.5", "vqgan.beta=1e-3", "flip=true")
    assert make_request("fsq", "photos", settings=mapped).settings == typed_so


def test_every_option_of_python_is_read_and_none_is_its_default() -> None:
    nothing = {known.keyword: None for field, known in options(RunRequest).items() if field != "dataset"}
    assert make_request("fsq", "photos", **nothing) == RunRequest(("fsq",), "photos")  # type: ignore[arg-type]
    assert make_request(None, "photos").methods == ()  # type: ignore[arg-type]
    assert make_request(np.array(["vqgan", "fsq"]), "photos").methods == ("vqgan", "fsq")  # type: ignore[arg-type]
    assert make_request(pd.Index(["vqgan", "fsq"]), "photos").methods == ("vqgan", "fsq")  # type: ignore[arg-type]
    for nothing_of_ours in (0, False, {}):
        with pytest.raises(UsageError, match="--methods takes"):
            make_request(nothing_of_ours, "photos")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no method to run"):
        vqbench.run(" , ", "photos")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda run: SweepRequest(run, trials=1.5), "--trials takes a whole number"),  # type: ignore[arg-type]
        (lambda run: SweepRequest(run, sampler_seed=True), "--sampler-seed takes a whole number"),
        (lambda run: SweepRequest(run, timeout=math.inf), "--timeout inf is not a time"),
        (lambda run: SweepRequest(run, same_bits="no"), "--same-bits is True or False"),  # type: ignore[arg-type]
        (lambda run: SweepRequest(run, spaces=3), "--space takes text"),  # type: ignore[arg-type]
        (lambda run: AblateRequest(run, drop=3), "--drop takes text"),  # type: ignore[arg-type]
        (lambda run: AblateRequest(run, every="yes"), "--all is True or False"),  # type: ignore[arg-type]
        (lambda _: AblateRequest(RunRequest(("vaevq", "fsq"))), "one method apart, not 2: vaevq, fsq"),
        (lambda _: ReportRequest(formats=[1]), "--format takes text"),  # type: ignore[arg-type]
        (lambda _: ReportRequest(out=True), "--out takes a path"),  # type: ignore[arg-type]
        (lambda _: vqbench.compare("a", 3), "B takes text"),  # type: ignore[arg-type]
        (lambda _: vqbench.compare(False, "b"), "A takes text"),  # type: ignore[arg-type]
        (lambda _: vqbench.compare("a", "b", name=np.array(["x", "y"])), "--name takes text"),  # type: ignore[arg-type]
        (lambda _: vqbench.sweep(resume=np.array(["x", "y"])), "--resume takes text"),  # type: ignore[arg-type]
        (lambda _: vqbench.compare("a", "b", metrics=3), "--metrics takes text"),  # type: ignore[arg-type]
        (lambda _: vqbench.load(3), "a tokenizer takes a path, not 3"),  # type: ignore[arg-type]
    ],
)
def test_the_other_calls_refuse_alike(make: Callable[[RunRequest], Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        make(RunRequest(("fsq",), "photos"))
    assert said in refused.value.what


def test_a_name_that_no_disk_takes_is_no_bug_of_ours(tmp_path: Path) -> None:
    answer = typed("report", "--runs", tmp_path / ("n" * 300))
    assert answer.code == 1
    assert "File name too long" in answer.err
    assert "hint: use shorter names" in answer.err


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("seeds", 10**300, "is too long for the folder of a cell"),
        ("workers", 10**6, "--workers 1000000 are more processes than this machine can carry"),
    ],
)
def test_numbers_that_no_machine_carries_are_refused(field: str, value: int, said: str, tmp_path: Path) -> None:
    options: Any = {"recipe": "atomic", "runs": tmp_path / "runs", field: value}
    with pytest.raises(UsageError) as refused:
        vqbench.run("fsq", "photos", **options)
    assert said in refused.value.what
    assert not list(tmp_path.rglob("cells"))


def test_a_configs_values_are_read_as_they_would_be_typed(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    lines = ["methods: fsq", "dataset: photos", "recipe: atomic", f"runs: {tmp_path / 'runs'}"]

    def planned(*more: str) -> Any:
        config.write_text("\n".join([*lines, *more]))
        return typed("run", "--config", config, "--dry-run", "--json")

    left_out = [f"{option}: null" for option in ("seeds", "metrics", "images", "plugin", "rerun", "name", "set")]
    assert planned(*left_out).out == planned().out != ""
    for line, said in (
        ("images: true", "--images"),
        ("devices: yes", "--devices"),
        ("workers: 1.5", "--workers"),
        ("seeds: true", "--seeds True"),
        ("rerun: maybe", "--rerun"),
    ):
        answer = planned(line)
        assert (answer.code, answer.out) == (2, ""), line
        assert said in answer.err, line


def test_the_other_calls_read_alike() -> None:
    run = RunRequest(("vaevq",), "photos")
    read: Any = SweepRequest(run, spaces=Path("my.yaml"), objectives="psnr,ssim", trials=np.int64(4), timeout="90s")
    assert (read.spaces, read.objectives, read.trials, read.timeout) == (("my.yaml",), ("psnr", "ssim"), 4, 90.0)
    dropped: Any = AblateRequest(run, drop="dcr, vlq", keep=())
    assert (dropped.drop, dropped.keep) == (("dcr", "vlq"), ())
    report: Any = ReportRequest(formats="md,csv", columns=["psnr,rfid"], runs="there", name=None)
    assert (report.formats, report.columns, report.runs) == (("md", "csv"), ("psnr", "rfid"), Path("there"))
    assert report.name == ()


def test_a_keyword_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"run\(\) got an unexpected keyword argument 'seed'; did you mean 'seeds'"):
        vqbench.run("fsq", "photos", seed=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"sweep\(\) .* 'objectives'; did you mean 'objective'"):
        vqbench.sweep("fsq", "photos", objectives="psnr")  # type: ignore[call-arg]
    assert "asked_by" not in inspect.signature(vqbench.run).parameters


@pytest.mark.parametrize("was", ["1", 1.0, True])
def test_cells_of_earlier_versions_with_odd_seeds_are_reported_and_compared(was: Any, tmp_path: Path) -> None:
    for method, psnr in (("vqgan", 20.0), ("fsq", 21.0)):
        folder = stored.write_cell(tmp_path / "old", method, 1, {"psnr": psnr}, devices=1)
        spec = json.loads((folder / "spec.json").read_text())
        (folder / "spec.json").write_text(json.dumps({**spec, "seed": was, "devices": was}))
        assert [(type(CellFolder(folder).spec[key]), CellFolder(folder).spec[key]) for key in ("seed", "devices")] == [
            (int, 1)
        ] * 2
    found = vqbench.compare("fsq", "vqgan", runs=tmp_path)
    assert list(found["difference"]) == [1.0]
    vqbench.report(runs=tmp_path, formats="json", out=tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "left out" not in json.dumps(report)


def test_a_seed_that_is_no_number_is_left_out_with_a_sentence(tmp_path: Path) -> None:
    stored.write_cell(tmp_path / "old", "fsq", 0, {"psnr": 20.0})
    odd = stored.write_cell(tmp_path / "old", "fsq", 1, {"psnr": 20.0})
    spec = json.loads((odd / "spec.json").read_text())
    (odd / "spec.json").write_text(json.dumps({**spec, "seed": 1.5}))
    answer = typed("report", "--runs", tmp_path, "--format", "md")
    assert answer.code == 0, answer.err
    assert "seed is not a whole number" in answer.err
