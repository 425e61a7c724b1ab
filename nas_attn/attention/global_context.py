"""GlobalContext: the global context block of GCNet.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W; p = squeezed channels.
"""

import torch
from torch import Tensor

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class GlobalContext(Gated):
    """Adds to every position the same vector, made from an attention-weighted mean of all positions.

    Rule: c = sum over positions of softmax(conv1(x)) * x, with one logit a position; t = conv1(ReLU(LN(conv1(c)))), from C over p
    channels back to C. m(x) = x + t, so that A(x) = t; with channel_mul m(x) = x * sigmoid(t) and A(x) = m(x) - x. Either way y is
    one pass over the map: x + g * t, or x * (1 + g * (sigmoid(t) - 1)).
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; t is (B, C, 1, 1).
    Hyperparameters: ratio = 1/16 (a part of C, which is at least 8 channels, or p itself, >= 2; searched 1/16, 1/8, 1/4),
    channel_mul = False.
    Raises SpaceError for p below 2: the layer norm of a single channel is constant.
    Source: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, ICCV Workshops 2019, arXiv 1904.11492;
    xvjiarui/GCNet, Apache-2.0; the layers are timm's `GlobalContext` (Apache-2.0), which by default multiplies, where the paper adds.
    Differs from the paper in: an identity gate in place of a last layer of zeros: with both, neither would ever learn; timm's 1e-6 in
    the layer norm.
    Checked: equal to loops within 1e-5 and to timm's module with the same weights within 1e-5; parameters and MACs equal to the
    record's formulas; ONNX (both exporters) equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, ratio: float = 0.0625, channel_mul: bool = False) -> None:
        from timm.layers import GlobalContext as Layer  # here: it takes longer to import than torch does

        values = record("GlobalContext").resolve(channels, {"ratio": ratio, "channel_mul": channel_mul})
        super().__init__(channels)
        self.layer = Layer(channels, fuse_add=not channel_mul, fuse_scale=channel_mul, rd_channels=int(values["ratio"]))
        self.channel_mul = channel_mul
        if not channel_mul:
            self.layer.mlp_add.fc2.reset_parameters()  # timm starts it with zeros

    def context(self, x_BCHW: Tensor) -> Tensor:
        """c, the mean that softmax weighs, (B, C, 1, 1)."""
        logits = saturate(self.layer.conv_attn(x_BCHW).flatten(2), torch.promote_types(x_BCHW.dtype, torch.float32))
        weight_BN1 = logits.softmax(-1).to(x_BCHW.dtype).transpose(1, 2)
        return (x_BCHW.flatten(2) @ weight_BN1).unsqueeze(-1)

    def transform(self, x_BCHW: Tensor) -> Tensor:
        """t, or its sigmoid with channel_mul, (B, C, 1, 1)."""
        network = self.layer.mlp_scale if self.channel_mul else self.layer.mlp_add
        hidden = network.act(network.norm(saturate(network.fc1(self.context(x_BCHW)))))
        t: Tensor = network.fc2(hidden).to(x_BCHW.dtype)
        return t.sigmoid() if self.channel_mul else t

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """x + t, or x * sigmoid(t)."""
        t = self.transform(x_BCHW)
        return x_BCHW * t if self.channel_mul else x_BCHW + t

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """m(x) - x, without the detour over m(x)."""
        t = self.transform(x_BCHW)
        return x_BCHW * (t - 1) if self.channel_mul else t.expand_as(x_BCHW)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x + g * A(x), with the gate folded into the vector."""
        gate = self.gate_bias.to(x_BCHW.dtype).view(1, -1, 1, 1)
        t = self.transform(x_BCHW)
        return x_BCHW * (1 + gate * (t - 1)) if self.channel_mul else x_BCHW + gate * t
