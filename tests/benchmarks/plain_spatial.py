"""The spatial mechanisms in their plainest batched form, with the weights of a module of ours: what ours are timed against.

Each follows the structure of the published code, step by step, without equalities that save work and without care for half precision.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Plain = Callable[[Tensor], Tensor]


def esa(module: Any) -> Plain:
    """The pooled map enlarged, added to a 1x1 convolution, squashed; maps of 15 x 15 and more."""

    def forward(x_BCHW: Tensor) -> Tensor:
        z = module.squeeze(x_BCHW)
        pooled = module.refine[0](functional.max_pool2d(module.shrink(z), 7, 3))
        for layer in module.refine[1:]:
            pooled = layer(functional.relu(pooled))
        up = functional.interpolate(pooled, size=x_BCHW.shape[2:], mode="bilinear", align_corners=False)
        return x_BCHW * torch.sigmoid(module.expand(up + module.shortcut(z)))

    return forward


def mlca(module: Any) -> Plain:
    """Adaptive pools in both directions."""
    size, share = module.local_size, module.local_weight

    def forward(x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        local = functional.adaptive_avg_pool2d(x_BCHW, size)
        overall = functional.adaptive_avg_pool2d(local, 1)
        of_cells = module.of_cells(local.view(B, C, -1).transpose(1, 2).reshape(B, 1, -1))
        of_map = module.of_map(overall.view(B, C, -1).transpose(1, 2))
        w_local = of_cells.view(B, size * size, C).transpose(1, 2).view(B, C, size, size).sigmoid()
        w_overall = functional.adaptive_avg_pool2d(of_map.transpose(1, 2).unsqueeze(-1).sigmoid(), size)
        weight = functional.adaptive_avg_pool2d(w_overall * (1 - share) + w_local * share, (H, W))
        return x_BCHW * weight

    return forward


def ema(module: Any) -> Plain:
    """Both branches built as maps, each weighted by the softmax of the other's mean."""

    def forward(x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        c = module.width
        g = x_BCHW.reshape(-1, c, H, W)
        rows, columns = g.mean(3, keepdim=True), g.mean(2, keepdim=True).permute(0, 1, 3, 2)
        h, w = module.lines(torch.cat([rows, columns], 2)).split([H, W], 2)
        x1 = functional.group_norm(g * h.sigmoid() * w.permute(0, 1, 3, 2).sigmoid(), c, module.norm.weight, module.norm.bias)
        x2 = module.neighbourhood(g)
        share1 = functional.adaptive_avg_pool2d(x1, 1).flatten(1).unsqueeze(1).softmax(-1)
        share2 = functional.adaptive_avg_pool2d(x2, 1).flatten(1).unsqueeze(1).softmax(-1)
        weight = (share1 @ x2.flatten(2) + share2 @ x1.flatten(2)).reshape(-1, 1, H, W)
        return (g * weight.sigmoid()).reshape(B, C, H, W)

    return forward


def shuffle(module: Any) -> Plain:
    """Halves weighed one by one, concatenated, then shuffled."""
    c = module.width

    def column(parameter: Tensor) -> Tensor:
        return parameter.view(1, c, 1, 1)

    def forward(x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        a, b = x_BCHW.reshape(-1, 2 * c, H, W).chunk(2, dim=1)
        mean = functional.adaptive_avg_pool2d(a, 1)
        a = a * torch.sigmoid(column(module.channel_weight) * mean + column(module.channel_bias))
        b = b * torch.sigmoid(column(module.spatial_weight) * module.norm(b) + column(module.spatial_bias))
        joined = torch.cat([a, b], 1).reshape(B, 2, C // 2, H, W)
        return joined.permute(0, 2, 1, 3, 4).reshape(B, C, H, W)

    return forward


def triplet(module: Any) -> Plain:
    """x rotated twice, weighed and rotated back."""

    def weighed(x: Tensor, layer: Any) -> Tensor:
        squeezed = torch.cat([x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)], 1)
        return x * torch.sigmoid(layer(squeezed))

    def forward(x_BCHW: Tensor) -> Tensor:
        by_column = weighed(x_BCHW.permute(0, 2, 1, 3).contiguous(), module.channels_columns).permute(0, 2, 1, 3).contiguous()
        by_row = weighed(x_BCHW.permute(0, 3, 2, 1).contiguous(), module.rows_channels).permute(0, 3, 2, 1).contiguous()
        if module.rows_columns is None:
            return (by_column + by_row) / 2
        return (by_column + by_row + weighed(x_BCHW, module.rows_columns)) / 3

    return forward


def gam(module: Any) -> Plain:
    """The perceptron as linear layers over the last axis."""
    first, second = module.squeeze, module.expand

    def forward(x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        tokens = x_BCHW.permute(0, 2, 3, 1).reshape(B, -1, C)
        hidden = functional.relu(functional.linear(tokens, first.weight[:, :, 0, 0], first.bias))
        weight = functional.linear(hidden, second.weight[:, :, 0, 0], second.bias).reshape(B, H, W, C).permute(0, 3, 1, 2)
        x = x_BCHW * (weight.sigmoid() if module.channel_sigmoid else weight)
        spatial = module.gather(x)
        if module.groups > 1:
            spatial = functional.channel_shuffle(spatial, module.groups)
        return x * module.spread(spatial).sigmoid()

    return forward


def context_aggregation(module: Any) -> Plain:
    """Values projected at every position, then summed."""
    a_layer, k_layer = ((weight, bias) for weight, bias in zip(module.maps.weight.chunk(2), module.maps.bias.chunk(2), strict=True))

    def forward(x_BCHW: Tensor) -> Tensor:
        B, _, H, W = x_BCHW.shape
        a = functional.conv2d(x_BCHW, *a_layer).sigmoid()
        k = functional.conv2d(x_BCHW, *k_layer).view(B, 1, H * W).softmax(2)
        v = module.value(x_BCHW).view(B, -1, H * W)
        context = (v @ k.transpose(1, 2)).unsqueeze(-1)
        return x_BCHW + module.project(context) * a

    return forward


def lka(module: Any) -> Plain:
    """Three convolutions and a product."""

    def core(z_BCHW: Tensor) -> Tensor:
        return z_BCHW * module.mix(module.far(module.near(z_BCHW)))

    if module.project_in is None:
        return core
    return lambda x_BCHW: x_BCHW + module.project_out(core(functional.gelu(module.project_in(x_BCHW))))


PLAIN: dict[str, Callable[[Any], Plain]] = {
    "ESA": esa,
    "MLCA": mlca,
    "EMA": ema,
    "ShuffleAttention": shuffle,
    "TripletAttention": triplet,
    "GAM": gam,
    "ContextAggregation": context_aggregation,
    "LKA": lka,
}
