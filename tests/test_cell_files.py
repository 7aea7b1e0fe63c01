"""Every file of a cell: gone, cut off, emptied or a later version's. What then happens is what the table says."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers.commands import SMALL, Answer, typed

import vqbench
from vqbench.cell.__main__ import run_cell
from vqbench.cell.image_cell import open_data
from vqbench.cell.image_cell import trained as train
from vqbench.cell.memory import peak_memory
from vqbench.cell.process import CellJob, write_job
from vqbench.cell.progress import Progress
from vqbench.errors import UsageError, VQBenchError
from vqbench.machine.json_files import write_json
from vqbench.machine.lease import CellBusyError, exclusive
from vqbench.planning.plan import Cell, check_request
from vqbench.planning.request import RunRequest, make_request
from vqbench.planning.view import Silent
from vqbench.recipe import Recipe
from vqbench.reports.damage import damage
from vqbench.reports.experiment import load_experiment
from vqbench.results.cell_files import FILES, is_whole, names
from vqbench.results.cell_folder import CellFolder
from vqbench.results.curves import read_curves
from vqbench.running.execution import cached_row
from vqbench.running.run import execute, prepare_plan
from vqbench.tracking.tracker import Tracker

DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda content: None,
    "cut off": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "garbage": lambda content: b"\xff\xfe\x00 no such thing",
}
LATER = b'{"schema": 99}'


@dataclass(frozen=True)
class Place:
    """A cell that was trained by hand in this process, and is damaged, beside another that is whole."""

    SETTINGS: ClassVar = (*SMALL, "checkpoint_images=32", "log_images=16")

    images: Path
    runs: Path

    def request(self, metrics: str = "psnr,usage") -> RunRequest:
        return make_request("vqgan", f"folder:{self.images}", images=64, metrics=metrics.split(","), runs=self.runs,
                            name="x", settings=self.SETTINGS)  # fmt: skip

    def plan(self, metrics: str = "psnr,usage") -> Cell:
        return prepare_plan(check_request(self.request(metrics)), Silent()).cells[0]

    @property
    def folder(self) -> CellFolder:
        return self.plan().folder

    def again(self, metrics: str = "psnr,usage") -> tuple[dict[str, Any], list[str]]:
        """The result of a run, and what it said, as the engine would have it done, in this process."""
        cell, said = self.plan(metrics), []
        if cell.state == "cached":
            return cached_row(cell, said.append), said
        said += write_job(CellJob(cell.folder.path, cell.spec), anew=False)
        run_cell(cell.folder)
        return cell.folder.result or {}, said

    def notes(self) -> list[str]:
        """What a report says of the first cell."""
        experiment = load_experiment(self.runs, "x")
        return [note for note in (*experiment.notes, *damage(experiment)) if self.folder.name in note]

    def typed(self) -> Answer:
        words = [p for text in self.SETTINGS for p in ("--set", text)]
        return typed("run", "--methods", "vqgan", "--dataset", f"folder:{self.images}", "--images", 64,
                     "--metrics", "psnr,usage", "--runs", self.runs, "--name", "x", "--json", *words)  # fmt: skip


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(images, tmp_path_factory.mktemp("cells") / "runs")
    cell = place.plan()
    write_job(CellJob(cell.folder.path, cell.spec), anew=False)
    recipe = Recipe(**cell.spec["recipe"])
    dataset, _ = open_data(cell.spec, recipe)
    train(cell.folder, cell.spec, recipe, dataset, Progress(cell.folder))
    shutil.copy(cell.folder.checkpoint, place.runs.with_name("last.pt"))
    run_cell(cell.folder)
    cell.folder.log.write_text("trained by hand\n")
    other = shutil.copytree(cell.folder.path, cell.folder.path.with_name("other"))
    write_json(other / "spec.json", {**cell.spec, "seed": 1, "hash": "another"})
    return place


@pytest.fixture
def place(trained: Place, tmp_path: Path) -> Place:
    shutil.copytree(trained.runs, tmp_path / "runs")
    return Place(trained.images, tmp_path / "runs")


def spoil(path: Path, how: str) -> None:
    content = LATER if how == "later" else DAMAGES[how](path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def test_the_table_knows_every_file_that_a_cell_leaves(trained: Place) -> None:
    there = {str(path.relative_to(trained.folder.path)) for path in trained.folder.path.rglob("*") if path.is_file()}
    assert there <= {file.name for file in FILES}
    assert {file.name for file in FILES if file.parcel == "result"} >= set(names(by_image=True))
    assert all(is_whole(trained.folder.path / name) for name in there)


@pytest.mark.parametrize("how", [*DAMAGES, "later"])
@pytest.mark.parametrize("file", [file for file in FILES if file.mended in ("rerun", "")], ids=lambda file: file.name)
def test_what_nothing_hangs_on_leaves_the_cell_as_it_is(place: Place, file: Any, how: str) -> None:
    path = place.folder.path / file.name
    if not path.exists():
        return
    before = (place.folder.path / "result.json").read_bytes()
    spoil(path, how)
    row, said = place.again()
    assert (row["state"], said) == ("cached", [])
    assert (place.folder.path / "result.json").read_bytes() == before
    notes = place.notes()
    if file.without and (how != "gone" or file.name != "reconstructions.npz"):  # which earlier versions did not keep
        word = "is gone" if how == "gone" else "is not whole"
        assert any(f"{file.name} {word}; {file.without}" in note and "--rerun" in note for note in notes)
    else:
        assert notes == []


def test_the_peak_of_memory_is_that_of_training_and_of_evaluation(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads(place.folder.training_record.read_text())
    write_json(place.folder.training_record, {**record, "peak_memory_bytes": 1})
    (place.folder.path / "result.json").unlink()
    assert place.again()[0]["peak_memory_bytes"] > 10**8

    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 5)
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda device: 8)
    earlier = {"peak_memory_bytes": 7, "peak_reserved_bytes": 7}
    found = peak_memory(torch.device("cuda:0"), earlier)
    assert found == {"peak_memory_bytes": 7, "peak_reserved_bytes": 8}


@pytest.mark.parametrize("how", ["gone", "cut off", "emptied", "garbage", "list"])
def test_a_spec_is_written_again_without_training(place: Place, how: str) -> None:
    path = place.folder.path / "spec.json"
    whole, weights = json.loads(path.read_bytes()), place.folder.weights.stat().st_mtime_ns
    spoil(path, how) if how != "list" else path.write_text("[]")
    assert any("spec.json" in note for note in place.notes())
    assert place.plan().state == "cached"
    answer = place.typed()
    assert [row["state"] for row in answer.objects] == ["cached"]
    assert f"{place.folder.name}: spec.json was not whole, and is written again" in answer.err
    assert json.loads(path.read_bytes()) == whole
    assert place.folder.weights.stat().st_mtime_ns == weights
    assert place.notes() == []


@pytest.mark.parametrize("how", ["gone", "cut off", "emptied", "list", "odd"])
def test_a_result_is_evaluated_again_from_its_weights(place: Place, how: str) -> None:
    folder, path = place.folder, place.folder.path / "result.json"
    scores, weights = folder.result["scores"], folder.weights.stat().st_mtime_ns  # type: ignore[index]
    other = {"list": "[]", "odd": '{"state": "done", "scores": {"psnr": "12", "usage": null}}'}
    spoil(path, how) if how not in other else path.write_text(other[how])
    assert any("result.json" in note for note in place.notes()) or how == "gone"
    result, said = place.again()
    assert result["scores"] == scores
    assert folder.weights.stat().st_mtime_ns == weights
    assert said == ([] if how == "gone" else [
        f"{folder.name}: result.json is not whole; the cell is evaluated again from its weights"])  # fmt: skip


@pytest.mark.parametrize("how", ["gone", "cut off", "emptied"])
@pytest.mark.parametrize("name", ["checkpoints/tokenizer.safetensors", "checkpoints/training.json"])
def test_lost_weights_are_named_and_trained_again_when_they_are_needed(place: Place, name: str, how: str) -> None:
    folder = place.folder
    scores = folder.result["scores"]  # type: ignore[index]
    spoil(folder.path / name, how)
    assert place.again()[0]["state"] == "cached"
    assert place.notes() == []
    if how == "cut off" and "weights" in name:
        with pytest.raises(UsageError, match="is damaged, it is not whole"):
            vqbench.load(folder.path)
    result, said = place.again("psnr,usage,ssim")
    assert {**scores, "ssim": result["scores"]["ssim"]} == result["scores"]
    word = "gone" if how == "gone" else "not whole"
    assert any(f"{name} is {word}; training begins at image 0" in note for note in said)
    vqbench.load(folder.path)
    assert place.notes() == []


def test_scores_of_weights_that_are_lost_do_not_stand_beside_those_of_others(place: Place) -> None:
    place.folder.weights.unlink()
    result, _ = place.again("ssim")
    assert set(result["scores"]) == {"ssim"}


def test_weights_that_do_not_fit_are_trained_again(place: Place) -> None:
    from safetensors.torch import load_file, save_file

    weights = place.folder.weights
    length = struct.unpack("<Q", weights.read_bytes()[:8])[0]
    header = json.loads(weights.read_bytes()[8 : 8 + length])["__metadata__"]
    tensors = load_file(weights)
    save_file({name: t.flatten()[:1] for name, t in tensors.items()}, weights, metadata=header)
    with pytest.raises(UsageError, match="tensors do not fit"):
        vqbench.load(place.folder.path)
    result, _ = place.again("psnr,usage,ssim")
    assert "ssim" in result["scores"]
    vqbench.load(place.folder.path)


def test_load_names_the_file_and_what_is_wrong_with_it(place: Place) -> None:
    from safetensors.torch import load_file, save_file

    weights = place.folder.weights
    content, tensors = weights.read_bytes(), load_file(weights)
    length = struct.unpack("<Q", content[:8])[0]
    told = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["vqbench"])
    for how in ("cut off", "emptied", "garbage"):
        spoil(weights, how)
        with pytest.raises(UsageError, match="it is not whole") as error:
            vqbench.load(weights)
        assert str(weights) in error.value.what
        weights.write_bytes(content)
    for header, said in (
        ({"vqbench": "no json"}, "its header is not JSON"),
        ({"vqbench": "[]"}, "its header does not say method, config"),
        ({"vqbench": json.dumps({k: v for k, v in told.items() if k != "seed"})}, "its header does not say seed"),
        ({"vqbench": json.dumps({**told, "schema": 99})}, "was written by a newer vqbench"),
        ({"vqbench": json.dumps({**told, "config": {**told["config"], "warp": 1}})}, "a newer one may have written it"),
        ({"vqbench": json.dumps({**told, "recipe": {**told["recipe"], "warp": 1}})}, "a newer one may have written it"),
        ({"vqbench": json.dumps({**told, "method": "vqgan2"})}, "a newer one may have written it"),
        ({"vqbench": json.dumps({**told, "config": {**told["config"], "codebook_size": 7}})}, "tensors do not fit"),
        ({}, "was not written by vqbench"),
    ):
        save_file(tensors, weights, metadata=header)
        with pytest.raises(UsageError, match=said) as error:
            vqbench.load(place.folder.path)
        assert str(weights) in error.value.what
    save_file(dict(list(tensors.items())[1:]), weights, metadata={"vqbench": json.dumps(told)})
    with pytest.raises(UsageError, match="tensors do not fit"):
        vqbench.load(weights)


@pytest.mark.parametrize("how", ["gone", "cut off", "emptied", "a bit"])
def test_a_damaged_checkpoint_is_trained_again_from_image_0(
    trained: Place, place: Place, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = place.folder
    scores = folder.result["scores"]  # type: ignore[index]
    for name in ("result.json", "checkpoints/tokenizer.safetensors", "checkpoints/training.json"):
        (folder.path / name).unlink()
    content = bytearray(trained.runs.with_name("last.pt").read_bytes())
    content[len(content) // 2] ^= 0xFF
    folder.checkpoint.write_bytes(content)
    if how != "a bit":
        spoil(folder.checkpoint, how)
    result, said = place.again()
    assert result["scores"] == scores
    assert [point["images"] for point in folder.curves] == [16, 32, 48, 64]
    words = {"gone": [], "a bit": []}.get(how, [f"{folder.name}: checkpoints/last.pt is not whole; "
                                                "training begins at image 0"])  # fmt: skip
    assert said == words
    assert ("is damaged: training begins at image 0" in capfd.readouterr().out) == (how == "a bit")


@pytest.mark.parametrize("file", ["spec.json", "result.json"])
def test_what_a_newer_vqbench_wrote_is_named_and_left_alone(place: Place, file: str) -> None:
    path = place.folder.path / file
    write_json(path, {**json.loads(path.read_bytes()), "schema": 99})
    content = path.read_bytes()
    newer = f"{file} was written by a newer vqbench (schema 99; this one knows 1)"
    assert any(newer in note for note in place.notes())
    (row,) = execute(check_request(place.request())).rows
    assert row["state"] == "failed"
    assert row["error"]["message"] == newer
    assert path.read_bytes() == content


def test_a_record_of_training_that_a_newer_vqbench_wrote_hinders_only_what_needs_it(place: Place) -> None:
    path = place.folder.training_record
    write_json(path, {**json.loads(path.read_bytes()), "schema": 99})
    content, before = path.read_bytes(), place.folder.result
    assert place.again()[0]["state"] == "cached"
    with pytest.raises(VQBenchError, match=r"training\.json was written by a newer vqbench"):
        place.again("psnr,usage,ssim")
    assert (path.read_bytes(), place.folder.result) == (content, before)


@pytest.mark.parametrize("name", ["reference_features", "validation_images"])
def test_what_cells_share_is_written_again_by_the_next_evaluation(place: Place, name: str) -> None:
    path = getattr(place.folder, name)
    if name == "reference_features":
        np.savez_compressed(path, features=np.zeros((12, 8)))
    spoil(path, "cut off")
    experiment = load_experiment(place.runs, "x")
    assert any(f"{path.name} is not whole" in note for note in damage(experiment))
    if name == "validation_images":
        place.again("psnr,usage,ssim")
        assert is_whole(path)


def test_values_per_image_that_are_lost_do_not_stop_a_metric_from_being_added(place: Place) -> None:
    for how in ("cut off", "emptied"):
        spoil(place.folder.path / "per_image.parquet", how)
        result, said = place.again("psnr,usage,ssim" if how == "emptied" else "psnr,usage,bpp")
        assert {"psnr", "usage"} < set(result["scores"])
        assert "per_image.parquet is not whole" in " ".join(said)
        assert place.notes() == []


@pytest.mark.parametrize(
    ("content", "images"),
    [
        (b'{"images": 16}\n{"images": 32}\n{"imag', [16, 32]),
        (b'{"images": 16}\n{"imag{"images": 32}\n{"images": 48}\n', [16, 48]),
        (b"[]\n3\nnull\n{}\n" + b'{"images": "x"}\n{"images": 16}\n', [16]),
        (b'{"images": 16}\n\xff\xfe\x00\n{"images": 32}\n', [16, 32]),
        (b"", []),
    ],
)
def test_all_who_read_curves_skip_the_same_lines(content: bytes, images: list[int], tmp_path: Path) -> None:
    from vqbench.sweeps.watched import images_seen, new_points
    from vqbench.training.recorder import _drop_points_after

    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    assert [point["images"] for point in read_curves(path)] == images
    assert images_seen(tmp_path) == (images[-1] if images else 0)
    assert new_points(tmp_path, "psnr", 0, 100) == []
    _drop_points_after(path, 40)
    assert [json.loads(line)["images"] for line in path.read_text().splitlines()] == [n for n in images if n <= 40]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"machine": ""}', '{"machine": "elsewhere"}', "\x00"])
def test_a_lease_that_does_not_say_whose_it_is_keeps_others_away_until_it_is_old(content: str, tmp_path: Path) -> None:
    lease = tmp_path / "cell" / "lease.json"
    lease.parent.mkdir()
    lease.write_text(content)
    with pytest.raises(CellBusyError, match="is being written by another process"), exclusive(lease.parent):
        pass
    os.utime(lease, (1, 1))
    with exclusive(lease.parent):
        lease.write_text(content)  # torn under its holder, who goes on
    assert not lease.exists()


def test_a_command_whose_record_is_damaged_is_none_that_had_the_same_cells(place: Place) -> None:
    commands = place.runs / "x" / "commands"
    commands.mkdir()
    for number, content in enumerate(("", "[]", "{}", '{"kind": "run", "cells"', "\x00")):
        (commands / f"{number:04d}.json").write_text(content)
    assert not Tracker(place.runs).knows(prepare_plan(check_request(place.request()), Silent()), "run")
