"""ESA: enhanced spatial attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns; f channels of the squeezed branch.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record

SMALLEST = 15
"""The side that a 3 x 3 convolution of stride 2 and a pool of 7 x 7 leave one cell of."""


def _missing(side: int) -> Any:
    """max(SMALLEST - side, 0), kept open by both exporters: a traced side is a tensor, a captured one a symbol."""
    missing = SMALLEST - side
    return missing.clamp(min=0) if isinstance(missing, Tensor) else torch.sym_max(missing, 0)


def extended(z_BfHW: Tensor) -> Tensor:
    """The map with its last row and column repeated until it is 15 x 15 at least."""
    height, width = z_BfHW.shape[-2:]
    exporting = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
    if not exporting and height >= SMALLEST and width >= SMALLEST:
        return z_BfHW
    return functional.pad(z_BfHW, (0, _missing(width), 0, _missing(height)), mode="replicate")


class ESA(Gated):
    """Multiplies each cell by weights drawn from itself and from a strongly pooled map of its surroundings.

    Rule: z = conv1(x); m(x) = x * sigmoid(conv1(up(R(maxpool7/3(conv3/2(z)))) + conv1(z))), A(x) = m(x) - x; the strided convolution has
    no padding, `up` is bilinear to H x W, R is one 3 x 3 convolution, or with rfa three of them, with ReLU between.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1. A side of z below 15 is extended to 15 by its last row or column before it is pooled.
    Hyperparameters: f = 16 (at least 1, or a fraction of the channels; searched 8, 16, 32; RFANet has 1/4), rfa = False.
    Raises SpaceError where f is neither a fraction nor a number of channels.
    Source: Residual Local Feature Network for Efficient Super-Resolution, CVPR Workshops 2022, arXiv 2205.07514; bytedance/RLFN@bccfde9,
    Apache-2.0. With rfa: Residual Feature Aggregation Network for Image Super-Resolution, CVPR 2020; njulj/RFANet, no licence, written
    from the description.
    Differs from the paper in: an identity gate; small maps, which the reference refuses.
    Checked: equal to a loop over windows within 1e-5; parameters and MACs equal to the record's formulas and to the published counts;
    finite for inputs of a thousand in half precision; ONNX (both exporters) equal to eager at other sizes than the exported one, below
    15 x 15 too.
    """

    replaces = True

    def __init__(self, channels: int, f: float = 16, rfa: bool = False) -> None:
        values = record("ESA").resolve(channels, {"f": f, "rfa": rfa})
        super().__init__(channels)
        width = int(values["f"])
        self.squeeze = nn.Conv2d(channels, width, 1)
        self.shortcut = nn.Conv2d(width, width, 1)
        self.shrink = nn.Conv2d(width, width, 3, stride=2)
        self.pool = nn.MaxPool2d(7, 3)
        self.refine = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(int(values["refinements"])))
        self.expand = nn.Conv2d(width, channels, 1)

    def pooled(self, z_BfHW: Tensor) -> Tensor:
        """The map of the surroundings, at about a sixth of the resolution."""
        z: Tensor = self.pool(saturate(self.shrink(extended(z_BfHW))))
        for number, layer in enumerate(self.refine):
            z = saturate(layer(functional.relu(z) if number else z))
        return z

    def weight(self, x_BCHW: Tensor) -> Tensor:
        """The weights in (0, 1), of the shape of x."""
        z = saturate(self.squeeze(x_BCHW))
        surroundings = functional.interpolate(self.pooled(z), size=x_BCHW.shape[-2:], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.expand(saturate(surroundings + self.shortcut(z)))).to(x_BCHW.dtype)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """x weighted."""
        return x_BCHW * self.weight(x_BCHW)
