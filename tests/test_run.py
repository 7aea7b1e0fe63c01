"""`vqbench run` from one end to the other: cells, cache, resume, failures, MLflow, Python."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import Answer, Command, settings, typed
from helpers.shared import SQUEEZE, needs_squeeze
from helpers.signs import PLUGIN
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

import vqbench as package
from vqbench.machine.json_files import write_json
from vqbench.registry import METHODS
from vqbench.results.cell_folder import CellFolder

METRICS = "psnr,ssim,usage,perplexity,dead_codes,bits_per_token,bpp,bpp_entropy,tokens"


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "signs.py"
    path.write_text(PLUGIN)
    return path


class Comparison:
    """Two methods, two seeds, 64 images each: one command, which most tests here only look at."""

    def __init__(self, runs: Path, images: Path, plugin: Path) -> None:
        self.runs = runs
        self.arguments: list[Any] = [
            "run", "--methods", "fsq,vaevq", "--plugin", plugin, "--dataset", f"folder:{images}",
            "--seeds", "0,1", "--images", "64", "--metrics", METRICS, "--runs", runs, "--name", "all", *settings(),
        ]  # fmt: skip
        self.first = self.again("--json")

    def again(self, *more: object) -> Answer:
        return typed(*self.arguments, *more)


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory, images: Path, plugin: Path) -> Comparison:
    return Comparison(tmp_path_factory.mktemp("runs"), images, plugin)


def test_every_cell_is_done_with_finite_scores(comparison: Comparison) -> None:
    assert comparison.first.code == 0, comparison.first.err
    rows = comparison.first.objects
    assert len(rows) == 4
    for row in rows:
        assert row["state"] == "done"
        assert row["error"] is None
        beside = {"psnr_continuous"} if row["method"] == "vaevq" else set()
        assert set(row["scores"]) == {*METRICS.split(","), *beside}
        assert all(np.isfinite(list(row["scores"].values())))
        assert 0 < row["scores"]["usage"] <= 1
        assert row["train_images_per_s"] > 0
        assert row["scores"]["tokens"] == 12 * 64
    assert len({row["protocol"] for row in rows}) == 1
    backbones = {(row["params"]["encoder"], row["params"]["decoder"]) for row in rows}
    assert len(backbones) == 1


def test_the_folder_of_a_cell_holds_what_was_promised(comparison: Comparison) -> None:
    for row in comparison.first.objects:
        folder = Path(row["path"])
        result = json.loads((folder / "result.json").read_text())
        assert result["scores"] == row["scores"]
        for key in ("protocol", "recipe", "versions", "git", "device_name", "seed", "config", "params", "train_seconds",
                    "execution", "size", "peak_memory_bytes", "encode_images_per_s", "decode_images_per_s",
                    "hash"):  # fmt: skip
            assert key in result
        table = pd.read_parquet(folder / "per_image.parquet")
        assert len(table) == 12
        for name in {"psnr", "psnr_continuous"} & row["scores"].keys():
            assert table[name].mean() == pytest.approx(row["scores"][name])
        histogram = np.load(folder / "codes.npz")["histogram"]
        assert histogram.sum() == row["scores"]["tokens"]
        assert (histogram > 0).mean() == pytest.approx(row["scores"]["usage"])
        assert Image.open(folder / "recon.png").size == (8 * 32, 2 * 32)
        assert (folder / "log.txt").is_file()
        assert not list(folder.rglob("*.part"))
        assert not any(text in folder.name for text in ("2026", ":"))


def test_methods_saw_the_same_images_in_the_same_order(comparison: Comparison) -> None:
    ids = [pd.read_parquet(Path(row["path"]) / "per_image.parquet")["id"].tolist() for row in comparison.first.objects]
    assert all(other == ids[0] for other in ids)


def test_a_second_run_trains_nothing_and_gives_the_same_rows(comparison: Comparison) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in comparison.runs.rglob("result.json")}
    again = comparison.again("--json")
    assert again.code == 0
    assert [row["state"] for row in again.objects] == ["cached"] * 4
    assert [row["scores"] for row in again.objects] == [row["scores"] for row in comparison.first.objects]
    assert {p: p.stat().st_mtime_ns for p in comparison.runs.rglob("result.json")} == stamps


def test_the_table_fits_100_columns_and_names_the_protocol(comparison: Comparison) -> None:
    answer = comparison.again()
    assert max(len(line) for line in answer.out.splitlines() if not line.startswith("results ")) <= 100
    for text in ("fsq", "vaevq", "PSNR", "usage", "bits/token", "±", "protocol", "N = 12"):
        assert text in answer.out
    assert "rFID" not in answer.out  # it was not asked for


def test_a_method_without_a_continuous_path_has_a_dash_in_its_column(comparison: Comparison) -> None:
    words = [a if a != METRICS else "psnr,ssim,usage" for a in comparison.arguments]
    lines = typed(*words).out.splitlines()
    head = next(line for line in lines if line.startswith("method "))
    (fsq,), (vaevq,) = ([line for line in lines if line.startswith(f"{name} ")] for name in ("fsq", "vaevq"))
    assert max(map(len, lines[:8])) <= 100
    assert "PSNR cont." in head
    end = head.index("PSNR cont.") + len("PSNR cont.")
    assert fsq[:end].endswith(" –")
    assert re.search(r" \d\d?\.\d\d$", vaevq[:end])


def test_a_cell_that_was_scored_before_there_was_a_continuous_score_stays_cached(
    comparison: Comparison, tmp_path: Path
) -> None:
    runs = shutil.copytree(comparison.runs, tmp_path / "runs")
    for file in runs.rglob("result.json"):
        result = json.loads(file.read_text())
        result["scores"].pop("psnr_continuous", None)
        file.write_text(json.dumps(result))
    words = [a if a != comparison.runs else runs for a in comparison.arguments]
    rows = typed(*words, "--json").objects
    assert [row["state"] for row in rows] == ["cached"] * 4
    assert not any("psnr_continuous" in row["scores"] for row in rows)
    assert "cont." not in typed(*words).out


def test_what_was_asked_for_by_name_is_shown_by_run_and_report(comparison: Comparison) -> None:
    answer = comparison.again()
    for title in ("dead codes", "tokens", "bpp", "(entropy)"):
        assert title in answer.out
    assert typed("report", "all", "--runs", comparison.runs, "--format", "md").code == 0
    heads = (comparison.runs / "all" / "report" / "report.md").read_text().split("| --- |")[0]
    assert all(f"| {title} |" in heads for title in ("dead codes ↓", "tokens", "bpp", "bpp (entropy)"))


def test_a_dry_run_says_what_is_cached(comparison: Comparison) -> None:
    plan = comparison.again("--dry-run", "--seeds", "2")
    assert plan.code == 0
    assert "6 cells: 4 cached, 2 missing" in plan.out


@needs_squeeze
def test_another_metric_is_evaluated_without_training_again(comparison: Comparison) -> None:
    rows = comparison.first.objects
    cell = next(Path(row["path"]) for row in rows if row["method"] == "fsq" and row["seed"] == 0)
    before = (cell / "checkpoints" / "tokenizer.safetensors").read_bytes()
    arguments = [a if a != METRICS else "psnr,lpips_squeeze" for a in comparison.arguments]
    arguments[2] = "fsq"
    plan = typed(*arguments, "--lpips-weights", SQUEEZE, "--dry-run", "--json")
    assert [row["state"] for row in plan.objects] == ["partial", "partial"]
    answer = typed(*arguments, "--lpips-weights", SQUEEZE, "--json")
    assert answer.code == 0, answer.err
    assert all(row["scores"]["lpips_squeeze"] > 0 for row in answer.objects)
    assert answer.objects[0]["protocol"] == rows[0]["protocol"]
    assert set(answer.objects[0]["scores"]) == {*METRICS.split(","), "lpips_squeeze"}
    columns = set(pd.read_parquet(cell / "per_image.parquet").columns)
    assert columns >= {"id", "psnr", "ssim", "lpips_squeeze"}
    assert (cell / "checkpoints" / "tokenizer.safetensors").read_bytes() == before
    assert [row["state"] for row in comparison.again("--dry-run", "--json").objects] == ["cached"] * 4


def test_load_gives_the_tokenizer_that_was_evaluated(comparison: Comparison, images: Path) -> None:
    for row in comparison.first.objects[:2]:
        tokenizer = package.load(row["path"])
        recon = np.asarray(Image.open(Path(row["path"]) / "recon.png"))
        inputs = np.stack(np.split(recon[:32], 8, axis=1))
        batch = torch.from_numpy(inputs).permute(0, 3, 1, 2).float() / 127.5 - 1
        indices = tokenizer.encode(batch)
        assert indices.shape[:3] == (8, 8, 8)
        decoded = (127.5 * (tokenizer.decode(indices) + 1)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        shown = np.stack(np.split(recon[32:], 8, axis=1))
        assert np.abs(decoded.astype(int) - shown.astype(int)).max() <= 1


def test_images_as_bytes_have_the_codes_that_were_scored(comparison: Comparison) -> None:
    for row in comparison.first.objects[:2]:
        cell, tokenizer = Path(row["path"]), package.load(row["path"])
        with np.load(next(cell.parents[1].glob("images-*.npz"))) as kept, np.load(cell / "codes.npz") as codes:
            pixels = torch.from_numpy(kept["pixels"]).permute(0, 3, 1, 2)
            scored = torch.from_numpy(codes["indices"])
        assert len(pixels) == len(scored) == 12
        tokens = tokenizer.encode(pixels)
        assert torch.equal(tokens, scored.view(12, 8, 8).long())
        assert torch.equal(tokenizer.decode(scored.view(12, 8, 8)), tokenizer.decode(tokens))


def test_from_python_the_same_cells_come_as_a_table(comparison: Comparison, images: Path, plugin: Path) -> None:
    table = package.run(
        methods=["fsq", "vaevq"], dataset=f"folder:{images}", images=64, metrics=METRICS.split(","),
        runs=comparison.runs, name="all", settings=[s for s in settings() if s != "--set"],
    )  # fmt: skip
    assert table["state"].tolist() == ["cached", "cached"]
    expected = [row["scores"]["psnr"] for row in comparison.first.objects if row["seed"] == 0]
    assert table["psnr"].tolist() == expected
    assert table["error"].isna().all()


def test_mlflow_holds_parent_children_curves_scores_and_artifacts(comparison: Comparison) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{comparison.runs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("all")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    parents = [run for run in runs if run.data.tags.get("vqbench.kind") == "command"]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    first = min(parents, key=lambda run: run.info.start_time)
    assert {a.path.split(".")[-1] for a in client.list_artifacts(first.info.run_id)} >= {"md", "jsonl", "png"}
    assert len(children) == 4
    later = {run.data.tags["method"] for run in children if run.data.tags["mlflow.parentRunId"] != first.info.run_id}
    assert later <= {"fsq"}  # the command that added a metric to its cells took them over
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {run.info.run_id for run in parents}
    by_cell = {Path(run.data.tags["path"]).name: run for run in children}
    for row in comparison.first.objects:
        run = by_cell[row["cell"]]
        assert run.info.status == "FINISHED"
        assert run.data.metrics["psnr"] == pytest.approx(row["scores"]["psnr"])
        assert run.data.tags["protocol"] == row["protocol"]
        assert run.data.tags["method"] == row["method"]
        assert run.data.tags["execution.precision"] == "ieee"
        assert run.data.params["recipe.images"] == "64"
        stored = {a.path for a in client.list_artifacts(run.info.run_id)}
        assert stored >= {"spec.json", "result.json", "recon.png", "codes.png", "per_image.parquet", "weights"}
    vaevq = next(run for run in children if run.data.tags["method"] == "vaevq")
    assert {vaevq.data.tags[f"component.{name}"] for name in ("vlq", "rcs", "dcr")} == {"on"}
    curve = client.get_metric_history(vaevq.info.run_id, "train/loss")
    lines = (Path(vaevq.data.tags["path"]) / "metrics.jsonl").read_text().splitlines()
    assert [point.step for point in curve] == [json.loads(line)["images"] for line in lines] != []


def one_cell(images: Path, plugin: Path, runs: Path, *more: object) -> list[Any]:
    return [
        "run", "--plugin", plugin, "--dataset", f"folder:{images}", "--images", "64", "--metrics", "psnr,usage",
        "--runs", runs, *settings(), *more,
    ]  # fmt: skip


def test_failed_cells_are_rows_and_leave_the_others_alone(images: Path, plugin: Path, tmp_path: Path) -> None:
    """What kills a process, and no memory: test_faults."""
    kinds = {"raise": "as the config asked", "nan": "not finite"}
    methods = ",".join([*(f"signs@{kind}" for kind in kinds), "fsq"])
    answer = typed(*one_cell(images, plugin, tmp_path, "--methods", methods, "--set", "log_images=8"))
    assert answer.code == 1, answer.err
    assert "Traceback" not in answer.err
    cells = [CellFolder(path) for path in tmp_path.glob("*/cells/*")]
    by_method: dict[str, Any] = {cell.spec["label"]: cell.result for cell in cells}
    for kind, said in kinds.items():
        failed = by_method[f"signs@{kind}"]
        assert (failed["state"], failed["scores"]) == ("failed", {})
        assert said in failed["error"]["message"]
        assert f"signs@{kind} (failed)" in answer.out
        assert said in " ".join(answer.out.split())
    assert by_method["fsq"]["state"] == "done"
    assert by_method["fsq"]["scores"]["psnr"] > 0
    assert "\nfsq " in answer.out


@pytest.mark.slow  # its parts: test_cluster (interrupts), test_faults (kills), test_resume (to the last bit)
def test_a_killed_command_goes_on_from_its_checkpoint(images: Path, plugin: Path, tmp_path: Path) -> None:
    def arguments(runs: Path) -> list[Any]:
        more = ("--methods", "fsq", "--images", "800", "--set", "checkpoint_images=160", "--json")
        return one_cell(images, plugin, runs, *more)

    through = typed(*arguments(tmp_path / "through")).objects[0]
    command = [sys.executable, "-m", "vqbench.cli", *map(str, arguments(tmp_path / "killed"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pattern = "killed/*/cells/*/checkpoints/last.pt"
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(pattern)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    # held where it is, or a busy machine might let it end before the driver hears of the interrupt
    status = next(tmp_path.glob("killed/*/cells/*/status.json"))
    os.kill(json.loads(status.read_text())["pid"], signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert b"error: interrupted" in err
    assert list(tmp_path.glob(pattern))
    folder = next(tmp_path.glob("killed/*/cells/*"))
    assert not (folder / "result.json").exists()
    before = json.loads((folder / "status.json").read_text())
    assert not Path(f"/proc/{before['pid']}").exists()
    plan = typed(*arguments(tmp_path / "killed"), "--dry-run").objects[0]
    assert plan["state"] == "partial"
    resumed = typed(*arguments(tmp_path / "killed")).objects[0]
    assert resumed["state"] == "done"
    weights = [Path(r["path"]) / "checkpoints" / "tokenizer.safetensors" for r in (through, resumed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert resumed["scores"] == through["scores"]


@pytest.mark.slow  # its parts: test_registry (digests), and the plugin with neighbours below, whose copy loads
def test_a_changed_plugin_is_another_cell_and_the_copy_still_loads(
    vqbench: Command, images: Path, plugin: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(plugin.read_text().replace('"signs"', '"mine"'))
    arguments = one_cell(images, mine, tmp_path / "runs", "--methods", "mine", "--json")
    first = vqbench(*arguments).objects[0]
    mine.write_text(mine.read_text() + "\n# changed\n")
    plan = vqbench(*arguments, "--dry-run").objects[0]
    assert plan["state"] == "missing"
    mine.unlink()
    script = "import sys, torch, vqbench; print(vqbench.load(sys.argv[1]).encode(torch.zeros(1, 3, 32, 32)).shape)"
    done = subprocess.run([sys.executable, "-c", script, first["path"]], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([1, 8, 8])"
    copy = Path(first["path"]) / "plugin.py"
    copy.write_text(copy.read_text() + "\nprint('not what was trained')\n")
    tampered = subprocess.run(
        [sys.executable, "-c", script, first["path"]], capture_output=True, text=True, check=False
    )
    assert tampered.returncode != 0
    assert "not what was trained" not in tampered.stdout
    assert "was trained with a plugin file of sha256" in tampered.stderr


def test_a_plugin_takes_its_neighbours_along(images: Path, plugin: Path, tmp_path: Path) -> None:
    """What it imports from beside it is part of the cell, of its copy, and of nobody else's plugin."""
    for name, bits in (("one", 3), ("two", 5)):
        (tmp_path / name / "parts").mkdir(parents=True)
        text = plugin.read_text().replace('"signs"', f'"{name}"').replace("bits: int = 6", "bits: int = BITS")
        text = text.replace("import torch\n", "import torch\nfrom layers import BITS\nimport parts.inner as inner\n", 1)
        lazy = "super().__init__(config)\n        from . import late\n        assert late.inner is inner.BITS"
        (tmp_path / name / "my_vq.py").write_text(text.replace("super().__init__(config)", lazy))
        (tmp_path / name / "layers.py").write_text("from parts.inner import BITS\nimport torch\n")
        (tmp_path / name / "parts" / "inner.py").write_text(f"from math import pi\nBITS = {bits}\n")
        (tmp_path / name / "late.py").write_text("import parts.inner\ninner = parts.inner.BITS\n")
        (tmp_path / name / "torch.py").write_text("raise ImportError('this is not torch')\n")
        (tmp_path / name / "unused.py").write_text("nothing of it is imported\n")
    arguments = one_cell(images, tmp_path / "one" / "my_vq.py", tmp_path / "runs", "--methods", "one", "--json")
    answer = typed(*arguments)
    assert answer.code == 0, answer.err
    cell = CellFolder(Path(answer.objects[0]["path"]))
    assert cell.spec["config"]["bits"] == 3
    assert cell.spec["plugin"]["files"] == ["my_vq.py", "late.py", "layers.py", "parts/inner.py"]
    assert cell.spec["code"] == cell.spec["plugin"]["sha256"]
    other = ("--plugin", tmp_path / "two" / "my_vq.py", "--methods", "one,two", "--dry-run")
    both = {row["method"]: row for row in typed(*arguments, *other).objects}
    assert {name: row["state"] for name, row in both.items()} == {"one": "cached", "two": "missing"}
    assert METHODS.get("two").Config().bits == 5
    assert {"layers", "parts", "late", "my_vq"}.isdisjoint(sys.modules)

    inner = tmp_path / "one" / "parts" / "inner.py"
    inner.write_text(inner.read_text() + "# changed\n")
    assert [row["state"] for row in typed(*arguments, "--dry-run").objects] == ["missing"]
    shutil.rmtree(tmp_path / "one")
    assert (cell.path / "plugin.zip").is_file()
    assert package.load(cell.path).quantizer.codebook_size == 2**3


