"""What a sweep has still to do, said before it does it: its trials, their cells, what these cost."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml
from helpers.commands import SMALL, typed
from helpers.sweeps import Place, Pretence, pretended, request
from hypothesis import given, settings
from hypothesis import strategies as st

from vqbench.cell.measured import Measured, steps_between
from vqbench.cli.terminal_plans import print_sweep_costs
from vqbench.machine.json_files import write_json
from vqbench.planning.cost import CellCost, cell_cost
from vqbench.planning.plan import Cell
from vqbench.planning.preflight import model_size
from vqbench.planning.view import Silent
from vqbench.running.pricing import ProbeError
from vqbench.sweeps import costs
from vqbench.sweeps import forecast as forecasts
from vqbench.sweeps.backend import OpenStudy
from vqbench.sweeps.costs import SweepCosts, probe_sweep
from vqbench.sweeps.forecast import forecast
from vqbench.sweeps.samplers import blind_trials
from vqbench.sweeps.studies import plan_studies
from vqbench.sweeps.sweep import plan_sweep
from vqbench.tokenizer import build_tokenizer

SPACES = {
    "finite": {"recipe": {"codebook_size": [2**n for n in range(3, 12)]}},
    "continuous": {"recipe": {"codebook_size": [8, 16, 32], "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}},
}
SAMPLERS = ["tpe", "random", "nsga2", "grid"]
SECONDS_PER_VALUE = 1e-6


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.made(tmp_path, 40, [8, 16, 32])


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(s, k) for s in SAMPLERS for k in SPACES if (s, k) != ("grid", "continuous")]),
    st.lists(st.sampled_from(["done", "pruned", "failed", "failed for good", "orphan", "resumed"]), max_size=7),
    st.integers(0, 3),
)
def test_what_is_certain_comes_so(
    tmp_path_factory: pytest.TempPathFactory, kind: tuple[str, str], before: list[str], seed: int
) -> None:
    """Whatever has become of the trials before; and nothing is asked of the study itself."""
    sampler, space = kind
    asked = request(tmp_path_factory.mktemp("asked"), SPACES[space], sampler=sampler, trials=9, sampler_seed=seed)
    (plan,), _ = plan_studies(asked)
    storage = optuna.storages.InMemoryStorage()
    study = OpenStudy(plan, asked, storage, ["minimize"], 100)
    again = 0
    for i, end in enumerate(before):
        if end == "resumed":
            assert study.put_back_failed() + study.put_back_orphans(lambda _: 0) == again
            again = 0
            continue
        trial, _ = study.ask()
        again += end in ("failed", "orphan")
        trial.set_user_attr("images", 0)
        if end == "done":
            study.tell(trial, [float(i)], "done", {})
        elif end != "orphan":
            stage = "plan" if end == "failed for good" else "train"
            study.tell(trial, None, end.split()[0], {"error": {"type": "RuntimeError", "stage": stage}})
    trials = len(study.study.trials)
    foreseen = study.foresee(100, 100)
    assert len(study.study.trials) == trials
    assert len(foreseen) == study.left
    certain = [drawn for drawn, is_certain in foreseen if is_certain]
    waiting = len([t for t in study.study.trials if t.state.name == "WAITING"])
    assert len(certain) >= again + waiting
    if blind_trials(sampler, 9) >= 9:
        assert len(certain) == study.left
    assert study.foresee(100, 0) == foreseen[: len(certain)]

    on = OpenStudy(plan, asked, storage, ["minimize"], 100)
    assert on.put_back_failed() + on.put_back_orphans(lambda _: 0) == again
    assert on.remaining == len(foreseen)
    came = []
    for drawn in certain:
        trial, point = on.ask()
        came.append(point)
        on.tell(trial, [float(len(str(drawn)))], "done", {})
    back = again + waiting  # in an order of their own
    assert sorted(map(str, came[:back])) == sorted(map(str, certain[:back]))
    assert came[back:] == certain[back:]


def test_a_dry_run_counts_cells_and_says_what_is_not_drawn_yet(place: Place) -> None:
    space = place.write("rates.yaml", {"recipe": {"codebook_size": [8, 16], "learning_rate": {"low": 1e-4, "high": 1}}})
    ask = ["vqgan", *place.typed("--space", space, "--trials", 9, "--sweep-name", "s", "--seeds", "0,1", "--dry-run")]
    (study,) = typed("sweep", *ask, "--json").objects
    assert study["cells"] == {"missing": 8, "undrawn": 10}  # two seeds; four trials are drawn at random
    assert (study["told"], study["left"]) == (0, 9)
    assert "8 missing, 10" in typed("sweep", *ask).out
    assert not place.runs.exists()


def test_told_trials_are_not_counted_again(place: Place) -> None:
    report, _ = pretended(place, place.root, str(place.root / "sizes.yaml"), Pretence(1), trials=2, name="s")
    assert [row["state"] for row in report.rows] == ["done"] * 2
    ask = place.typed("--space", place.root / "sizes.yaml", "--trials", 3, "--sweep-name", "s", "--dry-run", "--json")
    (study,) = typed("sweep", "vqgan", *ask).objects
    assert (study["told"], study["left"], study["cells"]) == (2, 1, {"missing": 1})


def test_a_dry_run_leaves_a_journal_as_it_is(place: Place) -> None:
    journal = place.root / "trials.log"
    pretended(place, place.root, str(place.root / "sizes.yaml"), Pretence(1), trials=2, name="s", storage=str(journal))
    before = journal.read_bytes()
    ask = ["vqgan", *place.typed("--space", place.root / "sizes.yaml", "--sweep-name", "s", "--trials", 3)]
    (study,) = typed("sweep", *ask, "--storage", journal, "--dry-run", "--json").objects
    assert (study["told"], study["left"]) == (2, 1)
    assert journal.read_bytes() == before


def test_a_dry_run_reads_the_storage_that_a_url_names(place: Place) -> None:
    url = f"sqlite:///{place.root / 'q.db'}?timeout=30"
    pretended(place, place.root, str(place.root / "sizes.yaml"), Pretence(1), trials=2, name="s", storage=url)
    ask = ["vqgan", *place.typed("--space", place.root / "sizes.yaml", "--sweep-name", "s", "--trials", 3)]
    (study,) = typed("sweep", *ask, "--storage", url, "--dry-run", "--json").objects
    assert (study["told"], study["left"]) == (2, 1)


def test_a_dry_run_does_not_make_a_database_that_is_gone(place: Place) -> None:
    pretended(place, place.root, str(place.root / "sizes.yaml"), Pretence(1), trials=2, name="s")
    (place.runs / "x" / "optuna.db").unlink()
    ask = ["vqgan", *place.typed("--space", place.root / "sizes.yaml", "--sweep-name", "s", "--trials", 3)]
    (study,) = typed("sweep", *ask, "--dry-run", "--json").objects
    assert study["left"] == 3
    assert not (place.runs / "x" / "optuna.db").exists()


# costs


def priced(cell: Cell, _: Any) -> Measured:
    """A step takes as long as the model and the batch are large, one with the discriminator thrice as long."""
    size, batch = model_size(cell), cell.recipe.batch_size
    numbers: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(Measured)), 0)
    step = SECONDS_PER_VALUE * size * batch
    plain, adversarial = steps_between(cell.recipe, 0, cell.recipe.steps * batch)  # of no steps no time is known
    numbers |= {"step_seconds": step * (plain > 0), "adversarial_step_seconds": 3 * step * (adversarial > 0)}
    numbers |= {
        "overhead_seconds": 2.0,
        "checkpoint_seconds": 0.1,
        "evaluation_image_seconds": 0.01,
        "weights_bytes": 4 * size,
    }
    numbers |= {"reference_image_seconds": 5.0, "reference_image_bytes": 8.0, "reference_is_cached": False}
    return Measured(**(numbers | {"device": "cpu", "device_name": "abacus"}))


class Priced:
    """A sweep of images whose probes cost nothing and tell what is known."""

    def __init__(self, root: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.images, self.probes = root, images, 0
        self.notes: list[str] = []
        self.broken: set[int] = set()

        def probe(cell: Cell, run: Any, view: Any) -> Any:
            self.probes += 1
            size = cell.spec["config"].get("codebook_size")
            return ProbeError("too large", "none") if size in self.broken else priced(cell, view)

        monkeypatch.setattr(costs, "probe", probe)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def plan(self, fields: dict[str, Any], methods: str = "vqgan", seeds: tuple[int, ...] = (0,), **more: Any) -> Any:
        fixed = tuple(text for text in SMALL if text.partition("=")[0] not in fields)
        adversarial = ["gan=hinge", "discriminator_layers=1"]
        adversarial += ["gan_start_images=32"] if "gan_start_images" not in fields else []
        asked = request(self.root, {"recipe": fields}, methods, settings=(*fixed, *adversarial), **more)
        run = dataclasses.replace(asked.run, dataset=f"folder:{self.images}", images=None, seeds=seeds,
                                  metrics=("psnr",), name="x")  # fmt: skip
        if "images" not in fields:
            run = dataclasses.replace(run, images=64)
        return plan_sweep(dataclasses.replace(asked, run=run), Silent())

    def costs(self, plan: Any) -> tuple[dict[str, list[Cell]], SweepCosts]:
        """The cells of each study that are drawn ahead, and what the sweep costs."""
        found, view = forecast(plan, guess=True), Silent()
        view.note = self.note  # type: ignore[method-assign]
        cells = {name: [cell for t in study.trials for cell in t.cells] for name, study in found.items()}
        return cells, probe_sweep(plan, found, view)


@pytest.fixture
def sweep(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> Priced:
    return Priced(tmp_path, images, monkeypatch)


def begin(cell: Cell) -> None:
    """Leave a checkpoint where the discriminator begins."""
    cell.folder.checkpoint.parent.mkdir(parents=True)
    torch.save({"images_seen": 32}, cell.folder.checkpoint)


def finish(cell: Cell) -> None:
    """Leave a result."""
    cell.folder.path.mkdir(parents=True)
    write_json(cell.folder.path / "spec.json", cell.spec)
    write_json(cell.folder.path / "result.json", {"state": "done", "scores": {"psnr": 20.0}})


def own_cost(cell: Cell, done: int = 0) -> CellCost:
    """What a probe of this very cell would say."""
    validation = cell.spec["protocol"]["n_images"]
    return cell_cost(priced(cell, None), cell.recipe, done=done, validation_images=validation, devices=1,
                     scoring_seconds=0.0)  # fmt: skip


VARIED = {
    "codebook_size": [8, 64, 512, 4096],
    "images": [32, 64, 640],
    "batch_size": [8, 16],
    "learning_rate": {"low": 1e-4, "high": 1e-2},
}


def test_the_cost_lies_between_what_two_probes_of_each_method_say(sweep: Priced) -> None:
    """Whatever is drawn together; a cell that has begun has the dear half left, and a cached one is not counted."""
    plan = sweep.plan(VARIED, "vqgan,fsq", (0, 1), sampler="random", trials=12)
    trials = forecast(plan, guess=True)["vqgan+fsq-space/vqgan"].trials
    assert len(trials) == 6
    begun, cached = trials[0].cells[0], trials[1].cells[1]
    begin(begun)
    finish(cached)

    plan = sweep.plan(VARIED, "vqgan,fsq", (0, 1), sampler="random", trials=12)
    cells, found = sweep.costs(plan)
    assert sweep.probes == 4
    assert sum(cell.state == "cached" for of_study in cells.values() for cell in of_study) == 1
    for name, of_study in cells.items():
        expected = [
            own_cost(c, 32 if c.folder.name == begun.folder.name else 0) for c in of_study if c.state != "cached"
        ]
        share = found.studies[name]
        assert (share.cells, share.undrawn) == (len(expected), 0)
        assert share.least.seconds < sum(cost.seconds for cost in expected) < share.most.seconds
        assert share.least.disk_bytes < sum(cost.disk_bytes for cost in expected) < share.most.disk_bytes
    reference = 5.0 * plan.base.protocol.n_images
    assert found.reference.seconds == reference
    for end, total in zip(("least", "most"), found.total(), strict=True):
        shares = [getattr(study, end) for study in found.studies.values()]
        assert total.seconds == pytest.approx(sum(share.seconds for share in shares) + reference)
        assert total.device_hours == pytest.approx(total.seconds / 3600)
        assert total.disk_bytes == sum(share.disk_bytes for share in shares) + found.reference.disk_bytes
    assert sum(study.cells for study in found.studies.values()) == 23
    json.dumps(found.as_dicts(), allow_nan=False)
    assert [share["reference_seconds"] for share in found.as_dicts().values()] == [reference, 0]


def test_one_size_of_cell_is_one_probe_and_one_number(sweep: Priced) -> None:
    fields = {"learning_rate": {"low": 1e-4, "high": 1e-2}}
    of_a_study, found = sweep.costs(sweep.plan(fields, sampler="random", trials=6))
    (cells,), (study,) = of_a_study.values(), found.studies.values()
    assert sweep.probes == 1
    assert study.least == study.most
    probed = own_cost(cells[0])
    assert study.least.disk_bytes == pytest.approx(6 * probed.disk_bytes)


def test_what_is_too_far_ahead_is_as_the_cheapest_and_as_the_dearest(
    sweep: Priced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasts, "MOST_TRIALS", 6)
    fields = {"codebook_size": [8, 64, 4096], "learning_rate": {"low": 1e-4, "high": 1e-2}}
    plan = sweep.plan(fields, sampler="random", trials=9)
    of_a_study, found = sweep.costs(plan)
    (cells,), (study,) = of_a_study.values(), found.studies.values()
    assert len(cells) == 6
    times = [own_cost(cell).seconds for cell in cells]
    assert (study.cells, study.undrawn) == (9, 3)
    assert study.least.seconds == pytest.approx(9 * min(times))
    assert study.most.seconds == pytest.approx(9 * max(times))


def test_the_discriminator_makes_a_cell_dearer_than_any_size(sweep: Priced) -> None:
    fields = {"gan_start_images": [0, 32, 64], "codebook_size": [8, 4096]}
    of_a_study, found = sweep.costs(sweep.plan(fields, sampler="grid", trials=6))
    (cells,), (study,) = of_a_study.values(), found.studies.values()
    assert sweep.probes == 2
    assert study.least.seconds < sum(own_cost(cell).seconds for cell in cells) < study.most.seconds


def test_the_size_of_a_model_is_what_it_holds(sweep: Priced, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = sweep.plan({"codebook_size": [8, 64]}, trials=2).base.cells
    parts = build_tokenizer("vqgan", cell.spec["config"], cell.recipe, 0).parameter_counts()
    assert model_size(cell) == parts["encoder"] + parts["quantizer"] + parts["decoder"]
    another = dataclasses.replace(cell, spec={**cell.spec, "code": "of a plugin with layers that know no size yet"})
    monkeypatch.setattr("vqbench.tokenizer.build_quantizer", lambda *_: torch.nn.LazyLinear(3))
    assert model_size(another) == parts["encoder"] + parts["decoder"]


def test_what_is_not_drawn_yet_is_said(sweep: Priced, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"codebook_size": [8, 64, 4096], "learning_rate": {"low": 1e-4, "high": 1e-2}}
    _, found = sweep.costs(sweep.plan(fields, trials=7))
    (study,) = found.studies.values()
    assert (study.cells, study.undrawn) == (7, 3)
    print_sweep_costs(found)
    least, most = (f"{amount.device_hours:.3g}" for amount in found.total())
    shown = " ".join(capsys.readouterr().out.split())
    assert least != most
    assert f"{least} to {most}" in shown
    assert "3 cells of these are not drawn yet: they count as the cheapest that is, and as the dearest" in shown


def test_a_cell_that_cannot_be_probed_leaves_the_others_their_numbers(sweep: Priced) -> None:
    sweep.broken = {4096}
    plan = sweep.plan({"codebook_size": [8, 64, 512, 4096]}, sampler="grid", trials=4)
    _, found = sweep.costs(plan)
    (study,) = found.studies.values()
    assert study.problem is None
    assert not found.failed
    assert study.least.seconds < study.most.seconds
    assert not any("cannot be measured" in note for note in sweep.notes)  # the next one can be
    sweep.broken = {64, 512, 4096}
    _, found = sweep.costs(plan)
    (study,) = found.studies.values()
    assert "vqgan: the largest cell cannot be measured, too large" in sweep.notes
    assert study.least == study.most
    sweep.broken = {8, 64, 512}
    _, found = sweep.costs(plan)
    assert not found.failed
    assert "vqgan: the smallest cell cannot be measured, too large" in sweep.notes
    sweep.broken = {8, 64, 512, 4096}
    _, found = sweep.costs(plan)
    assert found.failed
    assert {study.problem for study in found.studies.values()} == {"too large"}


def test_a_sweep_with_nothing_to_train_says_so(sweep: Priced, capsys: pytest.CaptureFixture[str]) -> None:
    plan = sweep.plan({"codebook_size": [8, 64]}, sampler="grid", trials=2)
    (study,) = forecast(plan, guess=True).values()
    for trial in study.trials:
        finish(trial.cells[0])
    _, found = sweep.costs(sweep.plan({"codebook_size": [8, 64]}, sampler="grid", trials=2))
    print_sweep_costs(found)
    assert capsys.readouterr().out.strip() == "nothing is left to train"
    assert sweep.probes == 0


def test_a_limit_that_is_not_taken_off_is_named(sweep: Priced) -> None:
    sweep.costs(sweep.plan({"codebook_size": [8, 64]}, sampler="grid", trials=2, max_images=64, timeout=9.0))
    assert "the costs are those of all trials; --max-images and --timeout may end the sweep before" in sweep.notes


def test_a_real_probe_of_a_sweep_measures_both_ends_of_what_is_drawn(tmp_path: Path) -> None:
    """8 codes cost less than 65,536."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(80, 2, 2, 6)).astype(np.float32))
    (tmp_path / "sizes.yaml").write_text(yaml.safe_dump({"recipe": {"codebook_size": [65536, 16, 256]}}))
    answer = typed(
        "sweep", "vqgan", "--recipe", "atomic", "--features", tmp_path / "x.npy", "--space", tmp_path / "sizes.yaml",
        "--trials", "3", "--images", "64", "--runs", tmp_path / "runs", "--name", "x", "--set", "batch_size=16",
        "--set", "codebook_dim=4", "--dry-run", "--probe", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    (study,) = answer.objects
    cost = study["cost"]
    more_weights = (65536 - 16) * 4 * 4  # float32
    least, most = cost["disk_bytes"]
    assert most - least > 3 * more_weights
    assert (cost["cells_to_train"], cost["undrawn"]) == (3, 0)
    assert 0 < cost["seconds"][0] <= cost["seconds"][1]
    assert not (tmp_path / "runs" / "x").exists()
