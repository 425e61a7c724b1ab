"""Mechanisms that weigh channels: against slow forms, against timm's layers, and what is known to go wrong with each."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from attention_tools import Params, build, convolution, draw, enliven, equals_slow_form, normed, pointwise
from benchmarks.plain_channel import PLAIN
from timm.layers import EfficientChannelAttn, GlobalContext, SEModule
from torch import Tensor, nn
from ultralytics.nn.modules.conv import CBAM as ANOTHER_CBAM
from ultralytics.nn.modules.conv import Conv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from nas_attn.errors import SpaceError
from nas_attn.records import record

NAMES = ("SE", "ECA", "GlobalContext", "SENetV2", "NAM", "SimAM", "CBAM", "CoordAtt")


# --- slow, obvious forms ----------------------------------------------------------------------------------------------------------


def means(x_CHW: Tensor) -> Tensor:
    _, height, width = x_CHW.shape
    return sum(x_CHW[:, y, x] for y, x in itertools.product(range(height), range(width))) / (height * width)


def linear(layer: nn.Conv2d, v_C: Tensor) -> Tensor:
    return pointwise(layer, v_C[:, None, None])[:, 0, 0]


def logistic(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def se_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    weight = logistic(linear(module.layer.fc2, linear(module.layer.fc1, means(x_CHW)).clamp(min=0)))
    return torch.stack([channel * w for channel, w in zip(x_CHW, weight, strict=True)])


def eca_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    taps, mean = module.layer.conv.weight[0, 0], means(x_CHW)
    reach = len(taps) // 2
    out = []
    for c in range(len(mean)):
        neighbours = [tap * mean[c + t - reach] for t, tap in enumerate(taps) if 0 <= c + t - reach < len(mean)]
        out.append(x_CHW[c] * logistic(torch.stack(neighbours).sum()))
    return torch.stack(out)


def global_context_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    cells = list(x_CHW.flatten(1).T)
    key = module.layer.conv_attn.weight[0, :, 0, 0]
    weights = torch.stack([torch.exp(key @ cell) for cell in cells])
    context = sum(w * cell for w, cell in zip(weights / weights.sum(), cells, strict=True))
    network = module.layer.mlp_scale if module.channel_mul else module.layer.mlp_add
    hidden = linear(network.fc1, context)
    centred = hidden - hidden.mean()
    hidden = centred / ((centred**2).mean() + network.norm.eps).sqrt() * network.norm.weight + network.norm.bias
    t = linear(network.fc2, hidden.clamp(min=0))[:, None, None]
    return x_CHW * logistic(t) if module.channel_mul else x_CHW + t


def senetv2_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    first, mean = module.squeeze, means(x_CHW)
    branches = []
    for start in range(0, first.out_channels, 4):  # of max(4, 16 // 32) channels
        rows = slice(start, start + 4)
        branches.append((first.weight[rows, :, 0, 0] @ mean + first.bias[rows]).clamp(min=0))
    scale = logistic(linear(module.excite, torch.cat(branches)))[:, None, None]
    return x_CHW + x_CHW * scale if module.residual else x_CHW * scale


def nam_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    total = sum(abs(float(scale)) for scale in module.norm.weight)
    b = normed(module.norm, x_CHW)
    return torch.stack([x * logistic(abs(float(s)) / total * z) for x, s, z in zip(x_CHW, module.norm.weight, b, strict=True)])


def simam_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    out = torch.empty_like(x_CHW)
    for c, channel in enumerate(x_CHW):
        values = channel.flatten().tolist()
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
        energies = [(v - mean) ** 2 / (4 * (variance + module.e_lambda)) + 0.5 for v in values]
        out[c] = torch.tensor([v / (1 + math.exp(-e)) for v, e in zip(values, energies, strict=True)]).reshape(channel.shape)
    return out


def cbam_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    def network(v_C: Tensor) -> Tensor:
        return linear(module.excite, linear(module.squeeze, v_C).clamp(min=0))

    largest = torch.stack([channel.max() for channel in x_CHW])
    z = x_CHW * logistic(network(means(x_CHW)) + network(largest))[:, None, None]
    pooled = torch.stack([z.max(0).values, z.mean(0)])
    return z * logistic(normed(module.locate.bn, convolution(module.locate.conv, pooled)))


def coord_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    def shared(v_C: Tensor) -> Tensor:
        z = normed(module.squeeze.bn, pointwise(module.squeeze.conv, v_C[:, None, None]))[:, 0, 0]
        return z * (z + 3).clamp(0, 6) / 6

    out = torch.empty_like(x_CHW)
    _, height, width = x_CHW.shape
    for y, x in itertools.product(range(height), range(width)):
        row, column = x_CHW[:, y].mean(1), x_CHW[:, :, x].mean(1)
        a_h, a_w = logistic(linear(module.rows, shared(row))), logistic(linear(module.columns, shared(column)))
        out[:, y, x] = x_CHW[:, y, x] * a_w * a_h
    return out


SLOWLY: dict[str, Any] = {
    "SE": se_slowly,
    "ECA": eca_slowly,
    "GlobalContext": global_context_slowly,
    "SENetV2": senetv2_slowly,
    "NAM": nam_slowly,
    "SimAM": simam_slowly,
    "CBAM": cbam_slowly,
    "CoordAtt": coord_slowly,
}
ORACLE_CASES: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("SE", {}, (5, 7)),
    ("SE", {"r": 2}, (1, 1)),
    ("ECA", {}, (6, 5)),
    ("ECA", {"k_size": 1}, (2, 3)),
    ("ECA", {"k_size": 7}, (1, 9)),
    ("ECA", {"k_size": 35}, (4, 4)),  # more taps than twice the channels
    ("GlobalContext", {}, (7, 5)),
    ("GlobalContext", {"ratio": 0.99}, (1, 1)),
    ("GlobalContext", {"ratio": 3, "channel_mul": True}, (4, 9)),
    ("SENetV2", {}, (5, 6)),
    ("SENetV2", {"cardinality": 3, "residual": False}, (3, 8)),
    ("NAM", {}, (6, 3)),
    ("SimAM", {}, (9, 5)),
    ("SimAM", {"e_lambda": 0.3}, (1, 2)),
    ("SimAM", {}, (1, 1)),
    ("CBAM", {}, (9, 6)),
    ("CBAM", {"r": 1, "k_size": 3}, (1, 7)),
    ("CoordAtt", {}, (3, 8)),
    ("CoordAtt", {"reduction": 1}, (6, 1)),
]


@pytest.mark.parametrize(("name", "params", "size"), ORACLE_CASES)
def test_each_mechanism_equals_its_slow_form(name: str, params: Params, size: tuple[int, int]) -> None:
    equals_slow_form(name, params, size, SLOWLY[name])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_each_mechanism_equals_its_plain_form(name: str) -> None:
    variants = [{"channel_mul": True}] if name == "GlobalContext" else [{"residual": False}] if name == "SENetV2" else []
    for params in [{}, *variants]:
        module, x = enliven(build(name, params, 64)), draw(2, 20, 24, 64)
        torch.testing.assert_close(PLAIN[name](module)(x), module.mechanism(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_half_open_gate_is_x_and_a_part_of_the_branch(name: str) -> None:
    """Most fold the gate into small weights instead of multiplying maps: any gate, and every gradient, must come out the same."""
    variants = [{"channel_mul": True}] if name == "GlobalContext" else [{"residual": False}] if name == "SENetV2" else []
    for params in [{}, *variants]:
        module, twin = (enliven(build(name, params)).double() for _ in range(2))
        for part in (module, twin):
            nn.init.normal_(part.gate_bias, generator=torch.Generator().manual_seed(3))
        x, x_twin = (draw(2, 5, 9).double().requires_grad_() for _ in range(2))
        y, expected = module(x), x_twin + twin.gate_bias.view(1, -1, 1, 1) * twin.branch(x_twin)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(twin.branch(x_twin), twin.mechanism(x_twin) - x_twin)
        for result in (y, expected):
            (result**3).sum().backward()
        torch.testing.assert_close(x.grad, x_twin.grad)
        for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_largest_halves_leave_a_closed_gate_the_identity(name: str) -> None:
    """Sums of such values overflow; an infinity that meets another in the next layer is NaN, and NaN passes a closed gate."""
    module, noise = build(name).half(), torch.Generator().manual_seed(0)
    for p in module.parameters():
        if p is not module.gate_bias:
            p.copy_(torch.where(p > 0, 1, -1) * p.abs().clamp(min=2.0))
    for _ in range(30):
        signs, lonely = torch.randint(0, 2, (2, 1, 32, 1, 1), generator=noise) * 2 - 1
        x = (65504.0 * signs * torch.ones(1, 32, 9, 7)).half()
        x[..., :1, :1] = 65504.0 * lonely  # a maximum that has nothing to do with the mean
        assert torch.equal(module(x), x)


# --- counts -----------------------------------------------------------------------------------------------------------------------

# Parameters of the bare mechanisms at 128 channels as their references have them.
REFERENCE_PARAMETERS = [
    ("SE", {"r": 16}, 2 * 128**2 // 16 + 128 + 128 // 16),
    ("ECA", {}, 5),
    ("GlobalContext", {}, 2_329),
    ("SENetV2", {"reduction": 32}, 4_240),
    ("NAM", {}, 256),
    ("SimAM", {}, 0),
    ("CBAM", {"r": 16, "k_size": 7}, 2_284),
    ("CoordAtt", {"reduction": 32}, 3_352),
]


@pytest.mark.parametrize(("name", "params", "count"), REFERENCE_PARAMETERS)
def test_parameters_match_the_references(name: str, params: Params, count: int) -> None:
    assert record(name).parameters(128, params) == count + 128
    assert sum(p.numel() for p in build(name, params, 128).parameters()) == count + 128


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("SE", 2 * 128 * 8),
        ("ECA", 128 * 5),
        ("GlobalContext", 2 * 128 * 40 * 48 + 2 * 128 * 8),
        ("SENetV2", 2 * 4 * 128 * 4),
        ("NAM", 0),
        ("SimAM", 0),
        ("CBAM", 2 * (2 * 128 * 8) + 2 * 49 * 40 * 48),
        ("CoordAtt", 2 * (40 + 48) * 128 * 8),
    ],
)
def test_macs_match_the_references(name: str, macs: int) -> None:
    assert record(name).macs_count(128, 40, 48, {}) == macs


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("SE", {"r": 0}),
        ("ECA", {"k_size": 4}),
        ("ECA", {"k_size": -1}),
        ("GlobalContext", {"ratio": 1}),
        ("SENetV2", {"reduction": 0}),
        ("SENetV2", {"cardinality": 0}),
        ("SimAM", {"e_lambda": 0.0}),
        ("CBAM", {"r": 0}),
        ("CBAM", {"k_size": 4}),
        ("CoordAtt", {"reduction": 0}),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, params: Params) -> None:
    (problem,) = record(name).violations(64, params)
    with pytest.raises(SpaceError) as caught:
        build(name, params, 64)
    assert str(caught.value) == problem


# --- what is known to go wrong, mechanism by mechanism ----------------------------------------------------------------------------


def fused(module: nn.Module) -> nn.Module:
    """A copy with its convolutions fused as `model.fuse()` of Ultralytics does it."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        if isinstance(part, Conv):
            part.conv = fuse_conv_and_bn(part.conv, part.bn)
            delattr(part, "bn")
            part.forward = part.forward_fuse
    return twin


