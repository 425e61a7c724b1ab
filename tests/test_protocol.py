"""What driver and workers say to each other."""

import json
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pytest
from fake_evaluator import cost, measured
from study_targets import BASE, RECIPE, job_of, space

from nas_attn.architecture import Architecture
from nas_attn.errors import NasAttnError, StudyError
from nas_attn.outcome import Failure, Rejected, Stopped, Trial, outcome_to_dict
from nas_attn.protocol import (
    deadline_s,
    excess,
    halted,
    job_key,
    lost_failure,
    mean_outcome,
    part,
    read_costs,
    read_fit,
    read_outcome,
    recipe_of,
    rejection,
    require_kind,
    study_settings,
    words,
    worn_out,
)
from nas_attn.spec import SpaceSpec, Timing

FIT = {"fingerprint": "b" * 12, "data": "d" * 12, "code": "versions"}


def _spec(**proxy):
    return SpaceSpec.from_dict({"base": BASE, "sites": ["P3"], "modules": {"LIA": {"f": [8]}}, "proxy": proxy})


def test_a_recipe_holds_the_whole_proxy_and_what_the_fit_stands_for():
    assert recipe_of(_spec(), {}, FIT) == RECIPE
    assert recipe_of(_spec(mosaic=0.5, degrees=1.0), {}, FIT) == replace(RECIPE, args=(("degrees", 1.0), ("mosaic", 0.5)))
    assert recipe_of(_spec(average=3), {}, FIT) == replace(RECIPE, average=3)
    assert recipe_of(_spec(epochs=2, lr0=0.01), {"score_on": "val"}, FIT) == replace(RECIPE, epochs=2, lr0=0.01, score_on="val")


def test_settings_name_the_runtime_of_latencies_and_those_of_torch_are_what_they_were():
    def settings(backend):
        return study_settings(Path("/a"), _spec().model_copy(update={"latency": Timing(backend=backend)}), space(), {}, "tpe")

    ours, theirs = settings("torch"), settings("onnxruntime")
    assert ours["spec"]["latency"]["backend"] == "torch"  # as in studies of the time when there was no other
    assert theirs["spec"]["latency"]["backend"] == "onnxruntime"
    assert theirs["versions"].pop("onnxruntime") == version("onnxruntime")
    assert ours["versions"] == theirs["versions"]


def test_a_cost_is_over_a_limit_only_if_its_whole_interval_is():
    near = replace(cost(1.31), latency=replace(cost(1.31).latency, low=1.29))
    assert excess(near, {"latency_ratio": 1.3, "params_m": 4.0}) == {
        "latency_ratio": pytest.approx(-0.01),
        "params_m": pytest.approx(near.params_m - 4),
    }
    assert rejection(near, {"latency_ratio": 1.3}) is None
    assert rejection(cost(1.5), {"params_m": 0.1, "latency_ratio": 1.3}).limit == "params_m"
    assert rejection(cost(1.5), {"latency_ratio": 1.3}) == Rejected(limit="latency_ratio", value=1.5, bound=1.3)


def test_settings_do_not_depend_on_where_the_study_lies():
    def settings(folder, **changes):
        setup = {
            "folder": str(folder),
            "train_list": f"{folder}/lists/train.txt",
            "names": ("a", "b"),
            "weights": "/w.pt",
            "weights_sha256": "abc",
            **changes,
        }
        return json.loads(json.dumps(study_settings(folder, _spec(), space(), setup, "tpe")))

    here = settings(Path("/some/where"))
    assert here == settings(Path("/else"))
    assert here["setup"] == {"train_list": "./lists/train.txt", "names": ["a", "b"], "weights_sha256": "abc"}
    assert set(here["versions"]) == {"nas-attn", "ultralytics", "torch"}
    assert here == settings(Path("/else"), weights="/moved.pt")
    assert here != settings(Path("/else"), weights_sha256="def")
    assert settings(Path("/else"), graph=list(range(300)))["setup"]["graph"].startswith("sha256:")


def test_settings_that_came_later_are_told_only_where_they_are_used():
    def settings(fidelity="full", **proxy):
        return study_settings(Path("/here"), _spec(**proxy), space(), {}, "tpe", fidelity)

    assert "fidelity" not in settings()
    assert not {"average", "rungs"} & set(settings()["spec"]["proxy"])
    assert settings("racing")["fidelity"] == "racing"
    assert settings(average=2, rungs=[2, 6])["spec"]["proxy"] == {**settings()["spec"]["proxy"], "average": 2, "rungs": [2, 6]}


def test_a_search_that_goes_nowhere_is_halted():
    def trials(*kinds):
        verdicts = {"failure": Failure(stage="train", error="x"), "rejected": Rejected(limit="gmacs", value=2.0, bound=1.0)}
        base = {"state": "-", "architecture": Architecture(BASE)}
        return [Trial(number=i, kind=k, verdict=verdicts.get(k), **base) for i, k in enumerate(kinds)]

    limits = {"gmacs": 1.0}
    assert halted(trials("measured", "failure", None, "rejected", "failure"), limits, 3, 2) is None
    assert halted(trials("failure", "measured", "failure"), limits, 2, 2) == "Most trials must succeed, but 2 failed; the last: train: x"
    reason = halted(trials("measured", "rejected", None, "rejected"), limits, 3, 2)
    assert reason.startswith("Some architecture must keep the limits {'gmacs': 1.0}, but 2 in a row did not; the last: gmacs = 2")


