"""MLCA: mixed local channel attention.

Shapes: x_BCHW with B images, C channels, H rows, W columns; l x l cells of the pooled map.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


def averages(target: int, source: int, like: Tensor) -> Tensor:
    """The (target, source) matrix of adaptive average pooling along one axis, for fewer cells and for more.

    Cell j is the mean of floor(j * source / target) up to ceil((j + 1) * source / target). The sizes may be symbols of an export.
    """
    cell = torch.arange(target, device=like.device).unsqueeze(1)
    position = torch.arange(source, device=like.device)
    start, end = cell * source // target, ((cell + 1) * source + target - 1) // target
    return (((position >= start) & (position < end)) / (end - start)).to(like.dtype)


class MLCA(Gated):
    """Multiplies x by ECA's channel weights, drawn for each of l x l large cells and mixed with those of the whole map.

    Rule: p = adaptive average pool of x to l x l, w = (1 - local_weight) * sigmoid(conv1d(mean(p))) + local_weight * sigmoid(conv1d'(p)),
    m(x) = x * unpool(w). conv1d runs along the channels; conv1d' along all cells laid end to end, the channels of each together, so that
    it looks a little across their ends; unpool is adaptive average pooling to H x W. A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; a map smaller than l x l is enlarged by the pool.
    Hyperparameters: local_size = 5 (1 to 32; searched 3, 5, 7), local_weight = 0.5 (between 0 and 1; searched 0.25, 0.5, 0.75), gamma = 2
    and b = 1: both kernels have int((log2(C) + b) / gamma) weights, one more where that is even.
    Raises SpaceError where the record's constraints do not hold.
    Source: Mixed Local Channel Attention for Object Detection, Engineering Applications of Artificial Intelligence 123 (2023) 106442;
    wandahangFY/MLCA@afbeb47, GPL-3.0: written from the description.
    Differs from the paper in: an identity gate. Where l divides the map, cells are views of it, and nothing is unpooled; elsewhere
    unpooling is a product with averaging matrices, and so is pooling in an export, which knows no sizes: all are equal to adaptive pooling.
    Checked: equal to loops over cells within 1e-5, and to adaptive_avg_pool2d at every size from 1 to 24; parameters and MACs equal to
    the record's formulas; ONNX (both exporters) equal to eager at other sizes than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, local_size: int = 5, local_weight: float = 0.5, gamma: int = 2, b: int = 1) -> None:
        values = record("MLCA").resolve(channels, {"local_size": local_size, "local_weight": local_weight, "gamma": gamma, "b": b})
        super().__init__(channels)
        self.local_size, self.local_weight, k_size = local_size, local_weight, int(values["k_size"])
        self.of_cells = nn.Conv1d(1, 1, k_size, padding=k_size // 2, bias=False)
        self.of_map = nn.Conv1d(1, 1, k_size, padding=k_size // 2, bias=False)

    def divides(self, x_BCHW: Tensor) -> bool:
        """Whether cells are of one size and do not overlap; never in an export, which leaves the sizes open."""
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
            return False
        return x_BCHW.shape[2] % self.local_size == 0 and x_BCHW.shape[3] % self.local_size == 0

    def cells(self, x_BCHW: Tensor) -> Tensor:
        """The map as cells of its own, (B, C, l, H / l, l, W / l); a view."""
        B, C, H, W = x_BCHW.shape
        return x_BCHW.view(B, C, self.local_size, H // self.local_size, self.local_size, W // self.local_size)

    def pooled(self, x_BCHW: Tensor) -> Tensor:
        """The means of l x l cells, (B, C, l, l); single precision unless x is wider."""
        wide = torch.promote_types(x_BCHW.dtype, torch.float32)
        if self.divides(x_BCHW):
            return self.cells(x_BCHW).mean(5, dtype=wide).mean(3)
        if not (torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()):
            return functional.adaptive_avg_pool2d(x_BCHW.to(wide), self.local_size)
        size = self.local_size
        rows, columns = (averages(size, side, x_BCHW) for side in x_BCHW.shape[2:])
        return (rows @ (x_BCHW @ columns.transpose(0, 1))).to(wide)

    def weight(self, x_BCHW: Tensor) -> Tensor:
        """The weights in (0, 1) of all channels of all cells, (B, C, l, l)."""
        p_BCll = self.pooled(x_BCHW)
        along = self.of_cells.weight.dtype
        line_B1N = p_BCll.permute(0, 2, 3, 1).flatten(1).unsqueeze(1)
        local_BllC = saturate(self.of_cells(line_B1N.to(along))).view(-1, self.local_size, self.local_size, x_BCHW.shape[1])
        overall_B1C = saturate(self.of_map(p_BCll.mean((2, 3)).unsqueeze(1).to(along)))
        overall_BC11 = torch.sigmoid(overall_B1C).transpose(1, 2).unsqueeze(-1)
        weight = torch.lerp(overall_BC11, torch.sigmoid(local_BllC).permute(0, 3, 1, 2), self.local_weight)
        return weight.to(x_BCHW.dtype)

    def aligned(self, x_BCHW: Tensor, weight_BCll: Tensor) -> tuple[Tensor, Tensor]:
        """The map and weights of its cells in shapes that multiply: cells against weights, or the map against weights spread over it."""
        if self.divides(x_BCHW):
            return self.cells(x_BCHW), weight_BCll[:, :, :, None, :, None]
        rows, columns = (averages(side, self.local_size, weight_BCll) for side in x_BCHW.shape[2:])
        return x_BCHW, (rows @ weight_BCll @ columns.transpose(0, 1)).to(x_BCHW.dtype)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """x times its weights."""
        x, weight = self.aligned(x_BCHW, self.weight(x_BCHW))
        return (x * weight).reshape(x_BCHW.shape)

    def branch(self, x_BCHW: Tensor) -> Tensor:
        """x times its weights less one."""
        x, less = self.aligned(x_BCHW, self.weight(x_BCHW) - 1)
        return (x * less).reshape(x_BCHW.shape)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x + g * A(x) in one pass over the map: the gate goes into the few weights."""
        gate = self.gate_bias.to(x_BCHW.dtype).view(1, -1, 1, 1)
        x, less = self.aligned(x_BCHW, gate * (self.weight(x_BCHW) - 1))
        return torch.addcmul(x, x, less).reshape(x_BCHW.shape)
