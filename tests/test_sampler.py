"""Samplers by name, and the mirror that they see."""

import warnings
from dataclasses import replace

import optuna
import pytest
from fake_evaluator import cost, measured
from optuna.trial import TrialState
from study_targets import BASE, OBJECTIVES, space

from nas_attn.architecture import Architecture
from nas_attn.errors import InputError
from nas_attn.outcome import Failure, Rejected, Stopped, Trial
from nas_attn.sampler import SAMPLERS, Mirror, ask_seed, make


def _trial(number, architecture, verdict=None, state="RUNNING", kind=None, ratio=1.1):
    trial = Trial(number=number, state="RUNNING", kind=None, architecture=architecture, cost=cost(ratio))
    if verdict is None:
        return trial
    values = {"map50_95": verdict.map50_95, "latency_ratio": ratio} if kind == "measured" else None
    return replace(trial, state=state, kind=kind, verdict=verdict, values=values)


def _history(mirror, chosen, count, rng_seed=0):
    architectures = list(chosen.enumerate())[:: max(1, chosen.size // count)][:count]
    for number, architecture in enumerate(architectures):
        score = 0.2 + (hash((number, rng_seed)) % 100) / 1000
        trial = _trial(number, architecture, measured(score), "COMPLETE", "measured", ratio=1 + number / 100)
        mirror.add(trial, chosen.encode(architecture), {})
    return {architecture.digest() for architecture in architectures}


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_make_gives_a_sampler_without_any_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(make(name, 3), optuna.samplers.BaseSampler)


def test_make_names_the_nearest_for_an_unknown_name():
    with pytest.raises(InputError, match=r"'nsga'.*Did you mean 'nsga2'\? Known: model, nsga2, random, tpe"):
        make("nsga", 0)


def test_ask_seed_depends_on_both_and_repeats():
    seeds = {ask_seed(study, number) for study in range(20) for number in range(20)}
    assert len(seeds) == 400
    assert ask_seed(3, 4) == ask_seed(3, 4) < 2**32


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_choose_is_one_architecture_a_seed_unseen_and_of_the_space(name):
    chosen = space()
    picks = []
    for _ in range(2):
        mirror = Mirror(OBJECTIVES, chosen.genes, name)
        seen = _history(mirror, chosen, 40)
        picks.append([mirror.choose(chosen, ask_seed(0, number), seen)[0] for number in range(40, 45)])
    assert picks[0] == picks[1]
    assert len(set(picks[0])) > 1
    assert all(chosen.contains(a) and a.digest() not in seen for a in picks[0])


def test_choose_finds_the_last_unseen_one_and_then_none():
    chosen = space(sites=2, sizes=1, most=2)
    mirror = Mirror(OBJECTIVES, chosen.genes, "random")
    every = {a.digest() for a in chosen.enumerate()}
    left = sorted(every)[0]
    architecture, _ = mirror.choose(chosen, 1, every - {left})
    assert architecture.digest() == left
    assert mirror.choose(chosen, 1, every) is None


def test_choose_samples_where_a_space_is_too_large_to_enumerate(monkeypatch):
    monkeypatch.setattr("nas_attn.sampler.ENUMERABLE", 200)
    monkeypatch.setattr("nas_attn.sampler.TRIES", 0)
    chosen = space()
    mirror = Mirror(OBJECTIVES, chosen.genes, "random")
    assert chosen.size > 200
    architecture, _ = mirror.choose(chosen, 1, set())
    assert chosen.contains(architecture)
    assert mirror.choose(chosen, 1, {a.digest() for a in chosen.enumerate()}) is None


def test_the_mirror_holds_no_pruned_trial_and_the_states_that_samplers_can_use():
    chosen = space()
    mirror = Mirror(OBJECTIVES, chosen.genes, "tpe")
    architectures = list(chosen.enumerate())
    verdicts = [
        (measured(0.3), "measured", "COMPLETE"),
        (Rejected(limit="latency_ratio", value=1.5, bound=1.3), "rejected", "PRUNED"),
        (Stopped(rung=1, curve=({"epoch": 1.0, "map50_95": 0.12},)), "stopped", "PRUNED"),
        (Failure(stage="train", error="x"), "failure", "FAIL"),
    ]
    for number, (verdict, kind, state) in enumerate(verdicts):
        mirror.add(_trial(number, architectures[number]), chosen.encode(architectures[number]), {})
        mirror.tell(_trial(number, architectures[number], verdict, state, kind), {"latency_ratio": 0.2 if kind == "rejected" else -0.2})
    mirror.add(_trial(4, architectures[4]), chosen.encode(architectures[4]), {})
    trials = mirror.study.get_trials(deepcopy=False)
    assert [t.state for t in trials] == [
        TrialState.COMPLETE,
        TrialState.COMPLETE,
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    assert [t.values for t in trials] == [[0.3, 1.1], [0.0, 1.1], [0.12, 1.1], None, None]
    assert [t.constraints for t in trials[:3]] == [{"latency_ratio": -0.2}, {"latency_ratio": 0.2}, {"latency_ratio": -0.2}]
    assert [t.number for t in mirror.study.best_trials] == [0]


def test_a_proposal_leaves_nothing_that_a_sampler_learns_from():
    chosen = space()
    mirror = Mirror(OBJECTIVES, chosen.genes, "tpe")
    _history(mirror, chosen, 12)
    before = [t for t in mirror.study.get_trials() if t.state != TrialState.FAIL]
    mirror.choose(chosen, 5, set())
    assert len([t for t in mirror.study.get_trials() if t.state != TrialState.FAIL]) == len(before)


def test_a_mirror_that_grew_and_one_that_was_rebuilt_choose_the_same():
    chosen = space()
    for name in sorted(SAMPLERS):
        grown, trials = Mirror(OBJECTIVES, chosen.genes, name), []
        seen = set()
        for number in range(45):
            architecture, system = grown.choose(chosen, ask_seed(7, number), seen)
            seen.add(architecture.digest())
            running = _trial(number, architecture)
            told = _trial(
                number, architecture, measured(0.2 + (number * 37 % 50) / 500), "COMPLETE", "measured", 1 + (number * 17 % 30) / 100
            )
            grown.add(running, chosen.encode(architecture), system)
            grown.tell(told, {"latency_ratio": -0.1})
            trials.append((told, chosen.encode(architecture), {**system, "constraints:latency_ratio": -0.1}))
        rebuilt = Mirror(OBJECTIVES, chosen.genes, name)
        for told, genes, system in trials:
            rebuilt.add(told, genes, system)
        assert grown.choose(chosen, 99, seen)[0] == rebuilt.choose(chosen, 99, seen)[0], name


def test_tpe_learns_what_is_good():
    chosen = space(sites=6, sizes=3, most=2)
    mirror = Mirror(OBJECTIVES, chosen.genes, "tpe")
    seen = {Architecture(BASE).digest()}
    hits = []
    for number in range(1, 61):
        architecture, system = mirror.choose(chosen, ask_seed(0, number), seen)
        seen.add(architecture.digest())
        good = any(p.layer == 6 for p in architecture.placements)
        hits.append(good)
        trial = _trial(number, architecture, measured(0.4 if good else 0.2), "COMPLETE", "measured", ratio=1.1)
        mirror.add(trial, chosen.encode(architecture), system)
    share = sum(any(p.layer == 6 for p in a.placements) for a in chosen.enumerate()) / chosen.size
    assert sum(hits[30:]) / len(hits[30:]) > 1.5 * share
