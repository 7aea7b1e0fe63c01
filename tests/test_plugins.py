"""Metrics, an extractor and a dataset of a file outside the package, through run, report, page, MLflow and sweep."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import evaluation
from helpers.commands import Answer, Command, settings, typed
from helpers.plugins import OUTSIDE, own_plugins
from helpers.stored import write_cell

from vqbench.cell.planned import load_plugins
from vqbench.cell.process import CellJob, write_job
from vqbench.errors import UsageError, VQBenchError
from vqbench.machine.home import home
from vqbench.machine.json_files import read_json
from vqbench.metrics.definitions import (
    DEFINITIONS,
    IN_PROTOCOL,
    companions,
    default_metrics,
    digests,
    metric,
    select_metrics,
)
from vqbench.metrics.weights import add_pin
from vqbench.planning.plan import Cell, make_plan, resolve
from vqbench.planning.preflight import choose_metrics
from vqbench.planning.request import RunRequest
from vqbench.recipe import load_recipe
from vqbench.registry import METRICS, add_plugin
from vqbench.reports.compare import compare_groups
from vqbench.reports.experiment import load_experiment
from vqbench.reports.page import page_html
from vqbench.reports.report import build_report
from vqbench.reports.verdict import verdict
from vqbench.results.cell_folder import CellFolder
from vqbench.tracking.server import all_runs, connect, tracking_uri

NAMES = ("worst_pixel", "projected_fd", "top_code", "weights_mb")
NET = ((np.arange(48 * 8) ** 2 % 101) / 50 - 1).astype("<f4").tobytes()

MINE = """
from vqbench.metrics.kinds import PairMetric
from vqbench.registry import METRICS

@METRICS.register("mine")
class Mine(PairMetric):
    title, better, sentence = "mine", "higher", "Mean of the reconstruction."

    def score(self, references, reconstructions):
        return reconstructions.double().mean(dim=(1, 2, 3)) * FACTOR
"""


def written(folder: Path, factor: int) -> Path:
    """MINE in a file; where it lies is no part of what it is."""
    path = folder / str(factor) / "mine.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(MINE.replace("FACTOR", str(factor)))
    return path


@pytest.fixture(scope="module")
def weights() -> Iterator[Path]:
    """The pinned file of the plugin's extractor, where it is looked for."""
    path = home() / "weights" / "projection.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(NET)
    yield path
    path.unlink(missing_ok=True)


