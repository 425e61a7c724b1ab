"""One architecture to take from a study, and why.

With enough trials the choice is made by a model of all of them (`nas_attn.posterior`): only what beats the base with a probability that
clears a bar, near certainty unless told otherwise, is taken in its place, so that the best of many lucky observations is not. With few
trials only observations are there to go by, and the reason says so. "Keep the base" is a possible answer.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nas_attn import pareto
from nas_attn.claim import SURE
from nas_attn.errors import InputError, nearest
from nas_attn.facts import SEPARATED, base_trial, fastest_first, gain, in_sigmas, latency, metric, scores, sigma
from nas_attn.outcome import Snapshot, Trial
from nas_attn.posterior import LEAST, Member, Posterior, believe

RULES = ("best", "fastest", "knee", "1se")
_PLANE = {"map50_95": "maximize", "latency_ratio": "minimize"}
_WIDTH = 3.29  # a normal distribution's 90 % interval in standard deviations


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One trial and, in a few sentences with numbers, why it was taken, how sure that is, and by which rule."""

    trial: Trial
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From the latency ratio `limit` on, up to the next step's, `pick` takes the trial of `choice`; its reason is the one at `limit`."""

    limit: float
    choice: Choice


def pick(
    snapshot: Snapshot,
    rule: str,
    max_latency_ratio: float | None = None,
    *,
    probability: float = SURE,
    posterior: Posterior | None = None,
) -> Choice:
    """One architecture by a rule, among the measured trials within `max_latency_ratio`.

    By a model of all trials: among the base and what beats it with at least `probability`. Where there is no model (too few trials, or
    other objectives than `map50_95` and `latency_ratio`) there is no such probability either: among all that was measured, as observed.

    `best`: the highest `map50_95`. `fastest`: the lowest `latency_ratio` but the base's, or the base where nothing beats it; by
    observations "beats" means a gain of more than `facts.SEPARATED` sigma, which the best of many reaches by luck more often than a model
    would let it. `1se`: the simplest (fewest placements, then parameters, then the fastest) within one standard error of the best; by
    observations that of its mean over seeds, sigma / sqrt(seeds). `knee`: where the front bends most; a front of fewer than three points
    has no bend: `1se` decides, or `best` without sigma. Equals go to the faster, then to the earlier trial (`knee`: as `pareto.knee`).

    `posterior` is what `believe(snapshot)` gave, to whom has it.

    Raises:
        InputError: an unknown rule, `probability` outside 0.5 to 1, no measured trial, none within the limit, or `1se` without sigma.
    """
    question = _question(snapshot, rule, probability, posterior)
    candidates = _candidates(question)
    if not candidates:
        kinds = ", ".join(sorted({t.kind or "running" for t in snapshot.trials})) or "none"
        raise InputError(
            f"A pick needs a measured trial, but study {snapshot.name!r} holds {len(snapshot.trials)} trials (kinds: {kinds}); search on."
        )
    kept = _within(question, candidates, max_latency_ratio)
    found = _CHOOSE[rule](kept, _score(question))
    if found is None:
        raise InputError(
            f"Rule {rule!r} takes the base or what is more than {SEPARATED:g} sigma better, but the {len(kept)} measured"
            f"{_bound(max_latency_ratio)} hold neither; give a higher limit or another rule."
        )
    return Choice(trial=found[0].trial, reason=_reason(question, kept, *found, max_latency_ratio))


def ladder(snapshot: Snapshot, posterior: Posterior | None, rule: str = "best", probability: float = SURE) -> tuple[Step, ...]:
    """What `pick` gives for every limit of latency, by ascending limits: the first step's is the least for which it gives anything.

    `posterior` as for `pick`; nothing where nothing was measured.

    Raises:
        InputError: as for `pick`, but for what a limit shuts out.
    """
    question = _question(snapshot, rule, probability, posterior)
    candidates = _candidates(question)
    ratios = [latency(c.trial) for c in candidates]
    steps: list[Step] = []
    for limit in sorted(set(ratios)):
        kept = candidates[: bisect_right(ratios, limit)]
        found = _CHOOSE[rule](kept, _score(question))
        if found is not None and (not steps or found[0].trial.number != steps[-1].choice.trial.number):
            choice = Choice(trial=found[0].trial, reason=_reason(question, kept, *found, limit))
            steps.append(Step(limit=limit, choice=choice))
    return tuple(steps)


