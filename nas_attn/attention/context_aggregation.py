"""ContextAggregation: one context of the whole map, handed out by need.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W.
"""

import torch
from torch import Tensor, nn

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class ContextAggregation(Gated):
    """Adds to each cell a context of the whole map, as far as the cell's own weight admits it.

    Rule: m(x) = x + conv1(sum_N softmax_N(k) v) * sigmoid(a), with a, k and v 1x1 convolutions of x to 1, 1 and C // reduction
    channels. A(x) = m(x) - x. The sum is taken as v(sum_N softmax_N(k) x), which is equal because the weights sum to one, and
    projects one cell instead of N.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; equivariant to any permutation of the positions.
    Hyperparameters: reduction = 1 (at least 1; searched 1, 2, 4, 8).
    Raises SpaceError for a reduction below 1.
    Source: Learning to Aggregate Multi-Scale Context for Instance Segmentation in Remote Sensing Images, IEEE TNNLS 2024, arXiv
    2111.11057 (CATNet); yeliudev/CATNet@64775d0, GPL-3.0: written from the description.
    Differs from the paper in: an identity gate in place of a last convolution of zeros, which has torch's ordinary start here; a and k are
    the two outputs of one convolution, so that the half of its bias that belongs to k never learns: the softmax cancels it.
    Checked: equal to the sum of projected values written as a loop within 1e-5; parameters and MACs equal to the record's formulas;
    equivariant to permutations; ONNX (both exporters) equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, reduction: int = 1) -> None:
        values = record("ContextAggregation").resolve(channels, {"reduction": reduction})
        super().__init__(channels)
        width = int(values["width"])
        self.maps = nn.Conv2d(channels, 2, 1)  # a, the need of a cell, and k, its share of the context
        self.value = nn.Conv2d(channels, width, 1)
        self.project = nn.Conv2d(width, channels, 1)

    def context_and_need(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The context of the whole map, (B, C, 1, 1), and each cell's need of it in (0, 1), (B, 1, H, W); the softmax in float32."""
        wide = torch.promote_types(x_BCHW.dtype, torch.float32)
        a_B1HW, k_B1HW = self.maps(x_BCHW).chunk(2, dim=1)
        share_BN1 = saturate(k_B1HW).flatten(2).to(wide).softmax(2).to(x_BCHW.dtype).transpose(1, 2)
        mean_BC11 = (x_BCHW.flatten(2) @ share_BN1).unsqueeze(-1)
        context: Tensor = saturate(self.project(saturate(self.value(mean_BC11))))
        return context.to(x_BCHW.dtype), torch.sigmoid(a_B1HW).to(x_BCHW.dtype)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """x and its share of the context."""
        return x_BCHW + self.branch(x_BCHW)

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """The context times each cell's need, without the shortcut."""
        context, need = self.context_and_need(x_BCHW)
        return context * need

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x + g * A(x) in one pass over the map: the gate goes into the context."""
        context, need = self.context_and_need(x_BCHW)
        return torch.addcmul(x_BCHW, self.gate_bias.to(x_BCHW.dtype).view(1, -1, 1, 1) * context, need)
