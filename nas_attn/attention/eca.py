"""ECA: efficient channel attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

from torch import Tensor

from nas_attn.attention.gate import Weighted
from nas_attn.records import record


class ECA(Weighted):
    """Weighs each channel by the means of itself and of its next neighbours among the channels.

    Rule: m(x) = x * w, w = sigmoid(conv1d(mean(x))), a convolution of k taps without bias along the channels, zeros beyond the first
    and the last. A(x) = m(x) - x, taken as y = x * (1 + g * (w - 1)): one pass over the map instead of four.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; w is (B, C, 1, 1).
    Hyperparameters: k_size = 0 (odd, or 0 for the paper's rule: the odd number next to |log2(C) + 1| / 2, at least 3, which is 3 below
    128 channels, 5 below 2048, 7 below 32768, then 9; searched 0, 3, 7). The reference implementation sets 3 or 5 for each stage.
    Raises SpaceError for a k_size that is even or negative.
    Source: ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks, CVPR 2020, arXiv 1910.03151;
    BangguWu/ECANet, MIT; the convolution is timm's `EfficientChannelAttn` (Apache-2.0), which follows the rule and ignores
    `kernel_size` where it is given the channels.
    Differs from the paper in: an identity gate.
    Checked: equal to loops within 1e-5 and to timm's module with the same weights within 1e-5; the rule equal to timm's from 4 to
    4096 channels; parameters and MACs equal to the record's formulas; ONNX (both exporters) equal to eager at other sizes than the
    exported one.
    """

    def __init__(self, channels: int, k_size: int = 0) -> None:
        from timm.layers import EfficientChannelAttn  # here: it takes longer to import than torch does

        values = record("ECA").resolve(channels, {"k_size": k_size})
        super().__init__(channels)
        self.layer = EfficientChannelAttn(kernel_size=int(values["k"]))

    def weight(self, x_BCHW: Tensor) -> Tensor:
        """w, one value a channel of an image, (B, C, 1, 1)."""
        mean_B1C = x_BCHW.mean((2, 3)).unsqueeze(1)
        weight_BC: Tensor = self.layer.conv(mean_B1C).squeeze(1).sigmoid().to(x_BCHW.dtype)
        return weight_BC[..., None, None]
