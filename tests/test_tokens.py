"""A dataset as the tokens of a tokenizer, and back to images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.commands import Answer, Running, settings, typed, until
from helpers.published import Network, put
from PIL import Image
from torch import nn

import vqbench
from vqbench.data.dataset import open_dataset


@pytest.fixture(scope="module")
def cells(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two trained and evaluated tokenizers of 16 px, by method."""
    runs = tmp_path_factory.mktemp("cells")
    small = settings("resolution=16", "channel_multipliers=1,2", "images=16")
    done = typed("run", "--methods", "vqgan,rfsq", "--dataset", f"folder:{images}", "--runs", runs,
                 "--metrics", "psnr,usage", *small, "--json")  # fmt: skip
    assert done.code == 0, done.err
    return {row["method"]: Path(row["path"]) for row in done.objects}


@pytest.fixture
def make(images: Path) -> Any:
    def call(cell: Path, out: Path, *more: object) -> Answer:
        return typed("tokens", cell, "--dataset", f"folder:{images}", "--out", out, *more)

    return call


def read(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def ids(folder: Path, side: str) -> list[str]:
    found: list[str] = json.loads((folder / f"{side}-ids.json").read_text())
    return found


def indices(folder: Path, side: str) -> Any:
    return np.concatenate([np.load(folder / name) for name in read(folder)["sides"][side]["shards"]])


def test_tokens_of_both_sides(cells: dict[str, Path], images: Path, tmp_path: Path, make: Any) -> None:
    done = make(cells["vqgan"], tmp_path / "t", "--shard-images", 20)
    assert done.code == 0, done.err
    manifest, spec = read(tmp_path / "t"), json.loads((cells["vqgan"] / "spec.json").read_text())
    assert (manifest["dtype"], manifest["codebook_size"], manifest["num_codebooks"]) == ("uint8", 32, 1)
    train, val = manifest["sides"]["train"], manifest["sides"]["val"]
    assert (train["shape"], val["shape"], manifest["token_shape"]) == ([64, 8, 8], [12, 8, 8], [8, 8])
    assert train["shards"] == [f"train-{k:05d}.npy" for k in range(4)]
    assert train["digest"] == spec["dataset"]["training_digest"]
    assert val["digest"] == spec["protocol"]["validation_digest"]
    assert manifest["tokenizer"]["sha256"]

    tokenizer, dataset = vqbench.load(cells["vqgan"]), open_dataset(f"folder:{images}", 16)
    for side, of_side in (("train", dataset.train), ("val", dataset.validation)):
        ids = json.loads((tmp_path / "t" / manifest["sides"][side]["ids"]).read_text())
        assert ids == list(of_side.ids)
        found = indices(tmp_path / "t", side)
        assert found.dtype == np.uint8
        for i in (0, 11):
            pixels = of_side.load(i)
            height, width, _ = pixels.shape
            top, left = (height - 16) // 2, (width - 16) // 2
            image = torch.from_numpy(pixels[top : top + 16, left : left + 16].copy()).permute(2, 0, 1)[None]
            assert np.array_equal(tokenizer.encode(image)[0].numpy(), found[i])


@pytest.mark.parametrize("method", ["vqgan", "rfsq"])
def test_the_round_trip_scores_as_the_evaluation(
    method: str, cells: dict[str, Path], images: Path, tmp_path: Path, make: Any
) -> None:
    assert make(cells[method], tmp_path / "t", "--split", "val", "--shard-images", 5).code == 0
    assert list(read(tmp_path / "t")["sides"]) == ["val"]
    done = typed("decode", tmp_path / "t", "--out", tmp_path / "back")
    assert (done.code, done.out) == (0, f"{tmp_path / 'back' / 'val'}\n"), done.err
    dataset, found = open_dataset(f"folder:{images}", 16).validation, []
    for i, name in enumerate(dataset.ids):
        back = np.asarray(Image.open((tmp_path / "back" / "val" / name).with_suffix(".png")), np.float64)
        error = np.mean((back - dataset.load(i).astype(np.float64)) ** 2)
        found.append(10 * np.log10(255**2 / error))
    stored = json.loads((cells[method] / "result.json").read_text())["scores"]["psnr"]
    assert np.mean(found) == pytest.approx(stored, abs=1e-4)
    codes = np.load(cells[method] / "codes.npz")["indices"]
    assert np.array_equal(indices(tmp_path / "t", "val").reshape(codes.shape), codes)


def test_finished_shards_are_not_made_again(cells: dict[str, Path], tmp_path: Path, make: Any) -> None:
    out = tmp_path / "t"
    assert make(cells["vqgan"], out, "--split", "train", "--shard-images", 16).code == 0
    whole = indices(out, "train")
    marked = np.zeros_like(np.load(out / "train-00001.npy"))
    np.save(out / "train-00001.npy", marked)  # whole: it is to be left alone
    (out / "train-00002.npy").write_bytes((out / "train-00002.npy").read_bytes()[:-7])
    (out / "train-00003.npy").unlink()
    assert make(cells["vqgan"], out, "--shard-images", 16).code == 0
    expected = whole.copy()
    expected[16:32] = 0
    assert np.array_equal(indices(out, "train"), expected)
    assert indices(out, "val").shape == (12, 8, 8)
    assert make(cells["vqgan"], out, "--split", "all", "--shard-images", 16).code == 0
    both, manifest = indices(out, "all"), read(out)
    assert {name: side["images"] for name, side in manifest["sides"].items()} == {"train": 64, "val": 12, "all": 76}
    by_id = json.loads((out / "all-ids.json").read_text())
    assert np.array_equal(both[[by_id.index(name) for name in ids(out, "train")]], whole)


def test_tokens_without_a_split(cells: dict[str, Path], images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("0000.png", "0001.png"):
        shutil.copy(images / "val" / name, data)
    words = ("tokens", cells["vqgan"], "--dataset", f"folder:{data}", "--out", tmp_path / "t")
    assert typed(*words, "--split", "all").code == 0
    assert indices(tmp_path / "t", "all").shape == (2, 8, 8)


@pytest.mark.slow
def test_several_workers_and_a_kill(cells: dict[str, Path], images: Path, tmp_path: Path, make: Any) -> None:
    assert make(cells["vqgan"], tmp_path / "one", "--shard-images", 2).code == 0
    words = ["tokens", cells["vqgan"], "--dataset", f"folder:{images}", "--out", tmp_path / "two",
             "--shard-images", 2, "--workers", 2]  # fmt: skip
    running = Running(words)
    until(lambda: any((tmp_path / "two").glob("train-*.npy")), "a shard", running)
    running.kill()
    running.wait(60)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "two").glob("train-0*.npy")}
    assert typed(*words).code == 0
    for side in ("train", "val"):
        assert np.array_equal(indices(tmp_path / "one", side), indices(tmp_path / "two", side))
    assert all((tmp_path / "two" / name).stat().st_mtime_ns == at for name, at in kept.items())
    assert typed("decode", tmp_path / "two", "--out", tmp_path / "back", "--workers", 2).code == 0
    assert len(list((tmp_path / "back").rglob("*.png"))) == 76


