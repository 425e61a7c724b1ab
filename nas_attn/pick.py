"""What a study's snapshot says: its front, its noise, every gain beside that noise, its controls, and one architecture to take.

The noise, sigma, is the standard deviation of `map50_95` over the seeds of the base. A gain within one sigma is called noise, one
beyond two sigma separated. The base is a member like any other: "keep the base" is a possible answer.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nas_attn import pareto
from nas_attn.errors import InputError, nearest
from nas_attn.outcome import Failure, Job, Measured, Outcome, Snapshot, Trial

RULES = ("knee", "best", "fastest", "1se")
SEPARATED = 2.0
_PLANE = {"map50_95": "maximize", "latency_ratio": "minimize"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One trial and, in a sentence with numbers, why it was taken and how sure that is."""

    trial: Trial
    reason: str


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
    return min((t for t in snapshot.trials if not t.architecture.placements), key=lambda t: t.number, default=None)


def measured(trial: Trial) -> tuple[tuple[Job, Measured], ...]:
    """The finished trainings that count: those of the recipe with most epochs, one a seed, by seed."""
    done = [(job, outcome) for job, outcome in trial.results if isinstance(outcome, Measured)]
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
    return tuple(sorted(members, key=_fast))


def controls(snapshot: Snapshot) -> tuple[Control, ...]:
    """The positive controls of the base's trial, one a label, in the order of the record."""
    base = base_trial(snapshot)
    groups: dict[str, list[tuple[Job, Outcome]]] = {}
    for label, job, outcome in base.controls if base is not None else ():
        groups.setdefault(label, []).append((job, outcome))
    return tuple(_control(snapshot, label, done) for label, done in groups.items())


def pick(snapshot: Snapshot, rule: str, max_latency_ratio: float | None = None) -> Choice:
    """One member of the front by a rule, among those within `max_latency_ratio`.

    `best`: the highest `map50_95`. `fastest`: the lowest `latency_ratio`. `1se`: the fastest within one sigma of the best. `knee`: where
    the front bends most; a front of fewer than three points has no bend, so that `1se` decides there.

    Raises:
        InputError: an unknown rule, no measured trial, none within the limit, or `1se` without sigma.
    """
    if rule not in RULES:
        raise InputError(f"A rule must be one of {list(RULES)}, but got {rule!r}. {nearest(rule, RULES)}")
    members = _eligible(snapshot, max_latency_ratio)
    chosen, how = _CHOOSE[rule](snapshot, members)
    return Choice(trial=chosen, reason=_reason(snapshot, chosen, how, len(members), max_latency_ratio))


def _eligible(snapshot: Snapshot, limit: float | None) -> tuple[Trial, ...]:
    members = tuple(t for t in front_trials(snapshot) if all(metric(t, name) is not None for name in _PLANE))
    if not members:
        kinds = ", ".join(sorted({t.kind or "running" for t in snapshot.trials})) or "none"
        raise InputError(
            f"A pick needs a measured trial, but study {snapshot.name!r} holds {len(snapshot.trials)} trials (kinds: {kinds}); search on."
        )
    within = tuple(t for t in members if limit is None or _latency(t) <= limit)
    if not within:
        raise InputError(
            f"`latency_ratio <= {limit:g}` holds for none of the {len(members)} members of the front, "
            f"whose ratios are {_latency(members[0]):.3f} to {_latency(members[-1]):.3f}; give at least {_latency(members[0]):.3f}."
        )
    return within


def _best(_: Snapshot, members: Sequence[Trial]) -> tuple[Trial, str]:
    return min(members, key=lambda t: (-_map(t), *_fast(t))), "has the highest mAP50-95"


def _fastest(_: Snapshot, members: Sequence[Trial]) -> tuple[Trial, str]:
    return min(members, key=lambda t: (_latency(t), -_map(t), t.number)), "is the fastest"


def _within_noise(snapshot: Snapshot, members: Sequence[Trial]) -> tuple[Trial, str]:
    noise = sigma(snapshot)
    if noise is None:
        raise InputError(
            "Rule '1se' needs the noise, so at least two seeds of the base, but fewer are recorded; set base_seeds: 3 or take another rule."
        )
    top = max(map(_map, members))
    near = [t for t in members if _map(t) >= top - noise]
    return _fastest(snapshot, near)[0], f"is the fastest within one sigma ({noise:.4f}) of the best mAP50-95 ({top:.4f})"


def _knee(snapshot: Snapshot, members: Sequence[Trial]) -> tuple[Trial, str]:
    points = [[_map(t), _latency(t)] for t in members]
    directions = tuple(_PLANE.values())
    if len({tuple(points[i]) for i in pareto.front(points, directions)}) > 2:
        return members[pareto.knee(points, directions)], "is the knee"
    if sigma(snapshot) is None:
        chosen, how = _best(snapshot, members)
    else:
        chosen, how = _within_noise(snapshot, members)
    return chosen, f"{how} (too few points for a knee)"


_CHOOSE: Mapping[str, Callable[[Snapshot, Sequence[Trial]], tuple[Trial, str]]] = {
    "knee": _knee,
    "best": _best,
    "fastest": _fastest,
    "1se": _within_noise,
}


def _reason(snapshot: Snapshot, trial: Trial, how: str, count: int, limit: float | None) -> str:
    among = f"among {count} on the front" if count > 1 else "and the only one on the front"
    bound = "" if limit is None else f" with a latency ratio of at most {limit:g}"
    place = f"mAP50-95 {_map(trial):.4f} at {_latency(trial):.3f}x the base's latency"
    return f"Trial {trial.number} ({trial.architecture}) {how} {among}{bound}: {place}, {_doubt(snapshot, trial)}."


def _doubt(snapshot: Snapshot, trial: Trial) -> str:
    if not trial.architecture.placements:
        return "the base itself: keep the base"
    difference, noise = gain(snapshot, trial), sigma(snapshot)
    if difference is None:
        return "with no score of the base to compare it with"
    if not noise:
        return f"{difference:+.4f} against the base, of unknown noise because the base's seeds give no sigma"
    seeds = len(scores(base_trial(snapshot) or trial))
    return f"{difference:+.4f} against the base or {difference / noise:+.1f} sigma of its {seeds} seeds, {_strength(difference / noise)}"


def _strength(sigmas: float) -> str:
    if sigmas < -1.0:
        return "worse than the base"
    if sigmas <= 1.0:
        return "which is within the noise: the base is as good a choice until more seeds say otherwise"
    if sigmas <= SEPARATED:
        return "which more seeds may or may not confirm"
    return "beyond two sigma, but the best of many is partly luck: confirm it with more seeds"


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


def _map(trial: Trial) -> float:
    return metric(trial, "map50_95") or 0.0


def _latency(trial: Trial) -> float:
    value = metric(trial, "latency_ratio")
    return float("inf") if value is None else value


def _fast(trial: Trial) -> tuple[float, int]:
    return _latency(trial), trial.number
