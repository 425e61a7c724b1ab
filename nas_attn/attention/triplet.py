"""TripletAttention: attention over the three planes of channels, rows and columns.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

import torch
from torch import Tensor

from nas_attn.attention.conv import ConvNorm
from nas_attn.attention.gate import Gated
from nas_attn.records import record


def _squeezed(x_BCHW: Tensor, dim: int) -> Tensor:
    """The maximum and the mean over one axis, as two channels in front of the other two: (B, 2, .., ..)."""
    mean = x_BCHW.mean(dim, dtype=torch.float32 if x_BCHW.dtype.itemsize < 4 else None).to(x_BCHW.dtype)
    return torch.stack((x_BCHW.amax(dim), mean), 1)


class TripletAttention(Gated):
    """Multiplies x by the mean of three weights, each drawn from one plane of the block of channels, rows and columns.

    Rule: m(x) = x * (w(C, W) + w(C, H) + w(H, W)) / 3, each w = sigmoid(BN(conv_k([max, mean]))) of the maximum and mean over the axis that
    it lacks; with no_spatial the first two and their half. A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1.
    Hyperparameters: k_size = 7 (odd; searched 3, 5, 7), no_spatial = False.
    Raises SpaceError for an even k_size.
    Source: Rotate to Attend: Convolutional Triplet Attention Module, WACV 2021, arXiv 2010.03045; LandskapeAI/triplet-attention, MIT.
    Differs from the paper in: an identity gate; Ultralytics' constants of batch norm; the weights are added before they meet x, and x
    is never rotated, which is equal and saves four copies of the map.
    Checked: equal to loops over taps on the three planes within 1e-5; parameters and MACs equal to the record's formulas and to the
    published count; a swap of rows and columns swaps the output where the kernels are swapped; ONNX (both exporters) equal to eager at
    other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, k_size: int = 7, no_spatial: bool = False) -> None:
        record("TripletAttention").resolve(channels, {"k_size": k_size, "no_spatial": no_spatial})
        super().__init__(channels)
        self.channels_columns = ConvNorm(2, 1, k_size)
        self.rows_channels = ConvNorm(2, 1, k_size)
        self.rows_columns = None if no_spatial else ConvNorm(2, 1, k_size)

    def weights(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of columns (B, C, 1, W), rows (B, C, H, 1) and cells (B, 1, H, W), or one zero; x is multiplied by their sum, in (0, 1)."""
        share = 1 / 2 if self.rows_columns is None else 1 / 3
        by_column = share * torch.sigmoid(self.channels_columns(_squeezed(x_BCHW, 2))).transpose(1, 2)
        by_row = share * torch.sigmoid(self.rows_channels(_squeezed(x_BCHW, 3).transpose(2, 3))).transpose(1, 3)
        if self.rows_columns is None:
            return by_column.to(x_BCHW.dtype), by_row.to(x_BCHW.dtype), x_BCHW.new_zeros(1)
        by_cell = share * torch.sigmoid(self.rows_columns(_squeezed(x_BCHW, 1)))
        return by_column.to(x_BCHW.dtype), by_row.to(x_BCHW.dtype), by_cell.to(x_BCHW.dtype)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """x times the sum of its weights."""
        by_column, by_row, by_cell = self.weights(x_BCHW)
        return x_BCHW * (by_column + by_row + by_cell)

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """x times the sum of its weights less one."""
        by_column, by_row, by_cell = self.weights(x_BCHW)
        return x_BCHW * (by_column + by_row + (by_cell - 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x + g * A(x) in three passes over the map: the gate goes into the weights of columns and rows."""
        by_column, by_row, by_cell = self.weights(x_BCHW)
        gate = self.gate_bias.to(x_BCHW.dtype).view(1, -1, 1, 1)
        less = torch.addcmul(gate * by_column + gate * by_row, gate, by_cell - 1)
        return torch.addcmul(x_BCHW, x_BCHW, less)
