"""What MLflow's own pages show of an experiment: names, tags, saved views, the description. Talks to no server.

The runs page of MLflow 3 takes its columns, order and charts from a saved view, which is a tag of the experiment
(`mlflow.sharedViewState.KEY`) that the address names (`viewStateShareKey=KEY`). The views are made once for each
experiment; whoever changes one in MLflow keeps the change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

NOTE = "mlflow.note.content"
PAGE = "vqbench.page"
"""Tag of a command's run: the name of its report among its artifacts."""
_MARK = "<!-- vqbench writes what follows; text above this line is yours -->"
_VIEW = "mlflow.sharedViewState."
_SCORES = ("rfid", "psnr", "ssim", "lpips_alex", "lpips_vgg", "lpips_squeeze", "quantization_error", "usage",
           "perplexity")  # fmt: skip
_COLUMNS = (
    *(f"metrics.`{name}`" for name in (*_SCORES, "params_total")),
    *(f"tags.`{name}`" for name in ("method", "seed", "collapsed", "state", "protocol_name")),
)
_CURVES = ("usage", "psnr", "perplexity", "loss")
_NOTE_BYTES = 15_000  # an experiment's tag may have 20,000 characters, and the rest is the reader's own text


def shortened(names: Sequence[str], most: int = 4) -> str:
    """Names between commas, the first few if there are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def cell_name(label: str, seed: int) -> str:
    """Name of a cell's run; sorted as text, seed 2 stands before seed 10."""
    return f"{label} s{seed:02d}"


