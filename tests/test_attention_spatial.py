"""Mechanisms that weigh positions, and LKA: against slow forms, against plain ones, and what is known to go wrong with each."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_tools import Params, bilinear, build, convolution, draw, enliven, equals_slow_form, normed, pointwise
from benchmarks.plain_spatial import PLAIN
from torch import Tensor, nn
from torch.nn import functional
from ultralytics.nn.modules.conv import Conv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from nas_attn.attention.ema import seen_by_taps, summed_taps
from nas_attn.attention.esa import extended
from nas_attn.attention.lka import LKA
from nas_attn.attention.lska import LSKA
from nas_attn.attention.mlca import averages
from nas_attn.errors import SpaceError
from nas_attn.records import record

NAMES = ("ESA", "MLCA", "EMA", "ShuffleAttention", "TripletAttention", "GAM", "ContextAggregation", "LKA")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("ESA", {"f": 0.25, "rfa": True}),
    ("MLCA", {"local_size": 7, "local_weight": 0.25}),
    ("EMA", {"factor": 1}),
    ("ShuffleAttention", {"groups": 1}),
    ("TripletAttention", {"k_size": 3, "no_spatial": True}),
    ("GAM", {"group": True}),
    ("GAM", {"rate": 2, "channel_sigmoid": False}),
    ("ContextAggregation", {"reduction": 8}),
    ("LKA", {"use_proj": True}),
]
each_variant = pytest.mark.parametrize(("name", "params"), VARIANTS, ids=[f"{name}-{params}" for name, params in VARIANTS])


# --- slow, obvious forms ----------------------------------------------------------------------------------------------------------


def logistic(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def esa_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    _, height, width = x_CHW.shape
    z = pointwise(module.squeeze, x_CHW)
    rows = [min(y, height - 1) for y in range(max(height, 15))]
    columns = [min(x, width - 1) for x in range(max(width, 15))]
    shrunk = convolution(module.shrink, torch.stack([torch.stack([z[:, y, x] for x in columns], 1) for y in rows], 1))
    tops, lefts = range(0, shrunk.shape[1] - 6, 3), range(0, shrunk.shape[2] - 6, 3)
    pooled = torch.stack(
        [torch.stack([shrunk[:, top : top + 7, left : left + 7].amax((1, 2)) for left in lefts], 1) for top in tops],
        1,
    )
    for number, layer in enumerate(module.refine):
        pooled = convolution(layer, pooled if number == 0 else pooled.clamp(min=0))
    both = bilinear(pooled, height, width) + pointwise(module.shortcut, z)
    return x_CHW * logistic(pointwise(module.expand, both))


def bounds(cell: int, cells: int, size: int) -> slice:
    """The part of an axis of `size` that adaptive pooling to `cells` averages for one of them."""
    return slice(math.floor(cell * size / cells), math.ceil((cell + 1) * size / cells))


def along(kernel: Tensor, line: list[Tensor]) -> list[Tensor]:
    """A kernel of odd length over a list of numbers, with zeros beyond its ends."""
    reach, taps = len(kernel) // 2, list(kernel)
    return [sum(tap * line[k + t - reach] for t, tap in enumerate(taps) if 0 <= k + t - reach < len(line)) for k in range(len(line))]  # type: ignore[misc]


def mlca_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    C, height, width = x_CHW.shape
    size = module.local_size
    cells = list(itertools.product(range(size), range(size)))
    pooled = {(u, v): x_CHW[:, bounds(u, size, height), bounds(v, size, width)].mean((1, 2)) for u, v in cells}
    overall = sum(pooled.values()) / len(cells)
    line = along(module.of_cells.weight[0, 0], [value for cell in cells for value in pooled[cell]])
    w_map = logistic(torch.stack(along(module.of_map.weight[0, 0], list(overall))))  # type: ignore[arg-type]
    w_cells = torch.stack(line).reshape(size, size, C).permute(2, 0, 1)
    weight = (1 - module.local_weight) * w_map[:, None, None] + module.local_weight * logistic(w_cells)
    out = torch.empty_like(x_CHW)
    for y, x in itertools.product(range(height), range(width)):
        out[:, y, x] = x_CHW[:, y, x] * weight[:, bounds(y, height, size), bounds(x, width, size)].mean((1, 2))
    return out


def own_norm(z: Tensor, eps: float) -> Tensor:
    """One channel, normalized by its own mean and variance."""
    return (z - z.mean()) / ((z - z.mean()) ** 2).mean().add(eps).sqrt()


def ema_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    _, height, width = x_CHW.shape
    out = []
    for g in x_CHW.split(module.width):
        h = logistic(pointwise(module.lines, g.mean(2)[:, :, None]))
        w = logistic(pointwise(module.lines, g.mean(1)[:, None, :]))
        x1 = torch.stack([own_norm(channel, module.norm.eps) for channel in g * h * w])
        x1 = x1 * module.norm.weight[:, None, None] + module.norm.bias[:, None, None]
        x2 = convolution(module.neighbourhood, g)
        s1, s2 = (part.mean((1, 2)).exp() / part.mean((1, 2)).exp().sum() for part in (x1, x2))
        weight = torch.empty(height, width)
        for y, x in itertools.product(range(height), range(width)):
            weight[y, x] = s1 @ x2[:, y, x] + s2 @ x1[:, y, x]
        out.append(g * logistic(weight))
    return torch.cat(out)


def shuffle_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    C, c = len(x_CHW), module.width
    weighed = []
    for number, channel in enumerate(x_CHW):
        half, k = divmod(number % (2 * c), c)
        if half == 0:
            z = module.channel_weight[k] * channel.mean() + module.channel_bias[k]
        else:
            normal = own_norm(channel, module.norm.eps) * module.norm.weight[k] + module.norm.bias[k]
            z = module.spatial_weight[k] * normal + module.spatial_bias[k]
        weighed.append(channel * logistic(z))
    return torch.stack([weighed[position // 2 + (position % 2) * (C // 2)] for position in range(C)])


def triplet_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    def plane(layer: Any, x_KAB: Tensor) -> Tensor:
        """x times its weights in the plane of the last two axes."""
        squeezed = torch.stack([x_KAB.amax(0), x_KAB.sum(0) / len(x_KAB)])
        return x_KAB * logistic(normed(layer.bn, convolution(layer.conv, squeezed)))

    parts = [
        plane(module.channels_columns, x_CHW.permute(1, 0, 2)).permute(1, 0, 2),
        plane(module.rows_channels, x_CHW.permute(2, 1, 0)).permute(2, 1, 0),
    ]
    if module.rows_columns is not None:
        parts.append(plane(module.rows_columns, x_CHW))
    return sum(parts) / len(parts)  # type: ignore[return-value]


def gam_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    z = pointwise(module.expand, pointwise(module.squeeze, x_CHW).clamp(min=0))
    c = x_CHW * (logistic(z) if module.channel_sigmoid else z)
    hidden = normed(module.gather.bn, convolution(module.gather.conv, c)).clamp(min=0)
    each = len(hidden) // module.groups
    dealt = torch.stack([hidden[group * each + k] for k in range(each) for group in range(module.groups)])
    return c * logistic(normed(module.spread.bn, convolution(module.spread.conv, dealt)))


def context_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    a, k = pointwise(module.maps, x_CHW)
    share, values = k.exp() / k.exp().sum(), pointwise(module.value, x_CHW)
    positions = itertools.product(range(k.shape[0]), range(k.shape[1]))
    context = sum(share[y, x] * values[:, y, x] for y, x in positions)
    return x_CHW + pointwise(module.project, context[:, None, None]) * logistic(a)  # type: ignore[index]


def lka_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    def core(z: Tensor) -> Tensor:
        return z * pointwise(module.mix, convolution(module.far, convolution(module.near, z)))

    if module.project_in is None:
        return core(x_CHW)
    hidden = pointwise(module.project_in, x_CHW)
    return x_CHW + pointwise(module.project_out, core(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))))


SLOWLY: dict[str, Any] = {
    "ESA": esa_slowly,
    "MLCA": mlca_slowly,
    "EMA": ema_slowly,
    "ShuffleAttention": shuffle_slowly,
    "TripletAttention": triplet_slowly,
    "GAM": gam_slowly,
    "ContextAggregation": context_slowly,
    "LKA": lka_slowly,
}
ORACLE_CASES: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("ESA", {"f": 4}, (23, 29)),
    ("ESA", {"f": 4}, (14, 22)),
    ("ESA", {"f": 3, "rfa": True}, (28, 5)),
    ("ESA", {"f": 3, "rfa": True}, (1, 1)),
    ("MLCA", {}, (10, 15)),
    ("MLCA", {}, (7, 11)),
    ("MLCA", {"local_size": 3, "local_weight": 0.25}, (9, 7)),
    ("MLCA", {"local_size": 7, "local_weight": 0.75}, (3, 1)),
    ("EMA", {}, (6, 9)),
    ("EMA", {"factor": 4}, (7, 5)),
    ("EMA", {"factor": 1}, (2, 3)),
    ("EMA", {"factor": 16}, (5, 1)),
    ("EMA", {"factor": 2}, (1, 6)),
    ("ShuffleAttention", {}, (5, 7)),
    ("ShuffleAttention", {"groups": 2}, (3, 8)),
    ("ShuffleAttention", {"groups": 1}, (2, 5)),
    ("TripletAttention", {}, (9, 6)),
    ("TripletAttention", {"k_size": 3}, (1, 7)),
    ("TripletAttention", {"k_size": 5, "no_spatial": True}, (8, 3)),
    ("GAM", {}, (6, 9)),
    ("GAM", {"group": True}, (5, 4)),
    ("GAM", {"rate": 2, "group": True, "channel_sigmoid": False}, (3, 8)),
    ("GAM", {"rate": 5}, (1, 9)),
    ("ContextAggregation", {}, (5, 7)),
    ("ContextAggregation", {"reduction": 3}, (1, 8)),
    ("ContextAggregation", {"reduction": 99}, (4, 3)),
    ("LKA", {}, (8, 13)),
    ("LKA", {"use_proj": True}, (5, 6)),
]


@pytest.mark.parametrize(("name", "params", "size"), ORACLE_CASES)
def test_each_mechanism_equals_its_slow_form(name: str, params: Params, size: tuple[int, int]) -> None:
    equals_slow_form(name, params, size, SLOWLY[name])


@each_variant
@torch.no_grad()
def test_each_mechanism_equals_its_plain_form(name: str, params: Params) -> None:
    module = enliven(build(name, params, 64))
    for height, width in [(20, 25), (21, 17)]:
        x = draw(2, height, width, 64)
        torch.testing.assert_close(PLAIN[name](module)(x), module.mechanism(x), rtol=1e-5, atol=1e-5)


@each_variant
def test_a_half_open_gate_is_x_and_a_part_of_the_branch(name: str, params: Params) -> None:
    """Most fold the gate into small weights or into one pass: any gate, and every gradient, must come out the same."""
    for height, width in [(5, 9), (10, 5)]:
        module, twin = (enliven(build(name, params)).double() for _ in range(2))
        for part in (module, twin):
            nn.init.normal_(part.gate_bias, generator=torch.Generator().manual_seed(3))
        x, x_twin = (draw(2, height, width).double().requires_grad_() for _ in range(2))
        y, expected = module(x), x_twin + twin.gate_bias.view(1, -1, 1, 1) * twin.branch(x_twin)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(twin.branch(x_twin), twin.mechanism(x_twin) - x_twin)
        for result in (y, expected):
            (result**3).sum().backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(x.grad, x_twin.grad)
        for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)


@each_variant
def test_gradients_equal_those_of_the_plain_form(name: str, params: Params) -> None:
    """Equalities that save work must not hide a parameter from the loss."""
    module, twin = (enliven(build(name, params)).double() for _ in range(2))
    x, x_twin = (draw(2, 15, 20).double().requires_grad_() for _ in range(2))
    for result in (module.mechanism(x), PLAIN[name](twin)(x_twin)):
        (result**3).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x.grad, x_twin.grad, rtol=1e-6, atol=1e-6)
    for (key, ours), theirs in zip(module.named_parameters(), twin.parameters(), strict=True):
        if key != "gate_bias":
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)


@each_variant
@torch.no_grad()
def test_the_largest_halves_leave_a_closed_gate_the_identity(name: str, params: Params) -> None:
    """Sums of such values overflow; an infinity that meets another in the next layer is NaN, and NaN passes a closed gate."""
    module = build(name, params).half()
    for key, p in module.named_parameters():
        if key != "gate_bias":
            p.copy_(torch.where(p == 0, p, p.sign() * p.abs().clamp(min=0.5)))
    for sign in (1.0, -1.0):
        x = (torch.full((1, 32, 9, 7), 65504.0) * sign).half()
        x[:, ::3] *= -1
        assert torch.equal(module(x), x)
        x[..., 0, 0] = 1.0
        assert torch.equal(module(x), x)


# --- counts -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "count"),
    [
        ("ESA", {"f": 16}, 9_152),
        ("ESA", {"f": 0.25, "rfa": True}, 46_400),
        ("MLCA", {}, 10),
        ("EMA", {"factor": 8}, 2_624),
        ("ShuffleAttention", {"groups": 8}, 48),
        ("TripletAttention", {"k_size": 7}, 300),
        ("GAM", {"rate": 4}, 410_240),
        ("ContextAggregation", {"reduction": 1}, 33_282),
        ("LKA", {}, 128**2 + 77 * 128),
        ("LKA", {"use_proj": True}, 3 * 128**2 + 79 * 128),
    ],
)
def test_parameters_match_the_references(name: str, params: Params, count: int) -> None:
    assert record(name).parameters(128, params) == count + 128
    assert sum(p.numel() for p in build(name, params, 128).parameters()) == count + 128


@pytest.mark.parametrize(
    ("name", "params", "saved", "mmacs", "digits"),
    [
        ("ESA", {"f": 16}, 0, 9.432, 3),
        ("GAM", {"rate": 4}, 0, 786.4, 1),
        # Equal forms save these: the values of all positions but one, summed up afterwards;
        ("ContextAggregation", {"reduction": 1}, 1920 * 128 * 128 - 128 * 128 + 128 * 1920 - 128 * 1920, 32.211, 3),
        # and fifteen of sixteen outputs of a 3 x 3 kernel, as well as one of the two products of a softmax and a map.
        ("EMA", {"factor": 8}, 1920 * (9 * 128 * 15 + 128) - 9 * 16 * (128 + 16) - 16, 36.061, 3),
    ],
)
def test_macs_match_the_references(name: str, params: Params, saved: int, mmacs: float, digits: int) -> None:
    count = record(name).macs_count(128, 40, 48, params)
    assert count is not None
    assert round((count + saved) / 1e6, digits) == mmacs


@pytest.mark.parametrize(
    ("name", "channels", "params"),
    [
        ("ESA", 64, {"f": 0}),
        ("MLCA", 64, {"local_size": 0}),
        ("MLCA", 64, {"local_weight": 1.0}),
        ("MLCA", 64, {"gamma": 0}),
        ("MLCA", 64, {"b": -1}),
        ("EMA", 40, {"factor": 32}),
        ("EMA", 64, {"factor": 0}),
        ("ShuffleAttention", 64, {"groups": 64}),
        ("ShuffleAttention", 64, {"groups": 0}),
        ("TripletAttention", 64, {"k_size": 4}),
        ("TripletAttention", 64, {"k_size": -1}),
        ("GAM", 64, {"rate": 0}),
        ("GAM", 64, {"rate": 16, "group": True}),
        ("ContextAggregation", 64, {"reduction": 0}),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, channels: int, params: Params) -> None:
    (problem,) = record(name).violations(channels, params)
    with pytest.raises(SpaceError) as caught:
        build(name, params, channels)
    assert str(caught.value) == problem


def test_lka_is_left_out_on_maps_that_its_kernel_passes_on_both_sides() -> None:
    assert record("LKA").violations(64, {}, (12, 40)) == []
    assert record("LKA").violations(64, {}, (11, 40)) != []


# --- what is known to go wrong, mechanism by mechanism ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TripletAttention", "GAM"])
@torch.no_grad()
def test_fusing_folds_every_norm(name: str) -> None:
    module, x = enliven(build(name, gate=0.7)), draw(2, 13, 9)
    twin = copy.deepcopy(module)
    for part in twin.modules():
        if isinstance(part, Conv):
            part.conv = fuse_conv_and_bn(part.conv, part.bn)
            delattr(part, "bn")
            part.forward = part.forward_fuse
    assert not any(isinstance(part, nn.BatchNorm2d) for part in twin.modules())
    torch.testing.assert_close(twin(x), module(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_esa_takes_maps_below_fifteen_and_leaves_others_as_they_are() -> None:
    """The reference pools nothing out of a map of 14."""
    large = draw(1, 15, 40, 4)
    assert extended(large) is large
    small = draw(1, 14, 3, 4)
    assert extended(small).shape == (1, 4, 15, 15)
    assert torch.equal(extended(small)[..., :14, :3], small)
    assert torch.equal(extended(small)[..., 14, :], extended(small)[..., 13, :])
    module = build("ESA", gate=1.0)
    for height, width in itertools.product((1, 2, 14, 15, 16), (1, 3, 14, 15)):
        assert module(draw(1, height, width)).isfinite().all()


@torch.no_grad()
def test_esa_with_a_last_layer_of_zeros_halves() -> None:
    module, x = build("ESA"), draw(1, 17, 9)
    nn.init.zeros_(module.expand.weight)
    nn.init.zeros_(module.expand.bias)
    torch.testing.assert_close(module.mechanism(x), x / 2)


@torch.no_grad()
def test_mlca_pools_and_unpools_as_adaptive_pooling_does_at_every_size() -> None:
    """Nearest neighbours are another mechanism where the cells do not divide the map; so is a mean of x for the mean of the cells."""
    for size, side in itertools.product((3, 5, 7), range(1, 25)):
        x, cells = draw(1, side, 25 - side, 4), draw(1, size, size, 4)
        rows, columns = averages(size, side, x), averages(size, 25 - side, x)
        torch.testing.assert_close(rows @ x @ columns.T, functional.adaptive_avg_pool2d(x, size))
        rows, columns = averages(side, size, x), averages(25 - side, size, x)
        torch.testing.assert_close(rows @ cells @ columns.T, functional.adaptive_avg_pool2d(cells, (side, 25 - side)))
        module = build("MLCA", {"local_size": size}, 4)
        torch.testing.assert_close(module.pooled(x), functional.adaptive_avg_pool2d(x, size))
        aligned, weight = module.aligned(x, cells)
        expected = x * functional.adaptive_avg_pool2d(cells, (side, 25 - side))
        torch.testing.assert_close((aligned * weight).reshape(x.shape), expected)
    nearest = functional.interpolate(cells, size=(21, 13))
    assert (averages(21, 7, x) @ cells @ averages(13, 7, x).T - nearest).abs().max() > 0.1


@torch.no_grad()
def test_mlca_never_swaps_channels_with_images() -> None:
    """Older copies transpose the batch and the channels of the whole map's weights, which a batch of C images would not even notice."""
    module, x = build("MLCA", channels=4), draw(4, 10, 10, 4)
    alone = torch.cat([module.weight(image[None]) for image in x])
    torch.testing.assert_close(module.weight(x), alone)


