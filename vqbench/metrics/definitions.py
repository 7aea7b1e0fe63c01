"""What is known of every metric: selected by `--metrics`, told apart by digests, read by reports. No torch here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from vqbench.errors import UsageError, unknown
from vqbench.metrics.kinds import RGB, CodecMetric, CodeMetric, Metric
from vqbench.metrics.named import NamedProtocol, refuse_other_definition
from vqbench.registry import EXTRACTORS, METRICS
from vqbench.wording import counted

VERSION = "v1"
"""Version of the definitions that every image protocol has in its hash. A change of one in meaning makes a new one."""
IN_PROTOCOL = ("rfid", "kid", "psnr", "ssim", "lpips_alex", "lpips_vgg", "lpips_squeeze", "usage", "perplexity",
               "dead_codes", "bits_per_token", "bpp", "bpp_entropy", "tokens")  # fmt: skip
"""The metrics of v1. What comes later is told apart by a digest of its own, and changes no hash."""
IN_FEATURE_PROTOCOL = ("quantization_error", "usage", "perplexity", "dead_codes", "bits_per_token",
                       "entropy_bits_per_token", "tokens")  # fmt: skip
"""The same of the features track."""
_FIRST_DIGESTS = {"rfid_continuous": "206500a229a2", "psnr_continuous": "43de4e374380"}
"""Of metrics whose scores were stored without a digest at first."""
_SEE = "see docs/adding-a-metric.md"
_TAKEN = ("id", "codes", "images", "method", "dataset", "recipe", "seed", "cell", "protocol", "state", "path", "error",
          "scores", "params", "digests", "collapse", "matched", "cautions", "train_images_per_s", "pretrained",
          "tokens_per_image", "bits_per_image", "mean_tokens_per_image", "mean_bits_per_image")  # fmt: skip


@cache
def _made(name: str, cls: Any) -> Metric:
    try:
        made: Metric = cls(name=name)
    except Exception as error:
        raise UsageError(f"metric '{name}' cannot be made: {type(error).__name__}: {error}", _SEE) from error
    _refuse_odd(made)
    if name not in (*IN_PROTOCOL, *IN_FEATURE_PROTOCOL):
        made.digest = _digest(made)
    return made


def _refuse_odd(made: Metric) -> None:
    """Raise UsageError for a class that is no metric, or lacks what every table needs."""
    odd = ""
    if not re.fullmatch(r"[A-Za-z]\w{0,79}", made.name) or made.name in _TAKEN or made.name.startswith("params_"):
        odd = "it needs a name of letters, digits and '_' that no other column has"
    elif not (made.title and made.sentence):
        odd = "it needs a title and a sentence that defines it"
    elif made.better not in ("higher", "lower", None):
        odd = f"better is 'higher', 'lower' or None, not {made.better!r}"
    elif not isinstance(made.digits, int):
        odd = f"digits is a whole number, not {made.digits!r}"
    if odd:
        raise UsageError(f"metric '{made.name}': {odd}", _SEE)


def _digest(made: Metric) -> str:
    """12 hex digits over all that a number of it depends on beside the protocol."""
    from vqbench.metrics.weights import pin_of

    needed = weights_of(made)
    parts = [
        made.sentence,
        pin_of(needed).digest if needed else "",
        METRICS.source_of(made.name).digest,
        EXTRACTORS.source_of(made.extractor).digest if made.extractor else None,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def metric(name: str) -> Metric:
    """The metric that is registered under `name`, imported now. Raises UsageError where there is none, or it is odd."""
    cls: Any = METRICS.get(name)
    is_metric = isinstance(cls, type) and issubclass(cls, Metric)
    if not is_metric:
        raise UsageError(f"metric '{name}' is no subclass of a kind of metric", _SEE)
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise UsageError(f"metric '{name}' does not define {', '.join(missing)}", _SEE)
    return _made(name, cls)


def weights_of(metric: Metric) -> str:
    """The name of the weights that a metric needs, itself or for the features that it compares; "" for none."""
    return EXTRACTORS.get(metric.extractor).weights if metric.extractor else metric.weights


def features_by(metric: Metric) -> str:
    """What makes the features that a metric compares: an extractor, and of what unless of 8-bit RGB; "" for none."""
    unlike = [value for value in (metric.sees, metric.values) if value in ("each_channel", "truncated", "floats")]
    return ", ".join((metric.extractor, *unlike)) if metric.extractor else ""


class _Definitions(Mapping[str, Metric]):
    """Every metric by name: what stored cells told of it, else what is registered.

    Listed are vqbench's own, then others of which something is known without importing them.
    """

    def __init__(self) -> None:
        self._told: dict[str, Metric] = {}

    def tell(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what reports show of metrics from cells that have their scores (`Metric.as_dict`)."""
        for name, said in stored.items():
            self._told.pop(name, None)
            if not METRICS.is_built_in(name) or metric(name).digest not in ("", said.get("digest")):
                self._told[name] = Metric.told(name, said)

    def __getitem__(self, name: str) -> Metric:
        if name in self._told:
            return self._told[name]
        if name not in METRICS:
            raise KeyError(name)
        return metric(name)

    def __contains__(self, name: object) -> bool:
        return name in self._told or (isinstance(name, str) and name in METRICS)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*filter(_is_usable, METRICS.imported()), *self._told)))

    def __len__(self) -> int:
        return len(list(iter(self)))


