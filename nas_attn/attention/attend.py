"""Scaled dot-product attention in the form that is fastest where it runs.

Shapes: q_BnQe, k_BnKe, v_BnKd with B images or windows, n heads, Q queries, K keys, e key and d value channels; inside (.., K) is true for
keys that may be seen.
"""

from torch import Tensor
from torch.nn import functional

from nas_attn.attention.gate import saturate


def attend(q_BnQe: Tensor, k_BnKe: Tensor, v_BnKd: Tensor, scale: float, inside: Tensor | None = None, *, small: bool = False) -> Tensor:
    """softmax(scale * q k^T) v, (B, n, Q, d), the softmax in single precision; `small` says that there are some dozens of keys at most.

    torch's fused kernel for CPUs gains nothing from a second thread on small windows (49 keys: twice the time of two products), and wants
    e = d: for other widths torch falls back to products that are slower than these two. Padding keys with zeros would keep the kernel:
    faster for many narrow heads (3 times for 4 heads of 32 on 1600 positions, 2 threads), slower for few wide ones, at a third more
    multiply-accumulates, and no part of an export.
    """
    fused = q_BnQe.shape[-1] == v_BnKd.shape[-1] and not small
    if fused or q_BnQe.device.type != "cpu":
        return functional.scaled_dot_product_attention(q_BnQe, k_BnKe, v_BnKd, inside, scale=scale)
    logits_BnQK = saturate((q_BnQe * scale) @ k_BnKe.transpose(-2, -1)).float()
    if inside is not None:
        logits_BnQK = logits_BnQK.masked_fill(~inside, float("-inf"))
    return logits_BnQK.softmax(-1).to(v_BnKd.dtype) @ v_BnKd
