"""What the atlas says of placements, beside landscapes whose effects are known."""

import dataclasses
import random
import statistics
from functools import cache

import pytest
from snapshots import BASE, OBJECTIVES, base, failed, placement, rejected, running, snapshot, stopped, trial

from nas_attn.architecture import Architecture, Placement
from nas_attn.effects import COLUMNS, INTERACTION_COLUMNS, MOST_INTERACTIONS, Atlas, atlas, atlas_table, interactions_table
from nas_attn.posterior import believe

ROWS, KINDS = (4, 6, 9, 13, 16), range(6)
PLANTED = ((6, "LIA"), (13, "LIA"))


def truths(seed=0, spread=0.012):
    """What each placement of a landscape does to mAP50-95, and to latency; LSKA has two options a row that are alike."""
    rng = random.Random(seed)
    cells = {(row, kind): rng.gauss(0, spread) for row in ROWS for kind in KINDS}
    gains = {placement(*at): cells[at] if at[1] != 1 else cells[at[0], 0] + rng.gauss(0, spread / 4) for at in cells}
    return gains, {placed: rng.uniform(0.0, 0.15) for placed in gains}


def landscape(gains, latencies, *, count=80, seed=0, noise=0.003, between=None, extra=None, objectives=None):
    """A study of random architectures of one to three placements in a sum of effects; `between` is what two cells do beyond it."""
    rng, rows = random.Random(seed), sorted({placed.layer for placed in gains})
    trials, seen = [base([0.4 + rng.gauss(0, noise) for _ in range(3)], extra=extra)], set()
    while len(trials) <= count:
        placed = tuple(rng.choice([p for p in gains if p.layer == row]) for row in sorted(rng.sample(rows, rng.randint(1, 3))))
        if placed not in seen:
            seen.add(placed)
            both = {(p.layer, p.module) for p in placed}.issuperset(PLANTED)
            worth = 0.4 + sum(gains[p] for p in placed) + (between if between and both else 0.0)
            ratio = 1.0 + sum(latencies[p] for p in placed) + rng.gauss(0, 0.004)
            trials.append(trial(len(trials), placed, worth + rng.gauss(0, noise), ratio, extra=extra))
    return snapshot(*trials, objectives=objectives)


@cache
def known():
    """A study of eighty trials, its true effects, and its atlas."""
    gains, latencies = truths()
    snap = landscape(gains, latencies)
    return snap, gains, latencies, atlas(snap)


def options_of(snap):
    """The placements that measured trials hold, in the order of an atlas."""
    return sorted({p for t in snap.trials if t.kind == "measured" for p in t.architecture.placements})


def mean_of(truth, snap, cell):
    """The mean over what was tried at a cell."""
    return statistics.fmean(truth[p] for p in options_of(snap) if (p.layer, p.module) == (cell.row, cell.module))


def share(found):
    found = list(found)
    return sum(found) / len(found)


def test_true_gains_lie_in_their_intervals_and_large_ones_are_sure():
    snap, gains, _, found = known()
    assert len(found.cells) == 25
    assert share(cell.gain_low <= mean_of(gains, snap, cell) <= cell.gain_high for cell in found.cells) >= 0.8
    assert share(o.gain_low <= gains[p] <= o.gain_high for p, o in zip(options_of(snap), found.options, strict=True)) >= 0.8
    assert statistics.fmean(abs(cell.gain - mean_of(gains, snap, cell)) for cell in found.cells) < 0.003
    large = [(mean_of(gains, snap, cell), cell) for cell in found.cells if abs(mean_of(gains, snap, cell)) > 0.01]
    assert len(large) >= 8
    assert all(cell.p_better > 0.95 if gain > 0 else cell.p_better < 0.05 for gain, cell in large)
    assert all(cell.gain_low < cell.gain < cell.gain_high for cell in found.cells)


def test_true_latencies_are_found_and_lie_in_their_intervals():
    snap, _, latencies, found = known()
    for cell in found.cells:
        assert cell.latency == pytest.approx(mean_of(latencies, snap, cell), abs=0.01)
    held = [o.latency_low <= latencies[p] <= o.latency_high for p, o in zip(options_of(snap), found.options, strict=True)]
    assert share(held) >= 0.8
    assert all(o.latency_high - o.latency_low < 0.03 for o in found.options)


