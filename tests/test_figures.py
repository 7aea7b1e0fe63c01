"""Figures of a report: what their artists carry, which files are written, and what a cell keeps for them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from helpers.commands import settings, typed
from helpers.stored import write_cell, write_failure
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from PIL import Image

from vqbench.errors import UsageError
from vqbench.reports.bd_rate import bd_rate
from vqbench.reports.experiment import load_experiment
from vqbench.reports.figures import draw_code_histogram, draw_figures, pictures, style
from vqbench.reports.figures.budget import quality_by_budget
from vqbench.reports.figures.codes import code_frequencies
from vqbench.reports.figures.forest import ablation_forests, comparison
from vqbench.reports.figures.rate import rate_distortion
from vqbench.reports.figures.reconstructions import reconstruction_sheets
from vqbench.reports.figures.style import short_labels, without_math
from vqbench.reports.figures.training import collapses, training_curves
from vqbench.reports.pairs import difference
from vqbench.reports.report import Report, ReportSection, build_report
from vqbench.results.cell_folder import CellFolder
from vqbench.results.kept_images import shown_positions

N, SIDE = 12, 32  # the validation images of the real cell


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The folder of one cell that was really trained."""
    runs = tmp_path_factory.mktemp("real")
    metrics = "psnr,usage,perplexity,bits_per_token,bpp,bpp_entropy,tokens"
    answer = typed(
        "run", "--methods", "vqgan", "--dataset", f"folder:{images}", "--images", "16", "--runs", runs, "--name", "x",
        "--metrics", metrics, "--json", *settings("log_images=8"),
    )  # fmt: skip
    assert answer.code == 0, answer.err
    return Path(answer.objects[0]["path"])


@dataclass
class Store:
    """Writes cells of given scores with the codes, curves and picture of a real one."""

    real: Path
    runs: Path

    def cell(
        self, method: str, seed: int = 0, *, config: dict[str, Any] | None = None, images: int = 16,
        components: dict[str, bool] | None = None, scores: dict[str, float] | None = None, psnr: Any = None,
        protocol: str = "p1", failed: bool = False, hours: float = 1.0, pixels: Any = None,
        bare: bool = False,
    ) -> Path:  # fmt: skip
        spec, result = (json.loads((self.real / name).read_text()) for name in ("spec.json", "result.json"))
        more: dict[str, Any] = {
            "label": method, "config": {**spec["config"], **(config or {}), **(components or {})},
            "components": components or {}, "recipe": {**spec["recipe"], "images": images}, "n_images": N,
            "protocol": protocol,
        }  # fmt: skip
        if failed:
            return write_failure(self.runs / "x", method, seed, "it broke", **more)
        values = np.full(N, 20.0) if psnr is None else np.asarray(psnr, float)
        whole = {**result["scores"], "psnr": float(values.mean()), **(scores or {})}
        arrays = {} if pixels is None else {"reconstructions.npz": {"positions": np.arange(N), "pixels": pixels}}
        folder = write_cell(
            self.runs / "x", method, seed, whole, images={} if bare else {"psnr": values}, arrays=arrays,
            result={"scores": whole, "train_seconds": 3600 * hours, "device_name": "a CPU"}, **more,
        )  # fmt: skip
        (folder / "checkpoints").mkdir()
        for name in () if bare else ("codes.npz", "metrics.jsonl", "recon.png"):
            shutil.copy(self.real / name, folder / name)
        return folder

    def report(self) -> Report:
        return build_report(load_experiment(self.runs, "x"))

    def section(self) -> ReportSection:
        (section,) = self.report().sections
        return section


@pytest.fixture
def store(real: Path, tmp_path: Path) -> Store:
    return Store(real, tmp_path)


