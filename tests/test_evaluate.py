"""A worker answers in JSON, names the stage of every failure, and leaves a whole outcome file behind each training."""

import errno
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from fake_evaluator import measured

from nas_attn import checkpoint, evaluate, latency, pauses
from nas_attn.architecture import Architecture, Placement
from nas_attn.attention.halo import HaloAttention
from nas_attn.errors import InputError, Unavailable
from nas_attn.outcome import CHECKPOINT, Failure, Job, Measured, Recipe, outcome_file_text, outcome_from_dict, read_outcome_file
from nas_attn.plan import load_setup
from nas_attn.proxy import Piece, Trained, Training
from nas_attn.record import load_study
from nas_attn.records import record
from nas_attn.setup import Setup, resolved_device
from nas_attn.work import answer

pytestmark = pytest.mark.slow  # they share one small real study

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


def test_a_rung_leaves_a_pause_from_which_any_attempt_goes_on(
    setup: Setup, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def study(name: str) -> Setup:
        (tmp_path / name).mkdir()
        (tmp_path / name / "base").symlink_to(Path(setup.folder) / "base")
        return replace(setup, folder=str(tmp_path / name))

    began: list[int] = []
    real = evaluate.train_model

    def counting(training: Training, model: object, _: object, piece: Piece) -> Trained:
        epochs: list[object] = []
        trained = real(training, model, epochs.append, piece)
        began.append(len(epochs))
        return trained

    monkeypatch.setattr(evaluate, "train_model", counting)
    job = Job(architecture=Architecture(setup.base, (LSKA,)), recipe=recipe, seed=7)
    rung, here = replace(job, epochs=1), study("pieces")
    whole = evaluate.evaluate(study("whole"), job)
    first = evaluate.evaluate(here, rung)
    (rung.folder(Path(here.folder)) / "outcome.json").unlink()  # else it would count, and there would be no second attempt
    second = evaluate.evaluate(here, replace(rung, attempt=2))
    pauses = [replace(rung, attempt=attempt).folder(Path(here.folder)) / CHECKPOINT for attempt in (1, 2)]
    before = pauses[0].read_bytes()
    pauses[1].write_bytes(before[:5000])  # the later attempt was torn
    ended = evaluate.evaluate(here, job)
    assert began == [2, 1, 1, 1]
    assert isinstance(whole, Measured)
    assert isinstance(first, Measured)
    assert isinstance(ended, Measured)
    assert first.curve == second.curve == whole.curve[:1]
    assert first.map50_95 == whole.curve[0]["map50_95"]
    assert (ended.curve, ended.map50_95, ended.map50, ended.gates) == (whole.curve, whole.map50_95, whole.map50, whole.gates)
    assert not pauses[0].exists()  # the training has run to its end
    assert not (rung.folder(Path(here.folder)) / "weights.pt").exists()
    kept = [torch.load(job.folder(tmp_path / name) / "weights.pt", weights_only=True) for name in ("whole", "pieces")]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    averaged = evaluate.evaluate(here, replace(job, recipe=replace(recipe, average=2)))
    assert isinstance(averaged, Measured)
    assert averaged.curve == whole.curve
    assert averaged.map50_95 == pytest.approx(sum(epoch["map50_95"] for epoch in whole.curve) / 2)


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


def test_a_candidate_that_cannot_be_timed_spoils_no_other(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    real = latency.measure
    halo = Placement(4, "HaloAttention", record("HaloAttention").complete({}))

    def short_of_memory(base: object, candidates: list, **options: object) -> list:
        if any(isinstance(m, HaloAttention) for model in candidates for m in model.modules()):
            raise RuntimeError("out of memory (simulated)")
        return real(base, candidates, **options)

    monkeypatch.setattr(latency, "measure", short_of_memory)
    wanted = [Architecture(setup.base, (LSKA,)), Architecture(setup.base, (halo,))]
    good, bad = ask("measure", setup, architectures=[a.to_dict() for a in wanted])["costs"]
    assert good["cost"]["latency"]["ratio"] > 0
    assert (bad["failure"]["stage"], "out of memory" in bad["failure"]["error"]) == ("latency", True)


@pytest.mark.parametrize(("factor", "quality"), [(0.5, "gated"), (2.0, "ungated")])
def test_a_new_calibration_counts_only_if_the_base_ran_faster_for_it(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, quality: str
) -> None:
    here = replace(setup, folder=str(tmp_path))
    (tmp_path / "base").symlink_to(Path(setup.folder) / "base")
    ask("measure", setup, architectures=[Architecture(setup.base, (LSKA,)).to_dict()])  # a gate is known from here on
    files = {f: f.read_text() for f in (Path(setup.folder) / "base").glob("latency-gate-*.json")}
    real = latency.measure

    def refused(base: object, candidates: list, *, gate: latency.Gate, **options: object) -> list:
        known = gate.base_ms in {json.loads(text)["base_ms"] for text in files.values()}
        return [replace(entry, quality="ungated" if known else "gated") for entry in real(base, candidates, gate=gate, **options)]

    monkeypatch.setattr(latency, "measure", refused)
    known = latency.Gate.from_dict(json.loads(next(iter(files.values()))))
    monkeypatch.setattr(latency, "calibrate", lambda *_, **__: replace(known, base_ms=known.base_ms * factor))
    answer = ask("measure", here, architectures=[Architecture(setup.base, (LSKA,)).to_dict()])["costs"][0]
    for file, text in files.items():
        assert (file.read_text() == text) == (factor > 1)
        file.write_text(text)
    assert answer["cost"]["latency"]["quality"] == quality


def test_what_is_not_finite_is_a_failure_and_is_kept(setup: Setup, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = evaluate.train_model

    def overflowed(*arguments: object) -> object:
        trained = real(*arguments)
        return replace(trained, curve=(*trained.curve[:-1], {**trained.curve[-1], "val_loss": float("nan")}))

    monkeypatch.setattr(evaluate, "train_model", overflowed)
    job = Job(architecture=Architecture(setup.base, (LSKA,)), recipe=recipe, seed=6)
    outcome = outcome_from_dict(ask("train", setup, job=job.to_dict()))
    assert isinstance(outcome, Failure)
    assert outcome.stage == "score"
    assert read_outcome_file((job.folder(Path(setup.folder)) / "outcome.json").read_text(), job) == outcome


def test_an_attempt_that_was_lost_is_gone_on_with_from_its_last_epoch(
    setup: Setup, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "lost"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "base").symlink_to(Path(setup.folder) / "base")
    job = Job(architecture=Architecture(setup.base, (LSKA,)), recipe=recipe, seed=8)
    whole = evaluate.evaluate(replace(setup, folder=str(tmp_path / "whole")), job)
    here, real = replace(setup, folder=str(tmp_path / "lost")), checkpoint.save
    monkeypatch.setattr(pauses, "EVERY_S", 0.0)

    def die(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", die)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(here, job)
    kept = job.folder(tmp_path / "lost") / CHECKPOINT
    assert kept.is_file()
    assert not kept.with_name("outcome.json").exists()
    monkeypatch.setattr(checkpoint, "save", real)
    began: list[object] = []
    trained = evaluate.train_model
    monkeypatch.setattr(evaluate, "train_model", lambda training, model, _, piece: trained(training, model, began.append, piece))
    ended = evaluate.evaluate(here, replace(job, attempt=2))
    assert isinstance(whole, Measured)
    assert isinstance(ended, Measured)
    assert (len(began), ended.curve) == (1, whole.curve)
    assert not list(Path(here.folder).glob(f"trials/*/*/*/{CHECKPOINT}"))


def test_what_another_attempt_has_left_is_not_trained_again(setup: Setup, recipe: Recipe, tmp_path: Path) -> None:
    job = Job(architecture=Architecture(setup.base), recipe=replace(recipe, base="0" * 12), seed=0, attempt=3)
    kept = measured(0.25)
    other = replace(job, attempt=1).folder(tmp_path)
    other.mkdir(parents=True)
    (other / "outcome.json").write_text(outcome_file_text(job, kept))
    answer = ask("train", replace(setup, folder=str(tmp_path)), job=job.to_dict())
    assert outcome_from_dict(answer) == kept  # to train it would fail: there is no such base
    assert not job.folder(tmp_path).exists()


@pytest.mark.parametrize("alone", [False, True])
def test_lack_of_memory_is_an_outcome_only_of_what_ran_alone(
    setup: Setup, recipe: Recipe, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(evaluate, "train_model", lacking)
    job = Job(architecture=Architecture(setup.base, (LSKA,)), recipe=recipe, seed=9 + alone, alone=alone)
    outcome = outcome_from_dict(ask("train", setup, job=job.to_dict()))
    assert isinstance(outcome, Failure)
    assert outcome.stage == "memory"
    assert f"at batch {recipe.batch}" in outcome.error
    assert (job.folder(Path(setup.folder)) / "outcome.json").is_file() is alone


def test_a_training_without_its_data_is_nobody_s_failure(
    setup: Setup, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> object:
        raise FileNotFoundError("/data/7.png")

    monkeypatch.setattr(evaluate, "train_model", missing)
    (tmp_path / "gone.txt").write_text("/data/7.png\n")
    job = Job(architecture=Architecture(setup.base, (LSKA,)), recipe=recipe, seed=12)
    assert isinstance(evaluate.evaluate(setup, replace(job, seed=13)), Failure)
    with pytest.raises(Unavailable, match=r"1 of 1 images looked at are not: /data/7\.png"):
        evaluate.evaluate(replace(setup, train_list=str(tmp_path / "gone.txt")), job)
    assert not (job.folder(Path(setup.folder)) / "outcome.json").exists()


def test_a_base_that_is_not_the_recipe_s_is_refused(setup: Setup, recipe: Recipe) -> None:
    job = Job(architecture=Architecture(setup.base), recipe=replace(recipe, base="another"), seed=0)
    outcome = outcome_from_dict(ask("train", setup, job=job.to_dict()))
    assert isinstance(outcome, Failure)
    assert "TransferError" in outcome.error


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


def test_a_full_disk_is_no_failure_of_the_fit(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluate, "_keep_fit", full)
    monkeypatch.setattr(evaluate, "_fit", lambda *_: None)
    here = replace(setup, folder=str(tmp_path))
    with pytest.raises(OSError, match="No space left"):
        evaluate.fit(here)
    assert answer(evaluate.serve, "fit", json.dumps({"setup": asdict(here)}))[2] == "disk"


def test_an_unknown_kind_is_a_bug_of_the_driver(setup: Setup) -> None:
    with pytest.raises(InputError, match="fit, measure or train"):
        ask("dance", setup)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match="auto, cpu or cuda"):
        resolved_device("tpu")


def test_a_driver_without_a_gpu_may_ask_others_for_theirs():
    assert resolved_device("cuda", elsewhere=True) == "cuda:0"
    assert resolved_device("cpu", elsewhere=True) == "cpu"
