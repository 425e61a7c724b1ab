"""The five first mechanisms in the plainest batched way, with the weights of our modules: what their speed is compared to.

Each follows the structure of its reference, faults put right that would make it another function: HaloAttention masks the outside of the
map, DoubleAttention's softmaxes run over positions and descriptors, CloAttention pools by ceiling.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Plain = Callable[[Tensor], Tensor]


def plain_lia(module: Any) -> Plain:
    """Maps of 7 x 7 and more; soft pooling as a quotient of two average pools of exponentials, which overflows from about 89."""

    def forward(x: Tensor) -> Tensor:
        z = module.squeeze(x)
        weight = torch.exp(z)
        pooled = functional.avg_pool2d(weight * z, 7, 3) / functional.avg_pool2d(weight, 7, 3)
        heat = torch.sigmoid(module.expand(module.shrink(pooled)))
        heat = functional.interpolate(heat, size=x.shape[2:], mode="bilinear", align_corners=False)
        return x * heat * torch.sigmoid(x[:, :1])

    return forward


def relative_to_absolute(logits: Tensor) -> Tensor:
    """(Z, r, 2v - 1) -> (Z, r, v): row i keeps the v columns from v - 1 - i on, which padding and reshaping shift into place."""
    Z, rows, columns = logits.shape
    keys = (columns + 1) // 2
    logits = functional.pad(logits, (0, 1)).reshape(Z, rows * (columns + 1))
    logits = functional.pad(logits, (0, columns - rows)).reshape(Z, rows + 1, columns)
    return logits[:, :rows, columns - keys :]


def plain_halo(module: Any) -> Plain:
    """Maps that the block divides; pixels are unfolded first, and the queries, keys and values of every window projected after that."""
    side, halo, window, n, d = module.block_size, module.halo_size, module.window, module.heads, module.dim_head
    project_q, project_kv = module.to_q.weight.flatten(1), module.to_kv.weight.flatten(1)

    def relative(q: Tensor, table: Tensor) -> Tensor:
        """(Z, side, side, d) of queries -> (Z, side, side, window): logits along their last axis of positions, and its windows'."""
        logits = torch.einsum("zxyd,rd->zxyr", q, table)
        return relative_to_absolute(logits.flatten(0, 1)).reshape(*q.shape[:3], window)

    def forward(x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        tall, wide = H // side, W // side
        P = tall * wide
        blocks = x.reshape(B, C, tall, side, wide, side).permute(0, 2, 4, 3, 5, 1).reshape(B * P, side * side, C)
        windows = functional.unfold(x, window, stride=side, padding=halo)
        windows = windows.reshape(B, C, window * window, P).permute(0, 3, 2, 1).reshape(B * P, window * window, C)
        q = functional.linear(blocks, project_q)
        k, v = functional.linear(windows, project_kv).chunk(2, dim=-1)
        q, k, v = (part.reshape(B * P, -1, n, d).transpose(1, 2).reshape(B * P * n, -1, d) for part in (q, k, v))
        q = q * d**-0.5
        logits = torch.einsum("zqd,zkd->zqk", q, k)

        grid = q.reshape(-1, side, side, d)
        columns = relative(grid, module.rel_columns).unsqueeze(3)  # (Z, row, column, 1, window column)
        rows = relative(grid.transpose(1, 2), module.rel_rows).transpose(1, 2).unsqueeze(4)  # (Z, row, column, window row, 1)
        logits = logits + (rows + columns).reshape(logits.shape)

        inside = functional.unfold(torch.ones_like(x[:1, :1]), window, stride=side, padding=halo)  # (1, window^2, P)
        outside = inside.transpose(1, 2).repeat(B, 1, 1).reshape(B * P, 1, 1, window * window) == 0
        logits = logits.reshape(B * P, n, side * side, window * window).masked_fill(outside, -torch.finfo(logits.dtype).max)
        attention = logits.softmax(dim=-1).reshape(B * P * n, side * side, window * window)
        out = torch.einsum("zqk,zkd->zqd", attention, v)
        out = out.reshape(B * P, n, side * side, d).transpose(1, 2).reshape(B * P, side * side, n * d)
        out = functional.linear(out, module.to_out.weight.flatten(1), module.to_out.bias)
        return out.reshape(B, tall, wide, side, side, C).permute(0, 5, 1, 3, 2, 4).reshape(B, C, H, W)

    return forward


def plain_double(module: Any) -> Plain:
    """Gathering and distributing as two products of batches of matrices."""

    def forward(x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        features, maps, vectors = module.features(x).flatten(2), module.gather(x).flatten(2), module.distribute(x).flatten(2)
        descriptors = torch.bmm(features, maps.softmax(dim=-1).transpose(1, 2))
        mixed = torch.bmm(descriptors, vectors.softmax(dim=1))
        return module.reconstruct(mixed.reshape(B, -1, H, W))

    return forward


def plain_lska(module: Any) -> Plain:
    """Four lines and a projection, one after another, with VAN's surroundings where the module has them."""

    def large_kernel(x: Tensor) -> Tensor:
        attention = module.near_row(x)
        attention = module.near_column(attention)
        attention = module.far_row(attention)
        attention = module.far_column(attention)
        return x * module.mix(attention)

    def projected(x: Tensor) -> Tensor:
        return module.project_out(large_kernel(module.project_in(x))) + x

    return large_kernel if module.project_in is None else projected


def plain_clo(module: Any) -> Plain:
    """Both branches by heads, the pooled one with its attention weights written out."""

    def local(part: Any, x: Tensor) -> Tensor:
        q, k, v = part.qkv(x).chunk(3, dim=1)
        weight = part.leave(functional.silu(part.enter(q * k)))
        return torch.tanh(weight * part.scale) * v

    def pooled(part: Any, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        window, heads = part.window_size, part.heads
        means = functional.avg_pool2d(x, window, window, ceil_mode=True, count_include_pad=False) if window > 1 else x
        q = part.to_q(x).reshape(B, heads, -1, H * W).transpose(2, 3)
        kv = part.to_kv(means)
        k, v = kv.reshape(B, 2, heads, -1, means.shape[2] * means.shape[3]).transpose(3, 4).unbind(1)
        attention = (q.shape[-1] ** -0.5 * q @ k.transpose(2, 3)).softmax(dim=-1)
        return (attention @ v).transpose(2, 3).reshape(B, -1, H, W)

    def forward(x: Tensor) -> Tensor:
        parts = []
        if module.local is not None:
            parts.append(local(module.local, x))
        if module.pooled is not None:
            parts.append(pooled(module.pooled, x))
        return module.project(torch.cat(parts, dim=1))

    return forward


PLAIN: dict[str, Callable[[Any], Plain]] = {
    "LIA": plain_lia,
    "HaloAttention": plain_halo,
    "DoubleAttention": plain_double,
    "LSKA": plain_lska,
    "CloAttention": plain_clo,
}