def lines_of(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Label → (x, y) of the points with intervals in a panel."""
    return {c.get_label(): tuple(np.asarray(v).tolist() for v in c.lines[0].get_data()) for c in axes.containers}


# what a cell keeps


def test_kept_reconstructions_are_what_the_stored_indices_decode_to(real: Path) -> None:
    torch = pytest.importorskip("torch")
    from vqbench import load
    from vqbench.metrics.values import to_8_bits
    from vqbench.precision import plain_float32

    kept, images = np.load(real / "reconstructions.npz"), np.load(CellFolder(real).validation_images)
    assert kept["positions"].tolist() == images["positions"].tolist() == list(range(N))
    assert (kept["pixels"].shape, kept["pixels"].dtype) == ((N, SIDE, SIDE, 3), np.uint8)
    tokenizer = load(real).eval()
    indices = np.load(real / "codes.npz")["indices"]
    grid = round(indices.shape[1] ** 0.5)
    with torch.inference_mode(), plain_float32(torch.device("cpu")):
        decoded = tokenizer.decode(torch.from_numpy(indices.astype(np.int64)).reshape(N, grid, grid))
    assert np.array_equal(to_8_bits(decoded).permute(0, 2, 3, 1).numpy(), kept["pixels"])
    picture = np.asarray(Image.open(real / "recon.png"))
    for row, pixels in enumerate((images["pixels"], kept["pixels"])):
        shown = np.concatenate(list(pixels[shown_positions(N)]), axis=1)
        assert np.array_equal(picture[row * SIDE : (row + 1) * SIDE], shown)
    psnr = pd.read_parquet(real / "per_image.parquet").psnr
    mse = np.square(images["pixels"].astype(float) - kept["pixels"]).mean((1, 2, 3))
    assert psnr.tolist() == pytest.approx((10 * np.log10(255**2 / mse)).tolist())


# Bjøntegaard's delta rate

curve = st.lists(st.tuples(st.floats(0.05, 2), st.floats(0.1, 5)), min_size=4, max_size=8).map(
    lambda steps: (np.cumsum([a for a, _ in steps]), 20 + np.cumsum([b for _, b in steps]))
)


@given(curve, st.floats(0.2, 5))
@hypothesis_settings(max_examples=50, deadline=None)
def test_a_constant_factor_in_the_rate_is_the_bd_rate(points: Any, factor: float) -> None:
    rate, quality = points
    assert bd_rate(rate, quality, factor * rate, quality) == pytest.approx(100 * (factor - 1), abs=1e-6)
    order = np.random.default_rng(0).permutation(len(rate))
    assert bd_rate(rate, quality, factor * rate[order], quality[order]) == pytest.approx(100 * (factor - 1), abs=1e-6)


def hermite(q: Any, log: Any, low: float, high: float) -> float:
    """∫ of the monotone piecewise cubic (Fritsch and Carlson, 1980) through (q, log), a polynomial at a time."""
    h, slope = np.diff(q), np.diff(log) / np.diff(q)
    inner = [
        0.0 if a * b <= 0 else (2 * h1 + h0 + h1 + 2 * h0) / ((2 * h1 + h0) / a + (h1 + 2 * h0) / b)
        for a, b, h0, h1 in zip(slope, slope[1:], h, h[1:], strict=False)
    ]

    def end(h0: float, h1: float, s0: float, s1: float) -> float:
        d = ((2 * h0 + h1) * s0 - h0 * s1) / (h0 + h1)
        return 0.0 if d * s0 <= 0 else 3 * s0 if s0 * s1 <= 0 and abs(d) > abs(3 * s0) else d

    d = [end(h[0], h[1], slope[0], slope[1]), *inner, end(h[-1], h[-2], slope[-1], slope[-2])]
    area = 0.0
    for i in range(len(h)):
        c, b = (3 * slope[i] - 2 * d[i] - d[i + 1]) / h[i], (d[i] + d[i + 1] - 2 * slope[i]) / h[i] ** 2
        piece = Polynomial([log[i], d[i], c, b]).integ()
        start, stop = max(low, q[i]) - q[i], min(high, q[i + 1]) - q[i]
        area += piece(stop) - piece(start) if stop > start else 0.0
    return area


@given(curve, curve)
@hypothesis_settings(max_examples=80, deadline=None)
def test_bd_rate_against_polynomials_integrated_with_numpy(one: Any, other: Any) -> None:
    low, high = max(one[1][0], other[1][0]), min(one[1][-1], other[1][-1])
    found = bd_rate(*one, *other)
    if low >= high:
        assert found is None
        return
    areas = [hermite(q, np.log(r), low, high) for r, q in (one, other)]
    assert found == pytest.approx(100 * (np.exp((areas[1] - areas[0]) / (high - low)) - 1), rel=1e-6, abs=1e-6)


def test_bd_rate_of_smooth_curves_is_that_of_one_cubic() -> None:
    quality = np.linspace(28, 40, 9)
    logs = [np.polynomial.polynomial.polyval((quality - 34) / 6, c) for c in ([0.1, 0.8, 0.1, 0.05], [0, 0.9, 0.05, 0])]
    fits = [np.polyfit(quality, log, 3) for log in logs]
    area = np.diff([np.diff(np.polyval(np.polyint(fit), [28, 40]))[0] for fit in fits])[0] / 12
    assert bd_rate(np.exp(logs[0]), quality, np.exp(logs[1]), quality) == pytest.approx(100 * np.expm1(area), abs=0.1)


def test_bd_rate_is_none_where_it_means_nothing() -> None:
    rate, quality = [1.0, 2.0, 3.0, 4.0], [30.0, 31.0, 32.0, 33.0]
    assert bd_rate(rate, quality, rate[:3], quality[:3]) is None
    assert bd_rate(rate, quality, rate, [30.0, 32.0, 31.0, 33.0]) is None
    assert bd_rate(rate, quality, rate, [40.0, 41.0, 42.0, 43.0]) is None
    assert bd_rate(rate, quality, [1.0, 1.0, 2.0, 3.0], quality) is None
    for wrong in ([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, float("nan"), 3.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="expected"):
            bd_rate(rate, quality, wrong, quality)


# curves


def rate_scores(bits: int, psnr: float) -> dict[str, Any]:
    return {"bpp": bits / 16, "bpp_entropy": bits / 20, "bits_per_token": bits, "rfid": 400 - psnr, "psnr": psnr}


def test_whoever_is_killed_while_a_figure_is_drawn_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "codes.npz", histogram=np.arange(16).reshape(1, 16))
    seen: list[list[str]] = []
    draw = style._print

    def slowly(*args: Any) -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        draw(*args)
        seen.append(sorted(path.name for path in tmp_path.iterdir()))

    monkeypatch.setattr(style, "_print", slowly)
    draw_code_histogram(tmp_path / "codes.npz", tmp_path / "codes.png")
    assert seen == [["codes.npz"], ["codes.npz"]]
    assert Image.open(tmp_path / "codes.png").size[0] > 100


def test_groups_that_differ_in_codebook_size_are_one_rate_distortion_curve(store: Store) -> None:
    for seed in (0, 1):
        for bits in (4, 5, 6, 8):
            noise = 0.1 * (seed - 0.5)
            for method, shift in (("vqgan", 0.0), ("mine", 1.0)):
                config = {"codebook_size": 2**bits, "levels": [2] * bits, "lr_like": 0.5}
                store.cell(method, seed, config=config, scores=rate_scores(bits, 18 + bits / 2 + shift + noise))
        config = {"codebook_size": 64, "levels": [4, 4, 4], "lr_like": 0.25}
        store.cell("vqgan", seed, config=config, scores=rate_scores(6, 19.0))
    picture = rate_distortion(store.section())
    assert picture is not None
    panels = {(a.get_subplotspec().rowspan.start, a.get_subplotspec().colspan.start): a for a in picture.figure.axes}
    assert len(panels) == 4
    psnr = lines_of(panels[1, 0])
    assert sorted(len(x) for x, _ in psnr.values()) == [1, 4, 4]
    (mine,) = (label for label in psnr if label.startswith("mine"))
    assert psnr[mine][1] == pytest.approx([21.0, 21.5, 22.0, 23.0])
    assert np.diff(psnr[mine][0]) == pytest.approx([1 / 16, 1 / 16, 2 / 16])
    coded = lines_of(panels[1, 1])[mine]
    assert coded[1] == psnr[mine][1]
    assert coded[0] == pytest.approx([4 / 20, 5 / 20, 6 / 20, 8 / 20], abs=0.01)  # those at one rate stand side by side
    bars = next(c for c in panels[1, 0].containers if c.get_label() == mine).lines[2][-1].get_segments()
    half = 12.706 * np.std([-0.05, 0.05], ddof=1) / 2**0.5
    assert [abs(s[1][1] - s[0][1]) / 2 for s in bars] == pytest.approx([half] * 4, rel=1e-3)
    expected = bd_rate([4, 5, 6, 8], [21, 21.5, 22, 23], [4, 5, 6, 8], [20, 20.5, 21, 22])
    assert f"{expected:+.1f} %" in picture.caption
    assert "against mine" in picture.caption
    assert "N = 12 validation images; mean over 2 seeds" in picture.caption
    assert "lr_like=0.25" in picture.caption
    assert all("bit/pixel" in panels[1, i].get_xlabel() for i in (0, 1))
    assert "dB" in panels[1, 0].get_ylabel()


def test_groups_at_several_budgets_are_curves_and_hours_count_devices(store: Store) -> None:
    for images, psnr in ((100, 18.0), (400, 20.0), (1600, 21.0)):
        store.cell("vqgan", images=images, psnr=[psnr] * N, hours=images / 100)
    store.cell("other", images=400, psnr=[19.0] * N, hours=3.0)
    picture = quality_by_budget(store.section())
    assert picture is not None
    images_axes, hours_axes = picture.figure.axes
    assert lines_of(images_axes)["vqgan"][1] == pytest.approx([18, 20, 21])
    assert lines_of(images_axes)["vqgan"][0] == pytest.approx([100, 400, 1600], rel=0.05)  # beside the other's 400
    assert lines_of(hours_axes)["vqgan"] == ([1, 4, 16], pytest.approx([18, 20, 21]))
    assert lines_of(hours_axes)["other"][1] == pytest.approx([19])
    assert hours_axes.get_xlabel() == "CPU-hours (a CPU)"
    assert images_axes.get_xlabel() == "training images"


def test_one_budget_is_said_and_not_drawn(store: Store) -> None:
    folder = store.cell("vqgan")
    result = json.loads((folder / "result.json").read_text())
    result |= {"device": "cuda:0", "device_name": "A GPU", "devices": 2, "train_seconds": 1800}
    (folder / "result.json").write_text(json.dumps(result))
    picture = quality_by_budget(store.section())
    assert picture is not None
    (axes,) = picture.figure.axes
    assert axes.get_xlabel() == "GPU-hours (A GPU)"
    assert lines_of(axes)["vqgan"][0] == [1.0]
    assert "trained on 16 images" in picture.caption


def test_whatever_compares_images_has_its_panels_and_codes_have_none(store: Store) -> None:
    def drawn() -> set[str]:
        found = [quality_by_budget(store.section()), rate_distortion(store.section())]
        return {picture.caption.partition(" against")[0] for picture in found if picture}

    store.cell("vqgan", scores={"ssim": 0.5, "usage": 0.9})
    assert drawn() == {"PSNR and SSIM"}
    store.cell("fsq", scores={"ssim": 0.5, "kid": 0.1, "rfid": 50.0, "lpips_alex": 0.2})
    store.cell("vqgan", 1, scores={"ssim": 0.5, "kid": 0.1, "rfid": 50.0, "lpips_alex": 0.2})
    assert drawn() == {"rFID and PSNR"}  # KID, which tables show on request, is the same distance
    store.cell("sqvae", scores={"rfid": 50.0, "inception_recall": 0.3})
    assert drawn() == {"rFID and PSNR"}  # one group that has more leaves the others in
    picture = quality_by_budget(store.section())
    assert picture is not None
    assert {*lines_of(picture.figure.axes[0])} == {"fsq", "sqvae"}  # a seed of vqgan has no rFID


def test_a_collapse_is_drawn_with_its_curves_and_the_moment(store: Store, tmp_path: Path) -> None:
    curves = json.loads((Path(__file__).parent / "golden" / "vaevq_curves.json").read_text())
    folders = {name: store.cell(name, images=20_000) for name in ("vlq_rcs_dcr", "vlq_rcs", "baseline")}
    for name, folder in folders.items():
        columns = {"images": curves["images"], **curves["cells"][name]}
        points = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
        result = json.loads((folder / "result.json").read_text())
        flag = {"kind": "collapsed", "reason": "behind", "images": 14_336} if name != "vlq_rcs" else None
        (folder / "result.json").write_text(json.dumps(result | {"collapse": flag}))
    bare = store.cell("bare", bare=True)  # without curves, as a fetched cell may be
    (bare / "result.json").write_text(json.dumps(json.loads((folder / "result.json").read_text())))
    drawn = {picture.cell: picture for picture in collapses(store.section())}
    assert set(drawn) == {folders[name].name for name in ("vlq_rcs_dcr", "baseline")}
    for name, paths in (("vlq_rcs_dcr", ["codes", "continuous path"]), ("baseline", ["codes"])):
        loss, perplexity = drawn[folders[name].name].figure.axes
        *lines, moment = loss.lines
        assert [line.get_label() for line in lines] == paths
        for line, key in zip(lines, ("loss/pixel", "loss/continuous_pixel"), strict=False):
            assert line.get_ydata().tolist() == curves["cells"][name][key]
        assert perplexity.lines[0].get_ydata().tolist() == curves["cells"][name]["perplexity"]
        assert list(moment.get_xdata()) == [14_336, 14_336]
    cell = folders["vlq_rcs_dcr"].name
    (shown,) = (figure for figure in draw_figures(store.report(), tmp_path / "f", ("svg",)) if figure.cell == cell)
    assert shown.files[0].stat().st_size < 100_000


def test_training_curves_are_means_with_a_band_over_seeds(store: Store) -> None:
    for seed, usage in ((0, (0.2, 0.4)), (1, (0.4, 0.8))):
        lines = [{"images": 8 * (i + 1), "usage": u, "perplexity": 3.0, "psnr": 10.0 + i} for i, u in enumerate(usage)]
        lines[1] |= {"usage_100k": 0.5}
        text = "\n".join(map(json.dumps, lines)) + '\n{"images": 24, "usa'
        (store.cell("vqgan", seed) / "metrics.jsonl").write_text(text)
    picture = training_curves(store.section())
    assert picture is not None
    usage, _, _, window = picture.figure.axes
    assert usage.get_title().startswith("usage")
    assert usage.lines[0].get_xdata().tolist() == [8, 16]
    assert usage.lines[0].get_ydata().tolist() == pytest.approx([0.3, 0.6])
    band = usage.collections[0].get_paths()[0].vertices
    assert {(x, round(y, 6)) for x, y in band.tolist()} >= {(8, 0.2), (8, 0.4), (16, 0.4), (16, 0.8)}
    assert window.lines[0].get_xdata().tolist() == [16]
    assert all(axes.get_xlabel() == "training images" and axes.get_ylabel() for axes in picture.figure.axes)


def test_code_frequencies_are_sorted_shares(store: Store) -> None:
    for seed, counts in ((0, [1, 0, 3, 0]), (1, [0, 2, 0, 2])):
        folder = store.cell("vqgan", seed)
        np.savez(folder / "codes.npz", histogram=np.array([counts]), indices=np.zeros((1, 4, 1), np.uint8))
    picture = code_frequencies(store.section())
    assert picture is not None
    (axes,) = picture.figure.axes
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    assert axes.lines[0].get_ydata()[:2].tolist() == pytest.approx([(3 / 4 + 1 / 2) / 2, (1 / 4 + 1 / 2) / 2])
    assert np.isnan(axes.lines[0].get_ydata()[2:]).all()


def test_a_large_codebook_is_drawn_with_few_points(store: Store) -> None:
    folder = store.cell("vqgan")
    np.savez(folder / "codes.npz", histogram=np.arange(65536)[None])
    picture = code_frequencies(store.section())
    assert picture is not None
    ranks = picture.figure.axes[0].lines[0].get_xdata()
    assert (len(ranks) <= 200, ranks[0], ranks[-1]) == (True, 1, 65536)


# differences


def test_an_ablation_shows_what_the_pairs_say(store: Store) -> None:
    draw = np.random.default_rng(0)
    image = draw.normal(20, 2, N)
    for seed in (0, 1, 2):
        for on, shift in (((True, True), 0.0), ((False, True), -1.0), ((False, False), -2.0)):
            psnr = image + shift + draw.normal(0, 0.3, N)
            store.cell("vqgan", seed, components=dict(zip("ab", on, strict=True)), psnr=psnr)
        store.cell("vqgan", seed, components={"a": False, "b": True}, config={"beta": 9.0}, psnr=image)
    section = store.section()
    (picture,) = ablation_forests(section)
    axes = next(a for a in picture.figure.axes if a.get_xlabel() == "Δ PSNR (dB)")
    fewer = {"without a": {"a": False, "b": True}, "all off": {"a": False, "b": False}}
    groups = [group for group in section.rows if "beta=9" not in group.label]
    full = next(g for g in groups if all(g.components.values()))
    assert {c.get_label() for c in axes.containers} == set(fewer)
    for container in axes.containers:
        other = next(g for g in groups if g.components == fewer[container.get_label()])
        found = difference(full.finished, other.finished, "psnr")
        assert found is not None
        assert container.lines[0].get_xdata()[0] == pytest.approx(found.delta)
        (segment,) = container.lines[2][0].get_segments()
        assert segment[:, 0].tolist() == pytest.approx([found.low, found.high])
    assert axes.get_title(loc="right") == "better →"
    assert "3 seeds, intervals over seeds and images" in picture.caption


def test_the_comparison_starts_at_the_best(store: Store) -> None:
    draw = np.random.default_rng(0)
    image = draw.normal(20, 2, N)
    for seed in (0, 1, 2):
        for method, shift in (("two", 0.0), ("one", -3.0), ("three", -0.001)):
            psnr = image + shift + draw.normal(0, 0.2, N)
            store.cell(method, seed, psnr=psnr, scores={"rfid": 50 - shift + 0.01 * draw.normal()})
    section = store.section()
    picture = comparison(section)
    assert picture is not None
    psnr = next(a for a in picture.figure.axes if "PSNR" in a.get_xlabel())
    found = section.peers[0].comparisons["psnr"]
    deltas = {c.get_label(): float(c.lines[0].get_xdata()[0]) for c in psnr.containers}
    solid = {c.get_label() for c in psnr.containers if c.lines[0].get_markerfacecolor() != "white"}
    assert found.best not in deltas
    assert deltas["one"] == pytest.approx(-3, abs=0.3)
    assert solid == {"one", "two", "three"} - found.unseparated == {"one"}


# the images


def planted(store: Store) -> list[Any]:
    """Two groups of two seeds, which differ most on image 5 (mean over seeds), then 7; one seed alone on image 2."""
    draw = np.random.default_rng(1)
    pixels = [draw.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(4)]
    values = np.full((4, N), 20.0)
    values[2:, 5], values[2:, 7], values[0, 2], values[1, 2] = 26, 25, 28, 12
    for i, (method, seed) in enumerate((("one", 0), ("one", 1), ("two", 0), ("two", 1))):
        store.cell(method, seed, psnr=values[i], pixels=pixels[i])
    originals = draw.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(store.runs / "x" / "images-p1.npz", positions=np.arange(N), pixels=originals)
    return [originals, pixels[0], pixels[2]]


def test_the_second_sheet_shows_the_images_on_which_groups_differ_most(store: Store) -> None:
    originals, one, two = planted(store)
    spread, apart = reconstruction_sheets(store.section(), most=2)
    assert spread.ids == ("image 0", "image 6")
    assert np.array_equal(spread.originals, originals[[0, 6]])
    assert apart.ids == ("image 5", "image 7")
    assert np.array_equal(apart.originals, originals[[5, 7]])
    assert set(apart.by_group) == {"one", "two"}
    assert np.array_equal(apart.by_group["one"], one[[5, 7]])
    assert np.array_equal(apart.by_group["two"], two[[5, 7]])
    assert "differ most in PSNR (mean over seeds; 6.0 to 5.0 dB), reconstructed by seed 0" in apart.reason


def test_the_sheet_is_drawn_with_its_errors_on_one_scale(store: Store) -> None:
    originals, one, _ = planted(store)
    last = list(pictures(store.section()))[-1]
    left, right, bar = last.figure.axes
    labels = [text.get_text() for text in left.texts]
    assert sorted(labels) == ["one", "original", "two"]
    for axes, drawn, expected in (
        (left, "original", originals[5]),
        (left, "one", one[5]),
        (right, "one", np.abs(originals[5].astype(int) - one[5]).mean(2)),
    ):
        picture = np.asarray(axes.images[0].get_array())
        below = round(len(picture) * (labels.index(drawn) + 1) / len(labels))
        assert picture[below - SIDE : below, :SIDE] == pytest.approx(expected)
    assert bar.get_xlabel() == "absolute error, mean of R, G, B (8-bit grey levels)"
    assert "image 5, image 7" in last.caption


def test_cells_of_earlier_versions_show_the_images_of_their_grid(store: Store, real: Path) -> None:
    store.cell("one")
    store.cell("two", psnr=[20.0] * 9 + [30.0, 20.0, 20.0])
    picture = np.asarray(Image.open(real / "recon.png"))
    spread, apart = reconstruction_sheets(store.section())
    positions = shown_positions(N)
    assert spread.ids == tuple(f"image {i}" for i in positions)
    assert np.array_equal(np.concatenate(list(spread.originals), axis=1), picture[:SIDE])
    assert np.array_equal(np.concatenate(list(spread.by_group["one"]), axis=1), picture[SIDE:])
    assert 9 in positions
    assert apart.ids[0] == "image 9"
    assert len(apart.ids) == 4


def test_pictures_that_are_cut_off_are_left_out(store: Store) -> None:
    folder = store.cell("one")
    store.cell("two")
    for name in ("reconstructions.npz", "recon.png", "codes.npz", "per_image.parquet", "metrics.jsonl"):
        (folder / name).write_bytes(b"PK\x03\x04 cut off")
    (store.runs / "x" / "images-p1.npz").write_bytes(b"PK\x03\x04 cut off")
    section = store.section()
    (sheet,) = reconstruction_sheets(section)
    assert list(sheet.by_group) == ["two"]
    assert "1 group is not shown" in sheet.reason
    assert len(list(pictures(section))) > 3


# files

HOSTILE = ["$x_1^2$", "100 % _under", "_starts", "<script>alert(1)</script>&amp;", "日本語 ü 🦄", "a\nb\x00\ud800",
           "\\frac{1}", "x" * 200, "x" * 199 + "y", "$" * 7]  # fmt: skip


def test_hostile_labels_are_drawn_as_they_stand(store: Store, tmp_path: Path) -> None:
    for number, method in enumerate(HOSTILE):
        store.cell(method, psnr=np.linspace(18, 22, N) + number / 10, scores={"rfid": 50.0 + number})
    with mpl.rc_context({"figure.max_open_warning": 1}):
        drawn = draw_figures(store.report(), tmp_path / "figures", ("png", "svg"))
    assert len(drawn) >= 6
    for figure in drawn:
        png, svg = figure.files
        with Image.open(png) as picture:
            assert picture.width == pytest.approx(6.6 * 160, abs=2)
            assert picture.height < 2.5 * picture.width
            picture.load()
        assert ElementTree.parse(svg).getroot().tag.endswith("svg")
        assert b"<script" not in svg.read_bytes()
        assert figure.section == "p1"
    assert "x" * 199 + "y" in next(f for f in drawn if f.name == "rate-distortion").caption


def test_labels_are_shortened_and_stay_different() -> None:
    labels = ["x" * 200, "x" * 199 + "y", "x" * 201, "short", "x" * 202]
    short = short_labels(labels, 34)
    assert short["short"] == "short"
    assert len(set(short.values())) == len(labels)
    assert max(map(len, short.values())) <= 34
    assert without_math("$x_1^2$") == r"\$x_1^2\$"


def test_the_same_results_give_the_same_bytes(store: Store, tmp_path: Path) -> None:
    store.cell("one", bare=True)
    store.cell("two", bare=True, scores={"psnr": 21.0})
    formats = ("png", "svg", "pdf")
    first, second = (draw_figures(store.report(), tmp_path / name, formats) for name in "ab")
    assert first
    for one, two in zip(first, second, strict=True):
        assert [f.read_bytes() for f in one.files] == [f.read_bytes() for f in two.files]
        assert one.files[2].read_bytes().startswith(b"%PDF")


def test_without_data_there_is_no_figure(store: Store, tmp_path: Path) -> None:
    store.cell("one", failed=True)
    assert draw_figures(store.report(), tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_two_protocols_have_figures_of_their_own(store: Store, tmp_path: Path) -> None:
    store.cell("one", bare=True)
    store.cell("two", protocol="p2", bare=True)
    drawn = draw_figures(store.report(), tmp_path / "figures", ("png",))
    assert len({figure.name for figure in drawn}) == len(drawn)
    for figure in drawn:
        assert figure.name.endswith(f"-{figure.section}")
        assert figure.section in figure.caption or figure.name.startswith("training")


def test_of_many_groups_the_first_twelve_are_drawn(store: Store) -> None:
    for number in range(30):
        store.cell(f"m{number:02d}", psnr=[20 + number / 10] * N)
    section = store.section()
    for picture in pictures(section):
        labels = {text.get_text() for legend in picture.figure.legends for text in legend.get_texts()}
        assert not labels or labels == {f"m{number:02d}" for number in range(18, 30)}
        assert "first 12 of 30" in picture.caption or "18 groups are not shown" in picture.caption


def test_a_format_that_there_is_not(store: Store, tmp_path: Path) -> None:
    store.cell("one")
    with pytest.raises(UsageError, match="unknown figure format 'jpg'"):
        draw_figures(store.report(), tmp_path, ("jpg",))


def test_figures_need_no_torch(store: Store, tmp_path: Path) -> None:
    store.cell("one", bare=True)
    code = (
        "import sys; from pathlib import Path; from vqbench.reports.experiment import load_experiment; "
        "from vqbench.reports.report import build_report; from vqbench.reports.figures import draw_figures; "
        f"assert draw_figures(build_report(load_experiment(Path({str(store.runs)!r}), 'x')), Path({str(tmp_path)!r})); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
