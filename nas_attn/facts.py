"""What a study's snapshot says before any model: its observed front, its noise, every gain beside that noise, its controls.

The noise, sigma, is the standard deviation of `map50_95` over the seeds of the base. A gain within one sigma is called noise, one
beyond two sigma separated.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas_attn import pareto
from nas_attn.outcome import Failure, Job, Measured, Outcome, Snapshot, Trial

SEPARATED = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A change with a known effect, mean over its seeds, beside the base.

    `sigmas` is its gain in units of sigma; `separated` whether that exceeds two sigma in the expected direction (up for labels that
    begin with `help`, down for `harm`, either way for others); None where there is no score or no sigma. `errors` tells what failed.
    """

    label: str
    score: float | None
    gain: float | None
    sigmas: float | None
    separated: bool | None
    seeds: int
    errors: tuple[str, ...]


def base_trial(snapshot: Snapshot) -> Trial | None:
    """The trial of the base itself, or None where it is not in the record yet."""
    first = snapshot.trials[0] if snapshot.trials else None
    if first is not None and first.number == 0 and not first.architecture.placements:
        return first  # where every study has it; a table of thousands of gains asks for it as often
    return min((t for t in snapshot.trials if not t.architecture.placements), key=lambda t: t.number, default=None)


def measured(trial: Trial) -> tuple[tuple[Job, Measured], ...]:
    """The finished trainings that count: those of the recipe with most epochs that ran to their end, one a seed, by seed."""
    done = [(job, outcome) for job, outcome in trial.results if isinstance(outcome, Measured) and job.epochs is None]
    if not done:
        return ()
    top = max(done, key=lambda pair: pair[0].recipe.epochs)[0].recipe
    by_seed = {job.seed: (job, outcome) for job, outcome in reversed(done) if job.recipe == top}
    return tuple(by_seed[seed] for seed in sorted(by_seed))


def scores(trial: Trial) -> dict[int, float]:
    """`map50_95` by seed at the highest rung."""
    return {job.seed: outcome.map50_95 for job, outcome in measured(trial)}


def metric(trial: Trial, name: str) -> float | None:
    """A told value, or else a cost, by its name; None where it is not known."""
    if trial.values is not None and name in trial.values:
        return trial.values[name]
    return trial.cost.metrics().get(name) if trial.cost is not None else None


def base_score(snapshot: Snapshot) -> float | None:
    """The base's `map50_95`: the mean over its seeds, or what was told; None while it is unknown."""
    base = base_trial(snapshot)
    if base is None:
        return None
    found = scores(base)
    return statistics.fmean(found.values()) if found else metric(base, "map50_95")


def sigma(snapshot: Snapshot) -> float | None:
    """The noise: the sample standard deviation of `map50_95` over the base's seeds; None below two seeds."""
    base = base_trial(snapshot)
    found = scores(base) if base is not None else {}
    return statistics.stdev(found.values()) if len(found) > 1 else None


def gain(snapshot: Snapshot, trial: Trial) -> float | None:
    """What a trial has over the base in `map50_95`: the mean difference over the seeds that both ran, else `gain_to_mean`.

    The same seed gives base and candidate the same images, order and augmentation, so that the luck of a seed cancels; None where scores
    do not compare.
    """
    base, to_mean = base_trial(snapshot), gain_to_mean(snapshot, trial)
    if base is None or to_mean is None:
        return to_mean
    theirs, ours = scores(base), scores(trial)
    return _paired(theirs, [(seed, ours[seed]) for seed in sorted(theirs.keys() & ours.keys())], to_mean)


def gain_to_mean(snapshot: Snapshot, trial: Trial) -> float | None:
    """`map50_95` of a trial less the mean of the base's seeds; None where either is unknown or their recipes differ."""
    base, reference, value = base_trial(snapshot), base_score(snapshot), metric(trial, "map50_95")
    if base is None or reference is None or value is None:
        return None
    theirs, ours = measured(base)[:1], measured(trial)[:1]
    if theirs and ours and theirs[0][0].recipe != ours[0][0].recipe:
        return None
    return value - reference


def _paired(base: Mapping[int, float], scored: Sequence[tuple[int, float]], otherwise: float) -> float:
    differences = [score - base[seed] for seed, score in scored if seed in base]
    return statistics.fmean(differences) if differences else otherwise


def in_sigmas(snapshot: Snapshot, difference: float | None) -> float | None:
    """A difference of `map50_95` in units of sigma; None where either is unknown or all seeds of the base agree."""
    noise = sigma(snapshot)
    return difference / noise if difference is not None and noise else None


def front_trials(snapshot: Snapshot) -> tuple[Trial, ...]:
    """The measured trials that no other dominates in the study's objectives, by latency, then number."""
    done = [t for t in snapshot.trials if t.kind == "measured" and t.values is not None and set(snapshot.objectives) <= set(t.values)]
    points = [[(t.values or {})[name] for name in snapshot.objectives] for t in done]
    members = [done[i] for i in pareto.front(points, tuple(snapshot.objectives.values()))] if done else []
    return tuple(sorted(members, key=fastest_first))


def controls(snapshot: Snapshot) -> tuple[Control, ...]:
    """The positive controls of the base's trial, one a label, in the order of the record."""
    base = base_trial(snapshot)
    groups: dict[str, list[tuple[Job, Outcome]]] = {}
    for label, job, outcome in base.controls if base is not None else ():
        groups.setdefault(label, []).append((job, outcome))
    return tuple(_control(snapshot, label, done) for label, done in groups.items())


def _control(snapshot: Snapshot, label: str, done: Sequence[tuple[Job, Outcome]]) -> Control:
    outcomes = [outcome for _, outcome in done]
    found = [(job.seed, outcome.map50_95) for job, outcome in done if isinstance(outcome, Measured)]
    base, reference = base_trial(snapshot), base_score(snapshot)
    score = statistics.fmean(value for _, value in found) if found else None
    difference = None
    if base is not None and score is not None and reference is not None:
        difference = _paired(scores(base), found, score - reference)
    sigmas = in_sigmas(snapshot, difference)
    errors = tuple(f"{o.stage}: {o.error}" for o in outcomes if isinstance(o, Failure))
    return Control(
        label=label,
        score=score,
        gain=difference,
        sigmas=sigmas,
        separated=None if sigmas is None else _expected(label, sigmas) > SEPARATED,
        seeds=len(found),
        errors=errors,
    )


def _expected(label: str, sigmas: float) -> float:
    if label.lower().startswith("help"):
        return sigmas
    return -sigmas if label.lower().startswith("harm") else abs(sigmas)


def latency(trial: Trial) -> float:
    """The latency ratio; infinite where it is not known."""
    value = metric(trial, "latency_ratio")
    return float("inf") if value is None else value


def fastest_first(trial: Trial) -> tuple[float, int]:
    """What sorts trials by latency, then number."""
    return latency(trial), trial.number
