"""A worker answers in JSON, names the stage of every failure, and leaves a whole outcome file behind each training."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from nas_attn import evaluate
from nas_attn.architecture import Architecture, Placement
from nas_attn.errors import InputError
from nas_attn.outcome import Failure, Job, Measured, Recipe, outcome_from_dict, read_outcome_file
from nas_attn.plan import load_setup
from nas_attn.record import load_study
from nas_attn.records import record
from nas_attn.setup import Setup, resolved_device

LSKA = Placement(4, "LSKA", record("LSKA").complete({}))


@pytest.fixture(scope="module")
def setup(tiny_study: Path) -> Setup:
    return load_setup(tiny_study)


@pytest.fixture(scope="module")
def recipe(tiny_study: Path) -> Recipe:
    return load_study(tiny_study).trials[0].results[0][0].recipe


def ask(kind: str, setup: Setup, **payload: object) -> dict:
    return json.loads(evaluate.serve(kind, json.dumps({"setup": asdict(setup), **payload})))


def test_a_training_ends_in_an_outcome_file_that_answers_its_job(setup: Setup, recipe: Recipe) -> None:
    job = Job(architecture=Architecture(setup.base, (LSKA,)), recipe=recipe, seed=5, attempt=2)
    outcome = outcome_from_dict(ask("train", setup, job=job.to_dict()))
    folder = job.folder(Path(setup.folder))
    assert isinstance(outcome, Measured)
    assert read_outcome_file((folder / "outcome.json").read_text(), job) == outcome
    assert list(outcome.gates) == ["4"]
    assert "gate_4" in outcome.curve[-1]
    assert outcome.batch == recipe.batch
    state = torch.load(folder / "weights.pt", weights_only=True)
    assert "model.5.gate_bias" in state
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("placement", "stage", "message"),
    [(Placement(4, "Nothing"), "build", "Nothing"), (Placement(23, "LSKA", LSKA.params), "build", "GraphError")],
)
def test_a_failure_names_its_stage_and_is_kept(setup: Setup, recipe: Recipe, placement: Placement, stage: str, message: str) -> None:
    job = Job(architecture=Architecture(setup.base, (placement,)), recipe=recipe, seed=0)
    outcome = outcome_from_dict(ask("train", setup, job=job.to_dict()))
    assert isinstance(outcome, Failure)
    assert outcome.stage == stage
    assert message in outcome.error
    assert "Traceback" in outcome.traceback
    assert read_outcome_file((job.folder(Path(setup.folder)) / "outcome.json").read_text(), job) == outcome


def test_costs_come_with_latency_and_one_bad_candidate_spoils_no_other(setup: Setup) -> None:
    wanted = [Architecture(setup.base), Architecture(setup.base, (Placement(4, "Nothing"),)), Architecture(setup.base, (LSKA,))]
    base, bad, candidate = ask("measure", setup, architectures=[a.to_dict() for a in wanted])["costs"]
    assert bad["failure"]["stage"] == "build"
    assert base["cost"]["latency"]["ratio"] == 1.0
    added = candidate["cost"]["params_m"] - base["cost"]["params_m"]
    assert added * 1e6 == pytest.approx(record("LSKA").parameters(128, {}))
    assert candidate["cost"]["gmacs"] > base["cost"]["gmacs"]
    assert candidate["cost"]["latency"]["low"] <= candidate["cost"]["latency"]["ratio"] <= candidate["cost"]["latency"]["high"]


def test_the_base_is_fitted_once(setup: Setup) -> None:
    weights = Path(setup.folder) / "base" / "weights.pt"
    before = weights.stat().st_mtime_ns
    first = ask("fit", setup)
    assert first["map50_95"] is not None
    assert len(first["curve"]) == 2
    assert weights.stat().st_mtime_ns == before


def test_a_base_that_cannot_start_says_at_which_stage(setup: Setup, tmp_path: Path) -> None:
    broken = asdict(setup) | {"folder": str(tmp_path), "weights": str(tmp_path / "none.pt")}
    answer = ask("fit", Setup.from_dict(broken))
    assert answer["failure"]["stage"] == "load"
    assert "none.pt" in answer["failure"]["error"]


def test_an_unknown_kind_is_a_bug_of_the_driver(setup: Setup) -> None:
    with pytest.raises(InputError, match="fit, measure or train"):
        ask("dance", setup)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match="auto, cpu or cuda"):
        resolved_device("tpu")
