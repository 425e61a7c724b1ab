"""Which trainings a trial needs, which of them may run now, and which trial a worker takes next.

Pure functions of a study's trials: what a driver that was killed decided, the next one decides again. Without a race all jobs of a trial
may run at once, in the order in which they came. In a race a candidate's first training pauses at every rung, and its other seeds wait
for the end of it. The base, with which all are compared, always runs to its end at once.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nas_attn.architecture import Architecture
from nas_attn.errors import InputError
from nas_attn.outcome import Job, Measured, Recipe, Stopped, Trial
from nas_attn.protocol import job_key
from nas_attn.racing import Race, Racer, rungs_of
from nas_attn.spec import COSTS, SpaceSpec

FIDELITIES = ("full", "racing")
Control = tuple[str, Architecture, Mapping[str, Any]]
"""A positive control: its label, what to train, and what to change in the recipe."""


def rungs_for(spec: SpaceSpec, fidelity: str) -> tuple[int, ...]:
    """The rungs of a study's trainings: those of the space, or thirds; only the last where nothing is raced.

    Raises:
        InputError: an unknown fidelity.
    """
    if fidelity not in FIDELITIES:
        raise InputError(f"A fidelity is one of {', '.join(FIDELITIES)}, but got {fidelity!r}; write one of them.")
    whole = (spec.proxy.epochs,)
    return whole if fidelity == "full" else spec.proxy.rungs or rungs_of(spec.proxy.epochs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """What every trial of a study is trained with: one recipe, its seeds, the rungs of the race (one rung: none), the base's controls."""

    recipe: Recipe
    seeds: int
    base_seeds: int
    rungs: tuple[int, ...]
    objectives: Mapping[str, str]
    controls: tuple[Control, ...] = field(default=())
    _known: dict[int, tuple[Trial, Racer | None]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Of each trial as it was seen last, what it is in a race: of thousands, one changes at a time."""

    @classmethod
    def of(cls, spec: SpaceSpec, recipe: Recipe, rungs: tuple[int, ...], controls: tuple[Control, ...] = ()) -> "Jobs":
        """What a space's study is trained with."""
        return cls(recipe=recipe, seeds=spec.seeds, base_seeds=spec.base_seeds, rungs=rungs, objectives=spec.objectives, controls=controls)

    @property
    def races(self) -> bool:
        """Whether trainings pause at rungs."""
        return len(self.rungs) > 1

    def job(self, trial: Trial, seed: int, rung: int | None = None) -> Job:
        """One training of a trial, to its end or to a rung."""
        return Job(architecture=trial.architecture, recipe=self.recipe, seed=seed, epochs=None if rung == self.rungs[-1] else rung)

    def own(self, trial: Trial) -> list[Job]:
        """The trainings to the end whose mean is told."""
        return [self.job(trial, seed) for seed in range(self.base_seeds if trial.number == 0 else self.seeds)]

    def labelled(self) -> dict[str, Job]:
        """The positive controls, by label."""
        return {
            label: Job(architecture=architecture, recipe=replace(self.recipe, **changes), seed=0)
            for label, architecture, changes in self.controls
        }

    def missing(self, trial: Trial) -> list[Job]:
        """The trainings to the end, controls included, that have no outcome yet."""
        done = {job_key(job) for job, _ in trial.results}
        jobs = [job for job in self.own(trial) if job_key(job) not in done]
        known = {label for label, _, _ in trial.controls}
        if trial.number == 0:
            jobs += [job for label, job in self.labelled().items() if label not in known]
        return list({job_key(job): job for job in jobs}.values())

    def next(self, trial: Trial) -> list[Job]:
        """The trainings that may run now: all that are missing, or in a race the next rung of the first seed until that has ended."""
        if any(not isinstance(outcome, Measured) for _, outcome in trial.results):
            return []
        missing = self.missing(trial)
        if not self.races or trial.number == 0 or not any(job.seed == 0 for job in missing):
            return missing
        reached = max((job.epochs or 0 for job, _ in trial.results), default=0)
        return [self.job(trial, 0, next(rung for rung in self.rungs if rung > reached))]

    def belongs(self, trial: Trial, job: Job) -> bool:
        """Whether an outcome of this job is one of the trial's results: one of its own jobs, or a rung on the way to one."""
        return job_key(replace(job, epochs=None)) in {job_key(own) for own in self.own(trial)}

    # -- the race --------------------------------------------------------------------------------------------------------------------------

    def stopped(self, trials: Iterable[Trial], waiting: Sequence[int]) -> dict[int, Stopped]:
        """Which of the waiting trials end at the rung that they reached, and with what."""
        if not self.races or not waiting:
            return {}
        by_number = {trial.number: trial for trial in trials}
        chosen = self._race().stopped(self._racers(by_number.values()), set(waiting))
        return {number: _stopped(by_number[number]) for number in sorted(chosen)}

    def first(self, trials: Iterable[Trial], waiting: Sequence[int]) -> int:
        """The position in `waiting` (trials' numbers, one a job) that the next free worker takes."""
        if not self.races or len(waiting) < 2:
            return 0
        trials = list(trials)
        return waiting.index(self._race().order(self._racers(trials), waiting)[0])

    def _race(self) -> Race:
        return Race(objectives=self.objectives, rungs=self.rungs)

    def _racers(self, trials: Iterable[Trial]) -> list[Racer]:
        """Every trial that was measured and has not failed, by its first seed: one seed is the same luck for all of them."""
        return [racer for racer in map(self._racer, trials) if racer is not None]

    def _racer(self, trial: Trial) -> Racer | None:
        known = self._known.get(trial.number)
        if known is None or known[0] is not trial:
            races = trial.cost is not None and trial.kind in (None, "measured", "stopped")
            racer = Racer(number=trial.number, known=trial.cost.metrics(), shown=self._shown(trial)) if trial.cost and races else None
            known = self._known[trial.number] = trial, racer
        return known[1]

    def _shown(self, trial: Trial) -> dict[int, dict[str, float]]:
        shown: dict[int, dict[str, float]] = {}
        for job, outcome in trial.results:
            if job.seed == 0 and isinstance(outcome, Measured):
                reached = job.epochs or self.rungs[-1]
                passed = [rung for rung in self.rungs if rung < reached and rung <= len(outcome.curve) and rung not in shown]
                shown |= {rung: _means(outcome, rung, self.recipe.average, self._accuracies()) for rung in passed}
                shown[reached] = {name: getattr(outcome, name) for name in self._accuracies()}
        return shown

    def _accuracies(self) -> list[str]:
        return [name for name in self.objectives if name not in COSTS]


def _means(outcome: Measured, rung: int, average: int, names: Sequence[str]) -> dict[str, float]:
    """What a training showed at a rung that it ran past: the score of a job that ends there."""
    epochs = outcome.curve[max(0, rung - average) : rung]
    return {name: statistics.fmean(epoch[name] for epoch in epochs) for name in names}


def _stopped(trial: Trial) -> Stopped:
    job, outcome = max(trial.results, key=lambda result: result[0].epochs or 0)
    return Stopped(rung=job.epochs or 0, curve=outcome.curve if isinstance(outcome, Measured) else ())
