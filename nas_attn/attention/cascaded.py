"""CascadedGroupAttention: heads within windows, each of which also sees what the one before it found.

Shapes: x_BCHW with B images, C channels, H rows, W columns; P windows of w x w cells in all images together, k = w * w; n heads of C / n
channels, with queries and keys of d.
"""

import torch
from torch import Tensor, nn

from nas_attn.attention.conv import ConvNorm
from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class CascadedGroupAttention(Gated):
    """Splits the channels among heads; each head attends within windows, and adds its output to the next head's input.

    Rule: f_j = x_j + y_(j-1) with y_0 = 0; q, k, v = norm(conv1(f_j)); y_j = softmax(norm(dw(q)) k^T / sqrt(d) + b_j) v, with one learned
    b_j for each pair of distances (rows, columns) within a window; m(x) = norm(conv1(ReLU([y_1, .., y_n]))). A(x) = m(x).
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1. A window that leaves the map below or to the right is the smaller window of its cells
    inside: keys outside are masked, queries outside are zero for the depthwise convolution, which ends at the window.
    Hyperparameters: key_dim = 16 (>= 1; searched 8, 16, 32), num_heads = 4 (a divisor of C; searched 2, 4, 8), window_size = 7
    (>= 1; searched 5, 7, 10), kernel_size = 5 (odd, of all heads; searched 3, 5).
    Raises SpaceError where the record's constraints do not hold.
    Source: EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention, CVPR 2023, arXiv 2305.07027;
    microsoft/Cream@4a13c40, MIT.
    Differs from the paper in: an identity gate in place of the residual; the last normalization starts at one instead of zero; windows at
    the border are masked as above, where the reference attends to the padding, convolves its queries and counts it in the statistics of
    its normalizations; one kernel size for all heads; biases are looked up in each pass, where the reference keeps a copy for evaluation
    that does not follow the module to another type.
    Checked: equal to a loop over queries within 1e-5; a window at the border equal to the mechanism on its cells alone, statistics in
    training included; parameters and MACs equal to the record's formulas and to the published count; ONNX by both exporters equal to
    eager at other sizes than the exported one.
    """

    def __init__(self, channels: int, key_dim: int = 16, num_heads: int = 4, window_size: int = 7, kernel_size: int = 5) -> None:
        values = record("CascadedGroupAttention").resolve(
            channels, {"key_dim": key_dim, "num_heads": num_heads, "window_size": window_size, "kernel_size": kernel_size}
        )
        super().__init__(channels)
        width = int(values["width"])
        self.key_dim, self.window_size = key_dim, window_size
        self.to_qkv = nn.ModuleList(ConvNorm(width, 2 * key_dim + width) for _ in range(num_heads))
        self.mix_q = nn.ModuleList(ConvNorm(key_dim, key_dim, kernel_size, groups=key_dim) for _ in range(num_heads))
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))
        self.project = ConvNorm(channels, channels)
        rows, columns = (t.flatten() for t in torch.meshgrid(*[torch.arange(window_size)] * 2, indexing="ij"))
        distances = (rows[:, None] - rows).abs() * window_size + (columns[:, None] - columns).abs()
        self.register_buffer("distances", distances, persistent=False)  # (k, k): the entry of a head's biases for query and key
        self.distances: Tensor

    def is_ragged(self, H: int, W: int) -> bool:
        """Whether windows can leave the map; in an export, which keeps its size open, they can."""
        exporting = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
        return exporting or H % self.window_size != 0 or W % self.window_size != 0

    def split(self, x_BCHW: Tensor) -> Tensor:
        """The windows of a map, (P, C, w, w), zero outside of it; channels last in memory, so that heads of cells are views."""
        B, C, H, W = x_BCHW.shape
        side = self.window_size
        if self.is_ragged(H, W):
            x_BCHW = nn.functional.pad(x_BCHW, (0, -W % side, 0, -H % side))
        tall, wide = x_BCHW.shape[2] // side, x_BCHW.shape[3] // side
        windows = x_BCHW.reshape(B, C, tall, side, wide, side).permute(0, 2, 4, 3, 5, 1)
        return windows.reshape(-1, side, side, C).permute(0, 3, 1, 2)

    def join(self, windows: Tensor, H: int, W: int) -> Tensor:
        """Windows put back into maps of H x W, what lies outside left out."""
        side, C = self.window_size, windows.shape[1]
        tall, wide = (H + -H % side) // side, (W + -W % side) // side
        y = windows.reshape(-1, tall, wide, C, side, side).permute(0, 3, 1, 4, 2, 5)
        return y.reshape(-1, C, side * tall, side * wide)[..., :H, :W]

    def normed(self, layer: nn.Module, windows: Tensor, H: int, W: int) -> Tensor:
        """Convolution and normalization within windows; in training by statistics of the map's cells alone."""
        if isinstance(layer, ConvNorm) and self.training and self.is_ragged(H, W):
            return self.split(layer.bn(self.join(layer.conv(windows), H, W)))
        out: Tensor = layer(windows)
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias_Pkk: Tensor) -> Tensor:
        """Windows of queries, keys and values, each (P, channels, w, w) -> (P, C / n, w, w); softmax in single precision."""
        q_Pkd, k_Pkd, v_Pkd = (t.flatten(2).transpose(1, 2) for t in (q, k, v))
        logits = torch.baddbmm(bias_Pkk, q_Pkd, k_Pkd.transpose(1, 2), alpha=self.key_dim**-0.5)
        y = saturate(logits).float().softmax(-1).to(v.dtype) @ v_Pkd
        return y.transpose(1, 2).reshape(v.shape)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """The cascade of heads and the output projection."""
        H, W = x_BCHW.shape[2:]
        ragged = self.is_ragged(H, W)
        windows = self.split(x_BCHW)
        P, width = windows.shape[0], windows.shape[1] // len(self.to_qkv)
        biases = self.attention_biases[:, self.distances].to(x_BCHW.dtype)
        inside = self.split(torch.ones_like(x_BCHW[:, :1])) if ragged else None
        outputs: list[Tensor] = []
        for part, to_qkv, mix_q, bias_kk in zip(torch.split(windows, width, 1), self.to_qkv, self.mix_q, biases, strict=True):
            features = self.normed(to_qkv, part + outputs[-1] if outputs else part, H, W)
            q, k, v = torch.split(features, [self.key_dim, self.key_dim, width], 1)
            bias_Pkk = bias_kk.expand(P, -1, -1)
            if inside is not None:
                q = q * inside
                bias_Pkk = bias_Pkk.masked_fill(inside.flatten(2) < 0.5, float("-inf"))
            outputs.append(self.attend(self.normed(mix_q, q, H, W), k, v, bias_Pkk))
        out: Tensor = self.project(self.join(torch.cat(outputs, 1), H, W).relu())
        return out
