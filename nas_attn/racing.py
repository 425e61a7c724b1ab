"""Racing: which trainings may be stopped at a rung, and which goes on first. A pure rule over what trials have shown.

Costs are known before any training, so only accuracy is uncertain. A trial at a rung has an optimistic final score: the upper end of a
prediction interval, learned from the trials that went all the way. Two are asked, and the lower one counts: what it shows plus the rise
that they had from there, which tells what is hopelessly behind; and the regression of their final scores on what they had shown, which
tells what is to be expected where early scores say little. It is stopped only when even with that score it would be dominated by a finished
trial: one that is at least as good in every objective, costs included, and better in one. So a trial that is faster than all finished ones
is never stopped, nor one that shows more at its rung than each of them had shown there that costs no more.

The same trials give the same answer in whatever order they come: decisions can be replayed from a record.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean, linear_regression

from scipy.special import stdtrit

from nas_attn import pareto
from nas_attn.errors import InputError

ETA = 3
"""How many times longer each rung is than the one before it."""
LEAST_FINISHED = 4
"""With fewer trials that went all the way, nothing is known of what follows a rung, and nothing is stopped."""
OPTIMISM = 0.95
"""The quantile of its final score that an optimist grants a trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Racer:
    """One trial in a race: `known` are its costs, `shown` its accuracies by the epochs of every rung that it reached, each by name.

    A trial that showed the last rung has finished.
    """

    number: int
    known: Mapping[str, float] = field(default_factory=dict)
    shown: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    @property
    def reached(self) -> int:
        """The highest rung that it showed, 0 before the first."""
        return max(self.shown, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """The rule for one study: its objectives with their directions, and its rungs."""

    objectives: Mapping[str, str]
    rungs: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)) or self.rungs[0] < 1:
            raise InputError(f"Rungs must be rising whole epochs from 1, but got {self.rungs}; give e.g. (1, 3, 9).")

    def stopped(self, racers: Sequence[Racer], among: Collection[int] | None = None) -> tuple[int, ...]:
        """The numbers, ascending, of the racers that are to be stopped at the rung that they reached; only those `among` are looked at."""
        waiting = [r for r in racers if (among is None or r.number in among) and 0 < r.reached < self.rungs[-1]]
        finished = self.finished(racers) if waiting else []
        return tuple(sorted(racer.number for racer in waiting if self._hopeless(racer, finished)))

    def finished(self, racers: Iterable[Racer]) -> list[Racer]:
        """The racers that showed the last rung."""
        return [racer for racer in racers if racer.reached == self.rungs[-1]]

    def order(self, racers: Sequence[Racer], waiting: Sequence[int]) -> tuple[int, ...]:
        """The numbers `waiting` in the order in which workers take them: by non-dominated rank of optimistic scores and costs.

        Ties go by number. Those that have shown nothing yet come first: what they may show has no bound.
        """
        chosen = set(waiting)
        left = sorted((racer for racer in racers if racer.number in chosen), key=lambda racer: racer.number)
        ordered = [racer.number for racer in left if not racer.shown]
        left = [racer for racer in left if racer.shown]
        finished = self.finished(racers) if left else []
        points = [self._optimistic(racer, finished) for racer in left]
        ranked = chain.from_iterable(pareto.layers(points, list(self.objectives.values())))
        return (*ordered, *(left[i].number for i in ranked))

    def _hopeless(self, racer: Racer, finished: Sequence[Racer]) -> bool:
        rivals = [rival for rival in finished if racer.reached in rival.shown]
        if len(rivals) < LEAST_FINISHED:
            return False
        point = self._losses(self._optimistic(racer, rivals))
        dominated = any(_dominates(self._losses(self._point(rival)), point) for rival in rivals)
        return dominated and any(self._ahead(rival, racer) for rival in rivals)

    def _ahead(self, rival: Racer, racer: Racer) -> bool:
        # What shows more at its rung than all that cost no more may become more than any of them: no prediction from them reaches there.
        then, now = {**rival.known, **rival.shown[racer.reached]}, {**racer.known, **racer.shown[racer.reached]}
        return all(self._loss(name, then[name]) <= self._loss(name, now[name]) for name in self.objectives)

    def _optimistic(self, racer: Racer, finished: Sequence[Racer]) -> list[float]:
        """All objectives of a racer, accuracies as high as they may become."""
        rung, top = racer.reached, self.rungs[-1]
        point = dict(zip(self.objectives, self._point(racer), strict=True))
        for name in self.objectives.keys() & racer.shown[rung].keys() if rung < top else ():
            sign = -pareto.SIGNS[self.objectives[name]]
            pairs = [(sign * one.shown[rung][name], sign * one.shown[top][name]) for one in finished if rung in one.shown]
            point[name] = sign * _highest_end(sign * racer.shown[rung][name], pairs)
        return [point[name] for name in self.objectives]

    def _point(self, racer: Racer) -> list[float]:
        values = {**racer.known, **racer.shown[racer.reached]}
        missing = [name for name in self.objectives if name not in values]
        if missing:
            raise InputError(f"Every objective of a racer must be known or shown, but trial {racer.number} lacks {missing}.")
        return [values[name] for name in self.objectives]

    def _losses(self, point: Sequence[float]) -> list[float]:
        return [self._loss(name, value) for name, value in zip(self.objectives, point, strict=True)]

    def _loss(self, name: str, value: float) -> float:
        return pareto.SIGNS[self.objectives[name]] * value


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """As `pareto.dominates`, for a few numbers that are minimized: thousands of pairs are compared after every rung."""
    pairs = [*zip(a, b, strict=True)]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def _highest_end(shown: float, pairs: Sequence[tuple[float, float]]) -> float:
    """The optimistic final score of a trial that showed this much at a rung, from `pairs` of shown and final scores; higher is better."""
    if len(pairs) < LEAST_FINISHED:
        return shown + max((end - start for start, end in pairs), default=0.0)
    then, ends = [start for start, _ in pairs], [end for _, end in pairs]
    middle, rise = fmean(then), fmean(ends) - fmean(then)
    by_rise = _upper(shown + rise, [end - start - rise for start, end in pairs], 1, 0.0)
    spread = sum((start - middle) ** 2 for start in then)
    if not spread:
        return by_rise
    # More at a rung never predicts less at the end: such a slope is a sample's luck.
    slope = max(linear_regression(then, ends).slope, 0.0)
    errors = [end - fmean(ends) - slope * (start - middle) for start, end in pairs]
    away = shown - middle
    return min(by_rise, _upper(fmean(ends) + slope * away, errors, 2, away**2 / spread))


