"""The sampler that models accuracy: for studies of architectures, and as an Optuna sampler for any table of candidates.

Nothing is remembered between two asks but what the study itself holds, so that a resumed search goes on as if it had never stopped.
"""

import random
import statistics
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from nas_attn.architecture import Architecture
from nas_attn.candidates import (
    Candidates,
    Codes,
    Floats,
    Sites,
    codes_of_space,
    enough_to_begin,
    features_of,
    keys,
    least_tried,
    sampled,
    sites_of,
)
from nas_attn.errors import InputError
from nas_attn.facts import measured
from nas_attn.outcome import Stopped, Trial
from nas_attn.pareto import layers
from nas_attn.propose import Tried, propose, propose_many
from nas_attn.space import SearchSpace
from nas_attn.surrogate import additive

SCORES = ("map50_95", "map50")
"""Objectives that only a training tells; all others are costs, known before."""
STARTERS = 64
GENERATIONS = 20
LEADERS = 24


class ModelSampler(BaseSampler):
    """Proposes the candidate that a model of all COMPLETE trials expects to add most hypervolume; RUNNING trials count as tried.

    `objectives` names the study's directions in their order; `noise` is the standard deviation of one observation, if it is known. No
    candidate is proposed that any trial of the study has had, whatever became of it.

    Raises:
        InputError: on an ask, when every candidate has been tried.
    """

    def __init__(self, candidates: Candidates, objectives: Mapping[str, str], seed: int, *, noise: float | None = None) -> None:
        self._candidates, self._objectives, self._seed, self._noise = candidates, dict(objectives), seed, noise
        self._positions = [{value: code for code, value in enumerate(choices)} for choices in candidates.genes.values()]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """One categorical parameter a gene."""
        return {name: CategoricalDistribution(choices) for name, choices in self._candidates.genes.items()}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:  # noqa: ARG002
        """The choices of one candidate that was not tried before."""
        others = [
            t for t in study.get_trials(deepcopy=False) if t.number != trial.number and self._candidates.genes.keys() <= t.params.keys()
        ]
        row = propose(self._candidates, self._objectives, self._tried(others), self._seed + 7919 * trial.number)
        if row is None:
            raise InputError(f"A proposal needs a candidate that was not tried, but all {len(self._candidates.codes)} were; stop here.")
        codes = self._candidates.codes[row]
        return {name: choices[code] for (name, choices), code in zip(self._candidates.genes.items(), codes.tolist(), strict=True)}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:  # noqa: ARG002
        """A parameter that is no gene of the candidates has no model.

        Raises:
            InputError: always.
        """
        raise InputError(f"Every parameter must be a gene of the candidates, but {param_name!r} is none of {list(self._candidates.genes)}.")

    def _tried(self, trials: Sequence[FrozenTrial]) -> Tried:
        done = [t for t in trials if t.state == TrialState.COMPLETE]
        running = [t for t in trials if t.state == TrialState.RUNNING]
        other = [t for t in trials if t.state not in (TrialState.COMPLETE, TrialState.RUNNING)]
        return Tried(
            codes=self._codes(done),
            values=np.array([t.values for t in done], dtype=float).reshape(len(done), len(self._objectives)),
            seeds=np.full(len(done), -1),
            pending=self._codes(running),
            excluded=self._codes(other),
            noise=self._noise,
        )

    def _codes(self, trials: Sequence[FrozenTrial]) -> Codes:
        names = list(self._candidates.genes)
        rows = [[positions[t.params[name]] for name, positions in zip(names, self._positions, strict=True)] for t in trials]
        return np.array(rows, dtype=np.int16).reshape(len(trials), len(names))


# -- studies of architectures --------------------------------------------------------------------------------------------------------------


