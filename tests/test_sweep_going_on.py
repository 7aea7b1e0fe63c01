"""A sweep whose storage, data or person goes away in the middle, and how it goes on."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from helpers.commands import typed
from helpers.sweeps import Place, Pretence, opened, pretended, request

from vqbench import recipe as recipes
from vqbench.errors import UsageError, VQBenchError
from vqbench.planning.view import Silent
from vqbench.sweeps import backend, patience
from vqbench.sweeps.backend import OpenStudy, open_storage
from vqbench.sweeps.patience import PatientStorage, StorageError
from vqbench.sweeps.refusals import check_objectives
from vqbench.sweeps.studies import plan_studies

NINE = {"recipe": {"codebook_size": [2**n for n in range(3, 12)]}}


class Heard(Silent):
    """Keeps what is said aloud."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.made(tmp_path, 40, [8, 16, 32])


def swept(place: Place, pretence: Pretence, view: Heard | None = None, **more: Any) -> Any:
    return pretended(place, place.root, str(place.root / "sizes.yaml"), pretence, view=view, **more)[0]


# the data


class Losing(Pretence):
    """The data is moved away while its first cell runs."""

    def __init__(self, data: Path) -> None:
        super().__init__(1)
        self.data = data

    def wait(self) -> list[tuple[Any, dict[str, Any]]]:
        self.data.rename(self.data.with_suffix(".away"))
        return super().wait()


def test_data_that_cannot_be_read_ends_the_sweep_and_spends_no_trial(place: Place) -> None:
    data = place.root / "x.npy"
    with pytest.raises(UsageError, match="cannot read --features"):
        swept(place, Losing(data), trials=3, sampler="grid")
    data.with_suffix(".away").rename(data)
    report = swept(place, Pretence(1), trials=3, sampler="grid")
    assert [row["state"] for row in report.rows] == ["done"] * 3
    assert sorted(row["drawn"]["codebook_size"] for row in report.rows) == [8, 16, 32]


def test_data_that_changes_while_a_sweep_runs_ends_it(place: Place) -> None:
    class Changing(Pretence):
        def wait(self) -> list[tuple[Any, dict[str, Any]]]:
            features = np.load(place.root / "x.npy")
            features[0] += 1
            np.save(place.root / "x.npy", features)
            return super().wait()

    with pytest.raises(UsageError, match="the data has changed since this sweep began"):
        swept(place, Changing(1), trials=3, sampler="grid")


# the storage


class Deaf(optuna.storages.InMemoryStorage):
    """Loses its first answer of how a trial stands."""

    lost = False

    def set_trial_state_values(self, *args: Any, **more: Any) -> bool:
        answer = super().set_trial_state_values(*args, **more)
        if not self.lost:
            self.lost = True
            raise optuna.exceptions.StorageInternalError("commit")
        return answer


def test_a_trial_that_was_taken_and_not_answered_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSE_SECONDS", 0.001)

    asked = request(tmp_path, NINE, sampler="grid", trials=9)
    (plan,), _ = plan_studies(asked)
    study = OpenStudy(plan, asked, PatientStorage(Deaf(), "db", "go on", lambda _: None), ["minimize"], 100)
    drawn = [study.ask()[1] for _ in range(9)]
    assert drawn == study._points
    assert len(study.trials()) == 9


