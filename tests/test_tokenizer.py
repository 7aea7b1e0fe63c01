"""A loaded tokenizer in a user's hands: tokens that train other models, and inputs that are taken or refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vqbench.backbone import BackboneConfig
from vqbench.quantizer import Quantized, Quantizer
from vqbench.recipe import Recipe, load_recipe
from vqbench.registry import METHODS
from vqbench.tokenizer import Tokenizer, build_tokenizer, load, save


def recipe() -> Recipe:
    small = {"channels": 8, "channel_multipliers": (1, 2), "latent_channels": 8, "resolution": 16}
    return load_recipe("tiny", small)


def loaded(tmp_path: Path, method: str = "vqgan") -> Tokenizer:
    """As `vqbench.load` gives it, untrained."""
    r = recipe()
    spec = {"method": method, "config": {}, "recipe": r.as_dict(), "plugin": None, "seed": 0, "hash": "0"}
    save(build_tokenizer(method, {}, r, 0), tmp_path / "tokenizer.safetensors", spec)
    return load(tmp_path / "tokenizer.safetensors")


@pytest.mark.parametrize("around", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", METHODS.names())
def test_tokens_and_what_they_decode_to_train_another_model(
    method: str, around: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    tokenizer = loaded(tmp_path, method)
    with around():  # Lightning's predict loop puts one around, in which a data set is encoded
        images = torch.rand(2, 3, 16, 16) * 2 - 1
        tokens = tokenizer.encode(images)
        decoded = tokenizer.decode(tokens)
    embedding = nn.Embedding(tokenizer.quantizer.codebook_size, 8)
    embedding(tokens).square().mean().backward()
    assert embedding.weight.grad is not None
    critic = nn.Conv2d(3, 4, 3)
    critic(decoded).square().mean().backward()
    assert critic.weight.grad is not None
    assert not decoded.requires_grad
    decoded.add_(1).requires_grad_()
    tokens[0] = 0
    assert all(parameter.grad is None for parameter in tokenizer.parameters())
    moving = images.clone().requires_grad_()
    assert torch.equal(tokenizer.encode(moving)[1], tokens[1])


def test_images_are_taken_as_bytes_and_as_floats_of_any_width(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path)
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    floats = pixels.float() / 127.5 - 1
    tokens = tokenizer.encode(floats)
    assert torch.equal(tokens, tokenizer.quantize(floats).indices)
    assert torch.equal(tokenizer.encode(pixels), tokens)
    assert torch.equal(tokenizer.encode(pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)), tokens)
    assert torch.equal(tokenizer.encode(floats.double()), tokens)
    for narrow in (torch.float16, torch.bfloat16):
        assert torch.equal(tokenizer.encode(floats.to(narrow)), tokenizer.encode(floats.to(narrow).float()))
    beyond = torch.full((1, 3, 16, 16), 1.0078125, dtype=torch.bfloat16)  # the step above 1
    assert torch.equal(tokenizer.encode(beyond), tokenizer.encode(beyond.float()))
    assert tokenizer.encode(pixels[:0]).shape == (0, 8, 8)
    assert tokenizer.decode(tokens[:0]).shape == (0, 3, 16, 16)
    for cast in (nn.Module.double, nn.Module.bfloat16):
        other = cast(loaded(tmp_path, "fsq"))
        assert torch.equal(other.encode(pixels), other.encode(floats))
        assert other.decode(other.encode(pixels)).dtype == other.to_quantizer.weight.dtype


def _with(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    images = torch.full((4, 3, 16, 16), 0.5, dtype=dtype)
    images[2, 1, 3, 3] = value
    return images


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        (torch.full((1, 3, 16, 16), 200.0), ValueError, "float32 from 200 to 200, expected -1 to 1; .* as uint8"),
        (_with(1.02, torch.float16), ValueError, r"float16 from 0.5 to 1.01\d+, expected -1 to 1"),
        (_with(-1.2, torch.float64), ValueError, r"float64 from -1.2 to 0.5, .*clamp"),
        (_with(math.nan), ValueError, "float32 with NaN, first in image 2, otherwise from 0.5 to 0.5"),
        (_with(math.nan, torch.bfloat16), ValueError, "bfloat16 with NaN, first in image 2, otherwise from 0.5 to 0.5"),
        (_with(-math.inf), ValueError, "float32 from -inf to 0.5"),
        (torch.full((1, 3, 16, 16), math.nan), ValueError, "float32 with NaN, first in image 0; expected"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.int64), TypeError, "int64; expected uint8 .* or float16"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.bool), TypeError, "bool; expected uint8"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.complex64), TypeError, "complex64; expected uint8"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.float8_e5m2), TypeError, "float8_e5m2; expected uint8"),
        (torch.zeros(1, 3, 16, 16).to_sparse(), TypeError, "sparse"),
        (np.zeros((1, 3, 16, 16), np.float32), TypeError, "torch.Tensor .* not numpy.ndarray.*from_numpy"),
        (Image.new("RGB", (16, 16)), TypeError, "torch.Tensor .* not PIL.Image.Image.*from_numpy"),
        ([torch.zeros(3, 16, 16)], TypeError, "torch.Tensor .* not list"),
        (torch.zeros(3, 16, 16), ValueError, r"not \(3, 16, 16\).*images\[None\]"),
        (torch.zeros(2, 16, 16, 3), ValueError, r"not \(2, 16, 16, 3\).*permute\(0, 3, 1, 2\)"),
        (torch.zeros(2, 1, 16, 16), ValueError, r"not \(2, 1, 16, 16\).*expand"),
        (torch.zeros(2, 4, 16, 16), ValueError, r"not \(2, 4, 16, 16\)"),
        (torch.zeros(2, 3, 16, 17), ValueError, "divisible by 2"),
        (torch.zeros(2, 3, 0, 16), ValueError, "divisible by 2"),
        (torch.zeros(2, 3, 16, 16, device="meta"), ValueError, "on meta, the tokenizer on cpu"),
    ],
)
def test_what_is_no_batch_of_images_is_refused_in_a_sentence(
    images: Any, error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said) as caught:
        loaded(tmp_path).encode(images)
    assert "\n" not in str(caught.value)


TOKENS = torch.arange(8).view(2, 2, 2)


@pytest.mark.parametrize(
    ("indices", "error", "said"),
    [
        (TOKENS - 1, ValueError, "int64 from -1 to 6;.* 0 to 511"),
        (TOKENS + 505, ValueError, "int64 from 505 to 512;.* 0 to 511"),
        ((TOKENS + 505).short(), ValueError, "int16 from 505 to 512;.* 0 to 511"),
        (TOKENS.float(), TypeError, "float32; expected whole numbers"),
        (TOKENS.float() * math.nan, TypeError, "float32; expected whole numbers"),
        (TOKENS.bool(), TypeError, "bool; expected whole numbers"),
        (TOKENS.cfloat(), TypeError, "complex64; expected whole numbers"),
        (TOKENS.numpy(), TypeError, "torch.Tensor .* not numpy.ndarray"),
        ([[[1, 2]]], TypeError, "torch.Tensor .* not list"),
        (TOKENS[0], ValueError, r"\(B, h, w\), not \(2, 2\)"),
        (TOKENS[..., None], ValueError, r"\(B, h, w\), not \(2, 2, 2, 1\)"),
        (TOKENS[:, :0], ValueError, r"\(B, h, w\), not \(2, 0, 2\)"),
        (TOKENS.to("meta"), ValueError, "on meta, the tokenizer on cpu"),
    ],
)
def test_what_are_no_indices_is_refused_in_a_sentence(
    indices: Any, error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said) as caught:
        loaded(tmp_path).decode(indices)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32])
def test_indices_of_any_whole_number_are_decoded(dtype: torch.dtype, tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path)
    assert torch.equal(tokenizer.decode(TOKENS.to(dtype)), tokenizer.decode(TOKENS))


class InGroups(Quantizer):
    """The signs of two or more groups of two channels, each group a codebook (Nobody, 2026)."""

    def __init__(self, groups: int, sizes: int = 4) -> None:
        super().__init__(None)
        self.in_channels = self.out_channels = 2 * groups
        self.num_codebooks, self.codebook_size = groups, sizes

    def forward(self, z: Tensor) -> Quantized:
        bits = (z > 0).long().unflatten(1, (-1, 2)).permute(0, 3, 4, 1, 2)
        indices = bits[..., 0] + 2 * bits[..., 1]
        return Quantized(self.decode_indices(indices), indices)

    def decode_indices(self, indices: Tensor) -> Tensor:
        bits = torch.stack([indices % 2, indices // 2], -1).flatten(3)
        return bits.permute(0, 3, 1, 2).float() * 2 - 1


@pytest.mark.parametrize("groups", [1, 3])
def test_indices_of_several_codebooks_have_an_axis_for_them(groups: int) -> None:
    """One codebook may have the axis too: what `encode` returned is decoded."""
    tokenizer = Tokenizer(BackboneConfig.of(recipe()), InGroups(groups)).eval()
    tokens = tokenizer.encode(torch.rand(2, 3, 16, 16))
    assert tokens.shape == (2, 8, 8, groups)
    assert torch.equal(tokenizer.decode(tokens.to(torch.uint8)), tokenizer.decode(tokens))
    tokens[0, 0, 0, groups - 1] = 4
    with pytest.raises(ValueError, match=r"from 0 to 4; .* 4 codes, 0 to 3"):
        tokenizer.decode(tokens)
    if groups > 1:
        for wrong in (tokens[..., 0], tokens[..., :2]):
            with pytest.raises(ValueError, match=r"\(B, h, w, 3\), not "):
                tokenizer.decode(wrong)


def test_in_training_mode_nothing_is_encoded(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, "vaevq")
    nn.ModuleList([tokenizer]).train()  # as a part of another model
    for call, argument in ((tokenizer.encode, torch.zeros(1, 3, 16, 16)), (tokenizer.decode, TOKENS)):
        with pytest.raises(RuntimeError, match=r"training mode.*tokenizer\.eval\(\)"):
            call(argument)
