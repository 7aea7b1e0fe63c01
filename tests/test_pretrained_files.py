"""Somebody else's checkpoints and diffusers folders: read as they were written, or refused in a sentence."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Answer, typed
from helpers.published import Network, at, codes_near, nearest, shake
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

import vqbench
from vqbench.errors import UsageError
from vqbench.pretrained.checkpoint import open_checkpoint
from vqbench.pretrained.diffusers import open_diffusers
from vqbench.pretrained.opened import Opened

K = 24


@pytest.fixture(autouse=True)
def _drawn_alike() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        yield


def pictures(side: int = 16) -> Tensor:
    return (0.6 * torch.randn(2, 3, side, side)).clamp(-1, 1)


def holds(opened: Opened, images: Tensor, indices: Tensor, reconstructions: Tensor) -> None:
    """The same indices, of which there are several, and the same images to 1e-5."""
    assert len(indices.unique()) > 4
    assert torch.equal(opened.codec.to_indices(images), indices)
    made = opened.codec.from_indices(indices)
    assert (made - reconstructions).abs().max() < 1e-5
    assert made.std() > 0.05
    assert torch.equal(opened.codec.encode(images), indices)  # type: ignore[attr-defined]


def with_codebook(network: Network, images: Tensor, name: str = "quantize.embedding.weight") -> dict[str, Tensor]:
    return {**network.state_dict(), name: codes_near(network.latents(images), K)}


def taming(**shape: Any) -> tuple[Network, dict[str, Tensor], Tensor]:
    network, images = Network(**shape), pictures()
    return network, with_codebook(network, images), images


def saved(path: Path, content: Any, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_taming(tmp_path: Path, legacy: bool) -> None:
    """With mid attention and attention at one level; a discriminator, an optimiser and counters lie beside."""
    network, tensors, images = taming(multipliers=(1, 1, 2), blocks=2, attention=(2,))
    beside = {"loss.discriminator.main.0.weight": torch.zeros(2, 3), "loss.logvar": torch.zeros(())}
    content = {"state_dict": {**tensors, **beside}, "epoch": 3, "optimizer_states": [{"state": {}}]}
    path = saved(tmp_path / "last.ckpt", content, legacy)
    state = torch.get_rng_state()
    opened = open_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), state)
    with path.open("r+b") as file:  # what was read stays, whatever becomes of the file
        file.write(bytes(path.stat().st_size))
    codes = tensors["quantize.embedding.weight"]
    indices = nearest(network.latents(images), codes)
    holds(opened, images, indices, network.images(at(indices, codes)))
    facts = opened.facts
    assert (facts.kind, facts.name, facts.family, facts.weights) == ("checkpoint", "last", "taming", "")
    assert (facts.codebook_size, facts.code_dim, facts.num_codebooks, facts.downsampling) == (K, 6, 1, 4)
    assert facts.parameters["total"] == sum(t.numel() for t in tensors.values())
    assert facts.unread == ("loss.*: 2 tensors", "epoch, optimizer_states (no tensors)")
    assert "nearest code" in facts.remarks[0]
    assert len(facts.sha256) == 64


def test_latent_diffusion_without_any_attention_inside_a_larger_model(tmp_path: Path) -> None:
    network, tensors, images = taming(multipliers=(1, 2, 2), attention=(), mid=False, z=3, d=3)
    whole = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    whole["model.diffusion_model.out.weight"] = torch.zeros(3)
    opened = open_checkpoint(saved(tmp_path / "model.ckpt", {"state_dict": whole}))
    codes = tensors["quantize.embedding.weight"]
    indices = nearest(network.latents(images), codes)
    holds(opened, images, indices, network.images(at(indices, codes)))
    assert opened.facts.family == "taming"
    assert opened.facts.unread == ("model.*: 1 tensor",)


def test_ibq_is_told_by_its_blocks_and_looks_up_by_product_and_as_taming_by_distance(tmp_path: Path) -> None:
    network, tensors, images = taming(blocks=4)
    codes, z = tensors["quantize.embedding.weight"], network.latents(images)
    path = saved(tmp_path / "imagenet256_1024.ckpt", {"state_dict": tensors})
    indices = torch.einsum("bdhw,kd->bkhw", z, codes).argmax(1)
    assert not torch.equal(indices, nearest(z, codes))
    opened = open_checkpoint(path)
    assert opened.facts.family == "ibq"
    assert "4 residual blocks" in opened.facts.remarks[0]
    holds(opened, images, indices, network.images(at(indices, codes)))
    named = open_checkpoint(path, "taming")
    assert torch.equal(named.codec.to_indices(images), nearest(z, codes))
    assert named.facts.remarks == ()


def test_llamagen_reads_the_averages_and_gives_the_decoder_unit_codes(tmp_path: Path) -> None:
    network, images = Network("llamagen", (1, 1, 2), attention=(2,)), pictures()
    tensors = {**with_codebook(network, images), "quantize.codebook_used": torch.zeros(65536)}
    tensors["quantize.embedding.weight"] *= 3  # the stored length must not matter
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    path = saved(tmp_path / "vq_ds16_c2i.pt", {"model": other, "ema": tensors, "steps": 5})
    opened = open_checkpoint(path)
    codes = normalize(tensors["quantize.embedding.weight"], dim=1)
    indices = nearest(normalize(network.latents(images), dim=1), codes)
    holds(opened, images, indices, network.images(at(indices, codes)))
    assert (opened.facts.family, opened.facts.weights) == ("llamagen", "ema")
    assert opened.facts.unread == (f"model: {len(other)} tensors", "quantize.*: 1 tensor", "steps (no tensors)")
    raw = open_checkpoint(path, ":raw")
    assert raw.facts.weights == "raw"
    assert torch.equal(raw.codec.state_dict()["to_quantizer.bias"], network.quant_conv.bias + 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("spatial", ["plain", "conv"])
def test_movq_reads_the_averages_that_lie_part_by_part(tmp_path: Path, spatial: str) -> None:
    network, tensors, images = taming(z=6, spatial=spatial)
    averages = {
        f"ema_{part}.{rest.replace('.', '')}": tensor
        for name, tensor in tensors.items()
        for part, rest in [name.split(".", 1)]
    }
    raw = {name: tensor * 1.5 for name, tensor in tensors.items()}
    opened = open_checkpoint(saved(tmp_path / "movqgan.ckpt", {**raw, **averages, "ema_encoder.decay": torch.ones(())}))
    codes = tensors["quantize.embedding.weight"]
    indices = nearest(network.latents(images), codes)
    holds(opened, images, indices, network.images(at(indices, codes)))
    assert (opened.facts.family, opened.facts.weights) == ("movq", "ema")
    assert "authors' own loader" in opened.facts.remarks[0]


@pytest.mark.parametrize("shared", [True, False])
def test_rqvae_sums_the_codes_of_four_levels(tmp_path: Path, shared: bool) -> None:
    network, images, levels = Network(), pictures(), 4
    z = network.latents(images)
    books = [codes_near(z, K) * 0.5**level for level in range(levels)]
    books = [books[0]] * levels if shared else books
    tensors = dict(network.state_dict())
    for level, book in enumerate(books):
        tensors[f"quantizer.codebooks.{level}.weight"] = torch.cat([book, torch.zeros(1, 6)])
        tensors[f"quantizer.codebooks.{level}.cluster_size_ema"] = torch.full((K,), 2.0)
        tensors[f"quantizer.codebooks.{level}.embed_ema"] = 2 * book
    opened = open_checkpoint(saved(tmp_path / "model.pt", {"state_dict": tensors, "epoch": 1}))
    left, total, chosen = z.clone(), torch.zeros_like(z), []
    for book in books:
        chosen.append(nearest(left, book))
        left = left - at(chosen[-1], book)
        total = total + at(chosen[-1], book)
    holds(opened, images, torch.stack(chosen, -1), network.images(total))
    assert (opened.facts.family, opened.facts.codebook_size, opened.facts.num_codebooks) == ("rqvae", K, levels)
    assert opened.codec.quantizer.config.shared is shared


def dotless(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in tensors.items()}


def test_averages_under_names_without_dots_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    _, tensors, _ = taming(blocks=4)
    raw = {name: tensor + 1 for name, tensor in tensors.items()}
    content = {"state_dict": {**raw, **dotless(tensors), "model_ema.num_updates": torch.zeros(())}}
    opened = open_checkpoint(saved(tmp_path / "ibq.ckpt", content))
    assert opened.facts.weights == "ema"
    assert torch.equal(opened.codec.quantizer.embedding, tensors["quantize.embedding.weight"])
    assert "encoder.*: " in " ".join(opened.facts.unread)
    del content["state_dict"]["model_ema.quantizeembeddingweight"]
    path = saved(tmp_path / "half.ckpt", content)
    refused(lambda: open_checkpoint(path), "none of 'quantize.embedding.weight'", "--as :raw")
    assert torch.equal(open_checkpoint(path, ":raw").codec.quantizer.embedding, raw["quantize.embedding.weight"])
    only = saved(tmp_path / "only.ckpt", {"state_dict": tensors})
    refused(lambda: open_checkpoint(only, "taming:ema"), "no averaged weights", "one set")
    refused(lambda: open_checkpoint(only, "taming:best"), "no weights 'best'", "taming:raw")


def test_weights_of_other_widths_are_said(tmp_path: Path) -> None:
    _, tensors, _ = taming()
    opened = open_checkpoint(saved(tmp_path / "half.pt", {name: t.half() for name, t in tensors.items()}), "taming")
    assert opened.facts.remarks == ("its weights are stored in float16, and computed with in float32",)
    assert opened.codec.quantizer.embedding.dtype == torch.float32


# diffusers


def vq_model(**config: Any) -> Any:
    from diffusers import VQModel

    shape = {
        "block_out_channels": (32, 64), "layers_per_block": 2, "latent_channels": 5, "vq_embed_dim": 5,
        "num_vq_embeddings": K,
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    }  # fmt: skip
    model = VQModel(**{**shape, **config}).eval()
    shake(model)
    return model


def answers(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and reconstructions, from diffusers itself."""
    latents = model.encode(images).latents
    model.quantize.embedding.weight.copy_(codes_near(latents, K))
    indices = model.quantize(latents)[2][2].view(len(images), *latents.shape[2:])
    return indices, model.decode(latents).sample


