"""An adapter for a small VQ-VAE that somebody published: `vqvae.pt` of NimbleBoxAI/explore-weights, 3.9 MB, MIT.

    vqbench check docs/examples/nbx_vqvae.py:tokenizer

reads the file that $NBX_VQVAE names, or `vqvae.pt` beside this one.
"""

import os
import re
from pathlib import Path

import torch
from torch import nn

WEIGHTS = Path(os.environ.get("NBX_VQVAE") or Path(__file__).with_name("vqvae.pt"))
INNER = r"_blocks\.|residual\.residual_blocks\.|_block\.|vq_vae\."
"""What the file's names have between those of the parts below."""


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_1 = nn.Conv2d(128, 64, 3, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(64, 128, 1, bias=False)

    def forward(self, x):
        x = x.relu()  # of the sum, too: the published network works in place
        return x + self.conv_2(self.conv_1(x).relu())


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_1 = nn.Conv2d(3, 64, 4, stride=2, padding=1)
        self.conv_2 = nn.Conv2d(64, 128, 4, stride=2, padding=1)
        self.conv_3 = nn.Conv2d(128, 128, 3, padding=1)
        self.residual_0, self.residual_1 = Residual(), Residual()

    def forward(self, x):
        x = self.conv_3(self.conv_2(self.conv_1(x).relu()).relu())
        return self.residual_1(self.residual_0(x)).relu()


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_1 = nn.Conv2d(128, 128, 3, padding=1)
        self.residual_0, self.residual_1 = Residual(), Residual()
        self.conv_t_1 = nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1)
        self.conv_t_2 = nn.ConvTranspose2d(64, 3, 4, stride=2, padding=1)

    def forward(self, x):
        x = self.residual_1(self.residual_0(self.conv_1(x))).relu()
        return self.conv_t_2(self.conv_t_1(x).relu())


class VQVAE(nn.Module):
    """What vqbench asks for: codebook_size, encode, decode. The rest is said so that it need not be found out."""

    codebook_size = 512
    multiple_of = downsampling = 4
    input_range = (-0.5, 0.5)  # of what encode takes and decode gives; vqbench converts
    name = "nbx_vqvae"
    source = {  # noqa: RUF012
        "file": WEIGHTS,
        "sha256": "5ffe6674dd274e2bd0578acad537707138d2e695a42cda4c21f098df2720b8bd",
        "licence": "MIT",
    }

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.pre_vq_conv = nn.Conv2d(128, 128, 1)
        self.codebook = nn.Embedding(512, 128)

    def encode(self, images):
        z = self.pre_vq_conv(self.encoder(images)).permute(0, 2, 3, 1)
        codes = self.codebook.weight
        distances = z.square().sum(-1, keepdim=True) - 2 * z @ codes.T + codes.square().sum(1)
        return distances.argmin(-1)

    def decode(self, indices):
        return self.decoder(self.codebook(indices).permute(0, 3, 1, 2))


def tokenizer():
    model = VQVAE()
    tensors = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
    model.load_state_dict({re.sub(INNER, "", name): tensor for name, tensor in tensors.items()})
    return model
