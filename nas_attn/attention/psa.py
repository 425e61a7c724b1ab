"""PSA: partial self-attention of YOLOv10, in YOLO11's form.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W; c = hidden channels, n heads of d values and d // 2 key channels.
"""

from torch import Tensor
from ultralytics.nn.modules.block import C2PSA, Attention

from nas_attn.attention.attend import attend
from nas_attn.attention.conv import trainable_on_one_value
from nas_attn.attention.gate import Gated
from nas_attn.records import record


class SelfAttention(Attention):  # type: ignore[misc]
    """Ultralytics' self-attention, with its parameters, through `attend`."""

    def forward(self, x_BcHW: Tensor) -> Tensor:
        """x_BcHW -> the same shape; the softmax is in single precision."""
        q, k, v = self.qkv(x_BcHW).flatten(2).unflatten(1, (self.num_heads, -1)).split((self.key_dim, self.key_dim, self.head_dim), dim=2)
        queries, keys, values = (part.transpose(-2, -1).contiguous() for part in (q, k, v))
        y = attend(queries, keys, values, self.scale)
        out: Tensor = self.proj(self.pe(v.reshape(x_BcHW.shape)) + y.transpose(-2, -1).reshape(x_BcHW.shape))
        return out


class PSA(Gated):
    """Sends a part of the channels through self-attention and a feed-forward network, and joins it with the rest.

    Rule: a, b = halves of conv1(x); n times b += attention(b), b += conv1(conv1(b)) over 2c channels; m(x) = conv1([a, b]). Each
    convolution has batch normalization; a SiLU follows the first, the last, and the first one of the feed-forward network. Attention is
    that of MHSA, with a head for 64 channels and keys half as wide as values. A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; time and memory grow with N^2.
    Hyperparameters: n = 1 (>= 1; searched 1, 2), e = 0.5 (c = C * e, in (0, 1]; searched 0.25, 0.5).
    Raises SpaceError where the record's constraints do not hold.
    Source: YOLOv10: Real-Time End-to-End Object Detection, NeurIPS 2024, arXiv 2405.14458; the layers are ultralytics' `C2PSA` (AGPL-3.0),
    under its names, so that its weights fit; with n = 1 it is its `PSA`.
    Differs from the paper in: an identity gate; the softmax in single precision.
    Checked: equal to a loop over positions within 1e-5, and to Ultralytics' `C2PSA` and `PSA` with the same weights within 1e-4; parameters
    equal to theirs, MACs too; ONNX by both exporters equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, n: int = 1, e: float = 0.5) -> None:
        values = record("PSA").resolve(channels, {"n": n, "e": e})
        super().__init__(channels)
        layer = C2PSA(channels, channels, n, e)
        for block in layer.m:
            block.attn = SelfAttention(layer.c, num_heads=int(values["heads"]), attn_ratio=0.5)
        self.layer = trainable_on_one_value(layer)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """The whole block, which has no shortcut of its own."""
        out: Tensor = self.layer(x_BCHW)
        return out
