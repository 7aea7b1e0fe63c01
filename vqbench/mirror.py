"""The only module that talks to MLflow: it makes a tracking server mirror the runs directory.

Each command and each cell remembers in a file of its own, `….mlflow.json` and `mlflow.json`, which run it is and
what that run has been sent. Mirroring is idempotent, so it can go on where it was interrupted, at any time.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

from vqbench.results import DONE, CellFolder, read_json, write_json

ARTIFACTS = ("spec.json", "result.json", "recon.png", "codes.png", "per_image.parquet", "log.txt")
"""Files of a cell that MLflow gets a copy of, beside its weights."""


def tracking_uri(runs: Path) -> str:
    """`$MLFLOW_TRACKING_URI`, or a sqlite file in the runs directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs.absolute() / 'mlflow.db'}"


def quiet_environment() -> dict[str, str]:
    """Settings under which MLflow sends no telemetry, prints nothing and does not retry for minutes; the user's win."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # results go there, and --json must be JSON
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
        local = not self.uri.startswith(("http://", "https://"))  # a database has no place of its own for files
        location = (self.runs / name / "mlflow-artifacts").as_uri() if local else None
        return str(self.client.create_experiment(name, artifact_location=location))

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
            tags = {
                "vqbench.kind": "command",
                "command": record.get("kind", "run"),
                "dataset": record["dataset"],
                "recipe": record["recipe"],
            }
            tags |= {"protocol": record["protocol"], "mlflow.note.content": record["note"]}
            run_id = self._run(experiment_id, "vqbench.command", record["id"], record["name"], tags)
            for key in ("methods", "dataset", "recipe", "seeds", "command"):
                self.client.log_param(run_id, key, str(record[key])[:6000])
            memory = {"uri": self.uri, "run_id": run_id, "sent": "RUNNING"}
            write_json(memory_path, memory)
        if record["state"] != memory["sent"]:
            for artifact in sorted(path.parent.glob(f"{path.stem}.*")):
                if artifact.suffix in (".md", ".jsonl", ".csv", ".png"):
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
        result, given_up = folder.result, "KILLED" if record.get("given_up") else ""
        stamp = (
            f"{result['state']} {folder.path.joinpath('result.json').stat().st_mtime_ns}"
            if result
            else given_up or "RUNNING"
        )
        if memory["sent"] != stamp:
            self._send_state(folder, memory["run_id"], result, given_up)
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
            **memory.get("tags", {}),
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

    def _send_state(self, folder: CellFolder, run_id: str, result: dict[str, Any] | None, given_up: str) -> None:
        if result is None:
            self.client.update_run(run_id, status=given_up or "RUNNING")
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
        # not the time of sending: what is sent twice, because an answer was lost, is there once
        step = int(result.get("images_seen", 0))
        written = (folder.path / "result.json").stat().st_mtime_ns // 1_000_000
        error = (result.get("error") or {}).get("message", "")
        flag = result.get("collapse") or {}
        numbers |= {"collapse_images": flag["images"]} if flag else {}
        self.client.log_batch(
            run_id,
            metrics=[Metric(key, float(value), written, step) for key, value in numbers.items()],
            tags=[
                RunTag("state", result["state"]),
                RunTag("error", error[:5000]),
                RunTag("path", str(folder.path)),
                RunTag("collapse", flag.get("kind", "no")),
                RunTag("collapse_reason", flag.get("reason", "")),
            ],
        )
        self._send_artifacts(folder, run_id, done=result["state"] == DONE)
        self.client.set_terminated(run_id, "FINISHED" if result["state"] == DONE else "FAILED")

    def _send_artifacts(self, folder: CellFolder, run_id: str, done: bool) -> None:
        from vqbench.reports.figures import draw_code_histogram

        if done:
            draw_code_histogram(folder.path / "codes.npz", folder.path / "codes.png")
        for name in ARTIFACTS:
            if (folder.path / name).is_file() and (done or name in ("spec.json", "result.json", "log.txt")):
                self.client.log_artifact(run_id, str(folder.path / name))
        if done:
            self.client.log_artifact(run_id, str(folder.weights), "weights")


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
