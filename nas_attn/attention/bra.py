"""BRA: bi-level routing attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns; P = n_win^2 windows of k cells; n heads of d channels; t = topk.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class BRA(Gated):
    """Each window attends to the cells of the few windows whose mean keys its mean query likes best.

    Rule: q, k, v = conv1(x), cut into n_win x n_win windows; the topk windows of the largest mean(q) mean(k)^T of each window, chosen
    without gradient; o = softmax(q K^T / sqrt(C)) V in each head, with the keys K and values V of all cells there;
    m(x) = conv1(o + dw(v)). A(x) = m(x).
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; windows have ceil(H / n_win) x ceil(W / n_win) cells, what they lack below and to the right
    is padded and cropped again. No query is without a key, because windows outside of the map are chosen last.
    Hyperparameters: num_heads = 8 (a divisor of C), n_win = 7 (windows a side, so that they grow with the map; searched 5, 7, 8), topk = 4
    (at most n_win^2; searched 1, 4, 8), side_dwconv = 3 (odd; the repository's models 5; searched 3, 5).
    Raises SpaceError where the record's constraints do not hold.
    Source: BiFormer: Vision Transformer with Bi-Level Routing Attention, CVPR 2023, arXiv 2303.08810; rayleizhu/BiFormer@1697bbb
    (ops/bra_legacy.py, whose scale by all channels instead of a head's is taken), MIT.
    Differs from the paper in: an identity gate in place of the residual; padding is masked from the keys and left out of the means, and
    windows without a cell of the map come last, where the reference pads the input and treats the biases that it gets there as cells;
    keys and values of every cell (no downsampling, as its default); dw(v) takes the map's cells only.
    Checked: equal to a loop over queries within 1e-5, ragged maps and empty windows included; equal to full self-attention where all
    windows are chosen; parameters and MACs equal to the record's formulas and to the published counts; ONNX by both exporters equal to
    eager at other sizes than the exported one.
    """

    def __init__(self, channels: int, num_heads: int = 8, n_win: int = 7, topk: int = 4, side_dwconv: int = 3) -> None:
        record("BRA").resolve(channels, {"num_heads": num_heads, "n_win": n_win, "topk": topk, "side_dwconv": side_dwconv})
        super().__init__(channels)
        self.heads, self.n_win, self.topk, self.scale = num_heads, n_win, topk, channels**-0.5
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.local = nn.Conv2d(channels, channels, side_dwconv, padding=side_dwconv // 2, groups=channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def split(self, x_BCHW: Tensor) -> Tensor:
        """The windows of a map that they divide, (B, P, k, C)."""
        B, C, H, W = x_BCHW.shape
        S = self.n_win
        return x_BCHW.reshape(B, C, S, H // S, S, W // S).permute(0, 2, 4, 3, 5, 1).reshape(B, S * S, -1, C)

    def routes(self, qk_BPkC: Tensor, inside_Pk: Tensor | None) -> Tensor:
        """The topk windows of each window, (B, P, t), the best first; q and k are zero outside of the map."""
        totals = qk_BPkC.detach().sum(2, dtype=torch.float32)
        # Every window has as many cells where none is ragged.
        cells_P1 = totals.new_full((1, 1), qk_BPkC.shape[2]) if inside_Pk is None else inside_Pk.sum(1, keepdim=True)
        q_BPC, k_BPC = (totals / cells_P1.clamp(min=1)).chunk(2, dim=-1)
        affinity_BPP = saturate((q_BPC * self.scale) @ k_BPC.transpose(1, 2)).float()
        if inside_Pk is not None:
            affinity_BPP = affinity_BPP.masked_fill(~inside_Pk.any(1), float("-inf"))
        return affinity_BPP.topk(self.topk, dim=-1).indices

    def attend(self, qkv_BPkC: Tensor, inside_Pk: Tensor | None) -> Tensor:
        """Attention of every window to its chosen ones, (B * P, n, k, d); the fused kernel keeps its softmax in single precision."""
        B, P, k, C = qkv_BPkC.shape[0], self.n_win**2, qkv_BPkC.shape[2], qkv_BPkC.shape[3] // 3
        routes_BPt = self.routes(qkv_BPkC[..., : 2 * C], inside_Pk)
        rows = (routes_BPt + P * torch.arange(B, device=routes_BPt.device).reshape(-1, 1, 1)).flatten()
        q = qkv_BPkC[..., :C].reshape(-1, k, self.heads, C // self.heads).transpose(1, 2)
        chosen = qkv_BPkC[..., C:].reshape(-1, k, 2 * C).index_select(0, rows)
        keys, values = chosen.reshape(-1, self.topk * k, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        seen = None if inside_Pk is None else inside_Pk.index_select(0, routes_BPt.flatten()).reshape(-1, 1, 1, self.topk * k)
        return functional.scaled_dot_product_attention(q, keys, values, seen, scale=self.scale)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Routed attention beside the depthwise convolution of the values, and their projection."""
        B, C, H, W = x_BCHW.shape
        S = self.n_win
        below, right = -H % S, -W % S
        qkv = self.to_qkv(x_BCHW)
        local = self.local(qkv[:, 2 * C :])
        inside_Pk = None
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or below or right:
            cells = functional.pad(torch.ones_like(x_BCHW[:1, :1], dtype=torch.float32), (0, right, 0, below))
            inside_Pk = self.split(cells)[0, :, :, 0] > 0.5
            qkv = functional.pad(qkv, (0, right, 0, below))
        y = self.attend(self.split(qkv), inside_Pk)
        tall, wide = (H + below) // S, (W + right) // S
        y = y.reshape(B, S, S, self.heads, tall, wide, C // self.heads).permute(0, 3, 6, 1, 4, 2, 5)
        out: Tensor = self.project(y.reshape(B, C, S * tall, S * wide)[..., :H, :W] + local)
        return out
