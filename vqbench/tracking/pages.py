"""What MLflow's own pages show of an experiment: names, tags, saved views, the description. Talks to no server.

The runs page of MLflow 3 takes its columns, order and charts from a saved view, which is a tag of the experiment
(`mlflow.sharedViewState.KEY`) that the address names (`viewStateShareKey=KEY`). The views are made once for each
experiment; whoever changes one in MLflow keeps the change.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from vqbench.metrics.definitions import DEFINITIONS, asked_metrics, cautions, stored_digest
from vqbench.metrics.row import SIZES
from vqbench.registry import METRICS
from vqbench.results.cell_folder import CellFolder

NOTE = "mlflow.note.content"
PAGE = "vqbench.page"
"""Tag of a command's run: the name of its report among its artifacts."""
_MARK = "<!-- vqbench writes what follows; text above this line is yours -->"
_VIEW = "mlflow.sharedViewState."
VIEWS = {
    "methods": ("vqbench-1-methods", "TABLE"),
    "commands": ("vqbench-1-commands", "TABLE"),
    "curves": ("vqbench-1-curves", "CHART"),
    "cells": ("vqbench-1-cells", "CHART"),
}
"""The prepared views: key of the tag, which counts up when the view changes, and the mode of the page."""
_TAGS = tuple(f"tags.`{name}`" for name in ("method", "seed", "collapsed", "state", "protocol_name"))
_TRAINING = "?workflowType=machine_learning"  # else MLflow shows its pages for language models
_CURVES = {"usage": "usage", "psnr": "PSNR of a batch, dB", "perplexity": "perplexity", "loss/pixel": "pixel loss"}
"""Curves that can be compared across methods, which the sum of all losses cannot."""
_NOTE_BYTES = 15_000  # an experiment's tag may have 20,000 characters, and the rest is the reader's own text


def cell_name(label: str, seed: int) -> str:
    """Name of a cell's run; sorted as text, seed 2 stands before seed 10."""
    return f"{label} s{seed:02d}"