@pytest.mark.parametrize(("name", "norms"), [("CBAM", 0), ("CoordAtt", 0), ("NAM", 1)])
@torch.no_grad()
def test_fusing_folds_norms_behind_convolutions_and_no_other(name: str, norms: int) -> None:
    module, x = enliven(build(name, gate=0.7)), draw(2, 13, 9)
    twin = fused(module)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in twin.modules()) == norms
    torch.testing.assert_close(twin(x), module(x), rtol=1e-5, atol=1e-5)


def test_se_has_the_width_of_the_paper() -> None:
    """timm rounds to multiples of 8, so that its default has twice the paper's hidden channels at 64."""
    assert SEModule(64).fc1.out_channels == 8
    for channels, r in itertools.product((64, 128, 200, 1024), (4, 8, 16)):
        assert build("SE", {"r": r}, channels).layer.fc1.out_channels == channels // r
    assert build("SE", {"r": 16}, 16).layer.fc1.out_channels == 4


@torch.no_grad()
def test_eca_follows_the_papers_rule_and_a_given_size() -> None:
    """timm ignores `kernel_size` where it is given the channels."""
    assert EfficientChannelAttn(64, kernel_size=7).conv.kernel_size == (3,)
    assert build("ECA", {"k_size": 7}, 64).layer.conv.kernel_size == (7,)
    for channels in (4, 16, 31, 32, 48, 64, 127, 128, 200, 256, 511, 512, 1024, 2047, 2048, 4096):
        assert record("ECA").resolve(channels, {})["k"] == EfficientChannelAttn(channels).conv.kernel_size[0]
    assert [record("ECA").resolve(c, {})["k"] for c in (64, 128, 256, 512, 2048)] == [3, 5, 5, 5, 7]
    assert record("ECA").resolve(32767, {})["k"] == 7
    assert record("ECA").resolve(32768, {})["k"] == 9


