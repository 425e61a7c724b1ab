"""The sampler as Optuna sees it, and the choice of architectures in a study."""

import dataclasses

import numpy as np
import optuna
import pytest
from landscapes import OBJECTIVES, candidates, codes_of, truth_of
from snapshots import base, failed, placement, rejected, running, snapshot, stopped, trial

from nas_attn import guide
from nas_attn.architecture import Architecture
from nas_attn.candidates import Candidates, codes_of_space, keys, sites_of
from nas_attn.errors import InputError
from nas_attn.guide import ModelSampler, choose
from nas_attn.sampler import make
from nas_attn.space import SearchSpace, Site

ROWS = (4, 6, 9, 13)
SPACE = SearchSpace(
    base="yolo11n.yaml",
    sites=tuple(Site(layer=row, names=("P3",), module="C3k2", channels=64, stride=8) for row in ROWS),
    placements=tuple(tuple(placement(row, m) for m in range(3)) for row in ROWS),
    max_placements=3,
)
LOST = [Architecture(SPACE.base, (placement(4, m), placement(6, m), placement(13, m))) for m in (0, 1)]
CODES = codes_of(4, 4, 3)
LATENCY = 1 + 0.02 * np.count_nonzero(CODES, axis=1)


def study_of(count, seed=0):
    space = candidates(CODES, 4, LATENCY)
    truth = truth_of(CODES, 4, np.random.default_rng(5))
    row_of = {tuple(row): i for i, row in enumerate(CODES.tolist())}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=list(OBJECTIVES.values()), sampler=ModelSampler(space, OBJECTIVES, seed))
    distributions = {name: optuna.distributions.CategoricalDistribution(choices) for name, choices in space.genes.items()}
    rows = []
    for _ in range(count):
        asked = study.ask(distributions)
        rows.append(row_of[tuple(space.genes[name].index(asked.params[name]) for name in space.genes)])
        study.tell(asked, [truth[rows[-1]], LATENCY[rows[-1]]])
    return study, rows


def test_it_is_an_optuna_sampler_that_never_repeats_itself():
    study, rows = study_of(30)
    assert len(set(rows)) == 30
    assert len(study.trials) == 30
    assert study_of(30)[1] == rows
    assert study_of(12, seed=1)[1] != rows[:12]


def test_what_failed_or_runs_is_not_proposed_again():
    space = Candidates(genes={"a": ("x", "y"), "b": (1, 2)}, codes=np.array([[0, 0], [0, 1], [1, 0]], dtype=np.int16))
    study = optuna.create_study(directions=["maximize"], sampler=ModelSampler(space, {"score": "maximize"}, 0))
    distributions = {name: optuna.distributions.CategoricalDistribution(choices) for name, choices in space.genes.items()}
    first = study.ask(distributions)
    study.tell(first, state=optuna.trial.TrialState.FAIL)
    second, third = study.ask(distributions), study.ask(distributions)
    assert len({tuple(sorted(t.params.items())) for t in (first, second, third)}) == 3
    with pytest.raises(InputError, match="all 3 were; stop here"):
        study.ask(distributions)


def test_parameters_that_are_no_genes_are_refused():
    space = Candidates(genes={"a": ("x", "y")}, codes=np.array([[0], [1]], dtype=np.int16))
    study = optuna.create_study(directions=["maximize"], sampler=ModelSampler(space, {"score": "maximize"}, 0))
    with pytest.raises(InputError, match="'lr' is none of"):
        study.ask({"lr": optuna.distributions.FloatDistribution(0, 1)})
    with pytest.raises(InputError, match="needs candidates"):
        make("model", 0)


# -- studies of architectures --------------------------------------------------------------------------------------------------------------


def study(count=14):
    """LSKA at row 9 is worth 0.02; each placement costs 0.03 of latency, one at row 4 costs 0.2."""
    rng = np.random.default_rng(0)
    sites, trials, seen = sites_of(SPACE), [base()], set()
    for code in rng.permutation(codes_of_space(SPACE, 0)[1:]).tolist():
        architecture = sites.architecture(SPACE.base, np.array(code))
        placed = list(architecture.placements)
        worth = 0.02 if any(p.layer == 9 and p.module == "LSKA" for p in placed) else 0.0
        ratio = 1 + sum(0.2 if p.layer == 4 else 0.03 for p in placed)
        seen.add(architecture.digest())
        trials.append(trial(len(trials), placed, [0.3 + worth + 0.002 * rng.standard_normal()], ratio))
        if len(trials) > count:
            break
    return snapshot(*trials)


def chosen(snap, seed=0, limits=None):
    seen = {t.architecture.digest() for t in snap.trials}
    return choose(SPACE, snap.objectives, limits or {}, snap.trials, seen, seed)


