"""A study's snapshot as rows of tables: one a trial, one a member of the front, one a member of the recommended front.

`ABOUT` says what each column of trials.csv holds. A cell is empty where a trial has no such value: what failed is never a number.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nas_attn import facts, pareto
from nas_attn.architecture import Architecture
from nas_attn.outcome import Failure, Rejected, Snapshot, Stopped, Trial
from nas_attn.posterior import Posterior

Row = dict[str, Any]
"""One trial's line in the tables, by column."""
ABOUT: Mapping[str, str] = {
    "number": "the trial's number; 0 is the base",
    "state": "Optuna's: COMPLETE, PRUNED (rejected or stopped), FAIL, RUNNING",
    "kind": "measured, rejected (by a limit, before any training), stopped (at a rung), failure, running",
    "digest": "the architecture's fingerprint, which names its folder under trials/",
    "architecture": "as JSON: the base and its placements, each with row, module and hyperparameters",
    "map50_95": "mAP50-95 (0 to 1) on the search's validation images, mean over seeds",
    "latency_ratio": "latency over the base's, median of pairs timed in the same minute",
    "latency_ms": "latency of one forward pass, ms",
    "params_m": "parameters, millions",
    "gmacs": "multiply-accumulates of one image, giga",
    "map50": "mAP50 (0 to 1), mean over seeds",
    "latency_low": "lower end of the 95 % interval of latency_ratio",
    "latency_high": "upper end of it",
    "latency_quality": "gated: the base ran as it does when the machine is quiet; ungated: no such moment came",
    "gain": "map50_95 less the base's, mean over the seeds that both ran",
    "gain_sigmas": "gain in standard deviations of the base's seeds",
    "gain_to_mean": "map50_95 less the mean of all the base's seeds",
    "seeds": "finished trainings behind map50_95",
    "gate_movement": "mean |gate| of the inserted modules at the end; 0: none has left the identity",
    "train_seconds": "seconds of one training, mean over seeds",
    "activation_mib": "peak memory of activations of one image, MiB",
    "error": "why there is no score",
}
COLUMNS = tuple(ABOUT)
RECOMMENDED: Mapping[str, str] = {
    "number": "the trial's number; 0 is the base",
    "digest": "the architecture's fingerprint",
    "architecture": "as JSON, as in trials.csv",
    "map50_95": "the mAP50-95 that the model of all trials expects",
    "map50_95_low": "lower end of its 90 % interval",
    "map50_95_high": "upper end of it",
    "latency_ratio": "latency over the base's",
    "latency_ms": "latency of one forward pass, ms",
    "params_m": "parameters, millions",
    "gmacs": "multiply-accumulates of one image, giga",
    "gain": "expected mAP50-95 less the base's",
    "gain_low": "lower end of its 90 % interval",
    "gain_high": "upper end of it",
    "p_non_dominated": "probability that no other measured architecture dominates it",
    "p_beats_base": "probability that its mAP50-95 is above the base's; empty for the base",
    "recommended": "True: the base, or beats it with a probability of 0.98 or more",
    "observed_map50_95": "mAP50-95 as observed, mean over seeds",
    "seeds": "finished trainings behind that",
}
"""What each column of recommended.csv holds."""


def table(snapshot: Snapshot) -> list[Row]:
    """One row a trial, by number, with the keys `COLUMNS`; None where a trial has no such value.

    `map50_95` and `map50` are means over seeds, `train_seconds` that of one training, `gate_movement` the mean |gate| over inserted rows
    and seeds, `gain_sigmas` is in units of the base's seeds' standard deviation, `latency_low` and `latency_high` bound the ratio.
    """
    return [_row(snapshot, t) for t in sorted(snapshot.trials, key=lambda t: t.number)]


def front_table(snapshot: Snapshot) -> list[Row]:
    """The rows of the front's members, by latency."""
    return [_row(snapshot, t) for t in facts.front_trials(snapshot)]


def recommended_table(believed: Posterior | None) -> list[Row]:
    """One row a member of the recommended front, by latency, with the keys `RECOMMENDED`.

    `map50_95` and `gain` over the base are expected, with 90 % intervals; probabilities: dominated by nothing, better than the
    base. `recommended`: the member is the base, or beats it with probability `claim.SURE`.
    """
    rows = []
    for member in believed.front if believed else ():
        trial, claim = member.trial, member.claim
        is_base = not trial.architecture.placements
        values = (
            trial.number, trial.architecture.digest(), trial.architecture.to_json(), claim.mean, claim.low, claim.high,
            *(facts.metric(trial, name) for name in ("latency_ratio", "latency_ms", "params_m", "gmacs")),
            claim.gain, claim.gain_low, claim.gain_high, claim.non_dominated, None if is_base else claim.beats_base, member.sure,
            facts.metric(trial, "map50_95"), len(facts.measured(trial)),
        )  # fmt: skip
        rows.append(dict(zip(RECOMMENDED, values, strict=True)))
    return rows


def _row(snapshot: Snapshot, trial: Trial) -> Row:
    cost, gain = trial.cost, facts.gain(snapshot, trial)
    done = [outcome for _, outcome in facts.measured(trial)]
    moved = gates(trial)
    latency = cost.latency if cost else None
    values = (
        trial.number, trial.state, trial.kind or "running", trial.architecture.digest(), trial.architecture.to_json(),
        facts.metric(trial, "map50_95"), *(facts.metric(trial, name) for name in ("latency_ratio", "latency_ms", "params_m", "gmacs")),
        _mean(o.map50 for o in done), latency and latency.low, latency and latency.high, latency and latency.quality,
        gain, facts.in_sigmas(snapshot, gain), facts.gain_to_mean(snapshot, trial), len(done), _mean(moved.values()),
        _mean(o.train_seconds for o in done), cost and cost.activation_mib, why(trial),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def gates(trial: Trial) -> dict[str, float]:
    """The mean |gate| at the end of the proxy, by inserted row of the base, mean over seeds."""
    seen: dict[str, list[float]] = {}
    for _, outcome in facts.measured(trial):
        for row, value in outcome.gates.items():
            seen.setdefault(row, []).append(value)
    return {row: statistics.fmean(seen[row]) for row in sorted(seen, key=lambda r: (len(r), r))}


def why(trial: Trial) -> str | None:
    """Why a trial has no score; None for one that has, or that still runs."""
    outcome = trial.verdict or next((o for _, o in trial.results if isinstance(o, Failure)), None)
    match outcome:
        case Rejected():
            return f"{outcome.limit} {outcome.value:.4g} is over the limit {outcome.bound:.4g}"
        case Stopped():
            return f"stopped at rung {outcome.rung}"
        case Failure():
            return f"{outcome.stage}: {outcome.error}"
    return None


def _mean(values: Any) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def short(architecture: Architecture) -> str:
    """`LSKA@4 + LIA@16`: modules and rows without hyperparameters."""
    return " + ".join(f"{p.module}@{p.layer}" for p in architecture.placements) or "base"


def in_plane(rows: Sequence[Row]) -> list[Row]:
    """The measured rows that have both a score and a latency."""
    return [r for r in rows if r["kind"] == "measured" and r["map50_95"] is not None and r["latency_ratio"] is not None]


def plane_front(members: Sequence[Row]) -> list[Row]:
    """The members that form the front in the plane of mAP and latency: all of them, unless the study has a third objective."""
    points = [(r["map50_95"], r["latency_ratio"]) for r in members]
    return [members[i] for i in pareto.front(points, ("maximize", "minimize"))] if points else []
