"""What a mechanism must do inside a detector: stay silent at insertion, learn in one training step, leave as ONNX. Read by the tests of the
whole table and by the full grid, `make conformance-full`."""

import copy
import functools
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from nas_attn import detector, weights
from nas_attn.architecture import Architecture, Placement
from nas_attn.attention.gate import Gated
from nas_attn.graph import Graph
from nas_attn.records import record
from nas_attn.space import Site

FAMILIES = ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n")
CLASSES = ("a", "b", "c")
SIDE = 64
OPSET = 18
CLOSE = 1e-3


@functools.cache
def base(family: str) -> tuple[Graph, str, nn.Module]:
    """Graph, scale and model of a family, with statistics as after training, so that equal outputs are no accident of zeros."""
    graph, scale = detector.load_base(f"{family}.yaml")
    torch.manual_seed(0)
    model, noise = detector.build(graph, scale, len(CLASSES), CLASSES), torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=noise)
            module.running_var.uniform_(0.5, 1.5, generator=noise)
    return graph, scale, model


@functools.cache
def sites(family: str) -> Mapping[str, Site]:
    """A family's sites by name."""
    graph, scale, _ = base(family)
    return {name: site for site in detector.sites(graph, scale) for name in site.names}


def examine(family: str, chosen: Sequence[tuple[str, str]], *, export: bool) -> list[str]:
    """What is broken when the mechanisms of `chosen` (site, module) are inserted into one model of `family`; empty if nothing is."""
    detector.silence()
    graph, scale, plain = base(family)
    rows = {sites(family)[site].layer: module for site, module in chosen}
    architecture = Architecture(f"{family}.yaml", tuple(Placement(row, m, record(m).complete({})) for row, m in rows.items()))
    model, edit = detector.build_architecture(graph, scale, architecture, CLASSES, plain.state_dict())
    inserted = [weights.layers(model)[row] for row in edit.inserted]
    found = [f"{len(inserted)} modules for {len(rows)} rows"] if len(inserted) != len(rows) else []
    if not all(map(torch.equal, _outputs(model), _outputs(plain))):
        found.append("the output changed at insertion")
    found += _step(model, inserted)
    return found + (_exported(model) if export else [])


def _outputs(model: nn.Module) -> list[Tensor]:
    image_BCHW = torch.rand(1, 3, SIDE, SIDE + 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return _tensors(model.eval()(image_BCHW))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Mapping):
        return [tensor for key in sorted(value) for tensor in _tensors(value[key])]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, Tensor) else []


def _step(model: nn.Module, inserted: Sequence[nn.Module]) -> list[str]:
    """One training step: a finite loss whose gradient reaches and moves every gate."""
    model.args = detector.default_arguments()
    batch = {
        "img": torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[0.0], [2.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.4, 0.6, 0.5, 0.3]]),
    }
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    loss, _ = model(batch)
    loss = loss.sum()
    loss.backward()
    optimizer.step()
    found = [] if loss.isfinite() else ["the loss is not finite"]
    for module in inserted:
        name = type(module).__name__
        if not isinstance(module, Gated) or not module.gate_bias.abs().max() > 0:
            found.append(f"the gate of {name} did not move")
        found += [f"{name}.{key} is not finite" for key, p in module.named_parameters() if not p.isfinite().all()]
    return found


def _exported(model: nn.Module) -> list[str]:
    """As `YOLO(...).export(format="onnx")` does it: fused, traced, with the head's export form; run by ONNX Runtime."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    twin.fuse(verbose=False)
    for module in twin.modules():
        if hasattr(module, "export") and hasattr(module, "format"):
            module.export, module.format, module.dynamic = True, "onnx", False
    image_BCHW = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    twin(image_BCHW)  # the head keeps the anchors of its first map
    expected = _tensors(twin(image_BCHW))
    with tempfile.TemporaryDirectory(prefix="nas-attn-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # exporters warn about themselves; what is wrong shows in the numbers
        file = Path(folder) / "model.onnx"
        torch.onnx.export(twin, (image_BCHW,), file, dynamo=False, opset_version=OPSET, input_names=["images"])
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        got = session.run(None, {"images": image_BCHW.numpy()})
    scale = max(float(expected[0].abs().max()), 1.0)
    gaps = [float(np.abs(a - b.numpy()).max()) / scale for a, b in zip(got, expected, strict=False)]
    return [f"ONNX Runtime differs by {max(gaps):.1e} of the largest output"] if max(gaps) > CLOSE else []
