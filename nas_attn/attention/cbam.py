"""CBAM: convolutional block attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

import torch
from torch import Tensor, nn

from nas_attn.attention.conv import ConvNorm
from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class CBAM(Gated):
    """Weighs the channels by their means and maxima, then the positions by the means and maxima over what the channels became.

    Rule: z = x * sigmoid(M(mean(x)) + M(max(x))), M = W2 ReLU(W1 .) from C over h channels back, with bias, h = C // r but at least 4;
    m(x) = z * sigmoid(BN(conv_k([max(z), mean(z)]))), mean and maximum over the channels, no bias. A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1.
    Hyperparameters: r = 16, the reduction (>= 1; searched 8, 16), k_size = 7 (odd; searched 3, 7).
    Raises SpaceError for r below 1 or an even k_size.
    Source: CBAM: Convolutional Block Attention Module, ECCV 2018, arXiv 1807.06521; Jongchan/attention-module, MIT. The layer that
    Ultralytics calls CBAM is another: no maximum, no hidden layer, no norm.
    Differs from the paper in: an identity gate; at least 4 hidden channels, because one or two ReLUs are likely to be dead for good;
    Ultralytics' constants in the norm. Pooling reduces axes, where the reference pools with the map's size and exports only that.
    Checked: equal to loops within 1e-5 and to timm's `CbamModule` with the same weights, its two maps swapped, within 1e-5; equal
    before and after `fuse()`; parameters and MACs equal to the record's formulas; ONNX (both exporters) equal to eager at other sizes
    than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, r: int = 16, k_size: int = 7) -> None:
        values = record("CBAM").resolve(channels, {"r": r, "k_size": k_size})
        super().__init__(channels)
        hidden = int(values["hidden"])
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)
        self.locate = ConvNorm(2, 1, k_size)

    def channel_weight(self, x_BCHW: Tensor) -> Tensor:
        """One value a channel of an image, (B, C, 1, 1); the shared network takes means and maxima side by side, as two cells."""
        pooled_BC12 = torch.cat([x_BCHW.mean((2, 3), keepdim=True), x_BCHW.amax((2, 3), keepdim=True)], 3)
        hidden = saturate(self.squeeze(pooled_BC12)).relu()
        logits = saturate(self.excite(hidden)).sum(3, keepdim=True)
        return logits.sigmoid().to(x_BCHW.dtype)

    def position_weight(self, z_BCHW: Tensor) -> Tensor:
        """One value a position of an image, (B, 1, H, W)."""
        pooled_B2HW = torch.cat([z_BCHW.amax(1, keepdim=True), z_BCHW.mean(1, keepdim=True)], 1)
        weight: Tensor = self.locate(pooled_B2HW).sigmoid()
        return weight.to(z_BCHW.dtype)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Channels first, then positions."""
        z = x_BCHW * self.channel_weight(x_BCHW)
        return z * self.position_weight(z)
