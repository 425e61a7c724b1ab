"""What the tests of attention modules share: building one, drawing a map, and the slow forms of common layers."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import BaseModel

from nas_attn.attention.gate import Gated
from nas_attn.records import record
from nas_attn.registration import attention_class

CHANNELS = 32
Params = Mapping[str, Any]


def build(name: str, params: Params | None = None, channels: int = CHANNELS, *, gate: float | None = None, seed: int = 0) -> Gated:
    """The module of that record, in evaluation mode; `gate` opens it to that value, everywhere."""
    torch.manual_seed(seed)
    module: Gated = attention_class(record(name).target)(channels, *record(name).args(params or {}))
    if gate is not None:
        nn.init.constant_(module.gate_bias, gate)
    return module.eval()


def draw(batch: int, height: int, width: int, channels: int = CHANNELS, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def pointwise(layer: nn.Conv2d, x_CHW: Tensor) -> Tensor:
    out = torch.einsum("oc,chw->ohw", layer.weight[:, :, 0, 0], x_CHW)
    return out if layer.bias is None else out + layer.bias[:, None, None]


def convolution(layer: nn.Conv2d, x_CHW: Tensor) -> Tensor:
    """Every cell as a sum over the taps that lie in the map; any groups, stride, padding and dilation."""
    _, height, width = x_CHW.shape
    rows, columns = layer.weight.shape[2:]
    (down, right), (top, left), (step_y, step_x) = layer.stride, layer.padding, layer.dilation  # type: ignore[misc]
    tall = (height + 2 * int(top) - step_y * (rows - 1) - 1) // down + 1
    wide = (width + 2 * int(left) - step_x * (columns - 1) - 1) // right + 1
    weight = layer.weight.unflatten(0, (layer.groups, -1))  # (groups, out / groups, in / groups, rows, columns)
    grouped = x_CHW.unflatten(0, (layer.groups, -1))
    out = torch.zeros(layer.groups, weight.shape[1], tall, wide)
    for y, x, a, b in itertools.product(range(tall), range(wide), range(rows), range(columns)):
        u, v = y * down + a * step_y - int(top), x * right + b * step_x - int(left)
        if 0 <= u < height and 0 <= v < width:
            out[:, :, y, x] += torch.einsum("goi,gi->go", weight[..., a, b], grouped[:, :, u, v])
    flat = out.flatten(0, 1)
    return flat if layer.bias is None else flat + layer.bias[:, None, None]


def normed(norm: nn.BatchNorm2d, x_CHW: Tensor) -> Tensor:
    """Batch normalization by running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return x_CHW * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]


def bilinear(x_Chw: Tensor, height: int, width: int) -> Tensor:
    """Half-pixel centres, edges repeated."""

    def weights(cells: int, size: int) -> Tensor:
        matrix = torch.zeros(size, cells)
        for target in range(size):
            source = max((target + 0.5) * cells / size - 0.5, 0.0)
            low = min(int(source), cells - 1)
            matrix[target, low] += 1 - (source - low)
            matrix[target, min(low + 1, cells - 1)] += source - low
        return matrix

    return torch.einsum("ya,xb,cab->cyx", weights(x_Chw.shape[1], height), weights(x_Chw.shape[2], width), x_Chw)


def enliven(module: Gated, seed: int = 5) -> Gated:
    """Gives normalizations statistics and weights, and biases values, that a form which leaves them out would miss."""
    noise = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=noise) * (high - low) + low

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm) and part.weight is not None:
                part.weight.copy_(uniform(part.weight, 0.5, 1.5))
                part.bias.copy_(uniform(part.bias, -0.5, 0.5))
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.copy_(uniform(part.running_mean, -0.5, 0.5))  # type: ignore[union-attr,arg-type]
                part.running_var.copy_(uniform(part.running_var, 0.5, 2.0))  # type: ignore[union-attr,arg-type]
    return module


@torch.no_grad()
def equals_slow_form(name: str, params: Params, size: tuple[int, int], slowly: Callable[[Any, Tensor], Tensor], channels: int = 16) -> None:
    """The mechanism equals `slowly(module, image_CHW)` on two images within 1e-5, with lively normalizations."""
    module, x = enliven(build(name, params, channels)), draw(2, *size, channels)
    expected = torch.stack([slowly(module, image) for image in x])
    torch.testing.assert_close(module.mechanism(x), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 1e-3  # the comparison has something to compare


class Holder(BaseModel):  # type: ignore[misc]
    """A model of one layer, for Ultralytics' own `fuse`."""

    def __init__(self, layer: nn.Module) -> None:
        nn.Module.__init__(self)
        self.model = nn.Sequential(layer)

    def info(self, detailed: bool = False, verbose: bool = True, imgsz: int = 640) -> None:
        """Nothing to say."""
