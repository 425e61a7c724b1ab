"""One architecture to take from a study, and why.

With enough trials the choice is made by a model of all of them (`nas_attn.posterior`): only what beats the base with near certainty is
taken in its place, so that the best of many lucky observations is not. With few trials only observations are there to go by, and the
reason says so. "Keep the base" is a possible answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nas_attn import pareto
from nas_attn.claim import SURE
from nas_attn.errors import InputError, nearest
from nas_attn.facts import SEPARATED, base_trial, fastest_first, front_trials, gain, latency, metric, scores, sigma
from nas_attn.outcome import Snapshot, Trial
from nas_attn.posterior import Member, Posterior, believe

RULES = ("knee", "best", "fastest", "1se")
_PLANE = {"map50_95": "maximize", "latency_ratio": "minimize"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One trial and, in a sentence with numbers, why it was taken and how sure that is."""

    trial: Trial
    reason: str


def pick(snapshot: Snapshot, rule: str, max_latency_ratio: float | None = None) -> Choice:
    """One architecture by a rule, among those within `max_latency_ratio`: members of the recommended front that beat the base with
    probability `claim.SURE`, and the base itself; where there are too few trials for a model, members of the observed front.

    `best`: the highest `map50_95`. `fastest`: the lowest `latency_ratio`. `1se`: the fastest within one standard error of the best (one
    sigma, where observations decide). `knee`: where the front bends most; a front of fewer than three points has no bend: `1se` decides.

    Raises:
        InputError: an unknown rule, no measured trial, none within the limit, or `1se` without sigma.
    """
    if rule not in RULES:
        raise InputError(f"A rule must be one of {list(RULES)}, but got {rule!r}. {nearest(rule, RULES)}")
    posterior = believe(snapshot) if set(snapshot.objectives) == set(_PLANE) else None
    if posterior is not None:
        return _recommend(snapshot, posterior, rule, max_latency_ratio)
    members = _eligible(snapshot, max_latency_ratio)
    chosen, how = _CHOOSE[rule](snapshot, members)
    return Choice(trial=chosen, reason=_reason(snapshot, chosen, how, len(members), max_latency_ratio))


# -- by a model of all trials --------------------------------------------------------------------------------------------------------------


def _recommend(snapshot: Snapshot, posterior: Posterior, rule: str, limit: float | None) -> Choice:
    base = base_trial(snapshot)
    believed = [m for m in posterior.members if (m.expected and m.sure) or (base is not None and m.trial.number == base.number)]
    members = _within([m.trial for m in believed], limit)
    kept = [m for m in believed if m.trial in members]
    chosen, how = _MODELLED[rule](kept)
    if chosen.trial.architecture.placements:
        return Choice(trial=chosen.trial, reason=_why(chosen, f"{how} among {len(kept)} that can be recommended", limit))
    return Choice(trial=chosen.trial, reason=_why_base(posterior, kept, how, limit))


def _best_expected(members: Sequence[Member]) -> tuple[Member, str]:
    return min(members, key=lambda m: (-m.claim.mean, *fastest_first(m.trial))), "has the highest expected mAP50-95"


def _fastest_expected(members: Sequence[Member]) -> tuple[Member, str]:
    return min(members, key=lambda m: fastest_first(m.trial)), "is the fastest"


def _one_error(members: Sequence[Member]) -> tuple[Member, str]:
    top, _ = _best_expected(members)
    error = (top.claim.high - top.claim.low) / _WIDTH
    near = [m for m in members if m.claim.mean >= top.claim.mean - error]
    return _fastest_expected(near)[0], f"is the fastest within one standard error ({error:.4f}) of the best"


def _knee_expected(members: Sequence[Member]) -> tuple[Member, str]:
    points = [[m.claim.mean, latency(m.trial)] for m in members]
    directions = tuple(_PLANE.values())
    if len({tuple(points[i]) for i in pareto.front(points, directions)}) > 2:
        return members[pareto.knee(points, directions)], "is the knee"
    chosen, how = _one_error(members)
    return chosen, f"{how} (too few points for a knee)"


_WIDTH = 3.29  # a normal distribution's 90 % interval in standard deviations
_MODELLED: Mapping[str, Callable[[Sequence[Member]], tuple[Member, str]]] = {
    "knee": _knee_expected,
    "best": _best_expected,
    "fastest": _fastest_expected,
    "1se": _one_error,
}