def _upper(expected: float, errors: Sequence[float], parameters: int, leverage: float) -> float:
    """The upper end of the prediction interval of one more value, from the errors of a fit with so many parameters."""
    freedom = len(errors) - parameters
    variance = sum(error**2 for error in errors) / freedom * (1 + 1 / len(errors) + leverage)
    return expected + float(stdtrit(freedom, OPTIMISM)) * float(variance**0.5)


def rungs_of(epochs: int, eta: int = ETA) -> tuple[int, ...]:
    """The epochs of the rungs below and up to `epochs`, each an `eta`-th of the next, rounded down: 9 gives 1, 3, 9, and 4 gives 1, 4.

    Raises:
        InputError: less than one epoch, or an `eta` below 2.
    """
    if epochs < 1 or eta < 2:
        raise InputError(f"`epochs >= 1` and `eta >= 2` must hold for rungs, but got {epochs=}, {eta=}.")
    below = epochs // eta
    return (*rungs_of(below, eta), epochs) if below else (epochs,)


def simulate(
    curves: Sequence[Sequence[float]],
    costs: Sequence[float],
    rungs: Sequence[int],
    order: Sequence[int],
    *,
    slots: int = 1,
    always: Sequence[int] = (),
) -> tuple[int, ...]:
    """After how many epochs the rule stops each of some recorded trainings: the last rung, or an earlier one.

    `curves[i]` holds the score of trial `i` after every epoch (higher is better), `costs[i]` its cost (lower is better), `order` which
    trial is asked for next. `slots` trainings wait or run at a time, one rung a turn. `always` (the base) are run to the end first.

    Raises:
        InputError: curves that are shorter than the last rung, or another number of costs than of curves.
    """
    race = Race(objectives={"score": "maximize", "cost": "minimize"}, rungs=tuple(rungs))
    if len(costs) != len(curves) or any(len(curve) < race.rungs[-1] for curve in curves) or slots < 1:
        raise InputError(f"Each of {len(curves)} curves needs {race.rungs[-1]} epochs and one of {len(costs)} costs, with {slots=} >= 1.")

    def racer(i: int, reached: int) -> Racer:
        shown = {rung: {"score": curves[i][rung - 1]} for rung in race.rungs if rung <= reached}
        return Racer(number=i, known={"cost": costs[i]}, shown=shown)

    racers = {i: racer(i, race.rungs[-1]) for i in always}
    asked, waiting = [i for i in order if i not in racers], list[int]()
    while asked or waiting:
        fresh, asked = asked[: slots - len(waiting)], asked[slots - len(waiting) :]
        racers.update({i: racer(i, 0) for i in fresh})
        waiting += fresh
        first = race.order(list(racers.values()), waiting)[0]
        racers[first] = racer(first, next(rung for rung in race.rungs if rung > racers[first].reached))
        ended = {*race.stopped(list(racers.values())), *(one.number for one in race.finished(racers.values()))}
        waiting = [i for i in waiting if i not in ended]
    return tuple(racers[i].reached if i in racers else 0 for i in range(len(curves)))
