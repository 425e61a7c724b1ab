"""AIFI: RT-DETR's transformer encoder layer on a map.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W; n heads of d channels.
"""

import torch
from torch import Tensor
from torch.nn import functional
from ultralytics.nn.modules import transformer

from nas_attn.attention.gate import Gated
from nas_attn.records import record

TEMPERATURE = 10000.0


class Encoder(transformer.AIFI):  # type: ignore[misc]
    """Ultralytics' encoder layer, with its parameters, through a kernel that writes out no N x N weights."""

    def positions(self, x_BCHW: Tensor) -> Tensor:
        """Sines and cosines of rows, then of columns, (N, C), in the type of x; computed in single precision, a line at a time."""
        _, C, H, W = x_BCHW.shape
        steps = torch.arange(C // 4, device=x_BCHW.device, dtype=torch.float32)
        frequencies = TEMPERATURE ** (steps / -(C // 4))
        down = torch.arange(H, device=x_BCHW.device, dtype=torch.float32).unsqueeze(1) * frequencies
        right = torch.arange(W, device=x_BCHW.device, dtype=torch.float32).unsqueeze(1) * frequencies
        rows = torch.cat([down.sin(), down.cos()], 1).unsqueeze(1).expand(H, W, C // 2)
        columns = torch.cat([right.sin(), right.cos()], 1).unsqueeze(0).expand(H, W, C // 2)
        return torch.cat([rows, columns], 2).reshape(H * W, C).to(x_BCHW.dtype)

    def attend(self, x_BNC: Tensor, positions_NC: Tensor) -> Tensor:
        """Self-attention with positions added to queries and keys, not to values."""
        B, N, C = x_BNC.shape
        weight, bias = self.ma.in_proj_weight, self.ma.in_proj_bias
        q, k = functional.linear(x_BNC + positions_NC, weight[: 2 * C], bias[: 2 * C]).chunk(2, dim=2)
        v = functional.linear(x_BNC, weight[2 * C :], bias[2 * C :])
        q, k, v = (part.reshape(B, N, self.ma.num_heads, -1).transpose(1, 2) for part in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.ma.out_proj(y.transpose(1, 2).reshape(B, N, C))
        return out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW -> the same shape."""
        x_BNC = x_BCHW.flatten(2).transpose(1, 2).contiguous()
        x_BNC = self.norm1(x_BNC + self.attend(x_BNC, self.positions(x_BCHW)))
        x_BNC = self.norm2(x_BNC + self.fc2(self.act(self.fc1(x_BNC))))
        out: Tensor = x_BNC.transpose(1, 2).reshape(x_BCHW.shape)
        return out


class AIFI(Gated):
    """A transformer encoder layer whose tokens are the positions of the map, told apart by sines and cosines.

    Rule: z = LN(x + P(softmax(q k^T / sqrt(d)) v)), with q, k from x plus positions and v from x; m(x) = LN(z + W2 GELU(W1 z)). The
    positions are C/4 sines and C/4 cosines of the row, then of the column, at frequencies 10000^(-4j/C). A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; time grows with N^2, memory with N.
    Hyperparameters: num_heads = 8 (a divisor of C; searched 4, 8), mlp_ratio = 2.0 (hidden channels as a multiple of C; RT-DETR 4,
    Ultralytics' default 2048 channels; searched 1, 2, 4).
    Raises SpaceError where the record's constraints do not hold.
    Source: DETRs Beat YOLOs on Real-time Object Detection, CVPR 2024, arXiv 2304.08069; the layers are ultralytics' `AIFI` (AGPL-3.0),
    under its names, so that its weights fit.
    Differs from the paper in: an identity gate; no dropout; positions computed for a row and a column instead of for every cell; no N x N
    weights written out.
    Checked: equal to a loop over positions within 1e-5 on maps that are not square, and to Ultralytics' module with the same weights within
    1e-4; parameters and MACs equal to the record's formulas; ONNX by both exporters equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, num_heads: int = 8, mlp_ratio: float = 2.0) -> None:
        values = record("AIFI").resolve(channels, {"num_heads": num_heads, "mlp_ratio": mlp_ratio})
        super().__init__(channels)
        self.layer = Encoder(channels, int(values["hidden"]), num_heads)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """The whole layer, normalized at its end: its shortcuts do not lead past that."""
        out: Tensor = self.layer(x_BCHW)
        return out
