"""The statistics of the placement benchmark, on synthetic benchmarks whose truth is known."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nas_attn.errors import InputError

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from placebench_figures import expected_rho, expected_tau, figures, link, noise_of
from placement_model import (
    Effects,
    Landscapes,
    PlacementModel,
    load,
    load_costs,
    placement_covariance,
    scores,
    trainings,
)
from racing_replay import Field, race

MODULES = ("", "CoordAtt", "DoubleAttention", "ECA", "LSKA")
SITES = 4
EPOCHS, LONG = 4, 8


def drawn_truth(rng, codes, main, pair, own):
    """Values (N,) of architectures with placement effects of these SDs over the space."""
    mains = rng.standard_normal((SITES, 5))
    mains[:, 0] = 0
    mains *= main / np.sqrt(np.mean([np.var(m) for m in mains]) * SITES)
    total = mains[np.arange(SITES), codes].sum(axis=1)
    tables = {}
    for g in range(SITES):
        for h in range(g + 1, SITES):
            table = rng.standard_normal((5, 5))
            table[0], table[:, 0] = 0, 0
            tables[g, h] = table * pair / 0.8 / np.sqrt(SITES * (SITES - 1) / 2)
            total = total + tables[g, h][codes[:, g], codes[:, h]]
    effects = Effects(level=0.35, mains=tuple(mains), pairs=tables, own=np.zeros(0), deviations={"own": own})
    return 0.35 + total + own * rng.standard_normal(len(codes)), effects


def benchmark(seed, *, main, pair, own, luck, noise, count=90, long_noise=0.001, rho=1.0):
    """A benchmark's table: the base with eight seeds, ten anchors with three, further architectures with one, long trainings."""
    rng = np.random.default_rng(seed)
    codes = np.unique(np.concatenate([np.zeros((1, SITES), int), rng.integers(0, 5, (count, SITES))]), axis=0)
    codes = np.concatenate([codes[:1], rng.permutation(codes[1:])])
    truth, effects = drawn_truth(rng, codes, main, pair, own)
    others = truth.mean() + np.std(truth) * rng.standard_normal(len(truth))
    later = rho * truth + np.sqrt(1 - rho**2) * others
    shared = luck * rng.standard_normal(8)
    rows = []
    for i, code in enumerate(codes):
        seeds = range(8 if i == 0 else 3 if i <= 10 else 1)
        jobs = [(EPOCHS, s, truth[i] + shared[s] + noise * rng.standard_normal()) for s in seeds]
        jobs += [(LONG, s, later[i] + long_noise * rng.standard_normal()) for s in range(2 if i <= 10 else 0)]
        for epochs, s, value in jobs:
            for epoch in range(1, epochs + 1):
                blur = 0.0 if epoch == epochs else 0.02 * rng.standard_normal()
                sites = {f"row_{k}": MODULES[c] for k, c in enumerate(code)}
                score = {"map50_95": value + blur, "val_loss": 4 - value + 0.004 * rng.standard_normal(), "train_seconds": 40.0}
                rows.append({"digest": f"a{i:03d}", **sites, "epochs": epochs, "seed": s, "epoch": epoch, **score})
    return pd.DataFrame(rows), effects


@cache
def fitted(seed, main, pair, own, luck, noise):
    table, effects = benchmark(seed, main=main, pair=pair, own=own, luck=luck, noise=noise)
    return PlacementModel(trainings(table)), effects


def part_interval(model, name):
    drawn = model.draws(200, seed=0)
    values = [np.sqrt(d.variances().get(name, d.deviations[name] ** 2)) for d in drawn]
    return np.quantile(values, [0.02, 0.5, 0.98])


def test_an_additive_landscape_is_seen_as_additive():
    model, truth = fitted(0, 0.012, 0.0, 0.0, 0.0, 0.003)
    low, _, high = part_interval(model, "additive")
    assert low < np.sqrt(truth.variances()["additive"]) < high
    between = [d.variances() for d in model.draws(200, seed=0)]
    assert np.median([v["additive"] / sum(v.values()) for v in between]) > 0.8
    assert 0.0022 < model.noise < 0.0042


