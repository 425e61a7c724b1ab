"""The choice by each rule, where observations decide."""

import dataclasses
import re

import pytest
from snapshots import A, B, C, base, cost, drawn, failed, running, snapshot, study, trial

from nas_attn import pick
from nas_attn.errors import InputError


@pytest.mark.parametrize(("rule", "number"), [("best", 3), ("fastest", 0), ("1se", 2), ("knee", 1)])
def test_each_rule(rule, number):
    choice = pick.pick(drawn(), rule)
    assert choice.trial.number == number
    assert choice.reason.startswith(f"Trial {number} ({choice.trial.architecture}) ")
    assert choice.reason.endswith(".")


@pytest.mark.parametrize(("rule", "number"), [("best", 2), ("fastest", 0), ("1se", 2)])
def test_a_limit_counts_before_the_rule(rule, number):
    choice = pick.pick(drawn(), rule, max_latency_ratio=1.2)
    assert choice.trial.number == number
    assert "with a latency ratio of at most 1.2" in choice.reason


def test_equal_scores_go_to_the_faster_then_to_the_earlier():
    snap = snapshot(base(), trial(2, B, 0.34, 1.1), trial(1, A, 0.34, 1.1), trial(3, C, 0.34, 1.2))
    assert pick.pick(snap, "best").trial.number == 1
    assert pick.pick(snap, "1se").trial.number == 1


def test_too_few_points_for_a_knee_are_decided_by_noise():
    within = pick.pick(snapshot(base(), trial(1, A, 0.302, 1.1)), "knee")
    beyond = pick.pick(snapshot(base(), trial(1, A, 0.312, 1.1)), "knee")
    unknown = pick.pick(snapshot(base([0.300]), trial(1, A, 0.302, 1.1)), "knee")
    assert (within.trial.number, beyond.trial.number, unknown.trial.number) == (0, 1, 1)
    assert "too few points for a knee" in within.reason


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (0.303, r"\+0\.0030 against the base or \+0\.8 sigma of its 3 seeds, which is within the noise: the base is as good a choice"),
        (0.306, r"\+1\.5 sigma of its 3 seeds, which more seeds may or may not confirm"),
        (0.330, r"\+7\.5 sigma of its 3 seeds, beyond two sigma, but the best of many is partly luck"),
    ],
)
def test_the_reason_says_what_the_gain_is_worth(score, words):
    choice = pick.pick(snapshot(base(), trial(1, A, score, 1.1)), "best")
    assert choice.trial.number == 1
    assert re.search(words, choice.reason)


def test_the_reason_is_honest_about_a_loss_and_about_missing_noise():
    worse = pick.pick(snapshot(base(), trial(1, A, 0.28, 0.9)), "fastest")
    assert "-0.0200 against the base or -5.0 sigma of its 3 seeds, worse than the base" in worse.reason
    assert "unknown noise" in pick.pick(snapshot(base([0.3]), trial(1, A, 0.33, 1.1)), "best").reason
    assert "unknown noise" in pick.pick(snapshot(base([0.3, 0.3]), trial(1, A, 0.33, 1.1)), "best").reason
    assert "no score of the base" in pick.pick(snapshot(trial(1, A, 0.33, 1.1)), "best").reason
    assert "keep the base" in pick.pick(snapshot(base()), "knee").reason


def test_what_cannot_be_picked():
    with pytest.raises(InputError, match=r"one of \['knee', 'best', 'fastest', '1se'\], but got 'nee'. Did you mean 'knee'"):
        pick.pick(drawn(), "nee")
    with pytest.raises(InputError, match=r"needs a measured trial, but study 'demo' holds 2 trials \(kinds: failure, running\)"):
        pick.pick(snapshot(failed(0), running(1)), "best")
    with pytest.raises(InputError, match=r"holds 0 trials \(kinds: none\)"):
        pick.pick(snapshot(), "best")
    with pytest.raises(InputError, match=r"`latency_ratio <= 0.9` holds for none of the 4 members.*1.000 to 1.280; give at least 1.000"):
        pick.pick(drawn(), "best", max_latency_ratio=0.9)
    with pytest.raises(InputError, match="'1se' needs the noise, so at least two seeds"):
        pick.pick(snapshot(base([0.3])), "1se")


def test_latency_that_is_no_objective_comes_from_the_cost():
    goals = {"map50_95": "maximize", "params_m": "minimize"}
    entries = [dataclasses.replace(base(), values={"map50_95": 0.3, "params_m": 2.6})]
    entries += [dataclasses.replace(trial(1, A, 0.33, 1.1), values={"map50_95": 0.33, "params_m": 2.7}, cost=cost(1.07))]
    assert "at 1.070x the base's latency" in pick.pick(snapshot(*entries, objectives=goals), "best").reason


def test_picking_is_the_same_whatever_the_order_of_trials():
    snap = study(60, seed=3)
    turned = dataclasses.replace(snap, trials=tuple(reversed(snap.trials)))
    for rule in pick.RULES:
        assert pick.pick(turned, rule) == pick.pick(snap, rule)