def test_in_mere_noise_nothing_is_said_to_matter():
    gains, latencies = truths(spread=0.0)
    for seed in range(2):
        found = atlas(landscape(gains, latencies, count=50, seed=seed, noise=0.006))
        assert share(cell.gain_low <= 0 <= cell.gain_high for cell in found.cells) >= 0.9
        assert share(0.02 < cell.p_better < 0.98 for cell in found.cells) >= 0.9
        assert share(both.gain_low <= 0 <= both.gain_high for both in found.interactions) >= 0.9


def test_cells_and_options_are_those_of_measured_trials_by_row_module_and_options():
    snap, _, _, found = known()
    held = [t.architecture.placements for t in snap.trials]
    assert [(c.row, c.module) for c in found.cells] == sorted({(p.layer, p.module) for p in options_of(snap)})
    assert [(o.row, o.module, o.trials) for o in found.options] == [
        (p.layer, p.module, sum(p in placed for placed in held)) for p in options_of(snap)
    ]
    for cell in found.cells:
        parts = [o for o in found.options if (o.row, o.module) == (cell.row, cell.module)]
        assert cell.params == ""
        assert cell.trials == sum(o.trials for o in parts)
        assert cell.gain == pytest.approx(statistics.fmean(o.gain for o in parts))
        assert cell.latency == pytest.approx(statistics.fmean(o.latency for o in parts))
    assert [o.params for o in found.options if o.row == 4 and o.module in ("LIA", "LSKA")] == [
        "f=16", "k_size=7, use_proj=false", "k_size=23, use_proj=false",
    ]  # fmt: skip


def test_a_planted_interaction_comes_first():
    gains, latencies = truths(spread=0.004)
    gains = {placed: gain for placed, gain in gains.items() if placed.layer in (6, 9, 13) and placed.module in ("LIA", "LSKA")}
    snap = landscape(gains, latencies, count=45, noise=0.002, between=0.03)
    first, second = atlas(snap).interactions[:2]
    assert (first.first, first.second) == PLANTED
    assert first.gain_low <= 0.03 <= first.gain_high
    assert first.gain_low > 0
    assert abs(first.gain) > 2 * abs(second.gain)
    assert first.trials == sum({(p.layer, p.module) for p in t.architecture.placements}.issuperset(PLANTED) for t in snap.trials)


def test_interactions_are_of_cells_held_together_the_largest_first():
    snap, _, _, found = known()
    together = {frozenset((p.layer, p.module) for p in t.architecture.placements) for t in snap.trials}
    sizes = [abs(both.gain) for both in found.interactions]
    assert sizes == sorted(sizes, reverse=True)
    assert len({(both.first, both.second) for both in found.interactions}) == len(sizes) == MOST_INTERACTIONS
    for both in found.interactions:
        assert both.first < both.second
        assert both.trials == sum({both.first, both.second} <= cells for cells in together) > 0


def test_of_a_placement_that_was_trained_alone_it_says_what_is_claimed_of_the_trial():
    snap, *_, found = known()
    believed = believe(snap)
    alone = {t.architecture.placements[0]: believed.of(t).claim for t in snap.trials if len(t.architecture.placements) == 1}
    assert len(alone) > 10
    for placed, option in zip(options_of(snap), found.options, strict=True):
        if placed in alone:
            spread = alone[placed].gain_high - alone[placed].gain_low
            assert option.gain == pytest.approx(alone[placed].gain, abs=spread / 15)
            assert option.gain_low == pytest.approx(alone[placed].gain_low, abs=spread / 6)


def test_the_same_record_gives_the_same_atlas():
    snap, *_, found = known()
    shuffled = list(snap.trials)
    random.Random(1).shuffle(shuffled)
    assert atlas(dataclasses.replace(snap, trials=tuple(shuffled))) == found
    assert atlas(snap, seed=1) != found


