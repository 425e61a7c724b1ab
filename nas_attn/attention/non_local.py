"""NonLocal: the non-local block in its embedded Gaussian form.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W; r = inner channels, K = keys.
"""

from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.conv import ConvNorm
from nas_attn.attention.gate import Gated
from nas_attn.records import record


class NonLocal(Gated):
    """Every position adds up the values of all positions, weighed by how alike they are in an embedding of few channels.

    Rule: m(x) = norm(conv1(softmax(theta(x) phi(x')^T / sqrt(r)) g(x'))), with theta, phi, g 1x1 convolutions to r channels and x' = x, or
    with sub_sample x' = x max-pooled by 2. A(x) = m(x).
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; equivariant to permutations of the positions unless sub_sample; time grows with N K.
    Hyperparameters: rd_ratio = 0.125 (a fraction of the channels, at least 8, or r itself; paper 0.5; searched 1/8, 1/4, 1/2),
    sub_sample = False.
    Raises SpaceError where rd_ratio is neither.
    Source: Non-local Neural Networks, CVPR 2018, arXiv 1711.07971; facebookresearch/video-nonlocal-net@4b5d2dd, CC-BY-NC-4.0: written
    from the description.
    Differs from the paper in: an identity gate in place of the shortcut, and a normalization that starts with ones instead of zeros: with
    both, neither would learn; the scale 1 / sqrt(r), which the reference has and the formula has not; windows at an odd border are
    pooled, where the reference drops them; a frame instead of a clip.
    timm has the mechanism as `NonLocalAttn`. This is not built on it, because that writes out N x N weights in the type of its input,
    scales by 1 / sqrt(C), cannot sub-sample, and keeps a normalization that Ultralytics' `fuse` does not fold.
    Checked: equal to a loop over positions within 1e-5, and to timm's module with the same weights, its scale replaced, within 1e-4;
    parameters equal to timm's; ONNX by both exporters equal to eager at other sizes than the exported one.
    """

    def __init__(self, channels: int, rd_ratio: float = 0.125, sub_sample: bool = False) -> None:
        values = record("NonLocal").resolve(channels, {"rd_ratio": rd_ratio, "sub_sample": sub_sample})
        super().__init__(channels)
        inner = int(values["rd_ratio"])
        self.sub_sample = sub_sample
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi_g = nn.Conv2d(channels, 2 * inner, 1)
        self.leave = ConvNorm(inner, channels, bias=True)

    def sampled(self, x_BCHW: Tensor) -> Tensor:
        """x', whose positions are the keys; a window that leaves the map is the maximum of its cells inside."""
        return functional.max_pool2d(x_BCHW, 2, ceil_mode=True) if self.sub_sample else x_BCHW

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Attention with a single head, in one kernel that keeps its softmax in single precision."""
        q = self.theta(x_BCHW).flatten(2)
        k, v = self.phi_g(self.sampled(x_BCHW)).flatten(2).chunk(2, dim=1)
        # The kernel needs channels last in memory; without that it writes out all N x K weights.
        q, k, v = (part.transpose(-2, -1).contiguous().unsqueeze(1) for part in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v)
        B, _, H, W = x_BCHW.shape
        out: Tensor = self.leave(y.transpose(-2, -1).reshape(B, -1, H, W))
        return out
