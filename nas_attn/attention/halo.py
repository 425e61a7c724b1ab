"""HaloAttention: blocked local self-attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns; n heads of d channels, I = n * d, J = 2 I; P blocks of b x b queries, each
with a window of v x v keys, v = b + 2 * halo; q = b * b, k = v * v.
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
    single precision. Queries, keys and values come from one product, whose weights stay the reference's two.
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

    def queries(self, q_BHWI: Tensor, tall: int, wide: int) -> Tensor:
        """Blocks of queries, (B * P, n, q, d); cells below and to the right of the map are zero."""
        B, H, W, _ = q_BHWI.shape
        side, n, d = self.block_size, self.heads, self.dim_head
        padded = functional.pad(q_BHWI, (0, 0, 0, wide * side - W, 0, tall * side - H))
        blocks = padded.reshape(B, tall, side, wide, side, n, d).permute(0, 1, 3, 5, 2, 4, 6)
        return blocks.reshape(B * tall * wide, n, side * side, d)

    def windows(self, kv_BHWJ: Tensor, rows: Tensor, columns: Tensor, below: int, right: int) -> tuple[Tensor, Tensor]:
        """Keys and values of every block's window, (B * P, n, k, d) each, gathered in one copy."""
        halo, W = self.halo_size, kv_BHWJ.shape[2]
        padded = functional.pad(kv_BHWJ, (0, 0, halo, right + halo, halo, below + halo))
        cells = rows[:, None, :, None] * (W + right + 2 * halo) + columns[None, :, None, :]
        gathered = padded.flatten(1, 2).index_select(1, cells.flatten())
        keys, values = gathered.reshape(-1, self.window**2, 2, self.heads, self.dim_head).permute(2, 0, 3, 1, 4)
        return keys, values

    def positions(self, q_ZnQd: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits of relative positions, and far below zero for keys outside of the map, (B * P, n, q, k).

        A key lies outside if its row does or its column does, so that the mask is added to the two small parts, not to their large sum.
        """
        (tall, side), (wide, window), n = (rows.shape[0], self.block_size), (columns.shape[0], self.window), self.heads
        q_6 = q_ZnQd.reshape(-1, side, side, self.dim_head)
        parts = []
        for axis, (places, length, table) in enumerate([(rows, size[0], self.rel_rows), (columns, size[1], self.rel_columns)]):
            equation = ("zrcd,rvd->zrcv", "zrcd,cvd->zrcv")[axis]
            part = saturate(torch.einsum(equation, q_6, table[self.offsets])).reshape(-1, tall, wide, n, side, side, window)
            outside = (places < self.halo_size) | (places >= length + self.halo_size)
            shape = (1, -1, 1, 1, 1, 1, window) if axis == 0 else (1, 1, -1, 1, 1, 1, window)
            parts.append(part + MASKED * outside.to(part.dtype).reshape(shape))
        both = parts[0].unsqueeze(-1) + parts[1].unsqueeze(-2)
        return both.reshape(-1, n, side * side, window * window)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """softmax(q k^T + bias) v, (B * P, n, q, d), the softmax in single precision.

        On a CPU the fused kernel has no gradient for a bias, and what stands in for it is slower than these three products.
        """
        if not self.training or q.device.type != "cpu":
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        flat_q, flat_k, flat_v, flat_bias = (part.flatten(0, 1) for part in (q, k, v, bias))
        if torch.finfo(q.dtype).bits >= 32:
            logits = torch.baddbmm(flat_bias, flat_q, flat_k.transpose(-2, -1))
        else:
            logits = saturate(flat_q @ flat_k.transpose(-2, -1)).float() + flat_bias.float()
        return (logits.softmax(-1).to(v.dtype) @ flat_v).reshape(q.shape)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Blocked self-attention and its output projection."""
        B, _, H, W = x_BCHW.shape
        side, inner = self.block_size, self.heads * self.dim_head
        below, right = -H % side, -W % side
        tall, wide = (H + below) // side, (W + right) // side
        # With channels last, all projections are one matrix product, and a cell's keys and values lie together in memory.
        weight = torch.cat([self.to_q.weight.flatten(1) * self.dim_head**-0.5, self.to_kv.weight.flatten(1)])
        qkv_BHWJ = functional.linear(x_BCHW.permute(0, 2, 3, 1), weight)
        steps = torch.arange(self.window, device=x_BCHW.device)
        rows, columns = (torch.arange(count, device=x_BCHW.device)[:, None] * side + steps for count in (tall, wide))  # of the padded map
        q = self.queries(qkv_BHWJ[..., :inner], tall, wide)
        keys, values = self.windows(qkv_BHWJ[..., inner:], rows, columns, below, right)
        y = self.attend(q, keys, values, self.positions(q, rows, columns, (H, W)))
        y = y.reshape(B, tall, wide, self.heads, side, side, self.dim_head).permute(0, 1, 4, 2, 5, 3, 6)
        y = y.reshape(B, H + below, W + right, inner)[:, :H, :W]
        return functional.linear(y, self.to_out.weight.flatten(1), self.to_out.bias).permute(0, 3, 1, 2)