def test_a_pairwise_landscape_is_not_seen_as_additive():
    model, truth = fitted(1, 0.001, 0.012, 0.0, 0.0, 0.002)
    shares = [v["pairwise"] / sum(v.values()) for v in (d.variances() for d in model.draws(200, seed=0))]
    true = truth.variances()
    low, _, high = np.quantile(shares, [0.02, 0.5, 0.98])
    assert low < true["pairwise"] / sum(true.values()) < high
    assert np.median(shares) > 0.25


def test_where_nothing_matters_the_noise_is_what_there_is():
    model, _ = fitted(2, 0.0, 0.0, 0.0, 0.0, 0.004)
    between = [np.sqrt(sum(d.variances().values())) for d in model.draws(200, seed=0)]
    assert np.median(between) < 0.003
    assert 0.003 < model.noise < 0.005


def test_an_effect_of_the_seed_is_told_from_noise():
    model, _ = fitted(3, 0.008, 0.0, 0.0, 0.008, 0.002)
    low, middle, high = part_interval(model, "seed")
    assert low < 0.008 < high
    assert middle > 2 * part_interval(model, "noise")[1]


def test_what_is_the_architectures_own_is_told_from_noise():
    model, _ = fitted(4, 0.004, 0.0, 0.01, 0.0, 0.001)
    assert part_interval(model, "own")[1] > 2 * part_interval(model, "noise")[1]


def test_draws_cover_the_true_effects():
    model, truth = fitted(0, 0.012, 0.0, 0.0, 0.0, 0.003)
    codes = np.random.default_rng(9).integers(0, 5, (200, SITES)).astype(np.int16)
    drawn = np.stack([d.values(codes) for d in model.draws(300, seed=1)])
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    true = truth.values(codes)
    assert 0.7 < np.mean((low < true) & (true < high)) <= 1.0
    assert np.corrcoef(drawn.mean(axis=0), true)[0, 1] > 0.9


def test_draws_are_the_posterior_of_the_textbook():
    """Draws of the trained architectures' values against the closed form of a Gaussian posterior, one setting of the variances."""
    model, _ = fitted(5, 0.008, 0.004, 0.003, 0.004, 0.002)
    variances = np.array([6e-5, 2e-5, 1e-5, 1e-5, 4e-6])
    rng = np.random.default_rng(0)
    drawn = model.true_values([model._effects(variances, rng) for _ in range(600)])
    parts = model._kernels
    every, own = np.tensordot(variances, parts, 1), np.tensordot(variances[:3], parts[:3], 1)
    n = len(every)
    # A flat prior on the level is the limit of a wide one.
    wide = 0.04 * np.ones((n, n))
    gain = (own + wide) @ np.linalg.inv(every + wide)
    mean, covariance = gain @ model.data.values, own + wide - gain @ (own + wide)
    rows = model.data.rows
    np.testing.assert_allclose(drawn.mean(axis=0)[rows], mean, atol=5 * np.sqrt(covariance.diagonal().max() / 600))
    np.testing.assert_allclose(drawn.std(axis=0)[rows], np.sqrt(covariance.diagonal()), rtol=0.15)


def test_shares_do_not_depend_on_which_option_is_nothing():
    rng = np.random.default_rng(0)
    mains = tuple(rng.standard_normal((SITES, 5)))
    pairs = {(g, h): rng.standard_normal((5, 5)) for g in range(SITES) for h in range(g + 1, SITES)}
    effects = Effects(level=1.0, mains=mains, pairs=pairs, own=np.zeros(0), deviations={"own": 0.0})
    codes = np.indices((5,) * SITES, dtype=np.int16).reshape(SITES, -1).T
    values = effects.values(codes).reshape((5,) * SITES)
    additive = sum(np.var(values.mean(axis=tuple(k for k in range(SITES) if k != g))) for g in range(SITES))
    parts = effects.variances()
    assert parts["additive"] == pytest.approx(additive)
    assert parts["additive"] + parts["pairwise"] == pytest.approx(np.var(values))


