"""What is tried next: never twice, the same for the same seed, pending trials counted, and better than chance."""

from dataclasses import replace

import numpy as np
import pytest
from landscapes import OBJECTIVES, candidates, codes_of, tried, truth_of

from nas_attn import pareto
from nas_attn.candidates import FEWEST, START, enough_to_begin
from nas_attn.propose import ROUND, Belief, propose, propose_many, recommended

CODES = codes_of(5, 4, 3)
LATENCY = 1 + np.array([0.0, 0.01, 0.03, 0.06])[CODES].sum(axis=1)
SPACE = candidates(CODES, 4, LATENCY)
DIRECTIONS = tuple(OBJECTIVES.values())


def search(seed, count, truth, noise=0.0):
    rng = np.random.default_rng(seed)
    rows, values = [0], [truth[0]]
    for turn in range(count):
        row = propose(SPACE, OBJECTIVES, tried(CODES, LATENCY, rows, values), 1000 * seed + turn)
        rows.append(row)
        values.append(truth[row] + noise * rng.standard_normal())
    return rows, values


def volume(rows, truth):
    return pareto.hypervolume(np.stack([truth[rows], LATENCY[rows]], axis=1).tolist(), [truth.min(), LATENCY.max()], DIRECTIONS)


def test_nothing_is_proposed_twice_and_the_last_one_is_found():
    codes = codes_of(2, 4, 2)
    latency = 1 + 0.01 * np.count_nonzero(codes, axis=1)
    space, rows = candidates(codes, 4, latency), list[int]()
    truth = truth_of(codes, 4, np.random.default_rng(0))
    while (row := propose(space, OBJECTIVES, tried(codes, latency, rows, truth[rows]), len(rows))) is not None:
        assert row not in rows
        rows.append(row)
    assert sorted(rows) == list(range(len(codes)))


def test_the_same_question_has_the_same_answer_and_seeds_differ():
    truth = truth_of(CODES, 4, np.random.default_rng(1))
    rows = list(range(0, 200, 9))
    seen = tried(CODES, LATENCY, rows, truth[rows])
    assert propose(SPACE, OBJECTIVES, seen, 5) == propose(SPACE, OBJECTIVES, seen, 5)
    few = tried(CODES, LATENCY, rows[: START - 1], truth[rows[: START - 1]])
    assert len({propose(SPACE, OBJECTIVES, few, seed) for seed in range(12)}) > 6


def test_what_is_pending_or_excluded_is_not_proposed_and_turns_the_search_elsewhere():
    truth = truth_of(CODES, 4, np.random.default_rng(2))
    rows = list(range(0, 300, 9))
    seen = tried(CODES, LATENCY, rows, truth[rows])
    first = propose(SPACE, OBJECTIVES, seen, 3)
    second = propose(SPACE, OBJECTIVES, replace(seen, pending=CODES[[first]]), 3)
    third = propose(SPACE, OBJECTIVES, replace(seen, excluded=CODES[[first, second]]), 3)
    assert len({first, second, third}) == 3


@pytest.mark.slow
def test_it_finds_in_thirty_trials_what_chance_does_not_in_a_hundred():
    shares, chance = [], []
    for seed in range(3):
        truth = truth_of(CODES, 4, np.random.default_rng(seed))
        best = volume(np.arange(len(CODES)), truth)
        shares.append(volume(search(seed, 30, truth)[0], truth) / best)
        rng = np.random.default_rng(seed)
        chance.append(np.mean([volume(rng.choice(len(CODES), 100, replace=False), truth) / best for _ in range(20)]))
    assert np.mean(shares) > np.mean(chance) + 0.03
    assert np.mean(shares) > 0.95


def test_a_model_is_asked_as_soon_as_every_choice_was_seen():
    seen = np.array([[1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3], [2, 0, 0, 1, 1], [3, 3, 0, 0, 2]], dtype=np.int16)
    assert len(seen) == FEWEST
    assert enough_to_begin(SPACE.genes, seen)
    assert not enough_to_begin(SPACE.genes, seen[1:])
    without_one = CODES[CODES[:, 0] != 3]
    assert not enough_to_begin(SPACE.genes, np.repeat(without_one[: START - 1], 2, axis=0))  # twice the same says nothing new
    assert enough_to_begin(SPACE.genes, without_one[:START])


def test_at_the_start_every_choice_is_tried():
    """Ten trials of three placements at most, out of twelve that there are."""
    rows = search(0, START - 1, np.zeros(len(CODES)))[0]
    assert all(set(CODES[rows, site].tolist()) == {0, 1, 2, 3} for site in range(CODES.shape[1]))


