"""How large each part of a model of accuracy is: a prior of the parts' variances, and settings of them weighted by what was observed.

Variances are in units of the variance of the observed values. A setting is the variance of each part and, last, the weight of a forest's
predictions; the posterior is a set of settings with weights, by importance sampling: draws from the prior, then rounds of draws about the
likely ones.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.special import logsumexp, ndtri
from scipy.stats import qmc

Floats = NDArray[np.float64]

SIGNALS = ("main", "pair", "joint", "own")
PARTS = (*SIGNALS, "seed", "noise")
FOREST = len(PARTS)
"""Where a setting holds the forest's weight."""
# Medians and spreads of the logarithms of variances, and of the logarithm of the odds of the forest's weight. A landscape without noise
# must be a possible belief. The seed's is in units of the noise, and hardly anything is said of it beforehand: the placement benchmark
# (results/placebench-figures-*) shows 1.4 (0.4 to 5) times as much luck by seed as without, one task of many. Base seeds that scatter more
# than candidates do about the model tell it.
PRIOR: Mapping[str, tuple[float, float]] = {
    "main": (0.35, 1.5),
    "pair": (0.06, 1.5),
    "joint": (0.03, 2.0),
    "own": (0.04, 1.5),
    "seed": (0.1, 2.5),
    "noise": (0.15, 2.0),
    "forest": (0.4, 1.5),
}
NULL_SHIFT = -4.0
"""Of the logarithm of every signal's variance and of the forest's odds, where next to nothing matters."""
KNOWN_NOISE_SPREAD = 0.1
"""Of the logarithm of a variance that was told."""
NEAR, CENTRES = 0.35, 16
"""Settings near likely ones are drawn about so many of them, with this share of the prior's spread."""
JITTER = 1e-8
_SEED, _NOISE = PARTS.index("seed"), PARTS.index("noise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How many settings are drawn from the prior, in how many rounds how many near likely ones, and how many of all are kept.

    `null` is the prior probability that next to nothing of what is searched matters.
    """

    broad: int
    rounds: int
    near: int
    kept: int
    null: float


QUICK = Effort(broad=64, rounds=1, near=24, kept=16, null=0.05)
"""What steers a search: the next ask corrects it, and who believes that nothing matters does not look for what does."""
THOROUGH = Effort(broad=256, rounds=3, near=128, kept=64, null=0.25)
"""What is claimed: most published gains of attention do not reproduce."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Logarithms of all parts' variances and of the forest's odds: normal with `spread` about `centre`, or with `weight` about `null`."""

    centre: Floats
    null: Floats
    spread: Floats
    weight: float

    @classmethod
    def of(cls, absent: Collection[str], noise: float | None, weight: float) -> "Prior":
        """The prior of a model without some of the parts; `noise` is the variance of one observation, luck by seed included."""
        names = (*PARTS, "forest")
        centre = np.log([PRIOR[name][0] for name in names])
        spread = np.array([PRIOR[name][1] for name in names])
        if noise is not None:
            split = 1.0 if "seed" in absent else 1.0 + PRIOR["seed"][0]
            centre[_NOISE], spread[_NOISE] = np.log(max(noise / split, JITTER)), KNOWN_NOISE_SPREAD
        gone = np.array([name in absent for name in names])
        centre, spread = np.where(gone, np.log(JITTER), centre), np.where(gone, 1e-3, spread)
        null = centre + np.array([NULL_SHIFT if name in (*SIGNALS, "forest") and name not in absent else 0.0 for name in names])
        return cls(centre=centre, null=null, spread=spread, weight=weight)

    def draw(self, count: int, rng: np.random.Generator) -> Floats:
        """(count, parts + 1), evenly spread over the prior."""
        drawn = qmc.Sobol(len(self.centre) + 1, seed=rng).random(count)
        normal = ndtri(np.clip(drawn[:, :-1], 1e-6, 1 - 1e-6))
        return np.asarray(np.where(drawn[:, -1:] < self.weight, self.null, self.centre) + self.spread * normal)

    def log_density(self, points: Floats) -> Floats:
        """(n,), up to what all points share."""
        some, none = _log_normal(points, self.centre, self.spread), _log_normal(points, self.null, self.spread)
        return np.asarray(np.logaddexp(np.log(1 - self.weight) + some, np.log(self.weight) + none))


def posterior(
    prior: Prior, kernels: Floats, targets: Floats, forest: Floats, effort: Effort, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Settings (k, parts + 1) and their weights (k,), the likeliest first, after `targets` (n,).

    `kernels` (parts, n, n) are the covariances that the parts would have at variance one, `forest` (n,) predictions without the target.

    All draws are weighted as if they came from the mixture of everything they were drawn from, which keeps the weighted sum a posterior.
    """
    points = prior.draw(effort.broad, rng)
    evidence = _evidences(kernels, points, targets, forest)
    rounds: list[Floats] = []
    while True:
        density = prior.log_density(points)
        near = [logsumexp(_log_normal(points[:, None], c, NEAR * prior.spread), axis=1) + np.log(effort.near / CENTRES) for c in rounds]
        score = evidence + density - logsumexp([density + np.log(effort.broad), *near], axis=0)
        weights = np.exp(score - score.max())
        if len(rounds) == effort.rounds:
            order = np.argsort(-score, kind="stable")[: effort.kept]
            return _settings(points[order]), weights[order] / weights[order].sum()
        centres = points[rng.choice(len(points), CENTRES, p=weights / weights.sum())]
        steps = NEAR * prior.spread * rng.standard_normal((effort.near, points.shape[1]))
        fresh = centres[rng.integers(CENTRES, size=effort.near)] + steps
        points, evidence = np.concatenate([points, fresh]), np.concatenate([evidence, _evidences(kernels, fresh, targets, forest)])
        rounds.append(centres)


def _settings(points: Floats) -> Floats:
    """The variances behind logarithms, of which the seed's is in units of the noise, and the weight behind its odds."""
    found = np.exp(points)
    found[:, _SEED] *= found[:, _NOISE]
    found[:, FOREST] /= 1.0 + found[:, FOREST]
    return np.asarray(found)


def _evidences(kernels: Floats, points: Floats, targets: Floats, forest: Floats) -> Floats:
    found = _settings(points)
    return np.array([_evidence(np.tensordot(one[:FOREST], kernels, 1), targets - one[FOREST] * forest) for one in found])


def _evidence(covariance: Floats, targets: Floats) -> float:
    """The logarithm of the marginal likelihood, the level integrated out."""
    try:
        lower = cholesky(covariance + JITTER * np.eye(len(targets)), lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return -1e12
    solved = solve_triangular(lower, np.stack([targets, np.ones(len(targets))], axis=1), lower=True, check_finite=False)
    total = solved[:, 1] @ solved[:, 1]
    level = (solved[:, 1] @ solved[:, 0]) / total
    errors = solved[:, 0] - level * solved[:, 1]
    return float(-0.5 * errors @ errors - np.sum(np.log(np.diag(lower))) - 0.5 * np.log(total))


def _log_normal(points: Floats, centre: Floats, spread: Floats) -> Floats:
    """The logarithm of a product of normal densities over the last axis, up to what all points share."""
    return np.asarray(np.sum(-0.5 * ((points - centre) / spread) ** 2 - np.log(spread), axis=-1))