def test_there_is_none_where_nothing_is_believed_or_its_score_is_no_objective():
    few = snapshot(base(), *(trial(k, [placement(4, k)], 0.3, 1.05) for k in range(1, 5)))
    assert believe(few) is None
    assert atlas(few) is None
    assert atlas(snapshot()) is None
    snap = known()[0]
    assert atlas(dataclasses.replace(snap, trials=snap.trials[1:])) is None
    loose = [dataclasses.replace(t, values={"map50": 0.5, "latency_ratio": 1.0}) for t in snap.trials]
    other = dataclasses.replace(snap, trials=tuple(loose), objectives={"map50": "maximize", "latency_ratio": "minimize"})
    assert believe(other) is not None
    assert atlas(other) is None


@pytest.mark.parametrize("objectives", [{**OBJECTIVES, "params_m": "minimize"}, {"params_m": "minimize", "map50_95": "maximize"}])
def test_objectives_may_be_three_in_any_order_or_without_latency(objectives):
    gains, latencies = truths()
    snap = landscape(gains, latencies, extra={"params_m": 2.6}, objectives=objectives)
    for cell, same in zip(atlas(snap).cells, known()[3].cells, strict=True):
        assert cell.gain == pytest.approx(same.gain, abs=0.002)
        assert cell.latency == same.latency


def test_trials_without_a_score_tell_of_latency_alone():
    ends = [placement(6, 0), placement(9, 0)]
    placed = [*([placement(row, kind)] for row in (4, 6) for kind in range(5)), ends]
    done = [base(), *(trial(k, where, 0.3 + 0.001 * k, 1.1 + 0.01 * (k % 2)) for k, where in enumerate(placed, 1))]
    over = [dataclasses.replace(rejected(20 + k, ratio=1.8), architecture=Architecture(BASE, (*ends[k:],))) for k in range(2)]
    without = atlas(snapshot(*done))
    found = atlas(snapshot(*done, *over, failed(30), running(31), stopped(32, layer=22)))
    assert [(c.row, c.module, c.trials) for c in found.cells] == [(c.row, c.module, c.trials) for c in without.cells]
    assert found.cells[-1].latency > without.cells[-1].latency + 0.1


def test_placements_that_occur_once_have_wide_intervals():
    alone = [Placement(layer=row, module=module) for row in (4, 6) for module in ("SimAM", "NAM", "SE", "ECA")]
    found = atlas(snapshot(base(), *(trial(k, [p], 0.3 + 0.002 * (k % 3), 1.0 + 0.02 * k) for k, p in enumerate(alone, 1))))
    assert [(o.params, o.trials) for o in found.options] == [("", 1)] * 8
    assert found.interactions == ()
    assert interactions_table(found) == []
    for cell in found.cells:
        assert cell.gain_low < 0 < cell.gain_high


def test_of_a_study_with_one_placement_that_occurs_once_it_tells_that_one():
    bases = [dataclasses.replace(base([0.3 + 0.001 * k]), number=k) for k in range(8)]
    found = atlas(snapshot(*bases, trial(8, [placement(9, 2)], 0.32, 1.1)))
    (cell,) = found.cells
    assert (cell.row, cell.module, cell.trials, found.options) == (9, "LIA", 1, (dataclasses.replace(cell, params="f=16"),))
    assert cell.gain > 0
    assert cell.latency == pytest.approx(0.1, abs=0.05)
    assert atlas(snapshot(*bases)) == Atlas(cells=(), options=(), interactions=())


def test_tables_have_exactly_the_columns():
    *_, found = known()
    rows = atlas_table(found)
    assert [tuple(row) for row in rows] == [tuple(COLUMNS)] * (len(found.cells) + len(found.options))
    assert [row["params"] for row in rows[: len(found.cells)]] == [""] * len(found.cells)
    assert rows[-1] == {name: getattr(found.options[-1], name) for name in COLUMNS}
    both = interactions_table(found)
    assert [tuple(row) for row in both] == [tuple(INTERACTION_COLUMNS)] * len(found.interactions)
    assert (both[0]["first_row"], both[0]["first_module"]) == found.interactions[0].first
    assert (both[0]["second_row"], both[0]["second_module"]) == found.interactions[0].second
    plain = atlas(snapshot(base(), *(trial(k, [Placement(layer=k, module="SimAM")], 0.3, 1.02) for k in range(1, 9))))
    assert [row["row"] for row in atlas_table(plain)] == list(range(1, 9))
