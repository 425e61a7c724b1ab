"""A change that is known to hurt: the negative half of a study's positive control.

`Blur` replaces every value by the mean of its 5x5 neighbourhood, with no gate and nothing to learn, so that a proxy that cannot tell it
from the base can tell nothing. It is no attention mechanism, stands in no search space and is never exported.

Shapes: x_BCHW in, the same out. Checked: shape kept for H, W >= 1; a constant map stays constant.
"""

import torch
from torch import Tensor, nn

from nas_attn.errors import SpaceError


class Blur(nn.Module):
    """Mean over a `kernel_size` square (odd), borders counted by what lies inside the map.

    Raises:
        SpaceError: an even or non-positive kernel size.
    """

    def __init__(self, channels: int, kernel_size: int = 5) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise SpaceError(f"`kernel_size` must be odd and positive, but got {kernel_size}; use 5.")
        self.channels = channels
        self.kernel_size = kernel_size

    def forward(self, x_BCHW: Tensor) -> Tensor:
        half = self.kernel_size // 2
        return torch.nn.functional.avg_pool2d(x_BCHW, self.kernel_size, stride=1, padding=half, count_include_pad=False)
