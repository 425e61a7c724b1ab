"""What is believed about accuracy: a Bayesian model of additive and pairwise effects over all genes, stacked with a random forest.

A Gaussian process in `values` of candidates with four parts, each with a variance of its own:

- main effects: a sum over genes, each choice with the prior covariance that its gene says (`candidates.covariance`);
- pairwise effects: products of two genes' choices;
- what genes do in all orders together, by how many of them two candidates share;
- what is a candidate's own, beyond all of these; noise, and an effect of the seed that trainings with the same seed share.

Beneath it lies a random forest on genes and cheap features, with a weight between 0 and 1 (stacking): out-of-bag predictions where an
answer is known, so that the weight is learned from errors that it makes on what it has not seen. Never less than 0: what is left out of
a mean pulls it the other way, so that among pure noise a negative weight explains nearly all of it.

How large each part is follows from the data: settings drawn from a broad prior are weighted by their marginal likelihood, and every answer
is a mixture over them. Ranking placements is the method of DONNA (arXiv 2012.08859: linear predictors of blocks) and of BANANAS-like search
(arXiv 1910.11858); exact draws over large candidate sets follow Wilson et al. (arXiv 2002.09309).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular

from nas_attn.candidates import Candidates, Codes, Floats
from nas_attn.variances import FOREST, JITTER, PARTS, QUICK, SIGNALS, Effort, Prior, posterior

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestRegressor

FITTED_ON = 160
"""Observations on which the settings are weighted: more cost cubic time and change them little."""
MANY = 1000
"""Costs of more observations are solved for choices instead, which gives the same but for rounding."""
SLACK = 1e-3
TREES = 40
FOREST_FROM = 12
FOREST_ASKED = 12_000
"""Candidates that a forest is asked about in one go, which takes most of an ask's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Answers: `rows` are positions among the candidates, `values` what was seen there, `seeds` the seed of each (-1: one of its own).

    `noise` is the standard deviation of one answer about its candidate's value, where it is known.
    """

    rows: NDArray[np.int64]
    values: Floats
    seeds: NDArray[np.int64]
    noise: float | None = None


@dataclass(frozen=True, slots=True)
class _Scale:
    """Values in units in which the model works: shifted, divided, and pressed together far below the bulk.

    Broken candidates (an accuracy of nothing) say little about which good one is better, and would fill every part's variance.
    """

    centre: float
    unit: float
    floor: float

    @classmethod
    def of(cls, values: Floats) -> "_Scale":
        middle, top = np.quantile(values, [0.5, 0.95])
        floor = middle - 3.0 * (top - middle)
        bulk = values[values >= floor]
        unit = float(np.std(bulk)) if len(bulk) > 1 else 0.0
        return cls(float(np.mean(bulk)), unit or 1.0, (floor - float(np.mean(bulk))) / (unit or 1.0))

    def inward(self, values: Floats) -> Floats:
        scaled = (values - self.centre) / self.unit
        below = np.maximum(self.floor - scaled, 0.0)
        return np.asarray(np.maximum(scaled, self.floor) - np.log1p(below))

    def outward(self, scaled: Floats) -> Floats:
        return scaled * self.unit + self.centre


class Surrogate:
    """The belief after some observations about every one of the candidates; larger values are better."""

    def __init__(self, candidates: Candidates, seen: Observations, seed: int, effort: Effort = QUICK) -> None:
        self.candidates, self.seen, self._rng_seed = candidates, seen, seed
        self._scale = _Scale.of(seen.values)
        self._targets = self._scale.inward(seen.values)
        self._columns = _columns(candidates)
        self._forest, self._oob = self._grow()
        self._predicted = np.full(len(candidates.codes), np.nan)
        self._solutions: dict[bytes, tuple[tuple[Floats, bool], Floats, float]] = {}
        self._settings, self._weights = self._weigh(effort)

    # -- answers -------------------------------------------------------------------------------------------------------------------------

    def mean(self, rows: NDArray[np.int64], settings: int | None = None) -> Floats:
        """The expected values of some candidates; `settings` bounds how many settings, the likeliest first, are asked, for speed."""
        total, weights = np.zeros(len(rows)), self._weights[:settings] / self._weights[:settings].sum()
        for setting, weight in zip(self._settings, weights, strict=False):
            total += weight * self._posterior(setting, rows, with_covariance=False)[0]
        return self._scale.outward(total)

    def draws(self, rows: NDArray[np.int64], count: int, rng: np.random.Generator, settings: int | None = None) -> Floats:
        """Joint draws (count, len(rows)) of the values of some candidates: what is true, without the noise of a training.

        `settings` bounds how many settings the draws are of, for speed.
        """
        weights = self._weights
        if settings is not None:
            chosen = rng.choice(len(weights), size=settings, p=weights)
            weights = np.bincount(chosen, minlength=len(weights)) / settings
        shares = rng.multinomial(count, weights)
        found = []
        for setting, share in zip(self._settings, shares, strict=True):
            if share:
                mean, covariance = self._posterior(setting, rows, with_covariance=True)
                root = _root(covariance)
                found.append(mean + rng.standard_normal((share, len(rows))) @ root.T)
        drawn = np.concatenate(found)
        return self._scale.outward(drawn[rng.permutation(count)])

    def screen(self, count: int, rng: np.random.Generator) -> Floats:
        """Draws (count, N) over *all* candidates of the main and pairwise effects, which is fast for any number of candidates.

        The forest has its part in them where there are at most `FOREST_ASKED`.

        A draw from the prior, corrected by what was seen (Matheron's rule): both are tables over choices, so that a candidate costs one
        look-up a gene and pair of genes.
        """
        setting = self._settings[rng.choice(len(self._settings), p=self._weights)]
        drawn = self._tables(setting, count, rng)
        everyone = np.arange(len(self.candidates.codes))
        if len(everyone) <= FOREST_ASKED:
            drawn = drawn + setting[FOREST] * self._forest_at(everyone)
        return self._scale.outward(drawn)

    def forest(self, rows: NDArray[np.int64]) -> Floats:
        """The random forest's own predictions, or the mean where there are too few observations for a forest."""
        return self._scale.outward(self._forest_at(rows))

    @property
    def shares(self) -> dict[str, float]:
        """The expected variance of each part, in squared units of the values."""
        mean = self._weights @ self._settings
        return {part: float(value) * self._scale.unit**2 for part, value in zip(PARTS, mean[:FOREST], strict=True)}

    # -- parts ---------------------------------------------------------------------------------------------------------------------------

    def _grow(self) -> "tuple[RandomForestRegressor | None, Floats]":
        rows, targets = self.seen.rows, self._targets
        if len(np.unique(rows)) < FOREST_FROM:
            return None, np.zeros(len(rows))
        from sklearn.ensemble import RandomForestRegressor  # here, because it takes seconds to import, and most commands ask for no forest

        forest = RandomForestRegressor(
            TREES, min_samples_leaf=2, max_features=0.5, bootstrap=True, oob_score=True, random_state=self._rng_seed % 2**31, n_jobs=1
        )
        forest.fit(self._columns[rows], targets)
        return forest, np.nan_to_num(np.asarray(forest.oob_prediction_) - targets.mean(), nan=0.0)

    def _forest_at(self, rows: NDArray[np.int64]) -> Floats:
        """The forest's predictions less the mean, each candidate asked once. Trees are asked directly: scikit-learn's own loop checks and
        wraps every one of them, which takes longer than the answers.
        """
        if self._forest is None:
            return np.zeros(len(rows))
        new = rows[np.isnan(self._predicted[rows])]
        if len(new):
            columns = self._columns[new].astype(np.float32)
            total = sum(tree.tree_.predict(columns)[:, 0] for tree in self._forest.estimators_)
            self._predicted[new] = np.asarray(total).reshape(-1) / len(self._forest.estimators_) - self._targets.mean()
        return np.asarray(self._predicted[rows])

    def _weigh(self, effort: Effort) -> tuple[Floats, Floats]:
        """Settings of the parts' variances, and their weights."""
        rng = np.random.default_rng(self._rng_seed)
        used = np.arange(len(self._targets))
        if len(used) > FITTED_ON:
            used = np.sort(rng.choice(used, FITTED_ON, replace=False))
        kernels = self._own_kernels[:, used][:, :, used]
        noise = None if self.seen.noise is None else (self.seen.noise / self._scale.unit) ** 2
        return posterior(Prior.of(self._absent(), noise, effort.null), kernels, self._targets[used], self._oob[used], effort, rng)

    def _absent(self) -> set[str]:
        genes = len(self.candidates.genes)
        absent = {"forest": self._forest is None, "seed": not np.any(self.seen.seeds >= 0), "pair": genes < 2, "joint": genes < 3}
        return {part for part, missing in absent.items() if missing}

    @cached_property
    def _own_kernels(self) -> Floats:
        """(parts, n, n): the kernels of what was observed, with those of its errors."""
        rows, seeds = self.seen.rows, self.seen.seeds
        shared = (seeds[:, None] == seeds[None, :]) & (seeds[:, None] >= 0)
        return np.concatenate([self._kernels(rows, rows), np.stack([shared, np.eye(len(rows))])])

    def _kernels(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> Floats:
        """(signals, n, m): the covariance that each part of the truth would have at variance one."""
        x, z = self.candidates.codes[first], self.candidates.codes[second]
        main, square = np.zeros((len(x), len(z))), np.zeros((len(x), len(z)))
        same = np.zeros((len(x), len(z)))
        for column, covariance in enumerate(self.candidates.covariances):
            term = covariance[np.ix_(x[:, column], z[:, column])]
            main += term
            square += term * term
            same += x[:, column][:, None] == z[:, column][None, :]
        genes = len(self.candidates.genes)
        pair = (main * main - square) / max(genes * (genes - 1), 1)
        return np.stack([main / genes, pair, np.exp(-2.5 * (genes - same) / genes), same == genes])

    def _solved(self, setting: Floats) -> tuple[tuple[Floats, bool], Floats, float]:
        """The factor of the observations' covariance, the weights of the observations, and the level of it all."""
        key = setting.tobytes()
        if key not in self._solutions:
            count, errors = len(self._targets), self._targets - setting[FOREST] * self._oob
            covariance = np.tensordot(setting[:FOREST], self._own_kernels, 1)
            factor = cho_factor(covariance + JITTER * np.eye(count), lower=True)
            ones = cho_solve(factor, np.ones(count))
            level = float(ones @ errors / ones.sum())
            self._solutions[key] = factor, cho_solve(factor, errors - level), level
        return self._solutions[key]

    def _posterior(self, setting: Floats, rows: NDArray[np.int64], *, with_covariance: bool) -> tuple[Floats, Floats]:
        factor, alpha, level = self._solved(setting)
        signals = setting[: len(SIGNALS)]
        cross = np.tensordot(signals, self._kernels(rows, self.seen.rows), 1)
        mean = level + setting[FOREST] * self._forest_or_oob(rows) + cross @ alpha
        if not with_covariance:
            return mean, np.zeros((0, 0))
        prior = np.tensordot(signals, self._kernels(rows, rows), 1)
        half = solve_triangular(factor[0], cross.T, lower=True)
        ones = cho_solve(factor, np.ones(len(self.seen.rows)))
        lift = 1.0 - cross @ ones
        return mean, prior - half.T @ half + np.outer(lift, lift) / ones.sum()  # the level is not known either

    def _forest_or_oob(self, rows: NDArray[np.int64]) -> Floats:
        """The forest as a regressor: what it says without having seen the answer."""
        if self._forest is None:
            return np.zeros(len(rows))
        values = self._forest_at(rows)
        own = dict(zip(self.seen.rows.tolist(), self._oob.tolist(), strict=True))
        return np.array([own.get(row, value) for row, value in zip(rows.tolist(), values.tolist(), strict=True)])

    def _tables(self, setting: Floats, count: int, rng: np.random.Generator) -> Floats:
        codes, genes = self.candidates.codes, len(self.candidates.genes)
        here = codes[self.seen.rows]
        main, pair = setting[0] / genes, 2.0 * setting[1] / max(genes * (genes - 1), 1)
        covariances = self.candidates.covariances
        roots = [_root(covariance) for covariance in covariances]
        mains = [np.sqrt(main) * root @ rng.standard_normal((len(root), count)) for root in roots]
        pairs = {
            (g, h): np.sqrt(pair) * _both(roots[g], rng.standard_normal((len(roots[g]), len(roots[h]), count)), roots[h])
            for g in range(genes)
            for h in range(g + 1, genes)
        }
        factor, _, level = self._solved(setting)
        rest = np.tensordot(setting[2:FOREST], self._own_kernels[2:], 1)
        other = _root(rest + JITTER * np.eye(len(here))) @ rng.standard_normal((len(here), count))
        missed = (self._targets - setting[FOREST] * self._oob - level)[:, None] - _looked_up(here, mains, pairs) - other
        weights = cho_solve(factor, missed)
        for g, table in enumerate(mains):
            table += main * covariances[g] @ _summed(here[:, g], weights, len(table))
        for (g, h), table in pairs.items():
            cells = here[:, g].astype(np.int64) * table.shape[1] + here[:, h]
            summed = _summed(cells, weights, table.shape[0] * table.shape[1]).reshape(table.shape)
            table += pair * _both(covariances[g], summed, covariances[h])
        return level + _looked_up(codes, [t.astype(np.float32) for t in mains], {k: t.astype(np.float32) for k, t in pairs.items()}).T


def additive(codes: Codes, covariances: Sequence[Floats], rows: NDArray[np.int64], values: Floats) -> Floats:
    """What a sum over genes expects for every candidate (N,), from exact or nearly exact `values` at `rows`: for costs.

    The level is what the candidates with the choice of zero variance everywhere (the base) have, where one is among `rows`.
    """
    here = codes[rows]
    nothing = sum(np.diag(covariance)[here[:, g]] for g, covariance in enumerate(covariances)) == 0
    level = float(values[nothing].mean()) if np.any(nothing) else float(values.mean())
    unit = float(np.std(values)) or 1.0
    solve = _by_choices if len(rows) > MANY else _by_observations
    total = np.zeros(len(codes))
    for g, effects in enumerate(solve(here, covariances, (values - level) / unit)):
        total += effects[codes[:, g]]
    return np.asarray(level + unit * total)


def _by_observations(here: Codes, covariances: Sequence[Floats], values: Floats) -> list[Floats]:
    """The effects of each gene's choices, by a system of as many equations as there are observations."""
    kernel = sum(covariance[np.ix_(here[:, g], here[:, g])] for g, covariance in enumerate(covariances))
    weights = np.linalg.solve(kernel + SLACK * np.eye(len(here)), values)
    return [covariance @ np.bincount(here[:, g], weights, minlength=len(covariance)) for g, covariance in enumerate(covariances)]


def _by_choices(here: Codes, covariances: Sequence[Floats], values: Floats) -> list[Floats]:
    """The same effects, by a system of as many equations as all genes have choices: the one for thousands of observations."""
    roots = [_exact_root(covariance) for covariance in covariances]
    columns = np.concatenate([root[here[:, g]] for g, root in enumerate(roots)], axis=1)
    weights = np.linalg.solve(columns.T @ columns + SLACK * np.eye(columns.shape[1]), columns.T @ values)
    ends = np.cumsum([len(root) for root in roots])[:-1]
    return [root @ part for root, part in zip(roots, np.split(weights, ends), strict=True)]


def _both(left: Floats, middle: Floats, right: Floats) -> Floats:
    """left @ middle[..., k] @ right.T for every k."""
    return np.asarray(np.einsum("ab,bck,dc->adk", left, middle, right, optimize=True))


def _summed(cells: NDArray[np.int64] | Codes, weights: Floats, count: int) -> Floats:
    total = np.zeros((count, weights.shape[1]))
    np.add.at(total, cells, weights)
    return total


def _looked_up(codes: Codes, mains: Sequence[Floats], pairs: Mapping[tuple[int, int], Floats]) -> Floats:
    """The sum (N, k) of all tables at the rows' codes."""
    total = np.zeros((len(codes), mains[0].shape[1]), dtype=mains[0].dtype)
    for g, table in enumerate(mains):
        total += table[codes[:, g]]
    for (g, h), table in pairs.items():
        flat = table.reshape(-1, table.shape[2])
        total += flat[codes[:, g].astype(np.int64) * table.shape[1] + codes[:, h]]
    return total


def _root(covariance: Floats) -> Floats:
    """A square root of a covariance that may lack rank."""
    try:
        return np.asarray(cholesky(covariance + JITTER * np.eye(len(covariance)), lower=True, check_finite=False))
    except np.linalg.LinAlgError:
        return _exact_root(covariance)


def _exact_root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0.0, None)))


def _columns(candidates: Candidates) -> Floats:
    """What the forest sees: a gene of numbers as its rank, any other one choice a column; then the features."""
    columns = []
    for g, choices in enumerate(candidates.genes.values()):
        codes = candidates.codes[:, g]
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in choices):
            columns.append(np.argsort(np.argsort(np.array(choices, dtype=float)))[codes][:, None].astype(float))
        else:
            columns.append((codes[:, None] == np.arange(len(choices))[None, :]).astype(float))
    features = candidates.features if candidates.features is not None else np.zeros((len(candidates.codes), 0))
    return np.concatenate([*columns, features], axis=1)
