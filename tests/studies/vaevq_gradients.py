"""What moves VAEVQ's codes and latents, term by term: gradient norms of each loss, and scales, over a training.

    python tests/studies/vaevq_gradients.py --data tune --dim 16 --images 60000 --at 4000,8000,20000,60000 OUT.jsonl \
        dcr_weight=0.1 rcs_sigma_min=0.1

Each line of OUT.jsonl is one moment: for each weighted term the Frobenius norm of its gradient on the codes (all,
those that the batch uses, the others), on the means and on the log-variances; and the scales of all of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vqbench.training.fit
from vqbench.data.dataset import open_dataset
from vqbench.data.prepare import prepare_train
from vqbench.data.stream import TrainingStream
from vqbench.machine.home import home
from vqbench.recipe import load_recipe
from vqbench.seeds import derive_seed
from vqbench.tokenizer import Reconstruction, build_tokenizer, configured
from vqbench.training.tokenizer_training import TokenizerTraining

MOMENTS: list[int] = []
LINES: list[dict[str, Any]] = []


class Measured(TokenizerTraining):
    """A training that looks at its gradients at some moments; its steps are those of any other."""

    def _quantizer_terms(self, output: Reconstruction, taken: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = super()._quantizer_terms(output, taken)
        if self.images_seen in MOMENTS:
            LINES.append({"images": self.images_seen, **self._measured(output, taken | terms)})
        return terms

    def _measured(self, output: Reconstruction, terms: dict[str, Tensor]) -> dict[str, Any]:
        quantizer = self.tokenizer.quantizer
        codes, z = quantizer.embedding, self.seen
        used = torch.zeros(len(codes), dtype=torch.bool)
        used[output.quantized.indices.unique()] = True
        half = quantizer.out_channels
        mean = z[:, :half].detach()
        line: dict[str, Any] = {
            "used": int(used.sum()),
            "latent_rms": _rms(mean),
            "code_rms_used": _rms(codes.detach()[used]),
            "code_rms_unused": _rms(codes.detach()[~used]),
            "code_mean_norm": float(codes.detach().mean(0).norm()),
            "latent_mean_norm": float(mean.mean((0, 2, 3)).norm()),
            "diagnostics": {name: float(value) for name, value in output.quantized.diagnostics.items()},
        }
        for name, term in terms.items():
            of_codes, of_z = torch.autograd.grad(term, (codes, z), retain_graph=True, allow_unused=True)
            of_codes = torch.zeros_like(codes) if of_codes is None else of_codes
            of_z = torch.zeros_like(z) if of_z is None else of_z
            line[name] = {
                "value": float(term.detach()),
                "codes": float(of_codes.norm()),
                "codes_used": float(of_codes[used].norm()),
                "codes_unused": float(of_codes[~used].norm()),
                "means": float(of_z[:, :half].norm()),
                "log_variances": float(of_z[:, half:].norm()),
            }
        return line

    def on_fit_start(self) -> None:
        """Keep what the quantizer is given."""
        super().on_fit_start()
        self.tokenizer.quantizer.register_forward_pre_hook(lambda _, given: setattr(self, "seen", given[0]))

    seen: Tensor


def _rms(values: Tensor) -> float | None:
    return float(values.square().mean().sqrt()) if len(values) else None


def main() -> None:
    """Train once, write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of images")
    parser.add_argument("--method", default="vaevq")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--at", default="4000,8000,20000,60000")
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", nargs="*", metavar="FIELD=VALUE")
    arguments = parser.parse_args()

    from vqbench.planning.choice import choose_method, read_settings

    recipe = load_recipe("tiny", {"images": arguments.images, "codebook_dim": arguments.dim})
    owner = arguments.method.partition("@")[0]
    choice = choose_method(
        arguments.method, recipe, read_settings(tuple(f"{owner}.{text}" for text in arguments.settings))
    )
    last = (recipe.steps - 1) * recipe.batch_size
    MOMENTS[:] = [min(int(text) // recipe.batch_size * recipe.batch_size, last) for text in arguments.at.split(",")]
    dataset = open_dataset(f"folder:{arguments.data}", recipe.resolution, None, None)
    data_seed = derive_seed("data", arguments.seed, dataset.train_digest)
    stream = TrainingStream(
        prepare_train(dataset, home()), recipe.resolution, data_seed, recipe.random_crop, recipe.flip
    )
    vqbench.training.fit.TokenizerTraining = Measured  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        config = configured(choice.name, choice.config)
        tokenizer = build_tokenizer(choice.name, config, recipe, arguments.seed)
        vqbench.training.fit.train(tokenizer, stream, recipe, seed=arguments.seed, folder=Path(folder))
    about = {"dim": arguments.dim, "seed": arguments.seed, "budget": arguments.images, "method": arguments.method}
    about["settings"] = arguments.settings
    with arguments.out.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(about | line) + "\n" for line in LINES)


if __name__ == "__main__":
    main()