@torch.no_grad()
def test_eca_sees_neighbouring_channels_only() -> None:
    module, x = build("ECA", {"k_size": 5}), draw(1, 6, 6)
    changed = x.clone()
    changed[:, 0] += 1.0
    differ = (module.weight(changed) != module.weight(x)).flatten()
    assert differ.nonzero().flatten().tolist() == [0, 1, 2]  # not the last ones, as with circular padding


@torch.no_grad()
def test_global_context_adds_one_vector_everywhere() -> None:
    """timm multiplies by default; a last layer of zeros behind a closed gate would never learn."""
    module, x = build("GlobalContext"), draw(2, 7, 5)
    added = module.mechanism(x) - x
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added))
    assert module.layer.mlp_add.fc2.weight.abs().min() > 0
    assert GlobalContext(32).mlp_add is None
    assert GlobalContext(32, fuse_add=True, fuse_scale=False).mlp_add.fc2.weight.abs().max() == 0


@torch.no_grad()
def test_global_context_does_not_mind_the_order_of_positions() -> None:
    module, x = build("GlobalContext"), draw(1, 5, 6)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module.transform(x.flatten(2)[..., order].reshape(x.shape)), module.transform(x))


@torch.no_grad()
def test_global_context_weighs_by_softmax_over_positions() -> None:
    """With a loud key the mean becomes the one position that it likes most; without one it is the plain mean."""
    module, x = build("GlobalContext"), draw(2, 6, 7)
    nn.init.zeros_(module.layer.conv_attn.weight)
    torch.testing.assert_close(module.context(x), x.mean((2, 3), keepdim=True))
    module.layer.conv_attn.weight[:, 0] = 1e4
    best = x[:, 0].flatten(1).argmax(1)
    torch.testing.assert_close(module.context(x).flatten(1), torch.stack([x[b].flatten(1)[:, best[b]] for b in range(2)]))


