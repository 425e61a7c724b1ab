"""EMA: efficient multi-scale attention with cross-spatial learning.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W; G groups of c channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


def _as_seen(line: Tensor, first: Tensor, last: Tensor, size: int, dim: int) -> Tensor:
    """Means over an axis as the three taps of a zero-padded kernel see it: without its last, with all, without its first; at `dim`."""
    return torch.stack((line - last / size, line, line - first / size), dim)


def seen_by_taps(g_BcHW: Tensor, columns_BcW: Tensor) -> Tensor:
    """The mean of the zero-padded map over all positions of a 3 x 3 kernel, for each of its taps: (B, c, 3, 3).

    From the means of the columns and the four borders: a shift by one cell loses one row or column.
    """
    height, width = g_BcHW.shape[2:]
    by_row = _as_seen(columns_BcW, g_BcHW[:, :, 0], g_BcHW[:, :, -1], height, 2)
    return _as_seen(by_row.mean(3), by_row[..., 0], by_row[..., -1], width, 3)


def summed_taps(t_B33HW: Tensor) -> Tensor:
    """The sum over the taps of a 3 x 3 kernel, each of its maps shifted to where it is seen, zeros from outside: (B, H, W)."""
    t_B3HW = t_B33HW[:, 1] + functional.pad(t_B33HW[:, 0, :, :-1], (0, 0, 1, 0)) + functional.pad(t_B33HW[:, 2, :, 1:], (0, 0, 0, 1))
    return t_B3HW[:, 1] + functional.pad(t_B3HW[:, 0, :, :-1], (1, 0)) + functional.pad(t_B3HW[:, 2, :, 1:], (0, 1))


class EMA(Gated):
    """Multiplies the cells of each group of channels by one weight, drawn from rows and columns crossed with 3 x 3 neighbourhoods.

    Rule, for a group g of c channels: [h, w] = conv1([mean_W(g), mean_H(g)]), x1 = GroupNorm(g * sigmoid(h) * sigmoid(w)) with a group a
    channel, x2 = conv3(g), m = g * sigmoid(softmax_c(mean(x1)) . x2 + softmax_c(mean(x2)) . x1); one set of weights for all groups.
    A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1.
    Hyperparameters: factor = 8 (a divisor of C; searched 4, 8, 16, 32), the number of groups. With one channel a group the
    softmaxes are one, which is legal and of little use.
    Raises SpaceError where the factor does not divide the channels.
    Source: Efficient Multi-Scale Attention Module with Cross-Spatial Learning, ICASSP 2023, arXiv 2305.13563;
    YOLOonMe/EMA-attention-module, no licence: written from the description.
    Differs from the paper in: an identity gate; factor 8, as detectors use it, not 32. Two equalities save most of the work: the mean of x1
    is the norm's bias, so that its softmax is the same for all images and goes into the 3 x 3 kernel, of which one output is left; and the
    mean of x2 follows from the means of g's columns and its borders, so that x2 itself is never built (9 C N MACs, not 9 c C N).
    Checked: equal to loops over the published form within 1e-5; parameters equal to the published count; those two equalities on maps
    down to 1 x 1; ONNX (both exporters) equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, factor: int = 8) -> None:
        values = record("EMA").resolve(channels, {"factor": factor})
        super().__init__(channels)
        self.width = int(values["width"])
        self.lines = nn.Conv2d(self.width, self.width, 1)
        self.norm = nn.GroupNorm(self.width, self.width)
        self.neighbourhood = nn.Conv2d(self.width, self.width, 3, padding=1)

    def crossed(self, g_BcHW: Tensor, rows_BcH: Tensor, columns_BcW: Tensor) -> Tensor:
        """x1: the group times the weights of its rows and columns, normalized; single precision unless g is wider."""
        height = g_BcHW.shape[2]
        lines = torch.cat((rows_BcH, columns_BcW), 2).to(self.lines.weight.dtype)
        weights = torch.sigmoid(self.lines(lines.unsqueeze(3))).to(g_BcHW.dtype)
        crossed = g_BcHW * weights[:, :, :height] * weights[:, :, height:].transpose(2, 3)
        wide = rows_BcH.dtype
        # Called without torch.nn's check, which refuses one value a channel.
        return torch.group_norm(crossed.to(wide), self.width, self.norm.weight.to(wide), self.norm.bias.to(wide), self.norm.eps)

    def weight(self, g_BcHW: Tensor) -> Tensor:
        """The weights in (0, 1) of all cells of a group, (B, 1, H, W)."""
        wide = torch.promote_types(g_BcHW.dtype, torch.float32)
        rows, columns = g_BcHW.mean(3, dtype=wide), g_BcHW.mean(2, dtype=wide)
        x1 = self.crossed(g_BcHW, rows, columns)

        kernel, bias = self.neighbourhood.weight.to(wide).flatten(1), self.neighbourhood.bias.to(wide)  # type: ignore[union-attr]
        mean_of_x2 = functional.linear(seen_by_taps(g_BcHW, columns).flatten(1), kernel, bias)
        from_x1 = saturate(mean_of_x2).to(wide).softmax(1).unsqueeze(1) @ x1.flatten(2)

        # One 3 x 3 kernel as nine 1 x 1 kernels and shifts: a convolution of one output keeps most of a vector unit idle.
        share_1c = self.norm.bias.to(wide).softmax(0).unsqueeze(0)
        taps = (share_1c @ kernel).view(self.width, 9).transpose(0, 1).to(g_BcHW.dtype)
        by_tap = saturate(functional.conv2d(g_BcHW, taps[:, :, None, None])).to(wide)
        from_x2 = summed_taps(by_tap.view(-1, 3, 3, *g_BcHW.shape[2:])).unsqueeze(1) + share_1c @ bias.unsqueeze(1)
        return torch.sigmoid(from_x1.view_as(from_x2) + from_x2).to(g_BcHW.dtype)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """x times its weights."""
        g = x_BCHW.reshape(-1, self.width, *x_BCHW.shape[2:])
        return (g * self.weight(g)).view_as(x_BCHW)

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """x times its weights less one."""
        g = x_BCHW.reshape(-1, self.width, *x_BCHW.shape[2:])
        return (g * (self.weight(g) - 1)).view_as(x_BCHW)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x + g * A(x), the products and the sum in two passes over the map."""
        B, C, H, W = x_BCHW.shape
        less_BG1HW = self.weight(x_BCHW.reshape(-1, self.width, H, W)).view(B, -1, 1, H, W) - 1
        x_BGcHW = x_BCHW.reshape(B, -1, self.width, H, W)
        gate = self.gate_bias.to(x_BCHW.dtype).view(1, -1, self.width, 1, 1)
        return torch.addcmul(x_BGcHW, x_BGcHW, gate * less_BG1HW).reshape(B, C, H, W)
