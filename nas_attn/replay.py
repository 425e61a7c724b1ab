"""Replays searches against a table, without training: how much of what can be reached a sampler reaches, after how many trials.

The measure is the hypervolume of the *true* values of the returned front as a share of that of the whole table. What a search returns is
the front of what it observed, noise and all; with a model it is what the model's posterior recommends among the rows that were observed.

Every run is an Optuna study in memory. A proposal that is no row of the table, or was seen before, costs nothing: it is told as FAIL and
asked for again, and after `TRIES` of them an unseen row is drawn at random, as `sampler.Mirror` does in a real search. When invalid
proposals are charged, every ask is a trial: one without a row is told as infeasible, and a row seen before is measured once more. (Told as
FAIL, multivariate TPE spent 95 of 150 trials on YOLOBench's invalid combinations instead of 40: Optuna's samplers forget failed trials.)
"""

import math
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from threadpoolctl import threadpool_limits

from nas_attn import guide, pareto, sampler
from nas_attn.candidates import Candidates
from nas_attn.errors import InputError, nearest
from nas_attn.posterior import recommend_rows
from nas_attn.replay_rules import Rules, make_rules
from nas_attn.sampler import TRIES
from nas_attn.table import Lookup, Table

Maker = Callable[[int], BaseSampler]
Floats = NDArray[np.float64]
Job = tuple[str, int]
"""A sampler's name and the number of a repeat."""

MODEL = "model"
RETURNED = ("observed", MODEL)
"""What a run returns: the front of what was observed, or what the posterior recommends. `random+model`: drawn at random, then modelled."""
SHARES = (0.9, 0.95, 0.99)
"""Shares of the maximum for which the trials that reach them are counted."""
LARGEST_PRODUCT = 200_000
"""Combinations, invalid ones included, that a model is given when invalid proposals are charged."""
_CONSTRAINT = "has no row"
_NOISE, _FILL = 1, 2  # streams of random numbers: a seed sequence takes missing numbers for zeros, so that lengths alone do not part them


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One search: its T trials in order, and the share reached at every point of the grid."""

    rows: tuple[int, ...]
    """(T,): the row of every trial; -1 where its combination had none."""
    observed: Floats
    """(T, M): what was seen; NaN in trials without a row."""
    shares: tuple[float, ...]
    returned: tuple[int, ...]
    """The rows of the front returned after the last trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """All runs of a replay: by sampler, one a repeat."""

    rules: Rules
    runs: Mapping[str, tuple[Run, ...]]

    def shares(self, name: str) -> Floats:
        """(repeats, grid): the share of the maximum hypervolume."""
        return np.array([run.shares for run in self.runs[name]])

    def summary(self) -> dict[str, Any]:
        """`settings`, and under `samplers` every sampler's curve with its 5th and 95th percentile over the repeats."""
        return {"settings": self.rules.settings(), "samplers": {name: self._summary(name) for name in self.runs}}

    def _summary(self, name: str) -> dict[str, Any]:
        shares, runs = self.shares(name), self.runs[name]
        low, median, high = np.quantile(shares, (0.05, 0.5, 0.95), axis=0)
        invalid = [run.rows.count(-1) for run in runs]
        again = [len(run.rows) - run.rows.count(-1) - len({*run.rows} - {-1}) for run in runs]
        return {
            "trials": list(self.rules.grid),
            "hypervolume_share": {"median": median.tolist(), "low": low.tolist(), "high": high.tolist()},
            "trials_to_reach": {str(share): _trials_to_reach(shares, self.rules.grid, share) for share in SHARES},
            "charged": {"invalid": float(np.median(invalid)), "duplicates": float(np.median(again))},
        }


