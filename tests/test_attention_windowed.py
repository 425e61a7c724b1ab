"""Windowed mechanisms against slow, obvious forms of themselves, against published counts, and against what is known to go wrong."""

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_tools import CHANNELS, Params, build, convolution, draw, enliven, equals_slow_form, normed, pointwise
from torch import Tensor, nn

from nas_attn.attention.bra import BRA
from nas_attn.attention.cascaded import CascadedGroupAttention
from nas_attn.attention.conv import ConvNorm
from nas_attn.attention.deformable import DAttention
from nas_attn.attention.irmb import iRMB
from nas_attn.errors import SpaceError
from nas_attn.records import record

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from plain_windowed import PLAIN

# --- published counts -------------------------------------------------------------------------------------------------------------

# Parameters at 128 channels, and multiply-accumulates there on a map of 40 x 48 in millions, of the reference implementations.
PARAMETERS = [
    ("iRMB", {"dim_head": 16}, 67_200),
    ("CascadedGroupAttention", {"key_dim": 16, "num_heads": 4, "window_size": 7, "kernel_size": 5}, 27_268),
    ("BRA", {"side_dwconv": 3}, 67_328),
    ("DAttention", {"n_heads": 8, "n_groups": 4, "ksize": 3}, 67_776),
]
MMACS = [
    ("iRMB", {"dim_head": 16, "window_size": 8}, 159.50),
    ("BRA", {"n_win": 8, "topk": 4, "side_dwconv": 3}, 187.55),
]


@pytest.mark.parametrize(("name", "params", "count"), PARAMETERS)
def test_parameters_match_the_references(name: str, params: Params, count: int) -> None:
    assert record(name).parameters(128, params) == count + 128


@pytest.mark.parametrize(("name", "params", "mmacs"), MMACS)
def test_macs_match_the_references(name: str, params: Params, mmacs: float) -> None:
    macs = record(name).macs_count(128, 40, 48, params)
    assert macs is not None
    assert macs / 1e6 == pytest.approx(mmacs, abs=0.0051)


# --- slow, obvious forms ----------------------------------------------------------------------------------------------------------


def attended(q_d: Tensor, k_kd: Tensor, v_kd: Tensor, scale: float, bias_k: Tensor | float = 0.0) -> Tensor:
    """What one query takes from its keys."""
    return ((k_kd @ q_d) * scale + bias_k).softmax(0) @ v_kd


