"""SENetV2: squeeze and aggregated excitation.

Shapes: x_BCHW with B images, C channels, H rows, W columns; b branches of c channels.
"""

from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class SENetV2(Gated):
    """Adds to each channel a part of itself, chosen by several small networks side by side from the means of all channels.

    Rule: s = sigmoid(W [ReLU(W_1 mean(x)), ..., ReLU(W_b mean(x))]), each W_i from C to c channels and W from b * c to C, all with
    bias, c = C // reduction but at least 4. m(x) = x + x * s and A(x) = x * s; without the residual m(x) = x * s and A(x) = m(x) - x.
    Either way y is one pass over the map: x * (1 + g * s), or x * (1 + g * (s - 1)).
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; s is (B, C, 1, 1).
    Hyperparameters: reduction = 32 (>= 1; searched 8, 16, 32), cardinality = 4, the b (>= 1; searched 4: twice as many branches of half
    the width are the same network), residual = True.
    Raises SpaceError for a reduction or a cardinality below 1.
    Source: SENetV2: Aggregated dense layer for channelwise and global representations, arXiv 2311.10807 (2023);
    mahendran-narayanan/SENetV2-Aggregated-dense-layer-for-channelwise-and-global-representations@e4d57c5 (TensorFlow), MIT.
    Differs from the paper in: an identity gate; the branches are one layer of b * c channels, which computes the same; at least 4
    channels a branch.
    Checked: equal to loops over separate branches within 1e-5; parameters and MACs equal to the record's formulas; ONNX (both
    exporters) equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, reduction: int = 32, cardinality: int = 4, residual: bool = True) -> None:
        values = record("SENetV2").resolve(channels, {"reduction": reduction, "cardinality": cardinality, "residual": residual})
        super().__init__(channels)
        hidden = int(values["hidden"])
        self.residual = residual
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def scale(self, x_BCHW: Tensor) -> Tensor:
        """s, one value a channel of an image, (B, C, 1, 1)."""
        # As products of matrices: the gradient of a convolution of one cell takes half as long again.
        mean = x_BCHW.mean((2, 3))
        hidden = saturate(functional.linear(mean, self.squeeze.weight.flatten(1), self.squeeze.bias)).relu()
        scale = functional.linear(hidden, self.excite.weight.flatten(1), self.excite.bias)
        return scale.sigmoid().to(x_BCHW.dtype)[:, :, None, None]

    def change(self, x_BCHW: Tensor) -> Tensor:
        """What A(x) multiplies x with: s, or s - 1."""
        scale = self.scale(x_BCHW)
        return scale if self.residual else scale - 1

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """x + x * s, or x * s."""
        scale = self.scale(x_BCHW)
        return x_BCHW * (1 + scale) if self.residual else x_BCHW * scale

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """m(x) - x, without the detour over m(x)."""
        return x_BCHW * self.change(x_BCHW)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x + g * A(x), with the gate folded into the weights."""
        gate = self.gate_bias.to(x_BCHW.dtype).view(1, -1, 1, 1)
        return x_BCHW * (1 + gate * self.change(x_BCHW))