def replay(
    table: Table,
    samplers: Sequence[str],
    *,
    trials: int,
    repeats: int = 20,
    noise: float | Mapping[str, float] = 0.0,
    known: Sequence[str] = (),
    reference: Mapping[str, float | str] | None = None,
    seed: int = 0,
    charge_invalid: bool = False,
    every: int = 10,
    workers: int = 1,
    makers: Mapping[str, Maker] | None = None,
    on_run: Callable[[int, int], None] | None = None,
) -> Replay:
    """Runs every sampler `repeats` times. Equal seeds give equal runs, whatever the number of workers.

    Repeat k of every sampler meets the same noise: that of a row depends on the seed, k and how often the row was seen alone.

    Args:
        samplers: `model`, `tpe`, `nsga2`, `random` or one of `makers`; `+model` or `+observed` behind it says what is returned.
        noise: standard deviation, in the objective's unit: one number for all maximized objectives that are not known, or by name.
        known: objectives that a model may read before a trial; they carry no noise.
        reference: the worst point that counts, by objective: numbers, or `p90` for a percentile of the table. Default: the table's worst.
        every: the returned front is judged after every so many trials and after the last.
        workers: processes; more than one need a main module that can be imported.
        makers: further samplers by name, made from a seed; they must be picklable for several workers.
        on_run: called with the runs done and the runs in all.

    Raises:
        InputError: an unknown sampler, objective or percentile, a number out of range.
    """
    rules = make_rules(table, trials, repeats, noise, known, reference or {}, seed, charge_invalid, every)
    named = {name: _maker(name, makers or {}) for name in samplers}
    if not named or workers < 1:
        raise InputError(f"A replay needs a sampler and a worker, but got {list(samplers)} and {workers} workers.")
    if charge_invalid and any(MODEL in name.split("+") for name in named) and table.combinations > LARGEST_PRODUCT:
        raise InputError(
            f"A model can be charged for invalid combinations among at most {LARGEST_PRODUCT:,} in all, but the genes have "
            f"{table.combinations:,}; leave out --charge-invalid."
        )
    jobs = [(name, repeat) for repeat in range(repeats) for name in named]
    done: dict[Job, Run] = {}
    for job, run in _runs(rules, named, jobs, workers):
        done[job] = run
        if on_run is not None:
            on_run(len(done), len(jobs))
    return Replay(rules=rules, runs={name: tuple(done[name, repeat] for repeat in range(repeats)) for name in named})


def _runs(rules: Rules, makers: Mapping[str, Maker | None], jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Run]]:
    """Pairs of a job and its run, as they finish."""
    if min(workers, len(jobs)) == 1:
        yield from ((job, search(rules, job[0], makers[job[0]], job[1])) for job in jobs)
        return
    # Spawned: a fork of a process that has threads may hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(search, rules, name, makers[name], repeat): (name, repeat) for name, repeat in jobs}
        try:
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


# -- one run ------------------------------------------------------------------------------------------------------------------------