@torch.no_grad()
def test_mlca_lays_cells_end_to_end_with_their_channels_together() -> None:
    """The last channel of a cell looks at the first of the next one; channels of a cell's other neighbours are not seen."""
    module = build("MLCA", {"local_size": 3, "local_weight": 0.5}, 16)
    nn.init.ones_(module.of_cells.weight)
    nn.init.zeros_(module.of_map.weight)
    x = torch.zeros(1, 16, 3, 3)
    x[:, 15, 0, 2] = 1.0
    rest = (module.weight(torch.zeros_like(x)) != module.weight(x)).nonzero()[:, 1:].tolist()
    assert sorted(rest) == [[0, 1, 0], [14, 0, 2], [15, 0, 2]]


def test_mlca_follows_the_rule_for_its_kernels() -> None:
    for gamma, b, channels in itertools.product((1, 2, 3), (0, 1, 2), (1, 4, 7, 8, 16, 64, 100, 127, 128, 512, 1024, 2048)):
        t = int(abs((math.log2(channels) + b) / gamma))
        assert record("MLCA").resolve(channels, {"gamma": gamma, "b": b})["k_size"] == (t if t % 2 else t + 1)
    assert [record("MLCA").resolve(channels, {})["k_size"] for channels in (64, 128, 256, 1024)] == [3, 5, 5, 5]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 1), (2, 2), (6, 9)])