class Away:
    """A storage that raises while it is away: for a number of calls, or for good."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0.0

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            self.calls -= 1
            if self.calls >= 0:
                raise optuna.exceptions.StorageInternalError("commit") from OSError("disk full")
            return getattr(self.inner, name)(*args, **more)

        return call


def test_a_storage_that_comes_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSE_SECONDS", 0.001)
    heard, away = Heard(), Away(optuna.storages.InMemoryStorage())
    asked = request(tmp_path, NINE, sampler="random", trials=2)
    (plan,), _ = plan_studies(asked)
    study = OpenStudy(plan, asked, PatientStorage(away, "db", "go on", heard.note), ["minimize"], 100)
    trial, _ = study.ask()
    away.calls = 3
    study.tell(trial, [1.0], "done", {})
    assert heard.notes == ["db does not answer (disk full); trying for 60 s"]
    assert [trial.value for trial in study.trials()] == [1.0]
    away.calls = 1
    assert study.remaining == 1
    assert len(heard.notes) == 2


def test_what_was_told_and_not_answered_is_not_told_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSE_SECONDS", 0.001)

    asked = request(tmp_path, {"recipe": {"learning_rate": {"low": 0.1, "high": 0.2}}}, sampler="random", trials=2)
    (plan,), _ = plan_studies(asked)
    study = OpenStudy(plan, asked, PatientStorage(Deaf(), "db", "go on", Heard().note), ["minimize"], 100)
    study.tell(study.ask()[0], [1.0], "done", {})
    assert [trial.value for trial in study.trials()] == [1.0]


class Cut(Pretence):
    """The storage goes away for good while the first cell runs."""

    away: Away
    interrupted = False

    def wait(self) -> list[tuple[Any, dict[str, Any]]]:
        self.away.calls = float("inf")
        if self.interrupted:
            raise KeyboardInterrupt
        return super().wait()

    def storage(self, *args: Any, **more: Any) -> PatientStorage:
        found = open_storage(*args, **more)
        self.away = found._inner = Away(found._inner)
        return found


def test_the_first_error_is_the_one_that_is_heard(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that has gone away too must not hide it, and what it could not be told is found by the next command."""
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.1)
    cut = Cut(1)
    cut.interrupted = True
    monkeypatch.setattr(backend, "open_storage", cut.storage)
    with pytest.raises(KeyboardInterrupt):
        swept(place, cut, trials=3, sampler="grid")
    monkeypatch.setattr(backend, "open_storage", open_storage)
    heard = Heard()
    assert len(swept(place, Pretence(1), heard, trials=3, sampler="grid").rows) == 3
    assert "tried again: 1 trial that had not come to an end" in heard.notes


def test_a_storage_that_stays_away_is_an_error_that_says_how_to_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.1)
    cut, heard = Cut(1), Heard()
    monkeypatch.setattr(backend, "open_storage", cut.storage)
    with pytest.raises(StorageError) as error:
        swept(place, cut, heard, trials=3, sampler="grid", name="s")
    monkeypatch.setattr(backend, "open_storage", open_storage)
    assert isinstance(error.value, VQBenchError)  # two lines, and no bug of ours
    assert "optuna.db: disk full" in error.value.what
    assert f"vqbench sweep --resume s --name x --runs {place.runs}" in error.value.hint
    assert sum("does not answer" in note for note in heard.notes) == 1
    report = swept(place, Pretence(1), trials=3, sampler="grid", name="s")
    assert [row["state"] for row in report.rows] == ["done"] * 3


def test_a_database_that_was_started_anew_is_not_even_waited_for(tmp_path: Path, postgres: Any) -> None:
    import psycopg2

    url, heard = postgres(), Heard()
    asked = request(tmp_path, NINE, sampler="random", trials=2)
    (plan,), _ = plan_studies(asked)
    study = OpenStudy(plan, asked, open_storage(url, tmp_path, heard.note), ["minimize"], 100)
    trial, _ = study.ask()
    with psycopg2.connect(url.replace("+psycopg2", "")) as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        connection.cursor().execute(f"{others} AND pid <> pg_backend_pid()")
    connection.close()
    study.tell(trial, [1.0], "done", {})
    assert [trial.value for trial in study.trials()] == [1.0]
    assert not heard.notes


# Ctrl-C


class Interrupted(Pretence):
    """Ctrl-C comes when its first cell has trained 48 images."""

    def wait(self) -> list[tuple[Any, dict[str, Any]]]:
        (cell,) = self.cells
        cell.folder.checkpoint.parent.mkdir(parents=True)
        cell.folder.checkpoint.touch()
        (cell.folder.path / "metrics.jsonl").write_text(json.dumps({"images": 48, "distance": 1.0}) + "\n")
        raise KeyboardInterrupt


