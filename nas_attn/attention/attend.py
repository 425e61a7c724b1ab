"""Scaled dot-product attention whose keys may be narrower than its values.

Shapes: q_BnQe, k_BnKe, v_BnKd with B images, n heads, Q queries, K keys, e key and d value channels.
"""

from torch import Tensor
from torch.nn import functional

from nas_attn.attention.gate import saturate


def attend(q_BnQe: Tensor, k_BnKe: Tensor, v_BnKd: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T) v, (B, n, Q, d), the softmax in single precision.

    torch's fused kernel for CPUs wants e = d; for other widths torch falls back to products that are slower than these two. Padding keys
    with zeros would keep the kernel: faster for many narrow heads (3 times for 4 heads of 32 on 1600 positions, 2 threads), slower for
    few wide ones, at a third more multiply-accumulates, and no part of an export.
    """
    if q_BnQe.shape[-1] == v_BnKd.shape[-1] or q_BnQe.device.type != "cpu":
        return functional.scaled_dot_product_attention(q_BnQe, k_BnKe, v_BnKd, scale=scale)
    logits_BnQK = saturate((q_BnQe * scale) @ k_BnKe.transpose(-2, -1))
    return logits_BnQK.float().softmax(-1).to(v_BnKd.dtype) @ v_BnKd
