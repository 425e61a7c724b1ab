"""Statistics of paired trainings: two arms that ran the same seeds, so that the luck of a seed is taken out of their difference.

Differences are taken seed by seed and treated as independent draws from a normal distribution (Student's t). With few seeds nothing weaker
can say anything: the least two-sided p of a sign test on five pairs is 0.06.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import optimize, stats

from nas_attn.errors import InputError

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One arm less another over the `n` seeds that both ran.

    `mean` and `sd` of the differences; `low`, `high` the confidence interval of the mean; `p` of "no difference", two-sided; `better` the
    probability that with a new seed the first arm scores above the second (predictive, 0.5 is a coin); `wins` of the `n` seeds it did.
    Where `n` is one, all but `mean` and `wins` are None.
    """

    n: int
    mean: float
    wins: int
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    better: float | None = None

    @property
    def sure(self) -> int:
        """1 if the whole interval is above zero, -1 if it is below, else 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def compare(ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = 1 - ALPHA) -> Contrast | None:
    """The paired contrast of two arms, each a score by seed; None where no seed is common.

    Rule: mean ± t(1 - alpha/2, n - 1) · sd / √n; `better` = T(mean / (sd · √(1 + 1/n)), n - 1), the predictive distribution of one more
    difference under a flat prior.

    Raises:
        InputError: a confidence outside 0..1.
    """
    if not 0 < confidence < 1:
        raise InputError(f"`0 < confidence < 1` must hold, but got {confidence}; 0.95 is usual.")
    values = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not values:
        return None
    n, mean, wins = len(values), statistics.fmean(values), sum(value > 0 for value in values)
    if n == 1:
        return Contrast(n=n, mean=mean, wins=wins)
    sd = statistics.stdev(values)
    error = sd / math.sqrt(n)
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    if sd == 0:
        certain = 0.5 if mean == 0 else float(mean > 0)
        return Contrast(n=n, mean=mean, wins=wins, sd=sd, low=mean, high=mean, p=float(mean == 0), better=certain)
    return Contrast(
        n=n,
        mean=mean,
        wins=wins,
        sd=sd,
        low=mean - reach,
        high=mean + reach,
        p=float(2 * stats.t.sf(abs(mean) / error, n - 1)),
        better=float(stats.t.cdf(mean / (sd * math.sqrt(1 + 1 / n)), n - 1)),
    )


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values adjusted for having looked at all of them (Holm 1979, step-down), in their order.

    Rule: the i-th smallest of m is multiplied by m - i + 1, made no smaller than the one before it, and capped at 1. Rejecting what is
    below alpha then keeps the chance of any false claim at alpha, whatever the tests' dependence.

    Raises:
        InputError: a value outside 0..1.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise InputError(f"Every p-value must lie in 0..1, but got {list(p_values)}.")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return tuple(adjusted)


def pooled_sd(contrasts: Sequence[Contrast]) -> float | None:
    """The spread of a paired difference, from all contrasts together, weighted by degrees of freedom; None where none has two seeds."""
    known = [(c.n - 1, c.sd) for c in contrasts if c.sd is not None]
    freedom = sum(n for n, _ in known)
    return math.sqrt(sum(n * sd**2 for n, sd in known) / freedom) if freedom else None


def smallest_effect(sd: float, n: int, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """The smallest true difference that a two-sided paired t test on `n` seeds finds with probability `power`; None below two seeds.

    Rule: the noncentrality at which the noncentral t exceeds the critical value with that probability, times sd / √n. (That it falls beyond
    the other critical value has a probability of less than 1e-4 there, and is left out.)

    Raises:
        InputError: a negative spread, or a probability outside 0..1.
    """
    if not (sd >= 0 and 0 < power < 1 and 0 < alpha < 1):
        raise InputError(f"`sd >= 0` and `0 < power, alpha < 1` must hold, but got {sd=}, {power=}, {alpha=}.")
    if n < 2:
        return None
    critical = float(stats.t.ppf(1 - alpha / 2, n - 1))
    noncentrality = float(optimize.brentq(lambda nc: stats.nct.sf(critical, n - 1, nc) - power, 0.0, 20.0 * critical))
    return noncentrality * sd / math.sqrt(n)


def seeds_needed(effect: float, sd: float, power: float = POWER, alpha: float = ALPHA) -> int | None:
    """How many paired seeds would find a true difference of `effect` with probability `power`; None for more than `MOST_SEEDS`."""
    low, high = 2, MOST_SEEDS

    def enough(n: int) -> bool:
        return (smallest_effect(sd, n, power, alpha) or 0.0) <= abs(effect)

    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
