"""A model as ONNX Runtime runs it: exported as Ultralytics exports (fused, traced, the head in its export form), every size fixed.

Ultralytics' simplification (onnxslim) is left out: ONNX Runtime optimizes a graph itself when it loads it.
"""

import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn.contract import OPSET
from nas_attn.cost import deployed
from nas_attn.errors import InputError

NEEDED = ("onnx", "onnxruntime")
"""What torch's tracing exporter and the measurement load."""
EXTRA = "pip install 'nas-attn[onnx]'"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
ERRORS_ONLY = 3


class OnnxRunner:
    """An exported model in a session of its own, its input bound on the device once, its outputs left there."""

    def __init__(self, model: nn.Module, image_BCHW: Tensor, device: str, threads: int) -> None:
        kind = torch.device(device).type
        self._session = session(export(model, image_BCHW), device, threads)
        self._binding = self._session.io_binding()
        image = _runtime().OrtValue.ortvalue_from_numpy(image_BCHW.cpu().numpy(), kind, 0)
        self._binding.bind_ortvalue_input(self._session.get_inputs()[0].name, image)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, kind)

    def run(self) -> list[Any]:
        """One forward pass; the outputs, on the device."""
        self._session.run_with_iobinding(self._binding)
        outputs: list[Any] = self._binding.get_outputs()
        return outputs

    def wait(self) -> None:
        """Until the outputs are there."""
        self._binding.synchronize_outputs()


def export(model: nn.Module, image_BCHW: Tensor) -> bytes:
    """The ONNX file of the model for this one shape; the model stays untouched. What cannot be exported raises what the exporter raises."""
    twin, image_BCHW = deployed(model).cpu(), image_BCHW.cpu()
    for module in twin.modules():
        _in_export_form(module, image_BCHW)
    with tempfile.TemporaryDirectory(prefix="nas-attn-") as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # exporters warn about themselves
        twin(image_BCHW)  # the head keeps the anchors of its first map
        file = Path(folder) / "model.onnx"
        torch.onnx.export(twin, (image_BCHW,), file, dynamo=False, opset_version=OPSET, input_names=["images"], verbose=False)
        return file.read_bytes()


def _in_export_form(module: Any, image_BCHW: Tensor) -> None:
    """What Ultralytics' exporter sets before it traces: heads end in one tensor, blocks split by slices, the top-k fits the image."""
    if hasattr(module, "export") and hasattr(module, "format"):
        module.export, module.format, module.dynamic, module.shape = True, "onnx", False, None
    if hasattr(module, "max_det") and hasattr(module, "stride"):
        height, width = image_BCHW.shape[2:]
        module.max_det = min(module.max_det, sum(int(height / s) * int(width / s) for s in module.stride.tolist()))
    if hasattr(module, "forward_split"):
        module.forward = module.forward_split


def session(model: bytes, device: str, threads: int) -> Any:
    """An ONNX Runtime session with pinned threads.

    Raises:
        InputError: ONNX Runtime is missing, or has no provider for the device.
    """
    require(device)
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Sessions take turns: threads of one that has ended must not spin while another runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    opened = runtime.InferenceSession(model, options, providers=[_provider(device)])
    if opened.get_providers()[0] != _provider(device):
        raise InputError(f"{_provider(device)} must take the model, but ONNX Runtime fell back to {opened.get_providers()}; see its log.")
    return opened


def require(device: str) -> None:
    """Whether ONNX Runtime is here, with a provider for the device.

    Raises:
        InputError: it is not.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"The latency backend onnxruntime needs {' and '.join(missing)}, not installed here; {EXTRA}, or choose torch.")
    known = _runtime().get_available_providers()
    if _provider(device) not in known:
        raise InputError(
            f"The latency backend onnxruntime needs {_provider(device)} for {device}, but this onnxruntime has {', '.join(known)}; "
            "install onnxruntime-gpu in the place of onnxruntime, or measure on cpu."
        )


def describe(device: str) -> str:
    """The version, the provider and the format, in words that are equal where latencies may be compared."""
    return f"onnxruntime {_runtime().__version__}, {_provider(device)}, opset {OPSET}"


def _provider(device: str) -> str:
    return PROVIDERS[torch.device(device).type]


def _runtime() -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    return onnxruntime
