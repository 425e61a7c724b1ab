"""iRMB: inverted residual mobile block.

Shapes: x_BCHW with B images, C channels, H rows, W columns; P windows of w x w cells, k = w * w; n heads; M = middle channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.attend import attend
from nas_attn.attention.conv import ConvNorm, Norm
from nas_attn.attention.gate import Gated
from nas_attn.records import record


class iRMB(Gated):  # noqa: N801 - the name of the paper
    """Self-attention within dilated windows, then a depthwise convolution with its own shortcut, then a projection.

    Rule: z = norm(x); windows collect every ceil(H/w)-th row and every ceil(W/w)-th column of z; in each, with q, k = conv1(z) and
    v = ReLU(conv1(z)), s = softmax(q k^T / sqrt(d)) v, or with attn_pre s = ReLU(conv1(softmax(q k^T / sqrt(d)) z));
    m(x) = x + conv1(s + SiLU(norm(dw(s)))). A(x) = m(x) - x, taken before the shortcut is added.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; maps are padded below and to the right to w rows and columns of windows and cropped again.
    Every window holds a cell of the map, because its first row and column lie there; the other ones are masked.
    Hyperparameters: dim_head = 16 (the reference's class 64; searched 8, 16, 32; heads = max(1, C // dim_head) must divide C),
    window_size = 7 (>= 1; searched 5, 7, 10), exp_ratio = 1 (M = C * exp_ratio; searched 1, 2), dw_ks = 3 (odd; searched 3, 5),
    attn_pre = False (True in the paper's models, the same cost at exp_ratio 1).
    Raises SpaceError where the record's constraints do not hold.
    Source: Rethinking Mobile Block for Efficient Attention-based Models, ICCV 2023, arXiv 2301.01146; zhangzjn/EMO@27d9b40, no licence:
    written from the description.
    Differs from the paper in: an identity gate in place of drop path; keys outside of the map are masked, where the reference lets them
    take a part of each softmax with the value zero; batch normalization with Ultralytics' constants; ReLU for the values only; heads that
    widen where dim_head does not divide C; no squeeze-and-excitation, no grouped values, no biases.
    Checked: equal to a loop over queries within 1e-5, ragged maps and both places of the attention included; parameters and MACs equal
    to the record's formulas and to the published counts; ONNX by both exporters equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(
        self, channels: int, dim_head: int = 16, window_size: int = 7, exp_ratio: int = 1, dw_ks: int = 3, attn_pre: bool = False
    ) -> None:
        values = record("iRMB").resolve(
            channels,
            {"dim_head": dim_head, "window_size": window_size, "exp_ratio": exp_ratio, "dw_ks": dw_ks, "attn_pre": attn_pre},
        )
        super().__init__(channels)
        self.heads, self.window_size, self.attn_pre = int(values["heads"]), window_size, attn_pre
        middle = int(values["middle"])
        self.norm = Norm(channels)
        self.to_qk = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.to_v = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), nn.ReLU())
        self.local = ConvNorm(middle, middle, dw_ks, groups=middle, act=nn.SiLU())
        self.project = nn.Conv2d(middle, channels, 1, bias=False)

    def split(self, x_BCHW: Tensor) -> Tensor:
        """The dilated windows of a map that they divide, (B * P, C, w, w), channels last in memory, which attention needs as well."""
        B, C, H, W = x_BCHW.shape
        side = self.window_size
        windows = x_BCHW.reshape(B, C, side, H // side, side, W // side).permute(0, 3, 5, 2, 4, 1)
        return windows.reshape(-1, side, side, C).permute(0, 3, 1, 2)

    def join(self, y_Pnkd: Tensor, tall: int, wide: int) -> Tensor:
        """Heads of windows, (B * P, n, k, d), `tall` x `wide` windows a map, put back in their places."""
        side, (_, n, _, d) = self.window_size, y_Pnkd.shape
        y = y_Pnkd.reshape(-1, tall, wide, n, side, side, d).permute(0, 3, 6, 4, 1, 5, 2)
        return y.reshape(-1, n * d, side * tall, side * wide)

    def per_head(self, windows: Tensor) -> Tensor:
        """(B * P, C, w, w) -> (B * P, n, k, C / n); a view where channels are last in memory."""
        C, k = windows.shape[1], self.window_size**2
        return windows.reshape(-1, self.heads, C // self.heads, k).transpose(-2, -1)

    def attend(self, z_BCHW: Tensor) -> Tensor:
        """Attention within windows, (B, M, H, W), or of z itself with attn_pre."""
        H, W = z_BCHW.shape[2:]
        below, right = -H % self.window_size, -W % self.window_size
        inside = None
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or below or right:
            cells = functional.pad(torch.ones_like(z_BCHW[:, :1]), (0, right, 0, below))
            inside = self.split(cells).flatten(2).unsqueeze(1) > 0.5
            z_BCHW = functional.pad(z_BCHW, (0, right, 0, below))
        windows = self.split(z_BCHW)
        q, k = self.to_qk(windows).chunk(2, dim=1)
        v = windows if self.attn_pre else self.to_v(windows)
        q, k, v = map(self.per_head, (q, k, v))
        y = attend(q, k, v, q.shape[-1] ** -0.5, inside, small=True)
        tall, wide = (H + below) // self.window_size, (W + right) // self.window_size
        return self.join(y, tall, wide)[..., :H, :W]

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """m(x), with the block's shortcut."""
        return x_BCHW + self.branch(x_BCHW)

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """What the block adds to x."""
        spatial = self.attend(self.norm(x_BCHW))
        if self.attn_pre:
            spatial = self.to_v(spatial)
        out: Tensor = self.project(spatial + self.local(spatial))
        return out