def cell_tags(label: str, spec: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a cell's run, to filter by."""
    return {
        "vqbench.kind": "cell",
        "method": label,
        "dataset": spec["dataset"]["slug"],
        "recipe": spec["recipe"]["name"],
        "protocol": spec["protocol"]["hash"],
        "protocol_name": spec["protocol"]["name"],
        "seed": str(spec["seed"]),
        "state": "running",
        "collapsed": "no",
        **{f"component.{name}": "on" if on else "off" for name, on in spec["components"].items()},
    }


def run_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a run: scores, parameter counts, speed and memory."""
    numbers = {**result["scores"], **{f"params_{k}": v for k, v in result.get("params", {}).items()}}
    keys = ("train_images_per_s", "encode_images_per_s", "decode_images_per_s", "train_seconds", "peak_memory_bytes")
    numbers |= {key: result[key] for key in keys if key in result}
    flag = result.get("collapse") or {}
    return numbers | ({"collapse_images": flag["images"]} if flag else {})


def result_tags(path: str, result: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a cell's run that come with its result; `path` is its folder."""
    flag = result.get("collapse") or {}
    return {
        "state": result["state"],
        "error": (result.get("error") or {}).get("message", "")[:5000],
        "path": path,
        "collapsed": "yes" if flag else "no",
        "collapse": flag.get("kind", "no"),
        "collapse_reason": flag.get("reason", ""),
    }


def command_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a command's run; `record` is its file below `commands/`."""
    return {
        "vqbench.kind": "command",
        "command": record.get("kind", "run"),
        "dataset": record["dataset"],
        "recipe": record["recipe"],
        "protocol": record["protocol"],
        "protocol_name": protocol_name(record["note"]),
        "methods": record["methods"][:5000],
        "seeds": record["seeds"],
        "vqbench.protocol": record["note"],
        NOTE: protocol_markdown(record["note"]),
    }


def protocol_name(note: str) -> str:
    """The name in a protocol's text, whose first line is `protocol NAME (HASH)`."""
    return note.partition("\n")[0].removeprefix("protocol ").partition(" (")[0]


def protocol_markdown(note: str) -> str:
    """A protocol's text as a paragraph and a list."""
    first, *lines = (_plain(line.strip()) for line in note.splitlines())
    return f"**{first}**\n\n" + "\n".join(f"- {line}" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text.replace("\n", " ")).replace("\\<", "&lt;")


@dataclass(frozen=True)
class CommandRun:
    """A command as MLflow has it."""

    run_id: str
    name: str
    status: str
    tags: Mapping[str, str]


def description(old: str, experiment_id: str, commands: Sequence[CommandRun]) -> str:
    """The experiment's description: report, commands, protocols; `commands` with the newest first.

    What somebody wrote above our part of the `old` description stays.
    """
    own = old.partition(_MARK)[0].rstrip()
    parts = [own] if own else []
    parts.append(_MARK)
    here = f"#/experiments/{experiment_id}"
    paged = next((c for c in commands if c.tags.get(PAGE)), None)
    if paged is not None:
        link = f"{here}/runs/{paged.run_id}/artifacts/{quote(paged.tags[PAGE])}"
        parts.append(f"[Report of {_plain(paged.name)}]({link})")
    parts.append(f"[Table]({table_address(here)}) · [Curves]({curves_address(here)})")
    notes = dict.fromkeys(c.tags["vqbench.protocol"] for c in commands if c.tags.get("vqbench.protocol"))
    if len(notes) > 1:
        parts.append(f"{len(notes)} protocols: their numbers are measured differently and must not be compared.")
    parts += [protocol_markdown(note) for note in notes]
    parts.append("**Commands**\n\n" + "\n".join(_command_line(here, c) for c in commands[:20]))
    text = "\n\n".join(parts)
    return text if len(text) <= _NOTE_BYTES + len(own) else text[: _NOTE_BYTES + len(own)] + " …"


def _command_line(here: str, command: CommandRun) -> str:
    tags = command.tags
    what = ", ".join(f"{tags[key]}" for key in ("dataset", "recipe") if tags.get(key))
    line = f"- [{_plain(command.name[:200])}]({here}/runs/{command.run_id}): {_plain(what)}"
    return f"{line}, seeds {_plain(tags.get('seeds', ''))}, {command.status.lower()}"


def table_address(here: str) -> str:
    """Address of the runs as a table; `here` is the address of the experiment."""
    return f"{here}/runs?workflowType=machine_learning&viewStateShareKey=vqbench-1-runs&compareRunsMode=TABLE"


def curves_address(here: str) -> str:
    """Address of the curves, one line per method."""
    return f"{here}/runs?workflowType=machine_learning&viewStateShareKey=vqbench-1-curves&compareRunsMode=CHART"


def experiment_tags() -> dict[str, str]:
    """Tags of an experiment that open MLflow's pages for training, not those for language models, and the views."""
    views = {
        "vqbench-1-runs": ("vqbench: commands and their cells", _state()),
        "vqbench-1-cells": ("vqbench: cells, best PSNR first", _state(_CELLS, "metrics.`psnr`")),
        "vqbench-1-curves": ("vqbench: curves, mean over seeds", _state(_CELLS) | _charts() | _GROUPED),
        "vqbench-1-curves-by-cell": ("vqbench: curves of every cell", _state(_CELLS) | _charts()),
    }
    born = 1_764_000_000_000  # milliseconds; always the same, so that the tag is
    tags = {
        _VIEW + key: json.dumps({"name": name, "createdAt": born, "updatedAt": born, "state": json.dumps(state)})
        for key, (name, state) in views.items()
    }
    return {"mlflow.experimentKind": "custom_model_development", **tags}


_CELLS = "tags.`vqbench.kind` = 'cell'"
_GROUPED = {"groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "method"}]}}


def _state(search: str = "", order: str = "attributes.start_time") -> dict[str, Any]:
    """A view of the runs page; ordered by start time, and by that alone, MLflow shows children below their parent."""
    return {
        "searchFilter": search,
        "orderByKey": order,
        "orderByAsc": False,
        "selectedColumns": list(_COLUMNS),
        "columnOrder": list(_COLUMNS),
        "runsHiddenMode": "SHOW_ALL",
    }


def _charts() -> dict[str, Any]:
    """Curves in one section, scores as bars in another; what MLflow adds by itself stays folded."""
    sections = [("curves", "While training, against images seen", True), ("scores", "Scores", True)]
    sections += [(name, name, False) for name in ("train", "train/loss", "train/quantizer", "Model metrics")]
    lines = [_line_chart(f"train/{name}") for name in _CURVES]
    bars = [_card("BAR", "scores", name) for name in _SCORES]
    return {
        "compareRunCharts": lines + bars,
        "compareRunSections": [
            {"uuid": key, "name": name, "display": shown, "isReordered": False, "deleted": False, "isGenerated": False}
            for key, name, shown in sections
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _card(kind: str, section: str, metric: str) -> dict[str, Any]:
    return {
        "uuid": f"vqbench-{kind}-{metric}",
        "type": kind,
        "metricSectionId": section,
        "metricKey": metric,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }


def _line_chart(metric: str) -> dict[str, Any]:
    return _card("LINE", "curves", metric) | {
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def newest_first(commands: Iterable[CommandRun]) -> list[CommandRun]:
    """Commands by name, whose number counts up; the order of an experiment that several machines write to is theirs."""
    return sorted(commands, key=lambda c: c.name, reverse=True)