def test_how_a_cell_is_trained_is_recorded_and_not_hashed(images: Path, plugin: Path, tmp_path: Path) -> None:
    def asked(*more: object) -> dict[str, Any]:
        answer = typed(*one_cell(images, plugin, tmp_path, "--methods", "fsq", "--json", *more))
        assert answer.code == 0, answer.err
        (row,) = answer.objects
        return row

    row = asked("--micro-batch", 4, "--deterministic", "--activation-checkpointing", "--no-compile")
    assert json.loads((Path(row["path"]) / "result.json").read_text())["execution"] == {
        "precision": "ieee", "float32_convolutions": "ieee", "float32_products": "ieee", "compile": False,
        "deterministic": True, "micro_batch": 4, "activation_checkpointing": True, "fused_optimizer": False,
        "cudnn_benchmark": False,
    }  # fmt: skip
    plain = asked("--dry-run")
    assert (plain["cell"], plain["state"]) == (row["cell"], "cached")
    drawn = [asked("--set", "dropout=0.1", "--dry-run", "--micro-batch", n)["cell"] for n in (4, 5, 16, 99)]
    assert len(set(drawn)) == 3  # a micro-batch of the whole batch is none
    assert drawn[2] == drawn[3] == asked("--set", "dropout=0.1", "--dry-run", "--compile")["cell"]


