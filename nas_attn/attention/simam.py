"""SimAM: weights from an energy function, without parameters.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W.
"""

import torch
from torch import Tensor

from nas_attn.attention.gate import Gated
from nas_attn.records import record


class SimAM(Gated):
    """Weighs each value by how far it lies from the mean of its channel, measured by the channel's variance.

    Rule: d = (x - mean)^2, v = sum of d / n with n = N - 1 but at least 1, both over the positions of a channel of an image;
    m(x) = x * sigmoid(d / (4 * (v + e_lambda)) + 1/2). A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1.
    Hyperparameters: e_lambda = 1e-4 (> 0; searched 1e-5, 1e-4, 1e-3).
    Raises SpaceError for an e_lambda of zero or less: a constant channel would be 0 / 0.
    Source: SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks, ICML 2021, PMLR 139;
    ZjjConan/SimAM, no licence: written from the description.
    Differs from the paper in: an identity gate; a map of one cell, for which the reference divides by zero, gives sigmoid(1/2);
    half precision is computed in single, because the squares overflow.
    Checked: equal to loops within 1e-5; a constant channel comes out as x * sigmoid(1/2); the same weights for a * x + b where
    e_lambda does not matter; ONNX (both exporters) equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, e_lambda: float = 1e-4) -> None:
        record("SimAM").resolve(channels, {"e_lambda": e_lambda})
        super().__init__(channels)
        self.e_lambda = e_lambda

    def weight(self, x_BCHW: Tensor) -> Tensor:
        """The sigmoid of each value's energy, in x's shape and type."""
        x = x_BCHW.to(torch.promote_types(x_BCHW.dtype, torch.float32))
        cells = x.shape[2] * x.shape[3]
        centred = x - x.mean((2, 3), keepdim=True)
        squared = centred * centred
        # 1 // cells is one for a single cell and zero otherwise; written as a maximum, an export would keep the size that it saw.
        variance = squared.sum((2, 3), keepdim=True) / (cells - 1 + 1 // cells)
        energy = squared * (0.25 / (variance + self.e_lambda)) + 0.5
        return energy.sigmoid().to(x_BCHW.dtype)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """x * w."""
        return x_BCHW * self.weight(x_BCHW)