def _why(member: Member, how: str, limit: float | None) -> str:
    claim, trial = member.claim, member.trial
    bound = "" if limit is None else f" with a latency ratio of at most {limit:g}"
    return (
        f"Trial {trial.number} ({trial.architecture}) {how}{bound}: expected mAP50-95 {claim.mean:.4f} (90 % {claim.low:.4f} to "
        f"{claim.high:.4f}) at {latency(trial):.3f}x the base's latency; {_gain(member)}. `nas-attn verify` checks it with full trainings."
    )


def _gain(member: Member) -> str:
    claim = member.claim
    return (
        f"{claim.gain:+z.4f} against the base (90 % {claim.gain_low:+z.4f} to {claim.gain_high:+z.4f}), which it beats with probability "
        f"{claim.beats_base:.2f}"
    )


def _why_base(posterior: Posterior, kept: Sequence[Member], how: str, limit: float | None) -> str:
    bound = "" if limit is None else f" with a latency ratio of at most {limit:g}"
    if len(kept) > 1:
        return f"Keep the base: it {how} among {len(kept)} that can be recommended{bound}."
    text = f"Keep the base: no architecture{bound} beats it with probability {SURE:.2f} or more."
    others = [m for m in posterior.members if m.trial.architecture.placements and (limit is None or latency(m.trial) <= limit)]
    if others:
        best = max(others, key=lambda m: (m.claim.gain, -m.trial.number))
        text += f" The most promising is trial {best.trial.number} ({best.trial.architecture}): {_gain(best)}."
    if posterior.detectable is not None:
        text += f" Of one architecture, this study could have told gains from {posterior.detectable:.4f} on; `--repeats` trains more seeds."
    return text


# -- by observations alone -----------------------------------------------------------------------------------------------------------------


def _eligible(snapshot: Snapshot, limit: float | None) -> tuple[Trial, ...]:
    members = tuple(t for t in front_trials(snapshot) if all(metric(t, name) is not None for name in _PLANE))
    if not members:
        kinds = ", ".join(sorted({t.kind or "running" for t in snapshot.trials})) or "none"
        raise InputError(
            f"A pick needs a measured trial, but study {snapshot.name!r} holds {len(snapshot.trials)} trials (kinds: {kinds}); search on."
        )
    return _within(members, limit)


def _within(members: Sequence[Trial], limit: float | None) -> tuple[Trial, ...]:
    within = tuple(t for t in members if limit is None or latency(t) <= limit)
    if not within:
        raise InputError(
            f"`latency_ratio <= {limit:g}` holds for none of the {len(members)} members of the front, "
            f"whose ratios are {latency(members[0]):.3f} to {latency(members[-1]):.3f}; give at least {latency(members[0]):.3f}."
        )
    return within


def _best(_: Snapshot, members: Sequence[Trial]) -> tuple[Trial, str]:
    return min(members, key=lambda t: (-_map(t), *fastest_first(t))), "has the highest mAP50-95"


def _fastest(_: Snapshot, members: Sequence[Trial]) -> tuple[Trial, str]:
    return min(members, key=lambda t: (latency(t), -_map(t), t.number)), "is the fastest"


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
    points = [[_map(t), latency(t)] for t in members]
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
    place = f"mAP50-95 {_map(trial):.4f} at {latency(trial):.3f}x the base's latency"
    return f"Trial {trial.number} ({trial.architecture}) {how} {among}{bound}: {place}, {_doubt(snapshot, trial)}."


def _doubt(snapshot: Snapshot, trial: Trial) -> str:
    if not trial.architecture.placements:
        return "the base itself: keep the base"
    difference, noise = gain(snapshot, trial), sigma(snapshot)
    if difference is None:
        return "with no score of the base to compare it with"
    if not noise:
        return f"{difference:+z.4f} against the base, of unknown noise because the base's seeds give no sigma"
    seeds = len(scores(base_trial(snapshot) or trial))
    return f"{difference:+z.4f} against the base or {difference / noise:+.1f} sigma of its {seeds} seeds, {_strength(difference / noise)}"


def _strength(sigmas: float) -> str:
    if sigmas < -1.0:
        return "worse than the base"
    if sigmas <= 1.0:
        return "which is within the noise: the base is as good a choice until more seeds say otherwise"
    if sigmas <= SEPARATED:
        return "which more seeds may or may not confirm"
    return "beyond two sigma, but the best of many is partly luck: confirm it with more seeds"


def _map(trial: Trial) -> float:
    return metric(trial, "map50_95") or 0.0
