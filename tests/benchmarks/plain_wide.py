"""The mechanisms that see the whole map in the plainest batched way, with the weights of our modules: what their speed is compared to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from ultralytics.nn.modules.block import C2PSA, AAttn, ABlock, Attention
from ultralytics.nn.modules.transformer import AIFI as EncoderLayer  # noqa: N811

from nas_attn.attention.conv import EPS, MOMENTUM

Plain = Callable[[Tensor], Tensor]


def theirs(layer: nn.Module, weights: dict[str, Tensor], like: nn.Module) -> nn.Module:
    """A library's module with our weights, mode, and constants of normalizations."""
    layer.load_state_dict(weights)
    for part in layer.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps, part.momentum = EPS, MOMENTUM
    return layer.train(like.training)


def without_shell(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The weights behind the gate, under the library's names."""
    weights = {key: value for key, value in module.state_dict().items() if key != "gate_bias"}
    return {key.removeprefix(prefix): value for key, value in weights.items()}


def plain_non_local(module: Any) -> Plain:
    """timm's structure: three convolutions, weights of N x K written out, softmax, sum, convolution and normalization."""

    def forward(x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        pooled = functional.max_pool2d(x, 2, ceil_mode=True) if module.sub_sample else x
        k, v = module.phi_g(pooled).chunk(2, dim=1)
        q = module.theta(x).flatten(2).transpose(1, 2)
        weights = (torch.bmm(q, k.flatten(2)) * q.shape[2] ** -0.5).softmax(dim=2)
        y = torch.bmm(weights, v.flatten(2).transpose(1, 2))
        return module.leave(y.transpose(1, 2).reshape(B, -1, H, W))

    return forward


def plain_mhsa(module: Any) -> Plain:
    """Ultralytics' `Attention`, whose channels go head by head."""
    n, inner = module.num_heads, module.num_heads * module.key_dim
    channels = module.project.conv.out_channels
    rows = torch.cat([part.reshape(n, -1) for part in torch.arange(2 * inner + channels).split([inner, inner, channels])], 1).flatten()
    attention = Attention(channels, n, module.key_dim / module.head_dim)
    names = {"to_qkv": "qkv", "position": "pe", "project": "proj"}
    weights = {}
    for key, value in without_shell(module).items():
        layer, _, rest = key.partition(".")
        weights[f"{names[layer]}.{rest}"] = value[rows] if layer == "to_qkv" and value.ndim else value
    return theirs(attention, weights, module)


def plain_area(module: Any) -> Plain:
    """Ultralytics' `ABlock`, or its `AAttn` with a shortcut."""
    channels, heads, area = module.gate_bias.numel(), module.attn.num_heads, module.attn.area
    if module.mlp is not None:
        block = ABlock(channels, heads, module.mlp[0].conv.out_channels / channels, area)
        return theirs(block, without_shell(module), module)
    attention = theirs(AAttn(channels, heads, area), without_shell(module, "attn."), module)
    return lambda x: x + attention(x)


def plain_psa(module: Any) -> Plain:
    """Ultralytics' `C2PSA`."""
    channels = module.gate_bias.numel()
    layer = C2PSA(channels, channels, len(module.layer.m), module.layer.c / channels)
    return theirs(layer, without_shell(module, "layer."), module)


def plain_aifi(module: Any) -> Plain:
    """Ultralytics' `AIFI`."""
    layer = EncoderLayer(module.gate_bias.numel(), module.layer.fc1.out_features, module.layer.ma.num_heads)
    return theirs(layer, without_shell(module, "layer."), module)


def plain_hsm_ssd(module: Any) -> Plain:
    """The reference's structure, with the map's real sides: states, softmax, weights, gated mixer, product."""

    def layer_norm(x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        x = centred / (centred.square().mean(dim=1, keepdim=True) + module.norm.eps).sqrt()
        return x * module.norm.weight.view(1, -1, 1, 1) + module.norm.bias.view(1, -1, 1, 1)

    def forward(x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        if not isinstance(module.norm, nn.Identity):
            x = layer_norm(x)
        gather, hand_out, step = module.local(module.to_states(x)).flatten(2).chunk(3, dim=1)
        weights = (step + module.offset.view(1, -1, 1)).softmax(dim=-1) * gather
        h, z = module.mix_in(x.flatten(2) @ weights.transpose(-2, -1)).chunk(2, dim=1)
        h = module.mix_out(h * functional.silu(z) + h * module.skip_bias)
        return (h @ hand_out).view(B, C, H, W)

    return forward


PLAIN: dict[str, Callable[[Any], Plain]] = {
    "NonLocal": plain_non_local,
    "MHSA": plain_mhsa,
    "AreaAttention": plain_area,
    "PSA": plain_psa,
    "AIFI": plain_aifi,
    "HSMSSD": plain_hsm_ssd,
}
