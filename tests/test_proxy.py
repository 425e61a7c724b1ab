"""The proxy is repeatable, pairs base and candidate, opens gates, writes nothing beside the data and reaches for no network."""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nas_attn import data, detector, proxy
from nas_attn.architecture import Architecture, Placement
from nas_attn.attention.gate import Gated
from nas_attn.errors import InputError, NasAttnError
from nas_attn.records import record
from nas_attn.train import separate_new

BASE = "yolo11n.yaml"
ALONE = Architecture(BASE)
CANDIDATE = Architecture(
    BASE,
    (
        Placement(4, "LSKA", record("LSKA").complete({})),
        Placement(16, "HaloAttention", record("HaloAttention").complete({"block_size": 4})),
    ),
)


@pytest.fixture(scope="module")
def lists(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    found = data.load(digits)
    folder = tmp_path_factory.mktemp("lists")
    proxy.write_list(folder / "train.txt", found.train[:24])
    proxy.write_list(folder / "val.txt", found.train[24:])
    return str(folder / "train.txt"), str(folder / "val.txt")


def training(lists: tuple[str, str], folder: Path, **changes: object) -> proxy.Training:
    settings = {
        "train_list": lists[0],
        "val_list": lists[1],
        "names": ("zero", "one", "two", "three"),
        "folder": str(folder),
        "epochs": 2,
        "imgsz": 64,
        "batch": 8,
        "lr0": 0.001,
        "new_lr_scale": 10.0,
        "seed": 0,
        "device": "cpu",
        "threads": 1,
    }
    return proxy.Training(**{**settings, **changes})


def model(architecture: Architecture = ALONE, seed: int = 0) -> nn.Module:
    graph, scale = detector.load_base(BASE)
    torch.manual_seed(11)
    state = detector.build(graph, scale, 4).state_dict()
    return detector.build_architecture(graph, scale, architecture, ("zero", "one", "two", "three"), state, seed)[0]


class Watching(proxy.ProxyTrainer):
    """Remembers every batch that it was given, pixels included."""

    def preprocess_batch(self, batch: dict) -> dict:
        pixels = hashlib.sha256(batch["img"].numpy().tobytes()).hexdigest()
        self.__dict__.setdefault("seen", []).append((tuple(batch["im_file"]), pixels))
        return super().preprocess_batch(batch)


def seen(lists: tuple[str, str], folder: Path, architecture: Architecture, seed: int) -> tuple[list, list]:
    proxy.silence()
    trainer = Watching(training(lists, folder, seed=seed), model(architecture, seed))
    trainer.train()
    return trainer.seen, trainer.curve


def test_same_seed_same_metrics_and_another_seed_other_losses(lists: tuple[str, str], tmp_path: Path) -> None:
    runs = [proxy.train(training(lists, tmp_path / str(i), seed=seed), model(CANDIDATE, seed)) for i, seed in enumerate((0, 0, 1))]
    assert runs[0].curve == runs[1].curve
    assert all(torch.equal(runs[0].state[k], runs[1].state[k]) for k in runs[0].state)
    assert runs[0].curve[0]["train_loss"] != runs[2].curve[0]["train_loss"]


def test_base_and_candidate_see_the_same_pixels_in_the_same_order(lists: tuple[str, str], tmp_path: Path) -> None:
    base, curve = seen(lists, tmp_path / "a", Architecture(BASE), 0)
    candidate, other = seen(lists, tmp_path / "b", CANDIDATE, 0)
    changed, _ = seen(lists, tmp_path / "c", Architecture(BASE), 1)
    assert len(base) == 6
    assert base == candidate
    assert curve != other
    assert [pixels for _, pixels in base] != [pixels for _, pixels in changed]


def test_gates_open_and_the_curve_tells_every_epoch(lists: tuple[str, str], tmp_path: Path) -> None:
    told: list[dict[str, float]] = []
    trained = proxy.train(training(lists, tmp_path), model(CANDIDATE), told.append)
    assert list(trained.curve) == told
    assert [epoch["epoch"] for epoch in told] == [1.0, 2.0]
    assert set(trained.gates) == {5, 18}
    assert all(opening > 1e-3 for opening in trained.gates.values())
    assert all(torch.isfinite(v).all() for v in trained.state.values() if v.is_floating_point())


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "MuSGD"])
def test_inserted_modules_are_a_group_without_decay_and_without_muon(lists: tuple[str, str], tmp_path: Path, optimizer: str) -> None:
    proxy.silence()
    built = model(CANDIDATE)
    trainer = proxy.ProxyTrainer(training(lists, tmp_path), built)
    groups = trainer.build_optimizer(built, optimizer, lr=0.01, momentum=0.9, decay=0.05).param_groups
    new = [group for group in groups if group["param_group"] == "new"]
    inside = {id(p) for m in built.modules() if isinstance(m, Gated) for p in m.parameters()}
    assert [{id(p) for p in group["params"]} for group in new] == [inside]
    assert (new[0]["weight_decay"], new[0]["lr"], new[0].get("use_muon", False)) == (0.0, pytest.approx(0.1), False)
    assert not inside & {id(p) for group in groups if group is not new[0] for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(built.parameters()))


