"""`vqbench ablate`: components as an algebra over any method, the paper's rows, differences to the full method."""

from __future__ import annotations

import itertools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from helpers.commands import settings, typed
from helpers.images import write_images
from helpers.stored import write_cell
from helpers.training import fit, recipe, same

from vqbench.errors import UsageError
from vqbench.planning.ablation_rows import PlannedRow, make_rows
from vqbench.planning.choice import choose_method
from vqbench.planning.plan import make_plan, resolve
from vqbench.planning.request import AblateRequest, RunRequest
from vqbench.planning.variant import Variant
from vqbench.recipe import load_recipe
from vqbench.registry import METHODS
from vqbench.reports.ablation import analyse, delta_table, markdown, notes, objects, score_table
from vqbench.tokenizer import build_tokenizer

PLUGIN = '''
"""A quantizer of one code per token's sign pattern, with two components of its own."""
from dataclasses import dataclass, field
import torch
from vqbench.quantizer import Quantized, Quantizer, full_precision
from vqbench.registry import METHODS


@METHODS.register("two_parts")
class TwoParts(Quantizer):
    """Two parts (Nobody, 2026)."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""
        dim: int = 3
        """Bits."""
        pull: bool = field(default=True, metadata={"component": "pull"})
        """Whether latents are drawn to their codes."""
        pull_weight: float = field(default=0.25, metadata={"part_of": "pull"})
        """How strongly."""
        wide: bool = field(default=True, metadata={"component": "wide"})
        """Whether codes are twice as far apart. Needs pull."""

        def __post_init__(self):
            if self.wide and not self.pull:
                raise ValueError("wide codes drift away without pull")

    def __init__(self, config):
        super().__init__(config)
        self.in_channels = self.out_channels = config.dim
        self.codebook_size = 2**config.dim
        self.scale = 2.0 if config.wide else 1.0
        self.register_buffer("powers", 2 ** torch.arange(config.dim))

    @classmethod
    def matched(cls, codebook_size, dim):
        return {}

    @full_precision
    def forward(self, z):
        q = torch.where(z > 0, self.scale, -self.scale)
        indices = ((z > 0).long() * self.powers.view(1, -1, 1, 1)).sum(1)
        pull = self.config.pull_weight * (z - q).pow(2).mean()
        return Quantized(z + (q - z).detach(), indices, {"pull": pull} if self.config.pull else {})

    def decode_indices(self, indices):
        bits = (indices.unsqueeze(1) & self.powers.view(1, -1, 1, 1)) > 0
        return (bits.float() * 2 - 1) * self.scale
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ablation") / "two_parts.py"
    path.write_text(PLUGIN)
    METHODS.add_file(path, replace=True)
    return path


def rows_of(method: str = "vaevq", *, settings: tuple[str, ...] = (), **asked: Any) -> dict[str, PlannedRow]:
    run = RunRequest((method,), "photos", settings=settings)
    rows, *_ = make_rows(AblateRequest(run=run, **asked))
    return {row.name: row for row in rows}


def on(row: PlannedRow) -> set[str]:
    return {name for name, is_on in row.components.items() if is_on}


def test_leave_one_out_is_the_default() -> None:
    rows = rows_of()
    assert list(rows) == ["full", "without vlq", "without rcs", "without dcr"]
    assert [on(row) for row in rows.values()] == [
        {"vlq", "rcs", "dcr"}, {"rcs", "dcr"}, {"vlq", "dcr"}, {"vlq", "rcs"}
    ]  # fmt: skip


def test_the_kinds_of_rows() -> None:
    assert list(rows_of(drop=("dcr",))) == ["full", "without dcr"]
    assert list(rows_of(drop=("dcr", "rcs"))) == ["full", "only vlq"]
    assert list(rows_of(keep=("vlq", "rcs"))) == ["full", "without dcr"]
    assert list(rows_of(add_one_in=True)) == ["full", "all off", "only vlq", "only rcs", "only dcr"]
    assert list(rows_of(drop=("vlq", "rcs", "dcr"))) == ["full", "all off"]
    assert set(rows_of(drop=("dcr",), leave_one_out=True)) == set(rows_of(leave_one_out=True))  # no row twice
    subsets = {frozenset(on(row)) for row in rows_of(every=True).values()}
    assert subsets == {frozenset(s) for n in range(4) for s in itertools.combinations(("vlq", "rcs", "dcr"), n)}


def test_the_rows_of_the_paper() -> None:
    """Table 3 of arXiv 2511.06863: rFID on ImageNet and BraTS24."""
    table = {
        "Baseline": (set(), 8.02, 10.47),
        "M1": ({"vlq"}, 2.84, 5.12),
        "M2": ({"vlq", "rcs"}, 1.92, 2.98),
        "M3": ({"vlq", "dcr"}, 2.18, 3.26),
        "Full": ({"vlq", "rcs", "dcr"}, 1.14, 2.50),
    }
    rows = rows_of(rows="paper")
    found = {row.paper_row: (on(row), *row.published["rfid"].values()) for row in rows.values()}
    assert found == table
    assert list(found) == list(table)
    assert rows_of(drop=("vlq",))["without vlq"].paper_row is None
    assert rows_of(drop=("dcr",))["without dcr"].paper_row == "M2"
    assert rows_of("vaevq@paper", drop=("dcr",))["without dcr"].paper_row == "M2"
    assert rows_of("vaevq@released", drop=("rcs",))["without rcs"].paper_row is None  # another method in effect


def test_rows_are_cells_of_run_and_off_is_off_in_the_parameters(tmp_path: Path) -> None:
    request = AblateRequest(run=RunRequest(("vaevq",), "photos", runs=tmp_path), every=True)
    rows, run, _ = make_rows(request)
    ablated = {cell.label: cell for cell in make_plan(run, ("psnr",)).cells}
    alone = make_plan(resolve(RunRequest(("vaevq",), "photos", runs=tmp_path)), ("psnr",)).cells[0]
    assert ablated["vaevq"].spec == alone.spec
    assert ablated["vaevq"].folder == alone.folder
    for row in rows:
        spec = ablated[row.variant.label].spec
        assert spec["components"] == row.components
        tokenizer = build_tokenizer("vaevq", spec["config"], recipe(), 0)
        assert tokenizer.quantizer.in_channels == (128 if row.components["vlq"] else 64)
        baseline = build_tokenizer("vqgan", {"dim": 64, "codebook_size": 512}, recipe(), 0)
        if not row.components["vlq"]:
            assert (
                tokenizer.parameter_counts()["projections"]
                == (
                    build_tokenizer("vqgan", {"dim": 64, "codebook_size": 512}, recipe(), 0).parameter_counts()[
                        "projections"
                    ]
                )
            )
        assert tokenizer.parameter_counts()["encoder"] == baseline.parameter_counts()["encoder"]


SLOPPY = """
from dataclasses import dataclass, field
from vqbench.methods.vqgan import VQGAN
from vqbench.registry import METHODS


@METHODS.register("sloppy")
class Sloppy(VQGAN):
    @dataclass(frozen=True)
    class Config(VQGAN.Config):
        extra: bool = field(default=True, metadata={"component": "extra"})
        weight: float = field(default=1, metadata={"part_of": "extra"})
        limit: float = field(default=None, metadata={"part_of": "extra"})
        late: str = field(default="new", metadata={"part_of": "extra", "added_later": True, "first_default": "old"})
"""


def test_what_is_idle_is_stored_as_it_first_was_and_not_as_its_annotation_says(tmp_path: Path) -> None:
    (tmp_path / "sloppy.py").write_text(SLOPPY)
    METHODS.add_file(tmp_path / "sloppy.py")
    off = choose_method(Variant("sloppy", frozenset({"extra"}), "off"), load_recipe("tiny"), {}).config
    assert (off["weight"], type(off["weight"]), off["limit"]) == (1, int, None)
    assert "late" not in off
    assert choose_method("sloppy", load_recipe("tiny"), {}).config["late"] == "new"


def test_settings_of_a_component_go_with_it() -> None:
    """A row without the component is the same cell whatever its settings were, and they are refused where idle."""
    run = RunRequest(("vaevq",), "photos", settings=("vaevq.kl_weight=0.01", "vaevq.dcr_weight=0.5"))
    plain = RunRequest(("vaevq",), "photos")
    specs, unset = (
        {c.label: c.spec["config"] for c in make_plan(make_rows(AblateRequest(run=r, every=True))[1], ("psnr",)).cells}
        for r in (run, plain)
    )
    assert specs["vaevq"]["kl_weight"] == 0.01
    assert specs["vaevq only rcs"] == unset["vaevq only rcs"]
    assert specs["vaevq without rcs"] != unset["vaevq without rcs"]
    with pytest.raises(UsageError, match=r"vaevq.dcr_weight has no effect here: its component dcr is off"):
        rows_of(settings=("vaevq.dcr=false", "vaevq.dcr_weight=0.5"))


@pytest.mark.parametrize(
    ("method", "asked", "what", "hint"),
    [
        ("vaevq", {"drop": ("rsc",)}, "unknown component of vaevq 'rsc'; did you mean rcs", "vqbench show vaevq"),
        ("vaevq", {"keep": ()}, "--keep names no component", "all are dropped by --drop vlq,rcs,dcr"),
        ("vaevq", {"drop": ()}, "--drop names no component", "vlq, rcs, dcr"),
        ("vaevq", {"keep": ("vlq", "rcs", "dcr")}, "every row would be the full vaevq", "--drop one of"),
        ("fsq", {}, "fsq declares no components", "vaevq"),
        ("vaevq@released", {"drop": ("dcr",)}, "dcr is off in vaevq@released already", "leave it out of --drop"),
        (
            "vaevq@released",
            {"rows": "paper"},
            "vaevq@released is not the form of vaevq whose",
            "ablate vaevq --rows paper",
        ),
        ("vaevq", {"rows": "papers"}, "unknown kind of rows 'papers'; did you mean paper", "--rows paper"),
        ("two_parts", {"rows": "paper"}, "two_parts declares no rows of its paper", "--all"),
        (
            "two_parts",
            {"drop": ("pull",)},
            "'without pull' means nothing: two_parts: wide codes drift",
            "show two_parts",
        ),
    ],
)
def test_what_cannot_be_switched(method: str, asked: Any, what: str, hint: str, plugin: Path) -> None:
    with pytest.raises(UsageError) as error:
        rows_of(method, **asked)
    assert what in error.value.what
    assert hint in error.value.hint


def test_a_combination_that_follows_from_a_rule_and_means_nothing_is_left_out_aloud(plugin: Path) -> None:
    rows, _, said = make_rows(AblateRequest(run=RunRequest(("two_parts",), "photos"), every=True))
    assert [row.name for row in rows] == ["full", "without wide", "all off"]
    assert len(said) == 1
    assert "without pull is left out: two_parts: wide codes drift away without pull" in said[0]


def test_everything_off_trains_as_vqgan_to_the_last_bit(tmp_path: Path) -> None:
    """20 real steps: backbone, optimiser, GAN and all; then every weight is equal."""
    r = recipe(images=160, gan="hinge", gan_start_images=40, discriminator_layers=1)
    off = {"vlq": False, "rcs": False, "dcr": False, "codebook_size": 16, "dim": 8, "init": "uniform"}
    ours = fit(r, tmp_path / "ours", "vaevq", off)
    baseline = fit(r, tmp_path / "baseline", "vqgan", {"codebook_size": 16, "dim": 8})
    assert ours.images_seen == baseline.images_seen == 20 * r.batch_size
    assert same(ours.tokenizer, baseline.tokenizer)
    shifted = fit(r, tmp_path / "shifted", "vaevq", {**off, "beta": 0.26})
    assert not same(shifted.tokenizer, baseline.tokenizer)


# what is said of stored cells

SEEDS, IMAGES = (0, 1, 2), 30


def stored(root: Path, label: str, seed: int, shift: float, images: int = IMAGES) -> dict[str, Any]:
    """A finished cell on disk with the scores that a row of `run --json` has."""
    draw = np.random.default_rng(seed)
    image, noise = draw.normal(20, 3, images), np.random.default_rng(zlib.crc32(f"{label} {seed}".encode()))
    psnr = image + shift + noise.normal(0, 0.1, images)
    last = 5 if shift else 7
    indices = noise.integers(0, last, (images, 4, 1)).astype(np.uint8)
    indices[1 if shift else 0, 0, 0] = last  # a code that one image alone has
    histogram = np.bincount(indices.ravel(), minlength=8)[None]
    scores = {"psnr": psnr.mean(), "usage": float((histogram > 0).mean()), "rfid": 50 + 10 * shift + noise.normal()}
    arrays = {"codes.npz": {"histogram": histogram, "indices": indices}}
    folder = write_cell(root / "x", label, seed, scores, images={"psnr": psnr}, arrays=arrays, protocol="p")
    return {
        "cell": folder.name, "method": label, "seed": seed, "state": "done", "protocol": "p", "scores": scores,
        "params": {"total": 10}, "train_images_per_s": 1.0, "path": str(folder), "error": None, "collapse": None,
    }  # fmt: skip


def test_one_image_has_no_interval_and_no_row_no_table(tmp_path: Path) -> None:
    rows, *_ = make_rows(AblateRequest(run=RunRequest(("vaevq",), "photos"), drop=("dcr",)))
    cells = [stored(tmp_path, row.variant.label, 0, 0.0, images=1) for row in rows]
    found = objects(analyse(rows, cells, True))[1]
    assert found["delta_low"] == {"rfid": None, "psnr": None, "usage": None}
    assert markdown(analyse(rows, [], True), "p").startswith("- protocol p")  # interrupted in its first cell


def test_rfid_of_one_seed_is_resampled_over_images(tmp_path: Path) -> None:
    rows, *_ = make_rows(AblateRequest(run=RunRequest(("vaevq",), "photos"), drop=("dcr",)))
    cells = [stored(tmp_path, row.variant.label, 0, 0.0) for row in rows]
    draw = np.random.default_rng(0)
    reference = draw.normal(size=(IMAGES, 6))
    np.savez(tmp_path / "x" / "reference-p.npz", features=reference)
    for cell, noise in zip(cells, (0.1, 2.0), strict=True):
        features = reference + noise * draw.normal(size=reference.shape)
        np.savez(Path(cell["path"]) / "features.npz", features=features)
    found = objects(analyse(rows, cells, True))[1]
    assert found["interval_over"]["rfid"] == "images"
    half = (found["delta_high"]["rfid"] - found["delta_low"]["rfid"]) / 2
    assert half > 0
    assert found["delta"]["rfid"] == pytest.approx(cells[1]["scores"]["rfid"] - cells[0]["scores"]["rfid"])


@pytest.mark.parametrize("seeds", [SEEDS, (0,)])
def test_differences_to_full(seeds: tuple[int, ...], tmp_path: Path) -> None:
    rows, *_ = make_rows(AblateRequest(run=RunRequest(("vaevq",), "photos"), drop=("dcr",), leave_one_out=True))
    shifts = {"full": 0.0, "without vlq": -2.0, "without rcs": 0.0, "without dcr": 1.0}
    cells = [stored(tmp_path, row.variant.label, seed, shifts[row.name]) for row in rows for seed in seeds]
    found = {o["row"]: o for o in objects(analyse(rows, cells, True))}
    assert found["full"]["delta"] == {}
    score = {(c["method"], c["seed"]): c["scores"] for c in cells}
    for row in rows[1:]:
        o, label = found[row.name], row.variant.label
        for metric in ("psnr", "rfid", "usage"):
            pairs = [(score["vaevq", s][metric], score[label, s][metric]) for s in seeds]
            assert o["delta"][metric] == pytest.approx(np.mean([b - a for a, b in pairs]))
        assert o["interval_over"]["psnr"] == ("seeds and images" if len(seeds) > 1 else "images")
        assert o["delta_low"]["psnr"] < o["delta"]["psnr"] < o["delta_high"]["psnr"]
        if len(seeds) > 1:
            before, after = zip(*((score["vaevq", s]["rfid"], score[label, s]["rfid"]) for s in seeds), strict=True)
            interval = scipy.stats.ttest_rel(after, before).confidence_interval()
            assert (o["delta_low"]["rfid"], o["delta_high"]["rfid"]) == pytest.approx(tuple(interval))
            assert o["interval_over"]["rfid"] == "seeds"
        else:
            assert o["delta_low"]["rfid"] is None  # these cells kept no features
            assert o["interval_over"]["usage"] == "images"
    assert found["without dcr"]["published"] == {"rfid": {"ImageNet 256 px": 1.92, "BraTS24": 2.98}}


def test_the_tables_say_what_they_must(tmp_path: Path) -> None:
    rows, *_ = make_rows(AblateRequest(run=RunRequest(("vaevq",), "photos")))
    cells = [stored(tmp_path, row.variant.label, 0, -2.0 if row.name == "without rcs" else 0.0) for row in rows]
    cells[-1] = {**cells[-1], "collapse": {"kind": "collapsed", "reason": "perplexity 1.2", "images": 4096}}
    analysed = analyse(rows, cells, True)
    scores = {line[0]: line for line in score_table(analysed).rows}
    assert list(scores) == ["full", "without vlq †", "M3", "M2 (collapsed)"]
    assert scores["M3"][1].split() == ["✓", "✗", "✓"]
    assert "2.18/3.26" in scores["M3"]
    assert "–" in scores["without vlq †"]
    verdicts = {(line[0], line[1]): line[-1] for line in delta_table(analysed).rows}
    assert verdicts["M3", "rFID ↓"] == "–"
    assert "worse" in {line[-1] for line in delta_table(analysed).rows if line[1] == "PSNR ↑"}
    said = "\n".join(notes(analysed))
    for text in ("n = 1: intervals are over the validation images alone", "† not a row of the paper", "BraTS24",
                 "s0: collapsed after 4,096 images: perplexity 1.2"):  # fmt: skip
        assert text in said
    page = markdown(analysed, "photos-32-v1")
    assert all(line.count("|") == page.splitlines()[0].count("|") for line in page.splitlines()[:6])


# the command

METRICS = "psnr,ssim,usage,perplexity"


def test_the_command_on_a_plugin_with_components_of_its_own(tmp_path: Path, plugin: Path) -> None:
    images = write_images(tmp_path / "images", 60)
    arguments = [
        "ablate", "two_parts", "--drop", "wide", "--plugin", plugin, "--dataset", f"folder:{images}", "--images", "32",
        "--metrics", METRICS, "--runs", tmp_path / "runs", "--name", "x", *settings(),
    ]  # fmt: skip
    first = typed(*arguments, "--json")
    assert first.code == 0, first.err
    full, without = first.objects
    assert (full["row"], without["row"]) == ("full", "without wide")
    assert without["components"] == {"pull": True, "wide": False}
    for metric in METRICS.split(","):
        expected = without["scores"][metric] - full["scores"][metric]
        assert without["delta"][metric] == pytest.approx(expected)
        assert without["delta_low"][metric] <= without["delta"][metric] <= without["delta_high"][metric]
        assert 0 <= without["p"][metric] <= 1
    shown = typed(*arguments)
    assert max(len(line) for line in shown.out.splitlines() if not line.startswith("results")) <= 100
    assert [line.split()[0] for line in shown.out.splitlines() if "✓" in line] == ["full", "without"]
    assert shown.err.count("starts") == 0
    _check_mlflow(tmp_path / "runs")


def _check_mlflow(runs: Path) -> None:
    from vqbench.tracking.mirror import Mirror

    client = Mirror(runs).client
    experiment = client.get_experiment_by_name("x").experiment_id
    found = client.search_runs([experiment])
    (parent,) = (run for run in found if run.data.tags.get("command") == "ablate")  # the second time made no other
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.data.tags["component.wide"] for run in children} == {"on", "off"}
    assert all(run.data.tags["collapse"] == "no" for run in children)
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"0001.md", "0001.jsonl", "0001.png"} <= names
    lines = (runs / "x" / "commands" / "0001.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == ["full", "without wide"]


def test_python_gives_a_frame_and_refuses_as_the_command_does(plugin: Path) -> None:
    import vqbench as package

    with pytest.raises(UsageError, match="declares no components"):
        package.ablate("fsq", "photos", track=False)
