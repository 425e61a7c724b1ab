"""The identity gate, and what all attention files share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from attention_tools import draw
from torch import Tensor

from nas_attn.attention.gate import Gated, saturate
from nas_attn.errors import SpaceError
from nas_attn.records import record
from nas_attn.registration import attention_class

ILLEGAL = [
    ("LSKA", 64, (9,)),
    ("LIA", 64, (0,)),
    ("HaloAttention", 64, (0, 3, 16)),
    ("HaloAttention", 4, (8, 3, 16)),
    ("DoubleAttention", 64, (1.5, 0.25)),
    ("CloAttention", 20, ()),
    ("CloAttention", 64, (4, 4)),
    ("CloAttention", 64, (4, 5, 8, 9)),
]


@pytest.mark.parametrize(("name", "channels", "args"), ILLEGAL)
def test_constructors_and_spaces_ask_the_same_predicate(name: str, channels: int, args: tuple[Any, ...]) -> None:
    params = {hyper.name: value for hyper, value in zip(record(name).hyperparameters, args, strict=False)}
    (problem,) = record(name).violations(channels, params)
    with pytest.raises(SpaceError, match="must") as caught:
        attention_class(record(name).target)(channels, *args)
    assert str(caught.value) == problem
    assert isinstance(caught.value, ValueError)


def test_a_gate_alone_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Gated(8)  # type: ignore[abstract]


def test_saturation_touches_half_precision_only() -> None:
    wide = torch.tensor([1e6, -1e6, 1.0])
    assert saturate(wide).tolist() == wide.tolist()
    assert saturate(wide, torch.float16).tolist() == [65504.0, -65504.0, 1.0]
    assert saturate(wide.half(), torch.float32).tolist() == [65504.0, -65504.0, 1.0]


def test_an_overflow_in_half_precision_does_not_break_a_closed_gate() -> None:
    class Overflowing(Gated):
        def mechanism(self, x_BCHW: Tensor) -> Tensor:
            return x_BCHW.half() * 60000.0

        branch = mechanism

    for dtype in (torch.float16, torch.float32):
        x = draw(1, 3, 3, 8).mul(100).to(dtype)
        assert torch.equal(Overflowing(8)(x), x)


def test_sources_hold_no_device_and_no_detached_writes() -> None:
    for path in Path(__file__).parent.parent.glob("nas_attn/attention/*.py"):
        assert not [word for word in (".cuda(", ".data.", ".data[", "F.softmax(") if word in path.read_text(encoding="utf-8")], path
