"""The worker's side of `verify`: bisection over the steps of a width, the wider base itself, and real trainings of every kind."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from fake_evaluator import measured

from nas_attn import full
from nas_attn.architecture import Architecture, Placement
from nas_attn.detector import build, load_base
from nas_attn.errors import InputError
from nas_attn.full import Probe, bisect, widened, width_steps
from nas_attn.graph import Graph
from nas_attn.outcome import Failure, Job, Latency, Measured, Outcome, Recipe, outcome_file_text, outcome_from_dict, read_outcome_file
from nas_attn.plan import load_setup
from nas_attn.records import record
from nas_attn.setup import Setup

LSKA = Placement(4, "LSKA", record("LSKA").complete({}))


def probe(width: float, ratio: float, candidate: float = 1.0) -> Probe:
    return Probe(width=width, ratio=ratio, candidate_ratio=candidate, params_m=1.0, quality="gated")


def staircase(width: float) -> float:
    """Latency that rises only every third step of 1/128, as rounded channels and vector units have it."""
    return 1.0 + 0.08 * math.floor((width * 128 - 32) / 3)


@pytest.mark.parametrize("target", [1.05, 1.2, 1.3, 1.77, 1.95])
def test_bisection_finds_a_step_within_two_percent_or_the_nearest(target: float) -> None:
    steps = [k / 128 for k in range(33, 65)]
    seen: list[float] = []

    def timed(width: float) -> Probe:
        seen.append(width)
        return probe(width, staircase(width), target)

    found = bisect(steps, timed)
    best = min(abs(p.excess - 1.0) for p in found)
    nearest = min(abs(staircase(width) / target - 1.0) for width in steps)
    assert best <= max(0.02, nearest + 1e-12)
    assert len(seen) <= 6, "bisection, not a scan"
    assert len(set(seen)) == len(seen)


def test_bisection_leaves_out_widths_that_are_no_network() -> None:
    steps = [k / 128 for k in range(33, 65)]
    found = bisect(steps, lambda width: None if width * 128 % 2 else probe(width, width * 4, 1.5))
    assert abs(found[-1].excess - 1) <= 0.02
    assert all(p.width * 128 % 2 == 0 for p in found)
    assert bisect(steps, lambda _: None) == ()


@pytest.mark.parametrize(("ratio", "end"), [(0.1, 64), (9.0, 33)])
def test_bisection_ends_at_the_last_step_where_none_is_slow_or_fast_enough(ratio: float, end: int) -> None:
    found = bisect([k / 128 for k in range(33, 65)], lambda width: probe(width, ratio * width))
    assert found[-1].width == end / 128


@pytest.mark.parametrize(("base", "first", "last"), [("yolo11n.yaml", 33 / 128, 0.5), ("yolov8s.yaml", 65 / 128, 1.0)])
def test_a_step_widens_the_widest_row_by_eight_channels(base: str, first: float, last: float) -> None:
    graph, scale = load_base(base)
    steps = width_steps(graph, scale)
    assert (steps[0], steps[-1]) == (first, last)
    plain, wide = build(graph, scale, 4), build(widened(graph, scale, steps[0]), scale, 4)
    most = [max(p.shape[0] for name, p in model.named_parameters() if name.startswith("model.7.")) for model in (plain, wide)]
    assert most[1] - most[0] == 8


def test_the_base_s_own_width_changes_nothing_and_a_scale_letter_gives_its_network() -> None:
    graph, scale = load_base("yolo11n.yaml")
    assert widened(graph, scale, 0.25) == graph
    small, letter = load_base("yolo11s.yaml")
    shapes = {k: v.shape for k, v in build(small, letter, 4).state_dict().items()}
    assert {k: v.shape for k, v in build(widened(graph, scale, 0.5), scale, 4).state_dict().items()} == shapes


def test_a_base_without_scales_gets_a_multiplier() -> None:
    rows = {"backbone": [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]]], "head": [[[1], 1, "Detect", ["nc"]]]}
    graph = Graph.from_yaml({"nc": 2, **rows})
    assert width_steps(graph, "")[:2] == (17 / 16, 18 / 16)
    wide = build(widened(graph, "", 1.5), "", 2)
    assert wide.state_dict()["model.1.conv.weight"].shape[:2] == (192, 96)
    bare = Graph.from_yaml({"nc": 2, "backbone": [[-1, 1, "nn.Identity", []]], "head": [[[0], 1, "Detect", ["nc"]]]})
    with pytest.raises(InputError, match="width multiplier"):
        width_steps(bare, "")


@pytest.fixture
def setup(tiny_study: Path) -> Setup:
    return load_setup(tiny_study)


def task(setup: Setup, tmp_path: Path, architecture: Architecture, seed: int = 0, **changes: object) -> tuple[Job, dict]:
    start = Path(setup.folder) / "base" / "weights.pt"
    recipe = Recipe(
        epochs=1,
        imgsz=64,
        batch=8,
        lr0=0.002,
        new_lr_scale=10.0,
        score_on="val",
        data="d",
        base=full.file_fingerprint(start),
        code="c",
    )
    job = Job(architecture=architecture, recipe=recipe, seed=seed)
    lists = {"train_list": setup.train_list, "val_list": setup.val_list}
    return job, {"job": job.to_dict(), "width": None, "start": str(start), "folder": str(tmp_path / "arm"), **lists, **changes}


def ask(kind: str, setup: Setup, **payload: object) -> dict:
    return json.loads(full.serve(kind, json.dumps({"setup": asdict(setup), **payload})))


@pytest.mark.slow
def test_a_member_trains_from_the_fitted_base_and_leaves_outcome_and_weights(setup: Setup, tmp_path: Path) -> None:
    job, payload = task(setup, tmp_path, Architecture(setup.base, (LSKA,)), seed=3)
    outcome = outcome_from_dict(ask("train", setup, **payload))
    assert isinstance(outcome, Measured)
    assert list(outcome.gates) == ["4"]
    assert outcome.gates["4"] > 0
    assert "gate_4" in outcome.curve[-1]
    assert read_outcome_file((tmp_path / "arm" / "outcome.json").read_text(), job) == outcome
    assert "model.5.gate_bias" in torch.load(tmp_path / "arm" / "weights.pt", weights_only=True)


@pytest.mark.slow
def test_weights_other_than_the_recipe_s_are_refused(setup: Setup, tmp_path: Path) -> None:
    _, payload = task(setup, tmp_path, Architecture(setup.base))
    other = tmp_path / "other.pt"
    torch.save({}, other)
    outcome = outcome_from_dict(ask("train", setup, **{**payload, "start": str(other)}))
    assert isinstance(outcome, Failure)
    assert (outcome.stage, "must start from" in outcome.error) == ("build", True)


@pytest.mark.slow
def test_the_wider_base_is_fitted_once_and_trained_from_its_fit(setup: Setup, tmp_path: Path) -> None:
    started = replace(setup, weights=str(Path(setup.folder) / "base" / "weights.pt"), fit={**setup.fit, "epochs": 1})
    width, folder = 0.3125, tmp_path / "fit"
    answer = ask("fit", started, width=width, folder=str(folder))
    written = (folder / "weights.pt").stat().st_mtime_ns
    assert ask("fit", started, width=width, folder=str(folder)) == answer
    assert (folder / "weights.pt").stat().st_mtime_ns == written
    assert 0 < answer["moved"] < answer["tensors"], "only what has the same shape can be taken over"
    job, payload = task(setup, tmp_path, Architecture(f"{setup.base} at width {width:g}"))
    wide = replace(job, recipe=replace(job.recipe, base=answer["fingerprint"]))
    changes = {"job": wide.to_dict(), "width": width, "start": str(folder / "weights.pt")}
    outcome = outcome_from_dict(ask("train", setup, **{**payload, **changes}))
    assert isinstance(outcome, Measured), outcome
    state = torch.load(tmp_path / "arm" / "weights.pt", weights_only=True)
    assert state["model.0.conv.weight"].shape[0] == 24  # 64 x 0.3125 = 20, in eights


@pytest.mark.slow
def test_the_width_is_found_beside_the_candidate_and_kept(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def timed(base: object, models: list, **_: object) -> list[Latency]:
        """Latency by parameters, but the candidate 30 % slower than the base."""
        calls.append(len(models))
        size = [sum(p.numel() for p in m.parameters()) for m in (base, *models)]
        ratios = [1.3 if i == len(models) else size[i] / size[0] for i in range(1, len(models) + 1)]
        return [Latency(ratio=r, low=r, high=r, latency_ms=r, base_ms=1.0, quality="gated", blocks=3, attempts=1) for r in ratios]

    monkeypatch.setattr(full.latency, "measure", timed)
    payload = {"architecture": Architecture(setup.base, (LSKA,)).to_dict(), "folder": str(tmp_path)}
    answer = ask("width", setup, **payload)
    assert answer["ratio"] / answer["candidate_ratio"] == pytest.approx(1.0, abs=0.03)
    assert 0.25 < answer["width"] < 0.35
    assert answer["params_m"] > 2.6
    count = len(calls)
    assert ask("width", setup, **payload) == answer
    assert len(calls) == count
    monkeypatch.setattr(full.latency, "measure", lambda *_, **__: [replace(timed(*_)[0], ratio=1.01)])
    assert ask("width", setup, **{**payload, "folder": str(tmp_path / "fast")})["width"] is None


def test_a_failed_task_is_an_answer_and_an_unknown_one_a_bug(tmp_path: Path) -> None:
    graph, scale = load_base("yolo11n.yaml")
    broken = Setup(
        folder=str(tmp_path),
        base="yolo11n.yaml",
        graph=graph.to_yaml(),
        scale=scale,
        weights=None,
        weights_sha256=None,
        names=("a",),
        train_list="",
        val_list="",
        score_on="search_val",
        data="d",
        fit={"epochs": 1, "imgsz": 64, "batch": 8, "lr0": 0.002},
        latency={"imgsz": 64, "batch": 1, "blocks": 3, "calibrations": 2, "retries": 0},
        device="cpu",
        seed=0,
    )
    assert isinstance(_left(broken, tmp_path, b"\xff"), Failure)
    assert _left(broken, tmp_path, Failure(stage="memory", error="of an earlier command")).stage == "build"  # run again
    assert _left(broken, tmp_path, measured(0.25)) == measured(0.25)  # a copy that was thought lost: nothing is trained
    failed = ask("width", broken, architecture=Architecture("yolo11n.yaml", (LSKA,)).to_dict(), folder=str(tmp_path / "w"))
    assert failed["failure"]["stage"] == "latency"
    with pytest.raises(InputError, match="train, width or fit"):
        ask("dance", broken, folder=str(tmp_path))


def _left(broken: Setup, tmp_path: Path, left: bytes | Outcome) -> Outcome:
    """What a training that cannot be built answers where another has left an outcome, or bytes, in its folder."""
    (tmp_path / "start.pt").write_bytes(b"none")
    recipe = Recipe(epochs=1, imgsz=64, batch=8, lr0=0.002, new_lr_scale=10.0, score_on="val", data="d", base="0" * 12, code="c")
    job = Job(architecture=Architecture("yolo11n.yaml"), recipe=recipe, seed=0)
    (tmp_path / "arm").mkdir(exist_ok=True)
    (tmp_path / "arm" / "outcome.json").write_bytes(left if isinstance(left, bytes) else outcome_file_text(job, left).encode())
    lists = {"train_list": "", "val_list": "", "start": str(tmp_path / "start.pt"), "width": None}
    return outcome_from_dict(ask("train", broken, job=job.to_dict(), folder=str(tmp_path / "arm"), **lists))
