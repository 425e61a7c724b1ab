"""What a driver has handed to its pool and not got back: the fit of the base, measurements of several trials, trainings of one."""

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_attn.architecture import Architecture
from nas_attn.errors import PoolError
from nas_attn.losses import heard
from nas_attn.outcome import CHECKPOINT, Job
from nas_attn.protocol import job_key, read_costs, read_outcome
from nas_attn.seats import memory_need_mib
from nas_attn.work import Done, Pool, Task


@dataclass(frozen=True, slots=True)
class Flight:
    """A task that a pool holds: a training of one trial (`job`), or the measurement of several."""

    numbers: tuple[int, ...]
    job: Job | None = None


class Flights:
    """The tasks that are under way, by key. `setup` is what workers need besides the job."""

    def __init__(self, pool: Pool, setup: Mapping[str, Any]) -> None:
        self._pool, self._setup = pool, dict(setup)
        self._flying: dict[str, Flight] = {}

    def __bool__(self) -> bool:
        return bool(self._flying)

    @property
    def slots(self) -> int:
        """How many tasks the pool runs at a time."""
        return self._pool.slots

    @property
    def trainings(self) -> Collection[tuple[int, Job]]:
        """The trainings under way, each with its trial's number."""
        return [(flight.numbers[0], flight.job) for flight in self._flying.values() if flight.job]

    @property
    def measures(self) -> bool:
        """Whether a measurement is under way: no training starts beside it."""
        return len(self.trainings) < len(self._flying)

    @property
    def idle(self) -> bool:
        """Whether a worker is free for a training."""
        return len(self.trainings) < self.slots

    def need(self, fit: Mapping[str, Any], proxy: Mapping[str, Any]) -> None:
        """Tells the pool how much of a GPU's memory each training is planned with, now that the base is fitted."""
        self._pool.need(memory_need_mib(fit, self._setup.get("fit", {}), proxy))

    def holds(self, number: int) -> bool:
        """Whether any task of a trial is under way."""
        return any(number in flight.numbers for flight in self._flying.values())

    def fit(self, attempt: int) -> None:
        """Hands over the fit of the base, which has no deadline."""
        weights = tuple(filter(None, [self._setup.get("weights")]))
        self._pool.submit(Task(key=f"fit/{attempt}", kind="fit", payload=json.dumps({"setup": self._setup}), needs=weights))

    def measure(self, trials: Mapping[int, Architecture], attempt: int, deadline_s: float) -> None:
        """Hands over the measurement of some trials' costs, alone on its device."""
        payload = json.dumps({"setup": self._setup, "architectures": [architecture.to_dict() for architecture in trials.values()]})
        key = f"measure/{'-'.join(map(str, trials))}/{attempt}"
        self._submit(Task(key=key, kind="measure", payload=payload, exclusive=True, deadline_s=deadline_s), Flight(tuple(trials)))

    def train(self, number: int, job: Job, deadline_s: float) -> None:
        """Hands over one training."""
        payload = json.dumps({"setup": self._setup, "job": job.to_dict()})
        key = f"train/{number}/{job_key(job)}/{job.attempt}"
        trial = Path(self._setup["folder"], "trials", job.architecture.digest()) if "folder" in self._setup else None
        pauses = tuple(str(file) for file in trial.glob(f"*/*/{CHECKPOINT}")) if trial else ()
        self._submit(Task(key, "train", payload, job.alone, deadline_s, pauses), Flight((number,), job))

    def wait(self) -> Sequence[tuple[Flight | None, Done]]:
        """What has ended, each with its flight, which is over; None where nobody waits for the answer. One that makes no sense is a loss.

        Raises:
            PoolError: the pool knows of no task any more.
        """
        done = self._pool.wait(None)
        if not done:
            raise PoolError(f"A pool must answer for every task, but it forgot {sorted(self._flying)}; run the same command again.")
        return [_heard(self._flying.pop(one.key, None), one) for one in done]

    def _submit(self, task: Task, flight: Flight) -> None:
        self._flying[task.key] = flight
        self._pool.submit(task)


def _heard(flight: Flight | None, done: Done) -> tuple[Flight | None, Done]:
    if flight is None:
        return None, done
    read: Callable[[str], object] = read_outcome if flight.job is not None else functools.partial(read_costs, count=len(flight.numbers))
    return flight, heard(done, read)
