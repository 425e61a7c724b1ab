"""LSKA: large separable kernel attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

from torch import Tensor, nn

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


def _line(channels: int, size: tuple[int, int], dilation: int = 1) -> nn.Conv2d:
    """A depthwise convolution along a row or a column that keeps the map's size."""
    padding = (dilation * (size[0] - 1) // 2, dilation * (size[1] - 1) // 2)
    return nn.Conv2d(channels, channels, size, padding=padding, dilation=dilation, groups=channels)


class LSKA(Gated):
    """Multiplies each cell by a map that four depthwise lines draw from its k x k neighbourhood.

    Rule: L(x) = x * conv1(D_v(D_h(S_v(S_h(x))))), with S lines of k0 = 2d - 1 cells and D lines of k1 = floor(k/d) cells and
    dilation d, so that k0 + (k1 - 1) d = k; d = 2 for k of 7 and 11, else 3; no norm, no activation. m(x) = L(x), or with
    use_proj m(x) = x + conv1(L(GELU(conv1(x)))). A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; a k beyond twice the map's side is legal and wasteful.
    Hyperparameters: k_size = 7 (7, 11, 23, 35, 41, 53; searched 7, 11, 23, 35), use_proj = False.
    Raises SpaceError for another k_size.
    Source: Large Separable Kernel Attention: Rethinking the Large Kernel Attention Design in CNN, Expert Systems with
    Applications 236 (2024) 121352, arXiv 2309.01439; StevenLauHKHK/Large-Separable-Kernel-Attention@bb2a8d2, Apache-2.0.
    Differs from the paper in: an identity gate; without use_proj the bare mechanism, as detectors use it, without VAN's two
    projections and shortcut; never its batch norm and layer scale.
    Checked: equal to sums over kernels written as loops within 1e-5; the impulse response fills k x k for all six k; parameters
    and MACs equal to the record's formulas; ONNX (torch.export) equal to eager at other sizes than the exported one. In half precision the
    product saturates; the convolutions themselves can overflow, as the detector's own can.
    """

    replaces = True

    def __init__(self, channels: int, k_size: int = 7, use_proj: bool = False) -> None:
        values = record("LSKA").resolve(channels, {"k_size": k_size, "use_proj": use_proj})
        super().__init__(channels)
        near, far, dilation = int(values["k0"]), int(values["k1"]), int(values["dilation"])
        self.near_row = _line(channels, (1, near))
        self.near_column = _line(channels, (near, 1))
        self.far_row = _line(channels, (1, far), dilation)
        self.far_column = _line(channels, (far, 1), dilation)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.project_in = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU()) if use_proj else None
        self.project_out = nn.Conv2d(channels, channels, 1) if use_proj else None

    def large_kernel(self, x_BCHW: Tensor) -> Tensor:
        """L(x): x times its large-kernel map."""
        lines = self.far_column(self.far_row(self.near_column(self.near_row(x_BCHW))))
        weight: Tensor = self.mix(lines)
        return saturate(x_BCHW * weight)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """L(x), or the projected form with its shortcut."""
        return self.large_kernel(x_BCHW) if self.project_in is None else x_BCHW + self.branch(x_BCHW)

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """m(x) - x; the projected form is taken before its shortcut is added, instead of taking that away again."""
        if self.project_in is None or self.project_out is None:
            return self.large_kernel(x_BCHW) - x_BCHW
        out: Tensor = self.project_out(self.large_kernel(self.project_in(x_BCHW)))
        return out
