"""The answer that a study gives, first of all that a report says: which architecture to take, why, and how sure that is."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nas_attn import facts, pick
from nas_attn.architecture import Architecture, Placement
from nas_attn.claim import SURE
from nas_attn.errors import InputError
from nas_attn.network import Network
from nas_attn.outcome import Snapshot, Trial
from nas_attn.posterior import Member, Posterior

PLANE = {"map50_95", "latency_ratio"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`take` an architecture, `keep` the base, `early` while only observations are there to go by, `none` where nothing was measured.

    `trial` is what is taken; `shown` what the answer's figures are about: the same, or where the base is kept the other that beats it most
    likely.
    `command` is what to run next.
    """

    kind: Literal["take", "keep", "early", "none"]
    headline: str
    sentence: str
    command: str
    trial: Trial | None = None
    shown: Member | None = None


def answer(snapshot: Snapshot, believed: Posterior | None, drawing: Network) -> Answer:
    """The study's answer by the rule `best`, without a limit of latency."""
    where = shlex.quote(str(snapshot.folder))
    try:
        choice = pick.pick(snapshot, "best", posterior=believed)
    except InputError:
        failed = sum(trial.kind == "failure" for trial in snapshot.trials)
        so_far = f"{failed} of {len(snapshot.trials)} trials failed." if failed else "The search has only begun."
        return Answer(kind="none", headline="Nothing has been measured yet", sentence=so_far, command=f"nas-attn report {where}")
    trial = choice.trial
    take = f"nas-attn export {where} --trial {trial.number} --to winner"
    if believed is None or set(snapshot.objectives) != PLANE:
        headline = _early(snapshot, trial, drawing)
        return Answer(kind="early", headline=headline, sentence=choice.reason, command=take, trial=trial)
    if trial.architecture.placements:
        member = believed.of(trial)
        headline = f"Take {placed(trial.architecture, drawing)}"
        return Answer(kind="take", headline=headline, sentence=_taken(member), command=take, trial=trial, shown=member)
    others = [m for m in believed.members if m.trial.architecture.placements]
    best = max(others, key=lambda m: (m.claim.beats_base, m.claim.gain, -m.trial.number), default=None)
    command = f"nas-attn verify {where} --data DATA.yaml --trial {best.trial.number} --seeds 5" if best else take
    sentence = _kept(believed, best, drawing)
    return Answer(kind="keep", headline="Keep the base", sentence=sentence, command=command, trial=trial, shown=best)


def placed(architecture: Architecture, drawing: Network) -> str:
    """`LIA(f=16) after P4 and LSKA(k_size=7) after neck P3 out`, or `the base`."""
    parts = [f"{module(p)} after {drawing.label(p.layer).replace('_', ' ')}" for p in architecture.placements]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "the base"


def chance(probability: float) -> str:
    """A probability with two digits; never a certainty, of which no model knows."""
    return "over 0.99" if probability >= 0.995 else "under 0.01" if probability < 0.005 else f"{probability:.2f}"


def module(placement: Placement) -> str:
    """`LIA(f=16)`: a placement without its row."""
    return str(placement).rpartition("@")[0]


def _early(snapshot: Snapshot, trial: Trial, drawing: Network) -> str:
    if not any(t.architecture.placements and t.kind == "measured" for t in snapshot.trials):
        return "Only the base has been measured"
    if set(snapshot.objectives) != PLANE:
        return f"Observed best of {len(snapshot.objectives)} objectives: {placed(trial.architecture, drawing)}"
    return "Too early to say" if trial.architecture.placements else "Too early to say; so far the base is best"


def _taken(member: Member | None) -> str:
    if member is None:
        return ""
    claim, ratio = member.claim, facts.latency(member.trial)
    return (
        f"It is expected to score {claim.mean:.4f} mAP50-95, {claim.gain:+.4f} against the base (90 % {claim.gain_low:+.4f} to "
        f"{claim.gain_high:+.4f}), at {ratio:.3f} times the base's latency, and beats the base with a probability of "
        f"{chance(claim.beats_base)}."
    ).replace("-0.", "−0.")


def _kept(believed: Posterior, best: Member | None, drawing: Network) -> str:
    text = f"No architecture beats it with a probability of {SURE} or more."
    if best is not None:
        claim = best.claim
        text += (
            f" The likeliest, trial {best.trial.number} with {placed(best.trial.architecture, drawing)}, is expected to change "
            f"mAP50-95 by {claim.gain:+z.4f} (90 % {claim.gain_low:+z.4f} to {claim.gain_high:+z.4f}) and beats the base with a "
            f"probability of {chance(claim.beats_base)}."
        ).replace("-0.", "−0.")
    if believed.detectable is not None:
        text += f" Of one architecture, this study could have told gains from {believed.detectable:.4f} on; smaller ones may be there."
    return text


def steps(ladder: Sequence[pick.Step], snapshot: Snapshot, believed: Posterior | None, drawing: Network) -> list[Mapping[str, object]]:
    """The recommendation for every limit of latency, as plain values: each from its `limit` on, up to the next one's."""
    where = shlex.quote(str(snapshot.folder))
    return [
        {
            "limit": step.limit,
            "number": step.choice.trial.number,
            "reason": _within(step.choice, believed, drawing),
            "command": f"nas-attn export {where} --trial {step.choice.trial.number} --to winner",
        }
        for step in ladder
    ]


def _within(choice: pick.Choice, believed: Posterior | None, drawing: Network) -> str:
    """What to take up to a limit, without the limit, which the reader moves."""
    trial = choice.trial
    member = believed.of(trial) if believed else None
    what, ratio = placed(trial.architecture, drawing), facts.latency(trial)
    if member is None:
        return f"Observed best: trial {trial.number}, {what}, at {ratio:.3f} times the base's latency."
    if not trial.architecture.placements:
        return f"Keep the base: nothing that is fast enough beats it with a probability of {SURE} or more."
    return f"Take trial {trial.number}, {what}. {_taken(member)}"
