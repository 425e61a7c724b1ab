"""SE: squeeze and excitation.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

from torch import Tensor

from nas_attn.attention.gate import Weighted, saturate
from nas_attn.records import record


class SE(Weighted):
    """Weighs each channel by what a small network says about the means of all channels.

    Rule: m(x) = x * w, w = sigmoid(W2 ReLU(W1 mean(x))), W1 from C to h channels and W2 back, both with bias, h = C // r but at least
    4. A(x) = m(x) - x, taken as y = x * (1 + g * (w - 1)): one pass over the map instead of four.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; w is (B, C, 1, 1).
    Hyperparameters: r = 16, the reduction (>= 1; searched 4, 8, 16).
    Raises SpaceError for r below 1.
    Source: Squeeze-and-Excitation Networks, CVPR 2018, arXiv 1709.01507; the layers are timm's `SEModule` (Apache-2.0), whose own
    width rounds C / r to a multiple of 8 (to 8 at 64 channels and r = 16, where the paper has 4); here it gets the paper's.
    Differs from the paper in: an identity gate; at least 4 hidden channels, because one or two ReLUs are likely to be dead for good.
    Checked: equal to loops within 1e-5 and to timm's module with the same weights within 1e-5; parameters and MACs equal to the
    record's formulas; ONNX (both exporters) equal to eager at other sizes than the exported one.
    """

    def __init__(self, channels: int, r: int = 16) -> None:
        from timm.layers import SEModule  # here: it takes longer to import than torch does

        values = record("SE").resolve(channels, {"r": r})
        super().__init__(channels)
        self.layer = SEModule(channels, rd_channels=int(values["hidden"]))

    def weight(self, x_BCHW: Tensor) -> Tensor:
        """w, one value a channel of an image, (B, C, 1, 1)."""
        layer = self.layer
        hidden = layer.act(saturate(layer.fc1(x_BCHW.mean((2, 3), keepdim=True))))
        weight: Tensor = layer.fc2(hidden).sigmoid().to(x_BCHW.dtype)
        return weight
