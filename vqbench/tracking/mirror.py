"""Makes a tracking server mirror the runs directory.

This module, `transfer`, `fetch` and `ui` alone talk to MLflow, through the client of `server`. Each command and each
cell remembers in a file of its own, `….mlflow.json` and `mlflow.json`, which run it is and what that run has been sent.
Mirroring is idempotent, so it can go on where it was interrupted, at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vqbench.errors import VQBenchError
from vqbench.machine.json_files import read_json, write_json
from vqbench.registry import file_digest
from vqbench.results.cell_files import (
    ARTIFACTS,
    CODES,
    DONE,
    FAILURE,
    FAILURE_FILES,
    MLFLOW_RUN,
    RESULT,
    SPEC,
    TRACKING,
    is_whole,
)
from vqbench.results.cell_folder import CellFolder
from vqbench.tracking.pages import (
    NOTE,
    PAGE,
    CommandRun,
    asked_columns,
    cell_name,
    cell_tags,
    command_tags,
    description,
    missing_tags,
    result_tags,
    run_metrics,
    setup_of,
)
from vqbench.tracking.server import all_runs, connect, how_to_restore, is_remote, tracking_uri
from vqbench.wording import masked, masked_text

FILES_TAG, LEFT_OUT_TAG, SHARED_TAG = "vqbench.files", "vqbench.left_out", "vqbench.shared."
"""Tags of a cell's run: sha256 of each file, sent after the files; files that were too large. Of the experiment: the
run that has a file which cells share."""
SHARED_FOLDER = "shared"
_ATTACHED = (".md", ".jsonl", ".csv", ".png", ".html", ".tex", ".svg", ".pdf")
_FORMAT = "2"  # of what is sent; what was sent in an older one is sent again


def most_bytes() -> int:
    """The largest file that is sent: `$VQBENCH_MLFLOW_MAX_MB`, by default 1 GiB. 50,000 images' features are 0.4."""
    text = os.environ.get("VQBENCH_MLFLOW_MAX_MB", "")
    return (int(text) if text.isdigit() else 1024) * 2**20