DEFINITIONS = _Definitions()


def _is_usable(name: str) -> bool:
    """Whether what is registered under a name is whole; what nobody has asked for by name must stop nothing."""
    try:
        return metric(name).name == name
    except UsageError:
        return False


def _unasked() -> Iterator[Metric]:
    """What a command knows of without being asked: vqbench's own, and what is in the files that it was given."""
    for name in METRICS.names():
        if METRICS.is_built_in(name) or (METRICS.file_of(name) is not None and _is_usable(name)):
            yield metric(name)


def known_metrics(track: str = "images") -> tuple[str, ...]:
    """The metrics of a track that can be asked for: vqbench's own, and those of the files that were given."""
    return tuple(m.name for m in _unasked() if _can_be_asked(m, track))


def _can_be_asked(known: Metric, track: str) -> bool:
    return track in known.tracks and not known.companion_of


def default_metrics(
    track: str = "images", channels: int = RGB, protocol: NamedProtocol | None = None
) -> tuple[str, ...]:
    """The metrics that are computed when none is asked for, those of files that were given among them."""
    idle = "each_channel" if channels == RGB else "rgb"
    usual = (known for known in _unasked() if known.default and known.sees != idle and _can_be_asked(known, track))
    return tuple(known.name for known in usual) if protocol is None else of_protocol(usual, protocol)


def of_protocol(metrics: Iterable[Metric], protocol: NamedProtocol) -> tuple[str, ...]:
    """What a named protocol measures where ours measures these: the same, another in its place, or nothing."""
    theirs = (metric(protocol.in_place_of.get(known.name, known.name)) for known in metrics)
    return tuple(known.name for known in theirs if protocol.has(known))


def of_channels(name: str, channels: int) -> str:
    """The metric that stands for `name` where images have so many channels: itself, or what takes its place."""
    if channels == RGB or metric(name).sees != "rgb":
        return name
    others = (known for known in _unasked() if known.sees == "each_channel")
    return next((known.name for known in others if known.in_place_of == name), name)


def refuse_other_channels(metrics: Iterable[str], channels: int) -> None:
    """Raise UsageError where a metric sees RGB alone, and the images have another number of channels."""
    for name in metrics:
        if channels == RGB or metric(name).sees != "rgb":
            continue
        other = of_channels(name, channels)
        fits = (
            f"--metrics {other}" if other != name else f"choose among {', '.join(default_metrics(channels=channels))}"
        )
        images = counted(channels, "channel")
        raise UsageError(f"{name} is defined for RGB images, and these have {images}", fits)


def select_metrics(
    asked: Iterable[str] = (), track: str = "images", channels: int = RGB, protocol: NamedProtocol | None = None
) -> tuple[str, ...]:
    """Names as typed (repeated, or between commas) → metric names in the table's order; nothing asked → the defaults.

    Raises UsageError, with the nearest names, for one that does not exist, that the track does not have, that is not
    defined for images of so many channels, or that a named protocol defines in another way.
    """
    names = [part.strip() for text in asked for part in text.split(",") if part.strip()]
    for name in names:
        _refuse_stray(name, track)
    refuse_other_channels(names, channels)
    if protocol is not None:
        for name in names:
            refuse_other_definition(metric(name), protocol)
    if not names:
        return default_metrics(track, channels, protocol)
    return tuple(name for name in METRICS.names() if name in names)


def without_codes(metrics: Iterable[str]) -> tuple[str, ...]:
    """Those of the metrics that look at images alone: of a folder of reconstructions there is nothing else."""
    return tuple(name for name in metrics if not isinstance(metric(name), CodeMetric | CodecMetric))


def _refuse_stray(name: str, track: str) -> None:
    if name not in METRICS:
        names = known_metrics(track)
        try:
            METRICS.get(name)  # a file may register a name that its text does not show
        except UsageError as error:
            hint = f"known metrics: {', '.join(names)}; one of a file needs the file: --plugin FILE"
            raise unknown("metric", name, names, hint) from error
    known = metric(name)
    if track not in known.tracks:
        what = f"{name} is a metric of {' and '.join(known.tracks)}, and this recipe is of {track}"
        raise UsageError(
            what,
            f"leave out --metrics (and VQBENCH_METRICS), or choose among {', '.join(known_metrics(track))}",
        )
    if known.companion_of:
        beside = known.companion_of
        raise UsageError(
            f"{name} is not asked for: it comes with {beside}, of methods that train a continuous path",
            f"ask for {beside}: --metrics {beside}",
        )


def companions(metrics: Iterable[str]) -> tuple[str, ...]:
    """What is computed beside these metrics where a method has a continuous path."""
    asked = set(metrics)
    return tuple(known.name for known in _unasked() if known.companion_of in asked)


def digests(metrics: Iterable[str]) -> dict[str, str]:
    """Metric → digest, of those that have one."""
    return {name: digest for name in metrics if (digest := metric(name).digest)}