def test_what_was_trained_before_an_interruption_counts(place: Place) -> None:
    heard = Heard()
    with pytest.raises(KeyboardInterrupt):
        swept(place, Interrupted(1), heard, trials=1, name="s", max_images=100)
    summary = place.runs / "x" / "sweeps" / "s" / "summary.md"
    assert heard.notes[-1] == (
        f"{summary} has what was found so far; go on with `vqbench sweep --resume s --name x --runs {place.runs}`"
    )
    assert summary.is_file()
    report = swept(place, Pretence(1), trials=1, name="s", max_images=100)
    assert report.reason == "--max-images 100 leaves no room for another trial"  # 48 + 64
    report = swept(place, Pretence(1), trials=1, name="s", max_images=112)
    assert [(row["state"], row["images"]) for row in report.rows] == [("done", 48)]  # a pretended cell trains nothing


def test_a_trial_that_is_put_back_keeps_its_images(tmp_path: Path) -> None:
    study = opened(tmp_path, "random", 2)
    for before, seen, total in ((16, 48, 64), (48, 50, 66)):
        trial, drawn = study.ask()
        trial.set_user_attr("images", trial.user_attrs.get("images", 32))  # those of cells that have ended
        trial.set_user_attr("under_way", {"a": before})
        study.put_back(trial.number, drawn, {"a": seen}.__getitem__)
        assert study.images == total
    trial, _ = study.ask()
    study.tell(trial, None, "failed", {"error": {"type": "Killed"}})
    assert study.put_back_failed() == 1
    assert study.images == 66


def test_the_bound_of_images_is_that_of_the_largest_choice(place: Place) -> None:
    space = place.write("images.yaml", {"recipe": {"images": [10**9, 64]}})
    more = {"max_images": 10**9 - 1, "trials": 2, "options": {"images": None}}
    report, _ = pretended(place, place.root, space, Pretence(1), **more)
    assert not report.rows
    assert "leaves no room" in report.reason


# no configuration twice


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_nothing_is_tried_twice_while_there_is_something_else(sampler: str, tmp_path: Path) -> None:
    """Ten trials over nine points; a sweep that was cut off draws the same."""
    fields = {
        "optimizer": ["adam", "adamw"],
        "codebook_size": {"choices": [8, 16, 32, 64, 128], "when": {"optimizer": "adam"}},
        "weight_decay": {"low": 0.1, "high": 0.4, "step": 0.1, "when": {"optimizer": "adamw"}},
    }
    asked = request(tmp_path, {"recipe": fields}, sampler=sampler, trials=10)
    (plan,), _ = plan_studies(asked)
    orders = []
    for cut in (False, True):
        storage = optuna.storages.InMemoryStorage()
        study, drawn = OpenStudy(plan, asked, storage, ["minimize"], 100), []
        for i in range(10):
            trial, point = study.ask()
            if cut and i == 4:
                study = OpenStudy(plan, asked, storage, ["minimize"], 100)
                assert study.put_back_orphans(lambda _: 0) == 1
                trial, point = study.ask()
            drawn.append({name: value if isinstance(value, str) else round(value, 9) for name, value in point.items()})
            study.tell(trial, [float(len(str(point)))], "done", {})
        assert len({str(point) for point in drawn[:9]}) == 9
        assert drawn[9] in drawn[:9]
        assert [trial.state.name for trial in study.trials()] == ["COMPLETE"] * 10
        orders.append(drawn)
    assert orders[0] == orders[1]


def test_a_large_range_is_counted_without_listing_it(tmp_path: Path) -> None:
    (plan,), _ = plan_studies(request(tmp_path, {"recipe": {"images": {"low": 1, "high": 10**12}}}, trials=2))
    assert not plan.is_finite
    (plan,), _ = plan_studies(request(tmp_path, NINE, trials=2))
    assert plan.is_finite


# what is refused


