"""Windowed mechanisms in the plainest correct batched form, with a module's own weights, in the order of their references' steps.

Each function takes a module and returns m(x) for maps that its windows divide. Softmaxes are written out, windows are cut one axis at a
time, and no projection is shared.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Mechanism = Callable[[Tensor], Tensor]


def _attention(q_nqd: Tensor, k_nkd: Tensor, v_nkd: Tensor, scale: float) -> Tensor:
    logits = (q_nqd * scale) @ k_nkd.transpose(-2, -1)
    return logits.softmax(dim=-1) @ v_nkd


def _per_head(x: Tensor, heads: int) -> Tensor:
    """(B, C, h, w) -> (B, heads, h * w, C / heads)."""
    B, C, h, w = x.shape
    return x.reshape(B, heads, C // heads, h * w).transpose(-2, -1)


def irmb(module: Any) -> Mechanism:
    def dilated(x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        side = module.window_size
        windows = x.reshape(B, C, side, H // side, side, W // side).permute(0, 3, 5, 1, 2, 4)
        return windows.reshape(-1, C, side, side)

    def mechanism(x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        side = module.window_size
        z = dilated(module.norm(x))
        q, k = module.to_qk(z).chunk(2, dim=1)
        v = z if module.attn_pre else module.to_v(z)
        heads = module.heads
        y = _attention(_per_head(q, heads), _per_head(k, heads), _per_head(v, heads), (q.shape[1] // heads) ** -0.5)
        y = y.transpose(-2, -1).reshape(B, H // side, W // side, -1, side, side).permute(0, 3, 4, 1, 5, 2).reshape(B, -1, H, W)
        y = module.to_v(y) if module.attn_pre else y
        return x + module.project(y + module.local(y))

    return mechanism


def cascaded(module: Any) -> Mechanism:
    def mechanism(x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        side = module.window_size
        windows = x.reshape(B, C, H // side, side, W // side, side).permute(0, 2, 4, 1, 3, 5).reshape(-1, C, side, side)
        parts = windows.chunk(len(module.to_qkv), dim=1)
        width, key_dim, found = parts[0].shape[1], module.key_dim, []
        feature = parts[0]
        for head, (to_qkv, mix_q) in enumerate(zip(module.to_qkv, module.mix_q, strict=True)):
            if head > 0:
                feature = feature + parts[head]
            q, k, v = to_qkv(feature).split([key_dim, key_dim, width], dim=1)
            q, k, v = mix_q(q).flatten(2), k.flatten(2), v.flatten(2)
            logits = (q.transpose(-2, -1) @ k) * key_dim**-0.5 + module.attention_biases[head][module.distances]
            feature = (v @ logits.softmax(dim=-1).transpose(-2, -1)).reshape(-1, width, side, side)
            found.append(feature)
        out = module.project(torch.cat(found, 1).relu())
        return out.reshape(B, H // side, W // side, C, side, side).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)

    return mechanism


def bra(module: Any) -> Mechanism:
    def windows(x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        S = module.n_win
        return x.reshape(B, C, S, H // S, S, W // S).permute(0, 2, 4, 3, 5, 1).reshape(B, S * S, H // S * (W // S), C)

    def mechanism(x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        S, heads, topk = module.n_win, module.heads, module.topk
        q_map, k_map, v_map = module.to_qkv(x).chunk(3, dim=1)
        q, kv = windows(q_map), windows(torch.cat([k_map, v_map], dim=1))
        P, cells = q.shape[1:3]
        with torch.no_grad():
            affinity = (q.mean(2) * C**-0.5) @ kv[..., :C].mean(2).transpose(-2, -1)
            chosen = affinity.topk(topk, dim=-1).indices
        index = chosen.reshape(B, P, topk, 1, 1).expand(-1, -1, -1, cells, 2 * C)
        gathered = kv.unsqueeze(1).expand(-1, P, -1, -1, -1).gather(2, index)
        k, v = gathered.reshape(B * P, topk * cells, 2 * C).chunk(2, dim=-1)
        q, k, v = (t.reshape(B * P, -1, heads, C // heads).transpose(1, 2) for t in (q, k, v))
        y = _attention(q, k, v, C**-0.5).transpose(1, 2).reshape(B, S, S, H // S, W // S, C)
        y = y.permute(0, 5, 1, 3, 2, 4).reshape(B, C, H, W)
        return module.project(y + module.local(v_map))

    return mechanism


def deformable(module: Any) -> Mechanism:
    def mechanism(x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        heads, width = module.heads, module.width
        q = module.to_q(x)
        hidden = module.offset_conv(q.reshape(-1, width, H, W))
        h, w = hidden.shape[2:]
        hidden = module.offset_norm(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weight = module.to_offset.weight.reshape(2, width, 1, 1)
        offset = functional.conv2d(functional.gelu(hidden), weight).permute(0, 2, 3, 1)
        shift = 0.5 if module.half_pixel else 0.0
        rows, columns = ((torch.arange(size, device=x.device) + shift) / (size - 1) * 2 - 1 for size in (h, w))
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
        if module.factor >= 0:
            place = grid + offset.tanh() * torch.tensor([1.0 / (w - 1), 1.0 / (h - 1)], device=x.device) * module.factor
        else:
            place = (grid + offset).clamp(-1.0, 1.0)
        sampled = functional.grid_sample(x.reshape(-1, width, H, W), place, mode="bilinear", align_corners=True).reshape(B, C, h, w)
        (k_weight, v_weight), (k_bias, v_bias) = module.to_kv.weight.chunk(2), module.to_kv.bias.chunk(2)
        k, v = functional.conv2d(sampled, k_weight, k_bias), functional.conv2d(sampled, v_weight, v_bias)
        y = _attention(_per_head(q, heads), _per_head(k, heads), _per_head(v, heads), (C // heads) ** -0.5)
        return module.project(y.transpose(-2, -1).reshape(B, C, H, W) + module.position(q))

    return mechanism


PLAIN: dict[str, Callable[[Any], Mechanism]] = {
    "iRMB": irmb,
    "CascadedGroupAttention": cascaded,
    "BRA": bra,
    "DAttention": deformable,
}
