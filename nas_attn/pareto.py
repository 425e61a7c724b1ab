"""Dominance, fronts, hypervolume and knees, with the direction of every objective said explicitly.

A point is a sequence of numbers, one an objective; `directions` names each `maximize` or `minimize`. Points that are equal in every
objective do not dominate each other, so that all copies of a front point are on the front. Nothing here accepts NaN or infinity:
a failed measurement has no place among points.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nas_attn.errors import InputError

Array = NDArray[np.float64]
SIGNS = {"maximize": -1.0, "minimize": 1.0}
_TIE = 1e-9


def dominates(a: Sequence[float], b: Sequence[float], directions: Sequence[str]) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better.

    Raises:
        InputError: lengths that differ, an unknown direction, a number that is not finite.
    """
    first, second = _minimized([a, b], directions)
    return bool(np.all(first <= second) and np.any(first < second))


def front(points: Sequence[Sequence[float]], directions: Sequence[str]) -> tuple[int, ...]:
    """Indices, ascending, of the points that no other point dominates; every copy of such a point is included.

    Raises:
        InputError: lengths that differ, an unknown direction, a number that is not finite.
    """
    # Sorted distinct rows: whatever dominates a row stands before it, so that comparing with the rows kept so far is enough.
    rows, origin = np.unique(_minimized(points, directions), axis=0, return_inverse=True)
    kept: list[int] = []
    for index, row in enumerate(rows):
        if not np.any(np.all(rows[kept] <= row, axis=1)):
            kept.append(index)
    return tuple(int(i) for i in np.flatnonzero(np.isin(origin.reshape(-1), kept)))


def layers(points: Sequence[Sequence[float]], directions: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Indices of the front, then of the front of what is left, and so on until every point was given.

    Raises:
        InputError: lengths that differ, an unknown direction, a number that is not finite.
    """
    left = list(range(len(points)))
    while left:
        layer = tuple(left[i] for i in front([points[k] for k in left], directions))
        yield layer
        gone = set(layer)
        left = [k for k in left if k not in gone]


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float], directions: Sequence[str]) -> float:
    """The volume that the points dominate and that dominates `reference`, exact: a sweep in 2-D, slices of it in more dimensions.

    A point that is not better than the reference in every objective adds nothing. Slicing costs about n^(d-1) steps: right for the
    fronts of a study, not for thousands of points in four objectives.

    Raises:
        InputError: lengths that differ, an unknown direction, a number that is not finite.
    """
    limit = _minimized([reference], directions)[0]
    rows = _minimized(points, directions)
    return _volume(rows[np.all(rows < limit, axis=1)], limit)


def knee(points: Sequence[Sequence[float]], directions: Sequence[str]) -> int:
    """The index of the front point that lies farthest from the chord between the front's two ends, on the side of the ideal point.

    Two objectives, each scaled to 0..1 over the front. Where several lie equally far (two points, or all on one line) the most balanced
    one counts, then the better one in the first objective, then the lower index; one point is its own knee.

    Raises:
        InputError: no point, another number of objectives than two, an unknown direction, a number that is not finite.
    """
    if len(points) == 0 or len(directions) != 2:
        raise InputError(
            f"A knee needs at least one point and two objectives, but got {len(points)} points and {len(directions)} objectives."
        )
    members = front(points, directions)
    rows = _minimized(points, directions)[list(members)]
    span = np.ptp(rows, axis=0)
    scaled = (rows - rows.min(axis=0)) / np.where(span > 0, span, 1.0)
    depth = scaled.sum(axis=1)  # the ends lie at 1; sqrt(2) times the distance to their chord is 1 - depth
    tied = np.flatnonzero(depth <= depth.min() + _TIE)
    return min((round(abs(float(scaled[i, 0] - scaled[i, 1])), 9), float(scaled[i, 0]), members[i]) for i in tied)[2]


def _minimized(points: Sequence[Sequence[float]], directions: Sequence[str]) -> Array:
    """The points as rows in which every objective is minimized."""
    unknown = [d for d in directions if d not in SIGNS]
    if unknown or not directions:
        raise InputError(f"Every direction must be one of {sorted(SIGNS)}, one an objective, but got {list(directions)}.")
    for point in points:
        if len(point) != len(directions):
            raise InputError(f"A point must have {len(directions)} numbers, one a direction, but got {tuple(point)}.")
    rows: Array = np.asarray(points, dtype=np.float64).reshape(len(points), len(directions))
    if not np.all(np.isfinite(rows)):
        bad = rows[~np.all(np.isfinite(rows), axis=1)][0].tolist()
        raise InputError(f"Every number of a point must be finite, but got {tuple(bad)}; leave out what was not measured.")
    signs: Array = np.array([SIGNS[d] for d in directions])
    return rows * signs


def _volume(rows: Array, limit: Array) -> float:
    """The volume between minimized `rows`, all below `limit`, and `limit`."""
    if len(rows) == 0:
        return 0.0
    if rows.shape[1] == 1:
        return float(limit[0] - rows.min())
    rows = rows[np.argsort(rows[:, -1], kind="stable")]
    if rows.shape[1] == 2:
        best = np.minimum.accumulate(rows[:, 0])
        return float(np.sum((limit[0] - best) * np.diff(rows[:, 1], append=limit[1])))
    heights = np.diff(rows[:, -1], append=limit[-1])
    return sum(float(h) * _volume(rows[: i + 1, :-1], limit[:-1]) for i, h in enumerate(heights) if h > 0)