def search(rules: Rules, name: str, maker: Maker | None, repeat: int) -> Run:
    """One run of one sampler; without a maker, of the model's."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # One thread, in whatever process: matrices are small, workers have a core each, and sums of several threads differ in their last bits.
    with threadpool_limits(limits=1):
        return _search(rules, name, maker, repeat)


def _search(rules: Rules, name: str, maker: Maker | None, repeat: int) -> Run:
    space = None if MODEL not in name.split("+") else _candidates(rules)
    seed = rules.seeds[repeat]
    made = maker(seed) if maker is not None else _model(rules, seed)
    # The model remembers failed trials, and has no use for constraints.
    state = _Search(rules, made, repeat, constrained=maker is not None)
    returned_by_model = name.endswith(f"+{MODEL}") or name == MODEL
    shares: list[float] = []
    returned: tuple[int, ...] = ()
    for number in range(1, rules.trials + 1):
        state.charged() if rules.charge_invalid else state.unseen()
        if number in rules.grid:
            returned = _recommended(rules, space, state, seed) if returned_by_model and space else _observed_front(rules, state)
            shares.append(rules.share(returned))
    observed = np.array([[math.nan] * len(rules.table.directions) if v is None else v for v in state.values])
    return Run(rows=tuple(state.rows), observed=observed, shares=tuple(shares), returned=returned)


class _Search:
    """A study in the making, and what has been seen of the table."""

    def __init__(self, rules: Rules, made: BaseSampler, repeat: int, *, constrained: bool) -> None:
        self.rows: list[int] = []
        self.values: list[list[float] | None] = []
        self._rules, self._repeat, self._constrained = rules, repeat, constrained
        self._table, self._lookup, self._points = rules.table, Lookup(rules.table), rules.table.points()
        self._deviations = np.array([rules.noise.get(name, 0.0) for name in rules.table.directions])
        self._times_seen = np.zeros(len(rules.table), dtype=np.int64)
        self._fill = np.random.default_rng((_FILL, rules.seed, repeat))
        self._distributions: dict[str, BaseDistribution] = {n: CategoricalDistribution(c) for n, c in rules.table.genes.items()}
        directions = [StudyDirection[way.upper()] for way in rules.table.directions.values()]
        self._study = optuna.create_study(directions=directions, sampler=made)

    def unseen(self) -> None:
        """One trial of an unseen row: the first that the sampler proposes, or one drawn at random."""
        attributes: dict[str, Any] = {}
        for _ in range(TRIES):
            trial = self._study.ask(self._distributions)
            row = self._lookup.row(trial.params)
            if row is not None and not self._times_seen[row]:
                self._study.tell(trial, self._measure(row))
                return
            attributes = dict(self._study.get_trials(deepcopy=False)[-1].system_attrs)
            self._study.tell(trial, state=TrialState.FAIL)
        row = int(self._fill.choice(np.flatnonzero(self._times_seen == 0)))
        # With the last proposal's attributes: NSGA-II counts the trial into its generation by them.
        self._study.add_trial(
            create_trial(
                values=self._measure(row), params=self._table.params(row), distributions=self._distributions, system_attrs=attributes
            )
        )

    def charged(self) -> None:
        """One trial of whatever the sampler proposes."""
        trial = self._study.ask(self._distributions)
        row = self._lookup.row(trial.params)
        if self._constrained:
            trial.set_constraint(_CONSTRAINT, float(row is None))
        if row is not None:
            self._study.tell(trial, self._measure(row))
            return
        self.rows.append(-1)
        self.values.append(None)
        if self._constrained:
            self._study.tell(trial, [0.0] * len(self._deviations))  # which no sampler reads beside a violated constraint
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def seen(self) -> tuple[list[int], Floats]:
        """The rows of the trials that had one, and (n, M) what was observed."""
        kept = [(row, values) for row, values in zip(self.rows, self.values, strict=True) if values is not None]
        return [row for row, _ in kept], np.array([values for _, values in kept]).reshape(len(kept), len(self._deviations))

    def _measure(self, row: int) -> list[float]:
        key = (_NOISE, self._rules.seed, self._repeat, row, int(self._times_seen[row]))
        normal = np.random.default_rng(key).standard_normal(len(self._deviations))
        values: list[float] = (self._points[row] + self._deviations * normal).tolist()
        self._times_seen[row] += 1
        self.rows.append(row)
        self.values.append(values)
        return values


def _observed_front(rules: Rules, state: _Search) -> tuple[int, ...]:
    rows, values = state.seen()
    directions = list(rules.table.directions.values())
    return tuple(dict.fromkeys(rows[i] for i in pareto.front(values.tolist(), directions)))


def _recommended(rules: Rules, space: Candidates, state: _Search, seed: int) -> tuple[int, ...]:
    rows, values = state.seen()
    if not rows:
        return ()
    # Where invalid combinations are charged, the candidates are all combinations in order.
    places = rules.table.places()[rows].tolist() if rules.charge_invalid else rows
    chosen = recommend_rows(space, rules.table.directions, places, values, noise=_told_noise(rules), seed=seed)
    return tuple(dict.fromkeys(rows[i] for i in chosen))


def _candidates(rules: Rules) -> Candidates:
    table = rules.table
    if not rules.charge_invalid:
        known = {name: table.values[name] for name in rules.known}
        return Candidates(
            genes=table.genes,
            codes=table.codes,
            known=known,
            reference=rules.told,
            covariances=table.covariances,
            features=table.features,
        )
    # Which combinations are valid is what charging hides, and with it everything that only valid ones have.
    codes = np.indices([len(choices) for choices in table.genes.values()], dtype=np.int16).reshape(len(table.genes), -1).T
    return Candidates(genes=table.genes, codes=np.ascontiguousarray(codes), reference=rules.told, covariances=table.covariances)


def _model(rules: Rules, seed: int) -> BaseSampler:
    return guide.ModelSampler(_candidates(rules), rules.table.directions, seed, noise=_told_noise(rules))


def _told_noise(rules: Rules) -> float | None:
    """The noise as a search knows it from repeats of its base, if there is any, and one objective alone has it."""
    deviations = [deviation for deviation in rules.noise.values() if deviation > 0]
    return deviations[0] if len(deviations) == 1 else None


def _maker(name: str, makers: Mapping[str, Maker]) -> Maker | None:
    """The maker behind `NAME` or `NAME+RETURNED`; None for the model's, which needs the table as well."""
    base, _, returned = name.partition("+")
    available = {**sampler.SAMPLERS, **makers}
    if returned not in ("", *RETURNED) or base not in {*available, MODEL}:
        raise InputError(
            f"A sampler is written NAME or NAME+RETURNED with RETURNED one of {', '.join(RETURNED)}, but got {name!r}. "
            f"{nearest(base, {*available, MODEL})}"
        )
    return None if base == MODEL else available[base]


def _trials_to_reach(shares: Floats, grid: Sequence[int], share: float) -> dict[str, float | None]:
    """After how many trials of the grid the share was first reached: None where the percentile's run never did."""
    first = [next((n for n, s in zip(grid, row, strict=True) if s >= share), math.inf) for row in shares]
    # A run of the sample, no interpolation: half-way to "never" is no number.
    found = {
        "median": float(np.quantile(first, 0.5, method="higher")),
        "low": float(np.quantile(first, 0.05, method="lower")),
        "high": float(np.quantile(first, 0.95, method="higher")),
    }
    return {k: v if math.isfinite(v) else None for k, v in found.items()} | {"repeats_reached": float(np.mean(np.isfinite(first)))}
