"""RCSOSA: re-parameterized convolutions with channel shuffle, aggregated once.

Shapes: x_BCHW with B images, C channels, H rows, W columns; w channels of the stages.
"""

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.conv import RepConv

from nas_attn.attention.conv import trainable_on_one_value
from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


def rep_vgg(c_in: int, c_out: int) -> nn.Module:
    """SiLU(BN(conv3(x)) + BN(conv1(x)) + BN(x)), the last where the widths agree; Ultralytics fuses it into one 3x3 convolution."""
    return trainable_on_one_value(RepConv(c_in, c_out, bn=True))


class Shuffled(nn.Module):
    """One half of the channels passes, the other is convolved, and the two are interleaved: a shuffle of two groups."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = rep_vgg(width // 2, width // 2)

    def forward(self, x_BwHW: Tensor) -> Tensor:
        """x_BwHW -> the same shape; channels 0, w/2, 1, w/2 + 1 and so on of both halves laid end to end."""
        passed, convolved = x_BwHW.chunk(2, 1)
        return torch.stack((passed, self.block(convolved)), 2).flatten(1, 2)


class Excitation(nn.Module):
    """Weighs whole channels by their means over the map."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Conv2d(channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, channels, 1), nn.Sigmoid())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW -> the same shape."""
        mean = x_BCHW.mean((2, 3), keepdim=True, dtype=torch.promote_types(x_BCHW.dtype, torch.float32))
        out: Tensor = x_BCHW * self.weigh(saturate(mean, x_BCHW.dtype))
        return out


class RCSOSA(Gated):
    """Two stages of shuffled re-parameterized convolutions, whose outputs are joined with their input's only once, at the end.

    Rule: a = R(x), b = S(a), c = S(b), m(x) = R([a, b, c]), with se times sigmoid(conv1(ReLU(conv1(mean(m))))); R is a RepVGG block,
    SiLU(BN(conv3) + BN(conv1) + BN), the last BN where input and output are equally wide; S is max(1, n // 2) times: one half of the
    channels as it is, R of the other half, interleaved. a, b and c have ceil(C e / 8) * 8 channels. A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1.
    Hyperparameters: n = 2 (>= 1, official 2 and 4; searched 2, 4), se = False (searched both), e = 0.5 (in (0, 1]).
    Raises SpaceError where the record's constraints do not hold.
    Source: RCS-YOLO: A Fast and High-Accuracy Object Detector for Brain Tumor Detection, MICCAI 2023, arXiv 2307.16412;
    mkang315/RCS-YOLO@7670277, GPL-3.0; written from the description.
    Differs from the paper in: an identity gate; at least one block a stage (the reference's n // 2 makes three copies of `a` of n = 1,
    which scaling a detector's depth produces); the mean is over any map, not over a square one; the blocks are Ultralytics' `RepConv`,
    so that `model.fuse()` makes a single 3x3 convolution of each: nine tenths of the recorded MACs remain.
    Checked: equal to sums over kernels written as loops within 1e-5; equal before and after `fuse()`; parameters and MACs equal to the
    record's formulas; ONNX (both exporters) equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, n: int = 2, se: bool = False, e: float = 0.5) -> None:
        values = record("RCSOSA").resolve(channels, {"n": n, "se": se, "e": e})
        super().__init__(channels)
        width, blocks = int(values["width"]), int(values["blocks"])
        self.enter = rep_vgg(channels, width)
        self.first = nn.Sequential(*(Shuffled(width) for _ in range(blocks)))
        self.second = nn.Sequential(*(Shuffled(width) for _ in range(blocks)))
        self.leave = rep_vgg(3 * width, channels)
        self.excite = Excitation(channels, int(values["squeezed"])) if se else None

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Both stages and their aggregation."""
        entered = self.enter(x_BCHW)
        once = self.first(entered)
        out: Tensor = self.leave(torch.cat((entered, once, self.second(once)), 1))
        return out if self.excite is None else self.excite(out)
