"""Trials under other costs: what each kind becomes, what is left out, and that nothing of a training is lost on the way."""

import json
from dataclasses import asdict, replace

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from snapshots import OBJECTIVES, RECIPE, A, B, base, failed, latency, measured, rejected, running, stopped, trial

from nas_attn import derive, guide
from nas_attn.architecture import Architecture
from nas_attn.errors import StudyError
from nas_attn.jobs import Jobs
from nas_attn.outcome import Cost, Failure, Job, Measured, Rejected, Stopped, Trial, outcome_from_dict, outcome_to_dict
from nas_attn.protocol import mean_outcome

LIMITS = {"latency_ratio": 1.3, "params_m": 4.0}
JOBS = Jobs(recipe=RECIPE, seeds=1, base_seeds=3, rungs=(6,), objectives=OBJECTIVES)
RACE = replace(JOBS, rungs=(1, 6))


def told(one):
    """A trial as a study would tell it, which the builders of snapshots leave out for measured ones."""
    done = [outcome for job, outcome in one.results if isinstance(outcome, Measured) and job.epochs is None]
    return replace(one, verdict=mean_outcome(done)) if one.kind == "measured" else one


def new_cost(ratio, params_m=3.9):
    return Cost(params_m=params_m, gmacs=9.9, activation_mib=9.9, latency=latency(ratio))


def stored(one, **more):
    """A trial as a storage holds it."""
    attributes = {"architecture": one.architecture.to_json(), "digest": one.architecture.digest(), "attempts": {"measure": 2}}
    attributes["results"] = [{"job": job.to_dict(), "outcome": outcome_to_dict(outcome)} for job, outcome in one.results]
    attributes |= {"cost": asdict(one.cost)} if one.cost else {}
    attributes |= {"kind": one.kind, "verdict": outcome_to_dict(one.verdict)} if one.verdict else {}
    return create_trial(
        state=TrialState[one.state],
        values=None if one.values is None else list(one.values.values()),
        params={"4.module": "none"},
        distributions={"4.module": CategoricalDistribution(("none", "LIA"))},
        user_attrs={**attributes, **more},
        system_attrs={"nsga2:generation": 3},
        constraints={"latency_ratio": -0.2},
    )


def derived(*trials, costs, limits=LIMITS, jobs=JOBS, attributes=None):
    trials = [told(one) for one in trials]
    frozen = {one.number: stored(one, **(attributes or {}).get(one.number, {})) for one in trials}
    return derive.derive(trials, frozen, {0: new_cost(1.0), **costs}, objectives=OBJECTIVES, limits=limits, jobs=jobs)


def test_a_measured_trial_keeps_its_training_and_takes_the_new_latency():
    found = derived(base(), trial(1, A, [0.33, 0.35], 1.05), costs={1: new_cost(1.2)})
    assert (found.numbers, found.left_out) == ({0: 0, 1: 1}, {})
    one = found.templates[1]
    assert (one.state, one.values) == (TrialState.COMPLETE, [pytest.approx(0.34), 1.2])
    cost = Cost.from_dict(one.user_attrs["cost"])
    assert (cost.latency.ratio, cost.params_m) == (1.2, pytest.approx(2.7))  # what does not depend on the runtime stays
    assert one.constraints == {"latency_ratio": pytest.approx(1.18 - 1.3), "params_m": pytest.approx(2.7 - 4.0)}
    assert (len(one.user_attrs["results"]), one.user_attrs["attempts"]) == (2, {"measure": 2})
    assert (one.params, one.system_attrs["nsga2:generation"]) == ({"4.module": "none"}, 3)
    assert derive.TRAINED not in one.user_attrs
    json.dumps(one.user_attrs, allow_nan=False)


def test_a_trial_that_is_over_a_limit_now_is_rejected_and_comes_back_from_there():
    one = trial(1, A, 0.33, 1.05)
    found = derived(base(), one, costs={1: new_cost(1.5)})
    template = found.templates[1]
    verdict = outcome_from_dict(template.user_attrs["verdict"])
    assert (template.state, template.values, verdict) == (TrialState.PRUNED, None, Rejected(limit="latency_ratio", value=1.5, bound=1.3))
    assert template.user_attrs["results"]
    assert template.constraints["latency_ratio"] > 0
    # A third study, whose latency keeps the limits, has the same training again.
    now = replace(one, state="PRUNED", kind="rejected", verdict=verdict, values=None, cost=new_cost(1.5, 2.7))
    again = derived(base(), now, costs={1: new_cost(1.1)}, attributes={1: {derive.TRAINED: template.user_attrs[derive.TRAINED]}})
    assert (again.templates[1].state, again.templates[1].values) == (TrialState.COMPLETE, [0.33, 1.1])
    assert derive.TRAINED not in again.templates[1].user_attrs


