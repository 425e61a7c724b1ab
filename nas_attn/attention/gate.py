"""The identity gate: an inserted module starts as the identity, so that a detector's output is unchanged by its insertion.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn


def saturate(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`x` in `dtype` (its own by default), with what overflows half precision brought back to the ends of its range.

    Infinity times a closed gate is NaN, and so is a softmax of two infinities; what can overflow where the detector's own convolutions do
    not (products, sums of logits) passes through here first. Other types have range enough and are left alone.
    """
    dtype = dtype or x.dtype
    if torch.float16 in (x.dtype, dtype):
        limit = torch.finfo(torch.float16).max
        x = x.clamp(-limit, limit)
    return x.to(dtype)


class Gated(nn.Module, ABC):
    """A mechanism m behind a gate that is closed at first: `y = x + g * A(x)`, with one g a channel, zero at the start.

    Rule: A(x) is m(x) or m(x) - x, as the mechanism's record says, so that g = 1 gives the published form with or without residual.
    A must be finite: 0 * A(x) is then zero and y equals x bit for bit. A must not be zero at the start: with the gate closed as well,
    neither would ever learn, so that published initializations of the last layer with zeros are not taken over.
    Shapes: x_BCHW -> y_BCHW, same type and device, any B, H, W >= 1.
    The gate is stored in one dimension and as a "bias", because Ultralytics' optimizers pull parameters without that word in their
    name towards zero (weight decay) and make unit-norm updates to those of two or four dimensions (Muon).
    Source: ReZero is All You Need, UAI 2021, arXiv 2003.04887 (a zero scalar a layer; here one a channel).
    Checked: identity bit for bit in every type, gradients of the gate at the first step and of the weights after it.
    """

    replaces: ClassVar[bool] = False
    """Whether m(x) takes the place of x, so that A(x) = m(x) - x, instead of being added to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate_bias = nn.Parameter(torch.zeros(channels))

    @abstractmethod
    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """m(x): the published mechanism without gate; shape kept."""

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """A(x): what the gate multiplies; shape kept. A mechanism with a shortcut of its own gives what it adds, without a detour."""
        y = self.mechanism(x_BCHW)
        return y - x_BCHW if self.replaces else y

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x + g * A(x)."""
        gate = self.gate_bias.to(x_BCHW.dtype).view(1, -1, 1, 1)
        return x_BCHW + gate * saturate(self.branch(x_BCHW), x_BCHW.dtype)


class Weighted(Gated):
    """A mechanism that multiplies its input by weights w(x), which broadcast over the map: m(x) = x * w(x), A(x) = x * (w(x) - 1).

    The gate is folded into the weights, `y = x * (1 + g * (w(x) - 1))`: one pass over the map in place of three.
    """

    replaces = True

    @abstractmethod
    def weight(self, x_BCHW: Tensor) -> Tensor:
        """w(x), of a shape that broadcasts to x and of its type; finite."""

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """x * w."""
        return x_BCHW * self.weight(x_BCHW)

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """m(x) - x."""
        return x_BCHW * (self.weight(x_BCHW) - 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x + g * A(x)."""
        gate = self.gate_bias.to(x_BCHW.dtype).view(1, -1, 1, 1)
        return x_BCHW * (1 + gate * (self.weight(x_BCHW) - 1))
