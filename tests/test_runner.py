"""Runners compute what the model computes, whichever runtime runs it, and are timed by one protocol."""

import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detector_grid import base
from test_latency import SHAPE, FakeClock, Timed, constant
from torch import Tensor, nn

from nas_attn import latency, onnx_runner, runner
from nas_attn.errors import InputError, StudyError

IMAGE_BCHW = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))


class Gap(nn.Module):
    """No exporter knows what happens here."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.linalg.svdvals(x_BCHW[0, 0])[:1].reshape(1, 1, 1, 1) + x_BCHW


def test_onnx_runtime_computes_what_torch_computes_and_the_model_stays_as_it_is() -> None:
    model = copy.deepcopy(base("yolo11n")[2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ours, theirs = (runner.open_runner(backend, model, IMAGE_BCHW, "cpu", 1) for backend in runner.BACKENDS)
    for _ in range(2):  # an output that is bound once may be overwritten, but not stale
        with torch.inference_mode():
            expected = ours.run()[0]  # type: ignore[index]
        got = theirs.run()[0].numpy()  # type: ignore[index]
        ours.wait()
        theirs.wait()
        assert np.abs(got - expected.numpy()).max() <= 1e-3 * float(expected.abs().max())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(getattr(module, "export", False) for module in model.modules())


def test_threads_are_pinned_and_do_not_spin_while_another_model_runs() -> None:
    opened = onnx_runner.session(onnx_runner.export(nn.Conv2d(3, 4, 3), IMAGE_BCHW), "cpu", 3)
    options = opened.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_the_environment_names_a_backend_and_that_of_torch_is_what_it_was() -> None:
    ours, theirs = (latency.environment("cpu", threads=1, backend=backend) for backend in runner.BACKENDS)
    assert "backend" not in ours
    words = theirs.pop("backend")
    assert ours == theirs
    assert words.startswith("onnxruntime ")
    assert words.endswith(f"CPUExecutionProvider, opset {onnx_runner.OPSET}")


def test_one_protocol_times_any_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, opened = FakeClock(), []

    class Recorded(runner.TorchRunner):
        def __init__(self, backend: str, model: nn.Module, image_BCHW: Tensor, device: str, threads: int) -> None:
            opened.append((backend, device, threads))
            super().__init__(model, image_BCHW, device)

    monkeypatch.setattr(latency, "open_runner", Recorded)
    plain, candidate = Timed("base", clock, constant(4.0)), Timed("c", clock, constant(6.0))
    options = {"shape": SHAPE, "clock": clock, "threads": 2, "backend": "onnxruntime"}
    gate = latency.calibrate(plain, runs=2, **options)
    (answer,) = latency.measure(plain, [candidate], gate=gate, **options)
    assert (answer.ratio, answer.quality) == (1.5, "gated")
    assert opened == [("onnxruntime", "cpu", 2)] * 4
    with pytest.raises(StudyError, match="but backend differ; calibrate again"):
        latency.measure(plain, [candidate], gate=gate, **{**options, "backend": "torch"})


def test_what_cannot_be_exported_raises_with_the_reason() -> None:
    with pytest.raises(Exception, match="svd"):
        runner.open_runner("onnxruntime", Gap(), IMAGE_BCHW, "cpu", 1)


def test_a_missing_package_a_missing_provider_and_a_wrong_name_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"torch or onnxruntime, but got 'tensorrt'"):
        runner.require_backend("tensorrt", "cpu")
    with pytest.raises(InputError, match=r"needs CUDAExecutionProvider for cuda:0, but this onnxruntime has .*CPUExecutionProvider"):
        runner.require_backend("onnxruntime", "cuda:0")
    runner.require_backend("onnxruntime", "cpu")
    monkeypatch.setattr(onnx_runner, "find_spec", lambda name: None if name == "onnx" else importlib.util.find_spec(name))
    with pytest.raises(InputError, match=r"needs onnx, not installed here; pip install 'nas-attn\[onnx\]'") as told:
        runner.open_runner("onnxruntime", Gap(), IMAGE_BCHW, "cpu", 1)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.slow
def test_a_worker_measures_by_the_backend_of_the_space_and_keeps_a_gate_for_each(tiny_study: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from test_evaluate import LSKA, ask

    from nas_attn.architecture import Architecture
    from nas_attn.plan import load_setup

    setup = load_setup(tiny_study)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "weights.pt").symlink_to(tiny_study / "base" / "weights.pt")
    gates = {}
    for backend in runner.BACKENDS:
        here = replace(setup, folder=str(tmp_path), latency={**setup.latency, "backend": backend})
        wanted = [Architecture(setup.base), Architecture(setup.base, (LSKA,))]
        first, second = ask("measure", here, architectures=[one.to_dict() for one in wanted])["costs"]
        assert first["cost"]["latency"]["ratio"] == 1.0
        assert second["cost"]["latency"]["ratio"] > 0
        files = {*(tmp_path / "base").glob("latency-gate-*.json")} - {*gates.values()}
        gates[backend] = files.pop()
        assert not files
        assert json.loads(gates[backend].read_text())["environment"] == second["cost"]["latency"]["environment"]