def test_a_lucky_observation_is_not_recommended_over_better_ones():
    """Sixty candidates with one noisy score each: the observed front is up by luck, and no better in truth than the recommended one."""
    rng = np.random.default_rng(0)
    truth = truth_of(CODES, 4, rng)
    rows = rng.choice(np.flatnonzero(LATENCY > 1), 60, replace=False).tolist()
    values = truth[rows] + 0.3 * rng.standard_normal(len(rows))
    observed = {rows[i] for i in pareto.front(np.stack([values, LATENCY[rows]], axis=1).tolist(), DIRECTIONS)}
    believed = set(recommended(SPACE, OBJECTIVES, tried(CODES, LATENCY, rows, values, noise=0.3), 0).tolist())
    luck = np.mean([values[rows.index(row)] - truth[row] for row in observed])
    better = np.mean([truth[row] for row in believed]) - np.mean([truth[row] for row in observed])
    assert luck > 0.1
    assert better > -0.05
    assert believed != observed


@pytest.mark.parametrize("known", [True, False])
def test_objectives_that_are_not_known_are_modelled(known):
    truth = truth_of(CODES, 4, np.random.default_rng(3))
    space = SPACE if known else replace(SPACE, known={}, features=np.zeros((len(CODES), 0)))
    rows = np.random.default_rng(0).choice(len(CODES), 60, replace=False).tolist()
    belief = Belief(space, OBJECTIVES, tried(CODES, LATENCY, rows, truth[rows]), 0)
    rest = np.setdiff1d(np.arange(len(CODES)), rows)
    expected = belief.means(rest)
    assert set(belief.surrogates) == ({0} if known else {0, 1})
    assert np.corrcoef(expected[:, 1], LATENCY[rest])[0, 1] > 0.95
    assert np.corrcoef(-expected[:, 0], truth[rest])[0, 1] > 0.6


def test_the_good_end_of_an_unknown_cost_is_modelled_as_finely_as_that_of_a_score():
    """Latencies that lie close together at their good end, with a tail of very slow candidates: what is pressed together is the tail."""
    latency = 1 + 0.01 * CODES.sum(axis=1) + np.where(CODES[:, 0] == 3, 5.0, 0.0)
    space = replace(SPACE, known={}, features=np.zeros((len(CODES), 0)))
    rows = np.random.default_rng(0).choice(len(CODES), 60, replace=False).tolist()
    belief = Belief(space, OBJECTIVES, tried(CODES, latency, rows, truth_of(CODES, 4, np.random.default_rng(3))[rows]), 0)
    fast = np.setdiff1d(np.flatnonzero(latency < 2), rows)
    assert np.corrcoef(belief.means(fast)[:, 1], latency[fast])[0, 1] > 0.9


def test_three_objectives_are_searched_as_well():
    params = 2 + 0.1 * np.count_nonzero(CODES, axis=1)
    objectives = {**OBJECTIVES, "params_m": "minimize"}
    space = replace(SPACE, known={"latency_ratio": LATENCY, "params_m": params})
    truth = truth_of(CODES, 4, np.random.default_rng(4))
    rows = list(range(0, 200, 9))
    seen = tried(CODES, LATENCY, rows, truth[rows])
    seen = replace(seen, values=np.column_stack([seen.values, params[rows]]))
    assert propose(space, objectives, seen, 0) not in rows


def test_many_at_once_know_of_each_other():
    """The second of a batch is what an ask gives that knows the first to be under way, or nearly as good; never the first one's twin."""
    truth = truth_of(CODES, 4, np.random.default_rng(6))
    rows = list(range(0, 300, 9))
    seen = tried(CODES, LATENCY, rows, truth[rows])
    batch = propose_many(SPACE, OBJECTIVES, seen, 3, 2 * ROUND + 3)
    assert batch[0] == propose(SPACE, OBJECTIVES, seen, 3)
    assert batch[:7] == propose_many(SPACE, OBJECTIVES, seen, 3, 7)
    assert len({*batch, *rows}) == len(batch) + len(rows)
    gains = [volume([*rows, *batch[:count]], truth) for count in (1, ROUND, 2 * ROUND)]
    rng = np.random.default_rng(0)
    chance = np.mean([volume([*rows, *rng.choice(len(CODES), 2 * ROUND, replace=False)], truth) for _ in range(20)])
    assert gains[0] <= gains[1] <= gains[2]
    assert gains[1] > chance


def test_the_trials_of_which_validity_is_learned_are_bounded(monkeypatch):
    asked = []

    def learn(codes, valid, failed, seed):  # noqa: ARG001
        asked.append(len(valid) + len(failed))
        return np.ones(len(codes))

    monkeypatch.setattr("nas_attn.propose.validity", learn)
    rows = list(range(0, 300, 9))
    seen = replace(tried(CODES, LATENCY, rows, np.zeros(len(rows))), excluded=CODES[301:340])
    propose(SPACE, OBJECTIVES, seen, 0)
    assert set(asked) == {len(rows) + 39}
    monkeypatch.setattr("nas_attn.propose.MOST_SEEN", 30)
    propose(SPACE, OBJECTIVES, seen, 0)
    assert 10 < asked[-1] < 50
