"""Paired statistics against closed forms, hand examples and simulation."""

import math
import random
import statistics

import pytest
from scipy import stats

from nas_attn.errors import InputError
from nas_attn.paired import compare, holm, pooled_sd, seeds_needed, smallest_effect


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_a_contrast_is_the_one_sample_t_test_of_the_differences() -> None:
    ours, theirs = by_seed(0.31, 0.33, 0.30, 0.35), by_seed(0.30, 0.29, 0.30, 0.33)
    found = compare(ours, theirs)
    differences = [ours[s] - theirs[s] for s in ours]
    known = stats.ttest_1samp(differences, 0.0)
    interval = known.confidence_interval(0.95)
    assert found is not None
    assert (found.n, found.wins) == (4, 3)
    assert found.mean == pytest.approx(0.0175)
    assert found.p == pytest.approx(known.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_two_seeds_have_the_quantile_of_cauchy() -> None:
    found = compare(by_seed(1.0, 3.0), by_seed(0.0, 0.0))  # mean 2, sd sqrt 2, error 1; t(0.975, 1) = tan(0.475 pi)
    assert found is not None
    assert found.high == pytest.approx(2 + math.tan(0.475 * math.pi))
    assert found.p == pytest.approx(1 - 2 * math.atan(2) / math.pi)
    assert found.better == pytest.approx(0.5 + math.atan(2 / math.sqrt(3)) / math.pi)


def test_only_common_seeds_count() -> None:
    assert compare({0: 1.0}, {1: 1.0}) is None
    one = compare({0: 1.0, 2: 5.0}, {0: 0.5, 1: 9.0})
    assert one is not None
    assert (one.n, one.mean, one.sd, one.low, one.p, one.sure) == (1, 0.5, None, None, None, 0)


@pytest.mark.parametrize(("value", "p", "better", "sure"), [(0.0, 1.0, 0.5, 0), (0.25, 0.0, 1.0, 1), (-0.25, 0.0, 0.0, -1)])
def test_equal_differences_are_no_division_by_zero(value: float, p: float, better: float, sure: int) -> None:
    found = compare(by_seed(value, value, value), by_seed(0.0, 0.0, 0.0))
    assert found is not None
    assert (found.low, found.high, found.p, found.better, found.sure) == (value, value, p, better, sure)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_cover_the_truth_under_simulated_pairs(n: int) -> None:
    rng = random.Random(n)
    covered, won, predicted = 0, 0, 0.0
    for _ in range(3000):
        luck = [rng.gauss(0.3, 0.02) for _ in range(n)]  # shared by both arms: it must cancel
        theirs = by_seed(*(x + rng.gauss(0, 0.003) for x in luck))
        ours = by_seed(*(x + 0.004 + rng.gauss(0, 0.003) for x in luck))
        found = compare(ours, theirs)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        assert found.better is not None
        covered += found.low <= 0.004 <= found.high
        won += rng.gauss(0.004, 0.003 * math.sqrt(2)) > 0
        predicted += found.better
    assert covered / 3000 == pytest.approx(0.95, abs=0.013)  # three standard errors
    assert 0.5 < predicted / 3000 < won / 3000 + 0.02  # few seeds must not promise more than a new seed holds


def test_holm_s_hand_example() -> None:
    # m = 4: 0.005 x 4, 0.01 x 3, then 0.03 x 2 = 0.06 holds 0.04 x 1 up.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([]) == ()
    with pytest.raises(InputError, match=r"0\.\.1"):
        holm([0.5, math.nan])


def test_holm_keeps_false_claims_at_five_percent() -> None:
    rng = random.Random(1)
    false = sum(min(holm([rng.random() for _ in range(5)])) < 0.05 for _ in range(4000))
    assert false / 4000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize("n", [3, 5, 12])
def test_the_smallest_effect_is_found_four_times_of_five(n: int) -> None:
    effect = smallest_effect(0.01, n)
    assert effect is not None
    rng = random.Random(n)
    found = 0
    for _ in range(2000):
        contrast = compare(by_seed(*(rng.gauss(effect, 0.01) for _ in range(n))), by_seed(*[0.0] * n))
        found += contrast is not None and contrast.sure > 0
    assert found / 2000 == pytest.approx(0.8, abs=0.03)


def test_seeds_needed_is_the_least_number_that_suffices() -> None:
    # The paired form of a known table: d = 0.5 SD needs 34 pairs at 80 % power (G*Power).
    assert seeds_needed(0.5, 1.0) == 34
    assert seeds_needed(-0.5, 1.0) == 34
    assert seeds_needed(1e-6, 1.0) is None
    assert smallest_effect(1.0, 1) is None


def test_pooling_weighs_by_degrees_of_freedom() -> None:
    few, many = compare(by_seed(0.0, 2.0), by_seed(0.0, 0.0)), compare(by_seed(0.0, 1.0, 2.0, 3.0), by_seed(0.0, 0.0, 0.0, 0.0))
    single = compare({0: 1.0}, {0: 0.0})
    assert few is not None
    assert many is not None
    assert single is not None
    expected = math.sqrt((1 * 2.0 + 3 * statistics.variance([0, 1, 2, 3])) / 4)
    assert pooled_sd([few, many, single]) == pytest.approx(expected)
    assert pooled_sd([single]) is None
