"""Claims about candidates that were tried, against landscapes whose truth is known."""

import numpy as np
from landscapes import OBJECTIVES, candidates, codes_of, tried, truth_of

from nas_attn.claim import SURE, claims, worth_repeating

CODES = codes_of(5, 4, 3)
LATENCY = 1 + np.array([0.0, 0.01, 0.03, 0.06])[CODES].sum(axis=1)
SPACE = candidates(CODES, 4, LATENCY)


def observed(seed, truth, count=50, noise=0.3, seeds_of_base=5):
    rng = np.random.default_rng(seed)
    rows = [0] * seeds_of_base + rng.choice(np.arange(1, len(CODES)), count, replace=False).tolist()
    return rows, truth[rows] + noise * rng.standard_normal(len(rows))


def test_on_null_landscapes_nothing_is_sure_although_the_best_observation_is_far_up():
    for seed in range(2):
        truth = np.zeros(len(CODES))
        rows, values = observed(seed, truth)
        found = claims(SPACE, OBJECTIVES, tried(CODES, LATENCY, rows, values), 0, seed)
        assert values.max() > 0.35
        assert max(c.beats_base for c in found if c.row) < SURE
        assert max(c.gain for c in found) < 0.3


def test_a_placement_that_gains_is_found_and_not_overstated():
    gains = []
    for seed in range(3):
        truth = np.where(CODES[:, 1] == 2, 0.5, 0.0)
        rows, values = observed(seed, truth, count=80, noise=0.2)
        found = claims(SPACE, OBJECTIVES, tried(CODES, LATENCY, rows, values), 0, seed)
        sure = [c for c in found if c.row and c.expected and c.beats_base >= SURE]
        assert sure
        best = max(sure, key=lambda c: c.gain)
        assert truth[best.row] == 0.5
        gains.append(best.gain)
    assert 0.25 < np.mean(gains) < 0.6


def test_intervals_hold_their_mean_and_the_base_gains_nothing_over_itself():
    truth = truth_of(CODES, 4, np.random.default_rng(0))
    rows, values = observed(0, truth)
    found = {c.row: c for c in claims(SPACE, OBJECTIVES, tried(CODES, LATENCY, rows, values), 0, 0)}
    assert set(found) == set(rows)
    assert (found[0].gain, found[0].gain_low, found[0].gain_high, found[0].beats_base) == (0, 0, 0, 0)
    for claim in found.values():
        assert claim.low < claim.mean < claim.high
        assert claim.gain_low <= claim.gain <= claim.gain_high
        assert 0 <= claim.non_dominated <= 1
    assert any(claim.expected for claim in found.values())
    dominated = [c for c in found.values() if any(o.mean > c.mean and LATENCY[o.row] <= LATENCY[c.row] for o in found.values())]
    assert not any(c.expected for c in dominated)


def test_a_minimized_score_counts_down():
    truth = np.where(CODES[:, 1] == 2, -0.5, 0.0)
    rows, values = observed(0, truth, noise=0.1)
    found = claims(SPACE, {"map50_95": "minimize", "latency_ratio": "minimize"}, tried(CODES, LATENCY, rows, values), 0, 0)
    best = max(found, key=lambda c: c.gain)
    assert truth[best.row] == -0.5
    assert best.gain > 0.25
    assert best.low < best.mean < best.high < -0.05


def test_the_training_that_is_worth_most_is_of_a_contender_or_the_base_and_not_of_what_lost():
    truth = np.where(CODES[:, 1] == 2, 0.35, np.where(CODES[:, 2] == 1, -1.0, 0.0))
    rows, values = observed(3, truth, count=40)
    row = worth_repeating(SPACE, OBJECTIVES, tried(CODES, LATENCY, rows, values), 0, (), 0)
    assert row is not None
    assert row in rows
    assert truth[row] > -0.5


def test_a_running_repeat_is_not_chosen_again_and_again():
    truth = np.where(CODES[:, 1] == 2, 0.35, 0.0)
    rows, values = observed(3, truth, count=40)
    seen, pending = tried(CODES, LATENCY, rows, values), list[int]()
    for _ in range(3):
        pending.append(worth_repeating(SPACE, OBJECTIVES, seen, 0, pending, 0))
    assert len(set(pending)) >= 2
    assert worth_repeating(SPACE, OBJECTIVES, seen, 0, (), 0, barred=[pending[0]]) != pending[0]


def test_when_all_is_settled_nothing_is_worth_a_training():
    truth = CODES @ np.array([0.313, 0.117, -0.211, -0.523, 0.731])
    rows, values = observed(0, truth, noise=0.001)
    seen = tried(CODES, LATENCY, rows, values, noise=0.001)
    assert worth_repeating(SPACE, OBJECTIVES, seen, 0, (), 0) is None
