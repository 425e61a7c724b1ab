"""What only a GPU can show: several workers on one, lack of memory beside others, a context that is broken for good."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import TINY_SPACE

from nas_attn import evaluate
from nas_attn.architecture import Architecture
from nas_attn.outcome import Failure, Job, Measured, Recipe
from nas_attn.plan import prepare
from nas_attn.pool import RayPool
from nas_attn.setup import Setup
from nas_attn.spec import SpaceSpec
from nas_attn.work import Task

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> tuple[Setup, Recipe]:
    """A base that was fitted on the GPU, and the recipe of a small training from it."""
    root = tmp_path_factory.mktemp("gpu")
    (root / "tiny.yaml").write_text(TINY_SPACE)
    plan = prepare(SpaceSpec.load(str(root / "tiny.yaml")), str(root / "tiny.yaml"), digits, root / "study", device="cuda")
    plan.save()
    fit = json.loads(evaluate.serve("fit", json.dumps({"setup": asdict(plan.setup)})))
    recipe = Recipe(
        epochs=2,
        imgsz=64,
        batch=8,
        lr0=0.001,
        new_lr_scale=10.0,
        score_on="search_val",
        data=fit["data"],
        base=fit["fingerprint"],
        code=fit["code"],
    )
    return plan.setup, recipe


def test_a_training_that_lacks_memory_beside_others_leaves_no_outcome_and_fits_alone(fitted: tuple[Setup, Recipe]) -> None:
    setup, recipe = fitted
    job = Job(architecture=Architecture(setup.base), recipe=recipe, seed=0)
    file = job.folder(Path(setup.folder)) / "outcome.json"
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 24 * 2**20) / total)
    try:
        crowded = evaluate.evaluate(setup, job)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert isinstance(crowded, Failure)
    assert (crowded.stage, file.exists()) == ("memory", False)
    assert "beside others" in crowded.error
    assert isinstance(evaluate.evaluate(setup, Job(architecture=job.architecture, recipe=recipe, seed=0, attempt=2, alone=True)), Measured)


def test_workers_share_a_gpu_and_one_whose_context_breaks_is_replaced() -> None:
    with RayPool("pool_targets:serve", workers=4, gpus_per_worker=0.25, threads=1) as pool:
        for number in range(4):
            pool.submit(Task(f"sum/{number}", "gpu_sum", json.dumps({"seconds": 1.0})))
        pool.submit(Task("alone", "gpu_sum", json.dumps({"seconds": 0.5}), exclusive=True))
        done = [one for _ in range(5) for one in pool.wait(None)]
        spans = {one.key: json.loads(str(one.result)) for one in done}
        assert len({span["pid"] for key, span in spans.items() if key != "alone"}) == 4
        assert all(span["end"] <= spans["alone"]["begin"] for key, span in spans.items() if key != "alone")
        pool.submit(Task("break", "break_gpu", "{}"))
        (broken,) = pool.wait(None)
        assert broken.cause == "crash"
        assert "CUDA error" in str(broken.lost)
        for number in range(4):  # each for longer than the new worker takes to start
            pool.submit(Task(f"after/{number}", "gpu_sum", json.dumps({"seconds": 20.0})))
        after = [one for _ in range(4) for one in pool.wait(120)]
        assert [one.lost for one in after] == [None] * 4
        pids = {json.loads(str(one.result))["pid"] for one in after}
        assert len(pids & {span["pid"] for span in spans.values()}) == 3
        assert len(pids) == 4
