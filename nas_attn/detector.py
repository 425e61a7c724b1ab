"""Ultralytics' detection models seen from here: their YAMLs as graphs, their sites, and building."""

import ast
import importlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import ultralytics
from torch import Tensor, nn
from ultralytics.cfg import get_cfg
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER, SETTINGS, checks
from ultralytics.utils.events import events

from nas_attn import burden
from nas_attn.architecture import Architecture
from nas_attn.document import is_file, read_file
from nas_attn.errors import GraphError, nearest, shown
from nas_attn.graph import Edit, Graph, insert
from nas_attn.network import Network, Node
from nas_attn.records import record
from nas_attn.registration import CONTROLS, register, yaml_name
from nas_attn.space import Site
from nas_attn.weights import State, layers, load_weights, move_weights

POOL_BLOCKS = frozenset({"SPP", "SPPF", "SPPELAN"})
SELF_ATTENTION_BLOCKS = frozenset({"PSA", "C2PSA", "C2fPSA"})
PROBE_PX = 256
MOST_CHANNELS = 2**14
"""Of a layer: a slip beyond would fill the memory before anything could be said about it."""

register()


def silence() -> None:
    """Turn off, in this process only, what Ultralytics would print, send, install or report to other trackers."""
    LOGGER.setLevel("ERROR")
    for key in ("sync", "raytune", "mlflow", "comet", "clearml", "dvc", "wandb", "tensorboard", "neptune"):
        # The settings object writes every change to the user's settings file; its plain dict method does not.
        dict.__setitem__(SETTINGS, key, False)
    # Decided at Ultralytics' import, which may have come before ours, or by the user's environment.
    events.enabled = False
    checks.AUTOINSTALL = False
    os.environ["YOLO_AUTOINSTALL"] = "false"  # of processes that this one begins


def load_base(base: str) -> tuple[Graph, str]:
    """The graph and scale letter of a base: a shipped name such as `yolo11n.yaml`, or the path of a YAML.

    Raises:
        GraphError: no such name or file, or not a detection YAML.
    """
    file = Path(base)
    known = shipped()
    if is_file(file):
        config = read_file(file, kind=GraphError, example="backbone: [[-1, 1, Conv, [64, 3, 2]]]")
        config["scale"] = tasks.guess_model_scale(file)
    elif _without_scale(file.name) in known or file.name in known:
        try:
            config = dict(tasks.yaml_model_load(base))
        except OSError as error:
            raise GraphError(f"{base} must be a file or a model that Ultralytics ships, but: {' '.join(str(error).split())}") from error
    else:
        raise GraphError(
            f"`base` must be a YAML file or a model that Ultralytics ships, but got {shown(base)}. {nearest(file.name, known)}"
        )
    # Ultralytics guesses a scale from the name alone: yolov9s.yaml has none.
    scale = str(config.pop("scale", "") or "") if config.get("scales") else ""
    config.pop("scale", None)
    config.pop("yaml_file", None)
    try:
        return Graph.from_yaml(config), scale
    except GraphError as error:
        raise GraphError(f"{base}: {error}") from error


def base_sites(base: str) -> tuple[Graph, str, tuple[Site, ...]]:
    """`load_base` and the `sites` of what it gives.

    Raises:
        GraphError: no such name or file, not a detection YAML, or one that cannot be built; the message names it.
    """
    graph, scale = load_base(base)
    try:
        if is_file(Path(base)):
            _require_light(graph, scale)
        return graph, scale, sites(graph, scale)
    except GraphError as error:
        raise GraphError(f"{base}: {error}") from error


@lru_cache(maxsize=4)
def _require_light(graph: Graph, scale: str) -> None:
    """Once for a graph: tensors without memory take their time too, some seconds of a large base."""
    _require_modules(graph)
    burden.require(base_yaml(graph, scale), PROBE_PX)


def shipped() -> tuple[str, ...]:
    """File names of the detection YAMLs in the installed Ultralytics, without scale letters."""
    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    other = re.compile(r"-(seg|pose|obb|cls|sem|depth|world|worldv2|resnet\d+|yoloe|human|e-seg|c-seg)")
    return tuple(sorted(f.name for f in folder.rglob("*.yaml") if not other.search(f.stem) and "yoloe" not in f.stem))


