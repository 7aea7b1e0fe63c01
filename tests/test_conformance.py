"""The suite passes every method we ship, and each deliberate mistake fails the property that is meant for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vqbench.checks.suite import PROPERTIES, Property, check_method, render
from vqbench.checks.toy import CODEBOOK_SIZE, Trial
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

HEAD = RIGHT.partition("    def __init__")[0]

SIMVQ = (
    HEAD
    + """
    def __init__(self, config):
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.in_channels = self.out_channels = config.dim
        self.embedding = nn.Parameter(torch.randn(config.codebook_size, config.dim), requires_grad=False)
        self.projection = nn.Linear(config.dim, config.dim)

    @property
    def codebook(self):
        return self.projection(self.embedding).detach()

    @property
    def gradient_routes(self):
        return GradientRoutes(True, False, True, True)

    @full_precision
    def forward(self, z):
        z_q, indices = quantize(z, self.projection(self.embedding))
        return Quantized(straight_through(z, z_q), indices, vq_losses(z, z_q, 0.25, "commitment"))

    @full_precision
    def decode_indices(self, indices):
        return look_up(indices, self.projection(self.embedding))
"""
)

EMA = (
    HEAD
    + """
    def __init__(self, config):
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.in_channels = self.out_channels = config.dim
        self.register_buffer("codes", torch.zeros(config.codebook_size, config.dim))
        self.register_buffer("counts", torch.zeros(config.codebook_size))
        self.register_buffer("sums", torch.zeros(config.codebook_size, config.dim))
        self.register_buffer("started", torch.tensor(False))

    @property
    def codebook(self):
        return self.codes

    @property
    def gradient_routes(self):
        return GradientRoutes(True, False, True, False)

    def totals(self, rows):
        _, indices = quantize(rows.t()[None, :, None], self.codes)
        chosen = torch.nn.functional.one_hot(indices.flatten(), self.codebook_size).float()
        counts, sums = chosen.sum(0), chosen.t() @ rows
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        return counts, sums

    def k_means(self, rows):
        self.codes = rows[torch.randint(len(rows), (self.codebook_size,))]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(self.codes, 0)
        for _ in range(3):
            counts, sums = self.totals(rows)
            self.codes = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), self.codes)
        self.counts, self.sums = torch.ones_like(self.counts), self.codes.clone()
        self.started.fill_(True)

    @torch.no_grad()
    def update(self, rows):
        if not self.started:
            self.k_means(rows)
        counts, sums = self.totals(rows)
        self.counts.mul_(0.9).add_(counts, alpha=0.1)
        self.sums.mul_(0.9).add_(sums, alpha=0.1)
        self.codes = self.sums / self.counts[:, None].clamp(min=1e-5)

    @full_precision
    def forward(self, z):
        if self.training:
            self.update(z.detach().permute(0, 2, 3, 1).flatten(0, 2))
        z_q, indices = quantize(z, self.codes)
        losses = {"commitment": 0.25 * torch.nn.functional.mse_loss(z, z_q)} if self.training else {}
        return Quantized(straight_through(z, z_q), indices, losses)

    @full_precision
    def decode_indices(self, indices):
        return look_up(indices, self.codes)
"""
)

RESIDUAL = (
    HEAD
    + """
    def __init__(self, config):
        super().__init__(config)
        self.codebook_size, self.num_codebooks = config.codebook_size, 4
        self.in_channels = self.out_channels = config.dim
        self.embedding = nn.Parameter(torch.randn(4, config.codebook_size, config.dim))

    @property
    def gradient_routes(self):
        return GradientRoutes(True, False, True, True)

    @full_precision
    def forward(self, z):
        total, indices, losses = torch.zeros_like(z), [], {}
        for level, codes in enumerate(self.embedding):
            z_q, chosen = quantize(z - total.detach(), codes)
            terms = vq_losses(z - total.detach(), z_q, 0.25, "commitment")
            losses |= {f"{name}{level}": term for name, term in terms.items()}
            total = total + z_q
            indices.append(chosen)
        return Quantized(straight_through(z, total), torch.stack(indices, -1), losses)

    @full_precision
    def decode_indices(self, indices):
        return sum(look_up(indices[..., level], codes) for level, codes in enumerate(self.embedding))