def test_decoding_goes_on(cells: dict[str, Path], tmp_path: Path, make: Any) -> None:
    assert make(cells["vqgan"], tmp_path / "t", "--split", "val").code == 0
    words = ("decode", tmp_path / "t", "--out", tmp_path / "back")
    assert typed(*words).code == 0
    pictures = {path: path.read_bytes() for path in (tmp_path / "back").rglob("*.png")}
    assert len(pictures) == 12
    first, second, *_ = pictures
    first.unlink()
    second.write_bytes(second.read_bytes()[:40])
    assert typed(*words).code == 0
    assert {path: path.read_bytes() for path in (tmp_path / "back").rglob("*.png")} == pictures


def test_ids_that_differ_in_their_suffix_alone(cells: dict[str, Path], images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(images / "train", data / "train")
    (data / "val").mkdir()
    for name in ("a.png", "a.bmp", "b.png"):
        Image.open(images / "val" / "0000.png").save(data / "val" / name)
    out = tmp_path / "t"
    assert typed("tokens", cells["vqgan"], "--dataset", f"folder:{data}", "--out", out, "--split", "val").code == 0
    assert typed("decode", out, "--out", tmp_path / "back").code == 0
    names = {path.name for path in (tmp_path / "back").rglob("*.png")}
    assert names == {"a.png.png", "a.bmp.png", "b.png.png"}


def refused(done: Answer, *words: str) -> None:
    assert done.code in (1, 2), done.out
    assert [line.split(":")[0] for line in done.err.splitlines()[-2:]] == ["error", "hint"], done.err
    for word in words:
        assert word in done.err, done.err


def test_wrong_inputs_of_tokens(cells: dict[str, Path], tmp_path: Path, make: Any) -> None:
    out = tmp_path / "t"
    refused(make(tmp_path / "nowhere", out), "nowhere")
    refused(make(cells["vqgan"], out, "--split", "test"), "unknown split 'test'", "all, train, val")
    refused(make(cells["vqgan"], out, "--resolution", 15), "divisible by 2, not 15", "the nearest: 16")
    refused(make(cells["vqgan"], out, "--resolution", 0), "holds no pixel")
    refused(make(cells["vqgan"], out, "--workers", 0), "--workers 0")
    assert not out.exists()
    out.mkdir()
    (out / "thesis.tex").write_text("…")
    refused(make(cells["vqgan"], out), "something else", "new or empty")
    assert make(cells["vqgan"], tmp_path / "u", "--split", "val").code == 0
    refused(make(cells["rfsq"], tmp_path / "u", "--split", "val"), "other tokens", "tokenizer")
    refused(make(cells["vqgan"], tmp_path / "u", "--split", "val", "--validation-images", 6), "images (val)")
    refused(make(cells["vqgan"], tmp_path / "u", "--shard-images", 4), "shard_images")


def test_wrong_inputs_of_decode(cells: dict[str, Path], tmp_path: Path, make: Any) -> None:
    refused(typed("decode", tmp_path, "--out", tmp_path / "o"), "no tokens in", "vqbench tokens SOURCE")
    moved = tmp_path / "moved.safetensors"
    shutil.copy(cells["vqgan"] / "checkpoints" / "tokenizer.safetensors", moved)
    tokens = tmp_path / "t"
    assert make(moved, tokens, "--split", "val", "--shard-images", 6).code == 0
    again = moved.rename(tmp_path / "again.safetensors")
    refused(typed("decode", tokens, "--out", tmp_path / "o"), "cannot be opened", "--tokenizer SOURCE")
    refused(typed("decode", tokens, "--out", tmp_path / "o", "--tokenizer", cells["rfsq"]), "did not make these tokens")
    assert not (tmp_path / "o").exists()
    shard = tokens / "val-00001.npy"
    kept = shard.read_bytes()
    with shard.open("wb") as archive:
        np.savez(archive, indices=np.load(tokens / "val-00000.npy"))
    refused(typed("decode", tokens, "--out", tmp_path / "o", "--tokenizer", again), "val-00001.npy", "vqbench tokens")
    shard.write_bytes(kept[:-1])
    refused(typed("decode", tokens, "--out", tmp_path / "o", "--tokenizer", again), "val-00001.npy", "vqbench tokens")
    np.save(shard, np.full((6, 8, 8), 32, np.uint8))
    refused(typed("decode", tokens, "--out", tmp_path / "o", "--tokenizer", again), "from 32 to 32", "32 codes")
    shard.write_bytes(kept)
    assert typed("decode", tokens, "--out", tmp_path / "o", "--tokenizer", again).code == 0
    whole = (tokens / "manifest.json").read_text()
    for text, lost in (
        ("[]", "tokenizer, "),
        (whole.replace('"source":', '"from":'), "tokenizer.source)"),
        (whole.replace('"shards":', '"files":'), "sides.val.shards)"),
    ):
        (tokens / "manifest.json").write_text(text)
        refused(typed("decode", tokens, "--out", tmp_path / "o"), f"no manifest of tokens (no {lost}", "remove")
    below = tokens / "manifest.json" / "o"  # of a file
    refused(make(cells["vqgan"], below, "--split", "val"), f"lies below {below.parent}, which is no folder")


def test_tokens_of_a_program_say_how_they_are_decoded(images: Path, tmp_path: Path, make: Any) -> None:
    whole, network = nn.Module(), Network()
    for part in ("encoder", "decoder", "quant_conv", "post_quant_conv"):
        whole.add_module(part, getattr(network, part))
    put(whole, "quantize.embedding", nn.Embedding(24, network.quant_conv.out_channels))
    program, tokens, out = tmp_path / "model.pkl", tmp_path / "t", tmp_path / "back"
    torch.save(whole, program)
    assert make(program, tokens, "--split", "val", "--resolution", 16, "--trust").code == 0
    done = typed("decode", tokens, "--out", out)
    refused(done, "a program and not only weights")
    assert done.err.splitlines()[-1].startswith("hint: --trust runs what the file holds")
    assert typed("decode", tokens, "--out", out, "--trust").code == 0
    assert len(list(out.rglob("*.png"))) == 12
    other = f"{__file__}:f"  # not as much as opened
    refused(typed("decode", tokens, "--out", out, "--trust", "--tokenizer", other), "--trust says how to read")


def test_what_ends_before_the_first_shard_is_gone_on_with(
    cells: dict[str, Path], tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t"
    with monkeypatch.context() as full:
        full.setattr("vqbench.pretrained.tokens.write_text_atomically", mock.Mock(side_effect=OSError(28, "full")))
        assert make(cells["vqgan"], out, "--split", "val").code == 1
    refused(typed("decode", out, "--out", tmp_path / "back"), "val-00000.npy", "makes what is missing")
    assert make(cells["vqgan"], out, "--split", "val").code == 0
    started = tmp_path / "started"
    started.mkdir()
    (started / ".manifest.json.7-7.part").write_text("{")  # killed in the midst of its first file
    assert make(cells["vqgan"], started, "--split", "val").code == 0


def test_one_folder_holds_the_tokens_of_one_reading_and_split(
    cells: dict[str, Path], images: Path, tmp_path: Path, make: Any
) -> None:
    out = tmp_path / "out"
    some = ("tokens", cells["vqgan"], "--dataset", f"folder:{images}", "--out", out)
    assert typed(*some, "--split", "train").code == 0
    for other in (("--resize", "bicubic"), ("--holdout", 0.25), ("--protocol", "seed_voken")):
        answer = typed(*some, "--split", "val", *other)
        assert (answer.code, "holds other tokens" in answer.err) == (2, True), answer.err
    assert typed(*some, "--split", "val").code == 0
    assert set(read(out)["sides"]) == {"train", "val"}