def base_yaml(graph: Graph, scale: str, classes: int | None = None) -> dict[str, Any]:
    """The model dictionary that Ultralytics builds from, with its scale letter and number of classes."""
    config = graph.to_yaml()
    if classes is not None:
        config["nc"] = classes
    return {**config, "scale": scale, "yaml_file": f"nas_attn{scale}.yaml"} if scale else {**config, "yaml_file": "nas_attn.yaml"}


def build(graph: Graph, scale: str, classes: int | None = None, names: Sequence[str] = ()) -> nn.Module:
    """A model with new weights, in training mode on the CPU.

    Raises:
        GraphError: Ultralytics cannot build it; the message carries its reason.
    """
    _require_modules(graph)
    head = graph.rows[-1].module
    model_class = tasks.RTDETRDetectionModel if head == "RTDETRDecoder" else tasks.DetectionModel
    try:
        model: nn.Module = model_class(base_yaml(graph, scale, classes), ch=3, nc=classes, verbose=False)
    except Exception as error:  # whatever constructors of any module say to arguments that they were not written for
        reason = shown(f"{type(error).__name__}: {' '.join(str(error).split())}", 300)[1:-1]
        raise GraphError(f"A model YAML must build, but Ultralytics says {reason}; run `nas-attn check`.") from error
    if names:
        setattr(model, "names", dict(enumerate(names)))  # noqa: B010 - torch types every attribute as Tensor or Module
    return model


def _require_modules(graph: Graph) -> None:
    """Ultralytics' parser calls whatever a row names in its globals, functions too, and evaluates `activation` as code; here neither."""
    for number, row in enumerate(graph.rows):
        name, cls = row.module, _parsed_name(row.module)
        if (largest := max((arg for arg in row.args if isinstance(arg, int)), default=0)) > MOST_CHANNELS:
            raise GraphError(f"`args` of row {number} must be at most {MOST_CHANNELS}, but got {shown(largest)}; correct the channels.")
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            known = [key for key, value in vars(tasks).items() if isinstance(value, type) and issubclass(value, nn.Module)]
            raise GraphError(f"`module` of row {number} must be a module's class, but {shown(name)} is none. {nearest(name, known)}")
    activation = graph.settings.get("activation")
    if activation and not _is_activation(activation):
        raise GraphError(f"`activation` must be a module of torch.nn with plain arguments, but got {shown(activation)}; write nn.SiLU().")


def _parsed_name(name: str) -> object:
    """What the parser finds under a row's module name, or None."""
    for prefix, package in (("nn.", "torch.nn"), ("torchvision.ops.", "torchvision.ops")):
        if name.startswith(prefix):
            return getattr(importlib.import_module(package), name.removeprefix(prefix), None)
    return vars(tasks).get(name)


def _is_activation(text: object) -> bool:
    """Whether a text is a call such as `nn.LeakyReLU(0.1)`, and nothing else."""
    match = re.fullmatch(r"(?:torch\.)?nn\.(\w+)(\(.*\))", text) if isinstance(text, str) else None
    cls = getattr(nn, match[1], None) if match else None
    if not match or not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        return False
    try:
        call = ast.parse(f"f{match[2]}", mode="eval").body
    except SyntaxError:
        return False
    given = [*call.args, *(keyword.value for keyword in call.keywords)] if isinstance(call, ast.Call) else [call]
    return all(isinstance(value, ast.Constant) for value in given)


def insert_architecture(graph: Graph, architecture: Architecture) -> Edit:
    """The base's graph with an architecture's modules inserted.

    Raises:
        GraphError: a placement after a row that nothing reads.
        SpaceError: an unknown module or hyperparameter.
    """
    rows: dict[int, tuple[str, Sequence[Any]]] = {}
    for placement in architecture.placements:
        values = [] if placement.module in CONTROLS else record(placement.module).args(dict(placement.params))
        rows[placement.layer] = (yaml_name(placement.module), ["c2", *values])
    return insert(graph, rows)