@torch.no_grad()
def test_senetv2_adds_its_input() -> None:
    """The reference returns x + x * s, most copies x * s."""
    module, bare, x = build("SENetV2"), build("SENetV2", {"residual": False}), draw(2, 5, 5).abs()
    assert (module.mechanism(x) > x).all()
    assert (bare.mechanism(x) < x).all()
    torch.testing.assert_close(module.mechanism(x), x + bare.mechanism(x))


def test_senetv2_branches_have_at_least_four_channels() -> None:
    assert build("SENetV2", {"reduction": 32}, 64).squeeze.out_channels == 4 * 4
    assert build("SENetV2", {"reduction": 8}, 64).squeeze.out_channels == 4 * 8


def test_nam_gets_no_gradient_through_its_shares() -> None:
    """Its scales learn through the norm alone, as in the reference."""
    module, x = enliven(build("NAM")), draw(2, 6, 5)
    module.mechanism(x).sum().backward()
    scale = module.norm.weight.detach().clone().requires_grad_()
    standard = (x - module.norm.running_mean[:, None, None]) / (module.norm.running_var[:, None, None] + module.norm.eps).sqrt()
    z = standard * scale[:, None, None] + module.norm.bias.detach()[:, None, None]
    (x * torch.sigmoid(z * (scale / scale.sum()).detach()[:, None, None])).sum().backward()
    torch.testing.assert_close(module.norm.weight.grad, scale.grad, rtol=1e-4, atol=1e-5)
    assert not module.shares().requires_grad


@torch.no_grad()
def test_nam_uses_the_batchs_statistics_in_training() -> None:
    module, x = build("NAM", channels=4).train(), draw(3, 6, 5, 4) * 3 + 1
    standard = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, correction=0) + module.norm.eps).sqrt()
    torch.testing.assert_close(module.mechanism(x), x * torch.sigmoid(standard / 4), rtol=1e-4, atol=1e-5)
    assert module.mechanism(draw(1, 1, 1, 4)).isfinite().all()  # one value a channel


@torch.no_grad()
def test_nam_shares_are_of_magnitudes_and_survive_zeros() -> None:
    module = build("NAM", channels=4)
    module.norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0, 1.0]))
    torch.testing.assert_close(module.shares(), torch.tensor([0.25, 0.5, 0.0, 0.25]))
    assert module.penalty() == 4.0
    nn.init.zeros_(module.norm.weight)
    for dtype in (torch.float32, torch.float16):
        assert module.to(dtype).mechanism(draw(1, 3, 3, 4).to(dtype)).isfinite().all()


