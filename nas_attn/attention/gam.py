"""GAM: global attention mechanism, channels first, then positions.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.conv import ConvNorm
from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class GAM(Gated):
    """Multiplies x by weights of a perceptron over each cell's channels, then by those of a bottleneck of two 7 x 7 convolutions.

    Rule: c = x * sigmoid(conv1(ReLU(conv1(x)))), m(x) = c * sigmoid(BN(conv7(shuffle(ReLU(BN(conv7(c))))))), with C // rate channels in
    between both times; without channel_sigmoid c = x * conv1(..). The shuffle is there with group alone, where both 7 x 7 convolutions
    have `rate` groups: it deals the channels of each out to all of them. A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; zeros around the map.
    Hyperparameters: rate = 4 (at least 1; searched 4, 8, 16), group = False (searched), channel_sigmoid = True.
    Raises SpaceError where the record's constraints do not hold.
    Source: Global Attention Mechanism: Retain Information to Enhance Channel-Spatial Interactions, arXiv 2112.05561 (2021; no official
    code); dengbuqi/GAM_Pytorch, no licence: written from the description.
    Differs from the paper in: an identity gate; a sigmoid over the channel weights, which most copies leave out, for a product that cannot
    grow without bound; the place of the shuffle, which the paper does not say: between the convolutions, the only one where it lets the
    groups see each other.
    Checked: equal to loops over taps within 1e-5; parameters and MACs equal to the published counts; finite in
    half precision without the sigmoid too; ONNX (both exporters) equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, rate: int = 4, group: bool = False, channel_sigmoid: bool = True) -> None:
        values = record("GAM").resolve(channels, {"rate": rate, "group": group, "channel_sigmoid": channel_sigmoid})
        super().__init__(channels)
        width, self.groups, self.channel_sigmoid = int(values["width"]), int(values["groups"]), channel_sigmoid
        self.squeeze, self.expand = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)
        self.gather = ConvNorm(channels, width, 7, groups=self.groups, act=nn.ReLU(), bias=True)
        self.spread = ConvNorm(width, channels, 7, groups=self.groups, bias=True)

    def channel_weighted(self, x_BCHW: Tensor) -> Tensor:
        """c: x times the weights of its channels, cell by cell."""
        weight = self.expand(saturate(functional.relu(self.squeeze(x_BCHW))))
        return saturate(x_BCHW * (torch.sigmoid(weight) if self.channel_sigmoid else saturate(weight)))

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """c times the weights of its neighbourhood."""
        weighted = self.channel_weighted(x_BCHW)
        hidden = saturate(self.gather(weighted))
        if self.groups > 1:
            B, c, H, W = hidden.shape  # each group's channels are dealt out to all groups
            hidden = hidden.reshape(B, self.groups, c // self.groups, H, W).transpose(1, 2).reshape(B, c, H, W)
        return (weighted * torch.sigmoid(self.spread(hidden))).to(x_BCHW.dtype)
