"""How a study came to its front: the hypervolume from trial to trial, and what limits, rungs and failures kept from being trained.

The hypervolume is the volume between the observed front and a point that is fixed for a study once its base is measured, in the units of
the objectives: it never falls from one trial to the next, and two moments of a study compare. Two studies compare only if their points
are equal.
"""

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas_attn import facts, pareto
from nas_attn.outcome import Measured, Snapshot, Stopped, Trial, full_length

MOST_OBJECTIVES = 4
"""In more of them the exact volume of a front of hundreds of trials takes hours."""

_Point = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A study at the end of one measured trial: `trial` is its number, `trials` how many had been measured or stopped by then.

    `seconds` is what all trainings of the trials so far took, those of failed and stopped ones and repeats included, the fit of the base
    and its controls not; `front` how many trials were on the front.
    """

    trial: int
    trials: int
    seconds: float
    hypervolume: float
    front: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """What a study did not train. Seconds are estimates: what the median training of a candidate took, scoring included, by its epochs.

    `rejected` trials were over a limit before any training, `stopped` ones ended at a rung, `stopped_epochs` before all their seeds would
    have; None where no candidate has been trained to its end. `failed` trials saved nothing.
    """

    rejected: int
    rejected_seconds: float | None
    stopped: int
    stopped_epochs: int
    stopped_seconds: float | None
    failed: int


def reference(snapshot: Snapshot) -> tuple[float, ...] | None:
    """The point against which hypervolume is measured, in the order of the objectives; None until the base is measured.

    0 for a score; for a cost the hard limit of the space where it has one, else twice what the base costs.
    """
    base = facts.base_trial(snapshot)
    if base is None or base.kind != "measured":
        return None
    limits = _spec(snapshot).get("limits", {})
    worst = {name: limits.get(name, 2.0 * (facts.metric(base, name) or 0.0)) for name in snapshot.objectives}
    return tuple(0.0 if direction == "maximize" else float(worst[name]) for name, direction in snapshot.objectives.items())


def hypervolume(snapshot: Snapshot) -> float | None:
    """That of the observed front; None until the base is measured, and in more than `MOST_OBJECTIVES` objectives."""
    limit = reference(snapshot)
    if limit is None or len(limit) > MOST_OBJECTIVES:
        return None
    points = [[(t.values or {})[name] for name in snapshot.objectives] for t in facts.front_trials(snapshot)]
    return pareto.hypervolume(points, limit, tuple(snapshot.objectives.values()))


def progress(snapshot: Snapshot) -> tuple[Step, ...]:
    """One step a measured trial, the base's included, by number: the record does not keep in which order trials ended.

    Scores are the means over all seeds that a trial has by now. Empty where `hypervolume` is None.
    """
    limit = reference(snapshot)
    if limit is None or len(limit) > MOST_OBJECTIVES:
        return ()
    signs = [pareto.SIGNS[direction] for direction in snapshot.objectives.values()]
    corner = [sign * value for sign, value in zip(signs, limit, strict=True)]
    steps, front, counted, seconds, volume = list[Step](), list[_Point](), 0, 0.0, 0.0
    for trial in sorted((t for t in snapshot.trials if t.kind is not None), key=lambda t: t.number):
        counted, seconds = counted + (trial.kind in ("measured", "stopped")), seconds + trial.seconds
        if trial.kind != "measured" or trial.values is None or not set(snapshot.objectives) <= set(trial.values):
            continue
        grown = _grown(front, tuple(sign * trial.values[name] for sign, name in zip(signs, snapshot.objectives, strict=True)))
        if set(grown) != set(front):
            volume = pareto.hypervolume(grown, corner, ["minimize"] * len(signs))
        front = grown
        steps.append(Step(trial=trial.number, trials=counted, seconds=seconds, hypervolume=volume, front=len(front)))
    return tuple(steps)


def _grown(front: list[_Point], point: _Point) -> list[_Point]:
    """A front of minimized points with one more, where no other dominates that; copies stay."""
    if any(_dominates(member, point) for member in front):
        return front
    return [*(member for member in front if not _dominates(point, member)), point]


def _dominates(a: _Point, b: _Point) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def savings(snapshot: Snapshot) -> Savings:
    """What was not trained because of limits and rungs, and what failed."""
    kinds, seeds, epochs = Counter(t.kind for t in snapshot.trials), _spec(snapshot).get("seeds", 1), _epochs(snapshot)
    ends = [t.verdict.rung for t in snapshot.trials if isinstance(t.verdict, Stopped)]
    skipped = sum(max(0, seeds * epochs - end) for end in ends)
    whole = _training_seconds(snapshot)
    return Savings(
        rejected=kinds["rejected"],
        rejected_seconds=None if whole is None else kinds["rejected"] * seeds * whole,
        stopped=kinds["stopped"],
        stopped_epochs=skipped,
        stopped_seconds=None if whole is None else skipped * whole / max(1, epochs),
        failed=kinds["failure"],
    )


def _epochs(snapshot: Snapshot) -> int:
    """Those of a whole training; 0 while the base has none, when there is no candidate either."""
    base = facts.base_trial(snapshot)
    done = facts.measured(base) if base is not None else ()
    return done[0][0].recipe.epochs if done else 0


def _training_seconds(snapshot: Snapshot) -> float | None:
    """The median over the whole trainings of candidates, each with the rungs on its way."""
    candidates = [t for t in snapshot.trials if t.kind == "measured" and t.architecture.placements]
    whole = [_seconds_of(trial, seed) for trial in candidates for seed in full_length(trial.results)]
    return statistics.median(whole) if whole else None


def _seconds_of(trial: Trial, seed: int) -> float:
    return sum(outcome.total_seconds for job, outcome in trial.results if job.seed == seed and isinstance(outcome, Measured))


def _spec(snapshot: Snapshot) -> Mapping[str, Any]:
    spec: Mapping[str, Any] = snapshot.settings.get("spec", {})
    return spec