@torch.no_grad()
def test_ema_knows_the_means_of_both_branches_without_building_them(height: int, width: int) -> None:
    module, x = enliven(build("EMA", {"factor": 1}, 6)).double(), draw(2, height, width, 6).double() + 3
    means = module.crossed(x, x.mean(3), x.mean(2)).mean((2, 3))
    torch.testing.assert_close(means, module.norm.bias.expand_as(means))
    layer = module.neighbourhood
    taps = seen_by_taps(x, x.mean(2))
    torch.testing.assert_close(torch.einsum("oikl,bikl->bo", layer.weight, taps) + layer.bias, layer(x).mean((2, 3)))
    maps = torch.einsum("ikl,bihw->bklhw", layer.weight[0], x)
    torch.testing.assert_close(summed_taps(maps) + layer.bias[0], layer(x)[:, 0])


@torch.no_grad()
def test_ema_weighs_all_channels_of_a_group_alike() -> None:
    module, x = enliven(build("EMA", {"factor": 4})), draw(2, 7, 5)
    ratio = (module.mechanism(x) / x).reshape(2, 4, 8, 7, 5)
    torch.testing.assert_close(ratio, ratio[:, :, :1].expand_as(ratio), rtol=1e-4, atol=1e-5)
    assert (ratio[:, 0] - ratio[:, 1]).abs().max() > 1e-3


