"""DWR: dilation-wise residual block.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

import torch
from torch import Tensor, nn

from nas_attn.attention.conv import ConvNorm
from nas_attn.attention.gate import Gated
from nas_attn.records import record


class DWR(Gated):
    """Condenses the map to simple regions, then looks at them at three ranges, and adds what it finds.

    Rule: z = ReLU(BN(conv3(x))) of C/2 channels; m(x) = x + conv1(BN([D_1(z), D_3(z), D_5(z)])), D_d a depthwise 3x3 convolution of
    dilation d without activation, of C channels for d = 1 and C/2 for the other two. With community, SiLU in place of ReLU, D_d full
    convolutions with SiLU(BN) after them, and SiLU(BN(conv1)) at the end. A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; C is even.
    Hyperparameters: community = False (searched both).
    Raises SpaceError where C is odd.
    Source: DWRSeg: Rethinking Efficient Acquisition of Multi-scale Contextual Information for Real-time Semantic Segmentation,
    arXiv 2212.01173 (2022), without official code; written from the description, community copies included.
    Differs from the paper in: an identity gate; one batch normalization between the dilations and the projection, kept by branch, which is
    the same number for number; community leaves out the 1x1 convolution before and the BN-GELU after the block of those copies, which
    are not the mechanism.
    Checked: equal to sums over kernels written as loops within 1e-5; the impulse response is that of dilations 1, 3 and 5 behind a 3x3
    kernel; equal before and after `fuse()`; parameters and MACs equal to the record's formulas; ONNX (both exporters) equal to eager at
    other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, community: bool = False) -> None:
        values = record("DWR").resolve(channels, {"community": community})
        super().__init__(channels)
        half = int(values["half"])
        groups = 1 if community else half
        self.region = ConvNorm(channels, half, 3, act=nn.SiLU() if community else nn.ReLU())
        self.semantic = nn.ModuleList(
            ConvNorm(half, width, 3, groups=groups, dilation=dilation, act=nn.SiLU() if community else None)
            for dilation, width in ((1, channels), (3, half), (5, half))
        )
        self.merge = ConvNorm(2 * channels, channels, act=nn.SiLU()) if community else nn.Conv2d(2 * channels, channels, 1)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """The block with its shortcut."""
        return x_BCHW + self.branch(x_BCHW)

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """m(x) - x, taken before the shortcut is added, instead of taking that away again."""
        regions = self.region(x_BCHW)
        out: Tensor = self.merge(torch.cat([dilated(regions) for dilated in self.semantic], 1))
        return out
