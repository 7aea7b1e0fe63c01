"""The only module that talks to MLflow: it mirrors the runs directory, so what a server missed is sent again later.

Each cell remembers in `tracking.json` which run it is and what that run has been sent. Mirroring is idempotent;
`vqbench run` does it live from a thread of its own, `vqbench sync` once for everything.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbench.atomic import write_text_atomically
from vqbench.errors import UsageError
from vqbench.results import DONE, CellFolder, cell_folders, read_json, write_json

if TYPE_CHECKING:
    from vqbench.plan import Cell, Plan

LIVE_SECONDS = 3.0  # between two looks at a training cell
RETRY_SECONDS = 30.0  # before a server that did not answer is asked again
_ARTIFACTS = ("spec.json", "result.json", "recon.png", "codes.png", "per_image.parquet", "log.txt")


def tracking_uri(runs: Path) -> str:
    """`$MLFLOW_TRACKING_URI`, or a sqlite file in the runs directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs.absolute() / 'mlflow.db'}"


def quiet_environment() -> dict[str, str]:
    """Settings under which MLflow sends no telemetry and does not retry for minutes; the user's own win."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


class Mirror:
    """A tracking server, seen from one runs directory."""

    def __init__(self, runs: Path) -> None:
        os.environ.update(quiet_environment())
        self.runs = runs.absolute()
        self.uri = tracking_uri(self.runs)
        if self.uri.startswith("sqlite:///"):
            self.runs.mkdir(parents=True, exist_ok=True)
        warnings.filterwarnings("ignore", module=r"mlflow|sqlalchemy|alembic")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # mlflow's own import sets these to INFO
            logging.getLogger(name).setLevel(logging.ERROR)
        self.client: Any = MlflowClient(tracking_uri=self.uri)

    def experiment(self, name: str) -> str:
        """Id of the MLflow experiment `name`, created with its artifacts beside the database if it is local."""
        known = self.client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        local = self.uri.startswith("sqlite:")
        location = (self.runs / name / "mlflow-artifacts").as_uri() if local else None
        tags = {"mlflow.experimentKind": "custom_model_development"}  # else the page opens on its tabs for agents
        return str(self.client.create_experiment(name, artifact_location=location, tags=tags))

    def _run(self, experiment_id: str, tag: str, value: str, name: str, tags: dict[str, str]) -> str:
        """The run that carries `tag` = `value`, found or made."""
        found = self.client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        run = self.client.create_run(experiment_id, tags={tag: value, **tags}, run_name=name)
        return str(run.info.run_id)

    def command(self, path: Path) -> str:
        """Mirror a command's record as a parent run; returns the run's id."""
        record, memory_path = read_json(path) or {}, path.with_suffix(".mlflow.json")
        memory = read_json(memory_path) or {}
        experiment_id = self.experiment(record["experiment"])
        if memory.get("uri") != self.uri:
            tags = {"vqbench.kind": "command", "dataset": record["dataset"], "recipe": record["recipe"]}
            tags |= {"protocol": record["protocol"], "mlflow.note.content": record["note"]}
            run_id = self._run(experiment_id, "vqbench.command", record["id"], record["name"], tags)
            for key in ("methods", "dataset", "recipe", "seeds", "command"):
                self.client.log_param(run_id, key, str(record[key])[:6000])
            memory = {"uri": self.uri, "run_id": run_id, "sent": "RUNNING"}
            write_json(memory_path, memory)
        if record["state"] != memory["sent"]:
            for artifact in sorted(path.parent.glob(f"{path.stem}.*")):
                if artifact.suffix in (".md", ".jsonl", ".png"):
                    self.client.log_artifact(memory["run_id"], str(artifact))
            self.client.set_terminated(memory["run_id"], record["state"])
            write_json(memory_path, {**memory, "sent": record["state"]})
        return str(memory["run_id"])

    def cell(self, folder: CellFolder) -> bool:
        """Bring the run of one cell up to date with its folder; False for a cell of no tracked command."""
        record = read_json(folder.path / "tracking.json") or {}
        spec, command = folder.spec, folder.path.parents[1] / "commands" / f"{record.get('command')}.json"
        if not spec or not command.is_file():
            return False
        parent, path = self.command(command), folder.path / "mlflow.json"
        memory = read_json(path) or {}
        if (memory.get("uri"), memory.get("attempt")) != (self.uri, record["attempt"]):
            run_id = self._cell_run(folder, record, spec, parent)
            memory = {"uri": self.uri, "attempt": record["attempt"], "run_id": run_id, "points": 0, "sent": ""}
            memory["command"] = record["command"]
            write_json(path, memory)
        if memory["command"] != record["command"]:  # it goes on as a child of the command that goes on with it
            self.client.set_tag(memory["run_id"], "mlflow.parentRunId", parent)
            memory["command"] = record["command"]
        memory["points"] = self._send_curves(folder, memory)
        write_json(path, memory)
        result = folder.result
        stamp = f"{result['state']} {folder.path.joinpath('result.json').stat().st_mtime_ns}" if result else "RUNNING"
        if memory["sent"] != stamp:
            self._send_state(folder, memory["run_id"], result)
            write_json(path, {**memory, "sent": stamp})
        return True

    def _cell_run(self, folder: CellFolder, memory: dict[str, Any], spec: dict[str, Any], parent: str) -> str:
        experiment_id = self.experiment(folder.path.parents[1].name)
        tags = {
            "mlflow.parentRunId": parent,
            "method": memory["label"],
            "dataset": spec["dataset"]["slug"],
            "recipe": spec["recipe"]["name"],
            "protocol": spec["protocol"]["hash"],
            "protocol_name": spec["protocol"]["name"],
            "seed": str(spec["seed"]),
            **{f"component.{name}": "on" if on else "off" for name, on in spec["components"].items()},
        }
        name = f"{memory['label']} s{spec['seed']}"
        run_id = self._run(experiment_id, "vqbench.cell", f"{folder.name}/{memory['attempt']}", name, tags)
        params = {f"recipe.{k}": v for k, v in spec["recipe"].items()}
        params |= {f"{spec['method']}.{k}": v for k, v in spec["config"].items()}
        params |= {"method": memory["label"], "seed": spec["seed"], "dataset": spec["dataset"]["reference"]}
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        self.client.log_batch(run_id, params=[Param(key, str(value)[:6000]) for key, value in params.items()])
        protocol, source = spec["protocol"], json.dumps({"uri": spec["dataset"]["reference"]})
        images = Dataset(protocol["name"], protocol["validation_digest"][:16], "local", source)
        context = InputTag("mlflow.data.context", "validation")
        self.client.log_inputs(run_id, datasets=[DatasetInput(images, [context])])
        return run_id

    def _send_curves(self, folder: CellFolder, memory: dict[str, Any]) -> int:
        """Send the points of metrics.jsonl that the run lacks; returns how many it has."""
        from mlflow.entities import Metric

        points = _whole_points(folder.path / "metrics.jsonl")
        metrics = [
            Metric(f"train/{key}", value, int(1000 * point.get("time", 0)), int(point["images"]))
            for point in points[memory["points"] :]
            for key, value in point.items()
            if key not in ("images", "time") and isinstance(value, int | float)
        ]
        for start in range(0, len(metrics), 1000):  # the server's limit for one request
            self.client.log_batch(memory["run_id"], metrics=metrics[start : start + 1000])
        return max(len(points), memory["points"])

    def _send_state(self, folder: CellFolder, run_id: str, result: dict[str, Any] | None) -> None:
        if result is None:
            self.client.update_run(run_id, status="RUNNING")
            return
        from mlflow.entities import Metric, RunTag

        numbers = {**result["scores"], **{f"params_{k}": v for k, v in result.get("params", {}).items()}}
        for key in (
            "train_images_per_s",
            "encode_images_per_s",
            "decode_images_per_s",
            "train_seconds",
            "peak_memory_bytes",
        ):
            numbers |= {key: result[key]} if key in result else {}
        step, now = int(result.get("images_seen", 0)), int(1000 * time.time())
        error = (result.get("error") or {}).get("message", "")
        self.client.log_batch(
            run_id,
            metrics=[Metric(key, float(value), now, step) for key, value in numbers.items()],
            tags=[RunTag("state", result["state"]), RunTag("error", error[:5000]), RunTag("path", str(folder.path))],
        )
        self._send_artifacts(folder, run_id, done=result["state"] == DONE)
        self.client.set_terminated(run_id, "FINISHED" if result["state"] == DONE else "FAILED")

    def _send_artifacts(self, folder: CellFolder, run_id: str, done: bool) -> None:
        from vqbench.reports.figures import draw_code_histogram

        if done:
            draw_code_histogram(folder.path / "codes.npz", folder.path / "codes.png")
        for name in _ARTIFACTS:
            if (folder.path / name).is_file() and (done or name in ("spec.json", "result.json", "log.txt")):
                self.client.log_artifact(run_id, str(folder.path / name))
        if done:
            self.client.log_artifact(run_id, str(folder.weights), "weights")


def _records(folder: Path) -> list[Path]:
    """The records of the commands of an experiment, oldest first."""
    return sorted(path for path in folder.glob("*.json") if path.stem.isdigit())


def _take_number(folder: Path) -> int:
    """A number for the next command, its record reserved: two commands may start at once."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.stem) for path in _records(folder)), default=0)
    while True:
        try:
            (folder / f"{number:04d}.json").touch(exist_ok=False)
            return number
        except FileExistsError:
            number += 1


