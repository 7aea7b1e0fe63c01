"""A trained cell in a form that other programs load."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Answer, settings, typed
from helpers.plugins import own_plugins

import vqbench
from vqbench.config import stored
from vqbench.pretrained.vqmodel import looks_up_nearest, vqmodel_config, write_vqmodel
from vqbench.recipe import load_recipe
from vqbench.registry import METHODS, add_plugin
from vqbench.tokenizer import Tokenizer, build_tokenizer, save

SIZES = {"channels": 32, "latent_channels": 8, "codebook_size": 32, "codebook_dim": 8, "resolution": 16}


def untrained(method: str, config: dict[str, Any] | None = None, **more: Any) -> Tokenizer:
    recipe = load_recipe("tiny", {**SIZES, "channel_multipliers": [1, 2], **more})
    own = {"codebook_size": 32, "dim": 8} if config is None else config
    return build_tokenizer(method, own, recipe, 0).eval()


@pytest.fixture(scope="module")
def cell(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("cells")
    fields = [f"{name}={value}" for name, value in SIZES.items()]
    done = typed("run", "--methods", "vqgan", "--dataset", f"folder:{images}", "--runs", runs, "--json",
                 "--metrics", "psnr,usage", *settings(*fields, "channel_multipliers=1,2", "images=16"))  # fmt: skip
    assert done.code == 0, done.err
    return Path(done.objects[0]["path"])


@pytest.fixture
def of_method(cell: Path, tmp_path: Path) -> Any:
    """A cell's folder with an untrained tokenizer of another method in it."""

    def made(method: str, config: dict[str, Any], plugin: dict[str, str] | None = None) -> Path:
        folder = tmp_path / method
        shutil.copytree(cell, folder)
        tokenizer = untrained(method, config)
        whole = {"method": method, "config": stored(tokenizer.quantizer.config), "plugin": plugin}
        spec = json.loads((folder / "spec.json").read_text()) | whole
        (folder / "spec.json").write_text(json.dumps(spec))
        save(tokenizer, folder / "checkpoints" / "tokenizer.safetensors", spec)
        return folder

    return made


def program_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(code)