def test_what_a_rejected_trial_was_trained_to_still_teaches_the_model():
    one = told(trial(1, A, 0.33, 1.05))
    over = replace(one, state="PRUNED", kind="rejected", verdict=Rejected(limit="latency_ratio", value=1.5, bound=1.3), values=None)
    assert guide.observations(over, [over], OBJECTIVES) == {0: {"map50_95": 0.33}}
    assert guide.observations(rejected(2), [over], OBJECTIVES) == {}


def test_a_trial_that_was_rejected_and_keeps_the_limits_now_is_left_out():
    found = derived(
        base(), rejected(1), rejected(2, layer=6), trial(3, B, 0.3, 1.1), costs={n: new_cost(1.1) for n in (1, 3)} | {2: new_cost(1.4)}
    )
    assert found.left_out == {1: derive.UNTRAINED}
    assert found.numbers == {0: 0, 2: 1, 3: 2}
    assert [t.user_attrs["kind"] for t in found.templates] == ["measured", "rejected", "measured"]
    assert outcome_from_dict(found.templates[1].user_attrs["verdict"]).value == 1.4


def test_a_trial_over_a_limit_that_is_not_of_latency_stays_rejected():
    heavy = replace(rejected(1), cost=replace(rejected(1).cost, params_m=5.0), verdict=Rejected(limit="params_m", value=5.0, bound=4.0))
    found = derived(base(), heavy, costs={1: new_cost(1.0)})
    assert outcome_from_dict(found.templates[1].user_attrs["verdict"]) == Rejected(limit="params_m", value=5.0, bound=4.0)


@pytest.mark.parametrize("stage", ["train", "deadline"])
def test_a_failed_training_stays_failed(stage):
    one = failed(1)
    one = replace(one, cost=new_cost(1.1, 2.7), verdict=replace(one.verdict, stage=stage))
    found = derived(base(), one, costs={1: new_cost(1.2)})
    assert (found.templates[1].state, outcome_from_dict(found.templates[1].user_attrs["verdict"])) == (TrialState.FAIL, one.verdict)
    assert derived(base(), one, costs={1: new_cost(2.0)}).templates[1].user_attrs["kind"] == "rejected"


def test_a_failure_before_any_cost_is_measured_again_unless_it_could_not_even_be_built():
    def ended(number, stage):
        return replace(failed(number, layer=4 + 2 * number), results=(), verdict=Failure(stage=stage, error="x"))

    trials = [base(), ended(1, "build"), ended(2, "latency"), ended(3, "worker"), ended(4, "latency"), running(5)]
    assert [one.number for one in derive.to_measure([told(one) for one in trials])] == [0, 2, 3, 4]
    new = Failure(stage="latency", error="no such operator")
    found = derived(*trials, costs={2: new_cost(1.1), 3: new_cost(1.9), 4: new})
    assert found.left_out == {2: derive.UNTRAINED, 5: derive.RUNNING}
    assert [t.user_attrs["kind"] for t in found.templates] == ["measured", "failure", "rejected", "failure"]
    assert outcome_from_dict(found.templates[1].user_attrs["verdict"]).stage == "build"
    assert outcome_from_dict(found.templates[3].user_attrs["verdict"]) == new


def test_a_trial_that_cannot_be_measured_any_more_has_failed_but_its_training_is_kept():
    found = derived(base(), trial(1, A, 0.33, 1.05), costs={1: Failure(stage="latency", error="no such operator")})
    one = found.templates[1]
    assert (one.state, one.values, one.constraints) == (TrialState.FAIL, None, {})
    assert "cost" not in one.user_attrs
    assert outcome_from_dict(one.user_attrs[derive.TRAINED]).map50_95 == 0.33
    now = Trial(
        number=1,
        state="FAIL",
        kind="failure",
        architecture=Architecture("yolo11n.yaml", tuple(A)),
        verdict=outcome_from_dict(one.user_attrs["verdict"]),
        results=trial(1, A, 0.33, 1.05).results,
    )
    again = derived(base(), now, costs={1: new_cost(1.1)}, attributes={1: {derive.TRAINED: one.user_attrs[derive.TRAINED]}})
    assert again.templates[1].values == [0.33, 1.1]