def test_left_out_predictions_are_those_of_a_model_without_that_training():
    model, _ = fitted(0, 0.012, 0.0, 0.0, 0.0, 0.003)
    one = int(np.argmax(model.weights))
    only = object.__new__(PlacementModel)
    only.__dict__.update(model.__dict__, variances=model.variances[one : one + 1], weights=np.ones(1))
    once, expected = only.left_out()
    k, y = only._covariance(only.variances[0]), model.data.values
    kept = np.arange(len(y)) != once[0]
    inverse = np.linalg.inv(k[np.ix_(kept, kept)])
    level = inverse.sum(axis=0) @ y[kept] / inverse.sum()
    assert expected[0] == pytest.approx(level + k[once[0], kept] @ inverse @ (y[kept] - level))


def test_a_landscape_is_the_whole_space_and_repeatable():
    model, _ = fitted(0, 0.012, 0.0, 0.0, 0.0, 0.003)
    costs = pd.DataFrame({"digest": model.data.digests, "latency_ratio": 1.0 + 0.1 * (model.data.codes > 0).sum(axis=1)})
    made = Landscapes(model, costs)
    first, again, other = made.draw(1), made.draw(1), made.draw(2)
    assert len(first.table) == 5**SITES
    assert np.array_equal(first.table.values["map50_95"], again.table.values["map50_95"])
    assert not np.array_equal(first.table.values["map50_95"], other.table.values["map50_95"])
    np.testing.assert_allclose(first.table.values["latency_ratio"], 1.0 + 0.1 * (made.codes > 0).sum(axis=1), atol=0.01)
    assert first.table.params(first.base) == dict.fromkeys(model.data.genes, "none")
    assert 0.002 < first.noise < 0.005
    with_own = made.draw(1, own=True).table.values["map50_95"] - first.table.values["map50_95"]
    assert np.any(with_own != 0)


def test_without_costs_there_is_no_landscape(tmp_path):
    with pytest.raises(InputError, match="need measured costs"):
        load_costs(tmp_path / "placebench-x.csv")
    with pytest.raises(InputError, match="must be a file"):
        load(tmp_path / "placebench-x.csv")


def test_nothing_has_no_effect_and_families_are_alike():
    prior = placement_covariance(("none", "ECA", "LSKA"))
    assert np.array_equal(prior[0], np.zeros(3))
    assert prior[1, 1] == prior[2, 2] == 1.0
    assert 0 < prior[1, 2] < 1


# -- figures ----------------------------------------------------------------------


def test_scores_average_the_last_epochs_of_whole_trainings():
    table = pd.DataFrame({"digest": "a", "epochs": 3, "seed": [0, 0, 0, 1, 1], "epoch": [1, 2, 3, 1, 2], "map50_95": [1.0, 2, 4, 8, 16]})
    assert scores(table, 3, average=2).to_dict("list") == {"digest": ["a"], "seed": [0], "value": [3.0]}
    assert scores(table, 3, until=2).to_dict("list") == {"digest": ["a", "a"], "seed": [0, 1], "value": [2.0, 16.0]}


def test_noise_is_recovered_with_and_without_the_seeds_effect():
    rng, rows = np.random.default_rng(0), []
    shared = 3.0 * rng.standard_normal(6)
    for name in range(40):
        own = 5.0 * rng.standard_normal()
        rows += [{"digest": str(name), "seed": s, "value": own + shared[s] + rng.standard_normal()} for s in range(6)]
    found = noise_of(pd.DataFrame([*rows, {"digest": "single", "seed": 0, "value": 99.0}]))
    assert found.paired == pytest.approx(1.0, abs=0.12)
    assert found.unpaired == pytest.approx(np.sqrt(np.var(shared, ddof=1) + 1), rel=0.1)
    assert found.freedom == 40 * 6 - 40 - 6 + 1
    assert sum(found.squares.values()) == pytest.approx(found.paired**2 * found.freedom)