def agrees(tokenizer: Tokenizer, folder: Path) -> None:
    """diffusers' own VQModel gives the same indices and images."""
    from diffusers import VQModel

    model = VQModel.from_pretrained(folder).eval()
    images = torch.rand(2, tokenizer.image_channels, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    indices = tokenizer.encode(images)
    with torch.no_grad():
        latents = model.encode(images).latents
        assert torch.equal(model.quantize(latents)[2][2].view(indices.shape), indices)
        back = model.decode(latents).sample.clamp(-1, 1)
    assert torch.allclose(back, tokenizer.decode(indices), atol=1e-5)
    assert len(indices.unique()) > 4


NEAREST = [
    ("vqgan", None, {}),
    ("vqgan_ema", None, {"mid_attention": True, "attention_resolutions": [8], "res_blocks": 2}),
    ("simvq", None, {"channel_multipliers": [1, 2, 2], "attention_resolutions": [16, 4]}),
    ("llamagen", None, {"image_channels": 1, "channel_multipliers": [1]}),
]


@pytest.mark.parametrize(("method", "config", "more"), NEAREST)
def test_diffusers_agrees(method: str, config: dict[str, Any] | None, more: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = untrained(method, config, **more)
    torch.nn.init.normal_(tokenizer.to_quantizer.weight, std=2.0)  # so that more than a code or two are used
    write_vqmodel(tokenizer, tmp_path)
    agrees(tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("method", "config"),
    [("ibq", {"codebook_size": 32, "dim": 8}), ("fsq", {"levels": [8, 4]}),
     ("rfsq", {"levels": [4, 4], "steps": 2}), ("vaevq", {"codebook_size": 32, "dim": 8})],
)  # fmt: skip
def test_what_looks_up_otherwise_is_no_codebook_of_diffusers(method: str, config: dict[str, Any]) -> None:
    assert not looks_up_nearest(untrained(method, config).quantizer)


def test_a_backbone_that_diffusers_has_not() -> None:
    for more, word in (({"channel_multipliers": [2, 4]}, "first level"), ({"channels": 24}, "numbers of groups")):
        with pytest.raises(vqbench.errors.UsageError, match=word):
            vqmodel_config(untrained("vqgan", **more))


def test_a_cell_as_a_folder_of_diffusers(cell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = typed("export", cell, "--to", "diffusers", "--out", tmp_path / "model")
    assert done.code == 0, done.err
    card = (tmp_path / "model" / "README.md").read_text()
    assert done.out.strip() == str(tmp_path / "model" / "README.md")
    agrees(vqbench.load(cell), tmp_path / "model")

    spec, result = (json.loads((cell / f"{name}.json").read_text()) for name in ("spec", "result"))
    psnr = f"| PSNR (dB) ↑ | {result['scores']['psnr']:.2f} | 12 |"
    data = spec["dataset"]
    for said in ("`vqgan`", "arXiv", "32, 5 bits per token", data["training_digest"], data["split_rule"],
                 "licence of the data: not stated", psnr, spec["protocol"]["hash"], "N = 12 "):  # fmt: skip
        assert said in card, card
    assert str(cell.parents[3]) not in card  # nobody else's business
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(program_of(card), found)
    assert torch.equal(found["indices"], vqbench.load(cell).encode(found["images"]))
    assert torch.allclose(found["back"], vqbench.load(cell).decode(found["indices"]), atol=1e-5)


def test_a_cell_as_safetensors(cell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert typed("export", cell, "--to", "safetensors", "--out", tmp_path / "t").code == 0
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(program_of((tmp_path / "t" / "README.md").read_text()), found)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(found["tokenizer"].encode(images), vqbench.load(cell).encode(images))


PROGRAMS = [
    ("fsq", {"levels": [8, 4]}),
    ("softvq", {"codebook_size": 32, "dim": 8, "splits": 2}),  # which goes through `assign` when it is scored
    *(
        pytest.param(method, {}, marks=pytest.mark.slow)
        for method in METHODS.names()
        if method not in ("fsq", "softvq")
    ),
]


@pytest.mark.parametrize(("method", "config"), PROGRAMS)
def test_a_cell_as_programs(
    method: str, config: dict[str, Any], of_method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = of_method(method, config)
    done = typed("export", cell, "--to", "program", "--out", tmp_path / "p")
    assert done.code == 0, done.err
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(program_of((tmp_path / "p" / "README.md").read_text()), found)
    tokenizer = vqbench.load(cell)
    for count in (1, 5):
        images = torch.rand(count, 3, 16, 16) * 2 - 1
        indices = found["encode"](images)
        assert torch.equal(indices, tokenizer.encode(images))
        assert torch.allclose(found["decode"](indices), tokenizer.decode(indices), atol=1e-5)


STUBBORN = """
from vqbench.methods.vqgan import VQGAN
from vqbench.registry import METHODS


@METHODS.register("stubborn")
class Stubborn(VQGAN):
    '''What no program can follow (Nobody, 2026, arXiv:2601.00001).'''

    def forward(self, z):
        return super().forward(-z if z.sum() > 1e9 else z)
"""


def test_a_method_of_a_file_that_is_no_program(of_method: Any, tmp_path: Path) -> None:
    plugin, out = tmp_path / "stubborn.py", tmp_path / "out"
    plugin.write_text(STUBBORN)
    with own_plugins():
        add_plugin(plugin)
        sha256 = hashlib.sha256(plugin.read_bytes()).hexdigest()
        cell = of_method("stubborn", {}, {"path": str(plugin), "sha256": sha256})
    plugin.rename(cell / "plugin.py")
    words = ("export", cell, "--to", "program", "--out", out)
    refused(typed(*words), 2, "method of a file, 'stubborn', which is a program", "--trust runs the copy")
    refused(typed(*words, "--trust"), 2, "cannot make a program of stubborn", "--to safetensors holds every method")
    assert not out.exists()
    assert typed("export", cell, "--to", "safetensors", "--out", out, "--trust").code == 0
    assert (out / "plugin.py").is_file()


def refused(done: Answer, code: int, what: str, hint: str) -> None:
    assert done.code == code, done.out + done.err
    error, said = done.err.splitlines()
    assert what in error, done.err
    assert hint in said, done.err


def test_wrong_exports(cell: Path, of_method: Any, tmp_path: Path) -> None:
    out, weights = tmp_path / "out", cell / "checkpoints" / "tokenizer.safetensors"
    alone = shutil.copy(weights, tmp_path / "alone.safetensors")
    refused(typed("export", cell, "--to", "onnx", "--out", out), 2, "unknown format 'onnx'", "--to safetensors")
    refused(typed("export", tmp_path / "none", "--to", "program", "--out", out), 2, "there is no", "finished cell")
    refused(typed("export", alone, "--to", "program", "--out", out), 2, "in no cell's folder", "finished cell")
    adapter = tmp_path / "adapter.py"
    adapter.touch()
    refused(typed("export", f"{adapter}:f", "--to", "program", "--out", out), 2, "is no finished cell", "finished cell")
    fsq = of_method("fsq", {"levels": [8, 4]})
    refused(typed("export", fsq, "--to", "diffusers", "--out", out), 2, "one codebook", "--to program")
    refused(typed("export", cell, "--to", "diffusers", "--out", cell), 2, "something else", "new or empty")
    refused(typed("export", cell, "--to", "diffusers", "--out", adapter / "o"), 2, "lies below", "new or empty")
    (fsq / "spec.json").write_text((cell / "spec.json").read_text()[:99])
    refused(typed("export", fsq, "--to", "program", "--out", out), 2, "spec.json is not whole", "bring back a copy")
    assert not out.exists()
