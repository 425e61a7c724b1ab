"""Blocks of convolutions: against slow, obvious forms of themselves, and what is known to go wrong with them."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_tools import CHANNELS, Holder, Params, build, convolution, draw, enliven, equals_slow_form, normed, pointwise
from benchmarks.plain_block import PLAIN
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.conv import EPS
from nas_attn.attention.odconv import ODConv
from nas_attn.attention.rcs_osa import RCSOSA, Shuffled
from nas_attn.attention.sk import SK
from nas_attn.records import record

NAMES = ("RCSOSA", "ODConv", "DWR", "SK")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("RCSOSA", {}),
    ("RCSOSA", {"n": 4, "se": True}),
    ("RCSOSA", {"n": 1}),
    ("RCSOSA", {"e": 0.2}),
    ("ODConv", {}),
    ("ODConv", {"kernel_num": 1}),
    ("ODConv", {"kernel_size": 1}),
    ("ODConv", {"kernel_num": 1, "kernel_size": 1}),
    ("ODConv", {"kernel_size": 5, "reduction": 1, "temperature": 30.0}),
    ("DWR", {}),
    ("DWR", {"community": True}),
    ("SK", {}),
    ("SK", {"M": 3, "G": 1, "r": 2, "L": 4}),
]
each_variant = pytest.mark.parametrize(("name", "params"), VARIANTS, ids=[f"{name}-{params}" for name, params in VARIANTS])


# --- slow, obvious forms ----------------------------------------------------------------------------------------------------------


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def layer(conv_norm: Any, x_CHW: Tensor) -> Tensor:
    return normed(conv_norm.bn, convolution(conv_norm.conv, x_CHW))


def rep_vgg_slowly(block: Any, x_CHW: Tensor) -> Tensor:
    y = layer(block.conv1, x_CHW) + layer(block.conv2, x_CHW)
    return silu(y if block.bn is None else y + normed(block.bn, x_CHW))


def rcs_osa_slowly(module: RCSOSA, x_CHW: Tensor) -> Tensor:
    def stage(blocks: Any, x: Tensor) -> Tensor:
        for part in blocks:
            half = x.shape[0] // 2
            both = torch.cat([x[:half], rep_vgg_slowly(part.block, x[half:])])
            x = torch.stack([both[half * (c % 2) + c // 2] for c in range(2 * half)])
        return x

    first = rep_vgg_slowly(module.enter, x_CHW)
    second = stage(module.first, first)
    y = rep_vgg_slowly(module.leave, torch.cat([first, second, stage(module.second, second)]))
    if module.excite is None:
        return y
    shrink, _, grow, _ = module.excite.weigh
    mean = torch.stack([channel.sum() / channel.numel() for channel in y])
    weight = grow.weight[:, :, 0, 0] @ (shrink.weight[:, :, 0, 0] @ mean + shrink.bias).clamp(min=0) + grow.bias  # type: ignore[index,operator]
    return y * (1 / (1 + torch.exp(-weight)))[:, None, None]


def odconv_slowly(module: ODConv, x_CHW: Tensor) -> Tensor:
    """Attentions by name, then every filter composed from its channels, taps and kernels one by one."""
    channels, side, n = x_CHW.shape[0], module.kernel_size, module.kernels.shape[0]
    mean = x_CHW.mean((1, 2))[:, None, None]
    hidden = normed(module.squeeze.bn, pointwise(module.squeeze.conv, mean)).clamp(min=0)
    logits = pointwise(module.heads, hidden).flatten() / module.temperature
    of_channel, of_filter = logits[:channels].sigmoid(), logits[channels : 2 * channels].sigmoid()
    rest = logits[2 * channels :]
    of_tap = rest[: side * side].sigmoid() if side > 1 else torch.ones(1)
    of_kernel = rest[-n:].softmax(0) if n > 1 else torch.ones(1)
    bank = module.kernels.reshape(n, channels, channels, side, side)
    composed = nn.Conv2d(channels, channels, side, padding=side // 2, bias=False)
    composed.weight.zero_()
    for i in range(n):
        for row in range(side):
            for column in range(side):
                composed.weight[:, :, row, column] += of_kernel[i] * of_tap[row * side + column] * bank[i, :, :, row, column]
    return of_filter[:, None, None] * convolution(composed, of_channel[:, None, None] * x_CHW)


def dwr_slowly(module: Any, x_CHW: Tensor) -> Tensor:
    activation = functional.relu if isinstance(module.merge, nn.Conv2d) else silu
    regions = activation(layer(module.region, x_CHW))
    if isinstance(module.merge, nn.Conv2d):
        found = torch.cat([layer(branch, regions) for branch in module.semantic])
        return x_CHW + pointwise(module.merge, found)
    found = torch.cat([silu(layer(branch, regions)) for branch in module.semantic])
    return x_CHW + silu(normed(module.merge.bn, pointwise(module.merge.conv, found)))


def sk_slowly(module: SK, x_CHW: Tensor) -> Tensor:
    maps = [layer(branch, x_CHW).clamp(min=0) for branch in module.branches]
    hidden = normed(module.squeeze.bn, pointwise(module.squeeze.conv, sum(maps).mean((1, 2))[:, None, None])).clamp(min=0)  # type: ignore[union-attr,arg-type]
    channels = x_CHW.shape[0]
    out = torch.zeros_like(x_CHW)
    for c in range(channels):
        rows = [module.select.weight[i * channels + c, :, 0, 0] @ hidden[:, 0, 0] for i in range(len(maps))]
        shares = torch.stack([row + module.select.bias[i * channels + c] for i, row in enumerate(rows)]).exp()  # type: ignore[index]
        out[c] = sum(share / shares.sum() * part[c] for share, part in zip(shares, maps, strict=True))
    return out


SLOWLY: dict[str, Any] = {"RCSOSA": rcs_osa_slowly, "ODConv": odconv_slowly, "DWR": dwr_slowly, "SK": sk_slowly}
SIZES = {"RCSOSA": (4, 6), "ODConv": (5, 7), "DWR": (9, 7), "SK": (6, 5)}
ORACLE_CASES = [(name, params, SIZES[name]) for name, params in VARIANTS] + [
    ("RCSOSA", {"se": True}, (1, 5)),
    ("ODConv", {}, (1, 1)),
    ("DWR", {}, (1, 3)),
    ("SK", {}, (2, 1)),
]


@pytest.mark.parametrize(("name", "params", "size"), ORACLE_CASES)
def test_each_mechanism_equals_its_slow_form(name: str, params: Params, size: tuple[int, int]) -> None:
    equals_slow_form(name, params, size, SLOWLY[name])


@each_variant
@torch.no_grad()
def test_each_mechanism_equals_its_plain_form(name: str, params: Params) -> None:
    module, x = enliven(build(name, params)), draw(2, 12, 16)
    torch.testing.assert_close(PLAIN[name](module)(x), module.mechanism(x), rtol=1e-4, atol=1e-4)


@each_variant
@torch.no_grad()
def test_plain_forms_train_alike(name: str, params: Params) -> None:
    """Statistics of the batch are those of the published structure too."""
    module, x = enliven(build(name, params)).train(), draw(4, 6, 8)
    plain = PLAIN[name](copy.deepcopy(module))
    torch.testing.assert_close(plain(x), module.mechanism(x), rtol=1e-4, atol=1e-4)


# --- numbers of the references ----------------------------------------------------------------------------------------------------

REFERENCE_PARAMETERS = [
    ("RCSOSA", 128, {"n": 4}, 370_176),
    ("ODConv", 128, {}, 596_477),
    ("SK", 128, {}, 22_336),
]


@pytest.mark.parametrize(("name", "channels", "params", "count"), REFERENCE_PARAMETERS)
def test_parameters_match_the_references(name: str, channels: int, params: Params, count: int) -> None:
    assert record(name).parameters(channels, params) == count + channels


def test_dwr_has_the_weights_of_its_description() -> None:
    """The community's: 9/2 C^2 to condense, 9 C^2 for the dilations, 2 C^2 to merge; the paper's dilations are depthwise, 9 * 2C."""
    for community, weights in ((True, 15.5 * 64**2), (False, (4.5 + 2) * 64**2 + 18 * 64)):
        module = build("DWR", {"community": community}, 64)
        assert sum(p.numel() for p in module.parameters() if p.ndim == 4) == weights


def test_odconv_and_sk_cost_what_is_published() -> None:
    assert record("ODConv").macs_count(64, 80, 80, {}) == pytest.approx(236e6, rel=2e-3)
    for channels in (128, 256):
        pooled = 3 * channels * max(32, channels // 16)
        assert record("SK").macs_count(channels, 40, 48, {}) == 2 * 1920 * 9 * channels**2 // 32 + pooled


@each_variant
def test_formulas_hold_for_every_variant_and_width(name: str, params: Params) -> None:
    """Widths at which a block's input is as wide as its output, or groups do not divide, have formulas of their own."""
    for channels in (6, 8, 16, 24, 32, 48, 80):
        module = build(name, params, channels)
        assert sum(p.numel() for p in module.parameters()) == record(name).parameters(channels, params)


