"""Secrets in addresses stay where they were typed; the commands that people paste are quoted."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import typed
from helpers.sweeps import Place

from vqbench.cell.process import CellJob, Store
from vqbench.errors import UsageError
from vqbench.machine.json_files import read_json, write_json
from vqbench.planning.plan import Plan, check_request
from vqbench.planning.request import make_request
from vqbench.planning.view import Silent
from vqbench.results.cell_folder import CellFolder
from vqbench.running.run import prepare_plan
from vqbench.sweeps.backend import open_storage
from vqbench.sweeps.memory import storage_of
from vqbench.sweeps.request import SweepRequest
from vqbench.tracking.fetch import fetch_experiment
from vqbench.tracking.server import past_proxies
from vqbench.tracking.tracker import Tracker
from vqbench.wording import masked, masked_text, reason_of_library, shell_command

SECRET = "zz9Top"
WITH_SECRET = (
    f"postgresql://me:{SECRET}@host/db",
    f"postgresql://me:a%40{SECRET}@host/db",
    f"postgresql://me:a@{SECRET}@host/db",
    f"postgresql://me:a/{SECRET}@host/db",
    f"postgresql://me:1/{SECRET}@host/db",
    f"http://me:a#{SECRET}@host:5000",
    f"redis://:{SECRET}@host",
    f"tcp://me:{SECRET}@host:8786",
    f"sqlite:///file:/a b/w.db?uri=true&password={SECRET}",
    f"postgresql://host/db?user=me&PASSWORD={SECRET}#x",
    f"postgresql://host/db?password=a#{SECRET}",
    f"postgresql://host/db?sslpassword={SECRET}&sslmode=require",
    f"http://host:5000/?api_key={SECRET}",
    f"http://host:5000/a?x=1;apikey={SECRET}",
    f"https://a.blob.core.windows.net/c?sv=2024&sig={SECRET}%3D&se=2026",
    f"https://b.s3.amazonaws.com/k?X-Amz-Credential={SECRET}%2F2026&X-Amz-Signature={SECRET}",
    f"https://storage/o?AWSAccessKeyId=x&access_key={SECRET}",
    f"https://host/?auth={SECRET}&private_token={SECRET}",
)
HARMLESS = (
    "http://host:5000/a@b", "http://[::1]:5000/a@b", "s3://bucket/a:b@c", "sqlite:////a b/w.db?uri=true&mode=ro",
    "postgresql://me@host/db?sslkey=/k.pem&sslmode=require", "a journal.log", "vqgan.key=1", "--set tokens=3",
    "https://host/?monkey=1&author=me", "basic training",
)  # fmt: skip


@pytest.mark.parametrize("address", WITH_SECRET)
def test_an_address_is_shown_without_its_secrets(address: str) -> None:
    assert SECRET not in masked(address)
    assert "***" in masked(address)
    assert masked(masked(address)) == masked(address)
    assert SECRET not in masked(f"--storage={address}")
    library = ValueError(f"cannot parse '{address}', port {SECRET!r}, {address.replace('%40', '@')}")
    assert SECRET not in reason_of_library(library, address)
    if " " not in address:
        assert SECRET not in masked_text(f"API request to {address}: failed ('{address}'); see {address}")
    for error in (
        UsageError(f"no server at {address.replace(' ', '')}", "x"),
        UsageError("x", address.replace(" ", "")),
    ):
        assert SECRET not in str(error) + error.what + error.hint
    for words in (["--storage", address], [f"--storage={address}"], [f"{address},{address}"]):
        assert SECRET not in shell_command(words)


def test_what_follows_a_masked_address_stays() -> None:
    said = f"cannot open {masked(f'sqlite:///w.db?key={SECRET}')}: no room; then ({masked(f'http://h/?key={SECRET}')})"
    assert masked_text(said) == said


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == masked_text(text) == text


def test_secrets_outside_of_addresses_are_masked_too() -> None:
    for text in (
        f"Authorization: Bearer {SECRET}",
        f"{{'authorization': 'Basic {SECRET}='}}",
        f"password={SECRET} x",
        f"AccountKey={SECRET};x",
        f"url: /api/2.0?token={SECRET}",
        f"https://github_{SECRET * 2}@host/",
        f"'me:{SECRET}@host:8786'",
    ):
        assert SECRET not in masked_text(text)
    assert SECRET not in shell_command(["train.py", "--hf-token", SECRET, f"--password={SECRET}"])
    assert shell_command(["--tokenizer", "fsq"]) == "--tokenizer fsq"
    assert shell_command(["--set", "mine.secret_dim=4"]) == "--set mine.secret_dim=4"  # or it would not replay


def test_a_full_disk_below_mlflow_is_what_is_said() -> None:
    """SQLAlchemy says first, where it does, how it came to write at all."""
    said = "(raised as a result of Query-invoked autoflush; …)\n(sqlite3.OperationalError) disk is full\n[SQL"
    assert reason_of_library(OSError(said)) == "(sqlite3.OperationalError) disk is full"


def test_a_command_is_typed_again_as_it_was() -> None:
    words = ["vqbench", "run", "--runs", '/a b/it\'s "here"', "--set", "x=$HOME;*", "--name", "ü"]
    assert shlex.split(shell_command(words)) == words


def files_below(folder: Path) -> bytes:
    return b"\n".join(str(path).encode() + path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    place = Place.made(tmp_path, 40, [8])
    request = make_request("vqgan", features=place.root / "x.npy", recipe="atomic", runs=tmp_path / "runs", name="x",
                           images=8, metrics=["quantization_error"])  # fmt: skip
    return prepare_plan(check_request(request), Silent())


def test_the_recorded_command_replays_and_holds_no_secret(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "a folder" / "vq'bench"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    runs = tmp_path / "runs"
    words = ["sweep", "vqgan", "--runs", f'{tmp_path}/it\'s "here"', "--set", "x=1;2", "--storage"]
    monkeypatch.setattr(sys, "argv", [str(program), *words, f"sqlite:///file:/w.db?uri=true&password={SECRET}",
                                      f"--storage=postgresql://me:{SECRET} x@host/db"])  # fmt: skip
    said: list[str] = []
    tracker = Tracker(runs, said.append)
    tracker.start_command(plan, "sweep", "title")
    tracker.finish_command(plan, [], dict)
    assert said == []
    record = read_json(runs / "x" / "commands" / "0001.json") or {}
    shown = [*words, "sqlite:///file:/w.db?uri=true&password=***", "--storage=postgresql://me:***@host/db"]
    assert shlex.split(record["command"]) == [str(program), *shown]
    replayed = subprocess.run(record["command"], shell=True, capture_output=True, text=True, check=True)
    assert json.loads(replayed.stdout) == shown

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("x").experiment_id])
    assert run.data.params["command"] == record["command"]
    assert SECRET.encode() not in files_below(runs)


def test_a_module_is_recorded_as_it_was_started(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", ["/not/executable/cli.py", "run", "a b"])
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "vqbench.cli", "run", "a b"])
    said: list[str] = []
    tracker = Tracker(tmp_path / "it's", said.append)
    tracker.start_command(plan, "run")
    tracker.finish_command(plan, [], dict)
    record = read_json(tmp_path / "runs" / "x" / "commands" / "0001.json") or {}
    assert shlex.split(record["command"]) == [sys.executable, "-m", "vqbench.cli", "run", "a b"]
    assert "http://me:***@127.0.0.1:9" in said[0]
    assert shlex.split(said[1].split("`")[1]) == ["vqbench", "sync", "--runs", str(tmp_path / "it's")]
    assert SECRET not in "".join(said)
    assert SECRET.encode() not in files_below(tmp_path)


def test_servers_that_do_not_answer_are_named_without_their_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "x" / "commands").mkdir(parents=True)
    here = "127.0.0.1:9"
    for address in (f"http://me:{SECRET}@{here}", f"http://{here}?api_key={SECRET}", f"http://me:a#{SECRET}@{here}"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for words in (["sync", "--runs", tmp_path], ["ui", "--runs", tmp_path], ["--debug", "ui", "--runs", tmp_path],
                      ["report", "x", "--from-mlflow", address]):  # fmt: skip
            answer = typed(*words)
            assert answer.code
            assert SECRET not in answer.out + answer.err
    (tmp_path / "c.yaml").write_text(f"storage: postgresql://me:{SECRET}@h/db\nscheduler: tcp://me:{SECRET}@h:1\n")
    assert SECRET not in typed("sweep", "--config", tmp_path / "c.yaml", "--help").out  # where defaults are shown
    bare = f"me:{SECRET}@{here}"
    for words in (
        ["report", "x", "--from-mlflow", bare],
        ["run", f"--storag=postgresql://me:{SECRET}@h/db"],
        ["ui", "--port", f"http://a:{SECRET}@h"],
    ):
        answer = typed(*words)
        assert answer.code == 2
        assert SECRET not in answer.err
    with pytest.raises(UsageError) as error:
        fetch_experiment(f"odd:{SECRET}://me:{SECRET}@host", "x", tmp_path)
    assert f"me:{SECRET}" not in error.value.what


@pytest.mark.parametrize(
    "where",
    [
        f"postgresql://me:a@{SECRET}@127.0.0.1:1/none",
        f"odd://me:{SECRET}@host/db",
        f"postgresql://me:x/{SECRET}@host:no/db",
        f"sqlite:////nowhere/at/all.db?password={SECRET}",
    ],
)
def test_a_storage_that_cannot_be_opened_keeps_its_password(where: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        open_storage(where, tmp_path)
    assert SECRET not in error.value.what + error.value.hint


def test_a_sweep_that_an_earlier_version_began_knows_its_storage(tmp_path: Path) -> None:
    where, file = f"postgresql://host/db?api_key={SECRET}", tmp_path / "s.json"
    request = SweepRequest(make_request("vqgan"), storage=where)
    whole: dict[str, object] = {"spaces": [], "definition": {"run": {}}}
    for stored in (where, masked(where)):  # the first is how it was kept when fewer secrets were known
        write_json(file, {**whole, "storage": stored})
        assert storage_of(request, file) == where
    write_json(file, {**whole, "storage": where})
    assert storage_of(SweepRequest(make_request("vqgan")), file) == where
    write_json(file, {**whole, "storage": masked(where)})
    with pytest.raises(UsageError, match="password"):
        storage_of(SweepRequest(make_request("vqgan")), file)


def test_logs_and_failures_of_cells_hold_no_secret(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path)
    folder.log.write_text(f"no answer from http://me:{SECRET}@host\n")
    folder.write_failure("Error", f"at http://me:{SECRET}@host", f"ask http://me:{SECRET}@host", "start", 0.0)
    folder.log.unlink()
    job = CellJob(tmp_path, {}, store=Store(f"http://me:{SECRET}@host", "1"))
    assert SECRET not in repr(job)  # dask writes it into the log of a worker whose cell failed
    assert SECRET.encode() not in files_below(tmp_path)


def test_proxies_are_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    import requests.utils

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for before in ({}, {"NO_PROXY": "corp.example"}, {"no_proxy": "corp.example, other"}, {"no_proxy": "*"}):
        with monkeypatch.context() as patch:
            for name, value in before.items():
                patch.setenv(name, value)
            for name, value in past_proxies().items():
                patch.setenv(name, value)
            assert past_proxies() == {name: os.environ[name] for name in ("no_proxy", "NO_PROXY")}
            for host in ("127.0.0.1:5000", "localhost:5000", "[::1]:5000"):
                assert requests.utils.should_bypass_proxies(f"http://{host}/", None), host
                assert urllib.request.proxy_bypass(host), host
            users = bool(before)
            assert requests.utils.should_bypass_proxies("http://corp.example/", None) == users
            assert bool(urllib.request.proxy_bypass("corp.example")) == users
            everything = before.get("no_proxy") == "*"
            assert requests.utils.should_bypass_proxies("http://elsewhere.example/", None) == everything
