"""The model of accuracy against landscapes whose truth is known."""

import numpy as np
import pytest
from landscapes import candidates, codes_of, truth_of

from nas_attn.candidates import Candidates
from nas_attn.surrogate import Observations, Surrogate, additive
from nas_attn.variances import THOROUGH

CODES = codes_of(5, 4, 5)
LATENCY = 1 + 0.02 * np.count_nonzero(CODES, axis=1)


def observed(seed, count=60, noise=0.2, pairwise=0.3, known_noise=None):
    rng = np.random.default_rng(seed)
    truth = truth_of(CODES, 4, rng, pairwise=pairwise)
    rows = np.concatenate([[0, 0, 0, 0], rng.choice(len(CODES), count, replace=False)])
    values = truth[rows] + noise * rng.standard_normal(len(rows))
    seen = Observations(rows=rows, values=values, seeds=np.full(len(rows), -1), noise=known_noise)
    return truth, Surrogate(candidates(CODES, 4, LATENCY), seen, seed), seen


@pytest.mark.parametrize("seed", range(3))
def test_it_ranks_what_was_never_tried(seed):
    truth, model, seen = observed(seed)
    rest = np.setdiff1d(np.arange(len(CODES)), seen.rows)
    assert np.corrcoef(model.mean(rest), truth[rest])[0, 1] > 0.75


def test_draws_agree_with_the_mean_and_cover_the_truth():
    inside, total = 0, 0
    for seed in range(6):
        truth, model, seen = observed(seed, count=40)
        rows = np.unique(seen.rows)
        drawn = model.draws(rows, 400, np.random.default_rng(0))
        assert np.allclose(drawn.mean(axis=0), model.mean(rows), atol=0.12)
        low, high = np.percentile(drawn, [5, 95], axis=0)
        inside, total = inside + int(np.sum((low <= truth[rows]) & (truth[rows] <= high))), total + len(rows)
    assert 0.82 <= inside / total <= 0.97


def test_screening_draws_agree_with_the_exact_mean():
    _, model, _ = observed(1)
    drawn = model.screen(60, np.random.default_rng(0))
    assert drawn.shape == (60, len(CODES))
    assert np.corrcoef(drawn.mean(axis=0), model.mean(np.arange(len(CODES))))[0, 1] > 0.93
    again = Surrogate(model.candidates, model.seen, 1).screen(60, np.random.default_rng(0))
    assert np.array_equal(drawn, again)


def test_where_there_is_only_noise_next_to_nothing_is_claimed():
    rng = np.random.default_rng(0)
    rows = np.concatenate([[0, 0, 0, 0], rng.choice(len(CODES), 50, replace=False)])
    seen = Observations(rows=rows, values=0.3 * rng.standard_normal(len(rows)), seeds=np.full(len(rows), -1))
    model = Surrogate(candidates(CODES, 4, LATENCY), seen, 0, THOROUGH)
    claimed = model.mean(np.unique(rows)) - model.mean(np.array([0]))
    assert claimed.max() < 0.25 < (seen.values - seen.values[:4].mean()).max()
    assert model.shares["noise"] == pytest.approx(0.09, rel=0.4)


def test_without_noise_what_was_seen_is_believed():
    _, model, seen = observed(2, noise=0.0, known_noise=0.0)
    assert np.allclose(model.mean(seen.rows), seen.values, atol=0.001)


def test_a_seed_that_all_share_counts_for_less_of_the_candidates_gain():
    """Seed 0 is lucky by 1.0, the candidates ran with it alone, the base with four seeds: a model that knows the seeds credits the former
    with less than one that does not.
    """
    rng = np.random.default_rng(4)
    luck = {0: 1.0, 1: -0.4, 2: -0.3, 3: -0.3}
    rows = np.concatenate([[0, 0, 0, 0], rng.choice(np.arange(1, len(CODES)), 40, replace=False)])
    seeds = np.concatenate([[0, 1, 2, 3], np.zeros(40, dtype=np.int64)])
    values = np.array([luck[s] for s in seeds.tolist()]) + 0.05 * rng.standard_normal(len(rows))
    paired = Surrogate(candidates(CODES, 4, LATENCY), Observations(rows=rows, values=values, seeds=seeds), 0, THOROUGH)
    gains = paired.mean(rows[4:]) - paired.mean(np.array([0]))
    assert abs(gains.mean()) < 0.05
    alone = Surrogate(candidates(CODES, 4, LATENCY), Observations(rows=rows, values=values, seeds=np.full(44, -1)), 0, THOROUGH)
    assert (alone.mean(rows[4:]) - alone.mean(np.array([0]))).mean() > gains.mean() + 0.1