def build_architecture(
    graph: Graph, scale: str, architecture: Architecture, names: Sequence[str], state: State, seed: int = 0
) -> tuple[nn.Module, Edit]:
    """A candidate that starts as the fitted base: modules inserted at identity, every one of the base's tensors moved by origin.

    The weights of inserted modules are drawn from `seed`, whatever was drawn before.

    Raises:
        TransferError: a tensor of the base found no place, or one outside the inserted rows got none.
    """
    edit = insert_architecture(graph, architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(edit.graph, scale, len(names), names)
    move_weights(model, state, edit.moved)
    return model, edit


def default_arguments() -> Any:
    """Ultralytics' default training arguments, which a model's loss reads when no trainer set them."""
    return get_cfg()


def load_model(file: Path) -> nn.Module:
    """An exported model, its YAML with the `weights.pt` beside it, in evaluation mode.

    Raises:
        GraphError: the YAML does not build.
        InputError: no weights beside it.
        TransferError: weights that do not fit it.
    """
    graph, scale = load_base(str(file))
    model = build(graph, scale)
    load_weights(model, file.parent / "weights.pt")
    return model.eval()


@lru_cache(maxsize=4)
def network(graph: Graph, scale: str) -> Network:
    """Every row with channels and stride of the built model, and the names of what may be a site.

    Names follow from the network, not from a table of families: `P2`... is the last backbone row at stride 4, ... before pooling and
    self-attention blocks; `neck_P4` the heaviest row between a Concat and the next change of resolution; `neck_P3_out`... what the head
    reads.
    """
    model = build(graph, scale)
    shapes = _output_shapes(model)
    weights = [sum(p.numel() for p in row.parameters()) for row in layers(model)]
    strides = {row: PROBE_PX // shape[2] for row, shape in shapes.items()}
    names = _site_names(graph, strides, weights)
    nodes = tuple(
        Node(
            row=number,
            module=row.module,
            sources=tuple(source for source in row.sources if source >= 0),
            channels=shapes[number][1] if number in shapes else 0,
            stride=strides.get(number, 0),
            names=tuple(names.get(number, ())),
        )
        for number, row in enumerate(graph.rows)
    )
    return Network(nodes=nodes, backbone=graph.backbone)


def sites(graph: Graph, scale: str) -> tuple[Site, ...]:
    """Where attention can go: every row whose output is one map that a later row reads."""
    return tuple(
        Site(layer=node.row, names=node.names, module=node.module, channels=node.channels, stride=node.stride)
        for node in network(graph, scale).nodes
        if node.stride and graph.consumers(node.row)
    )


def _output_shapes(model: nn.Module) -> dict[int, torch.Size]:
    shapes: dict[int, torch.Size] = {}

    def note(row: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                shapes[row] = output.shape

        return hook

    handles = [layer.register_forward_hook(note(row)) for row, layer in enumerate(layers(model))]
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, PROBE_PX, PROBE_PX))
    for handle in handles:
        handle.remove()
    return shapes


def _site_names(graph: Graph, strides: Mapping[int, int], weights: Sequence[int]) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    special = POOL_BLOCKS | SELF_ATTENTION_BLOCKS
    stage: dict[int, int] = {}
    for row in range(graph.backbone):
        # A padded map of 9x9 stands between two strides and is no stage.
        if strides.get(row, 0) >= 4 and strides[row].bit_count() == 1 and graph.rows[row].module not in special:
            stage[strides[row]] = row
    for stride, row in stage.items():
        names.setdefault(row, []).append(f"P{_level(stride)}")
    for row in strides:
        module = graph.rows[row].module
        if module in special:
            names.setdefault(row, []).append("SPPF" if module in POOL_BLOCKS else "PSA")
    inputs = {source for head in graph.outputs for source in graph.rows[head].sources}
    for row in inputs & strides.keys():
        names.setdefault(row, []).append(f"neck_P{_level(strides[row])}_out")
    for row in _fusion_blocks(graph, strides, weights, inputs):
        names.setdefault(row, []).append(f"neck_P{_level(strides[row])}")
    return names


def _fusion_blocks(graph: Graph, strides: Mapping[int, int], weights: Sequence[int], inputs: Iterable[int]) -> list[int]:
    blocks: dict[int, int] = {}
    for concat in range(graph.backbone, len(graph.rows)):
        if graph.rows[concat].module != "Concat":
            continue
        chain = _chain(graph, strides, concat)
        if chain and not set(chain) & set(inputs):
            row = max(chain, key=lambda r: weights[r])
            blocks.setdefault(strides[row], row)
    return list(blocks.values())


def _chain(graph: Graph, strides: Mapping[int, int], concat: int) -> list[int]:
    chain: list[int] = []
    readers = graph.consumers(concat)
    while len(readers) == 1 and len(graph.rows[readers[0]].sources) == 1 and strides.get(readers[0]) == strides.get(concat):
        chain.append(readers[0])
        readers = graph.consumers(readers[0])
    return chain


def _level(stride: int) -> int:
    return stride.bit_length() - 1


def _without_scale(name: str) -> str:
    return re.sub(r"(\d+)[nslmx](?=[.-])", r"\1", name)
