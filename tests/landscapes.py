"""Landscapes whose truth is known: sites x options with additive and pairwise effects, for the tests of what models accuracy."""

import itertools

import numpy as np

from nas_attn.candidates import Candidates
from nas_attn.propose import Tried

OBJECTIVES = {"map50_95": "maximize", "latency_ratio": "minimize"}


def codes_of(sites, options, most):
    """All rows with at most `most` choices that are not 0."""
    return np.array([r for r in itertools.product(range(options), repeat=sites) if sum(map(bool, r)) <= most], dtype=np.int16)


def truth_of(codes, options, rng, *, sd=0.46, pairwise=0.3):
    """Gains over the base: additive and pairwise effects, `pairwise` being the latter's share of the variance; `sd` over all candidates."""
    sites = codes.shape[1]
    main = sum(np.r_[0.0, rng.standard_normal(options - 1)][codes[:, g]] for g in range(sites))
    pair = np.zeros(len(codes))
    for g, h in itertools.combinations(range(sites), 2):
        table = rng.standard_normal((options, options))
        table[0], table[:, 0] = 0, 0
        pair += table[codes[:, g], codes[:, h]]
    total = main / main.std() * np.sqrt(1 - pairwise) + pair / pair.std() * np.sqrt(pairwise)
    return total / total.std() * sd


def candidates(codes, options, latency, **changes):
    """Candidates of a landscape: choice 0 is nothing, all others are alike."""
    prior = np.full((options, options), 0.15)
    np.fill_diagonal(prior, 1.0)
    prior[0], prior[:, 0] = 0, 0
    sites = codes.shape[1]
    genes = {f"site{g}": ("none", *(f"m{k}" for k in range(1, options))) for g in range(sites)}
    return Candidates(genes=genes, codes=codes, known={"latency_ratio": latency}, covariances=(prior,) * sites, **changes)


def tried(codes, latency, rows, values, **changes):
    """Observations at rows, each with a seed of its own."""
    none = np.zeros((0, codes.shape[1]), dtype=np.int16)
    points = np.stack([np.asarray(values, dtype=float), latency[rows]], axis=1)
    given = {"seeds": np.full(len(rows), -1), "pending": none, "excluded": none}
    return Tried(codes=codes[rows], values=points, **{**given, **changes})