@pytest.mark.parametrize(
    ("name", "channels", "params"),
    [
        ("RCSOSA", 64, {"n": 0}),
        ("RCSOSA", 64, {"e": 0.0}),
        ("RCSOSA", 64, {"e": 1.5}),
        ("ODConv", 64, {"kernel_num": 0}),
        ("ODConv", 64, {"kernel_size": 4}),
        ("ODConv", 64, {"kernel_size": -1}),
        ("ODConv", 64, {"reduction": 0}),
        ("ODConv", 64, {"temperature": 0.0}),
        ("DWR", 33, {}),
        ("SK", 64, {"M": 1}),
        ("SK", 64, {"G": 0}),
        ("SK", 64, {"r": 0}),
        ("SK", 64, {"L": 0}),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, channels: int, params: dict[str, Any]) -> None:
    (problem,) = record(name).violations(channels, params)
    with pytest.raises(ValueError, match="must hold") as caught:
        type(build(name))(channels, **params)
    assert str(caught.value) == problem


# --- fusing -----------------------------------------------------------------------------------------------------------------------


@each_variant
@torch.no_grad()
def test_fusing_folds_every_normalization_and_changes_nothing(name: str, params: Params) -> None:
    module, x = enliven(build(name, params, gate=0.7)), draw(2, 9, 7)
    before = module(x)
    fused = Holder(copy.deepcopy(module)).fuse(verbose=False)
    assert fused.is_fused()
    assert not [part for part in fused.modules() if isinstance(part, nn.BatchNorm2d)]
    torch.testing.assert_close(fused.model(x), before, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_rcs_osa_fuses_each_block_into_one_convolution() -> None:
    fused = Holder(build("RCSOSA", {"n": 4})).fuse(verbose=False)
    convolutions = [part for part in fused.modules() if isinstance(part, nn.Conv2d)]
    assert [part.kernel_size for part in convolutions] == [(3, 3)] * 6


# --- what is known to go wrong, mechanism by mechanism ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(12, 8), (1, 1)])
def test_batches_of_one_train(name: str, size: tuple[int, int]) -> None:
    """A normalization behind a global pool raises there in the references of ODConv and SK."""
    module, x = build(name, gate=0.5).train(), draw(1, *size).requires_grad_()
    module(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@torch.no_grad()
def test_rcs_osa_keeps_a_block_a_stage_when_depth_is_scaled_down() -> None:
    """n // 2 of n = 1 is none: the reference joins three copies of one map."""
    assert record("RCSOSA").parameters(64, {"n": 1}) == record("RCSOSA").parameters(64, {"n": 2})
    module, x = RCSOSA(32, 1).eval(), draw(1, 6, 6)
    entered = module.enter(x)
    once = module.first(entered)
    assert not torch.equal(once, entered)
    assert not torch.equal(module.second(once), once)


@torch.no_grad()
def test_rcs_osa_shuffles_two_groups() -> None:
    """Passed channels land on even places in their order, and every channel is convolved after two shuffles of four."""
    part, x = Shuffled(8).eval(), draw(1, 5, 4, 8)
    y = part(x)
    assert torch.equal(y[:, 0::2], x[:, :4])
    assert torch.equal(y[:, 1::2], part.block(x[:, 4:]))
    torch.testing.assert_close(y, nn.ChannelShuffle(2)(torch.cat([x[:, :4], part.block(x[:, 4:])], 1)))


@torch.no_grad()
def test_rcs_osa_excitation_pools_maps_of_any_shape() -> None:
    """A pool of the map's width fails on, or leaves out, what is not square: weights follow the mean only, wherever its cells are."""
    module = build("RCSOSA", {"se": True})
    assert isinstance(module, RCSOSA)
    assert module.excite is not None
    x = draw(1, 12, 2)
    turned = x.mT.contiguous()
    torch.testing.assert_close(module.excite(turned), module.excite(x).mT, rtol=1e-5, atol=1e-6)
    ratio = module.excite(x) / x
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio), rtol=1e-4, atol=1e-5)


def fixed_attentions(module: ODConv, logits: Tensor) -> ODConv:
    nn.init.zeros_(module.heads.weight)
    module.heads.bias.copy_(logits)  # type: ignore[union-attr]
    return module


@torch.no_grad()
def test_odconv_with_constant_attentions_is_a_convolution() -> None:
    module, x = ODConv(8).eval(), draw(2, 6, 5, 8)
    open_all = torch.cat([torch.full((25,), 40.0), torch.zeros(4)])
    expected = functional.conv2d(x, module.kernels.mean(0).reshape(8, 8, 3, 3), padding=1)
    torch.testing.assert_close(fixed_attentions(module, open_all).mechanism(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_odconv_attentions_are_those_of_their_dimensions() -> None:
    """Channels, filters and taps are weighed by sigmoids of their own, and the shares of the kernels sum to one."""
    module, x = ODConv(8).eval(), draw(3, 6, 5, 8)
    a_c, a_f, a_s, a_w = module.attentions(x)
    assert a_s is not None
    assert a_w is not None
    assert [tuple(part.shape) for part in (a_c, a_f, a_s, a_w)] == [(3, 8), (3, 8), (3, 9), (3, 4)]
    torch.testing.assert_close(a_w.sum(1), torch.ones(3))
    assert ((a_c.sum(1) - 1).abs() > 0.1).all()
    closed = torch.zeros(29)
    closed[8 + 3] = -200.0  # the fourth filter
    y = fixed_attentions(module, closed).mechanism(x)
    assert (y[:, 3] == 0).all()
    assert (y[:, :3].abs().amax((2, 3)) > 0).all()


@torch.no_grad()
def test_odconv_gives_each_image_its_own_kernel() -> None:
    """With groups laid out wrongly, images would swap kernels, or a batch of different images would share one."""
    module, x = build("ODConv"), draw(3, 6, 5)
    x[1] += 3.0
    assert isinstance(module, ODConv)
    a_c, _, a_s, a_w = module.attentions(x)
    kernels = module.mixed(a_c, a_s, a_w)
    assert (kernels[0] - kernels[1]).abs().max() > 1e-4
    torch.testing.assert_close(module.mechanism(x.flip(0)), module.mechanism(x).flip(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_odconv_exported_form_equals_the_grouped_one(kernel_size: int) -> None:
    """What an export leaves open in the batch is the same function, and the same gradients."""
    module, x = ODConv(16, 2, kernel_size), draw(3, 6, 5, 16)
    kernel = module.kernels.detach()[:1].expand(3, -1, -1).clone()
    grads = []
    for form in (module.convolved, module.unfolded):
        leaves = x.clone().requires_grad_(), kernel.clone().requires_grad_()
        y = form(*leaves)
        grads.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_odconv_cools_down() -> None:
    """A high temperature makes the shares of the kernels even; with a low one they follow the image."""
    x = draw(1, 6, 5) * 5
    hot, cold = (build("ODConv", {"temperature": t}).attentions(x)[3] for t in (1e4, 0.05))  # type: ignore[operator]
    torch.testing.assert_close(hot, torch.full((1, 4), 0.25), rtol=1e-3, atol=1e-3)
    assert cold.max() > 0.5


@torch.no_grad()
def test_dwr_looks_at_three_ranges() -> None:
    """A 3x3 kernel and dilations 1, 3, 5 behind it: 5, 9 and 13 cells, with the gaps that a dilation leaves."""
    module = build("DWR", {}, 8)
    impulse = torch.zeros(1, 8, 17, 17)
    impulse[..., 8, 8] = 1.0
    nn.init.ones_(module.region.conv.weight)  # type: ignore[union-attr,arg-type]
    for branch, side, width in zip(module.semantic, (5, 9, 13), (8, 4, 4), strict=True):  # type: ignore[arg-type]
        nn.init.ones_(branch.conv.weight)  # type: ignore[union-attr,arg-type]
        seen = branch(module.region(impulse))[0] != 0  # type: ignore[operator]
        assert seen.shape[0] == width
        rows, columns = seen.any(0).nonzero().unbind(1)
        assert int(rows.max() - rows.min() + 1) == int(columns.max() - columns.min() + 1) == side


@torch.no_grad()
def test_dwr_keeps_its_second_step_linear() -> None:
    """The paper's dilations are depthwise and have no activation: an image of twice the regions gives twice the findings."""
    module = build("DWR", {}, 16)
    assert [branch.conv.groups for branch in module.semantic] == [8, 8, 8]  # type: ignore[union-attr]
    regions = draw(1, 7, 6, 8).abs()
    for branch in module.semantic:  # type: ignore[union-attr]
        torch.testing.assert_close(branch(2 * regions), 2 * branch(regions))
        assert branch(regions).min() < 0
    assert [branch.conv.groups for branch in build("DWR", {"community": True}).semantic] == [1, 1, 1]  # type: ignore[union-attr]


@torch.no_grad()
def test_sk_chooses_among_branches() -> None:
    """A softmax over another dimension than the branches' (a bug that circulated) would not sum to one for each channel."""
    module, x = SK(32, 3).eval(), draw(2, 7, 9)
    maps = [branch(x) for branch in module.branches]
    weights = module.choice(maps)
    assert len(weights) == 3
    torch.testing.assert_close(sum(weights), torch.ones(2, 32, 1, 1))
    nn.init.zeros_(module.select.weight)
    module.select.bias.view(3, 32)[1] = 50.0  # type: ignore[union-attr]
    torch.testing.assert_close(module.mechanism(x), maps[1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_sk_branches_see_the_whole_input_at_growing_ranges() -> None:
    """timm splits the input among the branches by default; the paper gives all of it to each."""
    module = SK(64, 3)
    for i, branch in enumerate(module.branches, 1):
        assert (branch.conv.in_channels, branch.conv.out_channels) == (64, 64)  # type: ignore[union-attr]
        assert branch.conv.dilation == branch.conv.padding == (i, i)  # type: ignore[union-attr]


def test_sk_groups_divide_any_number_of_channels() -> None:
    for channels, groups in ((128, 32), (64, 32), (48, 16), (16, 16), (24, 8), (7, 1)):
        assert record("SK").resolve(channels, {})["groups"] == groups
        assert build("SK", {}, channels).branches[0].conv.groups == groups  # type: ignore[index,union-attr]


def test_normalizations_are_ultralytics_own() -> None:
    """Their epsilon is set by the detector's builder on plain ones only; a mixture would not fold alike."""
    for name, params in VARIANTS:
        norms = [part for part in build(name, params).modules() if isinstance(part, nn.BatchNorm2d)]
        assert {norm.eps for norm in norms} == {EPS}


# --- export and compilation -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@each_variant
def test_compiles_without_a_break(name: str, params: Params) -> None:
    torch.compiler.reset()
    module = enliven(build(name, params, gate=0.5)).train()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    for batch, height, width in [(2, 8, 12), (3, 9, 7)]:
        x = draw(batch, height, width)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@each_variant
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_is_dynamic_in_both_exporters(name: str, params: Params, dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module, path = enliven(build(name, params, gate=0.5)), tmp_path / "module.onnx"
    axes = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            sizes = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
            torch.onnx.export(module, (draw(2, 20, 24),), path, dynamo=True, dynamic_shapes=(sizes,), verbose=False)
        else:
            named = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": axes, "y": axes}}
            torch.onnx.export(module, (draw(2, 20, 24),), path, dynamo=False, opset_version=17, **named)  # type: ignore[arg-type]
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, height, width in [(2, 20, 24), (1, 21, 13), (3, 7, 30), (1, 1, 1)]:
        x = draw(batch, height, width, CHANNELS)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), module(x).detach(), rtol=1e-4, atol=1e-4)
