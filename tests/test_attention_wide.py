"""Mechanisms that see the whole map: against slow, obvious forms of themselves and the libraries they stand on, and what goes wrong."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_tools import CHANNELS, Holder, Params, build, convolution, draw, enliven, equals_slow_form, normed, pointwise
from benchmarks.plain_wide import PLAIN, theirs, without_shell
from timm.layers import NonLocalAttn
from torch import Tensor, nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import block as ultralytics_block
from ultralytics.nn.modules.transformer import AIFI as EncoderLayer  # noqa: N811

from nas_attn.attention.aifi import AIFI
from nas_attn.attention.area import AreaAttention
from nas_attn.attention.conv import EPS
from nas_attn.attention.gate import Gated
from nas_attn.attention.hsm_ssd import HSMSSD
from nas_attn.attention.mhsa import MHSA
from nas_attn.attention.non_local import NonLocal
from nas_attn.attention.psa import PSA
from nas_attn.cost import activation_mib
from nas_attn.records import record

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("NonLocal", {}),
    ("NonLocal", {"rd_ratio": 0.5, "sub_sample": True}),
    ("MHSA", {}),
    ("MHSA", {"num_heads": 2, "attn_ratio": 0.25}),
    ("MHSA", {"num_heads": 8, "attn_ratio": 1.0}),
    ("AreaAttention", {}),
    ("AreaAttention", {"num_heads": 2, "area": 1, "mlp_ratio": 2.0}),
    ("AreaAttention", {"area": 3, "mlp_ratio": 1.25}),
    ("PSA", {}),
    ("PSA", {"n": 2, "e": 0.25}),
    ("AIFI", {}),
    ("AIFI", {"num_heads": 4, "mlp_ratio": 4.0}),
    ("HSMSSD", {}),
    ("HSMSSD", {"state_dim": 9, "ssd_expand": 0.5, "norm": False}),
    ("HSMSSD", {"state_dim": 25, "ssd_expand": 2.0}),
]
each_variant = pytest.mark.parametrize(("name", "params"), VARIANTS, ids=[f"{name}-{params}" for name, params in VARIANTS])
QUADRATIC = ["NonLocal", "MHSA", "AreaAttention", "PSA", "AIFI"]


# --- slow, obvious forms ----------------------------------------------------------------------------------------------------------


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def layer(conv_norm: Any, x_CHW: Tensor) -> Tensor:
    return normed(conv_norm.bn, convolution(conv_norm.conv, x_CHW))


def attended(q: Tensor, k: Tensor, v: Tensor, area: int | None = None) -> Tensor:
    """Query by query and head by head, (n, e, N), with the keys of the query's own `area` positions; all by default."""
    out = torch.empty(*v.shape[:2], q.shape[2])
    for head, i in itertools.product(range(q.shape[0]), range(q.shape[2])):
        seen = [j for j in range(k.shape[2]) if area is None or j // area == i // area]
        shares = torch.stack([torch.exp((q[head, :, i] * k[head, :, j]).sum() / math.sqrt(q.shape[1])) for j in seen])
        out[head, :, i] = sum(share / shares.sum() * v[head, :, j] for share, j in zip(shares, seen, strict=True))
    return out


def non_local_slowly(module: NonLocal, x_CHW: Tensor) -> Tensor:
    _, height, width = x_CHW.shape
    seen = x_CHW
    if module.sub_sample:
        tops, lefts = range(0, height, 2), range(0, width, 2)
        seen = torch.stack([torch.stack([x_CHW[:, y : y + 2, x : x + 2].amax((1, 2)) for x in lefts], 1) for y in tops], 1)
    k, v = pointwise(module.phi_g, seen).flatten(1).chunk(2)
    y = attended(pointwise(module.theta, x_CHW).flatten(1)[None], k[None], v[None])
    return layer(module.leave, y.reshape(-1, height, width))


def mhsa_slowly(module: MHSA, x_CHW: Tensor) -> Tensor:
    n, inner = module.num_heads, module.num_heads * module.key_dim
    q, k, v = layer(module.to_qkv, x_CHW).split([inner, inner, x_CHW.shape[0]])
    y = attended(*(part.flatten(1).unflatten(0, (n, -1)) for part in (q, k, v)))
    return layer(module.project, y.reshape(x_CHW.shape) + layer(module.position, v))


def by_head(attention: Any, x_CHW: Tensor, key: int, value: int, area: int | None = None) -> Tensor:
    """Ultralytics' order: query, key and value of the first head, then those of the second."""
    heads = layer(attention.qkv, x_CHW).flatten(1).split([key, key, value] * attention.num_heads)
    q, k, v = (torch.stack(heads[start::3]) for start in range(3))
    y = attended(q, k, v, area).reshape(x_CHW.shape)
    return layer(attention.proj, y + layer(attention.pe, v.reshape(x_CHW.shape)))


def area_slowly(module: AreaAttention, x_CHW: Tensor) -> Tensor:
    positions, width = x_CHW[0].numel(), x_CHW.shape[0] // module.attn.num_heads  # type: ignore[operator]
    y = x_CHW + by_head(module.attn, x_CHW, width, width, math.ceil(positions / module.attn.area))  # type: ignore[arg-type,operator]
    return y if module.mlp is None else y + layer(module.mlp[1], silu(layer(module.mlp[0], y)))


def psa_slowly(module: PSA, x_CHW: Tensor) -> Tensor:
    both = module.layer
    kept, b = silu(layer(both.cv1, x_CHW)).split(both.c)  # type: ignore[arg-type]
    for part in both.m:  # type: ignore[union-attr]
        width = b.shape[0] // part.attn.num_heads
        b = b + by_head(part.attn, b, width // 2, width)
        b = b + layer(part.ffn[1], silu(layer(part.ffn[0], b)))
    return silu(layer(both.cv2, torch.cat([kept, b])))


def layer_normed(norm: nn.LayerNorm, x_C: Tensor) -> Tensor:
    centred = x_C - x_C.sum() / len(x_C)
    return centred / (centred.square().sum() / len(x_C) + norm.eps).sqrt() * norm.weight + norm.bias


def aifi_slowly(module: AIFI, x_CHW: Tensor) -> Tensor:
    inner: Any = module.layer
    C, height, width = x_CHW.shape
    quarter, n = C // 4, inner.ma.num_heads
    placed = x_CHW.clone()
    for y, x, j in itertools.product(range(height), range(width), range(quarter)):
        for part, (angle, wave) in enumerate(itertools.product((y, x), (math.sin, math.cos))):
            placed[part * quarter + j, y, x] += wave(angle * 10000 ** (-j / quarter))
    weight, bias = inner.ma.in_proj_weight.chunk(3), inner.ma.in_proj_bias.chunk(3)
    q, k, v = (
        (w @ source.flatten(1) + b[:, None]).unflatten(0, (n, -1))
        for w, b, source in zip(weight, bias, (placed, placed, x_CHW), strict=True)
    )
    y = inner.ma.out_proj.weight @ attended(q, k, v).flatten(0, 1) + inner.ma.out_proj.bias[:, None]
    out = torch.empty(C, height * width)
    for i in range(height * width):
        z = layer_normed(inner.norm1, x_CHW.flatten(1)[:, i] + y[:, i])
        hidden = inner.fc1.weight @ z + inner.fc1.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        out[:, i] = layer_normed(inner.norm2, z + inner.fc2.weight @ hidden + inner.fc2.bias)
    return out.reshape(x_CHW.shape)


def hsm_ssd_slowly(module: HSMSSD, x_CHW: Tensor) -> Tensor:
    channels = x_CHW.shape[0]
    z = x_CHW.flatten(1)
    if isinstance(module.norm, nn.LayerNorm):
        z = torch.stack([layer_normed(module.norm, column) for column in z.T], 1)
    gather, hand_out, step = convolution(module.local, pointwise(module.to_states, z.reshape(x_CHW.shape))).flatten(1).chunk(3)
    out = torch.zeros_like(z)
    for s in range(len(step)):
        shares = (step[s] + module.offset[s]).exp()
        state = sum(shares[i] / shares.sum() * gather[s, i] * z[:, i] for i in range(z.shape[1]))
        u, v = (module.mix_in.weight[:, :, 0] @ state).chunk(2)
        mixed = module.mix_out.weight[:, :, 0] @ (u * silu(v) + module.skip_bias * u)
        out += mixed[:, None] * hand_out[s][None]
    return out.reshape(channels, *x_CHW.shape[1:])


SLOWLY: dict[str, Any] = {
    "NonLocal": non_local_slowly,
    "MHSA": mhsa_slowly,
    "AreaAttention": area_slowly,
    "PSA": psa_slowly,
    "AIFI": aifi_slowly,
    "HSMSSD": hsm_ssd_slowly,
}
ORACLE_CASES: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    *((name, params, (5, 7)) for name, params in VARIANTS),
    ("NonLocal", {"sub_sample": True}, (1, 3)),
    ("MHSA", {}, (3, 1)),
    ("AreaAttention", {"area": 4}, (1, 5)),  # three areas of two, the last half empty
    ("AreaAttention", {"area": 4}, (1, 1)),
    ("AreaAttention", {"area": 4}, (4, 6)),
    ("PSA", {"e": 1.0}, (2, 5)),
    ("AIFI", {}, (1, 6)),
    ("HSMSSD", {}, (1, 1)),
]


@pytest.mark.parametrize(("name", "params", "size"), ORACLE_CASES)
def test_each_mechanism_equals_its_slow_form(name: str, params: Params, size: tuple[int, int]) -> None:
    equals_slow_form(name, params, size, SLOWLY[name])


def test_slow_forms_hold_for_several_heads_of_partial_attention() -> None:
    """PSA has a head for 64 channels, so that narrow modules have one."""
    equals_slow_form("PSA", {"e": 1.0}, (3, 4), psa_slowly, channels=128)


def lively(name: str, params: Params, channels: int = CHANNELS) -> Gated:
    """As `enliven`, with biases drawn as well, which several of these mechanisms start with zeros."""
    module, noise = enliven(build(name, params, channels)), torch.Generator().manual_seed(3)
    for key, weight in module.named_parameters():
        if key.endswith("bias") and key != "gate_bias":
            nn.init.normal_(weight, std=0.5, generator=noise)
    return module


@each_variant
@torch.no_grad()
def test_each_mechanism_equals_its_plain_form(name: str, params: Params) -> None:
    module, x = lively(name, params), draw(2, 12, 16)
    torch.testing.assert_close(PLAIN[name](module)(x), module.mechanism(x), rtol=1e-4, atol=1e-5)


@each_variant
@torch.no_grad()
def test_plain_forms_train_alike(name: str, params: Params) -> None:
    module, x = lively(name, params).train(), draw(4, 6, 8)
    plain = PLAIN[name](copy.deepcopy(module))
    torch.testing.assert_close(plain(x), module.mechanism(x), rtol=1e-4, atol=1e-4)


# --- numbers of the references ----------------------------------------------------------------------------------------------------

REFERENCE_PARAMETERS = [
    ("NonLocal", 128, {}, 8_624),
    ("MHSA", 128, {"num_heads": 2}, 51_328),
    ("AreaAttention", 128, {}, 73_088),
    ("PSA", 128, {}, 63_424),
    ("AIFI", 128, {"mlp_ratio": 2.0}, 132_480),
    ("HSMSSD", 128, {"state_dim": 64, "norm": False}, 75_521),
]


@pytest.mark.parametrize(("name", "channels", "params", "count"), REFERENCE_PARAMETERS)
def test_parameters_match_the_references(name: str, channels: int, params: Params, count: int) -> None:
    assert record(name).parameters(channels, params) == count + channels


def test_macs_match_the_references() -> None:
    positions = 40 * 48
    assert record("MHSA").macs_count(128, 40, 48, {"num_heads": 2}) / 1e6 == pytest.approx(804.37, abs=5e-3)
    assert record("MHSA").macs_count(128, 40, 48, {"attn_ratio": 1.0}) == positions * (4 * 128**2 + 9 * 128) + 256 * positions**2
    assert record("AreaAttention").macs_count(128, 40, 48, {}) / 1e6 == pytest.approx(373.80, abs=5e-3)
    assert record("PSA").macs_count(128, 40, 40, {}) / 1e6 == pytest.approx(345, abs=1)
    assert record("HSMSSD").macs_count(128, 40, 40, {}) / 1e6 == pytest.approx(18, abs=0.5)
    assert record("HSMSSD").macs_count(64, 80, 80, {}) / 1e6 == pytest.approx(36, abs=0.5)


@pytest.mark.parametrize("name", list(SLOWLY))
def test_formulas_hold_for_every_choice_and_width(name: str) -> None:
    for channels, hyper in itertools.product((16, 24, 40, 64, 128, 192), record(name).hyperparameters):
        for choice in hyper.choices:
            params = {hyper.name: choice}
            assert sum(p.numel() for p in build(name, params, channels).parameters()) == record(name).parameters(channels, params)


@pytest.mark.parametrize(
    ("name", "channels", "params"),
    [
        ("MHSA", 64, {"num_heads": 0}),
        ("MHSA", 66, {"num_heads": 4}),
        ("MHSA", 64, {"attn_ratio": 0.0}),
        ("MHSA", 64, {"attn_ratio": 1.5}),
        ("AreaAttention", 64, {"num_heads": 0}),
        ("AreaAttention", 64, {"num_heads": 3}),
        ("AreaAttention", 64, {"area": 0}),
        ("AreaAttention", 64, {"mlp_ratio": -1.0}),
        ("PSA", 64, {"n": 0}),
        ("PSA", 64, {"e": 1.5}),
        ("PSA", 64, {"e": 0.02}),
        ("PSA", 200, {"e": 1.0}),
        ("AIFI", 30, {"num_heads": 2}),
        ("AIFI", 64, {"num_heads": 0}),
        ("AIFI", 64, {"mlp_ratio": 0.0}),
        ("HSMSSD", 64, {"state_dim": 0}),
        ("HSMSSD", 64, {"ssd_expand": 0.0}),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, channels: int, params: dict[str, Any]) -> None:
    (problem,) = record(name).violations(channels, params)
    with pytest.raises(ValueError, match="must hold") as caught:
        type(build(name))(channels, **params)
    assert str(caught.value) == problem


def test_maps_that_are_too_large_are_left_out() -> None:
    for name in ("MHSA", "PSA", "AIFI", "NonLocal"):
        assert record(name).violations(64, {}, (40, 40)) == []
        assert len(record(name).violations(64, {}, (40, 41))) == 1
    assert record("NonLocal").violations(64, {"sub_sample": True}, (56, 56)) == []
    assert len(record("NonLocal").violations(64, {"sub_sample": True}, (80, 80))) == 1
    assert record("AreaAttention").violations(64, {"area": 4}, (80, 80)) == []
    assert len(record("AreaAttention").violations(64, {"area": 1}, (80, 80))) == 1
    assert record("HSMSSD").violations(64, {}, (160, 160)) == []


# --- what the libraries keep ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_weights_of_the_libraries_fit() -> None:
    """State dicts of Ultralytics' blocks load under their own names, and give their outputs."""
    torch.manual_seed(0)
    x = draw(2, 8, 12)
    pairs: list[tuple[Any, Any, nn.Module]] = [
        (ultralytics_block.ABlock(CHANNELS, 4, 2.0, 4), area := AreaAttention(CHANNELS, mlp_ratio=2.0), area),
        (ultralytics_block.C2PSA(CHANNELS, CHANNELS, 2), psa := PSA(CHANNELS, 2), psa.layer),
        (EncoderLayer(CHANNELS, 64, 8), aifi := AIFI(CHANNELS), aifi.layer),
    ]
    for library, ours, target in pairs:
        target.load_state_dict({**({"gate_bias": ours.gate_bias} if target is ours else {}), **library.state_dict()})
        reference = theirs(library, library.state_dict(), ours.eval())
        torch.testing.assert_close(ours.mechanism(x), reference(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_psa_of_one_block_is_ultralytics_psa() -> None:
    module, x = lively("PSA", {}), draw(2, 9, 7)
    names = {"m.0.attn.": "attn.", "m.0.ffn.": "ffn."}
    weights = without_shell(module, "layer.")
    for old, new in names.items():
        weights = {key.replace(old, new): value for key, value in weights.items()}
    psa = theirs(ultralytics_block.PSA(CHANNELS, CHANNELS), weights, module)
    torch.testing.assert_close(module.mechanism(x), psa(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_non_local_is_timms_with_the_papers_scale() -> None:
    """timm scales by the channels of the map, starts its normalization with zeros, and adds the shortcut itself."""
    module, x = lively("NonLocal", {"rd_ratio": 0.25}), draw(2, 9, 7)
    assert isinstance(module, NonLocal)
    layer, weights = NonLocalAttn(CHANNELS, rd_ratio=0.25), without_shell(module)
    phi, g = (weights[f"phi_g.{kind}"].chunk(2) for kind in ("weight", "bias"))
    ours = {"t.weight": weights["theta.weight"], "t.bias": weights["theta.bias"], "z.weight": weights["leave.conv.weight"]}
    ours |= {"p.weight": phi[0], "p.bias": g[0], "g.weight": phi[1], "g.bias": g[1], "z.bias": weights["leave.conv.bias"]}
    ours |= {key.replace("leave.bn", "norm"): value for key, value in weights.items() if "leave.bn" in key}
    reference = theirs(layer, ours, module)
    assert (reference(x) - x - module.mechanism(x)).abs().max() > 1e-4
    layer.scale = 8**-0.5
    torch.testing.assert_close(reference(x) - x, module.mechanism(x), rtol=1e-4, atol=1e-5)


def test_names_of_ultralytics_stay_its_own() -> None:
    for name in ("PSA", "C2PSA", "AIFI", "A2C2f"):
        assert getattr(tasks, name).__module__.startswith("ultralytics.")
    assert tasks.PSA is ultralytics_block.PSA
    assert tasks.AIFI is EncoderLayer


@each_variant
@torch.no_grad()
def test_fusing_folds_every_normalization_and_changes_nothing(name: str, params: Params) -> None:
    module, x = enliven(build(name, params, gate=0.7)), draw(2, 9, 7)
    assert {part.eps for part in module.modules() if isinstance(part, nn.BatchNorm2d)} <= {EPS}
    fused = Holder(copy.deepcopy(module)).fuse(verbose=False)
    assert not [part for part in fused.modules() if isinstance(part, nn.BatchNorm2d)]
    torch.testing.assert_close(fused.model(x), module(x), rtol=1e-4, atol=1e-4)


# --- what is known to go wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params"), [("NonLocal", {}), ("AreaAttention", {"area": 1}), ("AIFI", {}), ("MHSA", {"attn_ratio": 1.0})]
)
def test_no_weights_of_n_by_n_are_written_out(name: str, params: Params) -> None:
    """A single head's weights on a 40 x 40 map take 9.8 MiB."""
    assert activation_mib(build(name, params), draw(1, 40, 40)) < 5
    assert activation_mib(nn.Sequential(as_module(PLAIN[name](build(name, params)))), draw(1, 40, 40)) > 9.7


def as_module(function: Any) -> nn.Module:
    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = function(x)
            return out

    return Wrapped()


@pytest.mark.parametrize("name", [*QUADRATIC, "HSMSSD"])
@torch.no_grad()
def test_softmax_keeps_its_precision_in_half(name: str) -> None:
    """Sharp logits of hundreds: in half precision a weight would be off by the logit's rounding, a tenth and more."""
    module, x = build(name), draw(1, 12, 12) * 8
    exact = module.mechanism(x.half().float())
    error = (copy.deepcopy(module).half().mechanism(x.half()).float() - exact).abs().max()
    assert error < 0.02 * exact.abs().max()


@pytest.mark.parametrize(("name", "params"), [("NonLocal", {}), ("MHSA", {}), ("AreaAttention", {"area": 1})])
@torch.no_grad()
def test_attention_does_not_know_positions_without_its_convolution(name: str, params: Params) -> None:
    module, x = enliven(build(name, params)), draw(1, 5, 6)
    for part in [module.position] if isinstance(module, MHSA) else [module.attn.pe] if isinstance(module, AreaAttention) else []:
        nn.init.zeros_(part.conv.weight)  # type: ignore[arg-type]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(2)[..., order].reshape(x.shape)
    expected = module.mechanism(x).flatten(2)[..., order].reshape(x.shape)
    torch.testing.assert_close(module.mechanism(shuffled), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_non_local_subsamples_the_whole_map() -> None:
    module = build("NonLocal", {"sub_sample": True})
    assert isinstance(module, NonLocal)
    x = torch.zeros(1, CHANNELS, 5, 3)
    x[..., 4, 2] = 7.0
    assert module.sampled(x).shape[2:] == (3, 2)
    assert module.sampled(x)[0, 0].tolist() == [[0, 0], [0, 0], [0, 7]]


@torch.no_grad()
def test_area_attention_takes_maps_that_areas_do_not_divide() -> None:
    """The reference fails on them: a map of stride 32 has any size in rectangular validation."""
    module, x = build("AreaAttention"), draw(1, 21, 13)
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        PLAIN["AreaAttention"](module)(x)
    assert module.mechanism(x).isfinite().all()
    for height, width in itertools.product((1, 2, 3, 5), (1, 2, 3, 7)):
        assert build("AreaAttention", {"area": 4}).mechanism(draw(2, height, width)).isfinite().all()


@torch.no_grad()
def test_area_padding_gets_no_attention() -> None:
    """Constant values come out as they went in, wherever a key beyond the map would have diluted them with zeros."""
    module = build("AreaAttention")
    assert isinstance(module, AreaAttention)
    nn.init.zeros_(module.attn.pe.conv.weight)  # type: ignore[union-attr,arg-type]
    y = module.branch(torch.ones(1, CHANNELS, 7, 3))
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y), rtol=1e-5, atol=1e-6)
    assert y.abs().min() > 1e-5


@torch.no_grad()
def test_areas_are_strips_of_rows() -> None:
    """A position moves what attention gives to its own strip, and nothing else."""
    module, x = build("AreaAttention"), draw(1, 8, 5)
    assert isinstance(module, AreaAttention)
    nn.init.zeros_(module.attn.pe.conv.weight)  # type: ignore[union-attr,arg-type]
    moved = x.clone()
    moved[..., 3, 2] += 1.0
    changed = (module.branch(moved) - module.branch(x)).abs().amax((0, 1)) > 1e-6
    assert changed.any(1).tolist() == [False, False, True, True, False, False, False, False]
    assert changed[2:4].all()


def test_gradients_of_areas_beyond_the_map_are_finite() -> None:
    """An area without a position on the map would be a softmax of nothing, whose gradient is not a number."""
    for (height, width), areas in (((1, 1), 1), ((1, 5), 3), ((3, 3), 3), ((2, 4), 4)):
        module, x = build("AreaAttention", gate=0.5).train(), draw(2, height, width).requires_grad_()
        parts, _ = module.attn.strips(draw(2, height, width, 3 * CHANNELS).flatten(2))  # type: ignore[union-attr,operator]
        assert parts.shape[:2] == (3, 2 * areas)
        module(x).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in (x, *module.parameters()))


@pytest.mark.parametrize("size", [(5, 9), (9, 5), (1, 7)])
@torch.no_grad()
def test_aifi_positions_follow_rows_and_columns(size: tuple[int, int]) -> None:
    """Older versions laid the grid out as (width, height), which is wrong on maps that are not square."""
    module, x = build("AIFI"), draw(1, *size)
    assert isinstance(module, AIFI)
    positions = module.layer.positions(x)  # type: ignore[operator]
    grid = positions.reshape(*size, CHANNELS)
    assert (grid[:, :, : CHANNELS // 2] == grid[:, :1, : CHANNELS // 2]).all()
    assert (grid[:, :, CHANNELS // 2 :] == grid[:1, :, CHANNELS // 2 :]).all()
    theirs = EncoderLayer.build_2d_sincos_position_embedding(size[1], size[0], CHANNELS, like=x)[0]
    torch.testing.assert_close(positions, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_aifi_positions_are_computed_in_single_precision(dtype: torch.dtype) -> None:
    """Angles of a hundred radians, rounded to bf16, would be off by half a radian."""
    module = build("AIFI")
    x = torch.zeros(1, CHANNELS, 3, 150)
    exact = module.layer.positions(x)  # type: ignore[union-attr,operator]
    positions = copy.deepcopy(module).to(dtype).layer.positions(x.to(dtype))  # type: ignore[union-attr,operator]
    assert positions.dtype == dtype
    assert torch.equal(positions, exact.to(dtype))


@torch.no_grad()
def test_aifi_values_have_no_positions() -> None:
    """With uniform attention on a constant map every position gives the same: positions reach queries and keys only."""
    module = build("AIFI")
    inner: Any = module.layer
    inner.ma.in_proj_weight[: 2 * CHANNELS] = 0.0
    y = module.mechanism(torch.ones(1, CHANNELS, 4, 6))
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_hsm_ssd_takes_maps_that_are_not_square() -> None:
    """The reference takes the square root of the positions for the height: 4 x 9 would be convolved as 6 x 6."""
    module, x = build("HSMSSD"), draw(1, 4, 9)
    wrong = module.mechanism(x.reshape(1, CHANNELS, 6, 6)).reshape(x.shape)
    assert (module.mechanism(x) - wrong).abs().max() > 1e-4
    turned = copy.deepcopy(module)
    assert isinstance(turned, HSMSSD)
    turned.local.weight.copy_(turned.local.weight.mT.clone())
    torch.testing.assert_close(turned.mechanism(x.mT).mT, module.mechanism(x), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_hsm_ssd_does_not_see_its_offset() -> None:
    """A softmax over positions cancels what is added to all of them; over states it would not."""
    module, x = build("HSMSSD"), draw(2, 6, 5)
    assert isinstance(module, HSMSSD)
    assert 1 <= float(module.offset.min()) < float(module.offset.max()) <= 16
    before = module.mechanism(x)
    module.offset.add_(torch.arange(16.0))
    torch.testing.assert_close(module.mechanism(x), before, rtol=1e-4, atol=1e-6)
    assert record("HSMSSD").unseen == ("offset",)


@torch.no_grad()
def test_hsm_ssd_takes_its_softmax_in_single_precision() -> None:
    """Beside an offset of 2000, half precision has steps of a whole unit, which would level or spike the weights."""
    module, x = build("HSMSSD"), draw(1, 6, 5).half()
    assert isinstance(module, HSMSSD)
    nn.init.constant_(module.offset, 2000.0)
    exact = module.mechanism(x.float())
    error = copy.deepcopy(module).half().mechanism(x).float() - exact
    assert error.abs().max() < 0.01 * exact.abs().max()


@torch.no_grad()
def test_hsm_ssd_norm_bounds_it() -> None:
    """Bare, it grows with the fifth power of its input; behind a normalization it does not grow."""
    x = draw(1, 7, 6)
    bounded, bare = build("HSMSSD"), build("HSMSSD", {"norm": False})
    torch.testing.assert_close(bounded.mechanism(1000 * x), bounded.mechanism(x), rtol=1e-3, atol=1e-5)
    assert bare.mechanism(1000 * x).abs().max() > 1e9 * bare.mechanism(x).abs().max()


def test_hsm_ssd_skip_is_free_of_weight_decay() -> None:
    """Ultralytics' optimizers leave out parameters with "bias" in their names, and weights of normalizations."""
    names = dict(build("HSMSSD").named_parameters())
    assert names["skip_bias"].tolist() == [1.0]
    assert isinstance(build("HSMSSD").norm, nn.LayerNorm)


@pytest.mark.parametrize("name", list(SLOWLY))
@pytest.mark.parametrize("size", [(12, 8), (1, 1)])
def test_batches_of_one_train(name: str, size: tuple[int, int]) -> None:
    module, x = build(name, gate=0.5).train(), draw(1, *size).requires_grad_()
    module(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


# --- export -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@each_variant
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_exports_take_maps_of_any_size(name: str, params: Params, dynamo: bool, tmp_path: Path) -> None:
    """Also ones with fewer positions than areas, and those that areas divide, from an export at one that they do not."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module, path = lively(name, params), tmp_path / "module.onnx"
    nn.init.constant_(module.gate_bias, 0.5)
    free = {"dynamic_shapes": (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)} if dynamo else {}
    axes = {} if dynamo else {"dynamic_axes": {key: {0: "b", 2: "h", 3: "w"} for key in ("x", "y")}}
    opset = 18 if dynamo else 17
    torch.onnx.export(
        module, (draw(2, 9, 7),), path, dynamo=dynamo, opset_version=opset, input_names=["x"], output_names=["y"], **free, **axes
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((2, 9, 7), (1, 20, 20), (3, 33, 13), (1, 1, 5), (2, 1, 1), (1, 4, 9)):
        x = draw(*size)
        (y,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), module(x).detach(), rtol=1e-3, atol=1e-3)