def test_ema_refuses_what_the_reference_fails_on_later() -> None:
    """40 channels in 32 groups pass the reference's own assertion and fail in its first reshape."""
    assert record("EMA").violations(40, {"factor": 32}) != []
    assert record("EMA").violations(64, {"factor": 32}) == []


def test_shuffle_attention_refuses_more_groups_than_halves() -> None:
    """The reference's 64 groups divide by zero at 64 channels."""
    assert record("ShuffleAttention").violations(64, {"groups": 64}) != []
    assert record("ShuffleAttention").violations(64, {"groups": 32}) == []


@torch.no_grad()
def test_shuffle_attention_deals_both_halves_out_in_turn() -> None:
    module = build("ShuffleAttention", {"groups": 4}, 16)
    for parameter in (module.channel_weight, module.spatial_weight, module.channel_bias, module.spatial_bias):
        nn.init.zeros_(parameter)
    x = torch.arange(16.0).view(1, 16, 1, 1).expand(1, 16, 3, 2)
    assert (2 * module.mechanism(x))[0, :, 0, 0].tolist() == [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]


def test_shuffle_attention_lets_its_norm_learn_from_the_start() -> None:
    """Behind a spatial weight of zero, as published, the norm would wait for another step."""
    module = build("ShuffleAttention")
    module.mechanism(draw(2, 6, 6)).square().sum().backward()
    assert module.norm.weight.grad.abs().min() > 0
    assert module.norm.bias.grad.abs().min() > 0


