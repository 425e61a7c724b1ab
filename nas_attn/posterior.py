"""What a study's trials together say: the recommended front, how sure each of its members is, and what to train again.

All measured trials, every seed of each, go through one model (`nas_attn.surrogate`); the base is a member like any other. Fewer than
`LEAST` architectures are too few for a model of what their parts do: then there is no posterior, and only observations are shown.
"""

import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nas_attn.architecture import Placement
from nas_attn.candidates import Candidates, Floats, Sites, features_of
from nas_attn.claim import SURE, Claim, claims, worth_repeating
from nas_attn.facts import base_trial, fastest_first, scores, sigma
from nas_attn.guide import SCORES, observations, tried_of
from nas_attn.outcome import Snapshot, Trial
from nas_attn.pareto import layers
from nas_attn.propose import Tried, recommended

LEAST = 8
MOST = 1000
"""Trials of which anything is claimed: the cost of joint draws is cubic in them. See `_bounded`."""
POWER = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A measured trial with what is claimed of it; `gain` and its interval are in mAP50-95 against the base.

    `expected` says that it is non-dominated by posterior means, `sure` that it is the base or beats it with probability `claim.SURE`.
    """

    trial: Trial
    claim: Claim
    expected: bool
    sure: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """What is believed of a study: every measured trial, by latency, and the smallest gains that it could have seen.

    `detectable` is the gain in mAP50-95 from which one architecture with the median number of seeds is told from the base (it beats the
    base with probability `claim.SURE`, in four of five such studies) by its own trainings alone; `detectable_placement` that of one
    placement's effect, from all trials that hold it; None where there is no noise to go by.
    """

    members: tuple[Member, ...]
    sigma: float | None
    detectable: float | None
    detectable_placement: float | None

    @property
    def front(self) -> tuple[Member, ...]:
        """The recommended front: expected to be non-dominated, by latency."""
        return tuple(member for member in self.members if member.expected)

    def of(self, trial: Trial) -> Member | None:
        """What is believed of one trial."""
        return next((member for member in self.members if member.trial.number == trial.number), None)


def believe(snapshot: Snapshot, seed: int = 0) -> Posterior | None:
    """The posterior of a study, the same for the same record; None below `LEAST` measured architectures, or without a measured base."""
    model = modelled(snapshot)
    if model is None:
        return None
    trials, _, candidates, tried = model
    base = base_trial(snapshot)
    at = next(row for row, trial in enumerate(trials) if base is not None and trial.number == base.number)
    found = claims(candidates, snapshot.objectives, tried, at, seed)
    members = [_member(trials[claim.row], claim, at) for claim in found if trials[claim.row].kind == "measured"]
    noise = sigma(snapshot)
    return Posterior(
        members=tuple(sorted(members, key=lambda member: fastest_first(member.trial))),
        sigma=noise,
        detectable=_detectable(snapshot, noise),
        detectable_placement=_detectable_placement(snapshot, noise),
    )


def next_repeat(snapshot: Snapshot, pending: Mapping[int, set[int]], seed: int = 0) -> tuple[int, int] | None:
    """The trial, and its next seed, one more training of which settles most; None when every decision is made.

    `pending` holds the seeds of each trial that are under way. While there is no model, the base is repeated.
    """
    base = base_trial(snapshot)
    model = modelled(snapshot)
    if base is None or base.kind != "measured":
        return None
    if model is None:
        return base.number, _free_seed(base, pending)
    trials, _, candidates, tried = model
    rows = {trial.number: row for row, trial in enumerate(trials)}
    running = [rows[number] for number, seeds in pending.items() if number in rows for _ in seeds]
    stopped = [row for row, trial in enumerate(trials) if trial.kind != "measured"]
    row = worth_repeating(candidates, snapshot.objectives, tried, rows[base.number], running, seed, barred=stopped)
    return None if row is None else (trials[row].number, _free_seed(trials[row], pending))


def recommend_rows(
    candidates: Candidates, objectives: Mapping[str, str], rows: Sequence[int], values: Floats, *, noise: float | None, seed: int
) -> tuple[int, ...]:
    """Positions within `rows` of those observed candidates that are expected to be non-dominated; `values` (n, O) are observations."""
    at = np.asarray(rows, dtype=np.int64)
    none = np.zeros((0, candidates.codes.shape[1]), dtype=np.int16)
    seeds = np.full(len(at), -1, dtype=np.int64)
    tried = Tried(codes=candidates.codes[at], values=values, seeds=seeds, pending=none, excluded=none, noise=noise)
    chosen = set(recommended(candidates, objectives, tried, seed).tolist())
    return tuple(position for position, row in enumerate(at.tolist()) if row in chosen)


def modelled(snapshot: Snapshot) -> tuple[list[Trial], Sites, Candidates, Tried] | None:
    """The trials that say something, as candidates in the order of their numbers, and what they say; None where `believe` is."""
    ordered = sorted(snapshot.trials, key=lambda t: t.number)
    rises: dict[tuple[str, int], float] = {}
    base = base_trial(snapshot)
    told = [t for t in ordered if t.cost is not None and observations(t, snapshot.trials, snapshot.objectives, rises)]
    trials = _bounded(told, base, snapshot.objectives)
    measured = [trial for trial in trials if trial.kind == "measured"]
    if len(measured) < LEAST or base is None or base not in measured or not set(SCORES) & set(snapshot.objectives):
        return None
    sites = sites_within([trial.architecture.placements for trial in trials])
    codes = np.array([sites.code(trial.architecture) for trial in trials], dtype=np.int16)
    known = {
        name: np.array([trial.cost.metrics()[name] for trial in trials if trial.cost is not None])
        for name in snapshot.objectives
        if name not in SCORES
    }
    candidates = Candidates(
        genes=sites.genes(), codes=codes, known=known, covariances=sites.covariances(), features=features_of(sites, codes)
    )
    tried = tried_of(trials, sites, snapshot.objectives)
    return trials, sites, candidates, replace(tried, pending=codes[:0], excluded=codes[:0])


def _bounded(trials: Sequence[Trial], base: Trial | None, objectives: Mapping[str, str]) -> list[Trial]:
    """At most `MOST` trials: the base, half by layers of fronts from the best on, half at random of the rest, of which no more is said."""
    if len(trials) <= MOST:
        return list(trials)
    done = [trial for trial in trials if trial.kind == "measured" and trial.values]
    points = [[(trial.values or {})[name] for name in objectives] for trial in done]
    best = itertools.islice(itertools.chain.from_iterable(layers(points, list(objectives.values()))), MOST // 2)
    kept = {done[i].number for i in best} | ({base.number} if base is not None else set())
    others = [trial.number for trial in trials if trial.number not in kept]
    kept |= set(random.Random(len(trials)).sample(others, MOST - len(kept)))
    return [trial for trial in trials if trial.number in kept]


def sites_within(placed: Sequence[Sequence[Placement]]) -> Sites:
    """The sites and options that occur in some architectures."""
    options: dict[int, dict[Placement, None]] = {}
    for placements in placed:
        for placement in placements:
            options.setdefault(placement.layer, {})[placement] = None
    rows = sorted(options) or [0]
    return Sites(tuple(rows), tuple(tuple(sorted(options.get(row, ()), key=str)) for row in rows))


def _member(trial: Trial, claim: Claim, base: int) -> Member:
    return Member(trial=trial, claim=claim, expected=claim.expected, sure=claim.row == base or claim.beats_base >= SURE)


def _free_seed(trial: Trial, pending: Mapping[int, set[int]]) -> int:
    taken = {job.seed for job, _ in trial.results if job.epochs is None} | pending.get(trial.number, set())
    return next(seed for seed in range(len(taken) + 1) if seed not in taken)


def _detectable(snapshot: Snapshot, noise: float | None) -> float | None:
    base, counts = base_trial(snapshot), [len(scores(t)) for t in snapshot.trials if t.architecture.placements and t.kind == "measured"]
    if not noise or base is None or not counts:
        return None
    return _needed(noise * math.sqrt(1 / statistics.median(counts) + 1 / len(scores(base))))


def _detectable_placement(snapshot: Snapshot, noise: float | None) -> float | None:
    done = [trial for trial in snapshot.trials if trial.kind == "measured"]
    held: dict[Placement, int] = {}
    for trial in done:
        for placement in trial.architecture.placements:
            held[placement] = held.get(placement, 0) + len(scores(trial))
    total = sum(len(scores(trial)) for trial in done)
    if not noise or not held:
        return None
    count = statistics.median(held.values())
    return _needed(noise * math.sqrt(1 / count + 1 / (total - count))) if total > count else None


def _needed(deviation: float) -> float:
    normal = statistics.NormalDist()
    return (normal.inv_cdf(SURE) + normal.inv_cdf(POWER)) * deviation
