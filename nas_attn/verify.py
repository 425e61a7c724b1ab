"""`verify`: the front's members, the base, the base for longer and a wider base, trained in full with the same seeds on the user's data.

A driver keeps the workers of a pool busy (`nas_attn.full` is their side). Every finished training is a file in
`<out>/<recipe>/<arm>/s<seed>/`: stopped at any instant, the same call goes on and trains nothing twice, and another recipe has a folder of
its own. The search never touched the split that is scored here.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nas_attn.architecture import Architecture
from nas_attn.arms import BASE, EXTRA, WIDER, Arm, Verification
from nas_attn.errors import Interrupted, PoolError, StudyError
from nas_attn.event import Event
from nas_attn.files import write_atomic
from nas_attn.full import OUTCOME, TOLERANCE, WEIGHTS
from nas_attn.losses import FREE, MAX_LOSSES, heard
from nas_attn.outcome import Failure, Job, Measured, Outcome, read_outcome_file
from nas_attn.protocol import deadline_s, lost_failure, read_outcome, words
from nas_attn.proxy import write_list
from nas_attn.verdict import Evidence
from nas_attn.work import Done, Pool, Task

DEADLINE_S = 3600.0
PLAN = "plan.json"
_UNQUIET = " The machine was not quiet while they were timed, so that this is uncertain; delete the folder width-* to time them again."


def run(plan: Verification, pool: Pool, on_event: Callable[[Event], None] | None = None) -> Evidence:
    """Train what is not trained yet. The pool stays open.

    Raises:
        Interrupted: Ctrl-C; the same call goes on.
        PoolError: a pool that forgot a task.
    """
    for name, images in (("train", plan.train), ("val", plan.val)):
        write_list(plan.folder / "lists" / f"{name}.txt", images)
    driver = _Driver(plan, pool, on_event or (lambda _: None))
    history = _register(plan)
    try:
        driver.run()
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped with {driver.done} of {plan.trainings} trainings; the same command goes on from there.") from None
    outcomes = {arm.name: driver.outcomes.get(arm.name, {}) for arm in driver.arms}
    notes = (*plan.notes, *history, *driver.notes, *_equal_seeds(outcomes.get(BASE, {})))
    return Evidence(arms=tuple(driver.arms), outcomes=outcomes, pick=f"trial-{plan.pick.number}", protocol=plan.protocol, notes=notes)


def _register(plan: Verification) -> list[str]:
    """Keep what was decided before the first training, and say so where it was decided otherwise before."""
    file = plan.folder / PLAN
    earlier: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    now = {
        "primary": f"trial-{plan.pick.number} against {WIDER if plan.wider else BASE}",
        "seeds": plan.seeds,
        "arms": sorted(arm.name for arm in plan.arms) + [WIDER] * plan.wider,
    }
    if not earlier or earlier[-1] != now:
        text = json.dumps([*earlier, now], indent=1)
        write_atomic(file, lambda target: target.write_text(text))
    first = earlier[0] if earlier else now
    changed = [f"{name} was {first[name]}, now {now[name]}" for name in ("primary", "seeds") if first[name] != now[name]]
    return [f"Not as first decided: {line}. A choice made after a look at results makes p-values too small." for line in changed]


def _equal_seeds(outcomes: Mapping[int, Outcome]) -> list[str]:
    """A warning where two seeds of the base gave the very same first epoch: then they are not two trainings."""
    first = [o.curve[0]["train_loss"] for o in outcomes.values() if isinstance(o, Measured) and o.curve and "train_loss" in o.curve[0]]
    return ["Two seeds of the base had the same loss in their first epoch: seeds do not vary, and no interval holds."] * (
        len(set(first)) < len(first)
    )


@dataclass(slots=True)
class _Flight:
    """A task that the pool holds: `kind` as workers know it, and the arm and seed of a training."""

    kind: str
    payload: dict[str, Any]
    deadline_s: float
    arm: Arm | None = None
    job: Job | None = None
    losses: int = 0
    attempts: int = 0

    @property
    def name(self) -> str:
        return self.kind if self.arm is None or self.job is None else f"{self.kind}/{self.arm.name}/{self.job.seed}"


class _Driver:
    """The loop's state. All that must outlive it is in the outcome files."""

    def __init__(self, plan: Verification, pool: Pool, on_event: Callable[[Event], None]) -> None:
        self.plan, self.pool, self.on_event = plan, pool, on_event
        self.arms = list(plan.arms)
        self.outcomes: dict[str, dict[int, Outcome]] = {}
        self.notes: list[str] = []
        self.flying: dict[str, _Flight] = {}
        self.start = {"file": str(Path(plan.setup.folder) / "base" / WEIGHTS), "fingerprint": plan.recipe.base}
        self.wide: dict[str, Any] = {}

    @property
    def done(self) -> int:
        """Trainings that have ended."""
        return sum(map(len, self.outcomes.values()))

    def run(self) -> None:
        """Find the wider base's latency first, while the machine is quiet, then train, seed by seed."""
        if self.plan.wider:
            self._find_width()
        for seed in range(self.plan.seeds):
            for arm in self.plan.arms:
                self._train(arm, seed)
        while self.flying:
            answers = self.pool.wait(None)
            if not answers:
                raise PoolError(f"A pool must answer for every task, but it forgot {sorted(self.flying)}; run the same command again.")
            for answer in answers:
                self._take(answer)

    def _emit(self, kind: str, message: str) -> None:
        self.on_event(Event(kind=kind, message=message, done=self.done, total=self.plan.trainings))

    def _find_width(self) -> None:
        payload = {
            "architecture": self.plan.pick.architecture.to_dict(),
            "folder": str(self.plan.folder / f"width-{self.plan.pick.architecture.digest()}"),
        }
        self._emit("fit", "looking for the width at which the base is as slow as the pick")
        self._submit(_Flight("width", payload, DEADLINE_S))

    def _train(self, arm: Arm, seed: int) -> None:
        start = self.wide if arm.width is not None else self.start
        recipe = replace(self.plan.recipe, epochs=arm.epochs, base=start["fingerprint"])
        job = Job(architecture=arm.architecture, recipe=recipe, seed=seed)
        folder = self.plan.folder / _folder(arm) / f"s{seed}"
        found = self._finished(folder, job)
        if found is not None:
            self._keep(arm, seed, found)
            return
        lists = {f"{name}_list": str(self.plan.folder / "lists" / f"{name}.txt") for name in ("train", "val")}
        payload = {"job": job.to_dict(), "width": arm.width, "start": start["file"], "folder": str(folder), **lists}
        self._submit(_Flight("train", payload, deadline_s(self.plan.fit, arm.epochs, DEADLINE_S), arm, job))

    def _finished(self, folder: Path, job: Job) -> Measured | None:
        """The outcome of a training that has run to its end; what failed is run again."""
        file = folder / OUTCOME
        if not file.is_file():
            return None
        try:
            outcome = read_outcome_file(file.read_text(encoding="utf-8"), job)
        except (StudyError, UnicodeDecodeError) as error:
            self._emit("unusable", f"{file}: {error}")
            return None
        return outcome if isinstance(outcome, Measured) else None

    def _submit(self, flight: _Flight) -> None:
        key = f"{flight.name}/{flight.attempts + 1}"
        self.flying[key] = flight
        payload = json.dumps({"setup": asdict(self.plan.setup), **flight.payload})
        exclusive = flight.kind == "width"
        weights = tuple(filter(None, [self.plan.setup.weights]))
        self.pool.submit(Task(key, flight.kind, payload, exclusive, flight.deadline_s, weights))

    def _take(self, answer: Done) -> None:
        flight = self.flying.pop(answer.key, None)
        if flight is not None and flight.job is not None:
            answer = heard(answer, read_outcome)
        if flight is None:
            self._emit("late", f"an answer that nobody waits for: {answer.key}")
        elif answer.result is None:
            self._lost(flight, answer)
        elif flight.arm is not None and flight.job is not None:
            self._keep(flight.arm, flight.job.seed, read_outcome(answer.result))
        else:
            self._answered(flight.kind, json.loads(answer.result))

    def _lost(self, flight: _Flight, done: Done) -> None:
        flight.attempts += 1
        flight.losses += done.cause not in FREE
        reason = str(done.lost)
        self._emit("lost", f"{flight.name}, attempt {flight.attempts}: {reason}")
        found = self._finished(Path(flight.payload["folder"]), flight.job) if flight.job else None
        if flight.losses < MAX_LOSSES and found is None:
            self._submit(flight)
        elif flight.arm is not None and flight.job is not None:
            self._keep(flight.arm, flight.job.seed, found or lost_failure(MAX_LOSSES, reason))
        else:
            self._answered(flight.kind, {"failure": asdict(lost_failure(MAX_LOSSES, reason))})

    def _keep(self, arm: Arm, seed: int, outcome: Outcome) -> None:
        self.outcomes.setdefault(arm.name, {})[seed] = outcome
        self._emit("trained", f"{arm}, seed {seed}: {words(outcome)}")

    def _answered(self, kind: str, answer: Mapping[str, Any]) -> None:
        if "failure" in answer:
            self.notes.append(f"There is no wider base, and the primary contrast is with the base: {words(Failure(**answer['failure']))}")
            self._emit("unusable", self.notes[-1])
        elif kind == "width":
            self._found_width(answer)
        else:
            self._fitted(answer)

    def _found_width(self, answer: Mapping[str, Any]) -> None:
        if answer["width"] is None:
            self.notes.append(
                f"The pick has {answer['candidate_ratio']:.3f} of the base's latency here: the base itself is the rival of equal latency."
            )
            self._emit("measured", self.notes[-1])
            return
        excess = answer["ratio"] / answer["candidate_ratio"] - 1.0
        near = "" if abs(excess) <= TOLERANCE else ", which is the nearest step: channels come in eights"
        self.notes.append(
            f"The wider base has width {answer['width']:g} ({answer['params_m']:.2f} M parameters) and {answer['ratio']:.3f} of the base's "
            f"latency; the pick, in the same rounds, {answer['candidate_ratio']:.3f}: {excess:+.1%}{near} ({answer['quality']})."
            + _UNQUIET
            * (answer["quality"] != "gated")
        )
        self._emit("measured", self.notes[-1])
        width = answer["width"]
        arm = Arm(
            name=WIDER,
            architecture=Architecture(f"{self.plan.setup.base} at width {width:g}"),
            epochs=self.plan.recipe.epochs,
            width=width,
            latency_ratio=answer["ratio"],
            params_m=answer["params_m"],
        )
        self.wide = {"arm": arm, "folder": self.plan.folder / _folder(arm) / "fit"}
        self._emit("fit", f"fitting {arm} as the base was fitted")
        payload = {"width": width, "folder": str(self.wide["folder"])}
        epochs = self.plan.setup.fit["epochs"]
        self._submit(_Flight("fit", payload, deadline_s(self.plan.fit, max(epochs, 1), DEADLINE_S)))

    def _fitted(self, answer: Mapping[str, Any]) -> None:
        setup, arm = self.plan.setup, self.wide["arm"]
        if setup.weights:
            share = f"{answer['moved']} of {answer['tensors']} tensors"
            self.notes.append(f"The base's fit started from given weights, of which the wider base could take {share}: a handicap for it.")
        if not setup.fit["epochs"]:
            self.notes.append("base_fit.epochs is 0: the wider base was not fitted before its trainings, which is a handicap for it.")
        self.wide |= {"file": str(self.wide["folder"] / WEIGHTS), "fingerprint": answer["fingerprint"]}
        self._emit("fitted", f"{arm} is fitted")
        self.arms.append(arm)
        for seed in range(self.plan.seeds):
            self._train(arm, seed)


def _folder(arm: Arm) -> str:
    if arm.width is not None:
        return f"{arm.name}-w{arm.width:g}"
    return f"{arm.name}-e{arm.epochs}" if arm.name == EXTRA else arm.name