def test_two_devices_train_one_cell(
    images: Path, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")  # what a cluster's scheduler sets is not ours to take for ranks
    monkeypatch.setenv("LOCAL_RANK", "1")
    more = ("--methods", "vaevq", "--devices", "2", "--set", "gan=hinge", "--set", "discriminator_layers=1")
    answer = typed(*one_cell(images, plugin, tmp_path, *more, "--json"))
    assert answer.code == 0, answer.err + answer.out
    row = answer.objects[0]
    assert row["state"] == "done"
    assert row["scores"]["psnr"] > 0
    result = json.loads((Path(row["path"]) / "result.json").read_text())
    assert (result["devices"], result["images_seen"]) == (2, 64)


@pytest.mark.slow
def test_two_devices_train_as_one_does(images: Path, plugin: Path, tmp_path: Path) -> None:
    """FSQ is deterministic and its loss is a mean over images: two halves of a batch make the whole batch's step."""
    one, two = (
        typed(*one_cell(images, plugin, tmp_path, "--methods", "fsq", "--devices", n, "--json")).objects[0]
        for n in (1, 2)
    )
    assert one["cell"] != two["cell"]
    assert two["scores"]["psnr"] == pytest.approx(one["scores"]["psnr"], abs=1e-3)


@pytest.mark.slow  # test_cluster has two drivers who really meet
def test_two_commands_at_once_train_each_cell_once(
    vqbench: Command, images: Path, plugin: Path, tmp_path: Path
) -> None:
    arguments = one_cell(images, plugin, tmp_path, "--methods", "fsq,vqgan", "--json")
    command = [sys.executable, "-m", "vqbench.cli", *map(str, arguments)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    rows = [[json.loads(line) for line in out.splitlines()] for out, _ in answers]
    assert [row["scores"] for row in rows[0]] == [row["scores"] for row in rows[1]]
    for folder in tmp_path.glob("*/cells/*"):
        assert (folder / "log.txt").read_text().count("evaluate") == 1


SUBCLASS = """
import sys
from vqbench.methods.vqgan import VQGAN
from vqbench.registry import METHODS

@METHODS.register("heir")
class Heir(VQGAN):
    \"\"\"A variant (Doe, 2026).\"\"\"
"""


def test_a_plugin_that_subclasses_a_built_in_leaves_its_cell_alone(
    vqbench: Command, images: Path, tmp_path: Path
) -> None:
    """Each in a process of its own, where it is the plugin that imports the built-in."""
    heir = tmp_path / "heir.py"
    heir.write_text(SUBCLASS)
    plans = [
        vqbench(*one_cell(images, heir, tmp_path, "--methods", methods, "--dry-run", "--json")).objects
        for methods in ("vqgan", "heir,vqgan")
    ]
    assert len({row["cell"] for plan in plans for row in plan if row["method"] == "vqgan"}) == 1
    assert len({row["cell"] for plan in plans for row in plan}) == 2


def test_a_plugin_edited_during_a_run_is_not_trained_under_the_old_name(
    images: Path, plugin: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    text = plugin.read_text().replace('"signs"', '"mine"')
    # its first cell edits the file, as a person might meanwhile
    mine.write_text(
        text + f"\nimport sys\nif 'vqbench.cell' in ' '.join(sys.orig_argv): open({str(mine)!r}, 'a').write('#')\n"
    )
    answer = typed(*one_cell(images, mine, tmp_path / "runs", "--methods", "mine", "--seeds", "0,1", "--json"))
    assert answer.code == 0, answer.err
    specs = [json.loads((Path(row["path"]) / "spec.json").read_text()) for row in answer.objects]
    copies = [(Path(row["path"]) / "plugin.py").read_bytes() for row in answer.objects]
    assert copies[0] == copies[1]
    assert {hashlib.sha256(copy).hexdigest() for copy in copies} == {spec["plugin"]["sha256"] for spec in specs}


def test_scores_survive_a_failure_while_a_metric_is_added(
    comparison: Comparison, images: Path, plugin: Path, tmp_path: Path
) -> None:
    runs = shutil.copytree(comparison.runs, tmp_path / "runs")
    for file in runs.rglob("result.json"):
        result = json.loads(file.read_text())
        write_json(file, {**result, "scores": {name: result["scores"][name] for name in ("psnr", "usage")}})
    arguments = one_cell(images, plugin, runs, "--methods", "fsq", "--name", "all", "--json")
    first = typed(*arguments).objects[0]
    assert first["state"] == "cached"
    weights = Path(first["path"]) / "checkpoints" / "tokenizer.safetensors"
    good = weights.read_bytes()
    with safe_open(weights, framework="np") as file:
        header = json.loads(file.metadata()["vqbench"])
    save_file({}, weights, metadata={"vqbench": json.dumps({**header, "schema": 99})})  # not ours to replace
    more = [a if a != "psnr,usage" else "psnr,usage,ssim" for a in arguments]
    failed = typed(*more)
    assert failed.code == 1
    assert failed.objects[0]["state"] == "failed"
    assert "newer vqbench" in failed.objects[0]["error"]["message"]
    again = typed(*arguments).objects[0]
    assert (again["state"], again["scores"]) == ("cached", first["scores"])
    weights.write_bytes(good)
    mended = typed(*more).objects[0]
    assert mended["state"] == "done"
    assert mended["scores"]["ssim"] > 0


def test_rerun_trains_again_to_the_same_numbers_as_a_run_of_its_own(images: Path, plugin: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    arguments = one_cell(images, plugin, tmp_path, "--methods", "fsq", "--name", "twice")
    first, again = typed(*arguments, "--json").objects[0], typed(*arguments, "--json", "--rerun").objects[0]
    assert (first["state"], again["state"]) == ("done", "done")
    assert first["scores"] == again["scores"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("twice").experiment_id])
    parents = {run.info.run_id for run in runs if run.data.tags.get("vqbench.kind") == "command"}
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == parents
    assert len(children) == len(parents) == 2
    assert all(run.info.status == "FINISHED" for run in runs)
    assert all(len(client.get_metric_history(run.info.run_id, "train/loss")) == 1 for run in children)


def test_a_disk_that_fills_up_costs_a_row_and_not_the_table(images: Path, plugin: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        filler = tmp_path / "filler.py"
        text = (
            plugin.read_text()
            .replace('"signs"', '"filler"')
            .replace(
                'raise RuntimeError("as the config asked")',
                f"\n                with open({str(disk / 'fill')!r}, 'wb') as f:\n"
                "                    while True: f.write(bytes(2**16)); f.flush()",
            )
        )
        filler.write_text(text)
        answer = typed(
            *one_cell(images, filler, disk / "runs", "--methods", "filler,fsq", "--set", "filler.explode_at=16"),
            "--json",
        )
        assert answer.code == 1, answer.err
        assert [row["state"] for row in answer.objects] == ["failed", "failed"]
        assert all("No space left" in row["error"]["message"] for row in answer.objects)
        assert "bug" not in answer.err
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # MLflow's database there is open in this process still


def test_a_class_typed_at_a_prompt_is_refused_with_the_way_out(images: Path, tmp_path: Path) -> None:
    script = (
        "import sys, vqbench\nfrom vqbench.methods.fsq import FSQ\nfrom vqbench.registry import METHODS\n"
        "METHODS.register('nb')(type('NB', (FSQ,), {'__module__': '__main__'}))\n"
        "vqbench.run(['nb'], sys.argv[1], metrics=['psnr'], runs=sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"folder:{images}", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "UsageError: method 'nb' exists in this process only" in done.stderr


def test_what_is_trained_already_is_answered_without_torch(comparison: Comparison) -> None:
    script = (
        "import sys\n"
        "from vqbench.cli.app import app\n"
        "app(args=sys.argv[1:], standalone_mode=False)\n"
        "print(sorted({'torch', 'lightning', 'mlflow', 'pandas'} & set(sys.modules)), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script, *map(str, comparison.arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert "vaevq" in done.stdout
