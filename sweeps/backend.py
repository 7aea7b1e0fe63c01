"""Studies of Optuna: where they are stored, and their trials asked, told, put back and foreseen."""

from __future__ import annotations

import copy
import functools
import random
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from vqbench.errors import UsageError
from vqbench.metrics.definitions import metric
from vqbench.seeds import derive_seed
from vqbench.space import Choices
from vqbench.sweeps.journal import Journal
from vqbench.sweeps.patience import PatientStorage
from vqbench.sweeps.request import SweepRequest
from vqbench.sweeps.samplers import blind_trials, make_pruner, make_sampler
from vqbench.sweeps.spaces import Parameter, draw
from vqbench.sweeps.studies import StudyPlan
from vqbench.wording import masked, reason_of_library

Direction = Literal["minimize", "maximize"]
REDRAWS = 10
"""How often a sampler may draw what was tried already before an untried point is taken at random."""
_RETRY = "retry_of"
UNDER_WAY = "under_way"
"""Attribute of a trial: cell → images that it had seen when the trial began it, until it ends."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_storage(
    where: str, folder: Path, say: Callable[[str], None] = lambda _: None, hint: str = "the same command goes on"
) -> PatientStorage:
    """The storage that `where` names, or a sqlite file in `folder`. Raises UsageError where it cannot be had.

    Where it stops answering later, `say` hears it once, and `hint` is that of the error that it becomes in the end.
    """
    from optuna.storages import JournalStorage, RDBStorage

    if where.endswith((".db", ".sqlite", ".sqlite3")) and "://" not in where:
        raise UsageError(f"--storage {where} would be a journal file, by a database's name",
                         f"write --storage sqlite:///{where}, or call the journal {where}.log")  # fmt: skip
    try:
        if where and "://" not in where:
            Path(where).parent.mkdir(parents=True, exist_ok=True)
            return PatientStorage(JournalStorage(Journal(where, say)), where, hint, say)
        url = where or f"sqlite:///{folder.absolute() / 'optuna.db'}"
        url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", url)  # the driver that `vqbench[postgres]` brings
        # a server may have been started anew since the last trial, hours ago: a connection is tried before it is used
        wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
        storage = optuna.storages.get_storage(RDBStorage(url, engine_kwargs=wait))
        return PatientStorage(storage, url, hint, say)
    except UsageError:
        raise
    except Exception as error:  # SQLAlchemy's, a database's driver's, or the disk's
        reason = reason_of_library(error, where)
        hint = "for example: --storage postgresql://USER:***@HOST/DATABASE, or the path of a journal file"
        raise UsageError(f"cannot open --storage {masked(where)}: {reason}", hint) from None


def study_names(storage: Any) -> set[str]:
    """The studies that a storage holds."""
    return {study.study_name for study in storage.get_all_studies()}


class OpenStudy:
    """A study whose trials are being asked."""

    def __init__(
        self, plan: StudyPlan, request: SweepRequest, storage: Any, directions: list[Direction], images: int
    ) -> None:
        self.plan, self.request = plan, request
        self.name = plan.name(request.title)
        self.study = optuna.create_study(
            storage=storage,
            study_name=self.name,
            directions=directions,
            load_if_exists=True,
            pruner=make_pruner(request.pruner, images, plan.trials),
        )
        self._points = plan.points(request.sampler_seed) if request.sampler == "grid" else []
        self._finite = plan.points(request.sampler_seed) if request.sampler != "grid" and plan.is_finite else []

    def trials(self) -> list[FrozenTrial]:
        """The trials that count: those that were put back are there again under another number."""
        return [trial for trial in self._not_retried() if trial.state != TrialState.WAITING]

    def _not_retried(self) -> list[FrozenTrial]:
        every = self.study.get_trials(deepcopy=False)
        retried = {trial.user_attrs[_RETRY] for trial in every if _RETRY in trial.user_attrs}
        return [trial for trial in every if trial.number not in retried]

    @property
    def images(self) -> int:
        """Training images of all its trials; what is tried again has those of the times before."""
        return sum(int(trial.user_attrs.get("images", 0)) for trial in self._not_retried())

    @property
    def remaining(self) -> int:
        """How many trials its share of the budget still has."""
        return self.plan.trials - len(self.trials())

    @property
    def left(self) -> int:
        """How many trials it has when it goes on: what runs is an orphan then, and some failures are tried again."""
        return max(0, self.plan.trials - len(self._ended()))

    def _ended(self) -> list[FrozenTrial]:
        """The trials that have come to an end, and are not to be tried again."""
        again = {trial.number for trial in self._to_try_again()}
        return [t for t in self.trials() if t.state.is_finished() and t.number not in again]

    def ask(self) -> tuple[optuna.Trial, dict[str, Any]]:
        """The next trial, and what it draws: what was put back first, then what the sampler says.

        The sampler's seed is that of the trial's place, so a sweep that goes on draws as one that was never ended.
        """
        every, counted = self.study.get_trials(deepcopy=False), self.trials()
        if not any(trial.state == TrialState.WAITING for trial in every):
            if self._points:
                known = [trial.params for trial in counted]
                self.study.enqueue_trial(next(point for point in self._points if point not in known))
            elif self._finite and (point := self._untried(counted)) is not None:
                self.study.enqueue_trial(point)
        self.study.sampler = self._sampler(len(counted))
        trial = self.study.ask()
        return trial, draw(self.plan.parameters, self.plan.base, lambda parameter: suggest(trial, parameter))

    def _sampler(self, place: int, again: int = 0) -> Any:
        """That of a trial's place; `again` counts the draws there that were repeats."""
        parts = (self.request.sampler_seed, place, *([again] if again else []))
        return make_sampler(self.request.sampler, derive_seed("sweep", *parts) % 2**32, self.plan.trials)

    def _untried(self, counted: list[FrozenTrial]) -> dict[str, Any] | None:
        """What the sampler draws that no trial has had, at the latest at random; None where all points are used up.

        It draws in a copy of the study: what was drawn there and is a repeat leaves no trial behind.
        """
        known = {_key(trial.params) for trial in counted}
        untried = [point for point in self._finite if _key(point) not in known]
        if not untried:
            return None
        other = self._copy(counted)
        for again in range(REDRAWS):
            other.sampler = self._sampler(len(counted), again)
            trial = other.ask()
            drawn = draw(self.plan.parameters, self.plan.base, functools.partial(suggest, trial))
            if _key(drawn) not in known:
                return drawn
            other.tell(trial, state=TrialState.FAIL)  # or the next draw would keep away from it
        return random.Random(derive_seed("sweep", self.request.sampler_seed, len(counted), "untried")).choice(untried)

    def _copy(self, trials: Iterable[FrozenTrial]) -> optuna.Study:
        """A study in memory with some of this one's trials."""
        found = optuna.create_study(
            study_name=self.name,  # hyperband asks it
            directions=self.study.directions,
            pruner=self.study.pruner,
        )
        for trial in trials:
            alike = copy.copy(trial)  # its number will be another, so it is the retry of none
            alike.user_attrs = {key: value for key, value in trial.user_attrs.items() if key != _RETRY}
            found.add_trial(alike)
        return found

    def foresee(self, most: int, guesses: int) -> list[tuple[dict[str, Any], bool]]:
        """What the trials that are left will draw, and whether that is certain: up to `most` of which it is.

        It is where the sampler does not learn, or has too few scores to. Up to `guesses` others follow, with what it
        would draw if no more were known than now. Asks nothing of the study itself.
        """
        ended = {trial.number for trial in self._ended()}
        queued = [t for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.WAITING]
        queued += [t for t in self.trials() if t.number not in ended]
        other = copy.copy(self)
        other.study = self._copy(self._ended())
        for trial in queued:
            other.study.enqueue_trial(self._whole({**trial.system_attrs.get("fixed_params", {}), **trial.params}))
        blind = blind_trials(self.request.sampler, self.plan.trials) - len(other.trials())
        certain = min(other.remaining, max(len(queued), blind))
        wanted = most if certain > most else min(other.remaining, certain + guesses)
        return [(other.ask()[1], i < certain) for i in range(max(0, int(wanted)))]

    def tell(self, trial: optuna.Trial, values: Iterable[float] | None, state: str, record: Mapping[str, Any]) -> None:
        """End a trial: `state` is done, failed or pruned, and `record` what is to be known of it later."""
        for key, value in {**record, "state": state}.items():
            trial.set_user_attr(key, value)
        if state == "done":
            assert values is not None
            self.study.tell(trial, list(values))
        else:
            self.study.tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)

    def put_back(self, number: int, params: Mapping[str, Any], seen: Callable[[str], int]) -> None:
        """End a trial that has not come to its end, and queue it to be asked again. `seen`: cell → training images.

        What its cells have trained by now counts as its own.
        """
        found = next(t for t in self.study.get_trials(deepcopy=False) if t.number == number)
        if found.state.is_finished():  # it was told, and only the answer was lost
            return
        known = found.user_attrs
        under_way: Mapping[str, int] = known.get(UNDER_WAY, {})
        self._queue(number, params, sum(max(0, seen(cell) - before) for cell, before in under_way.items()))
        self.study.tell(number, state=TrialState.FAIL)

    def _queue(self, number: int, params: Mapping[str, Any], trained: int = 0) -> None:
        every = self.study.get_trials(deepcopy=False)
        if not any(trial.user_attrs.get(_RETRY) == number for trial in every):
            before = sum(int(trial.user_attrs.get("images", 0)) for trial in every if trial.number == number)
            attributes = {_RETRY: number, "images": before + trained}
            self.study.enqueue_trial(self._whole(params), user_attrs=attributes)

    def _whole(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The point of the grid that a trial had begun to ask for, or what it had drawn."""
        return dict(next((p for p in self._points if params.items() <= p.items()), params))

    def put_back_orphans(self, seen: Callable[[str], int]) -> int:
        """Put back what a driver that is gone left running; how many there were. `seen`: cell → its training images."""
        orphans = [t for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
        for trial in orphans:
            queued = trial.system_attrs.get("fixed_params", {})  # of a point that nothing had been asked of yet
            self.put_back(trial.number, {**queued, **trial.params}, seen)
        return len(orphans)

    def put_back_failed(self) -> int:
        """Queue again what failed for a reason that may be gone: no disk, no memory, a machine that died; how many."""
        again = self._to_try_again()
        for trial in again:
            self._queue(trial.number, trial.params)
        return len(again)

    def _to_try_again(self) -> list[FrozenTrial]:
        failed = [t for t in self.trials() if t.user_attrs.get("state") == "failed"]
        return [t for t in failed if not is_for_good(t.user_attrs.get("error") or {})]

    def importances(self, objective: int) -> dict[str, float]:
        """Parameter → its share in what tells good trials in one objective from the rest; {} where too few say it."""
        done = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE and trial.params]
        if len(done) < MIN_TRIALS or len({trial.values[objective] for trial in done}) < 2:
            return {}
        sign = 1 if self.study.directions[objective] == optuna.study.StudyDirection.MINIMIZE else -1
        # the good ones are a tenth, as Optuna has it, but with few trials five of them, or half
        evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, 5 / len(done))))
        with warnings.catch_warnings():  # it says aloud what a low target means, and where few trials had a parameter
            warnings.simplefilter("ignore", UserWarning)
            found = optuna.importance.get_param_importances(
                self.study, evaluator=evaluator, target=lambda trial: sign * trial.values[objective]
            )
        return {name: float(share) for name, share in found.items()}


def _key(params: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Tells one configuration from another; the last digit of a number depends on who has added up its steps."""
    return frozenset((name, f"{v:.12g}" if isinstance(v, float) else str(v)) for name, v in params.items())


def is_for_good(error: Mapping[str, Any]) -> bool:
    """Whether a trial that failed for this reason would fail again: it diverges, or no cell can be made of it."""
    return error.get("type") in ("DivergedError", "CollapsedError") or error.get("stage") == "plan"


MIN_TRIALS = 6
"""Finished trials that importances need at least."""


def suggest(trial: optuna.Trial, p: Parameter) -> Any:
    """What the sampler says of a parameter: a number, or the text of a choice."""
    domain = p.domain
    if isinstance(domain, Choices):
        return trial.suggest_categorical(p.name, list(p.texts))
    low, high = p.ends()
    with warnings.catch_warnings():  # the last step is Range.last to the last digit, which Optuna says aloud
        warnings.filterwarnings("ignore", "The distribution is specified by", UserWarning)
        if p.is_whole:
            return trial.suggest_int(p.name, low, high, step=int(domain.step or 1), log=domain.log)
        return trial.suggest_float(p.name, low, high, step=domain.step, log=domain.log)


def directions_of(objectives: Iterable[str]) -> list[Literal["minimize", "maximize"]]:
    """minimize or maximize, for each objective."""
    return ["maximize" if metric(name).better == "higher" else "minimize" for name in objectives]
