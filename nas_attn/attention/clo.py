"""CloAttention: context-aware local weights beside attention over pooled keys.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W; n heads of d channels, G = local channels, L = pooled channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class LocalBranch(nn.Module):
    """The high frequencies: tanh(scale * attention_map(q * k)) * v, with q, k, v from a 1x1 and a depthwise convolution."""

    def __init__(self, channels: int, width: int, kernel_size: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.qkv = nn.Sequential(
            nn.Conv2d(channels, 3 * width, 1),
            nn.Conv2d(3 * width, 3 * width, kernel_size, padding=kernel_size // 2, groups=3 * width),
        )
        self.enter, self.leave = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW -> (B, G, H, W), never larger than v in magnitude."""
        q, k, v = self.qkv(x_BCHW).chunk(3, dim=1)
        hidden = functional.silu(saturate(self.enter(saturate(q * k))))
        weight = torch.tanh(self.scale * self.leave(hidden))
        out: Tensor = weight * v
        return out


class PooledBranch(nn.Module):
    """The low frequencies: every position attends to keys and values of an average-pooled map."""

    def __init__(self, channels: int, width: int, heads: int, window_size: int) -> None:
        super().__init__()
        self.heads, self.window_size = heads, window_size
        self.to_q = nn.Conv2d(channels, width, 1)
        self.to_kv = nn.Conv2d(channels, 2 * width, 1)

    def pooled(self, x_BCHW: Tensor) -> Tensor:
        """Means over windows; a window that leaves the map is the mean of its cells inside, so that no cell is dropped."""
        if self.window_size == 1:
            return x_BCHW
        return functional.avg_pool2d(x_BCHW, self.window_size, self.window_size, ceil_mode=True, count_include_pad=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW -> (B, L, H, W). The fused kernel keeps its softmax in single precision and scales by 1 / sqrt(d)."""
        B, _, H, W = x_BCHW.shape
        # It also needs channels last in memory; without that it falls back to writing out all N x (N / window^2) weights.
        q = self.to_q(x_BCHW).flatten(2).unflatten(1, (self.heads, -1)).transpose(-2, -1).contiguous()
        k, v = self.to_kv(self.pooled(x_BCHW)).flatten(2).unflatten(1, (2, self.heads, -1)).transpose(-2, -1).contiguous().unbind(1)
        return functional.scaled_dot_product_attention(q, k, v).transpose(-2, -1).reshape(B, -1, H, W)


class CloAttention(Gated):
    """A local branch with weights from context and a global branch over pooled keys, side by side, joined by a projection.

    Rule: m(x) = conv1([tanh(d^-1/2 * M(q * k)) * v, softmax(d^-1/2 q' K^T) V]), with q, k, v from a 1x1 and a depthwise convolution of
    n_local heads, M = conv1-SiLU-conv1, and K, V from the averages over windows for the other heads. A(x) = m(x).
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1.
    Hyperparameters: window_size = 4 (>= 1; searched 1, 2, 4), kernel_size = 5 (odd; searched 3, 5, 7), num_heads = 8 (a divisor of
    C), n_local = 4 (0 to num_heads; a branch without heads is left out).
    Raises SpaceError where the record's constraints do not hold.
    Source: Rethinking Local Perception in Lightweight Vision Transformer, arXiv 2303.17803 (2023); qhfan/CloFormer@9181f69, MIT.
    Differs from the paper in: an identity gate in place of the block's group norm, drop path and feed-forward network; one local
    branch; windows at the border are kept (the reference drops them and fails on maps that its window does not divide); no dropout.
    Checked: equal to a loop over positions within 1e-5; pooling equal to the reference's on maps that the window divides; parameters
    and MACs equal to the record's formulas; ONNX (torch.export) equal to eager at other sizes than the exported one.
    """

    def __init__(self, channels: int, window_size: int = 4, kernel_size: int = 5, num_heads: int = 8, n_local: int = 4) -> None:
        values = record("CloAttention").resolve(
            channels, {"window_size": window_size, "kernel_size": kernel_size, "num_heads": num_heads, "n_local": n_local}
        )
        super().__init__(channels)
        local, pooled, scale = int(values["local"]), int(values["pooled"]), int(values["dim_head"]) ** -0.5
        self.local = LocalBranch(channels, local, kernel_size, scale) if local else None
        self.pooled = PooledBranch(channels, pooled, num_heads - n_local, window_size) if pooled else None
        self.project = nn.Conv2d(channels, channels, 1)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Both branches and their projection."""
        parts = [part(x_BCHW) for part in (self.local, self.pooled) if part is not None]
        out: Tensor = self.project(torch.cat(parts, 1))
        return out