def setup_of(folder: CellFolder, spec: dict[str, Any]) -> str:
    """Short hash of all that decides a cell's numbers but the seed, as reports gather cells."""
    from vqbench.reports.experiment import StoredCell

    parts = [*StoredCell(folder, spec, {}).setup, spec["protocol"]["hash"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:6]


def cell_tags(label: str, spec: Mapping[str, Any], setup: str, group: str) -> dict[str, str]:
    """Tags of a cell's run, to filter by; cells of one `group` share their `setup`, and differ in the seed alone."""
    return {
        "vqbench.kind": "cell",
        "method": label,
        "group": group,
        "vqbench.setup": setup,
        "dataset": spec["dataset"]["slug"],
        "recipe": spec["recipe"]["name"],
        "protocol": spec["protocol"]["hash"],
        "protocol_name": spec["protocol"]["name"],
        "seed": str(spec["seed"]),
        **({"trained_here": "no", "sha256": spec["pretrained"]["sha256"]} if "pretrained" in spec else {}),
        "state": "running",
        "collapsed": "no",
        **({"caution": "; ".join(said.values())} if (said := _cautions(spec)) else {}),
        **{f"component.{name}": "on" if on else "off" for name, on in spec["components"].items()},
    }


def _cautions(spec: Mapping[str, Any]) -> dict[str, str]:
    return cautions(spec.get("metrics") or (), spec["protocol"]["n_images"])


def metric_column(name: str, digest: str) -> str:
    """MLflow's key for a score. A plugin's ends in the start of its definition's digest: two never share a column."""
    return f"{name}.{digest[:6]}" if digest and not METRICS.is_built_in(name.partition("/")[0]) else name


def asked_columns(spec: Mapping[str, Any]) -> list[str]:
    """The columns of those metrics of a cell that were asked for by name, or are usual for its images alone."""
    known = spec.get("digests", {})
    own = [name for name in spec.get("metrics") or () if name in DEFINITIONS and DEFINITIONS[name].in_place_of]
    return [metric_column(name, known.get(name, "")) for name in dict.fromkeys((*own, *asked_metrics(spec)))]


def run_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a run: scores, parameter counts, speed and memory."""
    numbers = {metric_column(name, stored_digest(name, result)): value for name, value in result["scores"].items()}
    numbers |= {f"params_{k}": v for k, v in result.get("params", {}).items()}
    keys = ("train_images_per_s", "encode_images_per_s", "decode_images_per_s", "train_seconds", "peak_memory_bytes",
            "peak_reserved_bytes")  # fmt: skip
    numbers |= {key: result[key] for key in (*keys, *SIZES) if key in result}
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
        **{f"execution.{name}": str(value) for name, value in (result.get("execution") or {}).items()},
        **{f"metric.{name}": digest for name in result["scores"] if (digest := stored_digest(name, result))},
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


def description(old: str, experiment_id: str, commands: Iterable[CommandRun]) -> str:
    """The experiment's description: report, commands with the newest first, protocols.

    What somebody wrote above our part of the `old` description stays.
    """
    # by name, whose number counts up: where several machines write, the order of the experiment is theirs
    commands = sorted(commands, key=lambda c: c.name, reverse=True)
    own = old.partition(_MARK)[0].rstrip()
    parts = [own] if own else []
    parts.append(_MARK)
    here = f"#/experiments/{experiment_id}"
    links = []
    paged = next((c for c in commands if c.tags.get(PAGE)), None)
    if paged is not None:
        link = f"{here}/runs/{paged.run_id}/artifacts/{quote(paged.tags[PAGE])}{_TRAINING}"
        links.append(f"[report of {_plain(paged.name)}]({link})")
    links += [f"[{view}]({address_of(here, view)})" for view in VIEWS]
    parts.append(" · ".join(links))  # MLflow folds the description, and shows its first line
    notes: dict[str, str] = {}  # by name and hash: another version may have more to say of the same protocol
    for note in (c.tags["vqbench.protocol"] for c in commands if c.tags.get("vqbench.protocol")):
        notes.setdefault(note.partition("\n")[0], note)
    if len(notes) > 1:
        parts.append(f"{len(notes)} protocols: numbers under different ones do not compare.")
    parts += [protocol_markdown(note) for note in notes.values()]
    parts.append("**Commands**\n\n" + "\n".join(_command_line(here, c) for c in commands[:20]))
    text = "\n\n".join(parts)
    return text if len(text) <= _NOTE_BYTES + len(own) else text[: _NOTE_BYTES + len(own)] + " …"


def _command_line(here: str, command: CommandRun) -> str:
    tags = command.tags
    what = ", ".join(f"{tags[key]}" for key in ("dataset", "recipe") if tags.get(key))
    line = f"- [{_plain(command.name[:200])}]({here}/runs/{command.run_id}{_TRAINING}): {_plain(what)}"
    return f"{line}, seeds {_plain(tags.get('seeds', ''))}, {command.status.lower()}"


def address_of(here: str, view: str) -> str:
    """Address of one of VIEWS; `here` is the address of the experiment."""
    key, mode = VIEWS[view]
    return f"{here}/runs{_TRAINING}&viewStateShareKey={key}&compareRunsMode={mode}"


def _usual_scores() -> list[str]:
    """What ranks methods and is shown unasked, of RGB: what stands in its place for other images comes with them."""
    usual = (metric for metric in DEFINITIONS.values() if metric.better and not metric.on_request)
    return [metric.name for metric in usual if not metric.in_place_of]


def experiment_tags(asked: Iterable[str] = ()) -> dict[str, str]:
    """Tags of an experiment that open MLflow's pages for training, not those for language models, and the views.

    The views show the usual scores, and after them the columns of those that were `asked` for by name.
    """
    scores = tuple(dict.fromkeys((*_usual_scores(), *asked)))
    cells, charts = _state(scores, _CELLS, "metrics.`psnr`"), _charts(scores)
    states = {
        "methods": ("vqbench: methods, mean over seeds", cells | _GROUPED),
        "commands": ("vqbench: commands and their cells", _state(scores)),
        "curves": ("vqbench: curves, mean over seeds", cells | _GROUPED | charts),
        "cells": ("vqbench: curves of each cell", cells | charts),
    }
    born = 1_764_000_000_000  # milliseconds; always the same, so that the tag is
    tags = {
        _VIEW + VIEWS[view][0]: json.dumps(
            {"name": name, "createdAt": born, "updatedAt": born, "state": json.dumps(state)}
        )
        for view, (name, state) in states.items()
    }
    return {"mlflow.experimentKind": "custom_model_development", **tags}


def missing_tags(there: Mapping[str, str], asked: Iterable[str] = ()) -> dict[str, str]:
    """Those of `experiment_tags` that an experiment with the tags `there` lacks; what somebody has changed stays."""
    before = _asked_in(there)
    ours, wanted = experiment_tags(before), experiment_tags(dict.fromkeys((*before, *asked)))
    return {
        key: value
        for key, value in wanted.items()
        if key not in there or (there[key] == ours[key] and value != ours[key])
    }


def _asked_in(there: Mapping[str, str]) -> list[str]:
    """The metrics that a view of ours shows beside the usual ones."""
    try:
        columns = json.loads(json.loads(there[_VIEW + VIEWS["commands"][0]])["state"])["columnOrder"]
    except (KeyError, ValueError, TypeError):
        return []
    shown = [name.removeprefix("metrics.`").removesuffix("`") for name in columns if name.startswith("metrics.")]
    return [name for name in shown if name not in (*_usual_scores(), "params_total")]


def has_views(tags: Mapping[str, str]) -> bool:
    """Whether an experiment with these tags has our views."""
    return any(_VIEW + key in tags for key, _ in VIEWS.values())


_CELLS = "tags.`vqbench.kind` = 'cell'"
_GROUPED = {"groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "group"}]}}


def _state(scores: Sequence[str], search: str = "", order: str = "attributes.start_time") -> dict[str, Any]:
    """A view of the runs page; ordered by start time, and by that alone, MLflow shows children below their parent."""
    columns = [*(f"metrics.`{name}`" for name in (*scores, "params_total")), *_TAGS]
    return {
        "searchFilter": search,
        "orderByKey": order,
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: 130 if "lpips" in column else 85 for column in columns if "metrics" in column},
        "runsHiddenMode": "SHOW_ALL",
    }


def _charts(scores: Sequence[str]) -> dict[str, Any]:
    """Curves in one section, scores as bars in another; what MLflow adds by itself stays folded."""
    sections = [("curves", "Training, against images seen", True), ("scores", "Scores", True)]
    sections += [(name, name, False) for name in ("train", "train/loss", "train/quantizer", "Model metrics")]
    lines = [_line_chart(f"train/{name}", title) for name, title in _CURVES.items()]
    bars = [_card("BAR", "scores", name, name) for name in scores]
    return {
        "compareRunCharts": lines + bars,
        "compareRunSections": [
            {
                "uuid": key,
                "name": name,
                "display": shown,
                "isReordered": False,
                "deleted": False,
                "isGenerated": False,
                "columns": 2,
                "cardHeight": 300,
            }
            for key, name, shown in sections
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _card(kind: str, section: str, metric: str, title: str) -> dict[str, Any]:
    return {
        "displayName": title,
        "uuid": f"vqbench-{kind}-{metric}",
        "type": kind,
        "metricSectionId": section,
        "metricKey": metric,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }


def _line_chart(metric: str, title: str) -> dict[str, Any]:
    return _card("LINE", "curves", metric, title) | {
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
