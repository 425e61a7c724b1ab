"""LKA: large kernel attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class LKA(Gated):
    """Multiplies each cell by a map that two depthwise kernels draw from its 23 x 23 neighbourhood.

    Rule: L(x) = x * conv1(D(S(x))), with S a 5 x 5 depthwise kernel and D a 7 x 7 one of dilation 3; no norm, no activation.
    m(x) = L(x), or with use_proj m(x) = x + conv1(L(GELU(conv1(x)))). A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1.
    Hyperparameters: use_proj = False. The kernels are the published ones; LSKA has them in other sizes.
    Raises SpaceError for fewer than one channel.
    Source: Visual Attention Network, Computational Visual Media 9 (2023), arXiv 2202.09741;
    Visual-Attention-Network/VAN-Classification, Apache-2.0.
    Differs from the paper in: an identity gate; without use_proj the bare mechanism, as detectors use it, without VAN's two projections
    and shortcut; never its batch norm, layer scale and stochastic depth.
    Checked: equal to sums over kernels written as loops within 1e-5; equal to LSKA's 23 where the kernels are outer products of its
    lines; the impulse response fills 23 x 23; parameters and MACs equal to the record's formulas; ONNX (both exporters) equal to eager
    at other sizes than the exported one; finite for the largest numbers of half precision, in which all sums saturate.
    """

    replaces = True

    def __init__(self, channels: int, use_proj: bool = False) -> None:
        record("LKA").resolve(channels, {"use_proj": use_proj})
        super().__init__(channels)
        self.near = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.far = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.project_in = nn.Conv2d(channels, channels, 1) if use_proj else None
        self.project_out = nn.Conv2d(channels, channels, 1) if use_proj else None

    def large_kernel(self, x_BCHW: Tensor) -> Tensor:
        """L(x): x times its large-kernel map."""
        wide = saturate(self.far(saturate(self.near(x_BCHW))))
        return saturate(x_BCHW * saturate(self.mix(wide)))

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """L(x), or the projected form with its shortcut."""
        return self.large_kernel(x_BCHW) if self.project_in is None else x_BCHW + self.branch(x_BCHW)

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """m(x) - x; the projected form is taken before its shortcut is added, instead of taking that away again."""
        if self.project_in is None or self.project_out is None:
            return self.large_kernel(x_BCHW) - x_BCHW
        out: Tensor = self.project_out(self.large_kernel(functional.gelu(saturate(self.project_in(x_BCHW)))))
        return out