def test_a_scale_that_keeps_gates_shut_is_refused() -> None:
    with pytest.raises(NasAttnError, match="gates could not open"):
        separate_new(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), nn.Identity(), 0.0)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    tried: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def test_nothing_is_written_beside_the_data_and_nothing_is_asked_of_the_network(
    lists: tuple[str, str], digits: Path, tmp_path: Path, no_network: list[object]
) -> None:
    before = {f: f.stat().st_mtime_ns for f in digits.parent.rglob("*")}
    proxy.train(training(lists, tmp_path, epochs=1), model())
    assert {f: f.stat().st_mtime_ns for f in digits.parent.rglob("*")} == before
    assert no_network == []


ASK_NOBODY = """
import socket, sys
def refuse(*address, **_):
    raise SystemExit(f"asked the network: {address}")
socket.getaddrinfo = refuse
socket.socket.connect = refuse
import importlib
importlib.import_module(sys.argv[1])
from ultralytics.utils import ONLINE
from ultralytics.utils.events import events
assert not ONLINE and not events.enabled
"""


@pytest.mark.parametrize("module", ["nas_attn.train", "nas_attn.plan", "nas_attn.dataset", "nas_attn.evaluate"])
def test_no_import_asks_the_network(module: str, tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("YOLO_")} | {"YOLO_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ASK_NOBODY, module], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Exhausted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            raise RuntimeError("CUDA out of memory (simulated)")
        return x


def test_lack_of_memory_fails_the_trial_and_halves_no_batch(lists: tuple[str, str], tmp_path: Path) -> None:
    built = model()
    exhausted = Exhausted()
    exhausted.i, exhausted.f, exhausted.type, exhausted.np = 0, -1, "Exhausted", 0
    built.model[0] = exhausted
    with pytest.raises(RuntimeError, match="out of memory"):
        proxy.train(training(lists, tmp_path), built)
    assert exhausted.calls == 1


def test_a_loss_that_is_not_finite_fails_the_trial(lists: tuple[str, str], tmp_path: Path) -> None:
    built = model()
    with torch.no_grad():
        built.model[-1].cv3[0][-1].bias.fill_(float("nan"))
    with pytest.raises(NasAttnError, match=r"lower proxy\.lr0"):
        proxy.train(training(lists, tmp_path), built)


@pytest.mark.parametrize(("epochs", "closed"), [(1, 0), (2, 0), (3, 1), (6, 2), (10, 4)])
def test_mosaic_closes_for_the_last_part_and_never_from_the_start(lists: tuple[str, str], tmp_path: Path, epochs: int, closed: int) -> None:
    assert proxy.arguments(training(lists, tmp_path, epochs=epochs))["close_mosaic"] == closed


def test_a_space_may_choose_the_optimizer_but_not_the_pairing(lists: tuple[str, str], tmp_path: Path) -> None:
    arguments = proxy.arguments(training(lists, tmp_path, args={"optimizer": "SGD", "deterministic": False, "nbs": 64}))
    assert (arguments["optimizer"], arguments["deterministic"], arguments["nbs"]) == ("SGD", True, 8)


# -- pieces ----------------------------------------------------------------------------------------------------------------------------


def in_pieces(lists: tuple[str, str], folder: Path, rungs: tuple[int, ...], base: str = BASE, **changes: object) -> list[proxy.Trained]:
    """A training that pauses at each rung, every piece by a trainer and a model of its own."""
    trained, saved = [], []
    for rung in rungs:
        place = folder / str(rung)
        piece = proxy.Piece(until=rung, identity="this", save=place / "checkpoint.pt", resume=tuple(reversed(saved)))
        torch.manual_seed(rung)  # what a worker did before must not matter
        trained.append(proxy.train(training(lists, place, epochs=rungs[-1], **changes), candidate(base), None, piece))
        saved.append(place / "checkpoint.pt")
    assert [file.is_file() for file in saved] == [True] * (len(rungs) - 1) + [False]
    return trained


def candidate(base: str) -> nn.Module:
    if base == BASE:
        return model(CANDIDATE)
    graph, scale = detector.load_base(base)
    torch.manual_seed(11)
    return detector.build(graph, scale, 4)


def require_equal(one: proxy.Trained, other: proxy.Trained) -> None:
    assert one.curve == other.curve
    assert list(one.state) == list(other.state)
    assert [k for k in one.state if not torch.equal(one.state[k], other.state[k])] == []
    assert one.gates == other.gates


@pytest.mark.parametrize(
    ("rungs", "base", "changes"),
    [
        ((1, 3), BASE, {}),  # 24 images in batches of 8: the sampler draws ahead at an epoch's end
        ((1, 2, 3, 5), BASE, {"batch": 7, "args": {"mixup": 0.5, "close_mosaic": 3}}),  # pauses before, at and after mosaic closes
        ((2, 3), BASE, {"args": {"optimizer": "SGD", "cos_lr": True, "warmup_epochs": 2.5, "close_mosaic": 2}}),
        ((2, 3), BASE, {"args": {"optimizer": "MuSGD", "close_mosaic": 0, "multi_scale": 0.5}}),
        ((1, 3), "yolo26n.yaml", {}),  # a loss that follows the epochs
    ],
    ids=["short", "mosaic", "SGD", "MuSGD", "yolo26"],
)
@pytest.mark.slow
def test_a_training_in_pieces_is_the_whole_bit_for_bit(
    lists: tuple[str, str], tmp_path: Path, rungs: tuple[int, ...], base: str, changes: dict[str, object]
) -> None:
    whole = proxy.train(training(lists, tmp_path / "whole", epochs=rungs[-1], **changes), candidate(base))
    pieces = in_pieces(lists, tmp_path, rungs, base, **changes)
    require_equal(pieces[-1], whole)
    assert [piece.curve for piece in pieces] == [whole.curve[:rung] for rung in rungs]


def test_two_halves_are_the_whole_bit_for_bit(lists: tuple[str, str], tmp_path: Path) -> None:
    whole = proxy.train(training(lists, tmp_path / "whole"), model(CANDIDATE))
    first, second = in_pieces(lists, tmp_path, (1, 2))
    require_equal(second, whole)
    assert first.curve == whole.curve[:1]
    assert first.score("map50_95", 3) == whole.curve[0]["map50_95"]
    assert whole.score("map50_95", 2) == pytest.approx(sum(epoch["map50_95"] for epoch in whole.curve) / 2)
    assert whole.score("map50", 1) == whole.map50


def test_a_training_whose_checkpoint_is_torn_or_foreign_begins_again(lists: tuple[str, str], tmp_path: Path) -> None:
    whole = proxy.train(training(lists, tmp_path / "whole"), model(CANDIDATE))
    in_pieces(lists, tmp_path, (1, 2))
    torn, foreign = tmp_path / "torn.pt", tmp_path / "1" / "checkpoint.pt"
    torn.write_bytes(foreign.read_bytes()[:-1000])
    told: list[dict[str, float]] = []
    piece = proxy.Piece(until=2, identity="another", resume=(tmp_path / "absent.pt", torn, foreign))
    again = proxy.train(training(lists, tmp_path / "again"), model(CANDIDATE), told.append, piece)
    require_equal(again, whole)
    assert len(told) == 2


@pytest.mark.parametrize("until", [0, 3])
def test_a_piece_ends_within_its_training(lists: tuple[str, str], tmp_path: Path, until: int) -> None:
    with pytest.raises(InputError, match="1 <= until <= epochs"):
        proxy.train(training(lists, tmp_path), model(), None, proxy.Piece(until=until, identity="this"))