def test_a_dry_run_refuses_what_the_command_refuses(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(place, Pretence(1), trials=1, name="s")
    ask = ["sweep", "vqgan", *place.typed("--space", place.root / "sizes.yaml", "--sweep-name", "s", "--dry-run")]
    assert typed(*ask).code == 0
    monkeypatch.setattr("vqbench.sweeps.sweep.prepare_plan", lambda *_, **__: pytest.fail("may download"))
    refused = typed(*ask, "--sampler", "random")
    assert refused.code == 2
    assert "there is a sweep 's' already, with another sampler" in refused.err


def test_what_is_given_with_resume_must_agree(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(place, Pretence(1), trials=1, name="s", sampler="random", sampler_seed=3)
    ask = ["sweep", "--resume", "s", "--runs", place.runs, "--dry-run"]
    for option, value in (("sampler", "tpe"), ("sampler-seed", "0")):  # the defaults, but typed
        answer = typed(*ask, f"--{option}", value)
        assert answer.code == 2
        assert f"the sweep was started with another --{option}" in answer.err
    assert typed(*ask, "--sampler", "random", "--pruner", "none").code == 0
    two = typed(*ask, "--sweep-name", "t")
    assert two.code == 2
    assert "--resume s goes on with that sweep, and --sweep-name t begins another" in two.err
    other = f"sqlite:///{place.root / 'other.db'}"
    assert typed(*ask, "--storage", other).code == 2
    monkeypatch.setenv("VQBENCH_STORAGE", other)  # for another sweep; this one has its own
    answer = typed(*ask)
    assert answer.code == 0, answer.err
    assert not (place.root / "other.db").exists()


def test_all_objectives_that_are_missing_are_named_at_once(tmp_path: Path) -> None:
    asked = request(tmp_path, yaml.safe_load("recipe: {codebook_size: [8, 16]}"), objectives=("lpips_vgg", "kid"))
    with pytest.raises(UsageError) as error:
        check_objectives(asked, "images", ("rfid", "psnr"))
    assert "the objectives lpips_vgg and kid are not among" in error.value.what
    assert error.value.hint == "add them: --metrics rfid,psnr,lpips_vgg,kid"  # what was computed already stays


# what makes it the same sweep


def test_a_sweep_whose_recipe_or_data_has_changed_is_another_one(place: Place) -> None:
    """Trials of two budgets, or of two training sets, must not be ranked together under one name."""
    recipe = place.root / "mine.yaml"
    recipe.write_text((shipped := Path(recipes.__file__).parent / "recipes" / "atomic.yaml").read_text())
    options = {"options": {"recipe": str(recipe)}, "sampler": "grid"}
    swept(place, Pretence(1), trials=1, **options)
    recipe.write_text(shipped.read_text().replace("log_images: 256", "log_images: 128"))  # only bookkeeping
    assert len(swept(place, Pretence(1), trials=2, **options).rows) == 2
    recipe.write_text(shipped.read_text().replace("learning_rate: 1.0e-2", "learning_rate: 2.0e-2"))
    with pytest.raises(UsageError, match="already, with another content of the recipe"):
        swept(place, Pretence(1), trials=3, **options)
    recipe.write_text(shipped.read_text())
    np.save(place.root / "x.npy", np.random.default_rng(1).normal(3, 2, (40, 2, 2, 6)).astype(np.float32))
    with pytest.raises(UsageError, match="training set"):
        swept(place, Pretence(1), trials=3, **options)


def test_a_point_whose_driver_died_before_anything_was_asked_of_it_is_tried_itself(tmp_path: Path) -> None:
    study = opened(tmp_path, "grid", 4)
    study.study.enqueue_trial(study._points[2])
    study.study.ask()  # and here the driver is killed
    again = opened(tmp_path, "grid", 4)
    assert again.put_back_orphans(lambda _: 0) == 1
    asked = [again.ask()[1] for _ in range(4)]
    assert asked[0] == study._points[2]
    assert len({str(drawn) for drawn in asked}) == 4


# a journal that is not whole


def begun(place: Place, trials: int = 2) -> Path:
    """The journal of a sweep that has had its trials."""
    journal = place.root / "j.log"
    swept(place, Pretence(1), trials=trials, sampler="grid", storage=str(journal))
    return journal


@pytest.mark.parametrize("tail", ["cut", "no line end", "zeros", "cut and appended to", "a letter"])
def test_half_a_record_at_the_end_of_a_journal_is_dropped_before_the_next_is_written(place: Place, tail: str) -> None:
    journal = begun(place)
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    appended = lines[-1][:-30] + lines[0]
    ends = {"cut": lines[-1][:-30], "no line end": lines[-1][:-1], "zeros": bytes(5000), "a letter": b"{"}
    journal.write_bytes(b"".join(lines[:-1]) + ends.get(tail, appended))
    heard = Heard()
    report = swept(place, Pretence(1), heard, trials=3, sampler="grid", storage=str(journal))
    assert [row["state"] for row in report.rows] == ["done"] * 3
    assert any(f"{journal}: dropped half a record at its end" in note for note in heard.notes)
    assert all(json.loads(line)["op_code"] >= 0 for line in journal.read_bytes().splitlines())
    assert journal.read_bytes().startswith(b"".join(lines[:-1]))


@pytest.mark.parametrize("damage", ["in the middle", "of yesterday", "not a journal", "other json", "first line"])
def test_a_journal_that_is_damaged_elsewhere_is_refused_and_left_alone(place: Place, damage: str) -> None:
    journal = begun(place)
    lines = journal.read_bytes().splitlines(keepends=True)
    n = len(lines) - 2
    content = b"".join({
        "in the middle": [*lines[:n], b"\xff\x00 garbage\n", *lines[n:]],
        "of yesterday": [*lines[:n], lines[n][:-30] + lines[0], *lines[1:3]],
        "not a journal": [b"dear diary"],
        "other json": [b'{"a": 1}\n', b'{"a": 2}\n'],
        "first line": [lines[0][:20] + b"\n", *lines[1:]],
    }[damage])  # fmt: skip
    journal.write_bytes(content)
    for number in range(2):
        with pytest.raises(UsageError) as error:
            swept(place, Pretence(1), trials=3 + number, sampler="grid", storage=str(journal))
        assert str(journal) in error.value.what
        line = {"in the middle": n + 1, "of yesterday": n + 1, "first line": 1}.get(damage)
        assert f"line {line} of" in error.value.what if line else "is not a journal" in error.value.what
        assert journal.read_bytes() == content


def test_a_dry_run_reads_past_half_a_record_and_writes_nothing(place: Place) -> None:
    journal = begun(place)
    journal.write_bytes(journal.read_bytes()[:-30])
    before = {path: path.stat().st_mtime_ns for path in place.root.rglob("*")}
    answer = typed("sweep", "--resume", next((place.root / "runs").glob("*/sweeps/*.json")).stem, "--runs",
                   place.root / "runs", "--trials", "3", "--dry-run", "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    assert {path: path.stat().st_mtime_ns for path in place.root.rglob("*")} == before


def test_a_full_disk_leaves_no_half_of_a_record_and_the_next_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)
    journal = tmp_path / "j.log"
    study = optuna.create_study(storage=open_storage(str(journal), tmp_path), study_name="x")
    whole = journal.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 40, before[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            study.ask()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert journal.read_bytes() == whole
    study.tell(study.ask(), 1.0)
    again = optuna.load_study(storage=open_storage(str(journal), tmp_path), study_name="x")
    assert [trial.value for trial in again.trials] == [1.0]


@pytest.mark.parametrize("content", ["", "[]", '{"budget": {}', "{}"])
def test_a_sweep_whose_file_is_damaged_is_neither_begun_anew_nor_a_riddle(place: Place, content: str) -> None:
    journal = begun(place)
    known = journal.read_bytes()
    file = next((place.root / "runs").glob("*/sweeps/*.json"))
    file.write_text(content)
    for again in (lambda: swept(place, Pretence(1), trials=3, sampler="grid"),
                  lambda: swept(place, Pretence(1), trials=3, sampler="grid", storage=str(journal))):  # fmt: skip
        with pytest.raises(UsageError, match="is not whole") as error:
            again()
        assert str(file) in error.value.what
    answer = typed("sweep", "--resume", file.stem, "--runs", place.root / "runs")
    assert answer.code == 2
    assert "is not whole" in answer.err
    assert "bug" not in answer.err
    assert file.read_text() == content
    assert journal.read_bytes() == known
