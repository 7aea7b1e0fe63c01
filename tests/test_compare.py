"""`vqbench compare` and the comparison of all groups of a table, on experiments that are made of numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Command, typed
from helpers.stored import section_of, write_cell, write_failure
from scipy import stats

import vqbench as package
from vqbench.errors import UsageError
from vqbench.reports.all_pairs import compare_section
from vqbench.reports.experiment import load_experiment
from vqbench.reports.feature_statistics import resample_kernel
from vqbench.reports.pairs import by_seed, difference
from vqbench.reports.reader import Reader
from vqbench.reports.statistics import paired_resamples

IMAGES, OTHER_PROTOCOL = 30, "ffffffffffff"
RFID = {"near": [30.0, 31.5, 29.5], "far": [44.0, 47.5, 42.0], "odd": [36.0]}
HOSTILE = "[/red]<script>&_%ünï" + "x" * 180


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experiment `three`: near and far with 3 seeds, odd with seed 2, and cells that stand for what goes wrong."""
    root = tmp_path_factory.mktemp("compare")
    draw, experiment = np.random.default_rng(0), root / "three"
    of_image = draw.normal(25, 3, IMAGES)
    for method, values in RFID.items():
        for i, value in enumerate(values):
            psnr = (
                of_image
                + {"near": 0.4, "far": 0.3, "odd": 0.2}[method]
                + draw.normal(0, 0.3)
                + draw.normal(0, 0.5, IMAGES)
            )
            scores = {"rfid": value, "usage": 1.0 if method == "near" else 0.5, "bpp": 0.4}
            seed = i if method != "odd" else 2
            write_cell(experiment, method, seed, scores, images={"psnr": psnr})
    collapse = {"kind": "collapsed", "reason": "perplexity 1.0", "images": 3000}
    write_cell(experiment, "odd", 3, {"rfid": 90.0}, result={"collapse": collapse})
    write_failure(experiment, "odd", 4)
    write_failure(experiment, "broken", 0)
    write_cell(experiment, "late", 9, {"rfid": 40.0})
    write_cell(experiment, "elsewhere", 0, {"rfid": 4.0}, protocol=OTHER_PROTOCOL)
    write_cell(experiment, "near", 0, {"rfid": 5.0}, protocol=OTHER_PROTOCOL)
    write_cell(experiment, HOSTILE, 0, {"rfid": 50.0})
    return root


def test_the_table_the_sentences_and_the_numbers_behind_them(vqbench: Command, runs: Path) -> None:
    answer = vqbench("compare", "near", "far", "--runs", runs)
    assert answer.code == 0, answer.err
    expected = stats.ttest_rel(RFID["near"], RFID["far"])
    low, high = expected.confidence_interval(0.95)
    assert max(map(len, answer.out.splitlines()[:-1])) <= 100
    words = " ".join(answer.out.split())
    assert f"rFID ↓ 30.3 44.5 -14.2 {low:+.1f} to {high:+.1f} {expected.pvalue:.3f} seeds better none" in words
    said = f"near is better than far in rFID by 14.2 (95 % {-high:.1f} to {-low:.1f}, p {expected.pvalue:.3f}, 3 seeds)"
    assert f"{said}; already separated" in words
    assert "near and far are not separated in PSNR" in words
    assert "3 seeds × 30 images); no number of seeds: the images differ too much" in words
    assert "all 3 seeds differ by exactly the same amount" in words
    assert "near is better than far in rFID; not separated from it in PSNR; not tested against it in usage." in words
    assert "far has results" not in words


def test_json_is_what_python_gets(runs: Path) -> None:
    answer = typed("compare", "far", "near", "--runs", runs, "--name", "three", "--json", "--metrics", "psnr,rfid")
    assert answer.code == 0, answer.err
    table = package.compare("far", "near", name="three", runs=runs, metrics=["rfid", "psnr"])
    assert [row["metric"] for row in answer.objects] == list(table["metric"]) == ["rfid", "psnr"]
    assert [row["p"] for row in answer.objects] == list(table["p"])
    assert list(answer.objects[0]) == list(table)
    rfid = answer.objects[0]
    assert (rfid["a"], rfid["verdict"], rfid["seeds"], rfid["more_seeds"]) == ("far", "worse", 3, 0)
    assert rfid["difference"] == pytest.approx(np.mean(RFID["far"]) - np.mean(RFID["near"]))
    assert rfid["sentence"].startswith("far is worse than near in rFID by 14.2 (95 % ")


