"""LIA: local importance-based attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns; f channels of the squeezed branch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record

POOL_SIZE = 7
POOL_STRIDE = 3


def soft_pool(z_BfHW: Tensor) -> Tensor:
    """The mean of each 7 x 7 window (stride 3), weighted by the window's softmax; single precision in and out, H, W >= 7.

    The weights exp(z - max) are taken relative to the map's maximum, which cannot overflow, and are kept above exp(-60), because a
    window far below the maximum would otherwise divide zero by zero; such a window gets its plain mean.
    """
    peak = z_BfHW.amax((2, 3), keepdim=True).detach()
    weight = (z_BfHW - peak).clamp(min=-60.0).exp()
    return functional.avg_pool2d(weight * z_BfHW, POOL_SIZE, POOL_STRIDE) / functional.avg_pool2d(weight, POOL_SIZE, POOL_STRIDE)


class LIA(Gated):
    """Multiplies each cell by how important its neighbourhood is, and by a gate from the first channel.

    Rule: m(x) = x * up(sigmoid(conv3(conv3/2(SoftPool7/3(conv1(x)))))) * sigmoid(x[:, :1]), A(x) = m(x) - x; `up` is bilinear to H x W.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1. A side below 7 is extended to 7 by its last row or column before it is pooled.
    Hyperparameters: f = 16 (at least 1; searched 8, 16, 32), channels of the squeezed branch.
    Raises SpaceError where the record's constraints do not hold.
    Source: PlainUSR: Chasing Faster ConvNet for Efficient Super-Resolution, ACCV 2024, arXiv 2409.13435;
    icandle/PlainUSR@d7ff11a, MIT.
    Differs from the paper in: an identity gate; SoftPool in single precision and relative to the maximum (the published form
    overflows from about 89, in half precision from 11); small maps, which the reference refuses; no 1x1 convolution that makes channel 0
    a gate of its own (the layer before it in a detector can learn that).
    Checked: equal to a loop over windows within 1e-5; parameters and MACs equal to the record's formulas; finite for inputs of a
    thousand, in half precision too; ONNX (torch.export) equal to eager at other sizes than the exported one, as long as both are at
    least 7 x 7: the branch for small maps is fixed at export.
    """

    replaces = True

    def __init__(self, channels: int, f: int = 16) -> None:
        record("LIA").resolve(channels, {"f": f})
        super().__init__(channels)
        self.squeeze = nn.Conv2d(channels, f, 1)
        self.shrink = nn.Conv2d(f, f, 3, stride=2, padding=1)
        self.expand = nn.Conv2d(f, channels, 3, padding=1)

    def heat(self, x_BCHW: Tensor) -> Tensor:
        """The importance of neighbourhoods in (0, 1), on the pooled map; single precision unless the weights are narrower.

        The two convolutions of the pooled map stay out of autocast: they cost next to nothing, and oneDNN (torch 2.15, CPU) leaves
        garbage in the weight gradient of a strided bf16 convolution of one cell, which is what a map below 10 x 10 is pooled to.
        """
        z = saturate(self.squeeze(x_BCHW))
        height, width = z.shape[-2:]
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            if height < POOL_SIZE or width < POOL_SIZE:
                z = functional.pad(z, (0, max(POOL_SIZE - width, 0), 0, max(POOL_SIZE - height, 0)), mode="replicate")
            shrunk = saturate(self.shrink(soft_pool(z).to(self.shrink.weight.dtype)))
            return torch.sigmoid(self.expand(shrunk))

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """x weighted by local importance and by the first channel's gate."""
        heat = self.heat(x_BCHW).to(x_BCHW.dtype)
        weight = functional.interpolate(heat, size=x_BCHW.shape[-2:], mode="bilinear", align_corners=False)
        return x_BCHW * weight * torch.sigmoid(x_BCHW[:, :1])
