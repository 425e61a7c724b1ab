"""Jobs, recipes and the four outcomes: named by all that they depend on, whole after a trip through JSON, refused when torn."""

import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from nas_attn.architecture import Architecture, Placement
from nas_attn.errors import StudyError
from nas_attn.outcome import (
    Cost,
    Failure,
    Job,
    Latency,
    Measured,
    Outcome,
    Recipe,
    Rejected,
    Stopped,
    full_length,
    kind,
    outcome_file_text,
    outcome_from_dict,
    outcome_to_dict,
    read_outcome_file,
)

RECIPE = Recipe(
    epochs=6,
    imgsz=160,
    batch=16,
    lr0=0.001,
    new_lr_scale=10.0,
    score_on="search_val",
    data="d1",
    base="b1",
    code="c1",
    args=(("cos_lr", True), ("mosaic", 0.5), ("optimizer", "AdamW")),
)
JOB = Job(architecture=Architecture("yolo11n.yaml", (Placement(4, "LIA", (("f", 8),)),)), recipe=RECIPE, seed=3)
MEASURED = Measured(
    map50_95=0.31,
    map50=0.62,
    curve=({"epoch": 1.0, "map50_95": 0.2}, {"epoch": 2.0, "map50_95": 0.31}),
    gates={"4": 0.01},
    train_seconds=12.5,
    total_seconds=14.0,
    peak_memory_mib=800.0,
    batch=16,
    device="cpu, 1 threads",
)
OUTCOMES: list[Outcome] = [
    MEASURED,
    Rejected(limit="latency_ratio", value=1.42, bound=1.3),
    Stopped(rung=1, curve=({"epoch": 1.0, "map50_95": 0.1},)),
    Failure(stage="train", error="RuntimeError: out of memory", traceback="Traceback ..."),
]
LATENCY = Latency(
    ratio=1.1, low=1.05, high=1.15, latency_ms=8.8, base_ms=8.0, quality="gated", blocks=30, attempts=1, environment={"os": "x"}
)
COST = Cost(params_m=2.6, gmacs=0.2, activation_mib=12.0, latency=LATENCY)


@pytest.mark.parametrize("outcome", OUTCOMES, ids=kind)
def test_json_both_ways(outcome: Outcome) -> None:
    assert outcome_from_dict(json.loads(json.dumps(outcome_to_dict(outcome)))) == outcome


@pytest.mark.parametrize("outcome", OUTCOMES, ids=kind)
def test_a_file_answers_its_job(outcome: Outcome) -> None:
    assert read_outcome_file(outcome_file_text(JOB, outcome), JOB) == outcome


def test_a_file_of_another_attempt_counts() -> None:
    text = outcome_file_text(replace(JOB, attempt=2), MEASURED)
    assert read_outcome_file(text, JOB) == MEASURED


@pytest.mark.parametrize(
    "job",
    [
        replace(JOB, seed=4),
        replace(JOB, recipe=replace(RECIPE, epochs=7)),
        replace(JOB, architecture=Architecture("yolo11n.yaml")),
        replace(JOB, epochs=3),
    ],
    ids=["seed", "recipe", "architecture", "rung"],
)
def test_a_file_of_another_job_is_refused(job: Job) -> None:
    with pytest.raises(StudyError, match="it answers another"):
        read_outcome_file(outcome_file_text(job, MEASURED), JOB)


def test_torn_files_are_refused_wherever_they_are_torn() -> None:
    text = outcome_file_text(JOB, MEASURED)
    for length in range(len(text)):
        with pytest.raises(StudyError, match="whole JSON of schema 1"):
            read_outcome_file(text[:length], JOB)


@pytest.mark.parametrize("text", ["", "null", "3", "[]", "{}", '"x"', '{"schema": 1}', "\0"])
def test_foreign_texts_are_refused(text: str) -> None:
    with pytest.raises(StudyError, match="whole JSON of schema 1"):
        read_outcome_file(text, JOB)


def test_another_schema_is_refused() -> None:
    text = outcome_file_text(JOB, MEASURED).replace('"schema": 1', '"schema": 2')
    with pytest.raises(StudyError, match="answers another"):
        read_outcome_file(text, JOB)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ["12.5", "0.01", "0.62"], ids=["field", "mapping", "score"])
def test_numbers_that_are_not_finite_are_refused(number: str, place: str) -> None:
    text = outcome_file_text(JOB, MEASURED)
    assert place in text
    with pytest.raises(StudyError):
        read_outcome_file(text.replace(place, number, 1), JOB)


def test_numbers_that_are_not_finite_are_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        outcome_file_text(JOB, replace(MEASURED, train_seconds=math.nan))


@pytest.mark.parametrize("curve", [({"loss": math.inf},), ({"loss": 1.0}, {"loss": math.nan})])
def test_a_curve_must_be_finite(curve: Any) -> None:
    with pytest.raises(StudyError, match="must be finite"):
        outcome_from_dict(outcome_to_dict(Stopped(rung=0, curve=curve)))


