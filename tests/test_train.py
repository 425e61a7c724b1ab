"""What a full training needs beyond the search: classes that other processes find, weights beside the YAML, data read alike."""

import copy
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
import torch
import yaml

from nas_attn import detector, train
from nas_attn.architecture import Architecture, Placement
from nas_attn.errors import InputError
from nas_attn.records import record

LSKA = Architecture("yolo11n.yaml", (Placement(4, "LSKA", record("LSKA").complete({})),))
# As Ultralytics hands a trainer to its DDP workers: class and prepared model by cloudpickle, in a process that imported nothing of ours.
WORKER = """
import sys
import cloudpickle
from ultralytics.nn import tasks
assert not hasattr(tasks, "nas_attn.LSKA")
with open(sys.argv[1], "rb") as file:
    held = cloudpickle.load(file)
assert hasattr(tasks, "nas_attn.LSKA")
rebuilt = tasks.DetectionModel(held["model"].yaml, verbose=False)
print(held["trainer"].__name__, sum(p.numel() for p in rebuilt.parameters()))
"""
CHECKPOINT = """
import sys
from ultralytics import YOLO
model = YOLO(sys.argv[1])
from ultralytics.nn.tasks import DetectionModel
print(type(model.model.model[5]).__name__, sum(p.numel() for p in DetectionModel(model.model.yaml, verbose=False).parameters()))
"""


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    graph, scale = detector.load_base("yolo11n.yaml")
    return detector.build(detector.insert_architecture(graph, LSKA).graph, scale, 4)


def fresh(code: str, *arguments: object) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_ddp_worker_finds_the_classes(model: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "held").write_bytes(cloudpickle.dumps({"trainer": train.NasTrainer, "model": model}))
    name, parameters = fresh(WORKER, tmp_path / "held")[-2:]
    assert (name, int(parameters)) == ("NasTrainer", sum(p.numel() for p in model.parameters()))


def test_a_checkpoint_registers_what_it_needs(model: torch.nn.Module, tmp_path: Path) -> None:
    torch.save({"model": copy.deepcopy(model).half(), "ema": None, "train_args": {}}, tmp_path / "best.pt")
    name, parameters = fresh(CHECKPOINT, tmp_path / "best.pt")[-2:]
    assert (name, int(parameters)) == ("LSKA", sum(p.numel() for p in model.parameters()))


def test_settings_are_name_value_pairs_of_ultralytics(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "a.yaml").write_text("{}")
    with pytest.raises(InputError, match="must be name=value"):
        train.train_export(tmp_path, str(digits), ["fast"])
    with pytest.raises(InputError, match="Training arguments must be Ultralytics'"):
        train.train_export(tmp_path, str(digits), ["epoch=1", f"project={tmp_path}"])
    with pytest.raises(InputError, match=r"none\.yaml is no file"):
        train.train_export(tmp_path, str(tmp_path / "none.yaml"), [])


@pytest.mark.slow
def test_an_export_trains_from_its_weights_from_any_folder(
    model: torch.nn.Module, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, scale = detector.load_base("yolo11n.yaml")
    config = detector.insert_architecture(graph, LSKA).graph.to_yaml()
    (tmp_path / "yolo11n-x.yaml").write_text(yaml.safe_dump({**config, "nc": 4, "scales": {scale: config["scales"][scale]}}))
    torch.save(dict(model.state_dict()), tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    started: list[dict[str, torch.Tensor]] = []

    def note(trainer: train.NasTrainer) -> None:
        started.append({k: v.clone() for k, v in trainer.model.state_dict().items()})

    monkeypatch.setattr(
        train.NasTrainer, "set_model_attributes", lambda self: (note(self), train.DetectionTrainer.set_model_attributes(self))[1]
    )
    settings = ["epochs=1", "imgsz=64", "batch=8", "plots=False", "workers=0", "device=cpu", f"project={tmp_path / 'runs'}"]
    saved = train.train_export(tmp_path, str(digits), settings)
    assert (saved / "weights" / "best.pt").is_file()
    state = model.state_dict()
    assert all(torch.equal(started[0][k], state[k]) for k in state)
