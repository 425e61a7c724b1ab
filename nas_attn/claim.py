"""What may be claimed of candidates that were tried: expected accuracy with an interval, and how likely it is that they are any good.

Everything comes from joint draws of a model of all observations, so that the luckiest observation of many is shrunk towards what the
other trials say of its parts, and a claim holds after training again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas_attn.candidates import Candidates, Floats
from nas_attn.pareto import front
from nas_attn.propose import Belief, Tried
from nas_attn.variances import THOROUGH

DRAWS = 2000
INTERVAL = 0.90
SURE = 0.98
"""How likely a candidate must be to beat the base before it is recommended in the base's place: two false alarms in a hundred."""
CONTENDER = 0.1
"""How likely a candidate must be non-dominated to be worth another training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One tried candidate. `mean`, `low`, `high`: expected value and 90 % interval of the first unknown objective; `gain...` the same
    against the base, in the direction of better; `non_dominated` and `beats_base` are probabilities.
    """

    row: int
    mean: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    non_dominated: float
    beats_base: float
    expected: bool


def claims(candidates: Candidates, objectives: Mapping[str, str], tried: Tried, base: int, seed: int) -> tuple[Claim, ...]:
    """A claim for every distinct candidate of `tried`, by row; `base` is the base's row among the candidates.

    `expected` says whether the candidate is non-dominated by posterior means: the recommended front.
    """
    belief = Belief(candidates, objectives, tried, seed, THOROUGH)
    rows, column = belief.tried, next(iter(belief.surrogates))
    drawn = belief.draws(rows, DRAWS, np.random.default_rng(seed))
    means = drawn.mean(axis=0)
    directions = ("minimize",) * len(belief.names)
    members = set(front(means.tolist(), directions))
    non_dominated = _non_dominated(drawn)
    better = -drawn[:, :, column]
    gains = better - better[:, [int(np.searchsorted(rows, base))]]
    tail = 100 * (1 - INTERVAL) / 2
    sign = -belief.signs[column]
    found = []
    for i, row in enumerate(rows.tolist()):
        ends = sorted(sign * np.percentile(better[:, i], [tail, 100 - tail]))
        low, high = np.percentile(gains[:, i], [tail, 100 - tail])
        found.append(
            Claim(
                row=row,
                mean=float(sign * better[:, i].mean()),
                low=float(ends[0]),
                high=float(ends[1]),
                gain=float(gains[:, i].mean()),
                gain_low=float(low),
                gain_high=float(high),
                non_dominated=float(non_dominated[i]),
                beats_base=float(np.mean(gains[:, i] > 0)),
                expected=i in members,
            )
        )
    return tuple(found)


def _non_dominated(drawn: Floats) -> NDArray[np.float64]:
    """How often (n,) each of n points is dominated by none, over draws (draws, n, objectives)."""
    count = drawn.shape[1]
    free = np.ones(drawn.shape[:2], dtype=bool)
    for other in range(count):
        rival = drawn[:, other : other + 1]
        free &= ~(np.all(rival <= drawn, axis=2) & np.any(rival < drawn, axis=2))
    return np.asarray(free.mean(axis=0))


def worth_repeating(
    candidates: Candidates,
    objectives: Mapping[str, str],
    tried: Tried,
    base: int,
    pending: Sequence[int],
    seed: int,
    *,
    barred: Sequence[int] = (),
) -> int | None:
    """The row of the contender, or of the base, one more training of which settles most; None when all is settled.

    Open questions are: is this contender on the front, and does it beat the base. A training is worth the variance that it is expected to
    take from the gains of contenders, each weighted by how open its questions are. `pending` rows have a training under way, `barred` ones
    cannot be trained again.
    """
    belief = Belief(candidates, objectives, tried, seed, THOROUGH)
    rows, column = belief.tried, next(iter(belief.surrogates))
    noise = belief.surrogates[column].shares["noise"]
    drawn = belief.draws(rows, DRAWS, np.random.default_rng(seed))
    values = -drawn[:, :, column]
    at = int(np.searchsorted(rows, base))
    gains = values - values[:, [at]]
    on_front, better = _non_dominated(drawn), np.mean(gains > 0, axis=0)
    contender = on_front >= CONTENDER
    contender[at] = False
    wide = np.ptp(np.percentile(gains, [5, 95], axis=0), axis=0) > np.sqrt(noise)
    undecided = (better > 1 - SURE) & (better < SURE)
    weights = contender * wide * (4 * on_front * (1 - on_front) + undecided)
    if not weights.any():
        return None
    centred, gain = values - values.mean(axis=0), gains - gains.mean(axis=0)
    shared = centred.T @ gain / len(values)
    running = np.array([sum(int(row) == int(other) for other in pending) for row in rows])
    taken = shared**2 / (centred.var(axis=0) + noise * (1 + running))[:, None]
    askable = contender | (rows == base)
    worth = np.where(askable & ~np.isin(rows, barred), taken @ weights / (1 + running), -1.0)
    return int(rows[int(np.argmax(worth))])
