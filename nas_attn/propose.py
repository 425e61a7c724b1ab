"""Which candidate to try next: the one that a model of everything tried so far expects to add most hypervolume to the front.

Objectives that are known before a trial (latency, size) are taken as known, so that only accuracy is modelled and every candidate is
ranked. In short: surrogates of what is unknown -> fast draws over all candidates -> a short list -> joint draws of the short list and of
what was tried -> expected improvement over each draw's own front. Trials under way count as tried, with their draws for results.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from nas_attn import acquire
from nas_attn.candidates import Candidates, Codes, Floats, enough_to_begin, keys, least_tried
from nas_attn.pareto import SIGNS, front, layers
from nas_attn.surrogate import FOREST_ASKED, Observations, Surrogate
from nas_attn.validity import validity
from nas_attn.variances import QUICK, THOROUGH, Effort

STARTERS = 256
"""Before a model is asked, the one with what was tried least is taken of so many random ones."""
SCREENS, SHORT, PER_SCREEN = 6, 400, 50
DRAWS, SETTINGS = 48, 2
KEPT_TRIED = 120
MOST_OBSERVATIONS = 500
MOST_SEEN = 2000
"""Trials from which the chance to be valid is learned; of more, as many at random."""
ROUND = 32
"""Candidates that are chosen on the same joint draws, which tell fewer of them apart the more have been chosen."""
MARGIN = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What is known: `codes` (n, G) of what was observed, with `values` (n, O) in the order of the objectives, `seeds` of each (-1: its
    own); `pending` (p, G) is under way; `excluded` (e, G) shall not be proposed either. `noise` as in `Observations`.
    """

    codes: Codes
    values: Floats
    seeds: NDArray[np.int64]
    pending: Codes
    excluded: Codes
    noise: float | None = None


