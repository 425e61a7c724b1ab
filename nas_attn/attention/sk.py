"""SK: selective kernels.

Shapes: x_BCHW with B images, C channels, H rows, W columns; M branches.
"""

import torch
from torch import Tensor, nn

from nas_attn.attention.conv import ConvNorm
from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class SK(Gated):
    """Convolves at several ranges and lets each channel of each image choose among them.

    Rule: U_i = ReLU(BN(conv3 of dilation i)), i = 1 to M, in groups; z = ReLU(BN(fc(mean(sum_i U_i)))) of d = max(C // r, L) channels;
    m(x) = sum_i a_i * U_i, with a = softmax over the branches of M linear layers d -> C of z. A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1.
    Hyperparameters: M = 2 (>= 2; searched 2, 3), G = 32 groups (>= 1; where they do not divide C, half or a quarter of them, else 1;
    searched 32), r = 16 (>= 1; searched 16), L = 32 (>= 1; searched 32).
    Raises SpaceError where the record's constraints do not hold.
    Source: Selective Kernel Networks, CVPR 2019, arXiv 1903.06586; implus/SKNet (Caffe), no licence: written from the description.
    Differs from the paper in: an identity gate around a stride-1 block that keeps its width; the pooled branch trains at batch 1 too,
    where a plain batch normalization raises; the M linear layers are one convolution; the mean of the sum is the sum of the means.
    Checked: equal to sums over kernels written as loops within 1e-5, and to timm's `SelectiveKernel` with the same weights within 1e-4;
    equal before and after `fuse()`; parameters and MACs equal to the record's formulas; ONNX (both exporters) equal to eager at other
    sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, M: int = 2, G: int = 32, r: int = 16, L: int = 32) -> None:
        values = record("SK").resolve(channels, {"M": M, "G": G, "r": r, "L": L})
        super().__init__(channels)
        groups, squeezed = int(values["groups"]), int(values["squeezed"])
        self.branches = nn.ModuleList(
            ConvNorm(channels, channels, 3, groups=groups, dilation=dilation, act=nn.ReLU()) for dilation in range(1, M + 1)
        )
        self.squeeze = ConvNorm(channels, squeezed, act=nn.ReLU())
        self.select = nn.Conv2d(squeezed, M * channels, 1)

    def choice(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """The weight of each branch, M times (B, C, 1, 1), summing to one over the branches."""
        dtype = maps[0].dtype
        wide = torch.promote_types(dtype, torch.float32)
        mean = torch.stack([part.mean((2, 3), keepdim=True, dtype=wide) for part in maps]).sum(0)
        logits = saturate(self.select(self.squeeze(saturate(mean, dtype))), wide)
        B, C = mean.shape[:2]
        return logits.reshape(B, len(maps), C, 1, 1).softmax(1).to(dtype).unbind(1)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """The branches, weighted and added."""
        maps = [branch(x_BCHW) for branch in self.branches]
        weights = self.choice(maps)
        y: Tensor = maps[0] * weights[0]
        for part, weight in zip(maps[1:], weights[1:], strict=True):
            y = torch.addcmul(y, part, weight)
        return y