class Mirror:
    """A tracking server, seen from one runs directory."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs.absolute()
        self.uri = tracking_uri(self.runs)
        if self.uri.startswith("sqlite:///"):
            self.runs.mkdir(parents=True, exist_ok=True)
        self.client: Any = connect(self.uri)
        self.restored: set[str] = set()
        """Runs that had been deleted in MLflow, and that it still had."""
        self.lost: set[str] = set()
        """Runs that MLflow has no more, for which others were made."""
        self.gone: set[Path] = set()
        """Records of commands that are not there any more, and that cells name."""
        self._shared: dict[str, dict[str, str]] = {}  # experiment → what `_holders` says
        self._parents: dict[str, str] = {}  # of the runs that are known to be there: the run above each, or ""

    def look(self, experiment: Path) -> None:
        """Ask which runs of an experiment are there, all at once. Raises VQBenchError where it was deleted as a whole.

        Whoever does not ask has each run asked for when it is needed.
        """
        known = self.client.get_experiment_by_name(experiment.name)
        if known is None:
            return
        self._refuse_deleted(known)
        for run in all_runs(self.client, known.experiment_id, ""):
            self._parents[run.info.run_id] = run.data.tags.get("mlflow.parentRunId", "")

    def _refuse_deleted(self, experiment: Any) -> None:
        if experiment.lifecycle_stage != "active":
            raise VQBenchError(
                f"the MLflow experiment '{experiment.name}' was deleted",
                f"{how_to_restore(self.uri, experiment.experiment_id)}; or give the next run another --name",
            )

    def _believed(self, memory: Mapping[str, Any]) -> dict[str, Any]:
        """What is remembered of a run, if it is one of this server and the server has it; {} otherwise.

        A run that was deleted, and that MLflow still has, is restored.
        """
        if not self._is_ours(memory):
            return {}
        if not self._has(str(memory["run_id"])):
            self.lost.add(str(memory["run_id"]))
            return {}
        return dict(memory)

    def _is_ours(self, memory: Mapping[str, Any]) -> bool:
        """Whether a memory is of this server; those of earlier versions hold its address with the password."""
        return masked(str(memory.get("uri"))) == masked(self.uri)

    def _has(self, run_id: str) -> bool:
        """Whether MLflow has a run, which is active then. Raises VQBenchError where its experiment was deleted."""
        from mlflow.exceptions import MlflowException

        if run_id in self._parents:
            return True
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        if run.info.lifecycle_stage != "active":
            self._refuse_deleted(self.client.get_experiment(run.info.experiment_id))
            self.client.restore_run(run_id)
            self.restored.add(run_id)
        self._parents[run_id] = run.data.tags.get("mlflow.parentRunId", "")
        return True

    def experiment(self, name: str, asked: Iterable[str] = ()) -> str:
        """Id of the MLflow experiment `name`, created with its artifacts beside the database if it is local.

        Its views show the columns of what was `asked` for by name. Raises VQBenchError where it was deleted.
        """
        known = self.client.get_experiment_by_name(name)
        if known is not None:
            self._refuse_deleted(known)
        else:
            location = None if is_remote(self.uri) else (self.runs / name / "mlflow-artifacts").as_uri()
            known = self.client.get_experiment(self.client.create_experiment(name, artifact_location=location))
        experiment_id = str(known.experiment_id)
        for key, value in missing_tags(known.tags, asked).items():
            self.client.set_experiment_tag(experiment_id, key, value)
        return experiment_id

    def _run(self, experiment_id: str, tag: str, value: str, name: str, tags: dict[str, str], started: Any) -> str:
        """The run that carries `tag` = `value`, found or made; `started` in seconds, if that is known."""
        found = self.client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
            self._tag(run_id, tags)
            self.client.update_run(run_id, name=name)
        else:
            tags = {tag: value, **{key: masked_text(text) for key, text in tags.items()}}
            run = self.client.create_run(experiment_id, _milliseconds(started), tags=tags, run_name=name)
            run_id = str(run.info.run_id)
        self._parents[run_id] = tags.get("mlflow.parentRunId", "")
        return run_id

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(key, masked_text(value)[:8000]) for key, value in tags.items()])

    def command(self, path: Path) -> str:
        """Mirror a command's record as a parent run; returns the run's id."""
        record, memory_path = _record(path), path.with_suffix(".mlflow.json")
        if not path.exists():
            self.gone.add(path)
        known = read_json(memory_path) or {}
        memory = self._believed(known)
        if memory.get("format") != _FORMAT:
            experiment_id = self.experiment(record["experiment"])
            tags, started = command_tags(record), record.get("started")
            run_id = self._run(experiment_id, "vqbench.command", record["id"], record["name"], tags, started)
            self._log_params(run_id, {key: record[key] for key in ("methods", "dataset", "recipe", "seeds", "command")})
            memory = {"format": _FORMAT, "run_id": run_id, "experiment_id": experiment_id, "sent": ""}
        attached = [file for file in sorted(path.parent.glob(f"{path.stem}.*")) if file.suffix in _ATTACHED]
        stamp = " ".join([record["state"], *(f"{file.name}={file.stat().st_mtime_ns}" for file in attached)])
        if memory["sent"] != stamp:
            self._send_command(memory["run_id"], record, attached)
            self._describe(memory["experiment_id"])
        memory |= {"uri": masked(self.uri), "sent": stamp}
        if memory != known:
            write_json(memory_path, memory)
        return str(memory["run_id"])

    def _log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Log the parameters that a run lacks; MLflow lets none be changed, and an earlier version masked less."""
        from mlflow.entities import Param

        there = self.client.get_run(run_id).data.params
        params = [Param(key, masked_text(str(value))[:6000]) for key, value in values.items() if key not in there]
        self.client.log_batch(run_id, params=params)

    def _send_command(self, run_id: str, record: Mapping[str, Any], attached: Iterable[Path]) -> None:
        tags = {"state": record["state"].lower()}
        for file in attached:
            self.client.log_artifact(run_id, str(file))
            tags |= {PAGE: file.name} if file.suffix == ".html" else {}
        self._tag(run_id, tags)
        self._end(run_id, record["state"], record.get("ended"))

    def _end(self, run_id: str, status: str, ended: Any) -> None:
        """Set the status of a run; `ended` in seconds, if that is known."""
        if status == "RUNNING":
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status, _milliseconds(ended))

    def _describe(self, experiment_id: str) -> None:
        """Bring the description of an experiment up to date, from the commands that MLflow knows."""
        found = all_runs(self.client, experiment_id, "tags.`vqbench.kind` = 'command'")
        commands = [CommandRun(r.info.run_id, r.info.run_name, r.info.status, r.data.tags) for r in found]
        old = self.client.get_experiment(experiment_id).tags.get(NOTE, "")
        new = description(old, experiment_id, commands)
        if new != old:
            self.client.set_experiment_tag(experiment_id, NOTE, new)

    def cell(self, folder: CellFolder) -> bool:
        """Bring the run of one cell up to date with its folder; False for a cell of no tracked command.

        Raises VQBenchError where its spec or its result is damaged.
        """
        path = folder.path / MLFLOW_RUN
        known = read_json(path) or {}
        record = _tracked(folder, known)
        if "command" not in record:
            return False
        spec, command = folder.spec, folder.path.parents[1] / "commands" / f"{record['command']}.json"
        if problem := folder.problem:
            raise VQBenchError(problem, "give the command that made the cell again")
        parent = self.command(command)
        memory = self._believed(known) if known.get("attempt") == record["attempt"] else {}
        if memory.get("format") != _FORMAT:
            points = memory.get("points", 0)
            experiment_id = self.experiment(folder.path.parents[1].name, asked_columns(spec))
            run_id = self._cell_run(experiment_id, folder, record, spec, parent)
            memory = {"format": _FORMAT, "attempt": record["attempt"], "run_id": run_id}
            memory |= {"experiment_id": experiment_id, "points": points, "sent": ""}
        memory |= {"uri": masked(self.uri), "command": record["command"]}
        if self._parents[memory["run_id"]] != parent:  # another command went on with it, or the run above it is new
            self.client.set_tag(memory["run_id"], "mlflow.parentRunId", parent)
            self._parents[memory["run_id"]] = parent
        if memory != known:
            write_json(path, memory)
        memory["points"] = self._send_curves(folder, memory)
        write_json(path, memory)
        result, given_up = folder.result, "KILLED" if record.get("given_up") else ""
        stamp = _stamp(folder, result) if result else given_up or "RUNNING"
        if memory["sent"] != stamp:
            self._send_state(folder, memory, given_up)
            write_json(path, {**memory, "sent": stamp})
        if result is not None:
            self._send_shared(folder, str(memory["experiment_id"]), parent)
        return True

    def _cell_run(
        self, experiment_id: str, folder: CellFolder, record: dict[str, Any], spec: dict[str, Any], parent: str
    ) -> str:
        label, setup = record["label"], setup_of(folder, spec)
        tags = cell_tags(label, spec, setup, self._group(experiment_id, label, setup))
        tags |= {"mlflow.parentRunId": parent, **record.get("tags", {})}
        value, name = f"{folder.name}/{record['attempt']}", cell_name(label, spec["seed"])
        run_id = self._run(experiment_id, "vqbench.cell", value, name, tags, record.get("started"))
        params = {f"recipe.{k}": v for k, v in spec["recipe"].items()}
        params |= {f"{spec['method']}.{k}": v for k, v in spec["config"].items()}
        params |= {f"pretrained.{k}": v for k, v in spec.get("pretrained", {}).items() if k not in ("as", "trust")}
        params |= {"method": label, "seed": spec["seed"], "dataset": spec["dataset"]["reference"]}
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self._log_params(run_id, params)
        protocol, source = spec["protocol"], json.dumps({"uri": spec["dataset"]["reference"]})
        images = Dataset(protocol["name"], protocol["validation_digest"][:16], "local", source)
        context = InputTag("mlflow.data.context", "validation")
        self.client.log_inputs(run_id, datasets=[DatasetInput(images, [context])])
        self.client.log_artifact(run_id, str(folder.path / SPEC))
        return run_id

    def _group(self, experiment_id: str, label: str, setup: str) -> str:
        """What MLflow averages over seeds under one name: the label, and the setup where another one has that name."""
        mark = "'" if "'" not in label else '"'
        if mark in label:
            return f"{label} {setup}"
        search = f"tags.group = {mark}{label}{mark} and tags.`vqbench.setup` != '{setup}'"
        return f"{label} {setup}" if self.client.search_runs([experiment_id], search, max_results=1) else label

    def _send_curves(self, folder: CellFolder, memory: dict[str, Any]) -> int:
        """Send the points of metrics.jsonl that the run lacks; returns how many it has."""
        from mlflow.entities import Metric

        points = folder.curves
        metrics = [
            Metric(f"train/{key}", value, int(1000 * point.get("time", 0)), int(point["images"]))
            for point in points[memory["points"] :]
            for key, value in point.items()
            if key not in ("images", "time") and isinstance(value, int | float)
        ]
        for start in range(0, len(metrics), 1000):  # the server's limit for one request
            self.client.log_batch(memory["run_id"], metrics=metrics[start : start + 1000])
        return max(len(points), memory["points"])

    def _send_state(self, folder: CellFolder, memory: Mapping[str, Any], given_up: str) -> None:
        run_id, result = memory["run_id"], folder.result
        if result is None:
            self._tag(run_id, {"state": "killed" if given_up else "running"})
            self._end(run_id, given_up or "RUNNING", None)
            return
        from mlflow.entities import Metric

        # not the time of sending: what is sent twice, because an answer was lost, is there once
        step, written = int(result.get("images_seen", 0)), (folder.path / RESULT).stat().st_mtime
        numbers, done = run_metrics(result), result["state"] == DONE
        metrics = [Metric(key, float(value), int(1000 * written), step) for key, value in numbers.items()]
        self.client.log_batch(run_id, metrics=metrics)
        self._tag(run_id, {**result_tags(str(folder.path), result), **self._send_artifacts(folder, run_id, done)})
        self._end(run_id, "FINISHED" if done else "FAILED", written)

    def _send_artifacts(self, folder: CellFolder, run_id: str, done: bool) -> dict[str, str]:
        """Send the files of a cell; returns the tags that say which and, for what is too large, which not."""
        from vqbench.reports.figures import draw_code_histogram

        codes = folder.path / CODES
        if done and is_whole(codes):
            draw_code_histogram(codes, codes.with_suffix(".png"))
        if done and folder.weights.is_file():
            self.client.log_artifact(run_id, str(folder.weights), "weights")
        sent, left_out = {}, {}
        for name in ARTIFACTS if done else FAILURE_FILES:
            path = folder.path / name
            if not path.is_file():
                continue
            if (size := path.stat().st_size) > most_bytes():
                left_out[name] = size
            else:
                self.client.log_artifact(run_id, str(path))
                sent[name] = file_digest(path)
        return {FILES_TAG: json.dumps(sent), LEFT_OUT_TAG: json.dumps(left_out)}

    def _send_shared(self, folder: CellFolder, experiment_id: str, parent: str) -> None:
        """Send what cells share to the run of the first command that has it, once while that run is there."""
        known_path = folder.path.parents[1] / "shared.mlflow.json"
        known = read_json(known_path) or {}
        if self._is_ours(known) and known["uri"] != masked(self.uri):  # an earlier version kept the password
            write_json(known_path, {**known, "uri": masked(self.uri)})
        known = {**(known if self._is_ours(known) else {}), "uri": masked(self.uri)}
        holders = self._holders(experiment_id)
        for path in (folder.reference_features, folder.validation_images):
            name = path.name
            if not path.is_file() or path.stat().st_size > most_bytes():
                continue
            if known.get(name) == path.stat().st_mtime_ns and name in holders and self._has(holders[name]):
                continue
            self.client.log_artifact(parent, str(path), SHARED_FOLDER)
            value = json.dumps({"run_id": parent, "sha256": file_digest(path)})
            self.client.set_experiment_tag(experiment_id, SHARED_TAG + name, value)
            holders[name] = parent
            known[name] = path.stat().st_mtime_ns
            write_json(known_path, known)

    def _holders(self, experiment_id: str) -> dict[str, str]:
        """File that cells share → the run that has it, as the experiment's tags say."""
        if experiment_id not in self._shared:
            tags = self.client.get_experiment(experiment_id).tags
            self._shared[experiment_id] = {
                key.removeprefix(SHARED_TAG): json.loads(value)["run_id"]
                for key, value in tags.items()
                if key.startswith(SHARED_TAG)
            }
        return self._shared[experiment_id]