class Belief:
    """Everything that is believed about all candidates in all objectives, as points that are minimized."""

    def __init__(self, candidates: Candidates, objectives: Mapping[str, str], tried: Tried, seed: int, effort: Effort = QUICK) -> None:
        self.candidates, self.names = candidates, tuple(objectives)
        self.signs = np.array([SIGNS[direction] for direction in objectives.values()])
        self.keys = keys(candidates.codes)
        self._order = np.argsort(self.keys)
        found, kept = self.locate(tried.codes)
        self.tried = np.unique(found)
        self.pending = np.setdiff1d(self.locate(tried.pending)[0], self.tried)
        self.surrogates = {
            column: Surrogate(
                candidates,
                Observations(
                    rows=found,
                    values=-self.signs[column] * tried.values[kept, column],  # a surrogate takes larger values for better
                    seeds=tried.seeds[kept],
                    noise=tried.noise,
                ),
                seed + column,
                effort,
            )
            for column, name in enumerate(self.names)
            if name not in candidates.known
        }

    def locate(self, codes: Codes) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The rows among the candidates of those `codes` that are among them, and which those are."""
        if not len(codes):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        wanted = keys(codes)
        at = np.searchsorted(self.keys[self._order], wanted)
        rows = self._order[np.minimum(at, len(self.keys) - 1)]
        kept = self.keys[rows] == wanted
        return rows[kept].astype(np.int64), kept

    def means(self, rows: NDArray[np.int64], settings: int | None = None) -> Floats:
        """Expected points (len(rows), O)."""
        return np.asarray(self._points({column: model.mean(rows, settings)[None] for column, model in self.surrogates.items()}, rows)[0])

    def draws(self, rows: NDArray[np.int64], count: int, rng: np.random.Generator, settings: int | None = None) -> Floats:
        """Joint draws (count, len(rows), O) of points."""
        return self._points({column: model.draws(rows, count, rng, settings) for column, model in self.surrogates.items()}, rows)

    def screens(self, count: int, rng: np.random.Generator) -> Floats:
        """Fast draws (count, N, O) of all candidates."""
        return self._points({c: m.screen(count, rng) for c, m in self.surrogates.items()}, np.arange(len(self.keys)))

    def forests(self, rows: NDArray[np.int64]) -> Floats:
        """What the forests predict (1, len(rows), O)."""
        return self._points({column: model.forest(rows)[None] for column, model in self.surrogates.items()}, rows)

    @cached_property
    def expected(self) -> Floats:
        """Expected points of what was tried, by the likeliest settings: what steers the search, where claims take all of them."""
        return self.means(self.tried, SETTINGS)

    def reference(self) -> Floats:
        """The hypervolume's reference as a minimized point: what was given; else a tenth beyond the worst of the expected front, and for
        known objectives what all but a twentieth of the candidates keep.
        """
        expected = self.expected
        members = expected[list(front(expected.tolist(), ("minimize",) * len(self.names)))]
        worst, best = members.max(axis=0), members.min(axis=0)
        spread = np.where(worst > best, worst - best, np.ptp(expected, axis=0))
        reference = worst + MARGIN * np.where(spread > 0, spread, 1e-9)
        for column, name in enumerate(self.names):
            if name in self.candidates.reference:
                reference[column] = self.signs[column] * self.candidates.reference[name]
            elif name in self.candidates.known:
                reference[column] = max(reference[column], float(np.quantile(self.signs[column] * self.candidates.known[name], 0.95)))
        return np.asarray(reference)

    def _points(self, unknown: Mapping[int, Floats], rows: NDArray[np.int64]) -> Floats:
        count = len(next(iter(unknown.values()))) if unknown else 1
        points = np.empty((count, len(rows), len(self.names)))
        for column, name in enumerate(self.names):
            points[:, :, column] = -unknown[column] if column in unknown else self.signs[column] * self.candidates.known[name][rows]
        return points


def propose(candidates: Candidates, objectives: Mapping[str, str], tried: Tried, seed: int) -> int | None:
    """The row of the candidate to try next, or None when all were tried. The same arguments give the same answer."""
    rows = propose_many(candidates, objectives, tried, seed, 1)
    return rows[0] if rows else None


def propose_many(candidates: Candidates, objectives: Mapping[str, str], tried: Tried, seed: int, count: int) -> list[int]:
    """The rows of `count` candidates to try at once, the best first; fewer where no more are left. One of one is `propose`.

    One model for all of them. In rounds of `ROUND` new joint draws are made; within a round each candidate is the one that adds most to
    the draws' fronts after those before it, which count as tried with their draws for results (greedy, as in arXiv 2105.08195).
    """
    rng = np.random.default_rng(seed)
    gone = np.isin(keys(candidates.codes), keys(np.concatenate([tried.codes, tried.pending, tried.excluded])))
    fresh = np.flatnonzero(~gone)
    if not len(fresh):
        return []
    if len(fresh) == 1 or not enough_to_begin(candidates.genes, tried.codes):
        return _starters(candidates, fresh, tried, rng, count)
    belief = Belief(candidates, objectives, _thinned(tried, objectives, rng), seed)
    reference = belief.reference()
    rows: list[int] = []
    while len(rows) < count and len(fresh):
        found = _round(belief, fresh, tried, reference, rng, seed + len(rows), min(ROUND, count - len(rows)))
        rows += found
        belief.pending = np.union1d(belief.pending, found)
        fresh = np.setdiff1d(fresh, found)
    return rows


def _starters(candidates: Candidates, fresh: NDArray[np.int64], tried: Tried, rng: np.random.Generator, count: int) -> list[int]:
    """What was tried least of some random ones, one after the other: before there is a model."""
    rows: list[int] = []
    seen = np.concatenate([tried.codes, tried.pending])
    while len(rows) < count and len(fresh):
        some = rng.choice(fresh, min(STARTERS, len(fresh)), replace=False)
        row = int(some[least_tried(candidates.codes[some], seen)])
        seen, fresh = np.concatenate([seen, candidates.codes[[row]]]), fresh[fresh != row]
        rows.append(row)
    return rows


def _round(
    belief: Belief, fresh: NDArray[np.int64], tried: Tried, reference: Floats, rng: np.random.Generator, seed: int, count: int
) -> list[int]:
    """At most `count` of the `fresh` rows, chosen on the same joint draws."""
    codes, failed = belief.candidates.codes, np.unique(tried.excluded, axis=0)
    listed = _chances(codes[fresh], tried, failed, seed) if len(fresh) <= FOREST_ASKED else np.ones(len(fresh))
    short = _short_list(belief, fresh, listed, reference, rng)
    chance = _chances(codes[short], tried, failed, seed)
    held = _relevant(belief)
    drawn = belief.draws(np.concatenate([short, held]), DRAWS, rng, SETTINGS)
    own, known, rows = drawn[:, : len(short)], drawn[:, len(short) :], list[int]()
    left = np.ones(len(short), dtype=bool)
    for _ in range(min(count, len(short))):
        gains = np.where(left, chance, 0.0) * acquire.improvement(own, known, reference).mean(axis=0)
        if gains.max() <= 0:
            # Nothing is expected to improve on anything: look where the least is known of what is nearly good.
            gains = np.where(left, chance, -1.0) * own.std(axis=0).sum(axis=1)
        best = int(np.argmax(gains))
        left[best] = False
        known = np.concatenate([known, own[:, [best]]], axis=1)
        rows.append(int(short[best]))
    return rows


def _thinned(tried: Tried, objectives: Mapping[str, str], rng: np.random.Generator) -> Tried:
    """At most `MOST_OBSERVATIONS` observations, for a model's cost is cubic: half by layers of fronts from the best on, half at random."""
    count = len(tried.codes)
    if count <= MOST_OBSERVATIONS:
        return tried
    best = chain.from_iterable(layers(tried.values.tolist(), tuple(objectives.values())))
    kept = list(islice(best, MOST_OBSERVATIONS // 2))
    others = rng.choice(np.setdiff1d(np.arange(count), kept), MOST_OBSERVATIONS - len(kept), replace=False)
    chosen = np.sort(np.concatenate([kept, others]).astype(np.int64))
    return replace(tried, codes=tried.codes[chosen], values=tried.values[chosen], seeds=tried.seeds[chosen])


def _chances(codes: Codes, tried: Tried, failed: Codes, seed: int) -> Floats:
    valid = np.unique(tried.codes, axis=0)
    if len(failed) and len(valid) + len(failed) > MOST_SEEN:
        rng = np.random.default_rng(seed)
        share = MOST_SEEN / (len(valid) + len(failed))
        valid, failed = (some[rng.random(len(some)) < share] for some in (valid, failed))
    return validity(codes, valid, failed, seed)


def _short_list(belief: Belief, fresh: NDArray[np.int64], chance: Floats, reference: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most `SHORT` candidates: the best of each fast draw, the best of their mean, and the best by the forests, gains weighted by the
    chance of each candidate to be valid.
    """
    if len(fresh) <= SHORT:
        return fresh
    held = np.concatenate([belief.tried, belief.pending])
    drawn = belief.screens(SCREENS, rng)
    gains = chance * acquire.improvement(drawn[:, fresh], drawn[:, held], reference)
    chosen = [np.argsort(-gain, kind="stable")[:PER_SCREEN] for gain in (*gains, gains.mean(axis=0))]
    pool = np.arange(len(fresh)) if len(fresh) <= FOREST_ASKED else np.sort(rng.choice(len(fresh), FOREST_ASKED, replace=False))
    by_forest = chance[pool] * acquire.improvement(belief.forests(fresh[pool]), belief.means(held, SETTINGS)[None], reference)[0]
    chosen.append(pool[np.argsort(-by_forest, kind="stable")[:PER_SCREEN]])
    return np.asarray(fresh[np.unique(np.concatenate(chosen))])


def _relevant(belief: Belief) -> NDArray[np.int64]:
    """What was tried or is under way and may lie on the front; of many, those nearest to it."""
    if len(belief.tried) <= KEPT_TRIED:
        return np.concatenate([belief.tried, belief.pending])
    points = belief.expected
    scaled = points / np.where(np.ptp(points, axis=0) > 0, np.ptp(points, axis=0), 1.0)
    # How far each point would have to move, in its best direction, before nothing dominates it any more.
    depth = np.array([np.max(np.min(point - scaled, axis=1)) for point in scaled])
    return np.concatenate([belief.tried[np.argsort(depth, kind="stable")[:KEPT_TRIED]], belief.pending])


def recommended(candidates: Candidates, objectives: Mapping[str, str], tried: Tried, seed: int) -> NDArray[np.int64]:
    """The rows of those tried candidates that are expected to be non-dominated: by posterior means, never by observations."""
    belief = Belief(candidates, objectives, tried, seed, THOROUGH)
    points = belief.means(belief.tried)
    return np.asarray(belief.tried[list(front(points.tolist(), ("minimize",) * len(belief.names)))])