def test_the_forest_helps_where_effects_do_not_add_up():
    """A value that hangs on a feature alone, which no gene tells by itself."""
    rng = np.random.default_rng(0)
    codes = codes_of(6, 4, 6)
    feature = np.abs(codes.astype(float) @ rng.standard_normal(6))
    truth = np.where(feature > np.median(feature), 1.0, 0.0)
    rows = rng.choice(len(codes), 80, replace=False)
    seen = Observations(rows=rows, values=truth[rows] + 0.02 * rng.standard_normal(80), seeds=np.full(80, -1))
    genes = {f"g{k}": tuple("abcd") for k in range(6)}
    rest = np.setdiff1d(np.arange(len(codes)), rows)
    with_it = Surrogate(Candidates(genes=genes, codes=codes, features=feature[:, None]), seen, 0).mean(rest)
    without = Surrogate(Candidates(genes=genes, codes=codes), seen, 0).mean(rest)
    assert np.corrcoef(with_it, truth[rest])[0, 1] > np.corrcoef(without, truth[rest])[0, 1] + 0.1


@pytest.mark.parametrize("seed", range(4))
def test_among_pure_noise_the_forest_explains_nothing(seed):
    """What is left out of a mean pulls it the other way: left-out predictions of noise say the opposite of what was seen. With a weight of
    either sign they would explain nearly all of it, and what is noise would be claimed as effects.
    """
    rng = np.random.default_rng(seed)
    rows = np.concatenate([[0, 0, 0, 0], rng.choice(np.arange(1, len(CODES)), 60, replace=False)])
    seen = Observations(rows=rows, values=0.3 * rng.standard_normal(len(rows)), seeds=np.full(len(rows), -1))
    model = Surrogate(candidates(CODES, 4, LATENCY), seen, 0)
    assert model.shares["noise"] > 0.6 * np.var(seen.values)
    assert np.ptp(model.mean(np.arange(len(CODES)))) < 0.5 * np.ptp(seen.values)


def test_broken_candidates_do_not_drown_the_others():
    rng = np.random.default_rng(3)
    truth = truth_of(CODES, 4, rng)
    rows = rng.choice(len(CODES), 60, replace=False)
    values = truth[rows].copy()
    values[:4] = -60.0
    seen = Observations(rows=rows, values=values, seeds=np.full(60, -1))
    model = Surrogate(candidates(CODES, 4, LATENCY), seen, 0)
    assert np.corrcoef(model.mean(rows[4:]), truth[rows[4:]])[0, 1] > 0.6


def test_one_observation_is_enough_to_answer():
    seen = Observations(rows=np.array([0]), values=np.array([0.4]), seeds=np.array([0]))
    model = Surrogate(candidates(CODES, 4, LATENCY), seen, 0)
    assert model.mean(np.array([0])) == pytest.approx(0.4)
    assert np.all(np.isfinite(model.draws(np.array([0, 7]), 4, np.random.default_rng(0))))


def test_costs_are_the_bases_plus_the_sum_of_placements():
    rng = np.random.default_rng(0)
    each = [np.r_[0.0, rng.random(3) * 0.1] for _ in range(5)]
    cost = 1 + sum(table[CODES[:, g]] for g, table in enumerate(each))
    rows = np.concatenate([[0], rng.choice(len(CODES), 40, replace=False)])
    prior = candidates(CODES, 4, LATENCY).covariances
    assert np.allclose(additive(CODES, prior, rows, cost[rows]), cost, atol=0.005)
    assert additive(CODES, prior, np.array([0]), np.array([1.0])) == pytest.approx(np.ones(len(CODES)))


def test_costs_of_thousands_are_solved_for_choices_with_the_same_answer(monkeypatch):
    rng = np.random.default_rng(0)
    codes = codes_of(5, 4, 3)
    space = candidates(codes, 4, np.ones(len(codes)))
    rows = rng.choice(len(codes), 200, replace=False)
    values = 1 + rng.random(200)
    few = additive(codes, space.covariances, rows, values)
    monkeypatch.setattr("nas_attn.surrogate.MANY", 10)
    assert np.allclose(additive(codes, space.covariances, rows, values), few, atol=1e-5)