_OF_COMMAND = (
    "id", "name", "experiment", "methods", "dataset", "recipe", "seeds", "command", "protocol", "note", "state",
)  # fmt: skip


def is_record(found: Mapping[str, Any] | None) -> bool:
    """Whether this is the whole record of a command."""
    return all(isinstance((found or {}).get(key), str) for key in _OF_COMMAND)


def _record(path: Path) -> dict[str, Any]:
    """The record of a command. A lost one is made up, so that its cells have a parent run all the same."""
    found = read_json(path) or {}
    if is_record(found):
        return found
    experiment, unknown = path.parents[1].name, dict.fromkeys(_OF_COMMAND, "unknown")
    unknown |= {"experiment": experiment, "name": f"{path.stem} (its record was lost)", "state": "FAILED"}
    unknown["id"] = hashlib.sha256(f"{experiment}/{path.stem}".encode()).hexdigest()[:32]
    return unknown | {key: value for key, value in found.items() if isinstance(value, str) or key not in unknown}


def _tracked(folder: CellFolder, memory: Mapping[str, Any]) -> dict[str, Any]:
    """Which command's a cell is; {} where it is no tracked one's. What was sent tells it where that file is damaged."""
    path = folder.path / TRACKING
    record = read_json(path) or {}
    if not path.exists() or {"attempt", "command", "label"} <= record.keys():
        return record
    known = {key: memory[key] for key in ("attempt", "command") if key in memory}
    if len(known) < 2:
        raise VQBenchError("tracking.json, which says which command's it is, is not whole", "train it again: --rerun")
    return {"label": folder.spec.get("label") or folder.spec.get("method"), **known}


def _milliseconds(seconds: Any) -> int | None:
    return int(1000 * seconds) if seconds else None


def _stamp(folder: CellFolder, result: Mapping[str, Any]) -> str:
    """Tells what has been sent of a finished cell from what is there now."""
    times = [(folder.path / name).stat().st_mtime_ns for name in (RESULT, FAILURE) if (folder.path / name).is_file()]
    return " ".join(map(str, (result["state"], *times)))
