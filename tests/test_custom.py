"""Modules of the user's own: the decorator, the import, and the whole way from a file to a trained, exported model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas_attn import Gated, custom, mechanism, records, registration
from nas_attn.architecture import Architecture, Placement
from nas_attn.detector import build, insert_architecture, load_base
from nas_attn.errors import InputError, SpaceError
from nas_attn.records import MODULES, record
from nas_attn.setup import Setup
from nas_attn.spec import SpaceSpec

SOURCE = '''
import torch
from torch import nn
from nas_attn import Gated, mechanism

@mechanism(gate="m(x) - x", choices={"kernel": (3, 5)}, constraints=(("kernel % 2 == 1", "give an odd side"),))
class Pixelwise(Gated):
    """Weighs every position by its mean and its largest channel."""
    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__(channels)
        self.look = nn.Conv2d(2, 1, kernel, padding=kernel // 2)

    def mechanism(self, x_BCHW):
        seen = torch.cat([x_BCHW.mean(1, keepdim=True), x_BCHW.amax(1, keepdim=True)], 1)
        return x_BCHW * self.look(seen).sigmoid()
'''


@pytest.fixture(autouse=True)
def _table_as_before():
    before, paths, sources = set(MODULES), list(sys.path), custom.sources()
    yield
    for name in set(MODULES) - before:
        del records._TABLE[name]
    sys.path[:] = paths
    for name in set(custom.sources()) - set(sources):
        del custom._sources[name]


class Scaled(Gated):
    """Mixes channels in a narrower space."""

    def __init__(self, channels: int, width: float = 0.25, bias: bool = True) -> None:
        super().__init__(channels)
        self.narrow = nn.Conv2d(channels, int(width), 1, bias=bias)
        self.widen = nn.Conv2d(int(width), channels, 1, bias=bias)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        return self.widen(self.narrow(x_BCHW))


class Bare(Scaled):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width)


class LSKA(Gated):
    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW


def adopt_scaled(**given) -> type:
    return mechanism(choices={"width": (0.125, 0.25)}, fractions=("width",), **given)(Scaled)


def test_a_class_joins_the_table_with_its_constructors_arguments():
    cls = adopt_scaled(constraints=(("C >= 16", "choose a wider row"),), family="channel")
    entry = record("Scaled")
    assert [(h.name, h.default, h.choices, h.fraction) for h in entry.hyperparameters] == [
        ("width", 0.25, (0.125, 0.25), True),
        ("bias", True, (True,), False),
    ]
    assert (entry.note, entry.family, entry.params) == ("Mixes channels in a narrower space.", "channel", None)
    assert entry.parameters(64, {}) is None
    assert cls(64, 0.125).narrow.weight.shape == (8, 64, 1, 1)
    assert cls(64, 12).narrow.weight.shape == (12, 64, 1, 1)
    with pytest.raises(SpaceError, match="`C >= 16` must hold, but got C=8; choose a wider row"):
        cls(8)
    with pytest.raises(SpaceError, match="fraction of the channels"):
        cls(64, width=-1)


def test_a_space_may_name_it_and_a_yaml_says_what_to_import():
    adopt_scaled()
    assert SpaceSpec.from_dict({"base": "yolo11n.yaml", "sites": ["P3"], "modules": {"Scaled": None}}).modules["Scaled"]["width"]
    assert registration.yaml_name("LIA") == "nas_attn.LIA"
    assert registration.yaml_name("Scaled") == f"{__name__}.Scaled"
    graph, scale = load_base("yolo11n.yaml")
    architecture = Architecture("yolo11n.yaml", (Placement(4, "Scaled", record("Scaled").complete({})),))
    model = build(insert_architecture(graph, architecture).graph, scale, 3)
    assert type(model.model[5]).__name__ == "Scaled"
    assert model.model[5].narrow.weight.shape[0] == 32


def test_what_is_no_mechanism_is_refused():
    with pytest.raises(InputError, match=r"must be a subclass of nas_attn\.Gated"):
        mechanism()(nn.Conv2d)

    with pytest.raises(InputError, match=r"a default for every argument after it, but \['width'\] have none"):
        mechanism()(Bare)

    def local() -> type:
        class Hidden(Scaled):
            """Nowhere to import it from."""

        return Hidden

    with pytest.raises(InputError, match=r"local; define it at the file's top level"):
        mechanism()(local())
    with pytest.raises(InputError, match=r"constructor's arguments \['width', 'bias'\], but Scaled has \['depth'\]"):
        custom.mechanism(choices={"depth": (1,)})(adopt_scaled())
    with pytest.raises(SpaceError, match="a formula may use"):
        adopt_scaled(params="C * depth")


def test_a_name_of_the_table_is_not_taken_over():
    with pytest.raises(SpaceError, match=r"'LSKA' is nas_attn.attention.lska:LSKA already; rename"):
        mechanism()(LSKA)
    assert record("LSKA").target == "nas_attn.attention.lska:LSKA"


@pytest.mark.parametrize("name", ["my-file", "os; x", "..up", "", "my_nn.file", "a b"])
def test_only_dotted_names_are_imported(name):
    with pytest.raises(InputError, match="dotted module name"):
        custom.load([name])


def test_a_studys_folder_cannot_slip_code_into_an_export():
    with pytest.raises(InputError, match="dotted module name"):
        Setup.from_dict({"imports": ["os; print(1)"]})


def test_what_cannot_be_imported_is_told(tmp_path):
    with pytest.raises(InputError, match=r"`--import no_such_file_here` must be importable from .*ModuleNotFoundError"):
        custom.load(["no_such_file_here"], str(tmp_path))
    (tmp_path / "broken_user_file.py").write_text("1 / 0")
    with pytest.raises(InputError, match="ZeroDivisionError"):
        custom.load(["broken_user_file"], str(tmp_path))


def test_what_was_loaded_is_known_by_its_content(tmp_path):
    (tmp_path / "loaded_user_file.py").write_text(SOURCE)
    custom.load(["loaded_user_file"], str(tmp_path))
    custom.load(["loaded_user_file"], str(tmp_path))
    assert len(custom.sources()["loaded_user_file"]) == 12
    x = torch.randn(1, 8, 3, 3)
    assert torch.equal(registration.attention_class(record("Pixelwise").target)(8)(x), x)


def nas_attn(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "nas-attn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600, check=False)


@pytest.mark.slow
def test_check_holds_a_users_module_to_the_contract(tmp_path):
    (tmp_path / "own_attention.py").write_text(SOURCE)
    done = nas_attn("check", "--import", "own_attention", "--module", "Pixelwise", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Pixelwise: the contract holds." in done.stdout
    (tmp_path / "own_attention.py").write_text(SOURCE.replace(".sigmoid()", ".softmax(0)"))
    done = nas_attn("check", "--import", "own_attention", "--module", "Pixelwise", cwd=tmp_path)
    assert done.returncode == 1
    assert "batch: at 21 x 13 an image alone differs" in done.stdout
    done = nas_attn("check", "--module", "Pixelwise", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: A module must be in the table, but got 'Pixelwise'")


@pytest.mark.slow
def test_a_users_module_is_searched_on_workers_and_exported(tmp_path):
    from nas_attn.demo import draw_data_set

    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "own.py").write_text(SOURCE)
    data = draw_data_set(tmp_path / "data")
    space = {
        "base": "yolo11n.yaml",
        "sites": ["P3", "P4"],
        "max_placements": 1,
        "modules": {"Pixelwise": {"kernel": [3]}},
        "base_fit": {"epochs": 1},
        "proxy": {"epochs": 1, "imgsz": 64},
        "latency": {"blocks": 2, "calibrations": 2, "retries": 0},
        "base_seeds": 1,
        "controls": False,
    }
    (tmp_path / "space.yaml").write_text(json.dumps(space))
    search = ["search", "space.yaml", "--data", data, "--trials", 2, "--out", "study", "--device", "cpu", "--workers", 1]
    refused = nas_attn(*search, cwd=tmp_path)
    assert refused.returncode == 2
    assert "Pixelwise" in refused.stderr
    done = nas_attn(*search, "--import", "pkg.own", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trials = (tmp_path / "study" / "trials.csv").read_text()
    assert trials.count("COMPLETE") == 2, trials
    done = nas_attn("export", "study", "--to", "out", "--rule", "best", "--trial", 1, "--import", "pkg.own", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").glob("*.yaml")
    assert "pkg.own.Pixelwise" in file.read_text()
    assert "import nas_attn, pkg.own" in file.read_text()
    assert "import pkg.own" in (tmp_path / "out" / "train.py").read_text()
    code = "import nas_attn, pkg.own; from ultralytics import YOLO; print(*(type(row).__name__ for row in YOLO('{}').model.model))"
    built = subprocess.run([sys.executable, "-c", code.format(file)], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert built.stdout.split().count("Pixelwise") == 1, built.stderr
