"""How much a candidate would add to a front, in expectation over draws of what is true.

Objectives are minimized here. Each draw has its own front, that of its values at everything that was tried or is under way, so that neither
noise nor a lucky observation is taken for the front (noisy expected hypervolume improvement, arXiv 2105.08195).
"""

import numpy as np

from nas_attn.candidates import Floats

DIRECTIONS = 64
"""Random weightings that stand for the hypervolume in more than two objectives (arXiv 2006.04655)."""


def improvement(points: Floats, tried: Floats, reference: Floats, seed: int = 0) -> Floats:
    """The hypervolume (draws, M) that each of M points would add: `points` (draws, M, O), `tried` (draws, n, O), `reference` (O,).

    Exact for one and two objectives; for more, in units of an estimate by random weightings.
    """
    if len(reference) == 1:
        best = np.minimum(tried[:, :, 0].min(axis=1, initial=np.inf), reference[0])
        return np.asarray(np.maximum(best[:, None] - points[:, :, 0], 0.0))
    if len(reference) == 2:
        return np.stack([_area(p, t, reference) for p, t in zip(points, tried, strict=True)])
    return _weighted(points, tried, reference, seed)


def steps(tried: Floats, reference: Floats) -> tuple[Floats, Floats, Floats]:
    """The front of `tried` (n, 2) as a step function of the first objective: where steps begin, where they end, how high they are."""
    inside = tried[np.all(tried < reference, axis=1)]
    order = np.lexsort((inside[:, 1], inside[:, 0]))
    starts, heights = inside[order, 0], np.minimum.accumulate(inside[order, 1])
    kept = np.diff(heights, prepend=np.inf) < 0
    starts, heights = starts[kept], heights[kept]
    starts = np.concatenate([[-np.inf], starts])
    return starts, np.concatenate([starts[1:], [reference[0]]]), np.concatenate([[reference[1]], heights])


def _area(points: Floats, tried: Floats, reference: Floats) -> Floats:
    starts, ends, heights = steps(tried, reference)
    total = np.zeros(len(points))
    for start, end, height in zip(starts, ends, heights, strict=True):
        width = np.maximum(end - np.maximum(start, points[:, 0]), 0.0)
        total += width * np.maximum(height - points[:, 1], 0.0)
    return total


def _weighted(points: Floats, tried: Floats, reference: Floats, seed: int) -> Floats:
    objectives = len(reference)
    directions = np.abs(np.random.default_rng(seed).standard_normal((DIRECTIONS, objectives))) + 1e-9
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    total = np.zeros(points.shape[:2])
    for direction in directions:
        reached = np.clip(np.min((reference - points) / direction, axis=2), 0.0, None) ** objectives
        if tried.shape[1]:
            known = np.clip(np.min((reference - tried) / direction, axis=2), 0.0, None).max(axis=1) ** objectives
            reached = np.maximum(reached - known[:, None], 0.0)
        total += reached
    return total / DIRECTIONS