"""
)

NO_CODEBOOK = ("        return self.embedding.detach()", "        return None")

# name → the changes that make RIGHT wrong, and every property that then fails
WRONG: dict[str, tuple[list[tuple[str, str]], set[str]]] = {
    "index_out_of_range": (
        [NO_CODEBOOK, ("indices, losses)", "indices + 1, losses)"), ("look_up(indices,", "look_up(indices - 1,")],
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
            "index range",
            "decode_indices agrees",
            "eval has no side effects",
            "leaves the seed alone",
            "bfloat16 parity",
            "state dict restores codes",
        },
    ),
}

WRONG |= {
    "no_straight_through": (
        [("straight_through(z, z_q)", "z_q")],
        {"gradient reaches encoder"},
    ),
    "latents_ignore_z": (
        [
            (
                "        losses =",
                "        if self.training:\n"
                "            z_q = self.embedding.mean(0).view(-1, 1, 1).expand_as(z)\n"
                "        losses =",
            ),
            ("straight_through(z, z_q)", "z_q if self.training else straight_through(z, z_q)"),
        ],
        {"gradient reaches encoder"},
    ),
    "latents_ignore_z_in_value": (
        [
            (
                "straight_through(z, z_q)",
                "z - z.detach() + (self.embedding[:1, :, None, None] if self.training else z_q)",
            )
        ],
        {"gradient reaches encoder"},
    ),
    "drifts_through_an_attribute": (
        [
            NO_CODEBOOK,
            ("        self.embedding =", "        self.calls = 0\n        self.embedding ="),
            (
                "        losses =",
                "        self.calls += not self.training\n        z_q = z_q * (1 + self.calls)\n        losses =",
            ),
            ("straight_through(z, z_q)", "straight_through(z, z_q) if self.training else z_q"),
            ("return look_up(indices, self.embedding)", "return look_up(indices, self.embedding) * (1 + self.calls)"),
        ],
        {"eval has no side effects"},
    ),
    "centres_on_the_batch": (
        [("quantize(z,", "quantize(z - z.mean((0, 2, 3), keepdim=True),")],
        {"eval ignores other images"},
    ),
    "swaps_height_and_width": (
        [
            NO_CODEBOOK,
            ("indices, losses)", "indices.transpose(1, 2), losses)"),
            ("look_up(indices,", "look_up(indices.transpose(1, 2),"),
        ],
        {"shapes and types"},
    ),
    "divides_by_a_norm_of_zero": (
        [("        z_q, ind", "        z = z / z.norm(dim=1, keepdim=True)\n        z_q, ind")],
        {"index range"},
    ),
    "infinite_loss_far_out": (
        [("        return Quantized", "        losses['far'] = z.exp().mean()\n        return Quantized")],
        {"index range"},
    ),
    "nan_from_the_third_step": (
        [
            (
                "        self.embedding =",
                "        self.register_buffer('calls', torch.zeros(()))\n        self.embedding =",
            ),
            ("        z_q, ind", "        self.calls += self.training\n        z_q, ind"),
            ("        return Quantized", "        losses['late'] = 0 / (self.calls < 3)\n        return Quantized"),
        ],
        {"shapes and types", "index range"},
    ),
    "codebook_size_too_large": (
        [NO_CODEBOOK, ("self.codebook_size = config.codebook_size", "self.codebook_size = 10 * config.codebook_size")],
        {"index range"},
    ),
    "sums_over_the_batch_with_noise": (
        [
            (
                "        return Quantized",
                "        losses['sum'] = (1 + 0.01 * torch.rand(())) * z.square().sum()\n        return Quantized",
            )
        ],
        {"loss of a doubled batch"},
    ),
    "other_bits": (
        [("    def advance", "    @property\n    def bits_per_token(self):\n        return 99.0\n\n    def advance")],
        {"shapes and types"},
    ),
    "seeds_the_forward": (
        [("        z_q, ind", "        torch.manual_seed(0)\n        z_q, ind")],
        {"leaves the seed alone"},
    ),
    "seeds_the_constructor": (
        [("        codes =", "        torch.manual_seed(0)\n        codes =")],
        {"leaves the seed alone"},
    ),
}

UNREDUCED = [
    ("nn.Parameter(codes)", "nn.Parameter(codes, requires_grad=False)"),
    (
        "        losses =",
        "        if self.training:\n            self.embedding.data.add_(0.01 * z.mean())\n        losses =",
    ),
]


def write(folder: Path, name: str, changes: list[tuple[str, str]], source: str = RIGHT) -> Path:
    source = source.replace("NAME", name)
    for before, after in changes:
        assert before in source, f"{name}: nothing to change at {before!r}"
        source = source.replace(before, after)
    path = folder / f"{name}.py"
    path.write_text(source)
    return path


def failures(properties: list[Property]) -> set[str]:
    return {p.name for p in properties if p.passed is False}


@pytest.mark.parametrize(
    "method",
    [
        *("vqgan", "vqgan@legacy", "fsq", "sqvae", "sqvae@mode2", "sqvae@mode3", "sqvae@mode4"),
        *("fsq@noise", "rfsq", "lfq", "lfq@lucidrains", "bsq", "llamagen", "llamagen@entropy", "ibq", "softvq", "gq"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("fsq@symmetric", "rfsq@three", "bsq@joint", "gq@second")
        ),
        *("vqgan_ema", "simvq", "rqvae", "cvq", "wvq", "vqgan_lc", "movq", "movq@paper"),
    ],
)
def test_built_in_methods_pass(method: str) -> None:
    properties = check_method(method, only=IN_ONE_PROCESS)
    assert not failures(properties), render(properties)


@pytest.mark.parametrize("preset", ["first", "paper", "released"])
def test_presets_of_vaevq_pass(preset: str) -> None:
    properties = check_method(f"vaevq@{preset}", only=IN_ONE_PROCESS)
    assert not failures(properties), render(properties)


HOOKS = (
    RIGHT.replace("from vqbench.quantizer import", "from vqbench.quantizer import Artifact,").replace(
        "    @full_precision\n    def forward",
        """    @classmethod
    def artifact(cls, config):
        return Artifact("file", (config.codebook_size, config.dim), path="codes.npy")

    def receive(self, artifact):
        self.embedding.data.copy_(artifact)

    def decoder_modulation(self, channels):
        return Scale(self.out_channels, channels)

    @full_precision
    def forward""",
        1,
    )
    + """