def test_the_ceiling_is_what_a_perfect_proxy_reaches():
    rng = np.random.default_rng(0)
    reliability, other, count = 0.5, 0.8, 11
    taus, rhos = [], []
    for _ in range(3000):
        true = rng.standard_normal(count)
        first = true + np.sqrt(1 / reliability - 1) * rng.standard_normal(count)
        second = true + np.sqrt(1 / other - 1) * rng.standard_normal(count)
        rhos.append(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])
        taus.append(np.sign(np.subtract.outer(first, first) * np.subtract.outer(second, second)).sum() / (count * (count - 1)))
    pearson = np.sqrt(reliability * other)
    assert np.mean(taus) == pytest.approx(expected_tau(pearson), abs=0.015)
    assert np.mean(rhos) == pytest.approx(expected_rho(pearson, count), abs=0.015)


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_the_true_correlation_is_seen_through_noise(rho):
    rng = np.random.default_rng(1)
    true = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=400)
    noisy = true + 0.8 * rng.standard_normal(true.shape)
    found = link(noisy[:, 0], noisy[:, 1], 0.8, 0.8)
    _, low, high = found.interval(found.rho)
    assert low - 0.03 <= rho <= high + 0.03
    assert high - low < 0.35
    assert np.corrcoef(noisy.T)[0, 1] < 0.7
    assert float(found.weights @ found.first) == pytest.approx(1 / 1.64, abs=0.1)


def test_a_dozen_noisy_architectures_say_little():
    rng = np.random.default_rng(0)
    found = link(rng.standard_normal(11), rng.standard_normal(11), 1.0, 1.0)
    _, low, high = found.interval(found.rho)
    assert high - low > 1.2
    assert abs(found.mean) < 0.5


def figure(found, name):
    return found.set_index("quantity").loc[name]


def test_figures_name_the_better_proxy():
    table, _ = benchmark(7, main=0.012, pair=0.0, own=0.0, luck=0.003, noise=0.002, count=60)
    found = figures(table, bootstraps=20)
    # Epochs before the last are blurred in this benchmark, losses nearly are not: reading the loss is the better proxy at epoch 3.
    loss, accuracy = "-val_loss, epoch 3, mean of 1", "mAP50-95, epoch 3, mean of 1"
    assert figure(found, f"proxy reliability: {loss}").value > figure(found, f"proxy reliability: {accuracy}").value + 0.2
    assert figure(found, f"proxy seconds: {loss}").value == pytest.approx(30.0)
    assert figure(found, "true correlation").value > 0.85
    assert 0.6 < figure(found, "Kendall tau, one seed: ceiling").value < 1
    assert figure(found, "architectures with several seeds").value == 11
    assert figure(found, "paired to unpaired").value < 1


def test_figures_come_without_long_trainings_as_well():
    table, _ = benchmark(7, main=0.012, pair=0.0, own=0.0, luck=0.0, noise=0.002, count=40)
    found = figures(table[table["epochs"] == EPOCHS], bootstraps=5)
    assert not found["quantity"].str.contains("correlation").drop(found.index[found["quantity"].str.startswith("prediction")]).any()
    assert found["quantity"].str.startswith("proxy reliability").any()


# -- racing ----------------------------------------------------------------------


def racing_field(noise):
    rng = np.random.default_rng(0)
    true = np.concatenate([[0.3], 0.3 + 0.02 * rng.standard_normal(40)])
    curves = true[:, None] - np.array([0.1, 0.05, 0.0]) + noise * rng.standard_normal((41, 3))
    costs = np.concatenate([[1.0], rng.uniform(1.0, 1.3, 40)])
    return Field(curves=curves, costs=costs, truths={"true": true, "last epoch": curves[:, -1]}, base=0)


def test_racing_on_clear_curves_keeps_the_front_and_saves_epochs():
    field = racing_field(0.0002)
    found = race(field, (1, 2, 3), np.random.default_rng(1).permutation(41).tolist(), 2)
    assert found["racing: true"] == pytest.approx(1.0, abs=1e-3)
    assert found["front kept"] == 1.0
    assert found["epochs"] < 0.7
    assert found["fewer: true"] <= 1.0


def test_one_rung_is_full_length():
    field = racing_field(0.01)
    found = race(field, (3,), list(range(41)), 2)
    assert found["epochs"] == found["finished"] == found["front kept"] == 1.0
    assert found["racing: true"] == pytest.approx(1.0)
    assert found["fewer: true"] == pytest.approx(1.0)
