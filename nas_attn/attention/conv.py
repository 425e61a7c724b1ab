"""Convolution and batch normalization as Ultralytics' `Conv`, so that `model.fuse()` folds the one into the other.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from ultralytics.nn.modules.conv import Conv

EPS = 1e-3
MOMENTUM = 0.03
"""Ultralytics sets both on every batch normalization of its own."""


class Norm(nn.BatchNorm2d):
    """Batch normalization that takes a single value a channel in training as well, normalized by its running statistics.

    One value has no variance: torch raises there, which a global pool at batch 1 or a 1 x 1 map runs into.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS, momentum=MOMENTUM)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW -> the same shape."""
        if self.training and x_BCHW.shape[0] * x_BCHW.shape[2] * x_BCHW.shape[3] == 1:
            return functional.batch_norm(x_BCHW, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x_BCHW)


class ConvNorm(Conv):  # type: ignore[misc]
    """A `kernel` x `kernel` convolution, `Norm`, and `act` (none by default); stride 1, size kept; kernels are odd.

    It has no bias unless it is asked for: the normalization cancels one.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        act: nn.Module | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(c_in, c_out, kernel, 1, dilation * (kernel // 2), groups, dilation, act or False)
        if bias:
            self.conv.bias = nn.Parameter(torch.zeros(c_out))
        self.bn = Norm(c_out)


def trainable_on_one_value(module: nn.Module) -> nn.Module:
    """`module` with every plain batch normalization inside it turned into a `Norm`; for blocks that a library builds."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(module, name, Norm(child.num_features))
        else:
            trainable_on_one_value(child)
    return module