def test_what_is_the_same_everywhere_is_said_to_be(tmp_path: Path) -> None:
    for method in ("a", "b"):
        for seed in (0, 1):
            write_cell(tmp_path / "e", method, seed, {"rfid": 3.0 + seed}, images={"psnr": [10.0 + seed, 12.0, 14.5]})
    found = package.compare("a", "b", runs=tmp_path)
    assert list(found["sentence"]) == [
        "a and b are the same in rFID, wherever they meet (2 seeds)",
        "a and b are the same in PSNR, wherever they meet (2 seeds × 3 images)",
    ]
    assert set(found["verdict"]) == {"not separated"}
    assert not any("noise" in text for text in found["more_seeds_text"])


def test_one_seed_says_what_it_cannot_know(runs: Path) -> None:
    table = package.compare("near", "odd", runs=runs).set_index("metric")
    assert set(table["seeds"]) == {1}
    assert "30 images of 1 seed: the noise of training is not in it" in table.loc["psnr", "sentence"]
    assert "no" in table.loc["rfid", "verdict"]
    assert set(table["more_seeds"]) == {2}
    assert "at least 2 more seeds (3)" in table.loc["psnr", "more_seeds_text"]
    assert table.loc["rfid", "mean_b"] == RFID["odd"][0]  # of the shared seed alone, not of the collapsed one


def test_collapsed_failed_and_lonely_cells_are_named(runs: Path) -> None:
    answer = typed("compare", "near", "odd", "--runs", runs)
    words = " ".join(answer.out.split())
    assert "odd s3: collapsed after 3,000 images: perplexity 1.0" in words
    assert "failed, odd s4: out of memory" in words
    assert "odd s3: left out, for the other has no such seed" in words
    assert "near s0, s1: left out" in words


def test_protocols_are_never_compared_across(runs: Path) -> None:
    write_cell(runs / "two", "near", 0, {"rfid": 30.0})
    write_cell(runs / "two", "far", 0, {"rfid": 40.0})
    write_cell(runs / "two", "near", 0, {"rfid": 3.0}, protocol=OTHER_PROTOCOL)
    write_cell(runs / "two", "far", 0, {"rfid": 2.0}, protocol=OTHER_PROTOCOL)
    answer = typed("compare", "near", "far", "--runs", runs, "--name", "two")
    assert answer.code == 0, answer.err
    assert answer.out.count("A = near") == 2
    assert "numbers under different ones do not compare" in " ".join(answer.out.split())
    assert list(package.compare("near", "far", name="two", runs=runs)["difference"]) == [-10.0, 1.0]
    for path in sorted(runs.glob("two/**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (runs / "two").rmdir()


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ("nera", "far", {}, "unknown group 'nera'; did you mean near"),
        ("near", "near", {}, "'near' and 'near' are the same group"),
        ("near", "broken", {}, "every cell of broken failed, the first: broken s0: out of memory"),
        ("near", "late", {}, "no seed in common: near has seeds 0, 1, 2, late has seed 9"),
        ("far", "elsewhere", {}, f"no protocol in common: far .* 0123456789ab, elsewhere .* {OTHER_PROTOCOL}; what is"),
        ("near", "far", {"metrics": "rfdi"}, "unknown metric 'rfdi'; did you mean rfid"),
        ("near", "far", {"metrics": "bpp"}, "bpp describes a tokenizer and does not rank it"),
        ("near", "far", {"metrics": ["ssim"]}, "no seed of near and far has both scores of ssim"),
        ("near", "far", {"name": "thre"}, "no experiment 'thre' in .*; did you mean three"),
    ],
)
def test_what_cannot_be_compared_says_why(a: str, b: str, options: dict[str, str], message: str, runs: Path) -> None:
    with pytest.raises(UsageError, match=message):
        package.compare(a, b, runs=runs, **options)


