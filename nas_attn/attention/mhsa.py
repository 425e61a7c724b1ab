"""MHSA: global multi-head self-attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W; n heads of d values and k <= d key channels.
"""

from torch import Tensor

from nas_attn.attention.attend import attend
from nas_attn.attention.conv import ConvNorm
from nas_attn.attention.gate import Gated
from nas_attn.records import record


class MHSA(Gated):
    """Every position attends to all positions, in several heads; a depthwise convolution of the values tells where they stand.

    Rule: m(x) = P(softmax(q k^T / sqrt(k)) v + D(v)), with q, k, v of each head from one 1x1 convolution of x, D a depthwise 3x3 and P
    a 1x1 convolution, each followed by batch normalization and by no activation. A(x) = m(x).
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; time grows with N^2, and memory where keys are narrower than values.
    Hyperparameters: num_heads = 4 (a divisor of C; searched 2, 4, 8; Ultralytics' models take one head for 64 channels),
    attn_ratio = 0.5 (key channels as a part of a head's, in (0, 1], at least one; searched 0.25, 0.5, 1).
    Raises SpaceError where the record's constraints do not hold.
    Source: the attention of YOLOv10: Real-Time End-to-End Object Detection, NeurIPS 2024, arXiv 2405.14458, as ultralytics' `Attention`
    (AGPL-3.0) has it; its layers are `ConvNorm` here, in the order q, k, v instead of one head after the other.
    Differs from the paper in: an identity gate in place of the shortcut; the softmax in single precision. On a CPU N x N weights are
    written out unless keys are as wide as values (attn_ratio = 1); see `attend`.
    Checked: equal to a loop over positions within 1e-5, and to Ultralytics' module with the same weights within 1e-4; parameters equal to
    its, MACs too; ONNX by both exporters equal to eager at other sizes than the exported one.
    """

    def __init__(self, channels: int, num_heads: int = 4, attn_ratio: float = 0.5) -> None:
        values = record("MHSA").resolve(channels, {"num_heads": num_heads, "attn_ratio": attn_ratio})
        super().__init__(channels)
        self.num_heads, self.key_dim, self.head_dim = num_heads, int(values["key_dim"]), int(values["head_dim"])
        self.widths = (num_heads * self.key_dim, num_heads * self.key_dim, channels)
        self.to_qkv = ConvNorm(channels, sum(self.widths))
        self.position = ConvNorm(channels, channels, 3, groups=channels)
        self.project = ConvNorm(channels, channels)

    def per_head(self, part_BLN: Tensor) -> Tensor:
        """(B, n * e, N) -> (B, n, N, e), last axis next to each other in memory."""
        B, _, N = part_BLN.shape
        return part_BLN.reshape(B, self.num_heads, -1, N).transpose(-2, -1).contiguous()

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Attention and the values' convolution, projected."""
        q, k, values = self.to_qkv(x_BCHW).flatten(2).split(self.widths, dim=1)
        q, k, v = map(self.per_head, (q, k, values))
        y = attend(q, k, v, self.key_dim**-0.5)
        out: Tensor = self.project(self.position(values.reshape(x_BCHW.shape)) + y.transpose(-2, -1).reshape(x_BCHW.shape))
        return out