def _whole_points(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text().split("\n")[:-1]  # what follows the last line end is still being written
    except OSError:
        return []
    points = []
    for line in lines:
        try:
            points.append(json.loads(line))
        except ValueError:
            break
    return points


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class SyncReport:
    """What `sync` did."""

    cells: int
    problems: list[str]


def sync(runs: Path) -> SyncReport:
    """Send everything below `runs` that the tracking server lacks. Safe to repeat."""
    report = SyncReport(0, [])
    mirror = Mirror(runs)
    for experiment in sorted(p.parent for p in runs.absolute().glob("*/commands")):
        for folder in cell_folders(experiment):
            try:
                report.cells += mirror.cell(folder)
            except Exception as error:
                report.problems.append(f"{folder.name}: {_first_line(error)}")
        for command in _records(experiment / "commands"):
            try:
                mirror.command(command)
            except Exception as error:
                report.problems.append(f"{command.name}: {_first_line(error)}")
    return report


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class Tracker:
    """Mirrors a running command from a thread, so that neither training nor Ctrl-C waits for a server."""

    def __init__(self, runs: Path, say: Callable[[str], None] = _say) -> None:
        self.runs = runs
        self.say = say
        self.trouble = ""
        self._not_before = 0.0
        self._last_look = 0.0
        self._mirror: Mirror | None = None
        self._jobs: queue.Queue[Callable[[Mirror], object] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._record: Path | None = None

    def start_command(self, plan: Plan) -> None:
        """Write the command's record and announce it as a parent run."""
        folder = plan.folder / "commands"
        number = _take_number(folder)
        methods = list(dict.fromkeys(cell.label for cell in plan.cells))
        record = {
            "id": uuid.uuid4().hex,
            "name": f"{number:04d} {', '.join(methods)}",
            "experiment": plan.experiment,
            "command": " ".join(sys.argv),
            "methods": ",".join(methods),
            "dataset": plan.cells[0].spec["dataset"]["slug"],
            "recipe": plan.recipe.name,
            "seeds": ",".join(str(s) for s in dict.fromkeys(cell.seed for cell in plan.cells)),
            "protocol": plan.protocol.hash,
            "note": plan.protocol.describe(),
            "state": "RUNNING",
        }
        self._record = folder / f"{number:04d}.json"
        write_json(self._record, record)
        self._thread.start()
        path = self._record
        self._jobs.put(lambda mirror: mirror.command(path))

    def start_cell(self, cell: Cell, anew: bool) -> None:
        """Note which command this cell belongs to, and announce it; trained `anew`, it gets a run of its own."""
        assert self._record is not None
        path = cell.folder.path / "tracking.json"
        attempt = (read_json(path) or {}).get("attempt")
        if anew or attempt is None:
            attempt = uuid.uuid4().hex[:8]
        write_json(path, {"attempt": attempt, "command": self._record.stem, "label": cell.label})
        self._jobs.put(lambda mirror: mirror.cell(cell.folder))

    def poke(self, cell: Cell) -> None:
        """Have the curves sent, every few seconds."""
        now = time.monotonic()
        if now - self._last_look > LIVE_SECONDS and self._jobs.empty():
            self._last_look = now
            self._jobs.put(lambda mirror: mirror.cell(cell.folder))

    def finish_cell(self, cell: Cell) -> None:
        """Have the result sent."""
        self._jobs.put(lambda mirror: mirror.cell(cell.folder))

    def finish_command(self, plan: Plan, rows: list[dict[str, Any]]) -> None:
        """Attach the comparison to the parent run, close it, and wait until everything is sent."""
        assert self._record is not None
        record = self._record
        complete = len(rows) == len(plan.cells) and all(row["state"] != "failed" for row in rows)
        try:
            self._attach(record, plan, rows)
            write_json(record, {**(read_json(record) or {}), "state": "FINISHED" if complete else "FAILED"})
        except OSError as error:  # a full disk must not cost the table
            self.trouble = str(error)
        self._jobs.put(lambda mirror: mirror.command(record))
        self._jobs.put(None)
        self._thread.join()
        if self.trouble:
            self.say(f"warning: MLflow at {tracking_uri(self.runs)} did not take everything: {self.trouble}")
            self.say(f"hint: nothing is lost; `vqbench sync --runs {self.runs}` sends the rest")

    @staticmethod
    def _attach(record: Path, plan: Plan, rows: list[dict[str, Any]]) -> None:
        from vqbench.reports.figures import draw_side_by_side
        from vqbench.reports.summary import markdown_table, summarise

        write_text_atomically(record.with_suffix(".md"), markdown_table(summarise(rows), plan.protocol.name))
        write_text_atomically(record.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
        draw_side_by_side({row["method"]: Path(row["path"]) / "recon.png" for row in rows}, record.with_suffix(".png"))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if time.monotonic() < self._not_before:
                continue  # each job sends all that is missing, so a later one, or `sync`, makes up for this
            try:
                self._mirror = self._mirror or Mirror(self.runs)
                job(self._mirror)
            except Exception as error:
                self.trouble = _first_line(error)
                self._not_before = time.monotonic() + RETRY_SECONDS


def serve(runs: Path, port: int) -> None:
    """Become MLflow's own server on this store, on 127.0.0.1. Raises UsageError where there is nothing to show."""
    uri = tracking_uri(runs)
    if uri.startswith(("http://", "https://")):
        raise UsageError(f"the results are tracked at {uri}", "open that address in a browser")
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UsageError(f"no results are tracked in {runs} yet", "`vqbench run` makes some, or give --runs DIR")
    _say(f"MLflow: http://127.0.0.1:{port}  (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execve(sys.executable, command, {**os.environ, **quiet_environment()})