def command(runs: Path, metrics: str = ",".join(("psnr", "usage", *NAMES))) -> list[object]:
    asked = ["--plugin", OUTSIDE, "--dataset", "discs", "--images", 32, "--metrics", metrics, "--runs", runs]
    return [*asked, *settings()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(runs: Path) -> Answer:
    asked = command(runs, ",".join(("psnr", "usage", *NAMES, "mine")))
    with own_plugins():
        answer = typed(
            "run", "--methods", "vqgan", "--seeds", "0,1", "--name", "x", "--plugin", written(runs, 1), *asked
        )
    assert answer.code == 0, answer.err
    return answer


def cells(runs: Path) -> list[Path]:
    return sorted((runs / "x" / "cells").iterdir())


def test_a_file_brings_metrics_and_a_dataset(first: Answer, runs: Path) -> None:
    for head in ("worst pixel ↓", "FD (projected) ↓", "top code ↓", "MB"):
        assert head in " ".join(first.out.split()), first.out
    for cell in cells(runs):
        result, table = read_json(cell / "result.json") or {}, pd.read_parquet(cell / "per_image.parquet")
        assert result["scores"]["worst_pixel"] == pytest.approx(table["worst_pixel"].mean())
        assert 0 < result["scores"]["top_code"] <= 1
        assert result["scores"]["projected_fd"] > 0
        assert set(result["metrics"]) == {*NAMES, "mine"}
        assert len({known["digest"] for known in result["metrics"].values()}) == len(NAMES) + 1
        spec = CellFolder(cell).spec
        assert spec["plugin"] is None
        plugins = {Path(words["path"]).name: words["sha256"] for words in spec["plugins"]}
        assert plugins.keys() == {"mine.py", "outside.py"}
        assert spec["dataset_code"] == plugins["outside.py"]
        kept = {path.read_bytes() for path in cell.glob("plugin*.py")}
        assert kept == {OUTSIDE.read_bytes(), written(runs, 1).read_bytes()}


def test_report_page_and_comparison_need_no_plugin(first: Answer, runs: Path, tmp_path: Path) -> None:
    assert "worst_pixel" not in METRICS
    out = tmp_path / "report"
    columns = "worst_pixel,psnr,top_code,weights_mb"
    answer = typed("report", "x", "--runs", runs, "--out", out, "--columns", columns, "--sort", "worst_pixel")
    assert answer.code == 0, answer.err
    assert "| worst pixel ↓ | PSNR ↑ | top code ↓ | MB |" in (out / "report.md").read_text()
    (line,) = csv.DictReader((out / "report.csv").open())
    assert float(line["worst_pixel_mean"]) > 0
    (section,) = json.loads((out / "report.json").read_text())["sections"]
    assert section["comparisons"]["worst_pixel"]["best"] == "vqgan"
    assert section["metrics"]["worst_pixel"]["sentence"].startswith("Largest difference of an 8-bit value")
    assert "worst pixel" in (out / "report.tex").read_text()
    page = (out / "index.html").read_text()
    assert "Largest difference of an 8-bit value of an image; mean over images." in page
    assert "How far the worst pixel is off." in page


def test_mlflow_has_the_scores_their_digests_and_columns(first: Answer, runs: Path) -> None:
    client = connect(tracking_uri(runs))
    (experiment,) = [e for e in client.search_experiments() if e.name == "x"]
    tracked = all_runs(client, experiment.experiment_id, "tags.`vqbench.kind` = 'cell'")
    assert len(tracked) == 2
    for run in tracked:
        digest = run.data.tags["metric.worst_pixel"]
        assert len(digest) == 12
        column = f"worst_pixel.{digest[:6]}"
        assert run.data.metrics[column] > 0
        assert "psnr" in run.data.metrics
    views = [value for key, value in experiment.tags.items() if "sharedViewState" in key]
    assert views
    assert all(f"metrics.`{column}`" in view for view in views)


def test_a_sweep_improves_it_in_its_direction(runs: Path, weights: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "outside.py"
    plugin.write_text(OUTSIDE.read_text())

    def swept(*more: object, metrics: str = "psnr,worst_pixel") -> Answer:
        words = [plugin if word == OUTSIDE else word for word in command(runs, metrics)]
        with own_plugins():
            return typed("sweep", "vqgan", "--space", "optimiser", "--name", "swept", "--json", *words, *more)

    answer = swept("--objective", "worst_pixel", "--trials", 1)
    assert answer.code == 0, answer.err
    assert [set(row["values"]) for row in answer.objects] == [{"worst_pixel"}]
    unranked = swept("--objective", "weights_mb", "--dry-run", metrics="psnr,weights_mb")
    assert "weights_mb has no better direction" in unranked.err
    plugin.write_text(OUTSIDE.read_text().replace("amax(dim=", "amin(dim="))
    refused = swept("--objective", "worst_pixel", "--trials", 2, "--dry-run")
    assert "with another definition of its objective" in refused.err


def test_another_definition_is_scored_anew_and_never_shares_a_column(first: Answer, runs: Path, tmp_path: Path) -> None:
    def asked(factor: int, *more: object) -> Answer:
        with own_plugins():
            answer = typed("run", "--methods", "vqgan", "--name", "x", "--plugin", written(tmp_path, factor), "--json",
                           *command(runs, metrics="psnr,mine"), *more)  # fmt: skip
        assert answer.code == 0, answer.err
        return answer

    def states(factor: int) -> list[str]:
        return [row["state"] for row in asked(factor, "--seeds", "0,1", "--dry-run").objects]

    def report() -> str:
        assert typed("report", "x", "--runs", runs, "--out", tmp_path / "out").code == 0
        return (tmp_path / "out" / "report.md").read_text()

    trained = [(cell / "checkpoints" / "training.json").stat().st_mtime_ns for cell in cells(runs)]
    before = asked(1, "--seeds", "0,1", "--dry-run").objects
    assert [row["state"] for row in before] == ["cached", "cached"]
    assert "| mine ↑ |" in report()
    assert states(1000) == ["partial", "partial"]
    (one,) = asked(1000, "--seeds", "0").objects
    assert one["scores"]["mine"] == pytest.approx(1000 * before[0]["scores"]["mine"])
    assert one["digests"]["mine"] != before[0]["digests"]["mine"]
    assert (states(1000), states(1)) == (["cached", "partial"], ["partial", "cached"])
    text = report()
    assert "was measured by another definition than that of the rest" in text
    assert "| mine ↑ |" not in text, "a mean over two definitions"
    client = connect(tracking_uri(runs))
    found = [e.experiment_id for e in client.search_experiments() if e.name == "x"]
    tracked = all_runs(client, found[0], "tags.`vqbench.kind` = 'cell'")
    columns = {key for run in tracked for key in run.data.metrics if key.startswith("mine")}
    assert columns == {f"mine.{row['digests']['mine'][:6]}" for row in (one, before[1])}, "one column for two"
    scored = [row["scores"]["mine"] for row in asked(1000, "--seeds", "0,1").objects]
    assert scored == pytest.approx([1000 * row["scores"]["mine"] for row in before])
    assert "| mine ↑ |" in report()
    assert [(cell / "checkpoints" / "training.json").stat().st_mtime_ns for cell in cells(runs)] == trained
    assert states(1000) == ["cached", "cached"]


def planned(runs: Path, dataset: str = "photos", metrics: tuple[str, ...] = ("psnr",)) -> Cell:
    return make_plan(resolve(RunRequest(("vqgan",), dataset, runs=runs)), metrics).cells[0]


def test_a_metric_that_is_added_changes_no_cell_and_no_protocol(tmp_path: Path, weights: Path) -> None:
    before = planned(tmp_path).spec
    add_plugin(OUTSIDE)
    assert default_metrics() == tuple(name for name in METRICS.names() if name in default_metrics())
    assert planned(tmp_path).spec == before
    after = planned(tmp_path, metrics=("psnr", *NAMES)).spec
    assert after["hash"] == before["hash"]
    assert after["digests"] == digests(NAMES)
    assert set(digests(METRICS.names())).isdisjoint(IN_PROTOCOL)


def test_the_source_of_a_dataset_is_part_of_a_cell(tmp_path: Path) -> None:
    hashes, protocols = [], []
    for text in (OUTSIDE.read_text(), OUTSIDE.read_text() + "\n# another\n"):
        (tmp_path / "discs.py").write_text(text)
        with own_plugins():
            add_plugin(tmp_path / "discs.py")
            cell = planned(tmp_path, "discs")
        hashes.append(cell.spec["hash"])
        protocols.append(cell.spec["protocol"]["hash"])
    assert hashes[0] != hashes[1]
    assert protocols[0] == protocols[1], "the images are the same"


def test_lists_say_where_things_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "o.py").write_text(OUTSIDE.read_text())
    monkeypatch.chdir(tmp_path)
    datasets, metrics = (typed(what, "--plugin", "o.py").out for what in ("datasets", "metrics"))
    assert "Discs of one colour" in datasets
    for name in ("worst_pixel", "worst pixel ↓", "ms_ssim", "MS-SSIM ↑", "vqbench 0"):
        assert name in metrics
    assert all(str(tmp_path / "o.py") in "".join(found.split()) for found in (datasets, metrics))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('register("mine")', 'register("psnr")', "two metrics are called 'psnr': vqbench "),
        ('register("mine")', 'register("id")', "no other column has"),
        ('"Mean of the reconstruction."', '""', "needs a title and a sentence"),
        (
            'better, sentence = "mine", "higher"',
            'better, sentence = "mine", "up"',
            "better is 'higher', 'lower' or None",
        ),
        ("(PairMetric)", "", "is no subclass of a kind of metric"),
        ("def score", "def scores", "'mine' does not define score"),
        (
            "    title",
            "    def __init__(self, name): raise KeyError('boo')\n    title",
            "cannot be made: KeyError: 'boo'",
        ),
        ("(PairMetric)", "(PairMetric, Gone)", "does not import: NameError"),
        ("    title", "    weights = 'gone'\n    title", "unknown weights 'gone'"),
        ("    title", "    min_images = 500\n    title", "mine needs at least 500 validation images, there are"),
        ("    title", "    min_resolution = 64\n    title", "mine is defined from 64 pixels a side"),
    ],
)
def test_a_metric_that_cannot_be_is_refused_before_training(tmp_path: Path, old: str, new: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(MINE.replace("FACTOR", "1").replace(old, new))
    name = "id" if '"id"' in new else "mine"
    asked = ["--methods", "vqgan", "--dataset", "photos", "--metrics", name, "--runs", tmp_path / "runs"]
    answer = typed("run", "--plugin", tmp_path / "mine.py", *asked, "--dry-run")
    assert answer.code == 2
    assert said in " ".join(answer.err.split())


DATASET = """
from vqbench.data.dataset import Dataset
from vqbench.registry import DATASETS

@DATASETS.register("mine")
class Mine(Dataset):
    def __init__(self, argument, resolution, data_root):
        super().__init__(argument, resolution, data_root)
        self.reference = self.slug = self.protocol_name = self.split_rule = self.train_digest = "mine"
        self.train, self.validation = [1], [2]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("(Dataset)", "", "dataset 'mine' is no subclass of Dataset"),
        ("        super()", "        {}['boo']\n        super()", "dataset 'mine' cannot be opened: KeyError: 'boo'"),
        ("self.train, self.validation = [1], [2]", "self.train = [1]", "dataset 'mine' does not set validation"),
        ("[1], [2]", "[1], []", "mine has no validation images"),
    ],
)
def test_a_dataset_that_cannot_be_is_the_fault_of_its_file(tmp_path: Path, old: str, new: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(DATASET.replace(old, new))
    asked = ["--methods", "vqgan", "--dataset", "mine", "--runs", tmp_path / "runs", "--dry-run"]
    answer = typed("run", "--plugin", tmp_path / "mine.py", *asked)
    assert answer.code == 2
    assert said in " ".join(answer.err.split())


@pytest.mark.parametrize(
    "wrong", ["image.astype(np.int64)", "image[..., 0].astype(np.uint8)", "image[1:].astype(np.uint8)"]
)
def test_images_of_another_kind_are_refused_and_not_stored_as_bytes(tmp_path: Path, wrong: str) -> None:
    text = OUTSIDE.read_text().replace("image.astype(np.uint8)", wrong).replace('"discs"', '"wrong"')
    (tmp_path / "wrong.py").write_text(text)
    asked = ["--methods", "vqgan", "--dataset", "wrong", "--runs", tmp_path / "runs", "--dry-run"]
    answer = typed("run", "--plugin", tmp_path / "wrong.py", *asked)
    assert answer.code == 2
    assert "image val/0 is" in answer.err
    assert "not uint8 of shape (32, 32, 3)" in " ".join(answer.err.split())


def test_a_metric_that_is_half_written_stops_nothing_that_did_not_ask_for_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE.replace("def score", "def scores"))
    assert typed("metrics", "--plugin", tmp_path / "mine.py").code == 0
    asked = ["--methods", "vqgan", "--dataset", "photos", "--runs", tmp_path / "runs", "--dry-run"]
    assert typed("run", "--plugin", tmp_path / "mine.py", *asked).code == 0


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ("reconstructions.double().mean()", r"gave \(\) for"),
        ("references.double().mean((1, 2, 3)) / 0", "of image .* is inf"),
    ],
)
def test_a_score_that_is_none_names_the_metric(tmp_path: Path, score: str, said: str) -> None:
    text = MINE.replace("reconstructions.double().mean(dim=(1, 2, 3)) * FACTOR", score)
    (tmp_path / "mine.py").write_text(text)
    add_plugin(tmp_path / "mine.py")
    assert metric("mine").digest
    with pytest.raises(VQBenchError, match=f"metric 'mine' {said}"):
        evaluation.run(evaluation.Posterize(), evaluation.photographs(), ("psnr", "mine"))


def test_weights_are_refused_that_are_not_pinned(tmp_path: Path, weights: Path) -> None:
    weights.write_bytes(NET[:-4])
    add_plugin(OUTSIDE)
    request = RunRequest(("vqgan",), "photos", metrics=("projected_fd",), runs=tmp_path)
    (problem,) = choose_metrics(request, load_recipe("tiny")).problems
    assert "projection.bin, needed for projected_fd" in problem.what
    assert "is not the pinned one" in problem.what
    weights.write_bytes(NET)
    assert choose_metrics(request, load_recipe("tiny")).problems == ()
    with pytest.raises(UsageError, match="vqbench's own"):
        add_pin("inception", "mine.pth", "0" * 64)


def told(better: str, digest: str) -> dict[str, dict[str, object]]:
    """What the result of a cell says of a metric whose plugin is not here."""
    known = {
        "title": "Mine",
        "unit": "points",
        "better": better,
        "digits": 1,
        "digest": digest,
        "sentence": "It is mine.",
    }
    return {"mine": {**known, "per_image": True, "gloss": "what is mine"}}


def test_stored_cells_tell_what_their_metrics_are(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for method, level in (("vqgan", 5.0), ("fsq", 3.0)):
        for seed in (0, 1):
            images = {"mine": draw.normal(level, 0.1, 30), "psnr": draw.normal(20, 1, 30)}
            said = {"metrics": told("lower", "a" * 12), "train_images_per_s": None}
            write_cell(tmp_path / "made", method, seed, {}, images=images, result=said)
    experiment = load_experiment(tmp_path, "made")
    report = build_report(experiment)
    assert [column.title for column in report.sections[0].columns] == ["PSNR ↑", "Mine ↓", "params M"]
    assert "Mine: fsq is best" in " ".join(verdict(report.sections[0]).sentences)
    page = page_html(report, [], {})
    assert "It is mine." in page
    assert "What is mine." in page
    compared = typed("compare", "fsq", "vqgan", "--runs", tmp_path, "--metrics", "mine")
    assert "fsq is better than vqgan in Mine by 2.0" in compared.out
    assert "Mine ↓" in compared.out
    assert experiment.notes == []


def test_of_two_definitions_reports_show_that_of_most_cells(tmp_path: Path) -> None:
    for method, seed, digest, better in (
        ("vqgan", 0, "b", "higher"),
        ("vqgan", 1, "b", "higher"),
        ("fsq", 0, "a", "lower"),
    ):
        scores = {"mine": 1.0 + seed, "psnr": 20.0}
        write_cell(tmp_path / "made", method, seed, scores, result={"metrics": told(better, digest * 12)})
    experiment = load_experiment(tmp_path, "made")
    assert {group.label: group.summary.estimates.keys() & {"mine"} for group in experiment.groups} == {
        "vqgan": {"mine"}, "fsq": set(),
    }  # fmt: skip
    (note,) = experiment.notes
    assert note.startswith("mine of fsq-")
    assert "another definition than that of the rest (bbbbbbbbbbbb), so it is left out" in note
    assert [c.title for c in build_report(experiment).sections[0].columns if c.key == "mine"] == ["Mine ↑"]
    with pytest.raises(UsageError, match="has both scores of mine"):
        compare_groups(experiment, "fsq", "vqgan", ["mine"])


def test_what_a_result_says_may_be_anything(tmp_path: Path) -> None:
    for seed, said in enumerate(
        ({"mine": {"digest": "a", "title": 3, "digits": "x", "more": {}}}, {"mine": 1}, [], None)
    ):
        write_cell(tmp_path / "made", "vqgan", seed, {"mine": 1.0, "psnr": 20.0}, result={"metrics": said})
    experiment = load_experiment(tmp_path, "made")
    assert sum("not what vqbench wrote (" in note for note in experiment.notes) == 2
    assert "psnr" in build_report(experiment).sections[0].rows[0].summary.estimates


BOTH = (
    MINE.replace("FACTOR", "1")
    + """

from vqbench.methods.vqgan import VQGAN
from vqbench.registry import METHODS

@METHODS.register("ours")
class Ours(VQGAN):
    pass

@METRICS.register("mine_continuous")
class Beside(Mine):
    companion_of = "mine"
"""
)


def test_a_file_may_hold_a_method_and_a_metric_and_travels_once(tmp_path: Path) -> None:
    path = tmp_path / "both.py"
    path.write_text(BOTH)
    with own_plugins():
        add_plugin(path)
        assert companions(["mine", "psnr"]) == ("psnr_continuous", "mine_continuous")
        plan = make_plan(resolve(RunRequest(("ours", "fsq"), "photos", runs=tmp_path)), ("psnr", "mine"))
    of_plugin, built_in = plan.cells
    assert "plugins" not in of_plugin.spec
    assert of_plugin.plugin_sources == built_in.plugin_sources == (BOTH.encode(),)
    assert built_in.spec["plugins"] == [of_plugin.spec["plugin"]]
    path.write_text("it is another one now")
    for cell in plan.cells:
        write_job(CellJob(cell.folder.path, cell.spec, cell.plugin_sources), anew=True)
        with own_plugins():
            load_plugins(cell.spec, cell.folder)  # as its process does, from the copy
            assert digests(["mine"]) == cell.spec["digests"]
        with own_plugins(), pytest.raises(VQBenchError, match="a metric has changed since this cell was planned"):
            load_plugins({**cell.spec, "digests": {"mine": "another"}}, cell.folder)


def test_a_plugin_that_is_broken_stops_nothing_that_does_not_ask_for_it(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import gone\n" + MINE.replace("FACTOR", "1"))
    before = default_metrics()
    add_plugin(path)
    assert default_metrics() == before
    assert companions(before) == ("rfid_continuous", "psnr_continuous")
    assert "psnr" in dict(DEFINITIONS)
    assert "broken: plugin" in typed("metrics").out
    with pytest.raises(UsageError, match="No module named 'gone'"):
        select_metrics(["mine"])


def test_a_code_metric_may_be_of_features_too(runs: Path, tmp_path: Path) -> None:
    text = OUTSIDE.read_text().replace(
        "title, better, each_codebook = ", 'tracks = ("features",)\n    title, better, each_codebook = '
    )
    (tmp_path / "o.py").write_text(text)
    np.save(tmp_path / "f.npy", np.random.default_rng(0).standard_normal((400, 8), np.float32))
    asked = [
        "--recipe",
        "atomic",
        "--methods",
        "vqgan",
        "--features",
        tmp_path / "f.npy",
        "--images",
        64,
        "--runs",
        runs,
    ]
    answer = typed("run", "--plugin", tmp_path / "o.py", *asked, "--metrics", "usage,top_code", "--json")
    assert answer.code == 0, answer.err
    (row,) = answer.objects
    assert 0 < row["scores"]["top_code"] < 1
    assert row["digests"].keys() == {"top_code"}


def test_an_installed_package_brings_metrics(vqbench: Command, tmp_path: Path) -> None:
    info = tmp_path / "somewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vqbench.metrics]\nmine = somewhere:Mine\n")
    (tmp_path / "somewhere.py").write_text(MINE.replace("FACTOR", "1").replace("title,", "default = True; title,"))
    listed = vqbench("metrics", PYTHONPATH=str(tmp_path))
    assert "somewhere 1.0" in listed.out, listed.err
    asked = ("run", "--methods", "vqgan", "--dataset", "photos", "--runs", tmp_path / "runs", "--dry-run")
    done = vqbench(*asked, "--metrics", "psnr,mine", PYTHONPATH=str(tmp_path))
    assert done.code == 0, done.err