def irmb_slowly(module: iRMB, x_CHW: Tensor) -> Tensor:
    C, height, width = x_CHW.shape
    n, side = module.heads, module.window_size
    tall, wide = -(-height // side), -(-width // side)
    z = normed(module.norm, x_CHW)
    q, k = pointwise(module.to_qk, z).reshape(2, n, C // n, height, width)
    v = (z if module.attn_pre else pointwise(module.to_v[0], z).relu()).reshape(n, -1, height, width)  # type: ignore[arg-type]
    s = torch.zeros_like(v)
    for head, y, x in itertools.product(range(n), range(height), range(width)):
        keys, values = (t[head, :, y % tall :: tall, x % wide :: wide].flatten(1).mT for t in (k, v))
        s[head, :, y, x] = attended(q[head, :, y, x], keys, values, (C // n) ** -0.5)
    s = s.flatten(0, 1)
    if module.attn_pre:
        s = pointwise(module.to_v[0], s).relu()  # type: ignore[arg-type]
    hidden = normed(module.local.bn, convolution(module.local.conv, s))
    return x_CHW + pointwise(module.project, s + hidden * hidden.sigmoid())


def folded(layer: ConvNorm, x_CHW: Tensor) -> Tensor:
    return normed(layer.bn, convolution(layer.conv, x_CHW))


def cascaded_slowly(module: CascadedGroupAttention, x_CHW: Tensor) -> Tensor:
    C, height, width = x_CHW.shape
    n, side, d = len(module.to_qkv), module.window_size, module.key_dim
    y = torch.zeros_like(x_CHW)
    for top, left in itertools.product(range(0, height, side), range(0, width, side)):
        window = x_CHW[:, top : top + side, left : left + side]  # smaller at the border
        cells = list(itertools.product(range(window.shape[1]), range(window.shape[2])))
        before = torch.zeros_like(window[: C // n])
        for head in range(n):
            own = window[head * C // n : (head + 1) * C // n]
            q, k, v = folded(module.to_qkv[head], own + before).split((d, d, C // n))  # type: ignore[arg-type]
            q = folded(module.mix_q[head], q)  # type: ignore[arg-type]
            before = torch.zeros_like(v)
            for r, c in cells:
                bias = torch.stack([module.attention_biases[head, abs(r - u) * side + abs(c - w)] for u, w in cells])
                before[:, r, c] = attended(q[:, r, c], k.flatten(1).mT, v.flatten(1).mT, d**-0.5, bias)
            y[head * C // n : (head + 1) * C // n, top : top + side, left : left + side] = before
    return folded(module.project, y.relu())


def bra_slowly(module: BRA, x_CHW: Tensor) -> Tensor:
    C, height, width = x_CHW.shape
    S, n = module.n_win, module.heads
    tall, wide = -(-height // S), -(-width // S)
    q, k, v = pointwise(module.to_qkv, x_CHW).reshape(3, C, height, width)
    boxes = [(slice(r, r + tall), slice(c, c + wide)) for r in range(0, height, tall) for c in range(0, width, wide)]  # no empty ones
    y = torch.zeros_like(v)
    for rows, columns in boxes:
        affinity = [float(q[:, rows, columns].mean((1, 2)) @ k[:, r, c].mean((1, 2))) for r, c in boxes]
        best = sorted(range(len(boxes)), key=lambda j, a=affinity: -a[j])[: module.topk]
        keys, values = (torch.cat([t[:, boxes[j][0], boxes[j][1]].flatten(1) for j in best], 1).reshape(n, C // n, -1) for t in (k, v))
        for r, c, head in itertools.product(range(height)[rows], range(width)[columns], range(n)):
            part = slice(head * C // n, (head + 1) * C // n)
            y[part, r, c] = attended(q[part, r, c], keys[head].mT, values[head].mT, C**-0.5)
    return pointwise(module.project, y + convolution(module.local, v))


def sampled(x_CHW: Tensor, row: float, column: float) -> Tensor:
    """Bilinear, in cells; what lies outside of the map is zero."""
    _, height, width = x_CHW.shape
    total = torch.zeros(x_CHW.shape[0])
    for y, x in itertools.product(range(height), range(width)):
        total += max(0.0, 1 - abs(row - y)) * max(0.0, 1 - abs(column - x)) * x_CHW[:, y, x]
    return total


def deformable_slowly(module: DAttention, x_CHW: Tensor) -> Tensor:
    C, height, width = x_CHW.shape
    n, G = module.heads, module.width
    q, found = pointwise(module.to_q, x_CHW), []
    for part in (slice(start, start + G) for start in range(0, C, G)):
        hidden = convolution(module.offset_conv, q[part])
        tall, wide = hidden.shape[1:]
        moved = torch.zeros(G, tall, wide)
        for r, c in itertools.product(range(tall), range(wide)):
            t = hidden[:, r, c]
            t = (t - t.mean()) / (t.var(unbiased=False) + 1e-5).sqrt() * module.offset_norm.weight + module.offset_norm.bias
            right, down = (module.to_offset.weight @ (t * 0.5 * (1 + torch.erf(t / 2**0.5)))).tolist()
            shift = 0.5 if module.half_pixel else 0.0  # where a grid of one row starts, in the middle, this adds nothing
            y, x = ((k + shift) / (size - 1) * 2 - 1 if size > 1 else 0.0 for k, size in ((r, tall), (c, wide)))
            if module.factor > 0:
                y += math.tanh(down) * module.factor / max(tall - 1, 1)
                x += math.tanh(right) * module.factor / max(wide - 1, 1)
            else:
                y, x = min(max(y + down, -1.0), 1.0), min(max(x + right, -1.0), 1.0)
            moved[:, r, c] = sampled(x_CHW[part], (y + 1) / 2 * (height - 1), (x + 1) / 2 * (width - 1))
        found.append(moved)
    k, v = pointwise(module.to_kv, torch.cat(found)).reshape(2, n, C // n, -1)
    y = torch.zeros_like(x_CHW)
    for head, r, c in itertools.product(range(n), range(height), range(width)):
        part = slice(head * C // n, (head + 1) * C // n)
        y[part, r, c] = attended(q[part, r, c], k[head].mT, v[head].mT, (C // n) ** -0.5)
    return pointwise(module.project, y + convolution(module.position, q))


SLOWLY: dict[str, Any] = {
    "DAttention": deformable_slowly,
    "BRA": bra_slowly,
    "iRMB": irmb_slowly,
    "CascadedGroupAttention": cascaded_slowly,
}
ORACLE_CASES: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("iRMB", {"dim_head": 4, "window_size": 2}, (4, 6)),
    ("iRMB", {"dim_head": 8, "window_size": 3}, (7, 5)),
    ("iRMB", {"window_size": 4, "exp_ratio": 2, "dw_ks": 5}, (5, 9)),
    ("iRMB", {"dim_head": 4, "window_size": 3, "attn_pre": True, "exp_ratio": 3}, (5, 4)),
    ("iRMB", {"dim_head": 8, "window_size": 7}, (1, 3)),
    ("CascadedGroupAttention", {"key_dim": 4, "window_size": 3}, (6, 3)),
    ("CascadedGroupAttention", {"key_dim": 8, "num_heads": 2, "window_size": 4, "kernel_size": 3}, (7, 5)),
    ("CascadedGroupAttention", {"key_dim": 3, "num_heads": 8, "window_size": 5}, (2, 6)),
    ("CascadedGroupAttention", {"num_heads": 1, "window_size": 7}, (1, 1)),
    ("BRA", {"n_win": 3, "topk": 2, "num_heads": 2}, (6, 9)),
    ("BRA", {"n_win": 4, "topk": 3, "num_heads": 4, "side_dwconv": 5}, (7, 11)),
    ("BRA", {"n_win": 4, "topk": 12}, (5, 6)),  # a row and a column of windows are empty, and more are asked for than the others
    ("BRA", {"n_win": 7, "topk": 4}, (1, 2)),
    ("DAttention", {"n_heads": 4, "n_groups": 2, "stride": 1}, (4, 6)),
    ("DAttention", {"n_heads": 2, "n_groups": 2, "stride": 2, "ksize": 5}, (7, 5)),
    ("DAttention", {"offset_range_factor": -1, "stride": 2}, (5, 8)),
    ("DAttention", {"half_pixel": True, "stride": 2}, (6, 3)),
    ("DAttention", {"stride": 4}, (3, 9)),  # one row of samples, which the reference divides by zero
    ("DAttention", {"stride": 8, "half_pixel": True, "offset_range_factor": 1}, (5, 3)),
]


@pytest.mark.parametrize(("name", "params", "size"), ORACLE_CASES)
def test_each_mechanism_equals_its_slow_form(name: str, params: Params, size: tuple[int, int]) -> None:
    equals_slow_form(name, params, size, SLOWLY[name])


PLAIN_CASES: list[tuple[str, dict[str, Any]]] = [
    ("iRMB", {}),
    ("iRMB", {"attn_pre": True, "window_size": 5, "exp_ratio": 2}),
    ("CascadedGroupAttention", {}),
    ("CascadedGroupAttention", {"key_dim": 8, "num_heads": 2, "window_size": 5, "kernel_size": 3}),
    ("BRA", {}),
    ("BRA", {"n_win": 5, "topk": 1, "num_heads": 4, "side_dwconv": 5}),
    ("DAttention", {}),
    ("DAttention", {"n_groups": 2, "stride": 4, "ksize": 5, "offset_range_factor": -1}),
    ("DAttention", {"half_pixel": True}),
]


@pytest.mark.parametrize(("name", "params"), PLAIN_CASES)
@torch.no_grad()
def test_the_plain_form_computes_the_same(name: str, params: Params) -> None:
    module, x = enliven(build(name, params)), draw(2, 35, 70)
    torch.testing.assert_close(PLAIN[name](module)(x), module.mechanism(x), rtol=1e-4, atol=1e-4)


# --- what is known to go wrong, mechanism by mechanism ----------------------------------------------------------------------------


@torch.no_grad()
def test_irmb_windows_are_dilated_and_no_tiles() -> None:
    module = iRMB(16, window_size=2)
    places = torch.arange(16.0).reshape(1, 1, 4, 4)
    windows = module.split(places)
    assert windows.flatten(1).tolist() == [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]
    assert torch.equal(module.join(windows.flatten(2).unsqueeze(-1), 2, 2), places)


@torch.no_grad()
def test_irmb_padding_gets_no_attention() -> None:
    """Constant values come out as they went in, wherever a key outside of the map would have diluted them with zeros."""
    module = build("iRMB", {"window_size": 5})
    assert isinstance(module, iRMB)
    for height, width in ((13, 3), (11, 11), (1, 1)):
        z = torch.full((1, CHANNELS, height, width), 0.7)
        torch.testing.assert_close(module.attend(z), module.to_v(z), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_irmb_window_as_large_as_the_map_attends_to_all_of_it() -> None:
    small, large = (build("iRMB", {"window_size": side}) for side in (6, 11))
    torch.testing.assert_close(small.mechanism(draw(2, 6, 6)), large.mechanism(draw(2, 6, 6)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_irmb_places_of_the_attention_differ_and_cost_the_same_without_expansion() -> None:
    before, after = (build("iRMB", {"attn_pre": flag}) for flag in (True, False))
    x = draw(1, 14, 14)
    assert not torch.allclose(before.mechanism(x), after.mechanism(x), atol=1e-3)
    macs = [record("iRMB").macs_count(64, 14, 14, {"attn_pre": flag}) for flag in (True, False)]
    assert macs[0] == macs[1]


def test_irmb_takes_channels_that_the_papers_head_does_not_divide() -> None:
    """The reference's head of 64 channels fails at 48; here heads widen, and what cannot be split is refused with a remedy."""
    assert iRMB(48, dim_head=64).heads == 1
    assert iRMB(48, dim_head=32).heads == 1
    with pytest.raises(SpaceError, match="choose a dim_head that divides the channels"):
        iRMB(50, dim_head=16)


@torch.no_grad()
def test_irmb_folds_its_normalization_as_the_detector_does() -> None:
    from ultralytics.utils.torch_utils import fuse_conv_and_bn

    module, x = enliven(build("iRMB")), draw(1, 9, 8)
    assert isinstance(module, iRMB)
    expected = module.mechanism(x)
    module.local.conv = fuse_conv_and_bn(module.local.conv, module.local.bn)
    module.local.bn = nn.Identity()
    torch.testing.assert_close(module.mechanism(x), expected, rtol=1e-5, atol=1e-5)


def cascaded(params: Params | None = None) -> CascadedGroupAttention:
    """Lively, with biases that are not zero."""
    module = enliven(build("CascadedGroupAttention", params, 16))
    assert isinstance(module, CascadedGroupAttention)
    nn.init.normal_(module.attention_biases, generator=torch.Generator().manual_seed(3))
    return module


@pytest.mark.parametrize("size", [(3, 6), (5, 4)])
@torch.no_grad()
def test_cascaded_biases_go_by_distance_within_the_window(size: tuple[int, int]) -> None:
    module, x = cascaded({"window_size": 3, "key_dim": 4}), draw(1, *size, 16)
    torch.testing.assert_close(module.mechanism(x)[0], cascaded_slowly(module, x[0]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(PLAIN["CascadedGroupAttention"](module)(x[..., :3, :3]), module.mechanism(x[..., :3, :3]))


@torch.no_grad()
def test_cascaded_window_at_the_border_is_a_smaller_window() -> None:
    """Neither attention nor the depthwise convolution nor the next head sees the padding, whose normalized queries are not zero."""
    module, x = cascaded({"window_size": 5, "key_dim": 4}), draw(2, 7, 8, 16)
    y = module.mechanism(x)
    for rows, columns in itertools.product((slice(0, 5), slice(5, 7)), (slice(0, 5), slice(5, 8))):
        torch.testing.assert_close(y[..., rows, columns], module.mechanism(x[..., rows, columns]), rtol=1e-5, atol=1e-5)


def test_cascaded_statistics_leave_out_the_padding() -> None:
    """In training, a map of one ragged window has the statistics that a window of its own size gives."""
    ragged, exact = (cascaded({"window_size": side, "key_dim": 4, "kernel_size": 3}).train() for side in (8, 5))
    with torch.no_grad():
        ragged.attention_biases.zero_()
        exact.attention_biases.zero_()
    x = draw(3, 5, 5, 16)
    torch.testing.assert_close(ragged.mechanism(x), exact.mechanism(x), rtol=1e-5, atol=1e-5)
    statistics = [{k: v for k, v in m.state_dict().items() if "running" in k} for m in (ragged, exact)]
    torch.testing.assert_close(*statistics, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_cascaded_heads_see_the_heads_before_them_and_not_those_after() -> None:
    module, x = cascaded({"window_size": 4}), draw(1, 4, 4, 16)
    found: list[Tensor] = []
    module.project.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0]))
    for head in range(4):
        changed = x.clone()
        changed[:, 4 * head : 4 * head + 4] += 1.0
        module.mechanism(x)
        module.mechanism(changed)
        moved = (found[-1] - found[-2]).reshape(4, -1).abs().amax(1) > 0
        assert moved.tolist() == [later >= head for later in range(4)]


@torch.no_grad()
def test_cascaded_modes_and_types_can_be_changed_at_any_time() -> None:
    """The reference's train() gives None, and its copy of the biases for evaluation keeps its type."""
    module, x = cascaded(), draw(1, 9, 8, 16)
    assert module.train() is module
    assert module.eval() is module
    y = module.mechanism(x)
    torch.testing.assert_close(module.half().mechanism(x.half()).float(), y, rtol=0.05, atol=0.02)
    module.float().attention_biases.mul_(0.0)
    assert not torch.allclose(module.mechanism(x), y, atol=1e-2)


@torch.no_grad()
def test_cascaded_folds_its_normalizations_as_the_detector_does() -> None:
    from ultralytics.utils.torch_utils import fuse_conv_and_bn

    module, x = cascaded(), draw(1, 9, 8, 16)
    expected = module.mechanism(x)
    for layer in module.modules():
        if isinstance(layer, ConvNorm):
            layer.conv = fuse_conv_and_bn(layer.conv, layer.bn)
            del layer.bn
            layer.forward = layer.forward_fuse
    torch.testing.assert_close(module.mechanism(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 12), (8, 5)])
@torch.no_grad()
def test_bra_of_all_windows_is_full_self_attention(size: tuple[int, int]) -> None:
    module, x = BRA(16, num_heads=2, n_win=3, topk=9), draw(2, *size, 16)
    qkv = module.to_qkv(x)
    q, k, v = qkv.reshape(2, 3, 2, 8, -1).transpose(-2, -1).unbind(1)
    y = ((q @ k.mT * 16**-0.5).softmax(-1) @ v).mT.reshape(x.shape)
    torch.testing.assert_close(module.mechanism(x), module.project(y + module.local(qkv[:, 32:])), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_bra_padding_gets_no_attention() -> None:
    """The reference's padding has the projections' biases for keys and values; here constant values come out as they went in."""
    module = BRA(16, n_win=4, topk=5)
    nn.init.zeros_(module.local.weight)
    for height, width in ((9, 7), (5, 5), (1, 3)):
        y = module.mechanism(torch.ones(1, 16, height, width))
        torch.testing.assert_close(y, y[..., :1, :1].expand_as(y), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_bra_chooses_windows_by_the_means_of_their_own_cells_and_empty_ones_last() -> None:
    module = BRA(2, num_heads=1, n_win=3, topk=3)
    # On 4 x 5 cells a window has 2 x 2, and the last row of windows is empty. The last column has half as many cells as the others.
    level = torch.tensor([[3.0, 1.0, 2.0], [-1.0, -2.0, 2.5]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[:, :5]
    inside = module.split(nn.functional.pad(torch.ones(1, 1, 4, 5), (0, 1, 0, 2)))[0, :, :, 0] > 0.5
    # Queries of one everywhere, so that windows are ranked by their keys; each of q and k has two channels.
    qk = torch.stack([torch.ones(4, 5), torch.zeros(4, 5), level, level])[None]
    routes = module.routes(module.split(nn.functional.pad(qk, (0, 1, 0, 2))), inside)[0]
    assert routes[:6].tolist() == [[0, 5, 2]] * 6  # 3.0, 2.5, 2.0: a mean over padding as well would halve the last column's
    module.topk = 7
    assert set(module.routes(module.split(nn.functional.pad(-qk, (0, 1, 0, 2))), inside)[0, 0, :6].tolist()) == set(range(6))


def test_bra_routes_have_no_gradient() -> None:
    module, x = BRA(16, n_win=3), draw(1, 6, 6, 16).requires_grad_()
    assert not module.routes(module.split(module.to_qkv(x)[:, :32]), None).requires_grad
    module.mechanism(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_bra_counts_windows_whose_cells_grow_with_the_map() -> None:
    module = BRA(16, n_win=5)
    assert module.split(torch.zeros(1, 16, 20, 20)).shape == (1, 25, 16, 16)
    assert module.split(torch.zeros(1, 16, 40, 20)).shape == (1, 25, 32, 16)
    assert record("BRA").violations(64, {}, (80, 80)) != []
    assert record("BRA").violations(64, {}, (40, 40)) == record("BRA").violations(64, {"n_win": 8, "topk": 1}, (80, 80)) == []


@pytest.mark.parametrize(("params", "message"), [({"topk": 26, "n_win": 5}, "1 <= topk"), ({"num_heads": 5}, "heads that divides")])
def test_bra_refuses_what_cannot_be_built(params: Params, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        build("BRA", params)


def at_rest(params: Params) -> DAttention:
    """Without offsets."""
    module = build("DAttention", params)
    assert isinstance(module, DAttention)
    nn.init.zeros_(module.to_offset.weight)
    return module


@pytest.mark.parametrize("factor", [4, -1])
@torch.no_grad()
def test_deformable_without_offsets_samples_the_map_itself(factor: int) -> None:
    module, x = at_rest({"stride": 1, "offset_range_factor": factor}), draw(2, 9, 5)
    torch.testing.assert_close(module.samples(x, module.places(module.to_q(x))), x, rtol=1e-5, atol=1e-5)
    q, (k, v) = module.to_q(x), module.to_kv(x).chunk(2, 1)
    q, k, v = (t.reshape(2, 8, 4, -1).mT for t in (q, k, v))
    y = ((q @ k.mT * 0.5).softmax(-1) @ v).mT.reshape(x.shape)
    torch.testing.assert_close(module.mechanism(x), module.project(y + module.position(module.to_q(x))), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_deformable_grid_of_the_repository_leaves_the_map() -> None:
    """Rows at (r + 0.5) / 19 * 2 - 1, from -0.947 to 1.053, are half a cell off; the consistent ones end where the map does."""
    q = draw(1, 20, 20)
    ends = {}
    for half_pixel in (False, True):
        places = at_rest({"stride": 1, "half_pixel": half_pixel}).places(q)[0]
        assert torch.equal(places[0, :, 0], places[:, 0, 1])
        ends[half_pixel] = (round(float(places.min()), 3), round(float(places.max()), 3))
    assert ends == {False: (-1.0, 1.0), True: (-0.947, 1.053)}


@torch.no_grad()
def test_deformable_moves_samples_by_columns_and_rows() -> None:
    """Offsets of (right, down) move the map by that much; swapped, or divided by the other side, they would move it elsewhere."""
    module, x = at_rest({"stride": 1}), torch.zeros(1, CHANNELS, 9, 17)
    x[..., 4, 10] = 1.0
    resting = module.places(x)
    shift = torch.tensor([2 * 3 / 16, 2 * 1 / 8])  # three columns and one row, in halves of the map
    assert module.samples(x, resting + shift)[0, 0].argmax() == 3 * 17 + 7
    nn.init.zeros_(module.offset_norm.weight)
    nn.init.ones_(module.offset_norm.bias)
    nn.init.ones_(module.to_offset.weight)  # large, so that tanh is 1: the factor 4 is two samples each way
    moved = module.places(x) - resting
    torch.testing.assert_close(moved, torch.tensor([4 / 16, 4 / 8]).expand_as(moved), rtol=1e-4, atol=1e-5)


def test_deformable_grids_of_one_row_or_column_are_finite() -> None:
    """The reference divides by a number of rows less one, which is zero."""
    for params, (height, width) in itertools.product(({"stride": 8}, {"stride": 8, "offset_range_factor": -1}), ((1, 1), (5, 30), (30, 1))):
        module, x = build("DAttention", params, gate=1.0), draw(2, height, width).requires_grad_()
        module(x).square().mean().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
    assert torch.equal(at_rest({"stride": 8}).places(draw(1, 5, 5)), torch.zeros(4, 1, 1, 2))


@torch.no_grad()
def test_deformable_places_are_precise_in_half_precision() -> None:
    """A grid in half precision would be off by up to 0.04 cells at 80; in double, as old exporters make it, sampling fails."""
    module = at_rest({"stride": 1})
    q = draw(1, 80, 3)
    exact, half = module.places(q), module.half().places(q.half())
    assert half.dtype == torch.float32
    assert torch.equal(half, exact)
    x = (draw(1, 80, 3) * 8).half()
    torch.testing.assert_close(module.samples(x, half), x, rtol=2e-3, atol=1e-3)


def test_deformable_offsets_learn() -> None:
    for factor in (4, -1):
        module = build("DAttention", {"offset_range_factor": factor}, gate=1.0).train()
        module(draw(2, 12, 10)).square().mean().backward()
        for key in ("offset_conv.weight", "offset_norm.weight", "to_offset.weight"):
            gradient = module.get_parameter(key).grad
            assert gradient is not None
            assert gradient.abs().max() > 1e-6


def test_deformable_is_left_out_of_maps_on_which_it_is_quadratic() -> None:
    record_ = record("DAttention")
    assert record_.violations(64, {"stride": 2}, (80, 80)) != []
    assert record_.violations(64, {"stride": 8}, (80, 80)) == record_.violations(64, {"stride": 2}, (40, 40)) == []
    with pytest.raises(SpaceError, match="offset_range_factor != 0"):
        build("DAttention", {"offset_range_factor": 0})
