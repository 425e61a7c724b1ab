"""A pause holds all that the further course depends on, and a file that is not whole or not this training's is never used."""

import random
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_proxy import CANDIDATE, model, training

from nas_attn import checkpoint, data, proxy
from nas_attn.attention.gate import Gated

LAST = 3


def piece(lists: tuple[str, str], folder: Path, until: int, *resume: Path) -> proxy.Trained:
    part = proxy.Piece(until=until, identity="this", save=folder / "checkpoint.pt", resume=resume)
    return proxy.train(training(lists, folder, epochs=LAST, args={"close_mosaic": 1}), model(CANDIDATE), None, part)


@pytest.fixture(scope="module")
def lists(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    found, folder = data.load(digits), tmp_path_factory.mktemp("lists")
    proxy.write_list(folder / "train.txt", found.train[:20])
    proxy.write_list(folder / "val.txt", found.train[24:])
    return str(folder / "train.txt"), str(folder / "val.txt")


@pytest.fixture(scope="module")
def paused(lists: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paused")
    piece(lists, folder, 2)
    return folder / "checkpoint.pt"


@pytest.fixture(scope="module")
def whole(lists: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> proxy.Trained:
    return piece(lists, tmp_path_factory.mktemp("whole"), LAST)


def read(file: Path) -> dict[str, Any]:
    return dict(torch.load(file, weights_only=True))


def usable(file: Path, identity: str = "this", below: int = LAST) -> Mapping[str, Any] | None:
    return checkpoint.first_usable([file], identity, below)


def test_a_whole_file_of_this_training_is_used_and_left_alone(paused: Path) -> None:
    before = paused.read_bytes()
    state = usable(paused)
    assert state is not None
    assert (state["epoch"], [epoch["epoch"] for epoch in state["curve"]]) == (2, [1.0, 2.0])
    assert paused.read_bytes() == before
    assert not list(paused.parent.glob(".*"))


def test_another_training_s_or_a_later_pause_is_not_used(paused: Path, tmp_path: Path) -> None:
    assert usable(paused, identity="that") is None
    assert usable(paused, below=2) is None
    assert usable(tmp_path / "absent.pt") is None
    assert checkpoint.first_usable([tmp_path / "absent.pt", paused], "this", LAST) is not None


def test_torn_files_are_not_used_wherever_they_are_torn(paused: Path, tmp_path: Path) -> None:
    text, torn = paused.read_bytes(), tmp_path / "torn.pt"
    for length in (0, 1, 100, len(text) // 2, len(text) - 200, len(text) - 1):
        torn.write_bytes(text[:length])
        assert usable(torn) is None


def test_altered_content_is_not_used(paused: Path, tmp_path: Path) -> None:
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda state: next(iter(state["model"].values())).add_(1e-6),
        lambda state: state["optimizer"]["param_groups"][0].update(lr=0.5),
        lambda state: state["curve"][0].update(map50_95=0.9),
        lambda state: state.update(epoch=1),
        lambda state: state.pop("random"),
        lambda state: state.update(format=2),
        lambda state: state.clear(),
    ]
    for number, change in enumerate(changes):
        state, file = read(paused), tmp_path / f"{number}.pt"
        change(state)
        torch.save(state, file)
        assert usable(file) is None, number
    torch.save([1, 2], tmp_path / "list.pt")
    assert usable(tmp_path / "list.pt") is None
    torch.save(model(CANDIDATE), tmp_path / "code.pt")  # would execute code if it were read otherwise
    assert usable(tmp_path / "code.pt") is None


def test_bits_that_flip_on_the_disk_are_seen(paused: Path, tmp_path: Path) -> None:
    text, rng, file = paused.read_bytes(), random.Random(0), tmp_path / "flipped.pt"
    original = read(paused)
    for _ in range(4):
        at = rng.randrange(len(text))
        file.write_bytes(text[:at] + bytes([text[at] ^ 16]) + text[at + 1 :])
        state = usable(file)  # a bit between the records of the archive means nothing
        assert state is None or checkpoint._digest(state) == checkpoint._digest(original)


def test_random_sources_are_set_back(paused: Path) -> None:
    state = read(paused)
    checkpoint.restore_random(state)
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())
    checkpoint.restore_random(state)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())


def _without(part: str) -> Callable[[dict[str, Any]], object]:
    def shut_gates(state: dict[str, Any]) -> None:
        gates = [name for name, module in model(CANDIDATE).named_modules() if isinstance(module, Gated)]
        for name in gates:
            state["model"][f"{name}.gate_bias"].zero_()

    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "model": shut_gates,
        "ema": lambda state: state.update(ema=state["model"]),
        "updates": lambda state: state.update(updates=0),
        "optimizer": lambda state: state["optimizer"]["state"].clear(),
        "python": lambda state: state["random"]["python"][1].__setitem__(slice(0, 4), 7),
        "buffer": lambda state: state["buffer"].clear(),
        "epoch": lambda state: state.update(epoch=1),
    }
    return changes[part]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["", "model", "ema", "updates", "optimizer", "python", "buffer", "epoch"])
def test_every_part_of_a_pause_matters(
    lists: tuple[str, str], paused: Path, tmp_path: Path, whole: proxy.Trained, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    real = checkpoint.first_usable

    def spoilt(*arguments: Any) -> dict[str, Any]:
        state = deepcopy(dict(real(*arguments) or {}))
        if part:
            _without(part)(state)
        return state

    monkeypatch.setattr(checkpoint, "first_usable", spoilt)
    if part in ("python", "buffer"):  # augmentation that draws on them to the end
        lists_args = {"close_mosaic": 0, "mixup": 1.0}
        first = proxy.Piece(until=2, identity="this", save=tmp_path / "checkpoint.pt")
        monkeypatch.setattr(checkpoint, "first_usable", real)
        kept = training(lists, tmp_path, epochs=LAST, args=lists_args)
        proxy.train(kept, model(CANDIDATE), None, first)
        wanted = proxy.train(kept, model(CANDIDATE))
        monkeypatch.setattr(checkpoint, "first_usable", spoilt)
        second = proxy.Piece(until=LAST, identity="this", resume=(tmp_path / "checkpoint.pt",))
        ended = proxy.train(kept, model(CANDIDATE), None, second)
    else:
        wanted, ended = whole, piece(lists, tmp_path, LAST, paused)
    same = ended.curve == wanted.curve and all(torch.equal(ended.state[name], wanted.state[name]) for name in wanted.state)
    assert same == (not part)