def by_number(snapshot: Snapshot, number: int, posterior: Posterior | None = None) -> Choice:
    """The trial of a number, with what is believed of it, or else was observed; `posterior` as for `pick`.

    Raises:
        InputError: a number that no trial has.
    """
    trials = {t.number: t for t in snapshot.trials}
    if number not in trials:
        raise InputError(f"`--trial` must be one of 0..{len(trials) - 1}, but got {number}; see trials.csv.")
    trial = trials[number]
    believed = _believed(snapshot, posterior)
    member = believed.of(trial) if believed is not None else None
    known = _expected(member) if member is not None else _observed(snapshot, trial)
    reason = f"Trial {number} ({trial.architecture}) was asked for by its number, not taken by a rule"
    return Choice(trial=trial, reason=f"{reason}: {known}." if known else f"{reason}.")


# -- what a rule may take ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What was asked, of a study; without a `posterior` observations answer."""

    snapshot: Snapshot
    rule: str
    probability: float
    posterior: Posterior | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A trial that a rule may take. `score` is its `map50_95`, expected or observed, `error` the standard error of that, where it is known.

    `better` says that it is told from the base, `on_front` that no other candidate dominates it, which holds within any limit of latency:
    what dominates is never slower.
    """

    trial: Trial
    score: float
    error: float | None
    better: bool
    on_front: bool = False


def _question(snapshot: Snapshot, rule: str, probability: float, posterior: Posterior | None) -> _Question:
    if rule not in RULES:
        raise InputError(f"A rule must be one of {list(RULES)}, but got {rule!r}. {nearest(rule, RULES)}")
    if not 0.5 <= probability < 1.0:
        raise InputError(
            f"`0.5 <= probability < 1` must hold, but got {probability:g}: below, the base is the likelier one, and nothing is certain; "
            f"the default is {SURE:g}."
        )
    return _Question(snapshot=snapshot, rule=rule, probability=probability, posterior=_believed(snapshot, posterior))


def _believed(snapshot: Snapshot, posterior: Posterior | None) -> Posterior | None:
    if set(snapshot.objectives) != set(_PLANE):
        return None
    return posterior if posterior is not None else believe(snapshot)


def _candidates(question: _Question) -> tuple[_Candidate, ...]:
    """By latency, then number."""
    believed = question.posterior
    found = _observed_candidates(question.snapshot) if believed is None else _expected_candidates(question, believed)
    found.sort(key=lambda c: fastest_first(c.trial))
    front = set(pareto.front([[c.score, latency(c.trial)] for c in found], tuple(_PLANE.values())))
    return tuple(replace(c, on_front=True) if i in front else c for i, c in enumerate(found))


def _expected_candidates(question: _Question, posterior: Posterior) -> list[_Candidate]:
    base = base_trial(question.snapshot)
    found = []
    for member in posterior.members:
        claim, trial = member.claim, member.trial
        better = bool(trial.architecture.placements) and claim.beats_base >= question.probability
        if better or (base is not None and trial.number == base.number):
            # Of the gain, not of the level: what is uncertain about the base is shared by all, and would call every gain an error.
            found.append(_Candidate(trial=trial, score=claim.mean, error=(claim.gain_high - claim.gain_low) / _WIDTH, better=better))
    return found


def _observed_candidates(snapshot: Snapshot) -> list[_Candidate]:
    noise = sigma(snapshot)
    found = []
    for trial in snapshot.trials:
        score = metric(trial, "map50_95")
        if trial.kind == "measured" and score is not None and math.isfinite(latency(trial)):
            error = None if noise is None else noise / math.sqrt(max(1, len(scores(trial))))
            better = bool(trial.architecture.placements) and (in_sigmas(snapshot, gain(snapshot, trial)) or 0.0) > SEPARATED
            found.append(_Candidate(trial=trial, score=score, error=error, better=better))
    return found


def _within(question: _Question, candidates: Sequence[_Candidate], limit: float | None) -> tuple[_Candidate, ...]:
    within = tuple(c for c in candidates if limit is None or latency(c.trial) <= limit)
    if not within:
        least, most = (latency(candidates[i].trial) for i in (0, -1))
        raise InputError(
            f"`latency_ratio <= {limit:g}` holds for none of the {len(candidates)} {_what(question)}, whose ratios are {least:.3f} to "
            f"{most:.3f}; give at least {math.ceil(least * 1000) / 1000:.3f}."
        )
    return within


# -- the rules: of candidates by latency the one to take, and how it stands among them; None where there is none. `score` names scores. --


def _best(candidates: Sequence[_Candidate], score: str) -> tuple[_Candidate, str]:
    return min(candidates, key=lambda c: (-c.score, *fastest_first(c.trial))), f"has the highest {score}"


def _fastest(candidates: Sequence[_Candidate], _: str) -> tuple[_Candidate, str] | None:
    better = [c for c in candidates if c.better]
    if better:
        return min(better, key=lambda c: (latency(c.trial), -c.score, c.trial.number)), "is the fastest that beats the base"
    base = next((c for c in candidates if not c.trial.architecture.placements), None)
    return None if base is None else (base, "is beaten by none")


def _one_error(candidates: Sequence[_Candidate], score: str) -> tuple[_Candidate, str]:
    top, _ = _best(candidates, score)
    if top.error is None:
        raise InputError(
            "Rule '1se' needs the noise, so at least two seeds of the base, but fewer are recorded; set base_seeds: 3 or take another rule."
        )
    near = [c for c in candidates if c.score >= top.score - top.error]
    how = f"is the simplest within one standard error ({top.error:.4f}) of the highest {score} ({top.score:.4f})"
    return min(near, key=lambda c: _simplest_first(c.trial)), how


def _simplest_first(trial: Trial) -> tuple[float, ...]:
    params_m = metric(trial, "params_m")
    return len(trial.architecture.placements), math.inf if params_m is None else params_m, *fastest_first(trial)


def _knee(candidates: Sequence[_Candidate], score: str) -> tuple[_Candidate, str]:
    front = [c for c in candidates if c.on_front]
    points = [(c.score, latency(c.trial)) for c in front]
    if len(set(points)) > 2:
        return front[pareto.knee(points, tuple(_PLANE.values()))], "is the knee"
    chosen, how = _best(candidates, score)
    if chosen.error is not None:
        chosen, how = _one_error(candidates, score)
    return chosen, f"{how} (too few points for a knee)"


_CHOOSE: Mapping[str, Callable[[Sequence[_Candidate], str], tuple[_Candidate, str] | None]] = {
    "knee": _knee,
    "best": _best,
    "fastest": _fastest,
    "1se": _one_error,
}


# -- the reason ----------------------------------------------------------------------------------------------------------------------------


def _reason(question: _Question, kept: Sequence[_Candidate], chosen: _Candidate, how: str, limit: float | None) -> str:
    is_base = not chosen.trial.architecture.placements
    if is_base and not any(c.better for c in kept) and (question.posterior is not None or question.rule == "fastest"):
        return f"Keep the base: {_none_better(question, kept, limit)} {_asked(question)}"
    subject = "Keep the base: it" if is_base else f"Trial {chosen.trial.number} ({chosen.trial.architecture})"
    among = f"{how} among {len(kept)}" if len(kept) > 1 else "is the only one"
    member = question.posterior.of(chosen.trial) if question.posterior is not None else None
    known = _observed(question.snapshot, chosen.trial) if member is None else _expected(member)
    check = "" if member is None or is_base else " `nas-attn verify` checks it with full trainings."
    return f"{subject} {among} {_what(question)}{_bound(limit)}: {known}.{check} {_asked(question)}"


def _asked(question: _Question) -> str:
    """The rule, and what else decided."""
    if question.posterior is not None:
        return f"Rule {question.rule}, probability {question.probability:g}."
    if set(question.snapshot.objectives) != set(_PLANE):
        return f"Rule {question.rule}, by observations: the model that gives probabilities has no objectives but {' and '.join(_PLANE)}."
    return f"Rule {question.rule}, by observations: a model that gives probabilities takes {LEAST} measured trials, the base among them."


def _score(question: _Question) -> str:
    return "mAP50-95" if question.posterior is None else "expected mAP50-95"


def _what(question: _Question) -> str:
    return "measured" if question.posterior is None else "that can be recommended"


def _bound(limit: float | None) -> str:
    return "" if limit is None else f" with a latency ratio of at most {limit:g}"


def _expected(member: Member) -> str:
    claim, trial = member.claim, member.trial
    score = f"expected mAP50-95 {claim.mean:.4f} (90 % {claim.low:.4f} to {claim.high:.4f})"
    return f"{score} at {latency(trial):.3f}x the base's latency; {_gain(member)}" if trial.architecture.placements else score


def _gain(member: Member) -> str:
    claim = member.claim
    chance = "over 0.999" if claim.beats_base > 0.999 else f"{claim.beats_base:.4g}"  # not rounded up to the bar that it does not clear
    return (
        f"{claim.gain:+z.4f} against the base (90 % {claim.gain_low:+z.4f} to {claim.gain_high:+z.4f}), which it beats with probability "
        f"{chance}"
    )


def _none_better(question: _Question, kept: Sequence[_Candidate], limit: float | None) -> str:
    posterior = question.posterior
    if posterior is None:
        return _none_separated(question.snapshot, [c.trial for c in kept], limit)
    text = f"no architecture{_bound(limit)} beats it with probability {question.probability:g} or more."
    others = [m for m in posterior.members if m.trial.architecture.placements and (limit is None or latency(m.trial) <= limit)]
    if others:
        likeliest = max(others, key=lambda m: (m.claim.beats_base, m.claim.gain, -m.trial.number))
        text += f" The likeliest is trial {likeliest.trial.number} ({likeliest.trial.architecture}): {_gain(likeliest)}."
    if posterior.detectable is not None:
        text += f" Of one architecture, this study could have told gains from {posterior.detectable:.4f} on; `--repeats` trains more seeds."
    return text


def _none_separated(snapshot: Snapshot, trials: Sequence[Trial], limit: float | None) -> str:
    noise = sigma(snapshot)
    if not noise:
        return "no gain can be told from luck, because the base's seeds give no sigma; set base_seeds: 3."
    text = f"no architecture{_bound(limit)} was measured to be more than {SEPARATED:g} sigma ({SEPARATED * noise:.4f} mAP50-95) better."
    gains = [(found, -t.number, t) for t in trials if t.architecture.placements and (found := gain(snapshot, t)) is not None]
    if gains:
        found, _, trial = max(gains, key=lambda entry: entry[:2])
        text += f" The nearest is trial {trial.number} ({trial.architecture}): {found:+z.4f} or {found / noise:+.2f} sigma."
    return text


def _observed(snapshot: Snapshot, trial: Trial) -> str:
    """Empty where nothing was."""
    score = metric(trial, "map50_95")
    if score is None:
        return ""
    if not trial.architecture.placements:
        return f"mAP50-95 {score:.4f}, mean of {len(scores(trial))} seed(s)"
    return f"mAP50-95 {score:.4f} at {latency(trial):.3f}x the base's latency, {_doubt(snapshot, trial)}"


def _doubt(snapshot: Snapshot, trial: Trial) -> str:
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
