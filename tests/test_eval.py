"""`vqbench eval`: tokenizers that are trained already as rows beside others. Here they are our own cells; what is
read of other programs' files has tests of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import REPOSITORY, Answer, Background, settings, typed, until
from helpers.shared import SHARED
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import stats

import vqbench

METRICS = ("--metrics", "psnr,usage")
EXAMPLE = REPOSITORY / "docs" / "examples" / "nbx_vqvae.py"
NBX, NATURAL = SHARED / "weights" / "nbx_vqvae.pt", SHARED / "data" / "natural256.tar"


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of vqgan and fsq, two seeds of each."""
    root = tmp_path_factory.mktemp("trained")
    some = ("--dataset", f"folder:{images}", *METRICS, "--images", 32, "--runs", root, *settings())
    assert typed("run", "--methods", "vqgan,fsq", "--seeds", "0,1", "--name", "own", *some).code == 0
    return root / "own" / "cells"


def cell(trained: Path, start: str) -> Path:
    (found,) = trained.glob(f"{start}-*")
    return found


def weights(trained: Path, start: str) -> Path:
    return cell(trained, start) / "checkpoints" / "tokenizer.safetensors"


def scores(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "result.json").read_text())["scores"])


def evaluated(*words: object, images: Path, runs: Path) -> Answer:
    return typed("eval", *words, "--dataset", f"folder:{images}", *METRICS, "--runs", runs)


