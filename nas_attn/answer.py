"""The answer that a study gives, first of all that a report says: which architecture to take, why, and how sure that is."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nas_attn import facts, pick, subject
from nas_attn.architecture import Architecture, Placement
from nas_attn.claim import SURE
from nas_attn.errors import InputError
from nas_attn.network import Network
from nas_attn.outcome import Snapshot, Trial
from nas_attn.posterior import Member, Posterior

PLANE = {"map50_95", "latency_ratio"}
NOISY = 0.03
"""A smallest visible gain in mAP50-95 from which a study is called too noisy: published attention modules claim less."""
MORE_SEEDS = 12
MORE_TRIALS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`take` an architecture, `keep` the base, `early` while only observations are there to go by, `none` where nothing was measured.

    `trial` is what is taken; `shown` what the answer's figures are about: the same, or where the base is kept the other that beats it most
    likely. `command` is what to run next: the export, by the rule that gave the answer, so that its card carries the reason; a check in
    full; or, where a study is too short or too noisy to tell, more of it.
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
    trial, known = choice.trial, of_plane(snapshot, believed)
    take = f"nas-attn export {where} --to winner"
    if known is None:
        headline, command = _early(snapshot, trial, drawing), take
        if set(snapshot.objectives) == PLANE:
            command = subject.again(snapshot, trials=max(MORE_TRIALS, 2 * len(snapshot.trials)))
        return Answer(kind="early", headline=headline, sentence=choice.reason, command=command, trial=trial)
    if trial.architecture.placements:
        member = known.of(trial)
        headline = f"Take {placed(trial.architecture, drawing)}"
        return Answer(kind="take", headline=headline, sentence=_taken(member), command=take, trial=trial, shown=member)
    others = [m for m in known.members if m.trial.architecture.placements]
    best = max(others, key=lambda m: (m.claim.beats_base, m.claim.gain, -m.trial.number), default=None)
    noisy = known.detectable is not None and known.detectable > NOISY
    command = subject.again(snapshot, repeats=subject.option(snapshot, "repeats") + MORE_SEEDS)
    if best is not None and not noisy:
        command = f"nas-attn verify {where} --data {shlex.quote(subject.data(snapshot))} --trial {best.trial.number} --seeds 5"
    headline = "Keep the base for now" if noisy else "Keep the base"
    return Answer(kind="keep", headline=headline, sentence=_kept(known, best, drawing), command=command, trial=trial, shown=best)


def of_plane(snapshot: Snapshot, believed: Posterior | None) -> Posterior | None:
    """What is believed, where probabilities to beat the base decide: in studies of accuracy against latency, not of further objectives."""
    return believed if set(snapshot.objectives) == PLANE else None


def points(gain: float, sign: bool = True) -> str:
    """A difference of mAP50-95 in points, hundredths of it, as papers give it: a true minus, and no sign before nothing."""
    text = f"{100 * gain:z.2f}"
    return f"+{text}" if sign and float(text) > 0 else text.replace("-", "−")


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
        f"It is expected to gain {points(claim.gain)} points of mAP50-95 over the base (90 % {points(claim.gain_low)} to "
        f"{points(claim.gain_high)}), at {ratio:.3f} times its latency, and beats it with a probability of {chance(claim.beats_base)}."
    )


def _kept(believed: Posterior, best: Member | None, drawing: Network) -> str:
    text = f"No architecture beats it with a probability of {SURE} or more."
    if best is not None:
        claim = best.claim
        text += (
            f" The likeliest, trial {best.trial.number} with {placed(best.trial.architecture, drawing)}, is expected to change mAP50-95 by "
            f"{points(claim.gain)} points (90 % {points(claim.gain_low)} to {points(claim.gain_high)}) and beats the base with a "
            f"probability of {chance(claim.beats_base)}."
        )
    if believed.detectable is not None:
        text += f" Gains below {points(believed.detectable, sign=False)} points may have gone unnoticed."
    return text


def steps(ladder: Sequence[pick.Step], snapshot: Snapshot, believed: Posterior | None, drawing: Network) -> list[Mapping[str, object]]:
    """The recommendation for every limit of latency, as plain values: each from its `limit` on, up to the next one's.

    `command` exports it, with the reason, and is empty where the base is kept.
    """
    known = of_plane(snapshot, believed)
    return [
        {
            "limit": step.limit,
            "number": step.choice.trial.number,
            "reason": _within(step.choice, known, drawing),
            "command": _export(snapshot, step) if step.choice.trial.architecture.placements else "",
        }
        for step in ladder
    ]


def _export(snapshot: Snapshot, step: pick.Step) -> str:
    limit = math.ceil(1e6 * step.limit) / 1e6  # upward: the limit holds the trial itself
    return f"nas-attn export {shlex.quote(str(snapshot.folder))} --max-latency-ratio {limit:.6f} --to winner"


def _within(choice: pick.Choice, known: Posterior | None, drawing: Network) -> str:
    """What to take up to a limit, without the limit, which the reader moves."""
    trial = choice.trial
    member = known.of(trial) if known else None
    what, ratio = placed(trial.architecture, drawing), facts.latency(trial)
    if member is None:
        return f"Observed best: trial {trial.number}, {what}, at {ratio:.3f} times the base's latency."
    if not trial.architecture.placements:
        return f"Keep the base: nothing that is fast enough beats it with a probability of {SURE} or more."
    return f"Take trial {trial.number}, {what}. {_taken(member)}"
