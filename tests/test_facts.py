"""What a snapshot says: noise, gains, the front, controls."""

import dataclasses
import statistics

import pytest
from snapshots import (
    RECIPE,
    A,
    B,
    base,
    drawn,
    failed,
    measured,
    numbers,
    results,
    running,
    snapshot,
    stopped,
    trial,
)

from nas_attn import facts
from nas_attn.outcome import Failure


def test_sigma_is_the_sample_deviation_of_the_base_seeds():
    assert facts.sigma(drawn()) == pytest.approx(statistics.stdev([0.300, 0.304, 0.296])) == pytest.approx(0.004)
    assert facts.sigma(snapshot(base([0.3]))) is None
    assert facts.sigma(snapshot()) is None


def test_scores_are_those_of_the_recipe_with_most_epochs():
    short, arch = dataclasses.replace(RECIPE, epochs=2), base().architecture
    early = tuple((dataclasses.replace(job, recipe=short), measured(0.1)) for job, _ in results(arch, [0.1, 0.1]))
    entry = dataclasses.replace(base(), results=early + base().results)
    assert facts.scores(entry) == {0: 0.300, 1: 0.304, 2: 0.296}
    assert facts.base_score(snapshot(entry)) == pytest.approx(0.300)


def test_gains_are_against_the_mean_of_the_base():
    snap = drawn()
    assert facts.gain(snap, snap.trials[1]) == pytest.approx(0.030)
    assert facts.in_sigmas(snap, 0.030) == pytest.approx(7.5)
    assert facts.gain(snap, snap.trials[5]) is None
    assert facts.in_sigmas(snapshot(base([0.3, 0.3])), 0.01) is None


def test_gains_are_paired_over_shared_seeds_so_that_the_luck_of_a_seed_cancels():
    snap = snapshot(base([0.300, 0.310]), trial(1, A, [0.311], 1.1), trial(2, B, [0.311, 0.317], 1.1))
    assert facts.gain_to_mean(snap, snap.trials[1]) == pytest.approx(0.006)
    assert facts.gain(snap, snap.trials[1]) == pytest.approx(0.011)
    assert facts.gain(snap, snap.trials[2]) == pytest.approx(0.009)


def test_scores_of_other_recipes_do_not_compare():
    other = trial(1, A, 0.33, 1.1)
    recipe = dataclasses.replace(RECIPE, code="another version")
    other = dataclasses.replace(other, results=tuple((dataclasses.replace(job, recipe=recipe), o) for job, o in other.results))
    assert facts.gain(snapshot(base(), other), other) is None
    assert facts.gain_to_mean(snapshot(base(), other), other) is None


def test_the_front_holds_measured_trials_by_latency():
    assert numbers(facts.front_trials(drawn())) == [0, 1, 2, 3]
    assert facts.front_trials(snapshot(failed(0), running(1))) == ()


def test_only_measured_trials_stand_on_the_front_whatever_was_told():
    told = dataclasses.replace(stopped(1), state="COMPLETE", values={"map50_95": 0.9, "latency_ratio": 0.5})
    assert numbers(facts.front_trials(snapshot(base(), told))) == [0]


def test_a_third_objective_keeps_what_two_would_drop():
    goals = {"map50_95": "maximize", "latency_ratio": "minimize", "params_m": "minimize"}
    trials = [
        base(extra={"params_m": 2.6}),
        trial(1, A, 0.33, 1.1, extra={"params_m": 2.9}),
        trial(2, B, 0.32, 1.2, extra={"params_m": 2.5}),
    ]
    assert numbers(facts.front_trials(snapshot(*trials, objectives=goals))) == [0, 1, 2]
    assert numbers(facts.front_trials(snapshot(*trials))) == [0, 1]


def test_a_trial_without_all_objectives_is_not_on_the_front():
    goals = {"map50_95": "maximize", "latency_ratio": "minimize", "gmacs": "minimize"}
    assert facts.front_trials(snapshot(base(), objectives=goals)) == ()


@pytest.mark.parametrize(
    ("label", "score", "separated"),
    [
        ("help: longer fit", 0.309, True),
        ("help: longer fit", 0.307, False),
        ("help: longer fit", 0.280, False),
        ("harm: shuffled", 0.291, True),
        ("harm: shuffled", 0.293, False),
        ("harm: shuffled", 0.320, False),
        ("another", 0.280, True),
    ],
)
def test_controls_must_separate_in_their_direction(label, score, separated):
    (control,) = facts.controls(snapshot(base(controls={label: measured(score)})))
    assert (control.label, control.separated, control.seeds) == (label, separated, 1)
    assert control.sigmas == pytest.approx((score - 0.3) / 0.004)


def test_a_control_that_failed_or_has_no_sigma_is_not_known():
    (lost,) = facts.controls(snapshot(base(controls={"harm": Failure(stage="train", error="out of memory")})))
    assert (lost.score, lost.separated, lost.errors) == (None, None, ("train: out of memory",))
    (blind,) = facts.controls(snapshot(base([0.3], controls={"harm": measured(0.1)})))
    assert blind.separated is None
    assert blind.gain == pytest.approx(-0.2)
    assert facts.controls(snapshot(failed(0))) == ()
