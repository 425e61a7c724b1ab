"""The record of a study: its Optuna storage, the in-memory mirror that samplers read, and the outcome files of workers.

Every write is one storage transaction that may be the last before a kill; what a driver finds at its start is always enough to go on.
A trial's attributes: `architecture`, `digest`, `recipe`, `cost`, `attempts`, `losses`, `crashes`, `crowded`, `results`, `controls`, `kind`,
`verdict`, and `trained`, what its trainings came to where another latency hides that (`nas_attn.derive`).
The study's attributes: `settings`, `objectives`, `owner`, `command`, `fit`, `derived`, and `repeats:<number>` for each trial that was
trained with further seeds after it had been told (`seeds` that were begun, `attempts`, `losses`, `results`), since what was told cannot
be changed.
All of it is kept once more in files (`nas_attn.ledger`).
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from nas_attn.architecture import Architecture
from nas_attn.errors import NasAttnError, StudyError
from nas_attn.home import home_of
from nas_attn.losses import COUNTERS
from nas_attn.outcome import (
    CHECKPOINT,
    Cost,
    Job,
    Measured,
    Outcome,
    Recipe,
    Snapshot,
    Trial,
    kind,
    left_outcome,
    outcome_to_dict,
)
from nas_attn.protocol import excess, require_kind
from nas_attn.rows import running_trial
from nas_attn.sampler import Mirror, ask_seed
from nas_attn.space import SearchSpace
from nas_attn.storage import BROKEN, STORAGE_ERRORS, Storage, persist, unreadable
from nas_attn.stored_trial import REPEATS, pair, repeats_of, trained_seconds, trial_of, with_repeats

STUDY_NOTES = ("command", "derived")
"""Attributes of a study that a snapshot shows beside its settings."""
FINISHED = {"measured": TrialState.COMPLETE, "rejected": TrialState.PRUNED, "stopped": TrialState.PRUNED, "failure": TrialState.FAIL}


class Record:
    """The one writer of a study. Opened by `Record.open`; `trials` holds every trial by its number."""

    def __init__(self, stored: Storage, mirror: Mirror, space: SearchSpace, limits: Mapping[str, float], seed: int) -> None:
        self._stored, self._mirror, self._space, self._limits, self._seed = stored, mirror, space, dict(limits), seed
        self._trials: dict[int, Trial] = {}
        self._counts: dict[int, dict[str, dict[str, int]]] = {}
        self._fit: Mapping[str, Any] | None
        self._repeats, self._kinds = repeats_of(stored.study.user_attrs), Counter[str | None]()
        self._objectives, self._fit = stored.objectives, stored.study.user_attrs.get("fit")
        for frozen in stored.take_trials():
            trial = trial_of(frozen, self._objectives, self._repeats)
            self._trials[trial.number] = trial
            self._kinds[trial.kind] += 1
            counted = self._repeats.get(trial.number, {}) if frozen.state.is_finished() else frozen.user_attrs
            self._counts[trial.number] = {name: dict(counted.get(name, {})) for name in COUNTERS}
            mirror.add(trial, frozen.params, frozen.system_attrs)
        self._digests = {trial.architecture.digest() for trial in self._trials.values()}

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        settings: Mapping[str, Any],
        objectives: Mapping[str, str],
        space: SearchSpace,
        sampler: str,
        seed: int,
        limits: Mapping[str, float] = MappingProxyType({}),
        storage: str | None = None,
        name: str | None = None,
        command: str | None = None,
    ) -> "Record":
        """Begins the study in `folder`, or goes on with it, under a lock that admits one driver. `settings` are plain JSON values;
        `command` is what a user would type to get the same, kept for reports.

        Raises:
            StudyError: another driver runs, other settings, another folder's study, or a storage that cannot be opened.
            InputError: no sampler of that name.
        """
        mirror = Mirror(objectives, space.genes, sampler, limits)
        stored = Storage.drive(Path(folder), settings, objectives, storage, name)
        try:
            if command is not None:
                stored.set_study_attribute("command", command)
            return cls(stored, mirror, space, limits, seed)
        except BROKEN as error:
            stored.close()
            raise error if isinstance(error, NasAttnError) else unreadable(stored.folder, error) from error
        except BaseException:
            stored.close()
            raise

    def close(self) -> None:
        """Gives the lock and the storage's connections back."""
        self._stored.close()

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self._stored.folder

    @property
    def fresh(self) -> bool:
        """Whether this opening began the study."""
        return self._stored.fresh

    @property
    def warning(self) -> str | None:
        """What a former driver left: whose place this one took, if that of one elsewhere, and what was repaired for it."""
        return self._stored.warning

    @property
    def trials(self) -> Mapping[int, Trial]:
        """Every trial by its number, in order."""
        return MappingProxyType(self._trials)

    @property
    def counted(self) -> int:
        """Trials that were measured or stopped."""
        return self._kinds["measured"] + self._kinds["stopped"]

    @property
    def running(self) -> int:
        """Trials that have not ended."""
        return self._kinds[None]

    @property
    def fit(self) -> Mapping[str, Any] | None:
        """What the fit of the base gave, once it is done."""
        return self._fit

    def save_fit(self, fit: Mapping[str, Any]) -> None:
        """Keeps what the fit of the base gave."""
        self._stored.set_study_attribute("fit", dict(fit))
        self._fit = dict(fit)

    def snapshot(self) -> Snapshot:
        """The study at this moment: what `load_study` would read, and what is written already, without reading the trials again."""
        return persist(lambda: _snapshot(self._stored, tuple(self._trials.values())))

    def add(self, architecture: Architecture, recipe: Recipe) -> Trial:
        """A new RUNNING trial of an architecture that no sampler chose: the base, as trial 0.

        Raises:
            StudyError: the architecture has a trial already.
        """
        if architecture.digest() in self._digests:
            raise StudyError(f"An architecture has at most one trial, but {architecture} has one already; read its result instead.")
        return self._add([(architecture, {})], recipe)[0]

    def ask(self, recipe: Recipe) -> Trial | None:
        """A new RUNNING trial of an architecture that no trial had before, or None when no other can be found in the space.

        Depends on the study's seed, the trial's number and the trials so far, on nothing else.
        """
        asked = self.ask_many(recipe, 1)
        return asked[0] if asked else None

    def ask_many(self, recipe: Recipe, count: int) -> list[Trial]:
        """As many new trials in one transaction, all of them or none; fewer where no other can be found in the space.

        One of one is `ask`. Samplers of Optuna choose each after the others, as if it had been asked by itself; the model chooses all at
        once, each in the knowledge that those before it are under way.
        """
        first = len(self._trials)
        seeds = [ask_seed(self._seed, number) for number in range(first, first + count)]
        return self._add(self._mirror.choices(self._space, seeds, self._digests), recipe)

    def count(self, number: int, counter: str, key: str) -> int:
        """Raises one of a trial's counters (`attempts`: before a job is submitted; the others: what became of it) and returns it."""
        return self.count_many([number], counter, key)[number]

    def count_many(self, numbers: Sequence[int], counter: str, key: str) -> dict[int, int]:
        """As `count`, for several trials, those that run in one transaction."""
        raised = {number: self._raised(number, counter, key) for number in numbers}
        running = [number for number in numbers if self._trials[number].state == "RUNNING"]
        self._stored.set_attributes([(number, counter, raised[number]) for number in running])
        for number in set(numbers).difference(running):
            self._keep_repeats(number, **{counter: raised[number]})
        for number, counts in raised.items():
            self._counts[number][counter] = counts
        return {number: counts[key] for number, counts in raised.items()}

    def _raised(self, number: int, counter: str, key: str) -> dict[str, int]:
        counts = self._counts[number][counter]
        return {**counts, key: counts.get(key, 0) + 1}

    def save_cost(self, number: int, cost: Cost) -> None:
        """Keeps what a trial's architecture costs."""
        self.save_costs({number: cost})

    def save_costs(self, costs: Mapping[int, Cost]) -> None:
        """Keeps what the architectures of some trials cost, in one transaction.

        Raises:
            StudyError: a latency of another kind of device than the base's.
        """
        for number, cost in costs.items():
            if number:
                require_kind(self._trials[0].cost, cost)
        self._stored.set_attributes([(number, "cost", asdict(cost)) for number, cost in costs.items()])
        for number, cost in costs.items():
            self._trials[number] = replace(self._trials[number], cost=cost)

    def save_result(self, number: int, job: Job, outcome: Outcome) -> bool:
        """Keeps the outcome of a job under a trial. The first one stands: False, and nothing changes, for any later one."""
        trial = self._trials[number]
        if trial.state != "RUNNING" or any(theirs.name() == job.name() for theirs, _ in trial.results):
            return False
        results = (*trial.results, (job, outcome))
        self._update(number, "results", [pair(*result) for result in results], results=results, seconds=trained_seconds(results))
        return True

    def save_control(self, number: int, label: str, job: Job, outcome: Outcome) -> bool:
        """As `save_result`, for a labelled positive control."""
        trial = self._trials[number]
        if trial.state != "RUNNING" or any(label == theirs for theirs, _, _ in trial.controls):
            return False
        controls = (*trial.controls, (label, job, outcome))
        self._update(number, "controls", [{"label": n, **pair(j, o)} for n, j, o in controls], controls=controls)
        return True

    @property
    def repeats(self) -> Mapping[int, tuple[int, ...]]:
        """The extra seeds that were begun, by trial, ended or not."""
        return {number: tuple(entry.get("seeds", ())) for number, entry in sorted(self._repeats.items())}

    def begin_repeat(self, number: int, seed: int) -> None:
        """Notes, before anything of it is run, that a told trial is trained with one more seed."""
        entry = self._repeats.get(number, {})
        self._counts[number] = {name: entry.get(name, {}) for name in COUNTERS}
        self._keep_repeats(number, seeds=[*entry.get("seeds", ()), seed])

    def save_repeat(self, number: int, job: Job, outcome: Outcome) -> bool:
        """As `save_result`, for a repeat that was begun; the trial's values become the means over all of its seeds."""
        trial, entry = self._trials[number], self._repeats.get(number, {})
        if job.seed not in entry.get("seeds", ()) or any(theirs.name() == job.name() for theirs, _ in trial.results):
            return False
        self._keep_repeats(number, results=[*entry.get("results", ()), pair(job, outcome)])
        self._trials[number] = with_repeats(trial, [(job, outcome)])
        return True

    def times(self, number: int, counter: str, key: str) -> int:
        """How far one of a trial's counters has come."""
        return self._counts[number][counter].get(key, 0)

    def drop_checkpoints(self, numbers: Sequence[int]) -> None:
        """Deletes the pauses of some trials' trainings: none goes on once it has been told."""
        for number in numbers:
            for file in (self.folder / "trials" / self._trials[number].architecture.digest()).glob(f"*/*/{CHECKPOINT}"):
                file.unlink(missing_ok=True)

    def drop_stale_checkpoints(self) -> None:
        """Deletes those that a former driver had no time to: of trials that were told, and are not repeated."""
        live = {t.architecture.digest() for t in self._trials.values() if t.state == "RUNNING" or t.number in self._repeats}
        for file in (self.folder / "trials").glob(f"*/*/*/{CHECKPOINT}"):
            if file.parents[2].name not in live:
                file.unlink(missing_ok=True)

    def constraints(self, cost: Cost | None) -> dict[str, float]:
        """One number a limit, at most 0 where it is kept; none where nothing is known of the cost."""
        return {} if cost is None else excess(cost, self._limits)

    def tell(self, number: int, verdict: Outcome) -> bool:
        """Ends a trial: attributes, constraints and state in one transaction; a kill before leaves it RUNNING, to be told again.

        `Measured` is told COMPLETE with its objectives, `Rejected` and `Stopped` PRUNED, `Failure` FAIL. False if it had ended before.

        Raises:
            StudyError: an objective that is unknown or not finite.
        """
        trial = self._trials[number]
        if trial.state != "RUNNING":
            return False
        values = self._values(trial, verdict) if isinstance(verdict, Measured) else None
        state, constraints = FINISHED[kind(verdict)], self.constraints(trial.cost)
        self._stored.finish(number, state, values, {"kind": kind(verdict), "verdict": outcome_to_dict(verdict)}, constraints)
        told = replace(trial, state=state.name, kind=kind(verdict), verdict=verdict, values=values)
        self._trials[number] = told
        self._kinds.update({trial.kind: -1, told.kind: 1})
        self._mirror.tell(told, constraints)
        return True

    def find_outcome(self, job: Job) -> tuple[Outcome | None, list[str]]:
        """As `left_outcome`, in this study's folder."""
        return left_outcome(self.folder, job)

    def _values(self, trial: Trial, verdict: Measured) -> dict[str, float]:
        metrics = {"map50_95": verdict.map50_95, "map50": verdict.map50, **(trial.cost.metrics() if trial.cost else {})}
        values = {name: metrics.get(name, math.nan) for name in self._objectives}
        if not all(math.isfinite(value) for value in values.values()):
            raise StudyError(f"Every objective of a measured trial must be finite, but trial {trial.number} has {values}; tell a failure.")
        return values

    def _update(self, number: int, attribute: str, value: Any, **changes: Any) -> None:
        self._stored.set_attributes([(number, attribute, value)])
        self._trials[number] = replace(self._trials[number], **changes)

    def _keep_repeats(self, number: int, **changes: Any) -> None:
        entry = {**self._repeats.get(number, {}), **changes}
        self._stored.set_study_attribute(f"{REPEATS}{number}", entry)
        self._repeats[number] = entry

    def _add(self, choices: Iterable[tuple[Architecture, Mapping[str, Any]]], recipe: Recipe) -> list[Trial]:
        """New trials of what is chosen; the mirror has each before the next is chosen, the storage all of them at the end."""
        first, added, templates = len(self._trials), list[Trial](), list[FrozenTrial]()
        for number, (architecture, system) in enumerate(choices, first):
            trial, genes = Trial(number=number, state="RUNNING", kind=None, architecture=architecture), self._space.encode(architecture)
            user = {"architecture": architecture.to_json(), "digest": architecture.digest(), "recipe": asdict(recipe)}
            templates.append(running_trial(genes, self._mirror.distributions, user, system))
            self._digests.add(architecture.digest())
            self._mirror.add(trial, genes, system)
            added.append(trial)
        self._stored.add(first, templates)
        for trial in added:
            self._trials[trial.number], self._counts[trial.number] = trial, {name: {} for name in COUNTERS}
        self._kinds[None] += len(added)
        return added


