"""CoordAtt: coordinate attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns; h = hidden channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.conv import ConvNorm
from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class CoordAtt(Gated):
    """Weighs each value by its row and by its column, both seen as wholes.

    Rule: the means over each row and over each column, H + W cells side by side, pass one shared 1x1 convolution to
    h = max(8, C // reduction) channels, BN and hard-swish; a 1x1 convolution and a sigmoid give a_h (B, C, H, 1) from the rows, another
    pair a_w (B, C, 1, W) from the columns. m(x) = x * a_w * a_h. A(x) = m(x) - x, taken as y = x * ((1 - g) + g * a_h * a_w).
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1.
    Hyperparameters: reduction = 32 (>= 1; searched 8, 16, 32).
    Raises SpaceError for a reduction below 1.
    Source: Coordinate Attention for Efficient Mobile Network Design, CVPR 2021, arXiv 2103.02907; houqb/CoordAttention, MIT.
    Differs from the paper in: an identity gate; Ultralytics' constants in the norm. Pooling reduces axes, where the reference's adaptive
    pooling exports wrong numbers for other sizes.
    Checked: equal to loops within 1e-5 and to timm's `CoordAttn` with the same weights within 1e-5; equal before and after `fuse()`;
    parameters and MACs equal to the record's formulas; ONNX (both exporters) equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, reduction: int = 32) -> None:
        values = record("CoordAtt").resolve(channels, {"reduction": reduction})
        super().__init__(channels)
        hidden = int(values["hidden"])
        self.squeeze = ConvNorm(channels, hidden, bias=True)
        self.rows = nn.Conv2d(hidden, channels, 1)
        self.columns = nn.Conv2d(hidden, channels, 1)

    def weights(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """a_h (B, C, H, 1) and a_w (B, C, 1, W)."""
        height = x_BCHW.shape[2]
        lines = torch.cat([x_BCHW.mean(3, keepdim=True), x_BCHW.mean(2, keepdim=True).transpose(2, 3)], 2)
        hidden = functional.hardswish(saturate(self.squeeze(lines)))  # of minus infinity it is NaN
        a_h = self.rows(hidden[:, :, :height]).sigmoid()
        a_w = self.columns(hidden[:, :, height:].transpose(2, 3)).sigmoid()
        return a_h.to(x_BCHW.dtype), a_w.to(x_BCHW.dtype)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """x * a_w * a_h."""
        a_h, a_w = self.weights(x_BCHW)
        return x_BCHW * (a_h * a_w)

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """m(x) - x."""
        a_h, a_w = self.weights(x_BCHW)
        return x_BCHW * (a_h * a_w - 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x + g * A(x), with the gate folded into the weights of the rows."""
        gate = self.gate_bias.to(x_BCHW.dtype).view(1, -1, 1, 1)
        a_h, a_w = self.weights(x_BCHW)
        return x_BCHW * (gate * a_h * a_w + (1 - gate))
