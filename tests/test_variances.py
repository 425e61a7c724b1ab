"""How large each part is: the marginal likelihood, the prior that nothing may matter, and the sampler of settings."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import multivariate_normal

from nas_attn import variances
from nas_attn.variances import PARTS, THOROUGH, Prior, posterior

NOISE, MAIN, SEED = PARTS.index("noise"), PARTS.index("main"), PARTS.index("seed")


def kernels(count=40, genes=5, seed=0):
    """Main effects of `genes` genes of three choices, and noise; all other parts are nothing."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(3, size=(count, genes))
    made = np.zeros((len(PARTS), count, count))
    made[MAIN] = sum(np.equal.outer(codes[:, g], codes[:, g]) * np.outer(codes[:, g] > 0, codes[:, g] > 0) for g in range(genes)) / genes
    made[NOISE] = np.eye(count)
    return made


def drawn(main, noise, seed=0):
    made, rng = kernels(seed=seed), np.random.default_rng(seed)
    targets = rng.multivariate_normal(np.zeros(40), main * made[MAIN] + noise * made[NOISE])
    return made, (targets - targets.mean()) / targets.std()


def expected(prior, made, targets, effort, seed=0):
    settings, weights = posterior(prior, made, targets, np.zeros(len(targets)), effort, np.random.default_rng(seed))
    assert weights.sum() == pytest.approx(1)
    assert np.all(np.diff(weights) <= 0)
    return weights @ settings


def test_the_evidence_is_the_likelihood_with_the_level_integrated_out():
    rng = np.random.default_rng(0)
    targets = rng.standard_normal(6)
    found = []
    for scale in (0.3, 2.0):
        root = rng.standard_normal((6, 6))
        covariance = scale * root @ root.T + np.eye(6)
        normal = multivariate_normal(np.zeros(6), covariance + variances.JITTER * np.eye(6))
        brute = np.log(quad(lambda level, normal=normal: float(normal.pdf(targets - level)), -30, 30, points=[0])[0])
        found.append(variances._evidence(covariance, targets) - brute)
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_sampler_agrees_with_a_brute_sample_of_the_prior(seed):
    made, targets = drawn(2.0, 0.3, seed)
    prior = Prior.of({"pair", "joint", "forest", "own", "seed"}, None, 0.5)
    brute = expected(prior, made, targets, replace(THOROUGH, broad=8192, rounds=0, kept=8192))
    found = np.mean([expected(prior, made, targets, THOROUGH, sampler) for sampler in range(8)], axis=0)
    assert np.log(found[[MAIN, NOISE]]) == pytest.approx(np.log(brute[[MAIN, NOISE]]), abs=0.15)


def test_where_nothing_matters_that_is_believed_and_where_something_does_it_is_not():
    prior = Prior.of({"pair", "joint", "forest", "own", "seed"}, None, 0.5)
    null = [expected(prior, *drawn(0.0, 1.0, seed), THOROUGH)[MAIN] for seed in range(5)]
    some = [expected(prior, *drawn(3.0, 0.3, seed), THOROUGH)[MAIN] for seed in range(5)]
    assert np.mean(null) < 0.4 < 1.0 < min(some)
    believer = Prior.of({"pair", "joint", "forest", "own", "seed"}, None, 0.01)
    credulous = [expected(believer, *drawn(0.0, 1.0, seed), THOROUGH)[MAIN] for seed in range(5)]
    assert np.mean(credulous) > 1.3 * np.mean(null)


def test_a_noise_that_was_told_is_split_where_seeds_have_luck_of_their_own():
    alone = Prior.of({"seed"}, 0.25, 0.5)
    assert np.exp(alone.centre[NOISE]) == pytest.approx(0.25)
    assert np.exp(alone.centre[SEED]) == pytest.approx(variances.JITTER)
    shared = Prior.of(set(), 0.25, 0.5)
    assert np.exp(shared.centre[NOISE]) * (1 + np.exp(shared.centre[SEED])) == pytest.approx(0.25)
    assert Prior.of(set(), None, 0.5).spread[NOISE] > alone.spread[NOISE]
    assert np.all(alone.null <= alone.centre)