@pytest.mark.parametrize("cost", [new_cost(1.5), Failure(stage="latency", error="x")])
def test_without_a_measured_base_there_is_no_study(cost):
    with pytest.raises(StudyError, match="The base must be measured, but with the new latency: latency"):
        derived(base(), costs={0: cost}, limits={"latency_ratio": 1.3})


def _curve(scores):
    return tuple({"epoch": float(e), "map50_95": score, "map50": score} for e, score in enumerate(scores, 1))


def _raced(number, scores, ratio):
    """A trial of a race: all six epochs, or the first alone and stopped there."""
    arch = Architecture("yolo11n.yaml", (replace(A[0], layer=2 + number),))
    outcome = replace(measured(scores[-1]), curve=_curve(scores))
    whole = len(scores) == 6
    job = Job(architecture=arch, recipe=RECIPE, seed=0, epochs=None if whole else 1)
    one = trial(number, arch.placements, scores[-1], ratio)
    one = replace(one, results=((job, outcome),))
    return one if whole else replace(one, state="PRUNED", kind="stopped", values=None, verdict=Stopped(rung=1, curve=outcome.curve))


def test_what_a_race_stopped_stays_stopped_only_beside_trials_that_are_no_slower_now():
    start = replace(base(), results=tuple((job, replace(o, curve=_curve([0.1, *[o.map50_95] * 5]))) for job, o in base().results))
    finished = [_raced(n, [0.2 + n / 1000, *[0.32 + n / 1000] * 5], 1.02) for n in range(1, 7)]
    late = _raced(9, [0.05], 1.1)
    trials, costs = [start, *finished, late], {n: new_cost(1.02) for n in range(1, 7)}
    still = derived(*trials, costs={**costs, 9: new_cost(1.1)}, jobs=RACE)
    assert still.templates[-1].user_attrs["kind"] == "stopped"
    faster = derived(*trials, costs={**costs, 9: new_cost(0.7)}, jobs=RACE)
    assert faster.left_out == {9: derive.UNFINISHED}
    assert len(faster.templates) == 7
    # Where nothing was raced a worker stopped it by itself, whatever it costs.
    assert derived(*trials, costs={**costs, 9: new_cost(0.7)}).templates[-1].user_attrs["kind"] == "stopped"
    assert derived(base(), stopped(1), costs={1: new_cost(1.9)}).templates[1].user_attrs["kind"] == "rejected"


def test_repeats_follow_their_trials_and_none_of_a_rejected_one_is_begun():
    found = derived(
        base(),
        rejected(1),
        trial(2, A, 0.33, 1.05),
        trial(3, B, 0.34, 1.1),
        costs={n: new_cost(r) for n, r in ((1, 1.0), (2, 1.1), (3, 1.6))},
    )
    ended = {"job": {"seed": 1}, "outcome": {}}
    theirs = {
        "objectives": OBJECTIVES,
        "fit": {"data": "d"},
        "owner": "x",
        "command": "nas-attn search",
        "derived": {"from": "older"},
        "settings": {"old": 1},
        "repeats:1": {"seeds": [1]},
        "repeats:2": {"seeds": [1, 2], "results": [ended]},
        "repeats:3": {"seeds": [1, 2], "results": [ended], "losses": {"a": 1}},
    }
    ours = derive.attributes(theirs, found, {"new": 1}, {"from": "study", "trials": 4})
    assert ours == {
        "objectives": OBJECTIVES,
        "fit": {"data": "d"},
        "settings": {"new": 1},
        "repeats:1": {"seeds": [1, 2], "results": [ended]},
        "repeats:2": {"seeds": [1], "results": [ended], "losses": {"a": 1}},
        "derived": {"from": "study", "trials": 4, "taken": 3, "left_out": {derive.UNTRAINED: 1}, "earlier": {"from": "older"}},
    }


def test_settings_change_in_backend_and_device_alone():
    theirs = {
        "spec": {"latency": {"backend": "torch", "imgsz": 64}, "seed": 1},
        "setup": {"latency": {"backend": "torch", "imgsz": 64}, "device": "cpu"},
        "versions": {"torch": "2"},
    }
    ours = derive.settings(theirs, "onnxruntime", "cuda:0", {"torch": "3", "onnxruntime": "1.3"})
    latency_now = {"backend": "onnxruntime", "imgsz": 64}
    assert ours == {
        "spec": {"latency": latency_now, "seed": 1},
        "setup": {"latency": latency_now, "device": "cuda:0"},
        "versions": {"torch": "2", "onnxruntime": "1.3"},
    }
    assert derive.settings(ours, "torch", "cpu", {"torch": "3"}) == theirs