def choose(
    space: SearchSpace,
    objectives: Mapping[str, str],
    limits: Mapping[str, float],
    trials: Collection[Trial],
    seen: Collection[str],
    seed: int,
) -> Architecture | None:
    """The architecture to try next, whose digest is not among `seen`; None where the model knows no other.

    Costs of candidates are the base's plus what the placements of measured trials have cost; what is expected to break a limit is left out.
    """
    found = choose_many(space, objectives, limits, trials, seen, [seed])
    return found[0] if found else None


def choose_many(
    space: SearchSpace,
    objectives: Mapping[str, str],
    limits: Mapping[str, float],
    trials: Collection[Trial],
    seen: Collection[str],
    seeds: Sequence[int],
) -> list[Architecture]:
    """An architecture a seed, to be tried at once, by one model: `choose` for one; fewer where the model knows no other.

    The model has the first seed. While there is none, each is chosen as if those before it had been asked already.
    """
    sites = sites_of(space)
    rises: dict[tuple[str, int], float] = {}
    observed = sites.codes(trial.architecture for trial in trials if observations(trial, trials, objectives, rises))
    if not enough_to_begin(sites.genes(), observed):
        return _starters(space, sites, [trial.architecture for trial in trials], seen, seeds)
    seed = seeds[0]
    codes = _all_codes(space, sites, trials, objectives, seed)
    known = costs(codes, sites, trials, {*objectives, *limits} - set(SCORES))
    kept = np.ones(len(codes), dtype=bool)
    for name, bound in limits.items():
        kept &= known[name] <= bound
    tried = tried_of(trials, sites, objectives)
    kept |= np.isin(keys(codes), keys(np.concatenate([tried.codes, tried.pending, tried.excluded])))
    candidates = Candidates(
        genes=sites.genes(),
        codes=codes[kept],
        known={name: known[name][kept] for name in objectives if name in known},
        covariances=sites.covariances(),
        features=features_of(sites, codes[kept], space.sites),
    )
    rows = propose_many(candidates, objectives, tried, seed, len(seeds))
    found = [sites.architecture(space.base, candidates.codes[row]) for row in rows]
    return [architecture for architecture in found if architecture.digest() not in seen]


def observations(
    trial: Trial, trials: Collection[Trial], objectives: Mapping[str, str], rises: dict[tuple[str, int], float] | None = None
) -> dict[int, dict[str, float]]:
    """What the trainings of a trial say of the scores among the objectives, by seed: at the highest rung; for a stopped trial what it had
    shown plus what others rose from there to the end. Who asks for many trials of one study gives `rises` to be kept between them.
    """
    names = [name for name in objectives if name in SCORES]
    if isinstance(trial.verdict, Stopped):
        shown = trial.verdict.curve[-1] if trial.verdict.curve else None
        if shown is None:
            return {}
        epochs, rises = len(trial.verdict.curve), {} if rises is None else rises
        for name in names:
            if (name, epochs) not in rises:
                rises[name, epochs] = _rise(trials, name, epochs)
        return {0: {name: shown[name] + rises[name, epochs] for name in names}}
    if trial.kind not in ("measured", "rejected"):  # a rejected one was trained if a limit on another backend let it be
        return {}
    return {job.seed: {name: getattr(outcome, name) for name in names} for job, outcome in measured(trial)}


def _rise(trials: Collection[Trial], name: str, epochs: int) -> float:
    """By how much finished trainings rose, on average, from that many epochs to their end."""
    rises = [
        getattr(outcome, name) - outcome.curve[epochs - 1][name]
        for trial in trials
        if trial.kind == "measured"
        for _, outcome in measured(trial)
        if len(outcome.curve) > epochs and name in outcome.curve[epochs - 1]
    ]
    return statistics.fmean(rises) if rises else 0.0


