"""The course of a study: against the same numbers computed anew for every moment of it, and what it did not train."""

import random
from dataclasses import asdict, replace

import pytest
from snapshots import OBJECTIVES, A, B, C, base, drawn, failed, measured, rejected, running, snapshot, stopped, study, trial

from nas_attn import facts, history, pareto
from nas_attn.outcome import Snapshot

LIMITED = {"spec": {"limits": {"latency_ratio": 1.3, "gmacs": 1.0}}}
THREE = {**OBJECTIVES, "params_m": "minimize"}


def _at(whole: Snapshot, number: int) -> Snapshot:
    """The study when that trial had ended, by numbers."""
    return replace(whole, trials=tuple(t for t in whole.trials if t.number <= number))


def test_the_reference_is_no_score_and_the_limit_or_twice_the_base():
    assert history.reference(snapshot(base())) == (0.0, 2.0)
    assert history.reference(snapshot(base(), settings=LIMITED)) == (0.0, 1.3)
    assert history.reference(snapshot(base(extra={"params_m": 2.6}), objectives=THREE, settings=LIMITED)) == (0.0, 1.3, 5.2)
    assert history.reference(snapshot(base(), trial(1, A, 0.9, 1.9), settings=LIMITED)) == (0.0, 1.3)


@pytest.mark.parametrize(
    "trials", [(), (replace(base(), kind=None, values=None),), (replace(failed(0), architecture=base().architecture),)]
)
def test_without_a_measured_base_there_is_no_reference_and_no_volume(trials):
    none = snapshot(*trials)
    assert history.reference(none) is history.hypervolume(none) is None
    assert history.progress(none) == ()


def test_a_volume_by_hand():
    one = snapshot(base(), trial(1, A, 0.400, 1.10), trial(2, B, 0.200, 1.05), trial(3, C, 0.500, 1.40), settings=LIMITED)
    assert history.hypervolume(one) == pytest.approx(0.1 * 0.300 + 0.2 * 0.400)  # trial 2 is dominated, trial 3 beyond the limit
    steps = history.progress(one)
    assert [step.hypervolume for step in steps] == pytest.approx([0.09, 0.11, 0.11, 0.11])
    assert [step.front for step in steps] == [1, 2, 2, 3]


@pytest.mark.parametrize("three", [False, True])
@pytest.mark.parametrize("settings", [None, LIMITED])
def test_every_step_is_the_study_of_that_moment(three, settings):
    whole = study(60, seed=3, three=three)
    whole = whole if settings is None else replace(whole, settings=settings)
    steps = history.progress(whole)
    assert [step.trial for step in steps] == [t.number for t in whole.trials if t.kind == "measured"]
    for step in steps:
        then = _at(whole, step.trial)
        assert step.hypervolume == pytest.approx(history.hypervolume(then), rel=1e-12)
        assert step.front == len(facts.front_trials(then))
        assert step.trials == sum(t.kind in ("measured", "stopped") for t in then.trials)
        assert step.seconds == sum(t.seconds for t in then.trials)
    volumes = [step.hypervolume for step in steps]
    assert volumes == sorted(volumes)
    assert volumes[-1] == history.hypervolume(whole) > volumes[0]


def test_the_reference_stays_as_a_search_goes_on():
    whole = study(30, seed=1, three=True)
    assert {history.reference(_at(whole, number)) for number in range(31)} == {history.reference(whole)}


def test_the_order_of_a_record_does_not_matter_and_running_trials_do_not_count():
    whole = study(30, seed=2)
    shuffled = random.Random(0).sample(whole.trials, len(whole.trials))
    assert history.progress(replace(whole, trials=(*shuffled, running(99)))) == history.progress(whole)


def test_copies_of_a_point_stand_on_the_front_together():
    twice = snapshot(base(), trial(1, A, 0.400, 1.10), trial(2, B, 0.400, 1.10))
    first, second = history.progress(twice)[1:]
    assert (first.front, second.front) == (2, 3)
    assert second.hypervolume == first.hypervolume == history.hypervolume(twice)


def test_what_was_stopped_or_failed_took_its_time_as_well():
    given = snapshot(base(), replace(stopped(1), seconds=7.0), replace(failed(2), seconds=2.0), rejected(3), trial(4, A, 0.31, 1.1))
    assert [(step.trials, step.seconds) for step in history.progress(given)] == [(1, 150.0), (3, 209.0)]


def test_no_exact_volume_in_too_many_objectives():
    costs = {"latency_ms": 8.0, "params_m": 2.6, "gmacs": 0.2}
    many = snapshot(base(extra=costs), objectives={**OBJECTIVES, **dict.fromkeys(costs, "minimize")})
    assert len(history.reference(many)) == 5
    assert history.hypervolume(many) is None
    assert history.progress(many) == ()


def test_steps_are_plain_rows():
    assert list(asdict(history.progress(drawn())[0])) == ["trial", "trials", "seconds", "hypervolume", "front"]


# -- what was not trained --------------------------------------------------------------------------------------------------------------


def test_savings_by_hand():
    saved = history.savings(drawn())
    assert (saved.rejected, saved.rejected_seconds) == (1, 44.0)
    assert (saved.stopped, saved.stopped_epochs, saved.stopped_seconds) == (1, 5, pytest.approx(44.0 * 5 / 6))
    assert saved.failed == 1


def test_a_candidate_saves_all_of_its_seeds():
    settings = {"spec": {"seeds": 2}}
    saved = history.savings(snapshot(base(), trial(1, A, [0.3, 0.31], 1.1), rejected(2), stopped(3), settings=settings))
    assert (saved.rejected_seconds, saved.stopped_epochs) == (2 * 44.0, 2 * 6 - 1)


def test_a_training_in_rungs_took_what_all_its_rungs_took():
    one = trial(1, A, 0.31, 1.1)
    (job, outcome), *_ = one.results
    rung = (replace(job, epochs=2), replace(measured(0.2), total_seconds=16.0))
    raced = replace(one, results=(rung, (job, replace(outcome, total_seconds=30.0))))
    assert history.savings(snapshot(base(), raced, rejected(2))).rejected_seconds == 46.0


def test_the_median_training_counts_and_the_base_does_not():
    def took(number, placements, seconds):
        one = trial(number, placements, 0.31, 1.1)
        return replace(one, results=tuple((job, replace(outcome, total_seconds=seconds)) for job, outcome in one.results))

    odd = snapshot(base(), took(1, A, 10.0), took(2, B, 20.0), took(3, C, 900.0), rejected(4), rejected(5))
    assert history.savings(odd).rejected_seconds == 2 * 20.0


def test_nothing_is_estimated_from_no_training():
    saved = history.savings(snapshot(base(), rejected(1), stopped(2)))
    assert (saved.rejected, saved.rejected_seconds) == (1, None)
    assert (saved.stopped, saved.stopped_epochs, saved.stopped_seconds) == (1, 5, None)
    assert history.savings(snapshot()).rejected == 0


def test_a_dominated_trial_is_told_apart_as_pareto_does():
    rng = random.Random(5)
    points = [tuple(float(rng.randrange(4)) for _ in range(3)) for _ in range(200)]
    front = []
    for point in points:
        front = history._grown(front, point)
    assert sorted(front) == sorted(points[i] for i in pareto.front(points, ["minimize"] * 3))