def test_our_own_cells_score_what_they_did_wherever_they_are(trained: Path, images: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copy(weights(trained, "fsq-*-s0"), tmp_path / "brought.safetensors")
    own = cell(trained, "vqgan-*-s1")
    answer = evaluated(f"there={elsewhere}", own, "--json", images=images, runs=tmp_path / "runs")
    assert answer.code == 0, answer.err
    second, first = answer.objects
    assert first["scores"] == scores(own)
    assert second["scores"] == scores(cell(trained, "fsq-*-s0"))
    assert (second["method"], first["tokens_per_image"], first["bits_per_image"]) == ("there", 64, 64 * 5)
    assert first["params"] == json.loads((own / "result.json").read_text())["params"]
    assert first["train_images_per_s"] is None
    known = json.loads((Path(first["path"]) / "spec.json").read_text())["pretrained"]
    assert known["trained_on"] == f"folder:{images}, 32 px"
    again = evaluated(f"there={elsewhere}", own, "--json", images=images, runs=tmp_path / "runs")
    assert [row["state"] for row in again.objects] == ["cached", "cached"]
    (experiment,) = [folder.name for folder in (tmp_path / "runs").iterdir() if folder.is_dir()]
    for sort in ((), ("--sort", "params_total")):  # by size first, whatever is asked
        out = ("--out", tmp_path / "out", "--format", "csv", *sort)
        assert typed("report", experiment, "--runs", tmp_path / "runs", *out).code == 0
        table = pd.read_csv(tmp_path / "out" / "report.csv")
        assert table["size"].tolist() == table["bits_per_image"].tolist() == [64 * 5, 64 * 6]
        assert "psnr_tied" not in table  # each is alone of its size: nothing is tested


def test_another_size_than_it_was_trained_on(trained: Path, images: Path, tmp_path: Path) -> None:
    own = cell(trained, "vqgan-*-s0")
    answer = evaluated(own, "--resolution", 16, "--json", images=images, runs=tmp_path)
    assert answer.code == 0, answer.err
    (row,) = answer.objects
    assert row["tokens_per_image"] == 16
    assert "-16-v1" in json.loads((Path(row["path"]) / "spec.json").read_text())["protocol"]["name"]
    refused = evaluated(own, "--resolution", 18, images=images, runs=tmp_path)
    assert refused.code == 2
    assert "divisible by 4, not 18" in refused.err


def test_beside_methods_it_is_one_row_and_stands_beside_every_seed(trained: Path, images: Path, tmp_path: Path) -> None:
    """The difference to a method of two seeds is a t test of that method's scores against one number."""
    own = cell(trained, "fsq-*-s0")
    adapter = tmp_path / "theirs.py"
    adapter.write_text(f"""
import vqbench

def made():
    tokenizer = vqbench.load({str(own)!r})
    tokenizer.codebook_size = 64
    return tokenizer
""")
    some = ("--dataset", f"folder:{images}", *METRICS, "--images", 32, "--runs", tmp_path, *settings())
    answer = typed(
        "run", "--methods", f"vqgan,fixed={adapter}:made", "--seeds", "3,4", "--name", "both", "--json", *some
    )
    assert answer.code == 0, answer.err
    rows = answer.objects
    assert [(row["method"], row["seed"]) for row in rows].count(("fixed", 0)) == 1
    assert sorted(row["seed"] for row in rows if row["method"] == "vqgan") == [3, 4]
    compared = typed("compare", "vqgan", "fixed", "--name", "both", "--runs", tmp_path, "--json")
    assert compared.code == 0, compared.err
    found = {line["metric"]: line for line in compared.objects if "metric" in line}["usage"]
    mine = [row["scores"]["usage"] for row in rows if row["method"] == "vqgan"]
    expected = stats.ttest_1samp(mine, scores(own)["usage"])
    assert found["p"] == pytest.approx(expected.pvalue, rel=1e-6)
    assert found["sizes"].startswith("vqgan takes 320 bits/image, and fixed takes 384 bits/image: more bits are an ")
    report = typed("report", "both", "--runs", tmp_path, "--out", tmp_path / "out", "--format", "md")
    assert report.code == 0, report.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert "### Not trained here" in text
    assert ", and 1 tokenizer not trained here, measured on 12 validation images" in text


@pytest.fixture(scope="module")
def scored(trained: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Answer, Path]:
    """The four cells scored, those of fsq under a name; and the experiment that they are in."""
    runs = tmp_path_factory.mktemp("scored")
    vqgan, fsq = ([cell(trained, f"{method}-*-s{seed}") for seed in (1, 0)] for method in ("vqgan", "fsq"))
    answer = evaluated(vqgan[0], f"a={fsq[0]}", vqgan[1], f"a={fsq[1]}", "--json", images=images, runs=runs)
    assert answer.code == 0, answer.err
    (experiment,) = [folder for folder in runs.iterdir() if (folder / "cells").is_dir()]
    return answer, experiment


def _report(experiment: Path, out: Path) -> pd.DataFrame:
    words = ("report", experiment.name, "--runs", experiment.parent, "--out", out, "--format", "csv,md")
    assert typed(*words).code == 0
    return pd.read_csv(out / "report.csv").set_index("label")


def _compared(experiment: Path, *both: str) -> dict[str, Any]:
    answer = typed("compare", *both, "--name", experiment.name, "--runs", experiment.parent, "--json")
    assert answer.code == 0, answer.err
    return next(line for line in answer.objects if line.get("metric") == "psnr")


def test_seeds_of_one_training_are_one_row_as_in_the_run_that_trained_them(
    trained: Path, scored: tuple[Answer, Path], images: Path, tmp_path: Path
) -> None:
    answer, experiment = scored
    label = answer.objects[0]["method"]
    assert [(row["method"], row["seed"]) for row in answer.objects] == [(label, 1), ("a", 1), (label, 0), ("a", 0)]
    mine, theirs = _report(experiment, tmp_path / "mine"), _report(trained.parent, tmp_path / "theirs")
    assert mine["n"].to_dict() == {label: 2, "a": 2}
    ends = ["psnr_mean", "psnr_low", "psnr_high"]
    assert mine.loc[label, ends].tolist() == theirs.loc["vqgan", ends].tolist()
    found, known = _compared(experiment, label, "a"), _compared(trained.parent, "vqgan", "fsq")
    paired = ("difference", "p", "seeds")
    assert [found[key] for key in paired] == [known[key] for key in paired]
    text = (tmp_path / "mine" / "report.md").read_text()
    for own in trained.glob("*"):
        assert hashlib.sha256((own / "checkpoints" / "tokenizer.safetensors").read_bytes()).hexdigest()[:12] in text
    # of files that were brought without their cells the header tells it
    brought = [shutil.copy(weights(trained, f"vqgan-*-s{k}"), tmp_path / f"{k}.safetensors") for k in (0, 1)]
    again = evaluated(*brought, "--dry-run", "--json", images=images, runs=experiment.parent).objects
    assert [(row["method"], row["state"]) for row in again if "state" in row] == [(label, "cached")] * 2


def test_what_an_earlier_version_scored_is_found_and_joins_its_seeds(
    trained: Path, scored: tuple[Answer, Path], images: Path, tmp_path: Path
) -> None:
    experiment = Path(shutil.copytree(scored[1], tmp_path / "runs" / scored[1].name))
    (folder,) = (experiment / "cells").glob("vqgan-s1-*")
    assert "-s0-" in folder.name.partition("-s1-")[2], "as it was called before the seed was known"
    spec = json.loads((folder / "spec.json").read_text())
    spec["pretrained"] = {key: v for key, v in spec["pretrained"].items() if key not in ("seed", "trained_as")}
    earlier = {**spec, "seed": 0, "label": spec["pretrained"]["name"]}
    (folder / "spec.json").write_text(json.dumps(earlier))
    assert _report(experiment, tmp_path / "before")["n"].to_dict() == {
        "a": 2, earlier["label"]: 1, scored[0].objects[0]["method"]: 1
    }  # fmt: skip
    own = [cell(trained, f"vqgan-*-s{seed}") for seed in (0, 1)]
    again = evaluated(*own, "--json", images=images, runs=experiment.parent)
    assert [row["state"] for row in again.objects] == ["cached", "cached"]
    assert _report(experiment, tmp_path / "after")["n"].tolist() == [2, 2]


def test_a_name_that_is_given_makes_the_row(
    trained: Path, scored: tuple[Answer, Path], images: Path, tmp_path: Path
) -> None:
    experiment = Path(shutil.copytree(scored[1], tmp_path / "runs" / scored[1].name))
    of_vqgan = scored[0].objects[0]["method"]
    again = evaluated(f"b={cell(trained, 'fsq-*-s1')}", "--json", images=images, runs=experiment.parent)
    assert [(row["method"], row["state"]) for row in again.objects] == [("b", "cached")]
    assert _report(experiment, tmp_path / "out")["n"].drop(of_vqgan).to_dict() == {"a": 1, "b": 1}
    evaluated(f"a={cell(trained, 'fsq-*-s1')}", images=images, runs=experiment.parent)
    assert _report(experiment, tmp_path / "out")["n"].drop(of_vqgan).to_dict() == {"a": 2}
    zero, other = cell(trained, "vqgan-*-s0"), cell(trained, "fsq-*-s0")
    refused = evaluated(f"a={zero}", f"a={other}", "--dry-run", images=images, runs=tmp_path / "refused")
    assert (refused.code, "two rows are called" in refused.err) == (2, True), refused.err


def test_loaded_in_python_it_is_the_same_object(trained: Path) -> None:
    own = vqbench.load(weights(trained, "vqgan-*-s0"))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    indices = own.encode(images)
    assert torch.equal(own.encode(images), indices)
    assert own.decode(indices).shape == images.shape


def test_python_has_the_command_too(trained: Path, images: Path, tmp_path: Path) -> None:
    own = cell(trained, "vqgan-*-s0")
    table = vqbench.evaluate(own, images, metrics="psnr", runs=tmp_path, track=False, page=False)
    assert table["psnr"].tolist() == [scores(own)["psnr"]]
    assert table["source"].tolist() == [str(own)]


@pytest.mark.parametrize(
    ("source", "said", "hint"),
    [
        ("nowhere.ckpt", "there is no ", "adapter.py:function"),
        ("vqgan", "vqgan is a method", "vqbench run --methods vqgan"),
        ("vaevq@paper", "vaevq@paper is a method", "vqbench run --methods vaevq@paper"),
        ("vqagn", "there is no vqagn", "a checkpoint"),
        ("EMPTY", "without config.json", "images:"),
        ("UNFINISHED", "a cell without weights", "run it first"),
        ("CUT", "damaged", "bring back a copy"),
    ],
)
def test_what_is_no_tokenizer_is_one_error_and_one_hint(
    trained: Path, images: Path, tmp_path: Path, source: str, said: str, hint: str
) -> None:
    (tmp_path / "EMPTY").mkdir()
    shutil.copytree(cell(trained, "vqgan-*-s0"), tmp_path / "UNFINISHED", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(cell(trained, "vqgan-*-s0"), tmp_path / "CUT")
    cut = tmp_path / "CUT" / "checkpoints" / "tokenizer.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    given = tmp_path / source if (tmp_path / source).exists() else source
    answer = evaluated(given, images=images, runs=tmp_path / "runs")
    assert answer.code == 2
    error, hinted = answer.err.strip().splitlines()[-2:]
    assert said in error
    assert hint in hinted
    assert not (tmp_path / "runs").exists()


def test_a_file_that_changes_after_the_plan_fails_its_cell_alone(trained: Path, images: Path, tmp_path: Path) -> None:
    """The spec that is left of an earlier plan names the file as it was then."""
    source = Path(shutil.copy(weights(trained, "vqgan-*-s0"), tmp_path / "mine.safetensors"))
    answer = evaluated(source, "--json", images=images, runs=tmp_path / "runs")
    (row,) = answer.objects
    shutil.copy(weights(trained, "vqgan-*-s1"), source)
    (other,) = evaluated(source, "--dry-run", "--json", images=images, runs=tmp_path / "runs").objects
    assert (other["state"], other["cell"] == row["cell"]) == ("missing", False)
    from vqbench.cell.__main__ import main

    (Path(row["path"]) / "result.json").unlink()
    assert main([str(Path(row["path"]) / "spec.json")]) == 1
    assert "has changed since" in json.loads((Path(row["path"]) / "result.json").read_text())["error"]["message"]


def test_ablations_and_features_refuse_it(trained: Path, images: Path, tmp_path: Path) -> None:
    own = cell(trained, "vqgan-*-s0")
    ablated = typed("ablate", own, "--dataset", f"folder:{images}", "--runs", tmp_path)
    assert (ablated.code, "trained already" in ablated.err) == (2, True)
    on_features = typed("run", "--recipe", "atomic", "--methods", own, "--dataset", f"folder:{images}")
    assert (on_features.code, "fits features" in on_features.err) == (2, True)


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_cells_that_are_left(trained: Path, images: Path, tmp_path: Path) -> None:
    own = [f"{name}={cell(trained, name)}" for name in ("vqgan-*-s0", "vqgan-*-s1", "fsq-*-s0")]
    named = [text.replace("-*-", ".").partition("=")[0] + "=" + text.partition("=")[2] for text in own]
    words = ("eval", *named, "--dataset", f"folder:{images}", *METRICS, "--runs", tmp_path)
    running = Background(*words)
    until(lambda: [*tmp_path.glob("*/cells/*/result.json")], "a cell has its scores", running.process)
    running.process.kill()
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/cells/*/result.json")}
    answer = typed(*words, "--json")
    assert answer.code == 0, answer.err
    assert [row["state"] for row in answer.objects].count("cached") >= 1
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert np.isfinite([row["scores"]["psnr"] for row in answer.objects]).all()


def test_another_split_of_what_it_was_trained_on_is_said(trained: Path, images: Path, tmp_path: Path) -> None:
    own, listed = cell(trained, "vqgan-*-s0"), tmp_path / "list.txt"
    listed.write_text("train/0000.png\ntrain/0001.png\n")
    runs, bare = tmp_path / "runs", shutil.copy(weights(trained, "vqgan-*-s0"), tmp_path / "bare.safetensors")
    for more in (("--split-list", listed), ("--split", "all")):
        answer = evaluated(own, *more, "--dry-run", images=images, runs=runs)
        assert (answer.code, "trained on some of the images" in answer.err) == (0, True), answer.err
    # the same images under another path are known by their digest
    moved = shutil.copytree(images, tmp_path / "moved")
    unnamed = tmp_path / "of before.safetensors"
    with safe_open(bare, framework="pt") as file:
        header = {key: v for key, v in json.loads(file.metadata()["vqbench"]).items() if key != "training"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    save_file(tensors, unnamed, metadata={"vqbench": json.dumps(header)})
    for place, source, more, said in (
        (images, unnamed, (), "not known on which images"),
        (moved, bare, (), ""),
        (moved, own, ("--split", "all"), "trained on some of the images"),
        (moved, bare, ("--split", "all"), "trained on some of the images"),
        (moved, bare, ("--split", "all", "--resize", "bicubic"), "trained on some of the images"),
        (images / "val", bare, ("--split", "all"), "not known on which images"),
    ):
        answer = evaluated(source, *more, "--dry-run", images=place, runs=runs)
        remarks = [line for line in answer.err.splitlines() if "may be scored" in line or "may have been" in line]
        assert (answer.code, len(remarks), said in "".join(remarks)) == (0, len(said) > 0, True), answer.err
    # a folder without a split is scored whole by what was trained elsewhere, and not where that is unknown
    for source, whole in ((own, True), (bare, False)):
        answer = evaluated(source, "--dry-run", images=images / "val", runs=runs)
        assert (answer.code, "all 12 images are scored" in answer.err) == (0, whole), answer.err
    for same in (("--validation-images", 5), ("--resize", "bicubic")):
        answer = evaluated(own, *same, "--dry-run", images=images, runs=runs)
        assert answer.code == 0, answer.err
        assert "may have been" not in answer.err
        assert "not known" not in answer.err


def test_a_file_of_the_same_size_and_time_is_another_file(trained: Path, images: Path, tmp_path: Path) -> None:
    source = tmp_path / "mine.safetensors"
    found = []
    for seed in (0, 1):
        shutil.copy(weights(trained, f"vqgan-*-s{seed}"), source)
        os.utime(source, (1e9, 1e9))
        found.append(evaluated(source, "--dry-run", "--json", images=images, runs=tmp_path / "runs").objects[0]["cell"])
    assert found[0] != found[1]


def test_a_plugin_in_a_folder_of_weights_does_not_run_untrusted(trained: Path, images: Path, tmp_path: Path) -> None:
    planted, mark = tmp_path / "planted", tmp_path / "it ran"
    (planted / "checkpoints").mkdir(parents=True)
    plugin = planted / "plugin.py"
    plugin.write_text(f"open({str(mark)!r}, 'w')\n")
    with safe_open(weights(trained, "vqgan-*-s0"), framework="pt") as file:
        header = json.loads(file.metadata()["vqbench"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    sha256 = hashlib.sha256(plugin.read_bytes()).hexdigest()
    header |= {"method": "planted", "plugin": {"path": str(plugin), "sha256": sha256}}
    target = planted / "checkpoints" / "tokenizer.safetensors"
    save_file(tensors, target, metadata={"vqbench": json.dumps(header)})
    for words in (("eval", planted, "--dataset", f"folder:{images}", "--dry-run"), ("check", target)):
        answer = typed(*words)
        assert (answer.code, "which is a program" in answer.err) == (2, True), answer.err
        assert not mark.exists()
    typed("check", target, "--trust")
    assert mark.exists()


def test_names_that_pickles_fetch_from_their_memo_are_seen(images: Path, tmp_path: Path) -> None:
    mark, text = tmp_path / "it ran", lambda word: b"\x8c" + bytes([len(word)]) + word.encode() + b"\x94"
    names = text("posix") + b"0" + text("system") + b"0" + b"h\x00" + b"h\x01" + b"\x93"
    (tmp_path / "a.ckpt").write_bytes(b"\x80\x04" + names + text(f"touch '{mark}'") + b"\x85R.")
    answer = evaluated(tmp_path / "a.ckpt", "--trust", images=images, runs=tmp_path / "runs")
    assert (answer.code, "would call posix.system" in answer.err) == (2, True), answer.err
    assert not mark.exists()


def test_what_has_no_codes_and_what_cheats_with_them(trained: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "cheat.py").write_text(
        "import torch\n\nclass Cheat:\n    codebook_size = 2\n\n"
        "    def encode(self, images):\n        self.images = images\n"
        "        return torch.zeros(len(images), 4, dtype=torch.long)\n\n"
        "    def decode(self, indices):\n        return self.images[:len(indices)]\n\n"
        "def cheat():\n    return Cheat()\n"
    )
    made = f"images:{images / 'val'}"
    answer = evaluated(
        f"{tmp_path}/cheat.py:cheat",
        f"same={made}",
        "--json",
        "--resolution",
        40,
        images=images,
        runs=tmp_path / "runs",
    )
    assert answer.objects, answer.err
    cheat, same = answer.objects
    assert (answer.code, cheat["state"]) == (1, "failed")
    assert "decodes indices alone" in cheat["error"]["message"] or "ignores other" in cheat["error"]["message"]
    assert set(same["scores"]) == {"psnr"}
    assert same["scores"]["psnr"] > 90  # a picture is its own reconstruction
    (name,) = [folder.name for folder in (tmp_path / "runs").iterdir() if folder.is_dir()]
    out = ("--out", tmp_path / "out", "--format", "md")
    report = typed("report", name, "--runs", tmp_path / "runs", *out)
    assert (report.code, "codes.npz" in report.err) == (0, False), report.err


def test_small_mistakes_have_small_answers(trained: Path, images: Path, tmp_path: Path) -> None:
    own, runs = cell(trained, "vqgan-*-s0"), tmp_path / "runs"
    twice = evaluated(own, f"other={own}", images=images, runs=runs)
    assert (twice.code, "are the same tokenizer" in twice.err) == (2, True), twice.err
    lightning = evaluated("epoch=3-step=5.ckpt", images=images, runs=runs)
    assert (lightning.code, "epoch=3-step=5.ckpt" in lightning.err) == (2, True), lightning.err
    for words in (("check", "vqgan", "--trust"), ("check", own, "--as", "taming")):
        idle = typed(*words)
        assert (idle.code, "leave" in idle.err) == (2, True), idle.err
    assert evaluated(own, "--as", "taming", images=images, runs=runs).code == 2


@pytest.mark.slow
@pytest.mark.skipif(not (NBX.is_file() and NATURAL.is_file()), reason=f"{NBX} or {NATURAL} is not there")
def test_every_door_in_one_command(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published network, a folder of diffusers, reconstructions and two seeds of ours: one table and one page."""
    from diffusers import VQModel

    monkeypatch.setenv("NBX_VQVAE", str(NBX))
    with tarfile.open(NATURAL) as archive:
        archive.extractall(tmp_path / "natural", filter="data")
    (originals,) = (tmp_path / "natural").iterdir()
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    VQModel(**blocks, block_out_channels=(32, 64), latent_channels=4, num_vq_embeddings=64).save_pretrained(
        tmp_path / "theirs"
    )
    shutil.copytree(originals, tmp_path / "made")
    own = [cell(trained, f"vqgan-*-s{seed}") for seed in (0, 1)]
    sources = (f"{EXAMPLE}:tokenizer", tmp_path / "theirs", f"images:{tmp_path / 'made'},{originals}", *own)
    some = ("--resolution", 256, "--validation-images", 4, "--runs", tmp_path / "runs", "--name", "doors", *METRICS)
    answer = typed("eval", *sources, "--dataset", f"folder:{originals}", *some, "--json", VQBENCH_PAGE="1")
    assert answer.code == 0, answer.err
    assert "all 500 images are scored" in answer.err
    label = answer.objects[-1]["method"]
    names = ["nbx_vqvae", "theirs", "made", label, label]
    assert [(row["method"], row["state"]) for row in answer.objects] == [(name, "done") for name in names]
    assert [row["seed"] for row in answer.objects[-2:]] == [0, 1]
    page = (tmp_path / "runs" / "doors" / "report" / "index.html").read_text(encoding="utf-8")
    assert all(name in page for name in names)
    table = _report(tmp_path / "runs" / "doors", tmp_path / "out")
    assert table["n"].to_dict() == {"nbx_vqvae": 1, "theirs": 1, "made": 1, label: 2}
