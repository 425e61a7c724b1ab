"""The five mechanisms that the search began with, each against a slow, obvious form of itself; and what is known to go wrong."""

import itertools
from typing import Any

import pytest
import torch
from attention_tools import CHANNELS, Params, bilinear, build, convolution, draw, equals_slow_form, pointwise
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.clo import CloAttention
from nas_attn.attention.double import DoubleAttention
from nas_attn.attention.halo import HaloAttention
from nas_attn.attention.lia import LIA, soft_pool
from nas_attn.attention.lska import LSKA

# --- slow, obvious forms ----------------------------------------------------------------------------------------------------------


def lia_slowly(module: LIA, x_CHW: Tensor) -> Tensor:
    _, height, width = x_CHW.shape
    z = pointwise(module.squeeze, x_CHW)
    tall, wide = max(height, 7), max(width, 7)
    z = torch.stack([torch.stack([z[:, min(y, height - 1), min(x, width - 1)] for x in range(wide)], 1) for y in range(tall)], 1)
    pooled = torch.empty(z.shape[0], (tall - 7) // 3 + 1, (wide - 7) // 3 + 1)
    for y, x in itertools.product(range(pooled.shape[1]), range(pooled.shape[2])):
        cells = z[:, 3 * y : 3 * y + 7, 3 * x : 3 * x + 7].flatten(1)
        pooled[:, y, x] = (cells.softmax(1) * cells).sum(1)
    shrunk = functional.conv2d(pooled[None], module.shrink.weight, module.shrink.bias, stride=2, padding=1)
    heat = functional.conv2d(shrunk, module.expand.weight, module.expand.bias, padding=1)[0].sigmoid()
    return x_CHW * bilinear(heat, height, width) * x_CHW[:1].sigmoid()


def halo_slowly(module: HaloAttention, x_CHW: Tensor) -> Tensor:
    _, height, width = x_CHW.shape
    side, halo, n, d = module.block_size, module.halo_size, module.heads, module.dim_head
    q = pointwise(module.to_q, x_CHW).reshape(n, d, height, width) * d**-0.5
    k, v = pointwise(module.to_kv, x_CHW).reshape(2, n, d, height, width)
    out = torch.zeros(n, d, height, width)
    for y, x, head in itertools.product(range(height), range(width), range(n)):
        top, left = y // side * side - halo, x // side * side - halo
        rows = range(max(top, 0), min(top + module.window, height))
        columns = range(max(left, 0), min(left + module.window, width))
        query, logits, values = q[head, :, y, x], [], []
        for u, w in itertools.product(rows, columns):
            below = module.rel_rows[(u - top) - (y % side) + module.window - 1]
            right = module.rel_columns[(w - left) - (x % side) + module.window - 1]
            logits.append(query @ (k[head, :, u, w] + below + right))
            values.append(v[head, :, u, w])
        out[head, :, y, x] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return pointwise(module.to_out, out.reshape(n * d, height, width))


def double_slowly(module: DoubleAttention, x_CHW: Tensor) -> Tensor:
    features, maps, vectors = (pointwise(part, x_CHW).flatten(1) for part in (module.features, module.gather, module.distribute))
    descriptors = torch.stack([(features * row.softmax(0)).sum(1) for row in maps], 1)
    mixed = torch.stack([descriptors @ vectors[:, position].softmax(0) for position in range(vectors.shape[1])], 1)
    return pointwise(module.reconstruct, mixed.reshape(-1, *x_CHW.shape[1:]))


def lska_slowly(module: LSKA, x_CHW: Tensor) -> Tensor:
    def core(z: Tensor) -> Tensor:
        lines = z
        for layer in (module.near_row, module.near_column, module.far_row, module.far_column):
            lines = convolution(layer, lines)
        return z * pointwise(module.mix, lines)

    if module.project_in is None or module.project_out is None:
        return core(x_CHW)
    hidden = pointwise(module.project_in[0], x_CHW)  # type: ignore[arg-type]
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return x_CHW + pointwise(module.project_out, core(gelu))


def clo_slowly(module: CloAttention, x_CHW: Tensor) -> Tensor:
    _, height, width = x_CHW.shape
    parts = []
    if module.local is not None:
        q, k, v = convolution(module.local.qkv[1], pointwise(module.local.qkv[0], x_CHW)).chunk(3)  # type: ignore[arg-type]
        hidden = pointwise(module.local.enter, q * k)
        parts.append(torch.tanh(module.local.scale * pointwise(module.local.leave, hidden * hidden.sigmoid())) * v)
    if module.pooled is not None:
        side, heads = module.pooled.window_size, module.pooled.heads
        tops, lefts = range(0, height, side), range(0, width, side)
        means = [x_CHW[:, top : top + side, left : left + side].mean((1, 2)) for top in tops for left in lefts]
        k, v = pointwise(module.pooled.to_kv, torch.stack(means, 1).unsqueeze(2)).reshape(2, heads, -1, len(means))
        q = pointwise(module.pooled.to_q, x_CHW).reshape(heads, -1, height, width)
        out = torch.empty_like(q)
        for head, y, x in itertools.product(range(heads), range(height), range(width)):
            weights = (q[head, :, y, x] @ k[head] * q.shape[1] ** -0.5).softmax(0)
            out[head, :, y, x] = v[head] @ weights
        parts.append(out.flatten(0, 1))
    return pointwise(module.project, torch.cat(parts))


SLOWLY: dict[str, Any] = {
    "LIA": lia_slowly,
    "HaloAttention": halo_slowly,
    "DoubleAttention": double_slowly,
    "LSKA": lska_slowly,
    "CloAttention": clo_slowly,
}
ORACLE_CASES: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("LIA", {"f": 4}, (20, 23)),
    ("LIA", {"f": 4}, (3, 15)),
    ("HaloAttention", {"block_size": 2, "halo_size": 1, "dim_head": 4}, (5, 6)),
    ("HaloAttention", {"block_size": 4, "halo_size": 3, "dim_head": 8}, (7, 5)),
    ("HaloAttention", {"block_size": 8, "halo_size": 1, "dim_head": 16}, (3, 2)),
    ("DoubleAttention", {"c_m": 6, "c_n": 3}, (5, 7)),
    ("DoubleAttention", {"c_m": 0.5, "c_n": 0.25}, (1, 9)),
    ("LSKA", {"k_size": 7}, (9, 8)),
    ("LSKA", {"k_size": 23}, (6, 25)),
    ("LSKA", {"k_size": 11, "use_proj": True}, (5, 6)),
    ("CloAttention", {"window_size": 4, "kernel_size": 5}, (7, 9)),
    ("CloAttention", {"window_size": 2, "kernel_size": 3, "n_local": 2}, (4, 6)),
    ("CloAttention", {"window_size": 1, "n_local": 0}, (3, 5)),
]


