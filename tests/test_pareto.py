"""Law 5: the front of the front is the front, nobody in it is dominated, it equals the quadratic definition and knows no order."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_attn.errors import InputError
from nas_attn.pareto import dominates, front, hypervolume, knee, layers

settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")

MAXMIN = ("maximize", "minimize")
# Few distinct values, so that ties and duplicates are the rule; and any finite numbers, so that nothing rests on small integers.
COORDINATES = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6), st.sampled_from([0.0, -0.0, 1e-300]))


@st.composite
def clouds(draw, dimensions=(1, 4), size=24):
    d = draw(st.integers(*dimensions))
    points = draw(st.lists(st.tuples(*[COORDINATES] * d), max_size=size))
    return points, tuple(draw(st.lists(st.sampled_from(["maximize", "minimize"]), min_size=d, max_size=d)))


def quadratic(points, directions):
    def better(a, b):
        signed = [(x, y) if way == "minimize" else (-x, -y) for x, y, way in zip(a, b, directions, strict=True)]
        return all(x <= y for x, y in signed) and any(x < y for x, y in signed)

    return tuple(i for i, p in enumerate(points) if not any(better(q, p) for q in points))


@given(clouds())
def test_front_equals_the_quadratic_definition(cloud):
    points, directions = cloud
    assert front(points, directions) == quadratic(points, directions)


@given(clouds())
def test_front_of_the_front_is_the_front(cloud):
    points, directions = cloud
    members = [points[i] for i in front(points, directions)]
    assert front(members, directions) == tuple(range(len(members)))


@given(clouds(), st.randoms(use_true_random=False))
def test_front_knows_no_order(cloud, rng):
    points, directions = cloud
    order = list(range(len(points)))
    rng.shuffle(order)
    assert {order[i] for i in front([points[i] for i in order], directions)} == set(front(points, directions))


@given(clouds())
def test_layers_hold_every_point_once_and_each_is_the_front_of_the_rest(cloud):
    points, directions = cloud
    left = set(range(len(points)))
    for layer in layers(points, directions):
        rest = sorted(left)
        assert layer == tuple(rest[i] for i in quadratic([points[k] for k in rest], directions))
        left -= set(layer)
    assert not left


@given(clouds())
def test_nobody_on_the_front_is_dominated_and_everybody_else_is(cloud):
    points, directions = cloud
    members = front(points, directions)
    for i, point in enumerate(points):
        assert any(dominates(points[m], point, directions) for m in members) == (i not in members)


def test_dominance_needs_one_strict_gain():
    assert dominates((0.4, 1.0), (0.3, 1.0), MAXMIN)
    assert not dominates((0.3, 1.0), (0.3, 1.0), MAXMIN)
    assert not dominates((0.4, 1.1), (0.3, 1.0), MAXMIN)


def test_all_copies_of_a_front_point_are_on_the_front():
    assert front([(0.3, 1.0), (0.4, 1.2), (0.3, 1.0), (0.2, 1.0)], MAXMIN) == (0, 1, 2)
    assert front([], MAXMIN) == ()


def test_minus_zero_is_zero():
    assert front([(0.0, 1.0), (-0.0, 1.0)], MAXMIN) == (0, 1)


def test_hypervolume_of_drawn_rectangles():
    # mAP up from 0, latency down from 2:  0.3 x 1.0  +  (0.4 - 0.3) x 0.5
    assert hypervolume([(0.3, 1.0), (0.4, 1.5), (0.2, 1.2)], (0.0, 2.0), MAXMIN) == pytest.approx(0.35)
    assert hypervolume([], (0.0, 2.0), MAXMIN) == 0.0
    assert hypervolume([(0.5, 2.0), (-0.1, 1.0)], (0.0, 2.0), MAXMIN) == 0.0
    assert hypervolume([(1.0,), (3.0,)], (5.0,), ("minimize",)) == 4.0
    assert hypervolume([(1, 1, 1), (0, 2, 2)], (3, 3, 3), ("minimize",) * 3) == pytest.approx(8 + 3 - 2)


def unit_cells(points, directions, reference):
    """The volume by counting unit cells of an integer grid."""
    signs = np.array([1 if way == "minimize" else -1 for way in directions])
    rows, limit = np.array(points).reshape(len(points), len(signs)) * signs, np.array(reference) * signs
    grid = np.stack(np.meshgrid(*[np.arange(top - 8, top) for top in limit], indexing="ij"), -1).reshape(-1, len(signs))
    return sum(bool(np.any(np.all(rows <= cell, axis=1))) for cell in grid)


@given(st.integers(1, 4).flatmap(lambda d: st.tuples(st.just(d), st.lists(st.tuples(*[st.integers(-3, 4)] * d), max_size=8))), st.data())
@settings(max_examples=60)
def test_hypervolume_counts_cells(cloud, data):
    d, points = cloud
    directions = tuple(data.draw(st.sampled_from(["maximize", "minimize"])) for _ in range(d))
    reference = [4 if way == "minimize" else -4 for way in directions]
    assert hypervolume(points, reference, directions) == pytest.approx(unit_cells(points, directions, reference))


@given(clouds((2, 3), 12))
def test_hypervolume_is_that_of_the_front(cloud):
    points, directions = cloud
    reference = [2e6 if way == "minimize" else -2e6 for way in directions]
    members = [points[i] for i in front(points, directions)]
    assert hypervolume(points, reference, directions) == pytest.approx(hypervolume(members, reference, directions))


def test_the_knee_is_where_the_front_bends():
    points = [(0.30, 1.00), (0.38, 1.05), (0.39, 1.20), (0.40, 1.50), (0.20, 1.40)]
    assert knee(points, MAXMIN) == 1
    assert knee(list(reversed(points)), MAXMIN) == 3


def test_the_knee_is_on_the_side_of_the_ideal_point():
    # The second point lies far from the chord, but on its wrong side: the ends are better.
    assert knee([(0.30, 1.0), (0.31, 1.4), (0.40, 1.5)], MAXMIN) == 2


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.3, 1.0)], 0),
        ([(0.3, 1.0), (0.3, 1.0)], 0),
        ([(0.3, 1.0), (0.4, 1.5)], 1),
        ([(0.4, 1.5), (0.3, 1.0)], 0),
        ([(0.3, 1.0), (0.4, 1.1), (0.5, 1.2)], 1),
        ([(0.1 * k, 1.0 + 0.3 * k) for k in range(5)], 2),
        ([(0.3, 1.0), (0.2, 1.2)], 0),
    ],
)
def test_the_knee_of_few_and_of_collinear_points(points, expected):
    assert knee(points, MAXMIN) == expected


@given(clouds((2, 2)).filter(lambda cloud: cloud[0]))
def test_the_knee_is_on_the_front_and_scales_away(cloud):
    points, directions = cloud
    index = knee(points, directions)
    assert index in front(points, directions)
    assert knee([(8 * a, b / 4) for a, b in points], directions) == index


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "call",
    [
        lambda p: front([(0.1, 1.0), p], MAXMIN),
        lambda p: dominates((0.1, 1.0), p, MAXMIN),
        lambda p: knee([(0.1, 1.0), p], MAXMIN),
        lambda p: hypervolume([p], (0.0, 2.0), MAXMIN),
        lambda p: hypervolume([(0.1, 1.0)], p, MAXMIN),
    ],
)
def test_numbers_must_be_finite(call, bad):
    with pytest.raises(InputError, match="must be finite, but got"):
        call((0.3, bad))


def test_points_and_directions_must_fit():
    with pytest.raises(InputError, match=r"must have 2 numbers, one a direction, but got \(1.0,\)"):
        front([(1.0,)], MAXMIN)
    with pytest.raises(InputError, match=r"one of \['maximize', 'minimize'\].*'max'"):
        front([(1.0,)], ("max",))
    with pytest.raises(InputError, match="one of"):
        front([], ())
    with pytest.raises(InputError, match="at least one point and two objectives, but got 0 points"):
        knee([], MAXMIN)
    with pytest.raises(InputError, match="1 points and 3 objectives"):
        knee([(1.0, 1.0, 1.0)], ("minimize",) * 3)
