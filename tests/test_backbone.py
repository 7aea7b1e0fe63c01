"""The backbone has the published layout: parameter counts and shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqbench.backbone import BackboneConfig, Decoder, Encoder, SelfAttention, count_parameters
from vqbench.recipe import load_recipe
from vqbench.registry import METHODS
from vqbench.tokenizer import build_tokenizer

SD_VAE = BackboneConfig(
    resolution=256, channels=128, channel_multipliers=(1, 2, 4, 4), res_blocks=2, attention_resolutions=(),
    mid_attention=True, latent_channels=4, dropout=0.0,
)  # fmt: skip


def test_parameters_equal_those_of_the_published_autoencoder_in_this_layout() -> None:
    # Stable Diffusion's autoencoder is this encoder and decoder at mult 1,2,4,4: 83,653,863 parameters, of which
    # 72 + 20 are its two 1×1 convolutions (8→8 and 4→4); its encoder emits mean and log-variance, 8 channels
    encoder, decoder = Encoder(replace(SD_VAE, latent_channels=8)), Decoder(SD_VAE)
    assert count_parameters(encoder) + count_parameters(decoder) + 72 + 20 == 83_653_863
    assert count_parameters(encoder) == 34_163_592


def conv(a: int, b: int, k: int) -> int:
    return a * b * k * k + b


def block(a: int, b: int) -> int:
    return 2 * a + conv(a, b, 3) + 2 * b + conv(b, b, 3) + (conv(a, b, 1) if a != b else 0)


def attention(c: int) -> int:
    return 2 * c + 4 * conv(c, c, 1)


def test_parameters_of_the_f16_recipe_follow_from_the_published_configuration() -> None:
    # vqgan_imagenet_f16: ch 128, mult 1,1,2,2,4, 2 blocks, attention at 16, z 256; counted layer by layer
    widths = [128, 128, 256, 256, 512]
    encoder = conv(3, 128, 3)
    before = 128
    for level, width in enumerate(widths):
        encoder += block(before, width) + block(width, width)
        encoder += 2 * attention(width) if level == 4 else conv(width, width, 3)
        before = width
    middle = 2 * block(512, 512) + attention(512)
    encoder += middle + 2 * 512 + conv(512, 256, 3)
    decoder, before = conv(256, 512, 3) + middle, 512
    for level, width in reversed(list(enumerate(widths))):
        decoder += block(before, width) + 2 * block(width, width)
        decoder += 3 * attention(width) if level == 4 else 0
        decoder += conv(width, width, 3) if level > 0 else 0
        before = width
    decoder += 2 * 128 + conv(128, 3, 3)
    shape = BackboneConfig.of(load_recipe("vqgan-f16-256"))
    with torch.device("meta"):
        assert count_parameters(Encoder(shape)) == encoder == 29_298_176
        assert count_parameters(Decoder(shape)) == decoder == 42_449_795


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_gets_the_same_backbone(method: str) -> None:
    recipe = load_recipe("tiny", {"channels": 8, "latent_channels": 8})
    tokenizer, other = (build_tokenizer(name, {}, recipe, seed=3) for name in (method, "vqgan"))
    for part in ("encoder", "decoder"):
        mine, its = getattr(tokenizer, part).state_dict(), getattr(other, part).state_dict()
        assert all(torch.equal(mine[name], its[name]) for name in its)
        assert {name for name in mine if ".modulation." not in name} == its.keys()


def test_what_modulates_the_decoder_lies_in_it_and_is_counted_there() -> None:
    """A scale and a shift of each channel of each norm, affine in the d channels of a code."""
    recipe, d = load_recipe("tiny", {"mid_attention": True}), 5
    config = {"codebook_size": 8, "dim": d}
    modulated, plain = (build_tokenizer(name, config, recipe, seed=3) for name in ("movq", "vqgan"))
    norms = [module.num_channels for module in plain.decoder.modules() if isinstance(module, torch.nn.GroupNorm)]
    counts = modulated.parameter_counts()
    assert counts["decoder"] - plain.parameter_counts()["decoder"] == sum(2 * (d + 1) * c for c in norms) > 0
    assert {part: n for part, n in counts.items() if part not in ("decoder", "total")} == {
        part: n for part, n in plain.parameter_counts().items() if part not in ("decoder", "total")
    }
    off = build_tokenizer("movq", {**config, "modulation": False}, recipe, seed=3)
    latents = torch.randn(2, d, 4, 4)
    assert torch.equal(off.from_latents(latents), plain.from_latents(latents))
    assert not torch.allclose(modulated.from_latents(latents), plain.from_latents(latents))


def test_the_decoder_hears_of_a_code_through_its_norms_too() -> None:
    """With the way through the first convolution cut, latents still move the images, and are moved by them."""
    tokenizer = build_tokenizer("movq", {"codebook_size": 8, "dim": 4}, load_recipe("tiny", {"channels": 8}), seed=0)
    torch.nn.init.zeros_(tokenizer.from_quantizer.weight)
    latents = torch.randn(1, 4, 4, 4, requires_grad=True)
    tokenizer.decode_latents(latents).square().sum().backward()
    assert latents.grad is not None
    assert float(latents.grad.abs().min()) > 0


def test_another_seed_is_another_backbone() -> None:
    recipe = load_recipe("tiny", {"channels": 8})
    a, b = (build_tokenizer("fsq", {}, recipe, seed) for seed in (0, 1))
    assert not torch.equal(a.decoder.last.weight, b.decoder.last.weight)


def test_attention_mixes_all_positions_as_the_formula_says() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(8), torch.randn(2, 8, 3, 4)
    hidden = layer.norm(x)
    q, k, v = (p(hidden).reshape(2, 8, 12) for p in (layer.query, layer.key, layer.value))
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 8**0.5, dim=-1)
    expected = x + layer.out(torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2), (1, 1, 2, 4)])
def test_downsampling_and_back(multipliers: tuple[int, ...]) -> None:
    recipe = load_recipe("tiny", {"channels": 4, "channel_multipliers": multipliers, "mid_attention": True})
    shape = BackboneConfig.of(recipe)
    latents = Encoder(shape)(torch.zeros(2, 3, 32, 32))
    side = 32 // recipe.downsampling
    assert latents.shape == (2, recipe.latent_channels, side, side)
    assert Decoder(shape)(latents).shape == (2, 3, 32, 32)
