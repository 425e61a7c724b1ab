"""A study's trials with other costs, nothing retrained: who is measured, rejected, stopped or failed then, and who cannot be taken over.

Pure functions: a study's trials as they were read and as they are stored, and new costs, give the stored trials of another study. What the
trainings of a trial came to is kept where its new cost hides it (`trained`), so that a third study may bring it back.
"""

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial, create_trial

from nas_attn.errors import StudyError
from nas_attn.jobs import Jobs
from nas_attn.outcome import Cost, Failure, Measured, Outcome, Rejected, Stopped, Trial, kind, outcome_from_dict, outcome_to_dict
from nas_attn.protocol import excess, rejection, words
from nas_attn.record import FINISHED
from nas_attn.stored_trial import REPEATS

TRAINED = "trained"
STATIC = ("build", "transfer", "cost")
"""Stages of failures that no latency changes."""
REPLACED = ("cost", "kind", "verdict", TRAINED)

RUNNING = "had not ended"
UNTRAINED = "was never trained, and can be now"
UNFINISHED = "was stopped beside faster trials, which are not faster now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """The trials of a new study in their order, their new numbers by the old ones, and why the others are left out."""

    templates: tuple[FrozenTrial, ...]
    numbers: Mapping[int, int]
    left_out: Mapping[int, str]


def to_measure(trials: Collection[Trial]) -> list[Trial]:
    """The trials whose fate depends on a new latency: all that have ended, except those that could not even be built."""
    return [trial for trial in trials if trial.verdict is not None and not _static(trial)]


def derive(
    trials: Sequence[Trial],
    stored: Mapping[int, FrozenTrial],
    costs: Mapping[int, Cost | Failure],
    *,
    objectives: Mapping[str, str],
    limits: Mapping[str, float],
    jobs: Jobs,
) -> Derived:
    """The same trials with new costs. `costs` holds what was measured of each one of `to_measure`; of an earlier cost everything but the
    latency stays.

    - What was trained is told as it was, unless it is over a limit now (Rejected; its results stay) or cannot be measured (Failure).
    - What was rejected before and keeps the limits now was never trained: it is left out, so that a search may ask for it.
    - What was stopped in a race stays so if the race stops it with the new costs as well, else it is left out.

    Raises:
        StudyError: the base is not measured any more; without it there is nothing to compare with.
    """
    ended = {trial.number: trial for trial in trials if trial.verdict is not None}
    trained = {number: _trained(trial, stored[number]) for number, trial in ended.items()}
    known = {number: _cost(trial, costs.get(number)) for number, trial in ended.items()}
    verdicts = {number: _verdict(trial, trained[number], costs.get(number), known[number], limits) for number, trial in ended.items()}
    left_out = {trial.number: RUNNING for trial in trials if trial.number not in ended}
    left_out |= {number: UNTRAINED for number, verdict in verdicts.items() if verdict is None}
    left_out |= dict.fromkeys(_unjustified(ended, verdicts, known, jobs), UNFINISHED)
    if not isinstance(verdicts.get(0), Measured):
        raise StudyError(
            f"The base must be measured, but with the new latency: {words(verdicts.get(0))}; choose another backend or device, or begin "
            "a study with other limits."
        )
    kept = [number for number in sorted(ended) if number not in left_out]
    templates = [_template(stored[n], verdicts[n], known[n], trained[n], objectives, limits) for n in kept]
    return Derived(templates=tuple(templates), numbers={old: new for new, old in enumerate(kept)}, left_out=dict(sorted(left_out.items())))


def attributes(theirs: Mapping[str, Any], derived: Derived, settings: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """The new study's attributes, from those of the former: its fit and repeats, under new numbers; `origin` says where they came from."""
    kept = {name: theirs[name] for name in ("objectives", "fit") if name in theirs}
    counts = Counter(derived.left_out.values())
    note = {**origin, "taken": len(derived.templates), "left_out": dict(counts), **_earlier(theirs)}
    return {**kept, **_repeats(theirs, derived), "derived": note, "settings": dict(settings)}


