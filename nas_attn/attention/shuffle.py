"""ShuffleAttention: channel attention on one half of each group, spatial attention on the other.

Shapes: x_BCHW with B images, C channels, H rows, W columns; G groups of two halves of c channels.
"""

import torch
from torch import Tensor, nn

from nas_attn.attention.gate import Gated
from nas_attn.records import record


class ShuffleAttention(Gated):
    """Weighs one half of each group of channels by its means, the other by its normalized cells, and deals the channels out anew.

    Rule, for the halves a and b of a group: a * sigmoid(w1 * mean(a) + b1), b * sigmoid(w2 * GroupNorm(b) + b2), with a group of the
    norm for each channel and one set of weights for all groups; then m(x) takes the channels of the first and the second C / 2 in turn.
    A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1.
    Hyperparameters: groups = 8 (its double a divisor of C; searched 4, 8, 16, 32).
    Raises SpaceError where twice the groups do not divide the channels.
    Source: SA-Net: Shuffle Attention for Deep Convolutional Neural Networks, ICASSP 2021, arXiv 2102.00240; wofmanaf/SA-Net, no licence:
    written from the description.
    Differs from the paper in: an identity gate; 8 groups, not 64; w2 starts at one instead of zero, which would keep the norm in
    front of it from learning at first; w2 and b2 are folded into the norm, which is equal.
    Checked: equal to loops over channels within 1e-5; parameters equal to the published count; the order of the channels; ONNX (both
    exporters) equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, groups: int = 8) -> None:
        values = record("ShuffleAttention").resolve(channels, {"groups": groups})
        super().__init__(channels)
        self.width, self.groups = int(values["width"]), groups
        self.channel_weight = nn.Parameter(torch.zeros(self.width))
        self.channel_bias = nn.Parameter(torch.ones(self.width))
        self.spatial_weight = nn.Parameter(torch.ones(self.width))
        self.spatial_bias = nn.Parameter(torch.ones(self.width))
        self.norm = nn.GroupNorm(self.width, self.width)

    def of_means(self, a_BcHW: Tensor) -> Tensor:
        """The weights of whole channels, (B, c, 1, 1)."""
        wide = torch.promote_types(a_BcHW.dtype, torch.float32)
        mean = a_BcHW.mean((2, 3), keepdim=True, dtype=wide)
        weight, bias = self.channel_weight.to(wide).view(-1, 1, 1), self.channel_bias.to(wide).view(-1, 1, 1)
        return torch.sigmoid(mean * weight + bias).to(a_BcHW.dtype)

    def of_cells(self, b_BcHW: Tensor) -> Tensor:
        """The weights of single cells, of the shape of b."""
        wide = torch.promote_types(b_BcHW.dtype, torch.float32)
        scale = self.spatial_weight.to(wide)
        weight, bias = self.norm.weight.to(wide) * scale, self.norm.bias.to(wide) * scale + self.spatial_bias.to(wide)
        # Called without torch.nn's check, which refuses one value a channel.
        return torch.sigmoid(torch.group_norm(b_BcHW.to(wide), self.width, weight, bias, self.norm.eps)).to(b_BcHW.dtype)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Both halves weighed and shuffled."""
        B, C, H, W = x_BCHW.shape
        a, b = x_BCHW.reshape(-1, 2, self.width, H, W).unbind(1)
        weighed = torch.stack((a * self.of_means(a), b * self.of_cells(b)), 1)
        return weighed.reshape(B, 2, C // 2, H, W).transpose(1, 2).reshape(B, C, H, W)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x + g * (m(x) - x) in one pass over the map after m."""
        return torch.lerp(x_BCHW, self.mechanism(x_BCHW), self.gate_bias.to(x_BCHW.dtype).view(1, -1, 1, 1))
