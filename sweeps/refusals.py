"""What no sweep can be, said before anything is trained: samplers, pruners, budgets, names, objectives."""

from __future__ import annotations

from vqbench.errors import UsageError, unknown
from vqbench.metrics.definitions import known_metrics, metric
from vqbench.planning.request import refuse_odd_name
from vqbench.registry import METRICS
from vqbench.sweeps.request import SweepRequest

SAMPLERS = ("tpe", "random", "grid", "nsga2")
PRUNERS = ("none", "median", "hyperband")


def refuse_odd(request: SweepRequest) -> None:
    """Raise UsageError for what no sweep can be, before anything is looked at."""
    if request.sampler not in SAMPLERS:
        raise unknown("sampler", request.sampler, SAMPLERS, f"choose one: --sampler {'|'.join(SAMPLERS)}")
    if request.pruner not in PRUNERS:
        raise unknown("pruner", request.pruner, PRUNERS, f"choose one: --pruner {'|'.join(PRUNERS)}")
    if not request.references:
        raise UsageError("no method to tune", "for example: vqbench sweep vqgan,fsq --space codebook --dataset photos")
    if not request.spaces:
        raise UsageError(
            "no space to search", "for example: --space codebook; shipped: codebook, latent, losses, optimiser"
        )
    if request.trials is not None and request.trials_per_method is not None:
        raise UsageError("--trials and --trials-per-method are two budgets", "give one of them")
    for option, value in (("--trials", request.trials), ("--trials-per-method", request.trials_per_method),
                          ("--max-images", request.max_images)):  # fmt: skip
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1, not {value}", f"for example: {option} 40")
    if request.run.rerun:
        raise UsageError("--rerun has no meaning here: trials that are equal would be trained again and again",
                         "leave it out, or choose another --name")  # fmt: skip
    refuse_odd_name("--sweep-name", request.title)


def check_objectives(request: SweepRequest, track: str, metrics: tuple[str, ...]) -> tuple[str, ...]:
    """The objectives, the default among `metrics` where none was asked for. Raises UsageError for what cannot be one.

    `metrics` are those that the trials compute.
    """
    ranking = [name for name in known_metrics(track) if metric(name).better]
    objectives = tuple(dict.fromkeys(request.objectives)) or tuple([m for m in metrics if m in ranking][:1])
    if not objectives:
        raise UsageError("none of the metrics ranks a trial", f"choose among --objective {', '.join(ranking)}")
    for name in objectives:
        if name not in METRICS or track not in metric(name).tracks:
            raise unknown("objective", name, ranking, f"objectives: {', '.join(ranking)}")
        if not metric(name).better:
            raise UsageError(f"{name} has no better direction", f"objectives: {', '.join(ranking)}")
    absent = [name for name in objectives if name not in metrics]
    if absent:
        which = f"objective {absent[0]} is" if len(absent) == 1 else f"objectives {' and '.join(absent)} are"
        whole = ",".join([*metrics, *absent])  # what --metrics names replaces the default set
        raise UsageError(f"the {which} not among the metrics of the trials ({', '.join(metrics)})",
                         f"add {'it' if len(absent) == 1 else 'them'}: --metrics {whole}")  # fmt: skip
    if len(objectives) > 1 and request.pruner != "none":
        raise UsageError(
            f"--pruner {request.pruner} compares one curve, and there are {len(objectives)} objectives",
            "leave --pruner out, or name one --objective",
        )
    if request.sampler == "nsga2" and request.pruner != "none":
        raise UsageError(
            f"--pruner {request.pruner} leaves no values, of which nsga2 breeds the next trials",
            "leave --pruner out, or take --sampler tpe",
        )
    return objectives
