"""Laws 2 and 3 on real detectors: identity at insertion, all weights moved by origin, gradients into every inserted module."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas_attn import detector, weights
from nas_attn.architecture import Architecture, Placement
from nas_attn.errors import GraphError, InputError, TransferError
from nas_attn.records import MODULES, record

FAMILIES = ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n")
CLASSES = 3
NAMES = ("a", "b", "c")
SEED = ["CloAttention", "DoubleAttention", "HaloAttention", "LIA", "LSKA"]


def quick(*names: str) -> list[object]:
    """Every family, all but these marked slow."""
    return [family if family in names else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]


def outputs(model: nn.Module, side: int = 64) -> list[Tensor]:
    image_BCHW = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    found: list[Tensor] = []

    def flatten(value: object) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, Mapping):
            for key in sorted(value):
                flatten(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                flatten(item)

    with torch.inference_mode():
        flatten(model.eval()(image_BCHW))
    return found


def lively(model: nn.Module) -> nn.Module:
    """Statistics as after training, so that equal outputs are no accident of zeros."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def placement(layer: int, module: str) -> Placement:
    return Placement(layer, module, record(module).complete({}))


@pytest.fixture(scope="module")
def bases() -> dict[str, tuple[object, str, nn.Module]]:
    built = {}
    for family in FAMILIES:
        graph, scale = detector.load_base(f"{family}.yaml")
        torch.manual_seed(0)
        built[family] = (graph, scale, lively(detector.build(graph, scale, CLASSES, NAMES)))
    return built


@pytest.mark.parametrize(
    ("family", "modules"),
    [("yolov8n", SEED), ("yolo26n", SEED), *(pytest.param(family, sorted(MODULES), marks=pytest.mark.slow) for family in FAMILIES)],
)
def test_every_module_at_every_named_site_leaves_the_output_as_it_was(family: str, modules: list[str], bases: dict) -> None:
    graph, scale, base = bases[family]
    expected = outputs(base)
    sites = [site for site in detector.sites(graph, scale) if site.names]
    # All sites at once, modules rotated: every module meets every site over the family's rounds.
    for turn in range(len(modules)):
        chosen = tuple(placement(site.layer, modules[(turn + k) % len(modules)]) for k, site in enumerate(sites))
        architecture = Architecture(f"{family}.yaml", chosen)
        model, edit = detector.build_architecture(graph, scale, architecture, NAMES, base.state_dict())
        assert len(edit.inserted) == len(sites)
        got = outputs(model)
        assert len(got) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), f"turn {turn} of {family}"


@pytest.mark.parametrize("family", FAMILIES)
def test_all_weights_move_and_a_missing_one_is_an_error(family: str, bases: dict) -> None:
    graph, scale, base = bases[family]
    state = base.state_dict()
    site = next(s for s in detector.sites(graph, scale) if "P3" in s.names)
    architecture = Architecture(f"{family}.yaml", (placement(site.layer, "LSKA"),))
    model, edit = detector.build_architecture(graph, scale, architecture, NAMES, state)
    moved = model.state_dict()
    inserted = f"model.{edit.inserted[0]}."
    assert len(moved) - sum(k.startswith(inserted) for k in moved) == len(state)
    dropped = dict(list(state.items())[:-1])
    with pytest.raises(TransferError, match="1 of the model got none"):
        weights.move_weights(model, dropped, edit.moved)
    with pytest.raises(TransferError, match="did not"):
        weights.move_weights(model, {**state, "model.0.unknown": torch.zeros(1)}, edit.moved)


def test_a_wrong_map_of_rows_is_noticed(bases: dict) -> None:
    graph, scale, base = bases["yolo11n"]
    architecture = Architecture("yolo11n.yaml", (placement(4, "LSKA"),))
    model, _ = detector.build_architecture(graph, scale, architecture, NAMES, base.state_dict())
    with pytest.raises(TransferError):
        weights.move_weights(model, base.state_dict(), range(len(graph.rows)))


@pytest.mark.parametrize("family", quick("yolo11n"))
def test_the_loss_reaches_every_gate_and_after_one_step_every_weight(family: str, bases: dict) -> None:
    graph, scale, base = bases[family]
    sites = [site for site in detector.sites(graph, scale) if site.names][:5]
    chosen = tuple(placement(site.layer, module) for site, module in zip(sites, SEED, strict=False))
    model, edit = detector.build_architecture(graph, scale, Architecture(f"{family}.yaml", chosen), NAMES, base.state_dict())
    model.args = detector.default_arguments()
    model.train()
    batch = {
        "img": torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(2)),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[0.0], [2.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.4, 0.6, 0.5, 0.3]]),
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (1, 2):
        optimizer.zero_grad()
        model(batch)[0].sum().backward()
        for row in edit.inserted:
            module = model.model[row]
            assert module.gate_bias.grad.abs().sum() > 0, f"gate of row {row} at step {step}"
            if step == 2:
                # A softmax over positions cannot see DoubleAttention's gather.bias: its true gradient is zero.
                dead = [n for n, p in module.named_parameters() if n != "gather.bias" and (p.grad is None or not p.grad.abs().sum() > 0)]
                assert not dead, f"{type(module).__name__} of row {row}: {dead}"
        optimizer.step()