@pytest.fixture
def without_diffusers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, nothing can import diffusers."""
    return lambda: monkeypatch.setitem(sys.modules, "diffusers", None)


@pytest.mark.parametrize("config", [{}, {"norm_type": "spatial"}, {"mid_block_add_attention": False}], ids=str)
def test_a_model_of_diffusers_through_both_doors(
    tmp_path: Path, config: dict[str, Any], without_diffusers: Callable[[], None]
) -> None:
    model, images = vq_model(**config), pictures()
    indices, made = answers(model, images)
    model.save_pretrained(tmp_path / "movq")
    without_diffusers()
    file = tmp_path / "movq" / "diffusion_pytorch_model.safetensors"
    for opened in (open_diffusers(tmp_path / "movq"), open_checkpoint(file)):
        holds(opened, images, indices, made.clamp(-1, 1))
        facts = opened.facts
        assert (facts.family, facts.codebook_size, facts.code_dim, facts.downsampling) == ("diffusers", K, 5, 2)
        assert facts.unread == ()
    assert facts.remarks[0].startswith("its norms are taken to have 32 groups")
    assert open_diffusers(tmp_path / "movq").facts.remarks == ()
    assert open_diffusers(tmp_path / "movq").facts.name == "movq"


def test_an_older_model_of_diffusers_within_a_pipeline(tmp_path: Path) -> None:
    """Pickled, with the names that attention had, and as the only VQModel of the pipeline."""
    model, images = vq_model(), pictures()
    indices, made = answers(model, images)
    model.save_pretrained(tmp_path / "ldm" / "vqvae")
    (tmp_path / "ldm" / "vqvae" / "diffusion_pytorch_model.safetensors").unlink()
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in model.state_dict().items():
        for new, old in older.items():
            name = name.replace(f".{new}.", f".{old}.")
        tensors[name] = tensor
    assert any(".proj_attn." in name for name in tensors)
    saved(tmp_path / "ldm" / "vqvae" / "diffusion_pytorch_model.bin", tensors)
    (tmp_path / "ldm" / "unet").mkdir()
    (tmp_path / "ldm" / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    (tmp_path / "ldm" / "model_index.json").write_text("{}")
    opened = open_diffusers(tmp_path / "ldm")
    holds(opened, images, indices, made.clamp(-1, 1))
    assert opened.facts.name == "ldm"


def test_a_model_of_pixels_from_0_to_1_takes_and_gives_ours(tmp_path: Path) -> None:
    model, images = vq_model(lookup_from_codebook=True), pictures()
    indices, made = answers(model, (images + 1) / 2)
    model.save_pretrained(tmp_path / "amused")
    opened = open_diffusers(tmp_path / "amused")
    holds(opened, images, indices, (made * 2 - 1).clamp(-1, 1))
    assert "from 0 to 1" in opened.facts.remarks[0]


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("num_vq_embeddings", 256, f"says num_vq_embeddings 256, and the weights beside it have {K}"),
        ("layers_per_block", 1, "says layers_per_block 1, and the weights beside it have 2"),
        ("down_block_types", ["DownEncoderBlock2D"] * 2, "and the weights beside it have ['DownEncoderBlock2D', 'Attn"),
        ("norm_num_groups", 16, "says norm_num_groups 16, and vqbench's backbone has 32"),
        ("act_fn", "relu", "says act_fn relu"),
        ("_class_name", "AutoencoderKL", "is of AutoencoderKL"),
    ],
)
def test_a_config_that_does_not_fit(tmp_path: Path, setting: str, value: object, said: str) -> None:
    vq_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, setting: value}))
    refused(lambda: open_diffusers(tmp_path), said)


def test_a_folder_that_is_none_of_diffusers(tmp_path: Path) -> None:
    refused(lambda: open_diffusers(tmp_path / "nowhere"), "there is no folder")
    refused(lambda: open_diffusers(tmp_path), "has no config.json", "adapter.py:function")
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    refused(lambda: open_diffusers(tmp_path), "has no diffusion_pytorch_model.safetensors", "it has config.json")
    (tmp_path / "config.json").write_text("{")
    refused(lambda: open_diffusers(tmp_path), "cannot be read")


# What is refused


def refused(call: Callable[[], object], *said: str) -> None:
    """One error and one hint that say this."""
    with pytest.raises(UsageError) as raised:
        call()
    what, hint = raised.value.what, raised.value.hint
    assert hint
    assert "\n" not in what + hint
    for words in said:
        assert words in f"{what} | {hint}", (what, hint)


@pytest.mark.parametrize(
    ("family", "first"),
    [
        ("llamagen", "'encoder.down.0.block.0.norm1.weight' does not fit, where 'encoder.conv_blocks.0.res.0.conv1"),
        ("diffusers", "'encoder.down.0.block.0.norm1.weight' does not fit"),
        ("rqvae", "'quantize.embedding.weight' does not fit, where 'quantizer.codebooks.0.weight' is expected"),
        ("movq", "'decoder.mid.block_1.norm1.weight' does not fit, and 'decoder.mid.block_1.norm1.norm_layer.weight'"),
        ("rq-vae", "did you mean rqvae?"),
    ],
)
def test_a_wrong_family_is_told_by_the_first_name_that_does_not_fit(tmp_path: Path, family: str, first: str) -> None:
    _, tensors, _ = taming()
    path = saved(tmp_path / "model.ckpt", tensors)
    refused(lambda: open_checkpoint(path, family), first, "taming")


def test_what_almost_is_of_a_family(tmp_path: Path) -> None:
    """No look-up beside the network, another look-up, a tensor that is missing, one too many, and one of another
    shape: nothing of it is left out in silence.
    """
    _, tensors, _ = taming()
    codes = tensors.pop("quantize.embedding.weight")
    path = tmp_path / "model.ckpt"

    def tried(changes: dict[str, Tensor | None], *said: str) -> None:
        content = {**tensors, "quantize.embedding.weight": codes, **changes}
        saved(path, {name: tensor for name, tensor in content.items() if tensor is not None})
        refused(lambda: open_checkpoint(path), *said)

    tried({"quantize.embedding.weight": None}, "there is no codebook", "adapter.py:function")
    gumbel = {"quantize.embedding.weight": None, "quantize.embed.weight": codes, "quantize.proj.weight": codes}
    tried(gumbel, "'quantize.embed.weight' does not fit, where 'quantize.embedding.weight' is expected")
    tried({"encoder.norm_out.bias": None}, "'encoder.norm_out.bias' is missing")
    tried({"encoder.down.0.block.0.conv1.bias": None}, "'encoder.down.0.block.0.conv1.bias' is missing")
    tried({"quantize.used": torch.arange(3)}, "'quantize.used' does not fit")
    tried({"decoder.conv_in.bias": torch.zeros(64, dtype=torch.int64)}, "'decoder.conv_in.bias' holds int64")
    tried({"encoder.conv_in.weight": torch.zeros(0, 3, 3, 3)}, "'encoder.conv_in.weight' has the shape (0, 3, 3, 3)")
    tried({"quant_conv.weight": torch.zeros(6, 12, 3, 3)}, "'quant_conv.weight' has the shape (6, 12, 3, 3)")
    tried({"quantize.embedding.weight": torch.zeros(K, 7)}, "'quant_conv.weight' has the shape (6, 12, 1, 1)")


def test_files_that_hold_no_tokenizer(tmp_path: Path) -> None:
    classifier = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    path = saved(tmp_path / "resnet.ckpt", {"state_dict": classifier.state_dict(), "best_acc1": 76.1})
    refused(lambda: open_checkpoint(path), "holds no tokenizer", "0.weight, 0.bias", "adapter.py:function")
    refused(lambda: open_checkpoint(saved(path, [torch.zeros(2)])), "holds a list, not named tensors")
    refused(lambda: open_checkpoint(saved(path, {"epoch": 3})), "has no named tensors")
    (tmp_path / "there.ckpt").touch()
    refused(lambda: open_checkpoint(tmp_path / "resnets.ckpt"), "there is no file", "| there is resnet.ckpt")
    refused(lambda: open_checkpoint(tmp_path), "is a folder", "resnet.ckpt")
    refused(lambda: open_checkpoint(tmp_path / "there.ckpt"), "is empty")
    beginnings = {
        b"epoch,loss\n1,0.5\n": "is a text, not weights: it begins with 'epoch,loss'",
        b"\n<!DOCTYPE html><html>": "is a web page",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a": "git-lfs",
        b"\x1f\x8b\x08\0\0": "is an archive (gzip)",
        b"\x93NUMPY\x01\0": "is no file of weights",
        pickle.dumps({"state_dict": {}}): "is a pickle, but none that torch.save wrote",
    }
    for name in ("weights.ckpt", "weights.safetensors"):
        for content, said in beginnings.items():
            (tmp_path / name).write_bytes(content)
            cut = name.endswith("safetensors") and content[:1] in b"\x1f\x93\x80"
            refused(lambda name=name: open_checkpoint(tmp_path / name), "is cut off" if cut else said)  # type: ignore[misc]
    with zipfile.ZipFile(tmp_path / "vq-f4.zip", "w") as archive:
        archive.writestr("model.ckpt", b"...")
    refused(lambda: open_checkpoint(tmp_path / "vq-f4.zip"), "an archive with model.ckpt in it", "unpack")
    program = torch.export.export(nn.Conv2d(3, 4, 1).eval(), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "encode.pt2")
    hint = "give the cell that it was exported from, or an adapter"
    refused(lambda: open_checkpoint(tmp_path / "encode.pt2"), "a program of torch.export", hint)


@pytest.mark.parametrize("kind", ["ckpt", "old.ckpt", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.99])
def test_a_file_that_is_cut_off(tmp_path: Path, kind: str, share: float) -> None:
    _, tensors, _ = taming()
    path = tmp_path / f"model.{kind}"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        saved(path, tensors, legacy=kind == "old.ckpt")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(lambda: open_checkpoint(path), "is cut off or damaged", "sha256")


def evaluated(folder: Path, images: Path, *options: object) -> Answer:
    """`vqbench eval` of a file of IBQ."""
    _, tensors, _ = taming(blocks=4)
    path = saved(folder / "gan.ckpt", {"state_dict": tensors, "epoch": 1})
    data = ("--dataset", f"folder:{images}", "--resolution", 16)
    return typed("eval", path, *data, "--metrics", "psnr,usage", "--runs", folder / "runs", *options)


@pytest.mark.slow
def test_a_file_is_a_row_of_eval(tmp_path: Path, images: Path) -> None:
    answer = evaluated(tmp_path, images, "--json")
    assert answer.code == 0, answer.err
    (row,) = answer.objects
    assert (row["method"], row["tokens_per_image"]) == ("gan", 64)
    known = json.loads((Path(row["path"]) / "spec.json").read_text())["pretrained"]
    assert (known["family"], known["codebook_size"]) == ("ibq", K)


def test_a_wrong_family_is_one_error_and_one_hint_of_eval(tmp_path: Path, images: Path) -> None:
    wrong = evaluated(tmp_path, images, "--as", "llamagen")
    assert wrong.code == 2
    error, hint = wrong.err.strip().splitlines()[-2:]
    assert "'encoder.down.0.block.0.norm1.weight' does not fit" in error
    assert "by its names it is ibq" in hint


def test_options_that_say_nothing_of_a_source_are_refused_in_the_same_words(tmp_path: Path, images: Path) -> None:
    mark, dataset = tmp_path / "it ran", ("--dataset", f"folder:{images}")
    (tmp_path / "adapter.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    idle = "says how to read a file of weights, and there is none that it could be said of"
    for source, option, asked in (
        (f"{tmp_path}/adapter.py:f", ("--trust",), {"trust": True}),
        (str(tmp_path / "model"), ("--as", "taming"), {"family": "taming"}),
    ):
        said = f"{' '.join(option)} {idle}"
        for words in (
            ("check", source),
            ("tokens", source, *dataset, "--out", tmp_path / "out"),
            ("run", "--methods", "vqgan", *dataset, "--runs", tmp_path / "runs", "--init-from", source),
        ):
            answer = typed(*words, *option)
            assert (answer.code, answer.err.splitlines()[0]) == (2, f"error: {said}"), (words, answer.err)
        with pytest.raises(UsageError, match=f"^{said}"):
            vqbench.load(source, **asked)
    assert not mark.exists()


# What is in a file and is not tensors


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, how: Callable[..., object], *arguments: object) -> None:
        self.how, self.arguments = how, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.how, self.arguments


@pytest.mark.parametrize("shape", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_planted_pickle_does_not_run(tmp_path: Path, shape: str, protocol: int) -> None:
    _, tensors, _ = taming()
    path, witness = tmp_path / "model.ckpt", tmp_path / "witness"
    plants = [Planted(os.system, f"touch {witness}"), Planted(exec, f"open({str(witness)!r}, 'w')")]
    for plant in plants:
        content = {"state_dict": tensors, "hyper_parameters": plant}
        if shape == "bare":
            path.write_bytes(pickle.dumps(content, protocol=protocol))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=shape == "zip", pickle_protocol=protocol)
        refused(lambda: open_checkpoint(path), "nothing of it was run")
        assert not witness.exists()
    pickle.loads(pickle.dumps(plants[0]))
    assert witness.exists()  # the plant is one


@pytest.fixture
def foreign() -> Iterator[types.ModuleType]:
    """A package that is there when a file is written, and not when it is read."""
    module = types.ModuleType("lightning_of_old")
    code = """
