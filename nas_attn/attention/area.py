"""AreaAttention: self-attention within strips of the map.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W; a areas of L positions, n heads of d channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from ultralytics.nn.modules.block import AAttn

from nas_attn.attention.conv import ConvNorm, trainable_on_one_value
from nas_attn.attention.gate import Gated
from nas_attn.records import record


class Areas(AAttn):  # type: ignore[misc]
    """Ultralytics' area attention, with its parameters, on maps of any number of positions."""

    def strips(self, qkv_BLN: Tensor) -> tuple[Tensor, Tensor | None]:
        """q, k and v of every area, (3, B * a, n, L, d), and which keys are on the map, (B * a, 1, 1, L), where some are not.

        There may be fewer areas than asked for, because each must hold a position of the map: a softmax of nothing is not a number.
        """
        B, _, N = qkv_BLN.shape
        length = (N + self.area - 1) // self.area
        areas = (N + length - 1) // length
        beyond = areas * length - N
        inside = None
        if self.area > 1 and (torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or beyond):
            inside = functional.pad(torch.ones_like(qkv_BLN[:, :1]), (0, beyond)).reshape(B * areas, 1, 1, length) > 0.5
            qkv_BLN = functional.pad(qkv_BLN, (0, beyond))
        parts = qkv_BLN.reshape(B, self.num_heads, 3, self.head_dim, areas, length).permute(2, 0, 4, 1, 5, 3)
        return parts.reshape(3, B * areas, self.num_heads, length, self.head_dim).contiguous(), inside

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW -> the same shape; the fused kernel keeps its softmax in single precision."""
        B, C, H, W = x_BCHW.shape
        qkv = self.qkv(x_BCHW)
        (q, k, v), inside = self.strips(qkv.flatten(2))
        y = functional.scaled_dot_product_attention(q, k, v, inside)
        y = y.reshape(B, -1, *y.shape[1:]).permute(0, 2, 4, 1, 3).reshape(B, C, -1)[..., : H * W]
        values = qkv.unflatten(1, (self.num_heads, 3, self.head_dim))[:, :, 2].reshape(B, C, H, W)
        out: Tensor = self.proj(y.reshape(B, C, H, W) + self.pe(values))
        return out


class AreaAttention(Gated):
    """Cuts the map into strips of consecutive positions, row by row, and lets every position attend to those of its own strip.

    Rule: r = P(softmax(q k^T / sqrt(d)) v + D(v)), attention within each area of L = ceil(N / area) positions, q, k, v from a 1x1, D a
    depthwise 7x7 and P a 1x1 convolution, each with batch normalization; m(x) = x + r, or with an mlp_ratio m(x) = x + r + M(x + r), M two
    1x1 convolutions with normalization and a SiLU between them. A(x) = m(x) - x, computed before the shortcut is added.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; time grows with N^2 / area.
    Hyperparameters: num_heads = 4 (a divisor of C; searched 2, 4, 8; YOLOv12 takes one for 32 channels), area = 4 (>= 1; YOLOv12 4 at
    stride 16, 1 at stride 32; searched 1, 4), mlp_ratio = 0.0 (hidden channels of M as a multiple of C, none at 0; YOLOv12 1.2 or 2).
    Raises SpaceError where the record's constraints do not hold.
    Source: YOLOv12: Attention-Centric Real-Time Object Detectors, NeurIPS 2025, arXiv 2502.12524; the layers are ultralytics' `AAttn`
    (AGPL-3.0), under its names, so that the weights of an `ABlock` fit.
    Differs from the paper in: an identity gate; where the areas do not divide the map the last one is shorter, where the reference fails;
    no N x N weights written out; layers start as PyTorch's do, not with a deviation of 0.02, which the normalizations take away.
    Checked: equal to a loop over positions within 1e-5 on maps of any size, and to Ultralytics' `AAttn` and `ABlock` with the same weights
    within 1e-4; parameters and MACs equal to theirs; ONNX by both exporters equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, num_heads: int = 4, area: int = 4, mlp_ratio: float = 0.0) -> None:
        values = record("AreaAttention").resolve(channels, {"num_heads": num_heads, "area": area, "mlp_ratio": mlp_ratio})
        super().__init__(channels)
        hidden = int(values["hidden"])
        self.attn = trainable_on_one_value(Areas(channels, num_heads, area))
        self.mlp = nn.Sequential(ConvNorm(channels, hidden, act=nn.SiLU()), ConvNorm(hidden, channels)) if hidden else None

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """m(x), with the block's shortcuts."""
        return x_BCHW + self.branch(x_BCHW)

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """What the block adds to x."""
        attended: Tensor = self.attn(x_BCHW)
        return attended if self.mlp is None else attended + self.mlp(x_BCHW + attended)