@torch.no_grad()
def test_simam_takes_a_single_cell_and_constant_channels() -> None:
    """n = H * W - 1 is zero on a single cell, where the reference gives NaN."""
    module = build("SimAM")
    for x in (draw(2, 1, 1), torch.full((1, 32, 5, 7), 3.0)):
        torch.testing.assert_close(module.mechanism(x), x / (1 + math.exp(-0.5)))


@torch.no_grad()
def test_simam_does_not_overflow_in_half_precision() -> None:
    """Squares of 300 and sums over 6400 cells leave the range of half precision."""
    module, x = build("SimAM"), (draw(1, 80, 80) * 300).half()
    torch.testing.assert_close(module.mechanism(x).float(), module.mechanism(x.float()), rtol=2e-3, atol=0.0)


@torch.no_grad()
def test_simam_weighs_by_standardized_distance() -> None:
    """The weights do not change with the scale and the level of a map, and grow with the distance from its mean."""
    module, x = build("SimAM", {"e_lambda": 1e-9}), draw(1, 8, 9)
    weight = module.weight(x)
    torch.testing.assert_close(module.weight(5 * x - 2), weight, rtol=1e-4, atol=1e-5)
    distance = (x - x.mean((2, 3), keepdim=True)).abs().flatten(2)
    assert torch.equal(weight.flatten(2).argsort(2), distance.argsort(2))
    assert weight.min() >= 1 / (1 + math.exp(-0.5))


@torch.no_grad()
def test_cbam_is_the_papers_and_not_ultralytics() -> None:
    """Ultralytics' layer of that name has one C x C layer on means and no norm: 16,610 parameters at 128 channels."""
    assert sum(p.numel() for p in ANOTHER_CBAM(128).parameters()) == 16_610
    module, x = build("CBAM"), draw(1, 6, 6)
    peaked = x.clone()
    peaked[..., 0, 0] += 5.0
    peaked[..., 0, 1] -= 5.0  # the means stay
    assert (module.channel_weight(peaked) - module.channel_weight(x)).abs().min() > 1e-6
    assert isinstance(module.locate.bn, nn.BatchNorm2d)


@torch.no_grad()
def test_cbam_looks_at_positions_after_channels() -> None:
    module, x = enliven(build("CBAM")), draw(1, 9, 8)
    module.excite.bias.copy_(torch.where(torch.arange(32) == 0, 50.0, -50.0))  # one channel is left
    z = torch.where(torch.arange(32)[:, None, None] == 0, x, 0.0)
    pooled = torch.cat([z.amax(1, keepdim=True), z.mean(1, keepdim=True)], 1)
    torch.testing.assert_close(module.mechanism(x), z * module.locate(pooled).sigmoid(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_coordinate_attention_follows_rows_and_columns() -> None:
    """Shuffled rows shuffle the weights of rows and leave those of columns; a map and its transpose do not share theirs."""
    module, x = enliven(build("CoordAtt")), draw(1, 6, 9)
    a_h, a_w = module.weights(x)
    assert (a_h.shape, a_w.shape) == ((1, 32, 6, 1), (1, 32, 1, 9))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled_h, shuffled_w = module.weights(x[:, :, order])
    torch.testing.assert_close(shuffled_h, a_h[:, :, order])
    torch.testing.assert_close(shuffled_w, a_w)
    assert a_h.std(2).min() > 1e-6
    assert a_w.std(3).min() > 1e-6
    transposed_h, _ = module.weights(x.mT)
    assert not torch.allclose(transposed_h.mT, a_w, atol=1e-3)


def test_coordinate_attention_has_at_least_eight_hidden_channels() -> None:
    assert build("CoordAtt", {"reduction": 32}, 64).rows.in_channels == 8
    assert build("CoordAtt", {"reduction": 32}, 512).rows.in_channels == 16


@torch.no_grad()
def test_coordinate_attention_pools_rows_over_columns() -> None:
    """Each row's weight depends on its own mean only."""
    module, x = build("CoordAtt"), draw(1, 5, 4)
    changed = x.clone()
    changed[:, :, 2] += 1.0
    differ = (module.weights(changed)[0] - module.weights(x)[0]).abs().amax((0, 1, 3)) > 1e-6
    assert differ.tolist() == [False, False, True, False, False]
