"""NAM: normalization-based attention, channel part.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

import torch
from torch import Tensor

from nas_attn.attention.conv import Norm
from nas_attn.attention.gate import Gated
from nas_attn.records import record

TINY = 1e-12
"""Below any sum of scales that learns; only keeps scales that are all zero from being divided by zero."""


class NAM(Gated):
    """Weighs each value by its batch-normalized self, most where its channel's scale is large beside those of the others.

    Rule: m(x) = x * sigmoid(w * BN(x)), w = |scale of the norm| / their sum over the channels. A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1.
    Hyperparameters: none.
    Raises SpaceError for channels below 1.
    Source: NAM: Normalization-based Attention Module, NeurIPS 2021 workshop ImageNet: Past, Present, and Future, arXiv 2111.12419;
    Christian-lyc/NAM@6e8d3e3, no licence: written from the description. As there, no gradient flows through w.
    Differs from the paper in: an identity gate; no spatial part, which needs a fixed map (nor has the reference one); Ultralytics'
    constants in the norm, which takes a single value a channel in training as well; the paper's penalty on the scales is `penalty`,
    which no loss here adds.
    Checked: equal to loops within 1e-5, in training to a norm by the batch's own statistics; parameters equal to the record's formula;
    untouched by `fuse()`; ONNX (both exporters) equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int) -> None:
        record("NAM").resolve(channels, {})
        super().__init__(channels)
        self.norm = Norm(channels)

    def shares(self) -> Tensor:
        """w, of each channel in the sum of all scales, (C,); without gradient."""
        scale = self.norm.weight.detach().abs()
        wide = scale.to(torch.promote_types(scale.dtype, torch.float32))
        return (wide / wide.sum().clamp(min=TINY)).to(scale.dtype)

    def penalty(self) -> Tensor:
        """The sum of the scales' magnitudes, for a loss that wants most of them small, as the paper's does."""
        return self.norm.weight.abs().sum()

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """x * sigmoid(w * BN(x))."""
        weight: Tensor = self.norm(x_BCHW) * self.shares().view(1, -1, 1, 1)
        return x_BCHW * weight.sigmoid()