def load_study(folder: Path | str, storage: str | None = None) -> Snapshot:
    """Reads a study, also while its driver runs, and changes nothing.

    Raises:
        StudyError: no study there, or a storage that cannot be read.
    """
    stored = Storage.read(Path(folder), storage)
    try:
        objectives, repeats = stored.objectives, repeats_of(stored.study.user_attrs)
        return _snapshot(stored, tuple(trial_of(frozen, objectives, repeats) for frozen in stored.rows.trials()))
    except (*STORAGE_ERRORS, *BROKEN) as error:
        raise unreadable(stored.folder, error) from error
    finally:
        stored.close()


def latency_kind(folder: Path, storage: str | None = None) -> str:
    """The name of the device on which the base's latency was measured, and with it all others must be; empty where none is known."""
    with contextlib.suppress(StudyError):  # what is wrong with it is told when the record is opened
        trials = load_study(folder, storage).trials if home_of(folder) is not None else ()
        if trials and trials[0].cost is not None:
            return str(trials[0].cost.latency.environment.get("name", ""))
    return ""


def _snapshot(storage: Storage, trials: tuple[Trial, ...]) -> Snapshot:
    attributes = storage.study.user_attrs
    return Snapshot(
        folder=storage.folder,
        name=storage.study.study_name,
        objectives=dict(attributes["objectives"]),
        settings={**attributes["settings"], **{name: attributes[name] for name in STUDY_NOTES if name in attributes}},
        fit=attributes.get("fit"),
        trials=trials,
    )
