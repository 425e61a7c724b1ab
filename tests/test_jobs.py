"""Which trainings a trial needs, and in what order a race takes them."""

from dataclasses import replace

import pytest
from fake_evaluator import cost, measured
from study_targets import BASE, OBJECTIVES, RECIPE

from nas_attn.architecture import Architecture, Placement
from nas_attn.errors import InputError
from nas_attn.jobs import Jobs, rungs_for
from nas_attn.outcome import Failure, Stopped, Trial
from nas_attn.spec import SpaceSpec

LIA = Architecture(BASE, (Placement(4, "LIA", (("f", 8),)),))
NINE = replace(RECIPE, epochs=9)


def jobs(**changes):
    return Jobs(**{"recipe": NINE, "seeds": 2, "base_seeds": 3, "rungs": (1, 3, 9), "objectives": OBJECTIVES, **changes})


def trial(number, *results, ratio=1.1):
    architecture = Architecture(BASE) if number == 0 else Architecture(BASE, (Placement(number, "LIA", (("f", 8),)),))
    blank = Trial(number=number, state="RUNNING", kind=None, architecture=architecture, cost=cost(ratio))
    pairs = [(jobs().job(blank, seed, rung), outcome) for seed, rung, outcome in results]
    return replace(blank, results=tuple(pairs))


def curve(final, luck=0.0):
    scores = [final - 0.01 * (9 - epoch) for epoch in range(1, 10)]
    told = tuple({"epoch": float(e), "map50_95": s + luck * (e < 9), "map50": s} for e, s in enumerate(scores, 1))
    return replace(measured(final), curve=told)


def at(outcome, rung):
    return replace(outcome, map50_95=outcome.curve[rung - 1]["map50_95"], curve=outcome.curve[:rung])


def steps(plan, one):
    return [(job.seed, job.epochs) for job in plan.next(one)]


def test_without_a_race_all_jobs_may_run_at_once():
    plan = jobs(rungs=(9,))
    assert not plan.races
    assert steps(plan, trial(0)) == [(0, None), (1, None), (2, None)]
    assert steps(plan, trial(1)) == [(0, None), (1, None)]
    assert steps(plan, trial(1, (0, 9, measured(0.3)))) == [(1, None)]
    assert plan.stopped([trial(1)], [1]) == {}
    assert plan.first([trial(1), trial(2)], [2, 1]) == 0


def test_a_race_goes_from_rung_to_rung_and_the_base_at_once_to_the_end():
    plan, shown = jobs(), measured(0.2)
    assert steps(plan, trial(0)) == [(0, None), (1, None), (2, None)]
    assert steps(plan, trial(1)) == [(0, 1)]
    assert steps(plan, trial(1, (0, 1, shown))) == [(0, 3)]
    assert steps(plan, trial(1, (0, 1, shown), (0, 3, shown))) == [(0, None)]
    assert steps(plan, trial(1, (0, 1, shown), (0, 3, shown), (0, 9, shown))) == [(1, None)]
    ended = trial(1, (0, 1, shown), (0, 3, shown), (0, 9, shown), (1, 9, shown))
    assert (plan.next(ended), plan.missing(ended)) == ([], [])
    assert steps(plan, trial(1, (0, 1, Failure(stage="train", error="x")))) == []


def test_rungs_belong_to_their_trial_and_controls_do_not():
    plan, one = jobs(controls=(("harm", LIA, {"epochs": 18}),)), trial(0)
    assert all(plan.belongs(one, plan.job(one, seed, rung)) for seed in range(3) for rung in (1, 3, 9, None))
    assert not plan.belongs(one, plan.job(one, 3))
    (control,) = plan.labelled().values()
    assert (control.architecture, control.recipe.epochs, control.epochs) == (LIA, 18, None)
    assert not plan.belongs(one, control)
    assert control in plan.missing(one)
    assert control not in plan.missing(trial(4))
    assert control not in plan.missing(replace(one, controls=(("harm", control, measured(0.1)),)))


FULL = [trial(0, *((seed, 9, curve(0.3 + seed / 1000)) for seed in range(3)), ratio=1.0)] + [
    trial(number, (0, 1, at(curve(0.3), 1)), (0, 3, at(curve(0.3), 3)), (0, 9, curve(0.3))) for number in (1, 2, 3)
]


def test_what_waits_is_stopped_with_its_curve_when_even_an_optimist_gives_up():
    hopeless, open_end, faster = at(curve(0.25), 1), at(curve(0.31), 1), at(curve(0.25), 3)
    trials = [*FULL, trial(5, (0, 1, hopeless)), trial(6, (0, 1, open_end)), trial(7, (0, 1, hopeless), (0, 3, faster), ratio=0.9)]
    assert jobs().stopped(trials, [5, 6, 7]) == {5: Stopped(rung=1, curve=hopeless.curve)}
    assert jobs().stopped(trials, [6, 7]) == {}  # 5 is being trained on
    assert jobs().stopped(trials[1:], [5, 6, 7]) == {}  # three have finished
    assert jobs().stopped(list(reversed(trials)), [7, 6, 5]) == {5: Stopped(rung=1, curve=hopeless.curve)}


def test_a_failed_trial_takes_no_part():
    failed = replace(FULL[1], kind="failure")
    assert jobs().stopped([FULL[0], failed, *FULL[2:], trial(5, (0, 1, at(curve(0.1), 1)))], [5]) == {}


def test_the_score_at_a_rung_is_that_of_a_job_that_ends_there():
    plan = jobs(recipe=replace(NINE, average=2))
    base = trial(0, (0, 9, curve(0.3)))
    shown = plan._shown(base)
    assert shown[1]["map50_95"] == pytest.approx(0.22)
    assert shown[3]["map50_95"] == pytest.approx((0.23 + 0.24) / 2)
    assert shown[9] == {"map50_95": 0.3}
    assert plan._shown(trial(0, (0, 9, measured(0.3)))) == {9: {"map50_95": 0.3}, 1: {"map50_95": 0.3}}  # a curve of one epoch


def test_the_best_of_what_waits_is_first_and_then_the_earliest():
    trials = [*FULL, trial(5, (0, 1, at(curve(0.31), 1))), trial(6, (0, 1, at(curve(0.33), 1))), trial(7, (0, 1, at(curve(0.31), 1)))]
    assert jobs().first(trials, [5, 6, 7]) == 1
    assert jobs().first(trials, [7, 5]) == 1
    assert jobs().first([*trials, trial(8)], [5, 6, 7, 8]) == 3


def test_rungs_come_from_the_space_or_are_thirds():
    def spec(**proxy):
        return SpaceSpec.from_dict({"base": BASE, "sites": ["P3"], "modules": {"LIA": {"f": [8]}}, "proxy": proxy})

    assert rungs_for(spec(epochs=9), "full") == (9,)
    assert rungs_for(spec(epochs=9), "racing") == (1, 3, 9)
    assert rungs_for(spec(epochs=9, rungs=[4, 9]), "racing") == (4, 9)
    assert rungs_for(spec(epochs=9, rungs=[4, 9]), "full") == (9,)
    with pytest.raises(InputError, match="one of full, racing"):
        rungs_for(spec(epochs=9), "race")