class ModelCheckpoint:
    pass
class AttributeDict(dict):
    pass
class ListConfig:
    def __init__(self, content, parent):
        self._content = content
        self._parent = parent
class Network(__import__("torch").nn.Linear):
    pass
"""
    exec(code, module.__dict__)
    sys.modules[module.__name__] = module
    for name in ("ModelCheckpoint", "AttributeDict", "ListConfig", "Network"):
        getattr(module, name).__module__ = module.__name__
    yield module
    sys.modules.pop(module.__name__, None)


@pytest.mark.parametrize("legacy", [False, True])
def test_foreign_classes_are_read_over(tmp_path: Path, foreign: types.ModuleType, legacy: bool) -> None:
    _, tensors, _ = taming()
    settings = foreign.AttributeDict(lr=1e-4)
    settings.sizes = foreign.ListConfig([1, 2], None)
    settings.losses = deque([0.5, 0.25], maxlen=8)
    content = {
        "state_dict": tensors,
        "callbacks": {foreign.ModelCheckpoint: {"best": torch.zeros(()), "of": foreign.ModelCheckpoint()}},
        "hyper_parameters": settings,
    }
    path = saved(tmp_path / "last.ckpt", content, legacy)
    del sys.modules[foreign.__name__]
    assert open_checkpoint(path).facts.unread == ("callbacks, hyper_parameters (no tensors)",)


def test_a_program_is_run_only_where_it_is_trusted(tmp_path: Path, foreign: types.ModuleType) -> None:
    network, tensors, images = taming()
    whole = nn.Module()
    for part in ("encoder", "decoder", "quant_conv", "post_quant_conv"):
        whole.add_module(part, getattr(network, part))
    whole.quantize = nn.Module()
    whole.quantize.embedding = nn.Embedding.from_pretrained(tensors["quantize.embedding.weight"])
    path = saved(tmp_path / "model.pkl", whole)
    refused(lambda: open_checkpoint(path), "a whole pickled module, a program", "--trust runs what the file holds")
    codes = tensors["quantize.embedding.weight"]
    assert torch.equal(
        open_checkpoint(path, trust=True).codec.to_indices(images), nearest(network.latents(images), codes)
    )
    script = tmp_path / "encoder.jit"
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(script)
    refused(lambda: open_checkpoint(script), "is TorchScript, a program", "--trust")
    refused(lambda: open_checkpoint(script, trust=True), "holds no tokenizer", "weight, bias")
    saved(path, foreign.Network(2, 2))
    del sys.modules[foreign.__name__]
    refused(lambda: open_checkpoint(path, trust=True), "does not run here", "lightning_of_old", "adapter.py:function")