@pytest.mark.parametrize(
    "change", [{"kind": "lost"}, {"kind": None}, {"surplus": 1}, {"kind": "rejected"}], ids=["kind", "no kind", "surplus", "other kind"]
)
def test_unknown_shapes_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="An outcome needs the fields of one of"):
        outcome_from_dict({**outcome_to_dict(MEASURED), **change})


@pytest.mark.parametrize("field", sorted(set(outcome_to_dict(MEASURED))))
def test_missing_fields_are_refused(field: str) -> None:
    data = outcome_to_dict(MEASURED)
    del data[field]
    with pytest.raises(StudyError, match="An outcome needs the fields"):
        outcome_from_dict(data)


@pytest.mark.parametrize("name", ["map50_95", "map50"])
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_scores_lie_between_0_and_1(name: str, value: float) -> None:
    with pytest.raises(StudyError, match=f"`0 <= {name} <= 1` must hold"):
        replace(MEASURED, **{name: value})


def test_kinds() -> None:
    assert [kind(outcome) for outcome in OUTCOMES] == ["measured", "rejected", "stopped", "failure"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 7),
        ("imgsz", 192),
        ("batch", 8),
        ("lr0", 0.002),
        ("new_lr_scale", 20.0),
        ("score_on", "val"),
        ("data", "d2"),
        ("base", "b2"),
        ("code", "c2"),
        ("average", 2),
        ("args", ()),
        ("args", (*RECIPE.args[:2], ("optimizer", "SGD"))),
    ],
)
def test_a_recipe_is_named_by_each_of_its_fields(field: str, value: Any) -> None:
    assert replace(RECIPE, **{field: value}).key() != RECIPE.key()


def test_the_table_above_covers_every_field_of_a_recipe() -> None:
    marks = test_a_recipe_is_named_by_each_of_its_fields.pytestmark  # type: ignore[attr-defined]
    assert {field for field, _ in marks[0].args[1]} == set(asdict(RECIPE))


def test_a_recipe_after_json_is_equal_and_has_the_same_key() -> None:
    again = Recipe.from_dict(json.loads(json.dumps(asdict(RECIPE))))
    assert again == RECIPE
    assert again.key() == RECIPE.key()
    assert len(RECIPE.key()) == 12


def test_a_job_after_json_is_equal() -> None:
    assert Job.from_dict(json.loads(json.dumps(JOB.to_dict()))) == JOB


def test_a_jobs_folder_says_what_it_holds() -> None:
    third = replace(JOB, attempt=3)
    assert JOB.name() == third.name() == f"{RECIPE.key()}-s3"
    assert third.folder(Path("study")) == Path("study") / "trials" / JOB.architecture.digest() / f"{RECIPE.key()}-s3" / "3"


def test_a_rung_is_a_job_of_its_own() -> None:
    rung = replace(JOB, epochs=3)
    assert rung.name() == f"{JOB.name()}-e3"
    assert rung.folder(Path("study")).parent.name == rung.name()
    assert Job.from_dict(json.loads(json.dumps(rung.to_dict()))) == rung
    assert len({JOB.name(), rung.name(), replace(JOB, epochs=1).name(), replace(rung, seed=4).name()}) == 4


def test_records_from_before_rungs_and_averages_are_read_and_named_as_they_were() -> None:
    data = json.loads(json.dumps(JOB.to_dict()))
    assert "epochs" not in data
    del data["recipe"]["average"]
    assert Job.from_dict(data) == JOB
    assert Job.from_dict(data).name() == JOB.name()
    text = json.dumps(dict(sorted(data["recipe"].items())))
    assert RECIPE.key() == hashlib.sha256(text.encode()).hexdigest()[:12]
    old = json.dumps({"schema": 1, "job": data, "outcome": outcome_to_dict(MEASURED)})
    assert read_outcome_file(old, JOB) == MEASURED


def test_what_is_told_comes_from_trainings_to_the_end_by_seed() -> None:
    late, early = replace(MEASURED, map50_95=0.4), replace(MEASURED, map50_95=0.1)
    failed = Failure(stage="train", error="x")
    pairs = [(JOB, MEASURED), (replace(JOB, epochs=3), early), (replace(JOB, seed=1), late), (replace(JOB, seed=5), failed)]
    assert full_length(pairs) == {1: late, 3: MEASURED}
    assert list(full_length(pairs)) == [1, 3]
    assert full_length([]) == {}


def test_cost_both_ways_and_its_metrics() -> None:
    assert Cost.from_dict(json.loads(json.dumps(asdict(COST)))) == COST
    assert COST.metrics() == {"latency_ratio": 1.1, "latency_ms": 8.8, "params_m": 2.6, "gmacs": 0.2}


def test_outcomes_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        MEASURED.map50_95 = 0.9  # type: ignore[misc]