def stored_definitions(scores: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What a result says of those scores that have a digest, so that a report needs no plugin to show them."""
    return {name: metric(name).as_dict() for name in scores if name in METRICS and metric(name).digest}


def stored_digest(name: str, result: Mapping[str, Any]) -> str:
    """The digest of a score in a result, or of one that belongs to it (`usage/0`); "" where the protocol has it."""
    told = result.get("metrics")
    known = told.get(name.partition("/")[0]) if isinstance(told, dict) else None
    digest = known.get("digest") if isinstance(known, dict) else None
    return str(digest or _FIRST_DIGESTS.get(name, ""))


def has_scores(result: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    """Whether a result has all scores that a spec asks for, each by the definition that the spec names."""
    scores, digests = result.get("scores", {}), spec.get("digests", {})
    return all(m in scores and stored_digest(m, result) == digests.get(m, "") for m in spec["metrics"])


def current_scores(result: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a result, but those by a definition that is not the registered one any more."""
    scores = result.get("scores")
    return {
        name: value
        for name, value in (scores if isinstance(scores, dict) else {}).items()
        if not (digest := stored_digest(name, result)) or digest == _current_digest(name.partition("/")[0], digest)
    }


def _current_digest(name: str, otherwise: str) -> str:
    """The digest of what is registered under `name`; `otherwise` where nothing is that could be computed."""
    try:
        return metric(name).digest if name in METRICS else otherwise
    except UsageError:
        return otherwise


def one_definition_each(
    results: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Results, by cell, in which each metric has one definition; and a sentence for each that has others besides.

    What is registered wins where a cell has it, else what most cells have. Reports show each as its cells tell.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for cell, result in results.items():
        for name in result.get("scores") or {}:
            if digest := stored_digest(name, result):
                found.setdefault(name, {}).setdefault(digest, []).append(cell)
    said, chosen = [], dict[str, str]()
    for name, cells in found.items():
        most = max(sorted(cells), key=lambda digest: len(cells[digest]))
        current = _current_digest(name.partition("/")[0], most) if len(cells) > 1 else most
        chosen[name] = current if current in cells else most
        others = sorted(cell for digest, listed in cells.items() if digest != chosen[name] for cell in listed)
        if others and "/" not in name:
            said.append(
                f"{name} of {others[0]}{f' and {len(others) - 1} more' if len(others) > 1 else ''} was measured by "
                f"another definition than that of the rest ({chosen[name]}), so it is left out, and no mean over both "
                f"is shown; `vqbench run` with --metrics {name} scores it anew, without training"
            )
        told = (results[cells[chosen[name]][0]].get("metrics") or {}).get(name)
        if told:
            DEFINITIONS.tell({name: told})
    return {
        cell: {
            **result,
            "scores": {
                name: value
                for name, value in (result.get("scores") or {}).items()
                if stored_digest(name, result) == chosen.get(name, "")
            },
        }
        for cell, result in results.items()
    }, said


def too_small(name: str, resolution: int) -> bool:
    """Whether images of `resolution` pixels a side are smaller than those that the metric is defined for."""
    return resolution < metric(name).min_resolution


def refuse_few_images(metrics: Iterable[str], n_images: int) -> None:
    """Raise UsageError where a metric is defined for more images than there are."""
    for known in map(metric, metrics):
        if n_images < known.min_images:
            raise UsageError(
                f"{known.name} needs at least {known.min_images} validation images, there "
                f"{'is' if n_images == 1 else 'are'} {n_images}",
                f"leave {known.name} out of the metrics, for example: --metrics psnr,ssim,usage",
            )


def cautions(metrics: Iterable[str], n_images: int) -> dict[str, str]:
    """Metric → what must be said wherever its score over `n_images`, or its companion's, is shown; else empty."""
    shown = (DEFINITIONS[name] for name in metrics if name in DEFINITIONS)
    named = {known.companion_of or known.name: known for known in shown}
    return {name: _caution(DEFINITIONS[name], n_images) for name, known in named.items() if n_images < known.few_images}


def _caution(known: Metric, n_images: int) -> str:
    of = f"{known.title} of {counted(n_images, 'image')}"
    if not known.extractor:
        return f"{of} says little: it is meant for at least {known.few_images:,}"
    return (
        f"{of} is biased upwards: of fewer than {known.few_images:,} the covariance of its features is singular; "
        f"it ranks methods within this table and compares with no {known.title} from elsewhere"
    )


_IN_EVERY_DEFAULT = frozenset(("usage", "perplexity", "dead_codes", "bits_per_token", "tokens"))
"""What is computed on either track where no metric is asked for."""


def asked_metrics(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics of a cell that were asked for by name; a spec of an older version does not say which those were."""
    if "asked" in spec:
        return tuple(spec["asked"])
    metrics = tuple(spec.get("metrics") or ())
    return () if set(metrics) >= _IN_EVERY_DEFAULT else metrics


def needed_weights(metrics: Iterable[str]) -> tuple[str, ...]:
    """The names of the weights that these metrics need, each once."""
    return tuple(dict.fromkeys(found for name in metrics if (found := weights_of(metric(name)))))
