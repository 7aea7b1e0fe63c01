"""The suite passes every method we ship, and each deliberate mistake fails the property that is meant for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vqbench.conformance import PROPERTIES, Property, check_method, render
from vqbench.errors import UsageError
from vqbench.registry import METHODS

IN_ONE_PROCESS = [name for name in PROPERTIES if name != "same on two ranks"]

RIGHT = '''
from dataclasses import dataclass
import torch
from torch import nn
from vqbench.methods.codebook import look_up, quantize, straight_through, vq_losses
from vqbench.quantizer import GradientRoutes, Quantized, Quantizer, full_precision
from vqbench.registry import METHODS

@METHODS.register("NAME")
class Plugin(Quantizer):
    """A small VQ (nobody, 2026)."""

    @dataclass(frozen=True)
    class Config:
        codebook_size: int = 16
        dim: int = 4

    def __init__(self, config):
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.in_channels = self.out_channels = config.dim
        codes = torch.randn(config.codebook_size, config.dim)
        self.embedding = nn.Parameter(codes)

    @property
    def codebook(self):
        return self.embedding.detach()

    def advance(self, state):
        pass

    @full_precision
    def forward(self, z):
        z_q, indices = quantize(z, self.embedding)
        losses = vq_losses(z, z_q, 0.25, "commitment")
        return Quantized(straight_through(z, z_q), indices, losses)

    @full_precision
    def decode_indices(self, indices):
        return look_up(indices, self.embedding)
'''

# name → the changes that make RIGHT wrong, and every property that then fails
WRONG: dict[str, tuple[list[tuple[str, str]], set[str]]] = {
    "index_out_of_range": (
        [("indices, losses)", "indices + 1, losses)"), ("look_up(indices,", "look_up(indices - 1,")],
        {"index range"},
    ),
    "decode_disagrees": (
        [("return look_up(indices, self.embedding)", "return look_up(indices, 1.1 * self.embedding)")],
        {"decode_indices agrees"},
    ),
    "changes_codebook_in_eval": (
        [("        z_q, ind", "        self.embedding.data.mul_(0.99)\n        z_q, ind")],
        {"eval has no side effects"},
    ),
    "random_in_eval": (
        [("quantize(z,", "quantize(z + 0.1 * torch.randn_like(z),")],
        {"eval is deterministic"},
    ),
    "no_gradient_to_encoder": (
        [("straight_through(z, z_q)", "z_q"), ("vq_losses(z,", "vq_losses(z.detach(),")],
        {"gradient reaches encoder"},
    ),
    "rounds_under_autocast": (
        [
            ("    @full_precision\n    def forward", "    def forward"),
            (
                "        z_q, indices = quantize(z, self.embedding)",
                "        rows = z.permute(0, 2, 3, 1)\n"
                "        norm = self.embedding.square().sum(1)\n"
                "        indices = (norm - 2 * (rows @ self.embedding.t())).argmin(-1)\n"
                "        z_q = look_up(indices, self.embedding)",
            ),
        ],
        {"bfloat16 parity"},
    ),
    "codes_not_in_state_dict": (
        [("nn.Parameter(codes)", "codes")],
        {"state dict restores codes", "exact resume"},
    ),
    "schedule_not_in_state_dict": (
        [
            ("        self.codebook_size =", "        self.calls = 0\n        self.codebook_size ="),
            ("        z_q, ind", "        self.calls += self.training\n        z_q, ind"),
            ("z_q, 0.25,", "z_q, 0.25 / (1 + self.calls),"),
        ],
        {"exact resume"},
    ),
    "sums_over_the_batch": (
        [("        return Quantized", "        losses['sum'] = z.square().sum()\n        return Quantized")],
        {"loss of a doubled batch"},
    ),
    "false_promise": (
        [
            (
                "    def advance",
                "    @property\n    def gradient_routes(self):\n"
                "        return GradientRoutes(True, True, True, True)\n\n    def advance",
            )
        ],
        {"gradient routes"},
    ),
    "buffer_moves_in_eval": (
        [
            (
                "        self.embedding =",
                "        self.register_buffer('calls', torch.zeros(()))\n        self.embedding =",
            ),
            ("        z_q, ind", "        self.calls += 1\n        z_q, ind"),
        ],
        {"eval has no side effects"},
    ),
    "codebook_of_another_shape": (
        [("return self.embedding.detach()", "return self.embedding.detach().t()")],
        {"shapes and types"},
    ),
    "wrong_shape": (
        [
            (
                "return Quantized(straight_through(z, z_q), indices",
                "return Quantized(straight_through(z, z_q), indices.flatten(1)",
            )
        ],
        {
            "shapes and types",
            "decode_indices agrees",
            "eval has no side effects",
            "bfloat16 parity",
            "state dict restores codes",
        },
    ),
}

UNREDUCED = [
    ("nn.Parameter(codes)", "nn.Parameter(codes, requires_grad=False)"),
    (
        "        losses =",
        "        if self.training:\n            self.embedding.data.add_(0.01 * z.mean())\n        losses =",
    ),
]


def write(folder: Path, name: str, changes: list[tuple[str, str]]) -> Path:
    source = RIGHT.replace("NAME", name)
    for before, after in changes:
        assert before in source, f"{name}: nothing to change at {before!r}"
        source = source.replace(before, after)
    path = folder / f"{name}.py"
    path.write_text(source)
    return path


def failures(properties: list[Property]) -> set[str]:
    return {p.name for p in properties if p.passed is False}


@pytest.mark.parametrize(
    "method", ["vqgan", "vqgan@legacy", "fsq", "sqvae", "sqvae@mode2", "sqvae@mode3", "sqvae@mode4"]
)
def test_built_in_methods_pass(method: str) -> None:
    properties = check_method(method, only=IN_ONE_PROCESS)
    assert not failures(properties), render(properties)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_presets_of_vaevq_pass(preset: str) -> None:
    properties = check_method(f"vaevq@{preset}", only=IN_ONE_PROCESS)
    assert not failures(properties), render(properties)


def test_unknown_preset() -> None:
    with pytest.raises(UsageError, match="did you mean released"):
        check_method("vaevq@relaesed")


def test_vaevq_passes_on_two_ranks_too() -> None:
    properties = check_method("vaevq")
    assert [p.name for p in properties] == list(PROPERTIES)
    assert not failures(properties), render(properties)
    assert {p.name for p in properties if p.passed is None} == {"loss of a doubled batch"}  # its losses are random


def test_a_right_plugin_passes(tmp_path: Path) -> None:
    properties = check_method("right_plugin", write(tmp_path, "right_plugin", []), only=IN_ONE_PROCESS)
    assert not failures(properties), render(properties)
    assert render(properties).count("\n") == len(properties) - 1


@pytest.mark.parametrize("mistake", WRONG)
def test_each_mistake_fails_its_own_property(tmp_path: Path, mistake: str) -> None:
    changes, expected = WRONG[mistake]
    properties = check_method(mistake, write(tmp_path, mistake, changes), only=IN_ONE_PROCESS)
    assert failures(properties) == expected, render(properties)


def test_codebooks_that_drift_apart_on_two_ranks(tmp_path: Path) -> None:
    plugin = write(tmp_path, "unreduced", UNREDUCED)
    (result,) = check_method("unreduced", plugin, only=["same on two ranks"])
    assert result.passed is False
    assert "different codebooks" in result.detail


def test_a_crash_is_one_failed_line(tmp_path: Path) -> None:
    plugin = write(tmp_path, "crashes", [("return look_up(indices, self", "raise RuntimeError('first\\nlast', self")])
    properties = check_method("crashes", plugin, only=["shapes and types", "decode_indices agrees"])
    assert failures(properties) == {"decode_indices agrees"}
    assert "RuntimeError" in properties[1].detail
    assert "\n" not in render(properties[1:])


def test_a_plugin_that_does_not_import_says_so(tmp_path: Path) -> None:
    plugin = write(tmp_path, "broken_import", [("import torch\n", "import torchh\n")])
    with pytest.raises(UsageError, match="torchh"):
        check_method("broken_import", plugin)


def test_the_documented_plugin_passes(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "writing-a-method.md").read_text()
    (source,) = re.findall(r"```python\n(# my_vq\.py\n.*?)```", page, re.DOTALL)
    path = tmp_path / "my_vq.py"
    path.write_text(source)
    assert METHODS.add_file(path) == ("mine",)
    properties = check_method("mine", only=IN_ONE_PROCESS)
    assert not failures(properties), render(properties)
    assert METHODS.outline("mine").components == ("commitment",)
    for name in PROPERTIES:
        assert f"| {name} |" in page, f"docs/writing-a-method.md does not explain '{name}'"
