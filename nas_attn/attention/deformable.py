"""DAttention: deformable attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns; g groups of channels with h x w samples each, h = ceil(H / stride),
w = ceil(W / stride); n heads of d channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.gate import Gated
from nas_attn.records import record


class DAttention(Gated):
    """Every position attends to samples of the map, which a small network moves from a regular grid to where they help.

    Rule: q = conv1(x); for each group of channels, offsets o = linear(GELU(norm(dw(q)))) on a grid of h x w samples; places
    p = r + tanh(o) * factor / (last row or column of the grid, at least 1), or clamp(r + o, -1, 1) for a negative factor; s = x at p,
    bilinear, zero outside of the map; k, v = conv1(s); m(x) = conv1(softmax(q k^T / sqrt(d)) v + dw(q)). Coordinates run from -1 in the
    middle of the first cell to 1 in that of the last, and r from -1 to 1; a single sample starts in the middle. A(x) = m(x).
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; no parameter knows the map's size.
    Hyperparameters: n_heads = 8 (a divisor of C), n_groups = 4 (a divisor of n_heads; searched 2, 4), stride = 2 (>= 1; the paper's
    stages 8, 4, 2, 1; searched 1, 2, 4, 8), ksize = 3 (odd; the paper's stages 9, 7, 5, 3; searched 3, 5), offset_range_factor = 4
    (-1 in the repository's later models: offsets as they are; not 0, which would leave them without effect; searched 4, -1),
    half_pixel = False (the repository's r, half a cell further down and to the right, its end outside of the map).
    Raises SpaceError where the record's constraints do not hold.
    Source: Vision Transformer with Deformable Attention, CVPR 2022, arXiv 2201.00520, and DAT++, arXiv 2309.01430;
    LeapLabTHU/DAT@32173fc (models/dat_blocks.py), Apache-2.0.
    Differs from the paper in: an identity gate in place of the block's shortcut; of the position biases the depthwise convolution of q,
    which fits any map; r to the ends of the map, where the reference's are shifted; a grid of one row or column, where the reference
    divides by zero; sampling in single precision; no dropout.
    Checked: equal to a loop over positions with written-out bilinear weights within 1e-5; without offsets and at stride 1 the samples are
    the map; parameters and MACs equal to the record's formulas and to the published count; ONNX by both exporters equal to eager at other
    sizes than the exported one (opset 16 or later has the sampling).
    """

    def __init__(
        self,
        channels: int,
        n_heads: int = 8,
        n_groups: int = 4,
        stride: int = 2,
        ksize: int = 3,
        offset_range_factor: int = 4,
        half_pixel: bool = False,
    ) -> None:
        values = record("DAttention").resolve(
            channels,
            {
                "n_heads": n_heads,
                "n_groups": n_groups,
                "stride": stride,
                "ksize": ksize,
                "offset_range_factor": offset_range_factor,
                "half_pixel": half_pixel,
            },
        )
        super().__init__(channels)
        self.heads, self.width, self.factor, self.half_pixel = n_heads, int(values["width"]), offset_range_factor, half_pixel
        self.to_q = nn.Conv2d(channels, channels, 1)
        self.offset_conv = nn.Conv2d(self.width, self.width, ksize, stride, ksize // 2, groups=self.width)
        self.offset_norm = nn.LayerNorm(self.width)
        self.to_offset = nn.Linear(self.width, 2, bias=False)
        self.to_kv = nn.Conv2d(channels, 2 * channels, 1)
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def axis(self, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Where samples start, (size,), and what offsets are divided by: tensors, so that an export keeps `size` open."""
        steps = torch.arange(size, dtype=like.dtype, device=like.device)
        last = steps[-1:].clamp(min=1)
        return ((2 * steps + 1) / last - 1 if self.half_pixel else (2 * steps - steps[-1:]) / last), last

    def places(self, q_BCHW: Tensor) -> Tensor:
        """Where each group samples, (B * g, h, w, 2) as columns and rows in -1 to 1; in single precision at least."""
        H, W = q_BCHW.shape[2:]
        hidden = self.offset_conv(q_BCHW.reshape(-1, self.width, H, W)).permute(0, 2, 3, 1)
        offsets = self.to_offset(functional.gelu(self.offset_norm(hidden)))
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        (rows, last_row), (columns, last_column) = (self.axis(size, offsets) for size in offsets.shape[1:3])
        h, w = offsets.shape[1:3]
        grid = torch.stack((columns.expand(h, w), rows.unsqueeze(1).expand(h, w)), -1)
        if self.factor < 0:
            return torch.clamp(grid + offsets, -1, 1)
        moved: Tensor = grid + offsets.tanh() * self.factor / torch.cat((last_column, last_row))
        return moved

    def samples(self, x_BCHW: Tensor, places: Tensor) -> Tensor:
        """The map at those places, (B, C, h, w)."""
        B, C, H, W = x_BCHW.shape
        groups = x_BCHW.reshape(-1, self.width, H, W).to(places.dtype)
        sampled = functional.grid_sample(groups, places, mode="bilinear", padding_mode="zeros", align_corners=True)
        return sampled.reshape(B, C, *places.shape[1:3]).to(x_BCHW.dtype)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Attention to the samples beside the convolution of the queries, and their projection."""
        q = self.to_q(x_BCHW)
        sampled = self.samples(x_BCHW, self.places(q))
        # The fused kernel needs channels last in memory; it keeps its softmax in single precision and scales by 1 / sqrt(d).
        queries = q.flatten(2).unflatten(1, (self.heads, -1)).transpose(-2, -1).contiguous()
        keys, values = self.to_kv(sampled).flatten(2).unflatten(1, (2, self.heads, -1)).transpose(-2, -1).contiguous().unbind(1)
        y = functional.scaled_dot_product_attention(queries, keys, values).transpose(-2, -1).reshape(q.shape)
        out: Tensor = self.project(y + self.position(q))
        return out