def test_a_part_is_told_with_its_rung():
    trial = Trial(number=1, state="RUNNING", kind=None, architecture=Architecture(BASE))
    assert part(job_of(trial, seed=2)) == "seed 2"
    assert part(replace(job_of(trial), epochs=3)) == "seed 0 to epoch 3"


def test_a_job_key_is_one_for_all_attempts_and_differs_between_jobs():
    trial = Trial(number=1, state="RUNNING", kind=None, architecture=Architecture(BASE))
    assert job_key(job_of(trial)) == job_key(job_of(trial, attempt=7))
    assert job_key(job_of(trial)) != job_key(job_of(trial, seed=1))


def test_a_fit_must_have_succeeded_and_say_what_it_stands_for():
    assert read_fit(json.dumps(FIT)) == FIT
    with pytest.raises(NasAttnError, match="its fit failed: train: no labels"):
        read_fit(json.dumps({"failure": asdict(Failure(stage="train", error="no labels"))}))
    with pytest.raises(NasAttnError, match=r"\['code', 'data'\] are missing"):
        read_fit(json.dumps({"fingerprint": "x"}))


def test_costs_are_read_one_by_one_with_the_failures_of_those_that_have_none():
    good, failure = asdict(cost(1.1)), asdict(Failure(stage="build", error="x"))
    assert read_costs(json.dumps({"costs": [{"cost": good}, {"failure": failure}]}), 2) == [cost(1.1), Failure(**failure)]


GOOD = asdict(cost(1.1))


@pytest.mark.parametrize("part", [{"cost": {**GOOD, "gmacs": -1.0}}, {"cost": {**GOOD, "params_m": "x"}}, {"failure": {"x": 1}}, {}, [], 3])
def test_a_cost_that_is_none_makes_the_whole_answer_unusable(part):
    with pytest.raises(NasAttnError, match="A measurement must answer with its costs, but"):
        read_costs(json.dumps({"costs": [{"cost": GOOD}, part]}), 2)


@pytest.mark.parametrize("text", ["{}", "[]", "3", "not json", '{"costs": 3}', '{"costs": []}', json.dumps({"costs": [{"cost": GOOD}]})])
def test_what_is_no_answer_to_a_measurement_of_two_is_refused(text):
    with pytest.raises(NasAttnError, match="A measurement must answer with its costs, but"):
        read_costs(text, 2)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_cost_that_is_not_finite_is_refused(value):
    with pytest.raises(NasAttnError, match="negative or not finite"):
        read_costs(json.dumps({"costs": [{"cost": GOOD}]}).replace("2.6", value), 1)


REJECTED = json.dumps(outcome_to_dict(Rejected(limit="x", value=2.0, bound=1.0)))


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"kind": "measured"}', "not json", REJECTED])
def test_what_is_no_outcome_of_a_training_is_refused(text):
    with pytest.raises(NasAttnError, match="A training must"):
        read_outcome(text)


def test_outcomes_are_read_as_they_are():
    for outcome in (measured(0.3), Stopped(rung=1, curve=({"epoch": 1.0},)), Failure(stage="train", error="x")):
        assert read_outcome(json.dumps(outcome_to_dict(outcome))) == outcome
    with pytest.raises(NasAttnError, match="A training must answer with its outcome"):
        read_outcome(json.dumps(outcome_to_dict(measured(0.3))).replace("0.3", "1.3"))


def test_the_mean_keeps_the_first_seeds_curve():
    mean = mean_outcome([measured(0.2), measured(0.4)])
    assert mean.map50_95 == pytest.approx(0.3)
    assert mean.map50 == pytest.approx(0.48)
    assert mean.curve == measured(0.2).curve


def test_words_and_reasons():
    assert lost_failure(3, "deadline of 5 s passed").stage == "deadline"
    assert lost_failure(3, "worker died: x") == Failure(stage="worker", error="lost 3 times; the last: worker died: x")
    assert words(worn_out(20)) == "worker: 20 attempts began, and none of them ended"
    assert words(Rejected(limit="latency_ratio", value=1.5, bound=1.3)) == "latency_ratio = 1.5 is over the limit of 1.3"
    assert words(Stopped(rung=2, curve=())) == "stopped at rung 2"
    assert words(measured(0.3)) == "mAP50-95 0.3000"
    assert words(None) == "not ended"


def test_a_training_may_take_twenty_times_what_the_fit_lets_expect():
    fit = {"seconds": 3000.0, "curve": [{}] * 30}
    assert deadline_s(fit, 6, 3600.0) == pytest.approx(20 * 6 * 100.0)
    assert deadline_s(fit, 1, 3600.0) == 3600.0
    assert deadline_s({"seconds": 0.0, "curve": []}, 6, 3600.0) == 86400.0


def test_a_studys_latencies_are_of_one_device():
    def on(**environment):
        known = cost(1.1)
        return replace(known, latency=replace(known.latency, environment={"device": "cuda:0", "threads": 4, **environment}))

    require_kind(on(name="NVIDIA H100"), on(name="NVIDIA H100", threads=8))  # threads may differ, the device may not
    require_kind(None, on(name="NVIDIA H100"))
    require_kind(on(), on(name="NVIDIA H100"))  # of the time before it was told
    with pytest.raises(StudyError, match=r"are of NVIDIA H100 .torch. and .* on NVIDIA A10 .*--latency-node.*nas-attn retarget"):
        require_kind(on(name="NVIDIA H100"), on(name="NVIDIA A10"))
    with pytest.raises(StudyError, match="onnxruntime"):
        require_kind(on(name="EPYC"), on(name="EPYC", backend="onnxruntime"))
