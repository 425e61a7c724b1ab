"""What a reader must know before believing a study's answer: every reason for which it may be worth less than it looks."""

from collections.abc import Iterator

from nas_attn import facts
from nas_attn.answer import NOISY, points
from nas_attn.columns import gates
from nas_attn.outcome import Snapshot
from nas_attn.posterior import LEAST, Posterior

MOVED = 1e-3
"""Mean |gate| below which a module has hardly left the identity."""
MANY_FAILED = 0.2
FEW_SEEDS = 3


def caveats(snapshot: Snapshot, believed: Posterior | None) -> tuple[str, ...]:
    """One sentence each, what weighs most first; empty where there is nothing to warn of."""
    if not any(trial.kind == "measured" for trial in snapshot.trials):
        return tuple(_of_trials(snapshot))
    return (
        *_of_model(snapshot, believed),
        *_of_reach(believed),
        *_of_noise(snapshot),
        *_of_proxy(snapshot),
        *_of_latency(snapshot),
        *_of_trials(snapshot),
    )


def _of_model(snapshot: Snapshot, believed: Posterior | None) -> Iterator[str]:
    if believed is None:
        count = sum(trial.kind == "measured" for trial in snapshot.trials)
        yield (
            f"There is no model of all trials yet ({count} measured architecture{'s' * (count != 1)}; it takes {LEAST}, the base among "
            "them): only observations can be shown, and the best of them is partly luck."
        )


def _of_reach(believed: Posterior | None) -> Iterator[str]:
    if believed is not None and believed.detectable is not None and believed.detectable > NOISY:
        least = points(believed.detectable, sign=False)
        yield (
            f"By its own trainings an architecture would be told from the base only from {least} points of mAP50-95 on. "
            "Where the intervals are narrower than that, they rest on what the model learns from all trials together."
        )


def _of_noise(snapshot: Snapshot) -> Iterator[str]:
    base, noise = facts.base_trial(snapshot), facts.sigma(snapshot)
    seeds = len(facts.scores(base)) if base else 0
    if noise is None:
        yield "The noise of one training is not known, because the base was not trained with two seeds: no gain can be told from chance."
    elif noise == 0:
        yield "All seeds of the base gave the very same score: seeds that change nothing measure no noise; check that they reach it."
    elif seeds < FEW_SEEDS:
        yield f"The noise comes from {seeds} seeds of the base, so it may be wrong by a factor of two."


def _of_proxy(snapshot: Snapshot) -> Iterator[str]:
    controls = facts.controls(snapshot)
    blind = [control.label for control in controls if control.separated is False]
    if not controls:
        yield "No positive control was run, so it is not shown that this short training can tell a better change from a worse one."
    elif blind:
        yield f"The short training did not tell a known change from the base ({', '.join(blind)}): small gains mean little."
    moved = [sum(found.values()) / len(found) for trial in snapshot.trials if (found := gates(trial))]
    still = sum(value < MOVED for value in moved)
    if still:
        yield f"In {still} of {len(moved)} trials the modules hardly moved (mean |gate| below {MOVED}): their scores are the base's."
    if any(job.recipe.score_on == "val" for trial in snapshot.trials for job, _ in trial.results):
        yield "The search scored on your own validation split, so that split can no longer judge its winner without bias."
    codes = sorted({job.recipe.code for trial in snapshot.trials for job, _ in trial.results})
    if len(codes) > 1:
        yield f"Trials were trained by {len(codes)} versions of the code ({'; '.join(codes)}): their scores may not compare."


def _of_latency(snapshot: Snapshot) -> Iterator[str]:
    timed = [trial.cost.latency for trial in snapshot.trials if trial.cost is not None and trial.architecture.placements]
    ungated = sum(latency.quality == "ungated" for latency in timed)
    if ungated:
        yield f"{ungated} of {len(timed)} candidates were timed without a quiet moment: read them with their intervals (crossed marks)."


def _of_trials(snapshot: Snapshot) -> Iterator[str]:
    ended = [trial for trial in snapshot.trials if trial.state != "RUNNING"]
    failed = sum(trial.kind == "failure" for trial in ended)
    if failed > MANY_FAILED * max(len(ended), 1):
        yield f"{failed} of {len(ended)} trials failed; the reasons stand below."
    running = len(snapshot.trials) - len(ended)
    if running:
        yield f"{running} trial{'s were' if running > 1 else ' was'} still running when this was written."
