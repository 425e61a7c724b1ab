"""The search itself: fit the base, then ask, measure, reject by limits, train, tell, until enough trials have counted.

One driver keeps the workers of a pool busy. Whatever it learns it writes down at once, so that it may be killed at any instant: the same
call goes on from the record and the outcome files, and trains nothing twice.
"""

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas_attn.architecture import Architecture
from nas_attn.blame import Blame
from nas_attn.errors import InputError, Interrupted, NasAttnError
from nas_attn.event import Event, Scene
from nas_attn.flights import Flight, Flights
from nas_attn.jobs import Control, Jobs, rungs_for
from nas_attn.losses import FREE, MAX_ATTEMPTS, MAX_LOSSES
from nas_attn.outcome import Failure, Job, Measured, Outcome, Rejected, Snapshot, full_length, kind
from nas_attn.protocol import (
    deadline_s as allowed_s,
)
from nas_attn.protocol import (
    halted,
    job_key,
    mean_outcome,
    part,
    read_costs,
    read_fit,
    read_outcome,
    recipe_of,
    study_settings,
    words,
    worn_out,
)
from nas_attn.record import Record
from nas_attn.repeats import NextRepeat, Repeats
from nas_attn.space import SearchSpace
from nas_attn.spec import SpaceSpec
from nas_attn.work import Done, Pool

DEADLINE_S = 3600.0
MAX_FAILURES = 10
MAX_REJECTIONS = 200