def test_the_next_architecture_is_new_legal_and_the_same_for_the_same_seed():
    snap = study()
    found = chosen(snap)
    assert SPACE.contains(found)
    assert found.digest() not in {t.architecture.digest() for t in snap.trials}
    assert chosen(snap) == found
    assert chosen(dataclasses.replace(snap, trials=(*snap.trials, running(98)))) is not None


def test_a_large_space_is_searched_about_what_looks_good(monkeypatch):
    """Of the best layers only: crossing all trials with each other takes the square of their number."""
    asked = []
    monkeypatch.setattr(guide, "LEADERS", 3)
    monkeypatch.setattr(guide, "codes_of_space", lambda space, seed, around: asked.append(around) or codes_of_space(space, seed, around))
    snap = study(30)
    assert chosen(snap) is not None
    points = {t.architecture.digest(): (t.values["map50_95"], t.values["latency_ratio"]) for t in snap.trials}
    around = {points[a.digest()] for a in asked[0]}
    assert len(asked[0]) == 3
    assert not any(p[0] > max(a[0] for a in around) or p[1] < min(a[1] for a in around) for p in points.values())


def test_before_there_is_a_model_all_numbers_of_placements_are_tried():
    snap = snapshot(base())
    sizes = {len(chosen(snap, seed).placements) for seed in range(30)}
    assert sizes == {1, 2, 3}


def test_what_is_expected_to_break_a_limit_is_not_asked_for():
    snap = study()
    for seed in range(6):
        assert all(p.layer != 4 for p in chosen(snap, seed, {"latency_ratio": 1.15}).placements)
    assert any(p.layer == 9 and p.module == "LSKA" for seed in range(6) for p in chosen(snap, seed, {"latency_ratio": 1.15}).placements)


def test_costs_of_what_was_not_measured_are_the_sum_of_its_placements():
    snap, sites = study(40), sites_of(SPACE)
    codes = codes_of_space(SPACE, 0)
    found = guide.costs(codes, sites, snap.trials, {"latency_ratio"})["latency_ratio"]
    truth = 1 + np.where(codes > 0, np.array([0.2, 0.03, 0.03, 0.03]), 0).sum(axis=1)
    assert np.abs(found - truth).max() < 0.03
    measured = np.isin(keys(codes), keys(np.array([sites.code(t.architecture) for t in snap.trials], dtype=np.int16)))
    assert np.allclose(found[measured], truth[measured])


def test_a_stopped_trial_counts_with_the_rise_that_others_showed():
    curve = ({"epoch": 1.0, "map50_95": 0.1}, {"epoch": 2.0, "map50_95": 0.3})
    done = trial(1, [placement(4)], [0.3], 1.1)
    job, outcome = done.results[0]
    done = dataclasses.replace(done, results=((job, dataclasses.replace(outcome, curve=curve)),))
    halted = stopped(2)
    halted = dataclasses.replace(halted, verdict=dataclasses.replace(halted.verdict, curve=({"epoch": 1.0, "map50_95": 0.05},)))
    seen = guide.observations(halted, (done, halted), {"map50_95": "maximize"})
    assert seen == {0: {"map50_95": pytest.approx(0.25)}}


def test_rejected_and_failed_trials_say_nothing_but_are_not_asked_again():
    lost = [dataclasses.replace(rejected(50), architecture=LOST[0]), dataclasses.replace(failed(51), architecture=LOST[1])]
    snap = snapshot(*study().trials, *lost)
    tried = guide.tried_of(snap.trials, sites_of(SPACE), snap.objectives)
    assert len(tried.values) == 3 + 14
    assert tried.seeds[:3].tolist() == [0, 1, 2]
    assert tried.excluded.tolist() == [sites_of(SPACE).code(architecture) for architecture in LOST]
    assert all(chosen(snap, seed) not in LOST for seed in range(3))


# -- many at once --------------------------------------------------------------------------------------------------------------------------


def many(snap, count, seed=0):
    seen = {t.architecture.digest() for t in snap.trials}
    return guide.choose_many(SPACE, snap.objectives, {}, snap.trials, seen, range(seed, seed + count))


def test_one_of_many_is_the_one_and_the_first_of_several_is_too():
    for snap in (snapshot(base()), study(), study(40)):
        assert many(snap, 1) == [chosen(snap)]
        assert many(snap, 5)[0] == chosen(snap)


def test_many_are_new_and_different_and_the_same_for_the_same_seed():
    for snap in (snapshot(base()), study(40)):
        found = many(snap, 40)
        assert len({a.digest() for a in found} - {t.architecture.digest() for t in snap.trials}) == 40
        assert many(snap, 40) == found != many(snap, 40, seed=1)


def test_of_a_space_that_ends_all_that_is_left_is_chosen():
    snap = study(100)
    left = SPACE.size - len({t.architecture.digest() for t in snap.trials})
    assert len(many(snap, left + 9)) == left