EXPECTED_SITES = {
    "yolov5n": {"P2": 2, "P3": 4, "P4": 6, "P5": 8, "SPPF": 9, "neck_P4": 13, "neck_P3_out": 17, "neck_P4_out": 20, "neck_P5_out": 23},
    "yolov8n": {"P2": 2, "P3": 4, "P4": 6, "P5": 8, "SPPF": 9, "neck_P4": 12, "neck_P3_out": 15, "neck_P4_out": 18, "neck_P5_out": 21},
    "yolov9t": {"P2": 2, "P3": 4, "P4": 6, "P5": 8, "SPPF": 9, "neck_P4": 12, "neck_P3_out": 15, "neck_P4_out": 18, "neck_P5_out": 21},
    "yolov10n": {"P5": 8, "SPPF": 9, "PSA": 10, "neck_P4": 13, "neck_P3_out": 16, "neck_P4_out": 19, "neck_P5_out": 22},
    "yolo11n": {"P2": 2, "P3": 4, "P5": 8, "SPPF": 9, "PSA": 10, "neck_P4": 13, "neck_P3_out": 16, "neck_P5_out": 22},
    "yolo12n": {"P2": 2, "P4": 6, "P5": 8, "neck_P4": 11, "neck_P3_out": 14, "neck_P4_out": 17, "neck_P5_out": 20},
    "yolo26n": {"P2": 2, "P3": 4, "P5": 8, "SPPF": 9, "PSA": 10, "neck_P4": 13, "neck_P3_out": 16, "neck_P5_out": 22},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_follow_from_the_network(family: str, bases: dict) -> None:
    graph, scale, _ = bases[family]
    sites = detector.sites(graph, scale)
    by_name = {name: site for site in sites for name in site.names}
    assert {name: by_name[name].layer for name in EXPECTED_SITES[family]} == EXPECTED_SITES[family]
    for name, site in by_name.items():
        if name[0] == "P" and name[1:].isdigit():
            assert site.stride == 2 ** int(name[1:])
    assert len(by_name) == len({(n, s.layer) for s in sites for n in s.names})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__floordiv__ is deprecated")
def test_every_shipped_detector_has_sites_and_its_head_is_none_of_them() -> None:
    for name in detector.shipped():
        graph, scale = detector.load_base(name)
        sites = detector.sites(graph, scale)
        names = [n for site in sites for n in site.names]
        assert len(names) == len(set(names)), name
        assert any(n.endswith("_out") for n in names), name
        assert len(graph.rows) - 1 not in {site.layer for site in sites}


@pytest.mark.parametrize("scale", "nsmlx")
def test_every_scale_builds(scale: str) -> None:
    graph, got = detector.load_base(f"yolo11{scale}.yaml")
    assert got == scale
    chosen = Architecture("yolo11.yaml", tuple(placement(row, module) for row, module in zip((4, 6, 8, 13, 16), SEED, strict=True)))
    edit = detector.insert_architecture(graph, chosen)
    model = detector.build(edit.graph, scale, CLASSES)
    assert [type(model.model[row]).__name__ for row in edit.inserted] == SEED


def test_the_seed_draws_new_weights_and_leaves_the_global_state_alone(bases: dict) -> None:
    graph, scale, base = bases["yolov8n"]
    architecture = Architecture("yolov8n.yaml", (placement(4, "LSKA"),))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = (
        detector.build_architecture(graph, scale, architecture, NAMES, base.state_dict(), seed)[0].state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_a_checkpoint_of_other_classes_starts_a_base_and_its_new_head_is_listed(tmp_path: Path, bases: dict) -> None:
    graph, scale, _ = bases["yolov8n"]
    old = detector.build(graph, scale, 80)
    torch.save({"model": copy.deepcopy(old).half(), "ema": None}, tmp_path / "old.pt")
    model = detector.build(graph, scale, CLASSES, NAMES)
    new = weights.load_weights(model, tmp_path / "old.pt")
    assert new
    assert all(k.startswith("model.22.cv3") for k in new)
    state, target = old.half().float().state_dict(), model.state_dict()
    assert all(torch.equal(state[k], target[k]) for k in target if k not in new)
    torch.save(dict(model.state_dict()), tmp_path / "plain.pt")
    assert weights.load_weights(detector.build(graph, scale, CLASSES), tmp_path / "plain.pt") == ()


def test_weights_of_another_model_are_refused(tmp_path: Path, bases: dict) -> None:
    _, _, other = bases["yolo11n"]
    torch.save(dict(other.state_dict()), tmp_path / "other.pt")
    graph, scale, _ = bases["yolov8n"]
    with pytest.raises(TransferError, match="checkpoint of the same model and scale"):
        weights.load_weights(detector.build(graph, scale, CLASSES), tmp_path / "other.pt")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["BOMB"],)


def test_a_checkpoint_cannot_execute_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "exploded"
    monkeypatch.setenv("BOMB", str(target))
    torch.save({"model": Bomb()}, tmp_path / "bomb.pt", pickle_module=pickle)
    with pytest.raises(InputError, match="Ultralytics checkpoint or a plain state dict"):
        weights.read_state(tmp_path / "bomb.pt")
    assert not target.exists()


def test_an_unknown_base_names_the_nearest() -> None:
    with pytest.raises(GraphError, match=r"Did you mean 'yolo11\.yaml'"):
        detector.load_base("yolo11_n.yaml")


REGISTRATION = """
import sys
import nas_attn
assert not {"torch", "ray", "optuna", "ultralytics"} & set(sys.modules), "heavy at import"
from ultralytics.nn.tasks import DetectionModel
backbone = [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "nas_attn.LSKA", ["c2", 7, False]]]
config = {"nc": 2, "scales": {"n": [0.5, 0.25, 1024]}, "backbone": backbone, "head": [[[1], 1, "Detect", ["nc"]]]}
model = DetectionModel({**config, "scale": "n"}, verbose=False)
print(type(model.model[1]).__module__)
"""


@pytest.mark.parametrize("first", ["", "import ultralytics.nn.tasks\n"])
def test_import_alone_registers_in_a_fresh_process(first: str) -> None:
    code = first + (REGISTRATION.replace("assert not", "assert") if first else REGISTRATION)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.split()[-1:] == ["nas_attn.attention.lska"], run.stderr
