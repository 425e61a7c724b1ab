import copy
import math
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from nas_attn import cost
from nas_attn.contract import Case
from nas_attn.cost import activation_mib, deployed, einsum_macs, gmacs, parameters_m
from nas_attn.errors import NasAttnError
from nas_attn.formula import evaluate
from nas_attn.records import MODULES, record

os.environ["YOLO_OFFLINE"] = "1"
os.environ["YOLO_AUTOINSTALL"] = "false"

MIB = 2**20


class Call(nn.Module):
    """A model that is one function of its image."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def macs(function: Callable[[Tensor], Tensor] | nn.Module, *shape: int) -> int:
    model = function if isinstance(function, nn.Module) else Call(function)
    return round(gmacs(model, torch.rand(shape)) * 1e9)


def counted_by_torch(model: nn.Module, x: Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deployed(model)(x)
    return counter.get_total_flops() / 2e9


def detector(name: str) -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel

    model: nn.Module = DetectionModel(name, verbose=False)
    return model


def test_parameters_count_each_tensor_once_and_frozen_ones_too() -> None:
    layer = nn.Linear(10, 100)
    layer.weight.requires_grad_(False)
    assert parameters_m(nn.Sequential(layer, layer)) == pytest.approx(1100e-6)


@pytest.mark.parametrize("name", ["yolov5n.yaml", "yolov8n.yaml", "yolov10n.yaml", "yolo11n.yaml", "yolo12n.yaml", "yolo26n.yaml"])
def test_detectors_agree_with_the_counter_of_torch(name: str) -> None:
    model, image = detector(name), torch.rand(1, 3, 64, 96)
    assert gmacs(model, image) == pytest.approx(counted_by_torch(model, image), rel=1e-12)
    assert gmacs(model, image) > 0.01


def test_yolo11n_has_its_published_cost() -> None:
    model = detector("yolo11n.yaml")
    assert parameters_m(model) == pytest.approx(2.6, abs=0.05)
    assert 2 * gmacs(model, torch.rand(1, 3, 640, 640)) == pytest.approx(6.5, abs=0.1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(6, 8, (1, 5), padding="same", dilation=2, bias=False),
        nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2, output_padding=1),
        nn.Linear(10, 7),
        nn.Sequential(nn.Flatten(), nn.Linear(6 * 12 * 10, 5)),
    ],
    ids=["grouped", "same", "transposed", "linear", "addmm"],
)
def test_layers_agree_with_the_counter_of_torch(layer: nn.Module) -> None:
    image = torch.rand(2, 6, 12, 10)
    assert gmacs(layer, image) == pytest.approx(counted_by_torch(layer, image), rel=1e-12)
    assert gmacs(layer, image) > 0


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x @ x.mT, 2 * 3 * 4 * 5 * 4),
        (lambda x: torch.ones(7, 4) @ x, 2 * 3 * 7 * 4 * 5),
        (lambda x: x @ torch.ones(5), 2 * 3 * 4 * 5),
        (lambda x: torch.bmm(x[0], x[0].mT), 3 * 4 * 5 * 4),
        (lambda x: torch.mm(x[0, 0], x[0, 0].t()), 4 * 5 * 4),
        (lambda x: torch.mv(x[0, 0], x[0, 0, 0]), 4 * 5),
        (lambda x: torch.dot(x[0, 0, 0], x[0, 0, 0]), 5),
        (lambda x: torch.addmm(torch.zeros(4), x[0, 0], x[0, 0].t()), 4 * 5 * 4),
        (lambda x: torch.addmv(torch.zeros(4), x[0, 0], x[0, 0, 0]), 4 * 5),
        (lambda x: torch.baddbmm(torch.zeros(1), x[0], x[0].mT), 3 * 4 * 5 * 4),
        (lambda x: torch.addbmm(torch.zeros(4, 4), x[0], x[0].mT), 3 * 4 * 5 * 4),
        (lambda x: torch.einsum("bchw, bdhw -> bcd", x, x), 2 * 3 * 3 * 4 * 5),
        (lambda x: torch.einsum("...hw,...kw->...hk", x, x[:1]), 2 * 3 * 4 * 4 * 5),
        (lambda x: functional.interpolate(x, (8, 9), mode="bilinear"), 2 * 3 * 72 * 4),
        (lambda x: functional.interpolate(x, (8, 9), mode="bicubic"), 2 * 3 * 72 * 16),
        (lambda x: functional.interpolate(x, (8, 9), mode="nearest"), 0),
        (lambda x: functional.grid_sample(x, torch.zeros(2, 6, 7, 2), align_corners=False), 2 * 3 * 42 * 4),
        (lambda x: functional.grid_sample(x, torch.zeros(2, 6, 7, 2), mode="nearest", align_corners=False), 0),
        (lambda x: functional.unfold(x, 3, padding=1).softmax(-1) * 2 + 1, 0),
    ],
)
def test_operators_have_their_closed_form(function: Callable[[Tensor], Tensor], expected: int) -> None:
    assert macs(function, 2, 3, 4, 5) == expected


@pytest.mark.parametrize("masked", [False, True])
def test_scaled_dot_product_attention_is_not_free(masked: bool) -> None:
    def attend(x: Tensor) -> Tensor:
        mask = torch.zeros(6, 9) if masked else None
        return functional.scaled_dot_product_attention(x[..., :6, :], x, x[..., :7], mask)

    # 2 x 3 heads: 6 queries meet 9 keys in 8 dimensions, and 9 values in 7.
    assert macs(attend, 2, 3, 9, 8) == 2 * 3 * 6 * 9 * (8 + 7)


def test_attention_costs_the_same_in_one_operator_and_in_steps() -> None:
    whole = macs(lambda x: functional.scaled_dot_product_attention(x, x, x), 2, 4, 6, 8)
    assert whole == macs(lambda x: (x @ x.mT).softmax(-1) @ x, 2, 4, 6, 8)


def test_multi_head_attention_costs_the_same_on_its_fast_path() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]

    expected = 2 * (4 * 6 * 8 * 8 + 2 * 6 * 6 * 8)
    assert macs(Attend(), 2, 6, 8) == expected
    assert gmacs(Attend(), torch.rand(2, 6, 8)) == pytest.approx(expected / 1e9)


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], 30),
        ("ij,jk", [(2, 3), (3, 5)], 30),
        ("ij,jk->i", [(2, 3), (3, 5)], 6),
        ("ij,ij->ij", [(2, 3), (2, 3)], 0),
        ("i,j->ij", [(2,), (3,)], 0),
        ("ij->i", [(2, 3)], 0),
        ("bnqd,bnkd->bnqk", [(2, 4, 6, 8), (2, 4, 9, 8)], 2 * 4 * 6 * 9 * 8),
        ("...ij,...jk->...ik", [(7, 1, 2, 3), (5, 3, 4)], 7 * 5 * 2 * 3 * 4),
    ],
)
def test_einsum_counts_the_axes_of_a_contraction(equation: str, shapes: list[tuple[int, ...]], expected: int) -> None:
    assert einsum_macs(equation, shapes) == expected


# A record counts products of maps and weights only; these resample a map besides, with four weights an element.
RESAMPLED = {
    "LIA": "4*C*N",
    "ESA": "4*f*N",
    "DAttention": "4*C * ceil(H / stride) * ceil(W / stride)",
}


@pytest.mark.parametrize("name", sorted(MODULES))
@pytest.mark.parametrize(("height", "width"), [(20, 20), (5, 13)])
def test_attention_modules_have_the_formula_of_their_record(name: str, height: int, width: int) -> None:
    case, entry = Case(name), record(name)
    scope = {"C": case.channels, "H": height, "W": width, "N": height * width, **entry.resolve(case.channels, {})}
    expected = entry.macs_count(case.channels, height, width, {})
    assert expected is not None
    assert macs(case.build(), 1, case.channels, height, width) == expected + int(evaluate(RESAMPLED.get(name, "0"), scope))


def test_a_module_called_twice_counts_twice() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    once = macs(layer, 1, 4, 8, 8)
    assert macs(nn.Sequential(layer, nn.ReLU(), layer), 1, 4, 8, 8) == 2 * once == 2 * 4 * 4 * 9 * 64


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: torch.fft.rfft2(x).abs(), "aten::fft_rfft2"),
        (lambda x: torch.cdist(x, x), "aten::cdist"),
        (lambda x: torch.tensordot(x, x, ([3], [3])), "aten::tensordot"),
    ],
)
def test_an_unknown_operator_is_an_error_that_names_it(function: Callable[[Tensor], Tensor], operator: str) -> None:
    with pytest.raises(NasAttnError, match=operator):
        macs(function, 1, 2, 4, 4)


def test_a_custom_function_is_an_error_that_names_it() -> None:
    class Squared(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004
            return x @ x.mT

    with pytest.raises(NasAttnError, match=r"prim::PythonOp\.Squared"):
        macs(Squared.apply, 1, 2, 4, 4)


def test_an_einsum_of_three_factors_is_an_error() -> None:
    with pytest.raises(NasAttnError, match="pair by pair"):
        macs(lambda x: torch.einsum("ij,jk,kl->il", x, x, x), 4, 4)


def test_no_operator_is_both_counted_and_free() -> None:
    contractions = ("conv", "mm", "attention", "einsum", "dot", "bilinear", "bicubic")
    assert not set(cost._FREE) & set(cost._HANDLERS)
    assert len(set(cost._FREE)) == len(cost._FREE)
    assert not [name for name in cost._FREE if any(word in name for word in contractions)]


def test_counting_leaves_the_model_as_it_was() -> None:
    model = detector("yolov10n.yaml").train()
    before = copy.deepcopy(model.state_dict())
    for measure in (gmacs, activation_mib):
        measure(model, torch.rand(1, 3, 64, 64))
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training
    assert all(p.requires_grad for name, p in model.named_parameters() if "dfl" not in name)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_deployed_copy_is_fused_and_drops_what_only_training_uses() -> None:
    model = detector("yolov10n.yaml").train()
    twin = deployed(model)
    assert not twin.training
    assert parameters_m(twin) < 0.9 * parameters_m(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for name, m in twin.named_modules() if "dfl" not in name)


@pytest.mark.parametrize(
    ("function", "maps"),
    [
        (lambda x: x.relu_(), 1),
        (lambda x: x.view(-1).view_as(x).mT, 1),
        (lambda x: x * 2, 2),
        (lambda x: x * 2 + 1, 3),  # the product lives until the sum exists
        (lambda x: ((x * 2 + 1) * 2 + 1) * 2, 3),
        (lambda x: torch.cat([x, x]), 3),
        (lambda x: (lambda skip: (skip + 1) * 2 + skip)(x * 2), 4),
        (lambda x: torch.cat([x, x])[:1] + 1, 4),  # a view keeps the whole of what it shows
    ],
)
def test_activations_are_those_alive_together(function: Callable[[Tensor], Tensor], maps: int) -> None:
    assert activation_mib(Call(function), torch.rand(1, 4, 256, 256)) == maps


def test_weights_and_constants_are_no_activations() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1024, 1024))
            self.constant = torch.zeros(1024, 1024)

        def forward(self, x: Tensor) -> Tensor:
            self.weight.view(-1)
            self.constant.t()
            return x

    assert activation_mib(Weighted(), torch.rand(1, 1, 512, 512)) == 1.0


def test_a_sequence_of_convolutions_needs_its_widest_pair() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 2, 1), nn.Conv2d(2, 64, 1, stride=8))
    image = torch.rand(1, 4, 256, 256)
    # The caller keeps the image: 4 channels are one MiB, then 8 beside 16.
    assert activation_mib(model, image) == 1 + 2 + 4
    assert activation_mib(model, image) == activation_mib(model, image)


def test_activations_of_a_detector_grow_with_the_image_and_repeat_exactly() -> None:
    model = detector("yolo11n.yaml")
    small, large = (activation_mib(model, torch.rand(1, 3, size, size)) for size in (64, 128))
    assert small == activation_mib(model, torch.rand(1, 3, 64, 64))
    assert math.isclose(large / small, 4.0, rel_tol=0.1)
    assert small > 3 * 64 * 64 * 4 / MIB
