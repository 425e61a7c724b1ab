"""The mechanisms that weigh channels, as plainly as a careful reader of their references would write them, on our weights.

`PLAIN[name](module)` gives a callable that computes `module.mechanism(x)`; timm's own modules where timm has the mechanism.
Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import EfficientChannelAttn, GlobalContext, SEModule
from timm.layers.cbam import CbamModule
from timm.layers.coord_attn import CoordAttn
from torch import Tensor, nn
from torch.nn import functional

Plain = Callable[[Tensor], Tensor]


def _of_timm(module: nn.Module, ours: nn.Module) -> Plain:
    module.load_state_dict(ours.state_dict())
    return module.train(ours.training)


def se(module: Any) -> Plain:
    return _of_timm(SEModule(len(module.gate_bias), rd_channels=module.layer.fc1.out_channels), module.layer)


def eca(module: Any) -> Plain:
    return _of_timm(EfficientChannelAttn(kernel_size=module.layer.conv.kernel_size[0]), module.layer)


def global_context(module: Any) -> Plain:
    mul = module.channel_mul
    network = module.layer.mlp_scale if mul else module.layer.mlp_add
    timm = GlobalContext(len(module.gate_bias), fuse_add=not mul, fuse_scale=mul, rd_channels=network.fc1.out_channels)
    return _of_timm(timm, module.layer)


def senetv2(module: Any, branches: int = 4) -> Plain:
    """`branches` linear layers side by side, as in the reference."""
    layers = [part.chunk(branches) for part in (module.squeeze.weight[:, :, 0, 0], module.squeeze.bias)]
    last = module.excite.weight[:, :, 0, 0], module.excite.bias

    def forward(x_BCHW: Tensor) -> Tensor:
        mean = functional.adaptive_avg_pool2d(x_BCHW, 1).flatten(1)
        hidden = torch.cat([functional.relu(functional.linear(mean, w, b)) for w, b in zip(*layers, strict=True)], 1)
        scaled = x_BCHW * torch.sigmoid(functional.linear(hidden, *last))[:, :, None, None]
        return x_BCHW + scaled if module.residual else scaled

    return forward


def nam(module: Any) -> Plain:
    """Channels last for the product with one weight a channel, and back, as in the reference."""

    def forward(x_BCHW: Tensor) -> Tensor:
        z = module.norm(x_BCHW)
        scale = module.norm.weight.detach().abs() / module.norm.weight.detach().abs().sum()
        z = z.permute(0, 2, 3, 1).contiguous().mul(scale).permute(0, 3, 1, 2).contiguous()
        return torch.sigmoid(z) * x_BCHW

    return forward


def simam(module: Any) -> Plain:
    def forward(x_BCHW: Tensor) -> Tensor:
        n = x_BCHW.shape[2] * x_BCHW.shape[3] - 1
        d = (x_BCHW - x_BCHW.mean((2, 3), keepdim=True)).pow(2)
        y = d / (4 * (d.sum((2, 3), keepdim=True) / n + module.e_lambda)) + 0.5
        return x_BCHW * torch.sigmoid(y)

    return forward


def cbam(module: Any) -> Plain:
    """timm's takes the mean before the maximum."""
    kernel = module.locate.conv.kernel_size[0]
    timm = CbamModule(len(module.gate_bias), rd_ratio=1.0, spatial_kernel_size=kernel, mlp_bias=True)
    timm.channel.fc1, timm.channel.fc2 = module.squeeze, module.excite
    timm.spatial.conv.conv.weight = nn.Parameter(module.locate.conv.weight.detach().flip(1))
    timm.spatial.conv.bn.load_state_dict(module.locate.bn.state_dict())
    timm.spatial.conv.bn.eps = module.locate.bn.eps
    return timm.train(module.training)


def coord(module: Any) -> Plain:
    timm = CoordAttn(len(module.gate_bias), rd_channels=module.rows.in_channels, bias=True)
    timm.conv1.weight, timm.conv_h, timm.conv_w = module.squeeze.conv.weight, module.rows, module.columns
    timm.conv1.bias = module.squeeze.conv.bias
    timm.bn1.load_state_dict(module.squeeze.bn.state_dict())
    timm.bn1.eps = module.squeeze.bn.eps
    return timm.train(module.training)


PLAIN: dict[str, Callable[[Any], Plain]] = {
    "SE": se,
    "ECA": eca,
    "GlobalContext": global_context,
    "SENetV2": senetv2,
    "NAM": nam,
    "SimAM": simam,
    "CBAM": cbam,
    "CoordAtt": coord,
}