def tried_of(trials: Collection[Trial], sites: Sites, objectives: Mapping[str, str]) -> Tried:
    """The trials of a study as a model sees them: one observation a seed. Rejected and failed ones are excluded from proposals."""
    codes: list[list[int]] = []
    values: list[list[float]] = []
    seeds: list[int] = []
    pending: list[list[int]] = []
    rises: dict[tuple[str, int], float] = {}
    excluded: list[list[int]] = []
    for trial in trials:
        code = sites.code(trial.architecture)
        if trial.kind is None:
            pending.append(code)
            continue
        found = observations(trial, trials, objectives, rises)
        known = trial.cost.metrics() if trial.cost else {}
        for seed, scores in found.items():
            codes.append(code)
            values.append([scores[name] if name in scores else known[name] for name in objectives])
            seeds.append(seed)
        if not found:
            excluded.append(code)
    width = len(sites.rows)
    return Tried(
        codes=np.array(codes, dtype=np.int16).reshape(-1, width),
        values=np.array(values, dtype=float).reshape(-1, len(objectives)),
        seeds=np.array(seeds, dtype=np.int64),
        pending=np.array(pending, dtype=np.int16).reshape(-1, width),
        excluded=np.array(excluded, dtype=np.int16).reshape(-1, width),
    )


def costs(codes: Codes, sites: Sites, trials: Collection[Trial], names: Collection[str]) -> dict[str, Floats]:
    """Each cost of each candidate: as measured where it was, else the base's plus the sum of what its placements are expected to add."""
    timed = [(trial, trial.cost) for trial in trials if trial.cost is not None]
    order = {key: row for row, key in enumerate(keys(codes).tolist())}
    own = keys(sites.codes(trial.architecture for trial, _ in timed)).tolist()
    pairs = [(order[key], cost) for key, (_, cost) in zip(own, timed, strict=True) if key in order]
    rows = np.array([row for row, _ in pairs], dtype=np.int64)
    found = {}
    for name in sorted(names):
        values = np.array([cost.metrics()[name] for _, cost in pairs])
        found[name] = additive(codes, sites.covariances(), rows, values)
        found[name][rows] = values
    return found


def _starter(space: SearchSpace, sites: Sites, tried: Sequence[Architecture], seen: Collection[str], seed: int) -> Architecture | None:
    """One of the first trials, before there is a model: of a random number of placements, and of those what was tried least."""
    drawn = sampled(space, STARTERS * GENERATIONS, seed)
    for rows in (drawn[:STARTERS], drawn):
        fresh = [row for row in rows if sites.architecture(space.base, row).digest() not in seen]
        if fresh:
            size = np.count_nonzero(random.Random(seed).choice(fresh))
            alike = np.array([row for row in fresh if np.count_nonzero(row) == size])
            return sites.architecture(space.base, alike[least_tried(alike, sites.codes(tried))])
    return None


def _starters(
    space: SearchSpace, sites: Sites, tried: Sequence[Architecture], seen: Collection[str], seeds: Sequence[int]
) -> list[Architecture]:
    """One a seed, each with those before it among what was tried; none twice."""
    found: list[Architecture] = []
    for seed in seeds:
        gone = {*seen, *(architecture.digest() for architecture in found)} if found else seen
        starter = _starter(space, sites, [*tried, *found], gone, seed)
        if starter is None:
            break
        found.append(starter)
    return found


def _all_codes(space: SearchSpace, sites: Sites, trials: Collection[Trial], objectives: Mapping[str, str], seed: int) -> Codes:
    """The candidates: of the space, about what looks good so far, and what was tried."""
    own = sites.codes(trial.architecture for trial in trials)
    return np.unique(np.concatenate([codes_of_space(space, seed, _leaders(trials, objectives)), own]), axis=0)


def _leaders(trials: Collection[Trial], objectives: Mapping[str, str]) -> tuple[Architecture, ...]:
    """The architectures of the observed front and of the fronts behind it, `LEADERS` at most: noise puts what is good there as well."""
    done = [trial for trial in trials if trial.kind == "measured" and trial.values and set(objectives) <= set(trial.values)]
    points = [[(trial.values or {})[name] for name in objectives] for trial in done]
    return tuple(done[i].architecture for i in islice(chain.from_iterable(layers(points, list(objectives.values()))), LEADERS))
