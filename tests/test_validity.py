"""What cannot be had is learnt from what failed, and weighs on what is tried next."""

import numpy as np
import pytest
from landscapes import OBJECTIVES, candidates, codes_of, tried, truth_of

from nas_attn.propose import propose
from nas_attn.validity import validity

CODES = codes_of(4, 4, 4)
BROKEN = (CODES[:, 0] == 2) & (CODES[:, 1] >= 2)
"""Two choices that do not go together."""


def split(rows):
    return CODES[rows][~BROKEN[rows]], CODES[rows][BROKEN[rows]]


def test_what_does_not_go_together_is_learnt():
    rng = np.random.default_rng(0)
    rows = rng.choice(len(CODES), 80, replace=False)
    rest = np.setdiff1d(np.arange(len(CODES)), rows)
    chance = validity(CODES[rest], *split(rows), 0)
    assert chance[~BROKEN[rest]].mean() > 0.9
    assert chance[BROKEN[rest]].mean() < 0.6
    assert chance[BROKEN[rest]].max() < np.median(chance[~BROKEN[rest]])
    assert np.all((chance > 0) & (chance < 1))
    np.testing.assert_array_equal(chance, validity(CODES[rest], *split(rows), 0))


def test_without_failures_nothing_is_doubted_and_a_few_observations_are_no_proof():
    none = CODES[:0]
    np.testing.assert_array_equal(validity(CODES, CODES[:5], none, 0), 1.0)
    np.testing.assert_allclose(validity(CODES, none, CODES[:3], 0), 0.2)
    few = validity(CODES, CODES[[1]], CODES[[2]], 0)
    assert few.min() == pytest.approx(0.25)
    assert few.max() == pytest.approx(0.75)
    assert len(validity(none, CODES[:5], CODES[5:9], 0)) == 0


def test_what_fails_like_all_of_its_kind_is_hardly_asked_for(monkeypatch):
    """Both choices are good by themselves, so that a model of accuracy alone asks for the pairs of them that have not failed yet."""
    latency = 1 + 0.01 * CODES.sum(axis=1)
    space = candidates(CODES, 4, latency)

    def asked_for_broken(seed):
        rng = np.random.default_rng(seed)
        truth = 0.5 * (CODES[:, 0] == 2) + 0.5 * (CODES[:, 1] >= 2) + 0.4 * truth_of(CODES, 4, rng)
        failed = rng.permutation(np.flatnonzero(BROKEN))[:-4]
        rows = rng.choice(np.flatnonzero(~BROKEN), 60, replace=False).tolist()
        seen = tried(CODES, latency, rows, truth[rows], excluded=CODES[failed])
        return sum(bool(BROKEN[propose(space, OBJECTIVES, seen, k)]) for k in range(5))

    doubting = sum(map(asked_for_broken, range(3)))
    monkeypatch.setattr("nas_attn.propose.validity", lambda asked, *_: np.ones(len(asked)))
    assert doubting <= 2 < 10 <= sum(map(asked_for_broken, range(3)))
