"""What every quantizer must hold to, checked on small inputs in seconds: the suite behind `vqbench check`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from vqbench.checks import codes_hold, training_holds
from vqbench.checks.toy import NotApplicableError, Trial
from vqbench.errors import VQBenchError
from vqbench.registry import METHODS

Tried = TypeVar("Tried")


@dataclass(frozen=True)
class Property:
    """One line of the suite's answer."""

    name: str
    passed: bool | None
    """None where the property does not apply."""
    detail: str
    """What was seen; for a failure, what was expected besides."""


PROPERTIES: dict[str, Callable[[Trial], str]] = {
    "shapes and types": codes_hold.shapes,
    "index range": codes_hold.index_range,
    "decode_indices agrees": codes_hold.decode_agrees,
    "eval is deterministic": codes_hold.eval_deterministic,
    "eval has no side effects": codes_hold.eval_no_side_effects,
    "eval ignores other images": codes_hold.eval_ignores_other_images,
    "gradient reaches encoder": training_holds.gradient_to_encoder,
    "gradient routes": training_holds.gradient_routes,
    "bfloat16 parity": codes_hold.bfloat16_parity,
    "state dict restores codes": codes_hold.state_dict_restores,
    "exact resume": training_holds.exact_resume,
    "loss of a doubled batch": training_holds.loss_of_doubled_batch,
    "leaves the seed alone": training_holds.leaves_the_seed_alone,
    "same on two ranks": training_holds.same_on_two_ranks,
}


def judged(name: str, trial: Tried, check: Callable[[Tried], str]) -> Property:
    """What a check says of a trial, whatever it raises: NotApplicableError and AssertionError are its words."""
    try:
        return Property(name, True, check(trial))
    except NotApplicableError as reason:
        return Property(name, None, str(reason))
    except AssertionError as error:
        return Property(name, False, str(error) or "an assertion of the method failed")
    except VQBenchError as error:
        return Property(name, False, error.what)
    except Exception as error:
        last = (str(error).strip().splitlines() or [""])[-1]
        return Property(name, False, f"{type(error).__name__}: {last}")


@contextmanager
def _one_thread() -> Iterator[None]:
    # On inputs this small threads only wait for each other: on a busy machine many times longer than the sums take.
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def check_method(name: str, plugin: Path | None = None, only: Iterable[str] | None = None) -> list[Property]:
    """Hold one method, or method@preset, to the contract of `vqbench.quantizer`; about ten seconds on one core.

    `plugin` is the file that defines it, where it is not installed; `only` names some of PROPERTIES. The random
    state is left as it was. Raises UsageError where the method is unknown or its file does not import.
    """
    if plugin is not None:
        METHODS.add_file(plugin)
    trial = Trial(name)
    chosen = PROPERTIES if only is None else {p: PROPERTIES[p] for p in only}
    with torch.random.fork_rng(devices=[]), _one_thread():
        return [judged(property_name, trial, check) for property_name, check in chosen.items()]


def render(properties: Iterable[Property]) -> str:
    """One line per property: pass, FAIL or n/a, its name, what was seen."""
    word = {True: "pass", False: "FAIL", None: "n/a "}
    return "\n".join(f"{word[p.passed]}  {p.name:<25}  {p.detail}" for p in properties)