def test_names_that_stand_for_one_group_or_several(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        write_cell(tmp_path / "e", "vq", 0, {"rfid": rate}, config={"rate": rate})
    write_cell(tmp_path / "e", "fsq", 0, {"rfid": 1.0}, preset="wide")
    assert package.compare("fsq", "vq rate=0.2", runs=tmp_path)["a"].tolist() == ["fsq@wide"]
    for on in (True, False):
        write_cell(tmp_path / "e", "vae", 0, {"rfid": 30.0 + on}, config={"dcr": on}, components={"dcr": on})
    assert package.compare("vae", "vae without dcr", runs=tmp_path)["difference"].tolist() == [1.0]
    with pytest.raises(UsageError, match=r"'vq' stands for 2 groups: 'vq rate=0\.1', 'vq rate=0\.2'"):
        package.compare("vq", "fsq", runs=tmp_path)


def test_which_experiment(tmp_path: Path) -> None:
    answer = typed("compare", "a", "b", "--runs", tmp_path)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"error: there are no experiments in {tmp_path}\nhint: ")
    for name in ("one", "two"):
        write_cell(tmp_path / name, "a", 0, {"rfid": 1.0})
    with pytest.raises(UsageError, match="holds 2 experiments: one, two") as caught:
        package.compare("a", "b", runs=tmp_path)
    assert caught.value.hint == "choose one: --name one"


def test_any_name_fits_the_terminal(runs: Path) -> None:
    answer = typed("compare", "near", HOSTILE, "--runs", runs)
    assert answer.code == 0, answer.err
    assert max(map(len, answer.out.splitlines()[:-1])) <= 100
    assert HOSTILE in answer.out.replace("\n", "").replace("  ", "")
    assert "A − B" in answer.out