def settings(theirs: Mapping[str, Any], backend: str, device: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a study in which latency is measured so, all else being equal: those that a search in its folder would have."""
    ours = copy.deepcopy(dict(theirs))
    for part in ("spec", "setup"):
        if "latency" in ours.get(part, {}):
            ours[part]["latency"]["backend"] = backend
    if "setup" in ours:
        ours["setup"]["device"] = device
    if "versions" in ours:
        others = {name: told for name, told in ours["versions"].items() if name != "onnxruntime"}
        ours["versions"] = {**others, **{name: told for name, told in versions.items() if name == backend != "torch"}}
    return ours


def _earlier(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {"earlier": theirs["derived"]} if "derived" in theirs else {}


def _repeats(theirs: Mapping[str, Any], derived: Derived) -> dict[str, Any]:
    """Of trials that are not measured any more only the repeats that have ended."""
    moved = {}
    for name, entry in theirs.items():
        number = int(name.removeprefix(REPEATS)) if name.startswith(REPEATS) else -1
        if number in derived.numbers:
            new = derived.numbers[number]
            measured = derived.templates[new].user_attrs["kind"] == "measured"
            done = {result["job"]["seed"] for result in entry.get("results", ())}
            seeds = [seed for seed in entry.get("seeds", ()) if measured or seed in done]
            moved[f"{REPEATS}{new}"] = {**entry, "seeds": seeds}
    return moved


def _static(trial: Trial) -> bool:
    return isinstance(trial.verdict, Failure) and trial.cost is None and trial.verdict.stage in STATIC


def _trained(trial: Trial, stored: FrozenTrial) -> Outcome | None:
    """What the trainings of a trial came to; None where there were none."""
    if TRAINED in stored.user_attrs:
        return outcome_from_dict(stored.user_attrs[TRAINED])
    unmeasured = isinstance(trial.verdict, Failure) and trial.cost is None
    return None if unmeasured or isinstance(trial.verdict, Rejected) else trial.verdict


def _cost(trial: Trial, found: Cost | Failure | None) -> Cost | None:
    if not isinstance(found, Cost):
        return None
    return found if trial.cost is None else replace(trial.cost, latency=found.latency)


def _verdict(
    trial: Trial, trained: Outcome | None, found: Cost | Failure | None, cost: Cost | None, limits: Mapping[str, float]
) -> Outcome | None:
    """What is told of a trial now; None where that would take a training."""
    if _static(trial):
        return trial.verdict
    if cost is None:
        return found if isinstance(found, Failure) else Failure(stage="latency", error="no latency was measured anew")
    return rejection(cost, limits) or trained


def _unjustified(
    ended: Mapping[int, Trial], verdicts: Mapping[int, Outcome | None], costs: Mapping[int, Cost | None], jobs: Jobs
) -> list[int]:
    """The stopped trials that the race would not stop with these costs. Where there was no race, the stop was not about costs."""
    stopped = [number for number, verdict in verdicts.items() if isinstance(verdict, Stopped)]
    if not jobs.races or not stopped:
        return []
    told = {number: verdict for number, verdict in sorted(verdicts.items()) if verdict is not None}
    now = [replace(ended[number], cost=costs[number], kind=kind(verdict)) for number, verdict in told.items()]
    still = jobs.stopped(now, stopped)
    return [number for number in stopped if number not in still]


def _template(
    stored: FrozenTrial,
    verdict: Outcome | None,
    cost: Cost | None,
    trained: Outcome | None,
    objectives: Mapping[str, str],
    limits: Mapping[str, float],
) -> FrozenTrial:
    if verdict is None:
        raise StudyError(f"A trial that is taken over must have an outcome, but trial {stored.number} has none; leave it out.")
    told = {"kind": kind(verdict), "verdict": outcome_to_dict(verdict)}
    told |= {"cost": asdict(cost)} if cost is not None else {}
    told |= {TRAINED: outcome_to_dict(trained)} if trained is not None and trained != verdict else {}
    return create_trial(
        state=FINISHED[kind(verdict)],
        values=_values(verdict, cost, objectives),
        params=dict(stored.params),
        distributions=dict(stored.distributions),
        user_attrs={**{name: value for name, value in stored.user_attrs.items() if name not in REPLACED}, **told},
        system_attrs={name: value for name, value in stored.system_attrs.items() if not name.startswith("constraints")},
        constraints={} if cost is None else excess(cost, limits),
    )


def _values(verdict: Outcome, cost: Cost | None, objectives: Mapping[str, str]) -> list[float] | None:
    if not isinstance(verdict, Measured) or cost is None:
        return None
    metrics = {"map50_95": verdict.map50_95, "map50": verdict.map50, **cost.metrics()}
    return [metrics[name] for name in objectives]
