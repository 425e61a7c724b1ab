"""HaloAttention: blocked local self-attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns; n heads of d channels; P blocks of b x b queries, each with a window of
v x v keys, v = b + 2 * halo; q = b * b, k = v * v.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record

MASKED = -1e4
"""Added to the logits of keys outside of the map: far below any other, and representable in half precision."""


class HaloAttention(Gated):
    """Each block of queries attends to its block and to a halo around it, by content and by relative position.

    Rule: softmax over a window of (q_s k + q_s R_h[u - r] + q_s R_w[v - c]) times the values, q_s = q / sqrt(d), for the query at
    row r, column c of its block and the key at row u, column v of its window; one pair of tables for all heads; keys outside of
    the map, the block padding included, are masked. A(x) = m(x).
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; maps are padded below and to the right to whole blocks and cropped again. No row of
    logits is masked as a whole, because every block holds at least one cell of the map.
    Hyperparameters: block_size = 8 (1 to 32; searched 4, 8), halo_size = 3 (1 to 32; searched 1, 2, 3), dim_head = 16 (at most
    2C; searched 16); heads = max(1, C // dim_head).
    Raises SpaceError where the record's constraints do not hold.
    Source: Scaling Local Self-Attention for Parameter Efficient Visual Backbones, CVPR 2021, arXiv 2103.12731 (no official code);
    lucidrains/halonet-pytorch@ff0eb71, MIT, whose projections and scaling are taken and whose mask, there on the wrong side, is not.
    Differs from the paper in: an identity gate around a stride-1 layer that keeps its width; masked instead of zero keys at the
    border; keys and values are projected before the windows are cut, which is equal and saves (v/b)^2 of that projection; softmax in
    single precision.
    Checked: equal to a loop over queries within 1e-5; equal to full self-attention where one block is the map; parameters and MACs
    equal to the record's formulas; ONNX (torch.export) equal to eager at other sizes than the exported one.
    """

    def __init__(self, channels: int, block_size: int = 8, halo_size: int = 3, dim_head: int = 16) -> None:
        values = record("HaloAttention").resolve(channels, {"block_size": block_size, "halo_size": halo_size, "dim_head": dim_head})
        super().__init__(channels)
        self.block_size, self.halo_size, self.dim_head = block_size, halo_size, dim_head
        self.heads, self.window, inner = int(values["heads"]), int(values["win"]), int(values["inner"])
        self.to_q = nn.Conv2d(channels, inner, 1, bias=False)
        self.to_kv = nn.Conv2d(channels, 2 * inner, 1, bias=False)
        self.to_out = nn.Conv2d(inner, channels, 1)
        self.rel_rows = nn.Parameter(torch.randn(2 * self.window - 1, dim_head) * dim_head**-0.5)
        self.rel_columns = nn.Parameter(torch.randn(2 * self.window - 1, dim_head) * dim_head**-0.5)
        offsets = torch.arange(self.window)[None, :] - torch.arange(block_size)[:, None] + self.window - 1
        self.register_buffer("offsets", offsets, persistent=False)  # (b, v): the row of a table for query and key positions
        self.offsets: Tensor

    def windows(self, x_BCHW: Tensor, below: int, right: int, value: float = 0.0) -> Tensor:
        """The halo windows of all blocks, (B, C * k, P), with `value` outside of the map."""
        halo = self.halo_size
        padded = functional.pad(x_BCHW, (halo, right + halo, halo, below + halo), value=value)
        return functional.unfold(padded, self.window, stride=self.block_size)

    def logits(self, q_BnPqd: Tensor, k_BnPkd: Tensor) -> Tensor:
        """Content and relative position, (B, n, P, q, k), in single precision."""
        side, window = self.block_size, self.window
        B, n, P, q, d = q_BnPqd.shape
        q_6 = q_BnPqd.reshape(B, n, P, side, side, d)
        rows = torch.einsum("bnprcd,rvd->bnprcv", q_6, self.rel_rows[self.offsets])
        columns = torch.einsum("bnprcd,cvd->bnprcv", q_6, self.rel_columns[self.offsets])
        relative = saturate(rows).float().unsqueeze(-1) + saturate(columns).float().unsqueeze(-2)
        return saturate(q_BnPqd @ k_BnPkd.transpose(-2, -1)).float() + relative.reshape(B, n, P, q, window * window)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Blocked self-attention and its output projection."""
        B, _, H, W = x_BCHW.shape
        side, n, d, k = self.block_size, self.heads, self.dim_head, self.window**2
        below, right = -H % side, -W % side
        tall, wide = (H + below) // side, (W + right) // side
        P = tall * wide
        q = functional.unfold(functional.pad(self.to_q(x_BCHW), (0, right, 0, below)), side, stride=side)
        q = q.reshape(B, n, d, side * side, P).permute(0, 1, 4, 3, 2) * d**-0.5
        keys, values = self.windows(self.to_kv(x_BCHW), below, right).reshape(B, 2, n, d, k, P).permute(1, 0, 2, 5, 4, 3)
        outside = self.windows(torch.zeros_like(x_BCHW[:1, :1], dtype=torch.float32), below, right, value=1.0)
        attention = (self.logits(q, keys) + MASKED * outside.transpose(-2, -1).reshape(1, 1, P, 1, k)).softmax(-1)
        y = (attention.to(values.dtype) @ values).permute(0, 1, 4, 3, 2).reshape(B, n * d, side, side, tall, wide)
        y = y.permute(0, 1, 4, 2, 5, 3).reshape(B, n * d, H + below, W + right)[..., :H, :W]
        out: Tensor = self.to_out(y)
        return out
