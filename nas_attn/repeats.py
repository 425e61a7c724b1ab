"""Repeats: extra seeds of trials that have been told, as many as a budget allows, where a chooser thinks that they are worth most.

A repeat is written down when it is chosen, so that a driver that was killed goes on with the very same ones and begins none twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nas_attn.errors import InputError
from nas_attn.jobs import Jobs
from nas_attn.outcome import Job, Snapshot
from nas_attn.record import Record

NextRepeat = Callable[[Snapshot, Mapping[int, set[int]]], tuple[int, int] | None]
"""From a study and the seeds of each trial that are under way: the trial and the seed to train next, or None when that is enough."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """A budget of extra trainings: over all sessions of a study, failed ones included."""

    record: Record
    jobs: Jobs
    budget: int
    choose: NextRepeat

    def unfinished(self) -> list[tuple[int, Job]]:
        """The repeats that were begun and have no outcome in the record."""
        trials = self.record.trials
        begun = [(number, self.jobs.job(trials[number], seed)) for number, seeds in self.record.repeats.items() for seed in seeds]
        return [(number, job) for number, job in begun if not any(job.name() == theirs.name() for theirs, _ in trials[number].results)]

    def begin(self) -> tuple[int, Job] | None:
        """The next repeat, written down; None when the budget is spent or the chooser has enough.

        Raises:
            InputError: a chosen trial that was not measured, or a seed that it has had.
        """
        if sum(map(len, self.record.repeats.values())) >= self.budget:
            return None
        pending: dict[int, set[int]] = {}
        for number, job in self.unfinished():
            pending.setdefault(number, set()).add(job.seed)
        chosen = self.choose(self.record.snapshot(), pending)
        if chosen is None:
            return None
        number, seed = chosen
        trial = self.record.trials.get(number)
        if trial is None or trial.kind != "measured":
            raise InputError(f"Only a measured trial may be repeated, but trial {number} was chosen, which is not; choose another.")
        if seed < 0 or seed in pending.get(number, ()) or any(job.seed == seed and job.epochs is None for job, _ in trial.results):
            raise InputError(f"A repeat needs a seed that its trial has not had, but trial {number} has had {seed}; choose another.")
        self.record.begin_repeat(number, seed)
        return number, self.jobs.job(trial, seed)
