"""What a candidate adds to a front, against the exact hypervolume."""

import numpy as np
import pytest

from nas_attn import pareto
from nas_attn.acquire import improvement, steps

TWO = ("minimize", "minimize")


def exact(point, tried, reference):
    directions = ("minimize",) * len(reference)
    before = pareto.hypervolume(tried.tolist(), reference.tolist(), directions)
    return pareto.hypervolume([*tried.tolist(), point.tolist()], reference.tolist(), directions) - before


@pytest.mark.parametrize("seed", range(6))
def test_two_objectives_are_exact_also_for_points_beyond_the_reference(seed):
    rng = np.random.default_rng(seed)
    tried, points, reference = rng.random((3, 9, 2)), rng.random((3, 40, 2)) * 1.4 - 0.2, np.array([0.8, 0.9])
    found = improvement(points, tried, reference)
    wanted = [[exact(point, t, reference) for point in p] for p, t in zip(points, tried, strict=True)]
    assert np.allclose(found, wanted, atol=1e-12)
    assert found.max() > 0


def test_ties_in_one_objective_do_not_count_twice():
    tried, reference = np.array([[0.2, 0.5], [0.2, 0.4], [0.6, 0.4], [0.7, 0.1]]), np.array([1.0, 1.0])
    starts, ends, heights = steps(tried, reference)
    assert heights.tolist() == [1.0, 0.4, 0.1]
    assert starts.tolist() == [-np.inf, 0.2, 0.7]
    assert ends.tolist() == [0.2, 0.7, 1.0]


def test_one_objective_is_the_gap_to_the_best():
    found = improvement(np.array([[[0.1], [0.4], [0.9]]]), np.array([[[0.3], [0.5]]]), np.array([1.0]))
    assert np.allclose(found, [[0.2, 0.0, 0.0]])


def test_three_objectives_rank_as_the_exact_hypervolume_does():
    rng = np.random.default_rng(0)
    tried, points, reference = rng.random((1, 6, 3)), rng.random((1, 60, 3)), np.ones(3)
    found = improvement(points, tried, reference)[0]
    wanted = np.array([exact(point, tried[0], reference) for point in points[0]])
    assert np.corrcoef(found, wanted)[0, 1] > 0.97
    assert np.all(found[wanted == 0] < 1e-12)


def test_nothing_tried_leaves_the_whole_box():
    assert np.allclose(improvement(np.array([[[0.5, 0.5]]]), np.zeros((1, 0, 2)), np.ones(2)), 0.25)