class Scale(nn.Module):
    def __init__(self, latents, channels):
        super().__init__()
        self.map = nn.Linear(latents, channels)

    def forward(self, x, latents):
        return x * self.map(latents.mean((2, 3)))[..., None, None]
"""
)


WHOLE_SCALE, SAVED = "return Scale(self.out_channels, channels)", "self.embedding.data.copy_(artifact)"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([], ""),
        ([(SAVED, "self.kept = artifact")], "receive(artifact) changes no code"),
        ([(f"    def receive(self, artifact):\n        {SAVED}\n", "")], "must implement receive"),
        ([('Artifact("file", (', 'dict(rule="file", shape=(')], "gives dict, not an Artifact"),
        ([(WHOLE_SCALE, "return lambda x, latents: x")], "gives function, not a torch module"),
        ([(WHOLE_SCALE, "return self")], "gives one module twice"),
        ([("latents.mean((2, 3))", "torch.ones(len(x), latents.shape[1])")], "does not hear the latents"),
        ([("x * self.map", "x[..., :2] * self.map")], "makes (2, 64, 4, 2) of a norm's (2, 64, 4, 6)"),
    ],
)
def test_what_a_method_asks_of_the_harness_is_checked(
    changes: list[tuple[str, str]], said: str, tmp_path: Path
) -> None:
    file = write(tmp_path, "hooks", changes, HOOKS)
    properties = check_method("hooks", file, only=["shapes and types", "state dict restores codes"])
    found = "; ".join(p.detail for p in properties if not p.passed)
    assert said in found
    assert bool(found) == bool(said), found


def test_unknown_preset() -> None:
    with pytest.raises(UsageError, match="did you mean released"):
        check_method("vaevq@relaesed")


def test_vaevq_passes_on_two_ranks_too() -> None:
    properties = check_method("vaevq")
    assert [p.name for p in properties] == list(PROPERTIES)
    assert not failures(properties), render(properties)
    assert all(p.passed for p in properties)  # random losses are held to their mean, nothing is left out


def test_a_right_plugin_passes(tmp_path: Path) -> None:
    properties = check_method("right_plugin", write(tmp_path, "right_plugin", []), only=IN_ONE_PROCESS)
    assert not failures(properties), render(properties)
    assert render(properties).count("\n") == len(properties) - 1


@pytest.mark.parametrize(("name", "source"), [("simvq", SIMVQ), ("residual", RESIDUAL)], ids=["simvq", "residual"])
def test_right_plugins_of_other_kinds_pass(tmp_path: Path, name: str, source: str) -> None:
    """Frozen parameters under a learned map; four codebooks."""
    properties = check_method(f"right_{name}", write(tmp_path, f"right_{name}", [], source), only=IN_ONE_PROCESS)
    assert all(p.passed for p in properties), render(properties)


def test_a_right_plugin_without_parameters_passes_on_two_ranks_too(tmp_path: Path) -> None:
    """Codes that start from the first batch by k-means and follow as running means, reduced over the ranks."""
    properties = check_method("right_ema", write(tmp_path, "right_ema", [], EMA))
    assert all(p.passed for p in properties), render(properties)


def test_a_decoder_gradient_that_is_said_to_stop_may_stop(tmp_path: Path) -> None:
    routes = "    @property\n    def gradient_routes(self):\n        return GradientRoutes(False, True, True, True)\n\n"
    changes = [("straight_through(z, z_q)", "z_q"), ("    def advance", f"{routes}    def advance")]
    properties = check_method("stops", write(tmp_path, "stops", changes), only=IN_ONE_PROCESS)
    assert not failures(properties), render(properties)


def test_a_codebook_without_its_projection(tmp_path: Path) -> None:
    before, after = "return self.projection(self.embedding).detach()", "return self.embedding.detach()"
    plugin = write(tmp_path, "unprojected", [(before, after)], SIMVQ)
    assert failures(check_method("unprojected", plugin, only=IN_ONE_PROCESS)) == {"decode_indices agrees"}


def test_frozen_parameters_are_no_gradient_route(tmp_path: Path) -> None:
    """A promise that only the frozen codes could keep is found out, and does not crash."""
    promise = ("GradientRoutes(True, False, True, True)", "GradientRoutes(True, True, True, True)")
    plugin = write(tmp_path, "frozen_promise", [promise], SIMVQ)
    (result,) = check_method("frozen_promise", plugin, only=["gradient routes"])
    assert result.detail == "decoder_to_parameters is declared True, not so found"


def test_a_preset_wins_over_the_matched_codebook(tmp_path: Path) -> None:
    """As in a run; else a preset is checked in a form that no run has."""
    preset = ("    def __init__", "    presets = {'big': {'codebook_size': 33}}\n\n    def __init__")
    METHODS.add_file(write(tmp_path, "with_preset", [preset]))
    assert Trial("with_preset@big").quantizer().codebook_size == 33
    assert Trial("with_preset").quantizer().codebook_size == CODEBOOK_SIZE


@pytest.mark.parametrize("mistake", WRONG)
def test_each_mistake_fails_its_own_property(tmp_path: Path, mistake: str) -> None:
    changes, expected = WRONG[mistake]
    properties = check_method(mistake, write(tmp_path, mistake, changes), only=IN_ONE_PROCESS)
    assert failures(properties) == expected, render(properties)


@pytest.mark.parametrize(
    ("continuous", "expected"),
    [
        ("z", set()),
        ("z if self.training else None", {"shapes and types"}),
        ("None if self.training else z", {"shapes and types"}),  # training decodes codes, so this is trained by nobody
        ("z + torch.randn_like(z)", {"eval is deterministic"}),
        ("z - z.mean()", {"eval ignores other images"}),
    ],
)
def test_a_continuous_path_is_held_to_what_its_score_needs(tmp_path: Path, continuous: str, expected: set[str]) -> None:
    source = RIGHT.replace("indices, losses)", f"indices, losses, continuous={continuous})")
    only = ["shapes and types", "eval is deterministic", "eval has no side effects", "eval ignores other images"]
    properties = check_method("dual", write(tmp_path, "dual", [], source), only=only)
    assert failures(properties) == expected, render(properties)


@pytest.mark.parametrize(("mixture", "expected"), [("z", set()), ("straight_through(z, z_q)", {"shapes and types"})])
def test_a_path_that_training_decodes_instead_of_codes_is_scored_too(
    tmp_path: Path, mixture: str, expected: set[str]
) -> None:
    latents = f"{mixture} if self.training else z_q"
    source = RIGHT.replace("straight_through(z, z_q)", latents).replace(
        "indices, losses)", "indices, losses, continuous=None if self.training else z)"
    )
    properties = check_method("soft", write(tmp_path, "soft", [], source), only=["shapes and types"])
    assert failures(properties) == expected, render(properties)


TWO_RANKS = (
    *("fsq@noise", "rfsq", "lfq", "bsq", "llamagen@entropy", "ibq", "softvq", "gq", "gq@second"),
    *("vqp:VectorQuantize", "vqp:ResidualVQ"),
)


@pytest.mark.slow
@pytest.mark.parametrize("method", TWO_RANKS)
def test_built_in_methods_are_the_same_on_two_ranks(method: str) -> None:
    if method.startswith("vqp:"):
        pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed: vqbench[vqp]")
    (result,) = check_method(method, only=["same on two ranks"])
    assert result.passed, result.detail


VQP = ("VectorQuantize", "ResidualVQ", "GroupedResidualVQ", "FSQ", "LFQ", "SimVQ", "LatentQuantize", "ResidualFSQ")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name != "ResidualVQ" else []) for name in VQP],
)
def test_classes_of_vector_quantize_pytorch_pass(name: str) -> None:
    pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed: vqbench[vqp]")
    properties = check_method(f"vqp:{name}", only=IN_ONE_PROCESS)
    assert not failures(properties), render(properties)


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