@torch.no_grad()
def test_triplet_swaps_its_output_with_rows_and_columns() -> None:
    """Each plane has its own kernel, and knows which of its axes is which."""
    module, x = enliven(build("TripletAttention")), draw(2, 9, 6)
    twin = copy.deepcopy(module)
    twin.channels_columns, twin.rows_channels = copy.deepcopy(module.rows_channels), copy.deepcopy(module.channels_columns)
    for layer in (twin.channels_columns, twin.rows_channels, twin.rows_columns):
        layer.conv.weight.copy_(layer.conv.weight.transpose(2, 3).clone())
    expected = module.mechanism(x)
    torch.testing.assert_close(twin.mechanism(x.transpose(2, 3)).transpose(2, 3), expected, rtol=1e-5, atol=1e-5)
    assert (module.mechanism(x.transpose(2, 3)).transpose(2, 3) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_triplet_puts_the_maximum_before_the_mean() -> None:
    module, x = build("TripletAttention"), draw(1, 5, 4).abs() + 1
    for layer in (module.channels_columns, module.rows_channels, module.rows_columns):
        layer.conv.weight[:, 1].zero_()
    for place, same in ((x.argmin(1, keepdim=True), True), (x.argmax(1, keepdim=True), False)):
        halved = x.scatter(1, place, x.gather(1, place) / 2)  # always another mean, and another maximum where that was halved
        assert torch.equal(module.weights(halved)[2], module.weights(x)[2]) == same


@torch.no_grad()
def test_gam_squashes_its_channel_weights_unless_told_otherwise() -> None:
    """Without a sigmoid the product grows with the square of x, which half precision does not hold."""
    module, x = build("GAM"), draw(1, 6, 6) * 50
    assert (module.channel_weighted(x).abs() <= x.abs()).all()
    module = build("GAM", {"channel_sigmoid": False})
    assert module.channel_weighted(x).abs().max() > 10 * x.abs().max()
    assert module.half().mechanism((x * 1000).clamp(-6e4, 6e4).half()).isfinite().all()


@torch.no_grad()
def test_gam_groups_see_each_other_through_the_shuffle() -> None:
    """Without it, or with a shuffle behind both convolutions, a change stays in its own fourth of the weights."""
    module, x = build("GAM", {"group": True}), draw(1, 6, 6)
    changed = x.clone()
    changed[:, 0] += 1
    hidden = module.gather(changed) != module.gather(x)
    assert hidden.any((0, 2, 3)).nonzero().flatten().tolist() == [0, 1]
    ratio = module.mechanism(changed)[:, 16:] / module.channel_weighted(changed)[:, 16:]
    before = module.mechanism(x)[:, 16:] / module.channel_weighted(x)[:, 16:]
    assert (ratio - before).abs().max() > 1e-4
    fused = {name: p.numel() for name, p in module.named_parameters() if name.endswith("conv.weight")}
    assert set(fused.values()) == {49 * 32 * 8 // 4}


@torch.no_grad()
def test_context_is_one_vector_handed_out_by_need() -> None:
    module, x = build("ContextAggregation"), draw(2, 7, 5)
    context, need = module.context_and_need(x)
    assert context.shape == (2, 32, 1, 1)
    assert need.shape == (2, 1, 7, 5)
    assert (need.min(), need.max()) > (0, 0)
    torch.testing.assert_close(module.mechanism(x) - x, context * need)
    assert module.project.weight.abs().max() > 0  # zeros, as published, would never learn behind a closed gate


@torch.no_grad()
def test_context_sums_before_it_projects() -> None:
    """The two orders are equal because the softmax sums to one, the value's bias included."""
    module, x = build("ContextAggregation", {"reduction": 2}).double(), draw(1, 9, 8).double() * 10
    share = module.maps(x)[:, 1].flatten(1).softmax(1)
    projected = (module.value(x).flatten(2) * share).sum(2)[..., None, None]
    torch.testing.assert_close(module.context_and_need(x)[0], module.project(projected))


@torch.no_grad()
def test_context_is_equivariant_to_permutations_of_positions() -> None:
    module, x = build("ContextAggregation"), draw(1, 5, 6)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(2)[..., order].reshape(x.shape)
    torch.testing.assert_close(module.mechanism(shuffled).flatten(2), module.mechanism(x).flatten(2)[..., order], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_context_survives_logits_beyond_half_precision() -> None:
    module = build("ContextAggregation").half()
    nn.init.ones_(module.maps.weight)
    x = draw(1, 5, 6).abs().mul(1e4).half()
    assert module.maps(x).isinf().any()
    assert module(x).equal(x)


def test_context_cannot_move_the_bias_that_its_softmax_cancels() -> None:
    module = build("ContextAggregation").double()
    (module.mechanism(draw(2, 6, 6).double()) ** 3).sum().backward()
    need, share = module.maps.bias.grad.abs()
    assert need > 1e-3
    assert share < 1e-9


@torch.no_grad()
def test_lka_is_lska_where_its_kernels_are_products_of_lines() -> None:
    lines, whole, x = LSKA(8, 23).eval(), LKA(8).eval(), draw(1, 14, 26, 8)
    for layer in (lines.near_row, lines.near_column, lines.far_row, lines.far_column, whole.near, whole.far):
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    whole.near.weight.copy_(lines.near_column.weight * lines.near_row.weight)
    whole.far.weight.copy_(lines.far_column.weight * lines.far_row.weight)
    whole.mix.load_state_dict(lines.mix.state_dict())
    torch.testing.assert_close(whole.mechanism(x), lines.mechanism(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_lka_sees_23_by_23_cells_and_no_more() -> None:
    module = LKA(2)
    for layer in (module.near, module.far):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    impulse = torch.zeros(1, 2, 31, 31)
    impulse[..., 15, 15] = 1.0
    expected = functional.pad(torch.ones(1, 2, 23, 23, dtype=torch.bool), (4, 4, 4, 4))
    assert torch.equal(module.far(module.near(impulse)) != 0, expected)


@torch.no_grad()
def test_lka_product_saturates_in_half_precision() -> None:
    module, x = build("LKA", {"use_proj": True}), draw(1, 9, 9) * 20000
    assert module.large_kernel(x).abs().max() > 65504
    assert module.half().large_kernel(x.half()).isfinite().all()


# --- export -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("exported", [(2, 24, 20), (2, 9, 8)])
@pytest.mark.parametrize("name", ["ESA", "MLCA", "EMA"])
def test_what_depends_on_the_size_stays_open_in_an_export(name: str, exported: tuple[int, int, int], dynamo: bool, tmp_path: Path) -> None:
    """ESA extends small maps, MLCA pools to cells that may not divide, EMA reads borders: none of it may be fixed at the exported size."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module, path = build(name, gate=0.5), tmp_path / "module.onnx"
    sizes: dict[str, Any] = {"dynamic_axes": {axes: {0: "batch", 2: "height", 3: "width"} for axes in "xy"}}
    if dynamo:
        sizes = {"dynamic_shapes": (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)}
    options = {"opset_version": 18 if dynamo else 17, "input_names": ["x"], "output_names": ["y"], "verbose": False}
    torch.onnx.export(module, (draw(*exported),), path, dynamo=dynamo, **options, **sizes)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in [(1, 20, 20), (3, 21, 13), (2, 14, 15), (1, 4, 4), (2, 1, 1), (1, 1, 17), (1, 40, 33)]:
        x = draw(*size)
        (y,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), module(x).detach(), rtol=1e-4, atol=1e-4)