@pytest.mark.parametrize(("name", "params", "size"), ORACLE_CASES)
def test_each_mechanism_equals_its_slow_form(name: str, params: Params, size: tuple[int, int]) -> None:
    equals_slow_form(name, params, size, SLOWLY[name])


# --- what is known to go wrong, mechanism by mechanism ----------------------------------------------------------------------------


@torch.no_grad()
def test_double_attention_takes_its_softmaxes_over_positions_and_descriptors() -> None:
    """Softmaxes over the batch, as in circulating copies, make the output of one image spatially constant."""
    module = DoubleAttention(32, 0.25, 5)
    maps, vectors = module.attentions(draw(2, 6, 7))
    torch.testing.assert_close(maps.sum(2), torch.ones(2, 5))
    torch.testing.assert_close(vectors.sum(1), torch.ones(2, 42))
    assert module.mechanism(draw(1, 6, 7)).std((2, 3)).min() > 0


@torch.no_grad()
def test_double_attention_is_equivariant_to_permutations_of_positions() -> None:
    module, x = DoubleAttention(32), draw(1, 5, 6)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(2)[..., order].reshape(x.shape)
    torch.testing.assert_close(module.mechanism(shuffled).flatten(2), module.mechanism(x).flatten(2)[..., order], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_halo_masks_the_outside_and_not_the_map() -> None:
    """An inverted mask gives interior blocks the plain mean of their values, and border blocks nothing but the output's bias."""
    module = build("HaloAttention", {"block_size": 4, "halo_size": 2})
    assert isinstance(module, HaloAttention)
    y = module.mechanism(draw(1, 12, 12))
    assert y[..., 4:8, 4:8].std((2, 3)).min() > 1e-4
    corner = y[..., :4, :4]
    assert module.to_out.bias is not None
    assert (corner - module.to_out.bias[:, None, None]).abs().amax((0, 2, 3)).min() > 1e-4


@torch.no_grad()
def test_halo_padding_gets_no_attention() -> None:
    """Constant values come out as they went in, wherever a key outside of the map would have diluted them with zeros."""
    module = build("HaloAttention", {"block_size": 8, "halo_size": 3})
    y = module.mechanism(torch.ones(1, CHANNELS, 13, 3))
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("halo", [1, 3])
@torch.no_grad()
def test_halo_on_one_block_is_full_self_attention(halo: int) -> None:
    module = HaloAttention(32, 6, halo, 16)
    x = draw(1, 6, 6)
    q, k, v = (part.reshape(2, 16, 36).mT for part in (module.to_q(x)[0], *module.to_kv(x)[0].chunk(2)))
    step = torch.arange(6)
    ahead = step[None, :] - step[:, None] + halo + module.window - 1
    rows = torch.einsum("nrcd,rud->nrcu", q.reshape(2, 6, 6, 16), module.rel_rows[ahead])
    columns = torch.einsum("nrcd,cvd->nrcv", q.reshape(2, 6, 6, 16), module.rel_columns[ahead])
    logits = q @ k.mT + (rows.unsqueeze(-1) + columns.unsqueeze(-2)).reshape(2, 36, 36)
    expected = module.to_out(((logits * 16**-0.5).softmax(-1) @ v).mT.reshape(1, 32, 6, 6))
    torch.testing.assert_close(module.mechanism(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_clo_pools_by_ceiling() -> None:
    """Floor pooling fails on 21 x 13 where the reference counts (21 * 13) // 16 keys, and drops the last row and column."""
    module = CloAttention(32, 4)
    assert module.pooled is not None
    assert module.pooled.pooled(draw(1, 21, 13)).shape[2:] == (6, 4)
    assert module(draw(3, 21, 13)).shape == (3, 32, 21, 13)
    x = draw(1, 20, 12)
    assert torch.equal(module.pooled.pooled(x), functional.avg_pool2d(x, 4))
    edge = torch.zeros(1, 32, 5, 5)
    edge[..., 4, 4] = 8.0
    assert module.pooled.pooled(edge)[0, 0].tolist() == [[0.0, 0.0], [0.0, 8.0]]


@torch.no_grad()
def test_clo_local_weights_never_amplify() -> None:
    module, x = CloAttention(32), draw(2, 9, 7) * 50
    assert module.local is not None
    v = module.local.qkv(x).chunk(3, 1)[2]
    assert (module.local(x).abs() <= v.abs()).all()


def test_clo_leaves_out_a_branch_without_heads() -> None:
    assert CloAttention(32, n_local=0).local is None
    assert CloAttention(32, n_local=8).pooled is None


@pytest.mark.parametrize("level", [-300.0, -120.0, 12.0, 95.0, 1e4])
def test_lia_soft_pool_neither_overflows_nor_divides_zero_by_zero(level: float) -> None:
    """exp of the plain values overflows from about 89; relative to the maximum alone, a low window is 0 / 0."""
    z = draw(2, 20, 20, 4) + level
    z[:, :, 13:] += 200.0
    z.requires_grad_()
    pooled = soft_pool(z)
    pooled.sum().backward()
    assert pooled.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    slack = 1e-5 * abs(level) + 1e-4
    assert (pooled >= functional.avg_pool2d(z, 7, 3) - slack).all()
    assert (pooled <= functional.max_pool2d(z, 7, 3) + slack).all()


@torch.no_grad()
def test_lia_is_stable_beside_a_loud_batch_mate() -> None:
    """The maximum that keeps exp in range is each image's own: a shared one would flatten the weights of quiet images."""
    module, x = build("LIA", gate=1.0), draw(2, 20, 20)
    loud = torch.cat([x[:1] * 1000, x[1:]])
    torch.testing.assert_close(module(loud)[1:], module(x[1:]), rtol=1e-5, atol=1e-5)


def test_lia_takes_any_small_map() -> None:
    module = build("LIA", gate=1.0)
    for height, width in itertools.product((1, 2, 6, 7, 8), (1, 3, 6, 7, 9)):
        assert module(draw(1, height, width) * 300).isfinite().all()


@torch.no_grad()
def test_lia_with_zero_weights_is_half_of_its_gate() -> None:
    module, x = LIA(16), draw(2, 17, 9, 16)
    for layer in (module.squeeze, module.shrink, module.expand):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    torch.testing.assert_close(module.mechanism(x), 0.5 * x * x[:, :1].sigmoid())


@torch.no_grad()
def test_lia_weighs_a_map_below_thirteen_as_a_whole() -> None:
    module, x = LIA(16), draw(1, 12, 7, 16)
    ratio = module.mechanism(x) / (x * x[:, :1].sigmoid())
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_lska_product_saturates_in_half_precision() -> None:
    module, x = build("LSKA", {"use_proj": True}), draw(1, 9, 9) * 5000
    assert isinstance(module, LSKA)
    assert module.large_kernel(x).abs().max() > 65504
    assert module.half().large_kernel(x.half()).isfinite().all()


@pytest.mark.parametrize("k", [7, 11, 23, 35, 41, 53])
@torch.no_grad()
def test_lska_sees_k_by_k_cells_and_no_more(k: int) -> None:
    module = LSKA(2, k)
    for layer in (module.near_row, module.near_column, module.far_row, module.far_column):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    impulse = torch.zeros(1, 2, k + 8, k + 8)
    impulse[..., k // 2 + 4, k // 2 + 4] = 1.0
    response = module.far_column(module.far_row(module.near_column(module.near_row(impulse)))) != 0
    expected = functional.pad(torch.ones(1, 2, k, k, dtype=torch.bool), (4, 4, 4, 4))
    assert torch.equal(response, expected)
