"""Studies: what a sampler draws and a pruner ends, on executions that are only pretended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.sweeps import Place, Pretence, opened, pretended

from vqbench.errors import UsageError
from vqbench.sweeps.backend import open_storage
from vqbench.sweeps.spaces import grid

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.made(tmp_path_factory.mktemp("sweep"), 80, [8, 64])


def lr(drawn: dict[str, Any]) -> float:
    return float(drawn.get("learning_rate", 0)) + len(str(drawn))


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "nsga2"])
def test_a_study_that_was_cut_off_draws_as_one_that_was_not(sampler: str, tmp_path: Path) -> None:
    n = 4 if sampler == "grid" else 7
    whole, cut = opened(tmp_path, sampler, n, "whole"), opened(tmp_path, sampler, n, "cut")
    expected = []
    while whole.remaining:
        trial, drawn = whole.ask()
        whole.tell(trial, [lr(drawn)], "done", {})
        expected.append(drawn)
    for _ in range(2):
        trial, drawn = cut.ask()
        cut.tell(trial, [lr(drawn)], "done", {})
    cut.ask()  # and its driver dies
    cut = opened(tmp_path, sampler, n, "cut")
    assert cut.put_back_orphans(lambda cell: 0) == 1
    assert cut.put_back_orphans(lambda cell: 0) == 0
    while cut.remaining:
        trial, drawn = cut.ask()
        cut.tell(trial, [lr(drawn)], "done", {})
    assert [trial.params for trial in cut.trials()] == expected == [trial.params for trial in whole.trials()]
    if sampler == "grid":
        assert sorted(map(str, expected)) == sorted(map(str, grid(cut.plan.parameters, cut.plan.base)))
    else:
        assert len({str(drawn) for drawn in expected}) > 4


def test_what_a_killed_driver_has_trained_counts(tmp_path: Path) -> None:
    study = opened(tmp_path, "random", 2)
    trial, drawn = study.ask()
    trial.set_user_attr("under_way", {"a": 16, "b": 0, "c": 64})
    study = opened(tmp_path, "random", 2)
    study.put_back_orphans({"a": 48, "b": 8, "c": 64}.__getitem__)
    trial, again = study.ask()
    assert again == drawn
    assert trial.user_attrs["images"] == 32 + 8


class Looking(Pretence):
    """Sees what the trials say of their cells while these are under way."""

    storage = ""
    looked = 0

    def wait(self) -> list[tuple[Any, dict[str, Any]]]:
        (study,) = optuna.storages.RDBStorage(self.storage).get_all_studies()
        trials = optuna.load_study(study_name=study.study_name, storage=self.storage).trials
        notes = [trial.user_attrs["under_way"] for trial in trials if trial.state.name == "RUNNING"]
        assert {name: 0 for note in notes for name in note} == {cell.folder.name: 0 for cell in self.cells}
        self.looked = len(notes)
        return super().wait()


@pytest.mark.parametrize("slots", [0, 2])
def test_equal_trials_share_a_cell_and_workers_may_come_late(slots: int, place: Place, tmp_path: Path) -> None:
    space = place.write("two.yaml", {"recipe": {"codebook_size": [8, 64]}})
    found, pretence = pretended(place, tmp_path, space, Pretence(slots), trials=8, sampler="random")
    assert len(pretence.submitted) == len(set(pretence.submitted)) == 2
    assert [row["state"] for row in found.rows].count("done") == 2
    assert [row["state"] for row in found.rows].count("cached") == 6
    assert {row["values"]["quantization_error"] for row in found.rows} == {8.0, 64.0}
    assert found.best(found.studies[0], "quantization_error")["drawn"] == {"codebook_size": 8}  # type: ignore[index]


def test_a_trial_remembers_its_cells_while_they_are_under_way(place: Place, tmp_path: Path) -> None:
    looking = Looking(2)
    looking.storage = f"sqlite:///{tmp_path / 'runs/x/optuna.db'}"
    space = place.write("two.yaml", {"recipe": {"codebook_size": [8, 64]}})
    found, _ = pretended(place, tmp_path, space, looking, trials=2, sampler="grid")
    assert looking.looked == 2
    study = optuna.load_study(study_name=found.rows[0]["study"], storage=looking.storage)
    assert [trial.user_attrs["under_way"] for trial in study.trials] == [{}, {}]


def test_a_trial_is_the_mean_over_its_seeds_and_fails_with_one(place: Place, tmp_path: Path) -> None:
    space = place.write("two.yaml", {"recipe": {"codebook_size": [8, 64]}})
    found, pretence = pretended(place, tmp_path, space, Pretence(2), trials=2, sampler="grid", seeds=(0, 1))
    assert len(pretence.submitted) == 4
    assert all(row["cells"][0] != row["cells"][1] for row in found.rows)
    second = Pretence(2)
    second.ends = {pretence.submitted[-1]: "failed"}
    found, _ = pretended(place, tmp_path / "second", space, second, trials=2, sampler="grid", seeds=(0, 1))
    assert [row["state"] for row in found.rows] == ["done", "failed"]
    assert found.rows[1]["error"] == {"message": "odd", "type": "Killed"}
    again, third = pretended(place, tmp_path / "second", space, Pretence(2), trials=2, sampler="grid", seeds=(0, 1))
    assert third.submitted == pretence.submitted[2:]  # nothing is known of the cells that were pretended
    assert [row["state"] for row in again.rows] == ["done", "done"]
    assert [row["drawn"] for row in again.rows] == [row["drawn"] for row in found.rows]


def test_importances_say_what_tells_good_trials_and_more_trials_may_be_added(place: Place, tmp_path: Path) -> None:
    space = place.write("three.yaml", {"recipe": {"codebook_size": [8, 64, 512], "optimizer": ["adam", "adamw"]}})
    few, _ = pretended(place, tmp_path, space, Pretence(2), trials=4, sampler="random")
    assert not few.studies[0].importances["quantization_error"]
    assert any("too few finished trials of vqgan" in note for note in few.notes())
    more, _ = pretended(place, tmp_path, space, Pretence(2), trials=16, sampler="random")
    assert [row["drawn"] for row in more.rows[:4]] == [row["drawn"] for row in few.rows]
    assert len(more.rows) == 16
    shares = more.studies[0].importances["quantization_error"]
    assert shares["codebook_size"] > 2 * shares["optimizer"]  # the pretended score is the size
    assert sum(shares.values()) == pytest.approx(1)
    (picture,) = more.folder.glob("importances-*.png")
    assert picture.name == "importances-vqgan.png"
    assert picture.stat().st_size > 5000
    assert not (more.folder / "pareto.png").exists()


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruners_end_what_lags_behind(pruner: str, tmp_path: Path) -> None:
    study = opened(tmp_path, "random", 12, pruner=pruner)
    ended = []
    for number in range(12):
        trial, _ = study.ask()
        for images in range(5, 100, 5):
            trial.report(1.0 if number % 3 == 0 else 10.0 + number, images)
            if trial.should_prune():
                study.tell(trial, None, "pruned", {})
                ended.append(number)
                break
        else:
            study.tell(trial, [1.0], "done", {})
    assert ended
    assert not any(number % 3 == 0 for number in ended)
    assert study.remaining == 0


def test_a_storage_that_cannot_be_had_says_so_without_its_password(tmp_path: Path) -> None:
    for where in ("postgresql://me:secret@127.0.0.1:1/none", "sqlite:////nowhere/at/all.db", "odd.db"):
        with pytest.raises(UsageError) as error:
            open_storage(where, tmp_path)
        assert "secret" not in error.value.what + error.value.hint
        assert error.value.hint