def run(
    folder: Path | str,
    spec: SpaceSpec,
    space: SearchSpace,
    setup: Mapping[str, Any],
    pool: Pool,
    *,
    trials: int,
    sampler: str = "tpe",
    fidelity: str = "full",
    repeats: int = 0,
    next_repeat: NextRepeat | None = None,
    storage: str | None = None,
    name: str | None = None,
    controls: Sequence[Control] = (),
    deadline_s: float = DEADLINE_S,
    command: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Snapshot:
    """Searches `space` in `folder` until `trials` trials, the base among them, were measured or stopped, or the space is exhausted.

    `setup` is what workers need besides the job, as plain JSON values; `controls` are trained beside the base if `spec.controls`; a
    training may take `deadline_s`, or twenty times what the fit lets expect; `command` is kept for reports. With `fidelity` `racing`
    candidates are trained rung by rung and stopped where even an optimist sees no use in more (`nas_attn.racing`). When the trials have
    counted, up to `repeats` extra trainings follow, each of the trial and the seed that `next_repeat` names. A study that is there
    already goes on. The pool stays open.

    Raises:
        InputError: fewer than one trial or no repeats, no such sampler or fidelity.
        StudyError: another driver runs, or other settings than the study was begun with.
        NasAttnError: the base cannot be fitted or measured, too many failures, or a space in which nothing keeps the limits.
        Interrupted: Ctrl-C; the same call goes on.
    """
    if trials < 1:
        raise InputError(f"`trials >= 1` must hold, but got {trials=}; the base alone is one.")
    if repeats < 0:
        raise InputError(f"`repeats >= 0` must hold, but got {repeats=}; 0 is none.")
    rungs = rungs_for(spec, fidelity)
    folder = Path(folder)
    record = Record.open(
        folder,
        settings=study_settings(folder, spec, space, setup, sampler, fidelity),
        objectives=spec.objectives,
        space=space,
        sampler=sampler,
        seed=spec.seed,
        limits=spec.limits,
        storage=storage,
        name=name,
        command=command,
    )
    with record:
        driver = _Driver(record, spec, setup, pool, trials, controls, rungs, deadline_s, on_event or (lambda _: None))
        try:
            driver.fit()
            driver.search()
            if next_repeat is not None:
                driver.repeat(repeats, next_repeat)
        except KeyboardInterrupt:
            raise Interrupted(f"Stopped with {record.counted} of {trials} trials; the same command goes on from there.") from None
        return record.snapshot()


class _Driver:
    """The loop's state. All that must outlive it is in the record."""

    def __init__(
        self,
        record: Record,
        spec: SpaceSpec,
        setup: Mapping[str, Any],
        pool: Pool,
        total: int,
        controls: Sequence[Control],
        rungs: tuple[int, ...],
        deadline_s: float,
        on_event: Callable[[Event], None],
    ) -> None:
        self.record, self.spec, self.setup, self.total = record, spec, dict(setup), total
        self.controls = tuple(controls) if spec.controls else ()
        self.rungs, self.deadline_s, self.on_event = rungs, deadline_s, on_event
        self.flights = Flights(pool, setup)
        self.ready: deque[tuple[int, Job]] = deque()
        self.blame = Blame(record, self.emit)
        self.exhausted = False

    def emit(self, kind: str, message: str, number: int | None = None, begins: Job | None = None) -> None:
        """Tells whoever watches; `begins` is a training that is handed over next."""
        trial = None if number is None else self.record.trials[number]
        trainings = (*self.flights.trainings, *([] if number is None or begins is None else [(number, begins)]))
        scene = Scene(self.spec.objectives, self.spec.limits, self.record.trials, trainings, self.flights.slots)
        self.on_event(Event(kind=kind, message=message, done=self.record.counted, total=self.total, trial=trial, scene=scene))

    # -- the fit of the base -------------------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Fits the base, unless the record holds a fit. A worker returns an earlier fit of this folder by itself."""
        if self.record.warning is not None:
            self.emit("took over", self.record.warning)
        if self.record.fresh:
            # A fit that another, deleted study left here was made from other data.
            (self.record.folder / "base" / "fit.json").unlink(missing_ok=True)
        if self.record.fit is None:
            self.emit("fit", "fitting the base to the data")
            self.record.save_fit(self._fitted())
            self.emit("fitted", "the base is fitted")
        self.flights.need(self.record.fit or {}, self.spec.proxy.model_dump())

    def _fitted(self) -> Mapping[str, Any]:
        losses = 0
        for attempt in itertools.count(1):
            self.flights.fit(attempt)
            _, done = self.flights.wait()[0]
            if done.result is not None:
                return read_fit(done.result)
            self.emit("lost", f"fit of the base, attempt {attempt}: {done.lost}")
            if (losses := losses + (done.cause not in FREE)) == MAX_LOSSES:
                break
        raise NasAttnError(f"The base must be fitted before any trial, but {losses} attempts were lost; the last: {done.lost}")

    # -- the loop --------------------------------------------------------------------------------------------------------------------------

    def search(self) -> None:
        """Adopts what a former driver left, begins with the base, and goes on until enough trials have counted."""
        self.jobs = Jobs.of(self.spec, recipe_of(self.spec, self.setup, self.record.fit or {}), self.rungs, self.controls)
        self._adopt()
        if not self.record.trials:
            base = self.record.add(Architecture(self.spec.base), self.jobs.recipe)
            self.emit("asked", "trial 0: base", base.number)
            self._measure([base.number])
        while self._keep_busy():
            self._take()
        self._conclude()

    def repeat(self, budget: int, choose: NextRepeat) -> None:
        """Goes on with the repeats that were begun, then with those that `choose` names, until it has enough or the budget is spent."""
        repeats = Repeats(self.record, self.jobs, budget, choose)
        for number, job in repeats.unfinished():
            self._make_ready(number, job)
        while self._keep_repeating(repeats):
            self._take()

    def _keep_repeating(self, repeats: Repeats) -> bool:
        while self.flights.idle:
            if self.ready:
                self._train(*self.ready.popleft())
            elif (begun := repeats.begin()) is not None:
                self._make_ready(*begun)
            else:
                break
        return bool(self.flights)

    def _adopt(self) -> None:
        running = [trial for trial in self.record.trials.values() if trial.state == "RUNNING"]
        self.record.drop_stale_checkpoints()
        for trial in running:
            self.emit("adopted", f"trial {trial.number} is under way: {trial.architecture}", trial.number)
            if trial.cost is not None:
                self._admit(trial.number)
        unmeasured = [trial.number for trial in running if trial.cost is None]
        if unmeasured:
            self._measure(unmeasured)

    def _keep_busy(self) -> bool:
        """Stops what has lost its race, submits what is ready, asks when workers would idle; whether anything is under way."""
        self._stop_losers()
        while self.ready and self.flights.idle:
            first = self.jobs.first(self.record.trials.values(), [number for number, _ in self.ready])
            entry = self.ready[first]
            del self.ready[first]
            if self._train(*entry):
                self._stop_losers()
        if not self.ready and self.flights.idle and not self.flights.measures:
            self._ask()
        return bool(self.flights)

    def _stop_losers(self) -> None:
        for number, verdict in self.jobs.stopped(self.record.trials.values(), [number for number, _ in self.ready]).items():
            self.ready = deque(entry for entry in self.ready if entry[0] != number)
            self._tell(number, verdict)

    def _ask(self) -> None:
        # Never more than can count: so which trials are asked does not depend on the order in which workers answer.
        wanted = min(max(1, self.flights.slots), self.total - self.record.counted - self.record.running)
        if wanted <= 0 or self.exhausted or self.record.trials[0].state != "COMPLETE" or self._halted():
            return
        asked = self.record.ask_many(self.jobs.recipe, wanted)
        self.exhausted = len(asked) < wanted
        for trial in asked:
            self.emit("asked", f"trial {trial.number}: {trial.architecture}", trial.number)
        if asked:
            self._measure([trial.number for trial in asked])

    def _measure(self, numbers: Sequence[int]) -> None:
        attempts = self.record.count_many(numbers, "attempts", "measure")
        for number in [number for number in numbers if self.blame.begun(number, "measure") > MAX_ATTEMPTS]:
            self._tell(number, worn_out(MAX_ATTEMPTS))
            del attempts[number]
        if not attempts:
            return
        architectures = {number: self.record.trials[number].architecture for number in attempts}
        self.flights.measure(architectures, max(attempts.values()), self.deadline_s)

    def _train(self, number: int, job: Job) -> bool:
        """Whether what a lost copy has left counts instead, since when others may have lost their race."""
        key = job_key(job)
        job = replace(job, attempt=self.record.count(number, "attempts", key), alone=self.blame.alone(number, key))
        if job.attempt > 1 and self._adopt_file(number, job):
            self._advance(number)
            return True
        if self.blame.begun(number, key) > MAX_ATTEMPTS:
            self._finish_job(number, job, worn_out(MAX_ATTEMPTS))
            return False
        self.emit("train", f"trial {number}: training with {part(job)}, attempt {job.attempt}{', alone' * job.alone}", number, job)
        self.flights.train(number, job, allowed_s(self.record.fit or {}, job.recipe.epochs, self.deadline_s))
        return False

    # -- answers ---------------------------------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Waits for answers, and acts on them."""
        for flight, done in self.flights.wait():
            if flight is None:
                self.emit("late", f"an answer that nobody waits for: {done.key}")
            elif flight.job is None:
                self._measured(flight, done)
            elif done.result is None:
                self._lost(flight.job, flight, done)
            else:
                self._finish_job(flight.numbers[0], flight.job, read_outcome(done.result))

    def _measured(self, flight: Flight, done: Done) -> None:
        if done.result is None:
            self._lost_measurement(flight, done)
            return
        answers = dict(zip(flight.numbers, read_costs(done.result, len(flight.numbers)), strict=True))
        self.record.save_costs({number: answer for number, answer in answers.items() if not isinstance(answer, Failure)})
        for number, answer in answers.items():
            if isinstance(answer, Failure):
                self._tell(number, answer)
            else:
                self.emit("measured", f"trial {number}: {answer.latency.ratio:.3f} of the base's latency", number)
                self._admit(number)

    def _lost_measurement(self, flight: Flight, done: Done) -> None:
        for number in flight.numbers:
            self.emit("lost", f"trial {number}: measurement lost: {done.lost}", number)
            # Of several nobody knows whose fault it was: each is measured by itself, so that one bad candidate costs the others nothing.
            told = len(flight.numbers) == 1 or done.cause in FREE
            failure = self.blame.failure(number, "measure", done) if told else None
            if failure is not None:
                self._tell(number, failure)
            else:
                self._measure([number])

    def _admit(self, number: int) -> None:
        """A measured trial: rejected by a limit, or its jobs made ready, except those that are done."""
        trial = self.record.trials[number]
        over = {name: excess for name, excess in self.record.constraints(trial.cost).items() if excess > 0}
        if over and trial.cost is not None:
            limit = next(iter(over))
            self._tell(number, Rejected(limit=limit, value=trial.cost.metrics()[limit], bound=self.spec.limits[limit]))
            return
        self._advance(number)

    def _advance(self, number: int) -> None:
        """Makes ready what a trial may be trained with next, unless it has left its outcome; tells a trial that lacks nothing."""
        adopted = self.record.trials[number].state == "RUNNING"
        while adopted:
            busy = {job_key(job) for theirs, job in (*self.ready, *self.flights.trainings) if theirs == number}
            jobs = [job for job in self.jobs.next(self.record.trials[number]) if job_key(job) not in busy]
            adopted = sum(self._make_ready(number, job) for job in jobs) > 0
        self._settle(number)

    def _make_ready(self, number: int, job: Job) -> bool:
        """Whether the job has an outcome already, which then counts; else it waits for a worker."""
        adopted = self._adopt_file(number, job)
        if not adopted:
            self.ready.append((number, job))
        return adopted

    def _adopt_file(self, number: int, job: Job) -> bool:
        """Whether an attempt at this job has left its outcome in a file, which then counts."""
        outcome, unusable = self.record.find_outcome(job)
        for reason in unusable:
            self.emit("unusable", reason, number)
        if outcome is not None:
            self._keep(number, job, outcome)
        return outcome is not None

    def _lost(self, job: Job, flight: Flight, done: Done) -> None:
        number = flight.numbers[0]
        self.emit("lost", f"trial {number}: attempt {job.attempt} lost: {done.lost}", number)
        if not self._adopt_file(number, job):
            failure = self.blame.failure(number, job_key(job), done)
            if failure is not None:
                self._keep(number, job, failure)
            else:
                self.ready.appendleft((number, job))
        self._advance(number)

    def _finish_job(self, number: int, job: Job, outcome: Outcome) -> None:
        if self.blame.spared(number, job, outcome):
            self.ready.appendleft((number, job))
            return
        self._keep(number, job, outcome)
        self._advance(number)

    def _keep(self, number: int, job: Job, outcome: Outcome) -> None:
        trial = self.record.trials[number]
        if trial.state != "RUNNING":
            self.record.save_repeat(number, job, outcome)
        for label, control in self.jobs.labelled().items():
            if number == 0 and job_key(control) == job_key(job):
                self.record.save_control(number, label, job, outcome)
        if self.jobs.belongs(trial, job):
            self.record.save_result(number, job, outcome)
        self.emit("trained", f"trial {number}: {part(job)} {kind(outcome)}", number)

    def _settle(self, number: int) -> None:
        """Tells a trial whose jobs have all ended, or of which one has not ended well."""
        trial = self.record.trials[number]
        if trial.state != "RUNNING":
            return
        bad = next((outcome for _, outcome in trial.results if not isinstance(outcome, Measured)), None)
        if bad is not None:
            self.ready = deque(entry for entry in self.ready if entry[0] != number)
            if not self.flights.holds(number):
                self._tell(number, bad)
        elif not self.jobs.missing(trial):
            self._tell(number, mean_outcome([*full_length(trial.results).values()]))

    def _tell(self, number: int, verdict: Outcome) -> None:
        self.record.tell(number, verdict)
        self.record.drop_checkpoints([number])
        self.emit("rejected" if isinstance(verdict, Rejected) else "told", f"trial {number}: {words(verdict)}", number)

    def _halted(self) -> str | None:
        return halted(self.record.trials.values(), self.spec.limits, max(MAX_FAILURES, self.total), MAX_REJECTIONS)

    def _conclude(self) -> None:
        base = self.record.trials[0]
        if base.state != "COMPLETE":
            raise NasAttnError(f"The base must be measured before any candidate, but: {words(base.verdict)}. Begin another study.")
        if self.record.counted < self.total and (halted := self._halted()):
            raise NasAttnError(halted)
        if self.exhausted:
            self.emit("exhausted", f"the space holds no further architecture; {self.record.counted} of {self.total} trials have counted")