def test_cells_that_are_cut_off_are_no_traceback(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for method in ("a", "b"):
        features = draw.normal(size=(12, 6)).astype(np.float32)
        write_cell(tmp_path / "e", method, 0, {"kid": draw.random(), "usage": draw.random()},
                   images={"psnr": draw.normal(size=12)}, arrays={"features.npz": {"features": features}})  # fmt: skip
    reference = tmp_path / "e" / "reference-0123456789ab.npz"
    np.savez(reference, features=draw.normal(size=(12, 6)))
    assert list(package.compare("a", "b", runs=tmp_path)["interval_over"]) == ["images", "images", ""]
    broken = next((tmp_path / "e/cells").glob("a-*"))
    for path in (broken / "per_image.parquet", broken / "features.npz"):
        path.write_bytes(path.read_bytes()[:200])
    (broken / "codes.npz").write_bytes(b"PK\x03\x04")
    assert list(package.compare("a", "b", runs=tmp_path)["interval_over"]) == ["", "", ""]


def test_features_and_codes_of_one_seed(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    reference = draw.random((15, 8))
    kept, scores = {}, {"a": {"kid": 0.2, "dead_codes": 3.0}, "b": {"kid": 0.1, "dead_codes": 1.0}}
    for method in ("a", "b"):
        kept[method] = reference + draw.normal(size=(15, 8)) * (0.1 if method == "b" else 0.5)
        codes = draw.integers(0, 5 if method == "a" else 7, (15, 4, 1), dtype=np.uint8)
        codes[0, :, 0] = (4, 3, 2, 1) if method == "a" else (7, 6, 5, 4)  # no other has a 7
        histogram = np.bincount(codes.ravel(), minlength=8)[None]
        scores[method]["dead_codes"] = float((histogram == 0).sum())
        arrays = {"features.npz": {"features": kept[method]}, "codes.npz": {"indices": codes, "histogram": histogram}}
        write_cell(tmp_path / "e", method, 0, scores[method], arrays=arrays)
    np.savez(tmp_path / "e" / "reference-0123456789ab.npz", features=reference)
    table = package.compare("a", "b", runs=tmp_path).set_index("metric")
    expected = paired_resamples(resample_kernel(reference, kept["b"], 0.1), resample_kernel(reference, kept["a"], 0.2))
    assert table.loc["kid", ["low", "high", "p"]].tolist() == pytest.approx([expected.low, expected.high, expected.p])
    assert table.loc["kid", "interval_over"] == table.loc["dead_codes", "interval_over"] == "images"


def test_neither_torch_nor_pandas_nor_scipy_stats_is_imported(runs: Path) -> None:
    code = (
        "import sys; from vqbench.cli.app import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print({'torch', 'pandas', 'scipy.stats', 'scipy.optimize'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, "compare", "near", "far", "--runs", str(runs)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("set()\n")


# all groups of a table


def drawn(rng: np.random.Generator, means: list[float], seeds: int, images: int) -> dict[str, np.ndarray]:
    """PSNR of groups whose seeds, images and residuals all vary by 1."""
    base = 25 + 4 * rng.normal(size=images)

    def group(mean: float) -> np.ndarray:
        return base + mean + rng.normal(size=(seeds, 1)) + rng.normal(size=images) + rng.normal(size=(seeds, images))

    return {f"m{i:02d}": group(mean) for i, mean in enumerate(means)}


@pytest.mark.parametrize(("groups", "seeds", "images", "tables"), [(5, 3, 50, 500), (14, 5, 20, 150)])
def test_few_tables_of_equal_groups_hold_a_verdict(groups: int, seeds: int, images: int, tables: int) -> None:
    """Family-wise: below 5 % of tables, and as many keep every mark; with the best alone tested, too."""
    rng, wrong, unmarked = np.random.default_rng(0), 0, 0
    for _ in range(tables):
        section, reader = section_of(drawn(rng, [0.0] * groups, seeds, images), "psnr")
        found = compare_section(section, ["psnr"], reader)["psnr"]
        wrong += any(pair.verdict in ("better", "worse") for pair in found.pairs)
        unmarked += len(found.unseparated) < groups
    assert unmarked <= wrong < 0.05 * tables


def test_marks_and_verdicts_of_groups_that_differ() -> None:
    values = drawn(np.random.default_rng(1), [0.0, 0.1, -9.0, -30.0], 4, 60)
    section, reader = section_of(values, "psnr")
    found = compare_section(section, ["psnr"], reader)["psnr"]
    assert found.unseparated == {"m00", "m01"}
    assert (len(found.pairs), found.untested) == (6, {})
    p = {(pair.base, pair.other): pair.difference.p for pair in found.pairs}
    order = sorted(p, key=lambda pair: p[pair])
    largest = 0.0
    for rank, names in enumerate(order):  # Holm, written out
        largest = max(largest, min(1, p[names] * (6 - rank)))
        assert next(x.p for x in found.pairs if (x.base, x.other) == names) == pytest.approx(largest)


def test_groups_are_compared_over_the_seeds_they_share() -> None:
    rng = np.random.default_rng(2)
    section, reader = section_of({"a": rng.normal(30, 1, 3), "b": rng.normal(40, 1, 3)}, "quantization_error")
    others, _ = section_of({"c": rng.normal(60, 1, 3)}, "quantization_error", seeds=[2, 3, 4])
    lonely, _ = section_of({"d": rng.normal(35, 1, 2)}, "quantization_error", seeds=[7, 8])
    both = type(section)(section.protocol, (*section.groups, *others.groups, *lonely.groups))
    found = compare_section(both, ["quantization_error"], reader)["quantization_error"]
    assert found.best == "a"
    seeds = {(pair.base, pair.other): pair.difference.seeds for pair in found.pairs}
    assert seeds == {("a", "b"): 3, ("a", "c"): 1, ("b", "c"): 1}
    assert set(found.untested) == {"c", "d"}
    assert "d" not in found.unseparated
    assert "quantization error: d is not compared with a, for they share no seed" in found.notes
    assert any(
        note.startswith("quantization error: c is not compared with a, for they share one seed") for note in found.notes
    )


def test_what_no_image_changes_is_said_so_and_once_for_all(tmp_path: Path) -> None:
    """All codes of a cell stand in many images, so leaving one out shows nothing: kept, and no certainty."""
    for method, used in (("all", 8), ("four", 4), ("two", 2)):
        codes = np.tile(np.arange(used), (6, 8 // used))
        write_cell(
            tmp_path / "e", method, 0, {"usage": used / 8},
            arrays={"codes.npz": {"indices": codes, "histogram": np.bincount(codes.ravel(), minlength=8)[None]}},
        )  # fmt: skip
    (section,) = load_experiment(tmp_path, "e").sections
    (note,) = compare_section(section, ["usage"])["usage"].notes
    assert "four, two are not compared with all, for they share one seed, and no image changes the difference" in note


def test_a_group_that_beats_the_best_where_they_meet_keeps_its_mark() -> None:
    """The best mean may be of other seeds; over those that both have, the other is better."""
    first, _ = section_of({"a": np.array([50.0, 50.1, 49.9, *[1.0] * 9])}, "quantization_error")
    second, reader = section_of({"b": np.array([40.0, 40.1, 40.0])}, "quantization_error")
    section = type(first)(first.protocol, (*first.groups, *second.groups))
    found = compare_section(section, ["quantization_error"], reader)["quantization_error"]
    assert (found.best, found.pairs[0].verdict, found.unseparated) == ("a", "better", {"a", "b"})


def test_a_cell_is_read_once_for_all_its_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    for method in "abcd":
        for seed in (0, 1):
            write_cell(tmp_path / "e", method, seed, {}, images={k: draw.normal(size=9) for k in ("psnr", "ssim")})
    read, original = [], Reader._read_table
    monkeypatch.setattr(Reader, "_read_table", lambda self, path: read.append(path) or original(self, path))
    section = load_experiment(tmp_path, "e").sections[0]
    first = compare_section(section)
    assert len(read) == len(set(read)) == 8
    rows = {group.label: group.finished for group in section.groups}
    tight = Reader(most_bytes=1)  # reads again what it could not keep, and finds the same
    for pair in first["psnr"].pairs:
        assert difference(rows[pair.base], rows[pair.other], "psnr", tight) == pair.difference
    assert len(read) > 16


def test_a_size_that_is_not_what_was_asked_for_is_said_wherever_scores_are(tmp_path: Path) -> None:
    sizes = {"fsq": {"codebook_size": 15, "num_codebooks": 1, "asked": 2}, "vqgan": None,
             "rq": {"codebook_size": 16, "num_codebooks": 2, "asked": 512}}  # fmt: skip
    for method, size in sizes.items():
        for seed in (0, 1):
            write_cell(tmp_path / "sizes", method, seed, {"psnr": 20.0 + seed}, size=size)
    said = (
        "fsq: 15 codes (3.907 bits per token), where 2 (1 bit) were asked for",
        "rq: 2 codebooks of 16 codes (8 bits per token), where 512 (9 bits) were asked for",
    )
    compared = typed("compare", "fsq", "rq", "--runs", tmp_path)
    files = typed("report", "--runs", tmp_path, "--format", "md,json,csv,html").out.splitlines()
    pages = [Path(file).read_text() for file in files if Path(file).suffix in (".md", ".json", ".csv", ".html")]
    assert len(pages) == 4
    for text in (compared.out, *pages):
        words = " ".join(text.split()).replace("\\", "")
        assert [words.count(sentence) > 0 for sentence in said] == [True, True]
        assert "vqgan: " not in text


def test_what_has_no_seed_stands_beside_each_and_our_own_are_paired_by_theirs() -> None:
    methods, checkpoint = [{"seed": 0}, {"seed": 1}], [{"seed": 0, "pretrained": {}}]
    own, other = ([{"seed": seed, "pretrained": {"seed": seed}}] for seed in (1, 5))
    mine = {0: methods[0], 1: methods[1]}
    assert by_seed(methods, checkpoint) == (mine, dict.fromkeys((0, 1), checkpoint[0]))
    assert by_seed(checkpoint, methods) == (dict.fromkeys((0, 1), checkpoint[0]), mine)
    assert by_seed(own, checkpoint) == ({1: own[0]}, {1: checkpoint[0]})
    # one training of ours is one seed: beside each of the others', its own noise would be left out
    assert by_seed(own, methods) == ({1: own[0]}, mine)
    assert by_seed(other, methods) == ({5: other[0]}, mine)
    assert by_seed([*own, *other], methods) == ({1: own[0], 5: other[0]}, mine)
