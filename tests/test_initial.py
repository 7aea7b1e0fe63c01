"""A training that starts from a tokenizer that is trained already."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Answer, settings, typed

import vqbench
from vqbench.planning.plan import check_request, make_plan
from vqbench.planning.request import make_request
from vqbench.recipe import load_recipe
from vqbench.reports.experiment import StoredCell
from vqbench.tokenizer import build_tokenizer, save

SIZES = {"channels": 8, "latent_channels": 8, "codebook_size": 32, "codebook_dim": 8, "resolution": 16,
         "channel_multipliers": [1, 2], "attention_resolutions": [8]}  # fmt: skip


def source(folder: Path, method: str = "vqgan", config: dict[str, Any] | None = None, **more: Any) -> Path:
    recipe = load_recipe("tiny", {**SIZES, **more})
    config = config or {"codebook_size": 32, "dim": 8}
    spec = {"method": method, "config": config, "recipe": recipe.as_dict(), "plugin": None, "seed": 7, "hash": "0" * 64}
    path = folder / f"{method}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save(build_tokenizer(method, config, recipe, 7), path, spec)
    return path


def command(images: Path, *more: str, methods: str = "vqgan") -> list[object]:
    fields = settings("resolution=16", "channel_multipliers=1,2", "attention_resolutions=8", "images=8", *more)
    return ["run", "--methods", methods, "--dataset", f"folder:{images}", "--metrics", "psnr", *fields]


def test_training_starts_from_the_weights(images: Path, tmp_path: Path) -> None:
    start = source(tmp_path)
    still = command(images, "learning_rate=1e-12")
    done = typed(*still, "--init-from", start, "--runs", tmp_path / "runs", "--json")
    assert done.code == 0, done.err
    assert "vqgan: its training starts from" in done.err
    path = Path(done.objects[0]["path"])
    found, given = vqbench.load(path).state_dict(), vqbench.load(start).state_dict()
    assert all(torch.allclose(found[name], given[name], atol=1e-6) for name in given)
    spec, result = (json.loads((path / f"{name}.json").read_text()) for name in ("spec", "result"))
    digest = hashlib.sha256(start.read_bytes()).hexdigest()
    assert result["initial"]["sha256"] == spec["initial"]["sha256"] == digest
    taken = result["initial"]["taken_over"]
    assert list(taken) == ["encoder", "to_quantizer", "quantizer", "from_quantizer", "decoder"]
    assert taken["quantizer"] == {"tensors": 1, "values": 32 * 8}
    assert sum(part["tensors"] for part in taken.values()) == len(given)


def test_what_it_starts_from_tells_cells_apart(images: Path, tmp_path: Path) -> None:
    options = {"settings": SIZES, "metrics": "psnr", "runs": tmp_path}

    def planned(**more: Any) -> Any:
        (cell,) = make_plan(
            check_request(make_request("vqgan", f"folder:{images}", **options, **more)), ("psnr",)
        ).cells
        return StoredCell(cell.folder, cell.spec, {})

    fresh = planned()
    assert "initial" not in fresh.spec
    first, again = planned(init_from=source(tmp_path)), planned(init_from=source(tmp_path / "moved"))
    other = planned(init_from=_other(tmp_path))
    assert first.spec["hash"] == again.spec["hash"]
    assert len({cell.spec["hash"] for cell in (fresh, first, other)}) == 3
    assert len({cell.identity for cell in (fresh, first, other)}) == 3


def _other(folder: Path) -> Path:
    path = source(folder / "other")
    tokenizer = vqbench.load(path)
    with torch.no_grad():
        tokenizer.from_quantizer.bias += 1
    recipe = load_recipe("tiny", SIZES)
    spec = {"method": "vqgan", "config": {"codebook_size": 32, "dim": 8}, "recipe": recipe.as_dict(), "plugin": None,
            "seed": 7, "hash": "0" * 64}  # fmt: skip
    save(tokenizer, path, spec)
    return path


def refused(done: Answer, what: str, hint: str) -> None:
    assert done.code == 2, done.out + done.err
    said = dict(line.split(": ", 1) for line in done.err.splitlines()[-2:])
    assert what in said["error"], done.err
    assert hint in said["hint"], done.err


@pytest.mark.parametrize(
    ("more", "what", "hint"),
    [
        (["channels=16", "mid_attention=true"], "fits channels=8, not 16, mid_attention=false, not true",
         "--set channels=8 --set mid_attention=false"),
        (["channel_multipliers=1,2,2"], "channel_multipliers=1,2, not 1,2,2", "--set channel_multipliers=1,2"),
        (["attention_resolutions="], "attention_resolutions=8, not []", "--set attention_resolutions=8"),
        (["resolution=32"], "attention_resolutions=16, not 8", "--set attention_resolutions=16"),
        (["codebook_size=64"], "vqgan.codebook_size=32, not 64", "--set vqgan.codebook_size=32"),
    ],
)  # fmt: skip
def test_a_recipe_that_does_not_fit(images: Path, tmp_path: Path, more: list[str], what: str, hint: str) -> None:
    done = typed(*command(images, *more), "--init-from", source(tmp_path), "--dry-run")
    refused(done, what, hint)


def test_what_fits_at_another_resolution_and_with_other_losses(images: Path, tmp_path: Path) -> None:
    more = ["resolution=32", "attention_resolutions=16", "vqgan.beta=1", "dropout=0.1"]
    done = typed(*command(images, *more), "--init-from", source(tmp_path), "--dry-run")
    assert done.code == 0, done.err


def test_settings_that_change_no_shape_must_fit_too(images: Path, tmp_path: Path) -> None:
    start = source(tmp_path, "fsq", {"levels": [8, 4]})
    done = typed(*command(images, "fsq.levels=4,8", methods="fsq"), "--init-from", start, "--dry-run")
    refused(done, "fsq.levels=8,4, not 4,8", "--set fsq.levels=8,4")


def test_who_may_not_start_from_a_source(images: Path, tmp_path: Path) -> None:
    start = source(tmp_path)
    several, other = command(images, methods="vqgan,fsq"), command(images, methods="vqgan_ema")
    refused(typed(*several, "--init-from", start), "one method, not 2: vqgan, fsq", "--name")
    refused(typed(*other, "--init-from", start), "quantizer of vqgan", "--methods vqgan")
    refused(typed(*command(images), "--init-from", tmp_path / "nowhere.pt"), "nowhere.pt", "a tokenizer is")
    words = ("run", "--recipe", "atomic", "--methods", "vqgan", "--dataset", f"folder:{images}")
    refused(typed(*words, "--init-from", start), "--init-from: for encoder and decoder", "recipe of images")
