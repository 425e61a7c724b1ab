"""The blocks of convolutions in the plainest batched way, with the weights of our modules: what their speed is compared to."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers.selective_kernel import SelectiveKernel
from torch import Tensor, nn
from torch.nn import functional

Plain = Callable[[Tensor], Tensor]


def plain_rcs_osa(module: Any) -> Plain:
    """The reference's structure: every branch of a RepVGG block on its own, halves concatenated and then shuffled."""

    def rep_vgg(block: Any, x: Tensor) -> Tensor:
        y = block.conv1.bn(block.conv1.conv(x)) + block.conv2.bn(block.conv2.conv(x))
        return functional.silu(y if block.bn is None else y + block.bn(x))

    def shuffle(x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        return x.reshape(B, 2, C // 2, H, W).transpose(1, 2).reshape(B, C, H, W)

    def stage(blocks: Any, x: Tensor) -> Tensor:
        for part in blocks:
            kept, changed = x.chunk(2, dim=1)
            x = shuffle(torch.cat([kept, rep_vgg(part.block, changed)], dim=1))
        return x

    def forward(x: Tensor) -> Tensor:
        first = rep_vgg(module.enter, x)
        second = stage(module.first, first)
        third = stage(module.second, second)
        y = rep_vgg(module.leave, torch.cat([first, second, third], dim=1))
        return y if module.excite is None else y * module.excite.weigh(functional.adaptive_avg_pool2d(y, 1))

    return forward


def plain_odconv(module: Any) -> Plain:
    """The reference's structure: a head an attention, all kernels of all images weighted and summed, one grouped convolution."""
    channels, side, n = module.kernels.shape[1], module.kernel_size, module.kernels.shape[0]
    heads = []
    for weight, bias in zip(module.heads.weight.split(module.parts), module.heads.bias.split(module.parts), strict=True):
        head = nn.Conv2d(weight.shape[1], max(1, weight.shape[0]), 1).to(weight)
        if len(weight):
            head.load_state_dict({"weight": weight, "bias": bias})
        heads.append(head)
    to_channel, to_filter, to_tap, to_kernel = heads
    kernels = module.kernels.reshape(1, n, channels, channels, side, side)

    def forward(x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        pooled = module.squeeze(functional.adaptive_avg_pool2d(x, 1))
        channel, filters = ((head(pooled) / module.temperature).sigmoid() for head in (to_channel, to_filter))
        weight = kernels
        if n > 1:
            weight = weight * (to_kernel(pooled) / module.temperature).softmax(dim=1).reshape(B, n, 1, 1, 1, 1)
        if side > 1:
            weight = weight * (to_tap(pooled) / module.temperature).sigmoid().reshape(B, 1, 1, 1, side, side)
        weight = weight.sum(dim=1).expand(B, C, C, side, side).reshape(B * C, C, side, side)
        x = (x * channel).reshape(1, B * C, H, W)
        y = functional.conv2d(x, weight, padding=side // 2, groups=B)
        return y.reshape(B, C, H, W) * filters

    return forward


def plain_dwr(module: Any) -> Plain:
    """The block as it is published: one normalization of the three dilations laid side by side; or the community's layers one by one."""
    branches = list(module.semantic)

    def community(x: Tensor) -> Tensor:
        z = module.region(x)
        return x + module.merge(torch.cat([branch(z) for branch in branches], dim=1))

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(branch.bn, name) for branch in branches])

    if not isinstance(module.merge, nn.Conv2d):
        return community
    norm = nn.BatchNorm2d(2 * module.merge.out_channels, eps=branches[0].bn.eps, momentum=branches[0].bn.momentum)
    norm.load_state_dict({name: joined(name) for name in ("weight", "bias", "running_mean", "running_var")}, strict=False)
    norm.train(module.training).to(module.merge.weight)

    def paper(x: Tensor) -> Tensor:
        z = functional.relu(module.region.bn(module.region.conv(x)))
        return x + module.merge(norm(torch.cat([branch.conv(z) for branch in branches], dim=1)))

    return paper


def plain_sk(module: Any) -> Plain:
    """timm's module with our weights, and with the bias of the linear layers, which it leaves out."""
    paths, first = len(module.branches), module.branches[0].conv
    channels, squeezed = first.in_channels, module.squeeze.conv.out_channels
    sides = [3 + 2 * i for i in range(paths)]
    twin = SelectiveKernel(channels, channels, sides, groups=first.groups, rd_channels=squeezed, split_input=False)
    for ours, theirs in zip(module.branches, twin.paths, strict=True):
        theirs.conv.load_state_dict(ours.conv.state_dict())
        theirs.bn.load_state_dict(ours.bn.state_dict())
        theirs.bn.eps = ours.bn.eps
    twin.attn.fc_reduce.load_state_dict(module.squeeze.conv.state_dict())
    twin.attn.bn.load_state_dict(module.squeeze.bn.state_dict())
    twin.attn.bn.eps = module.squeeze.bn.eps
    twin.attn.fc_select.bias = nn.Parameter(torch.zeros(paths * channels))
    twin.attn.fc_select.load_state_dict(module.select.state_dict())
    twin.attn.num_paths = paths
    return twin.train(module.training).to(first.weight)


PLAIN: dict[str, Callable[[Any], Plain]] = {"RCSOSA": plain_rcs_osa, "ODConv": plain_odconv, "DWR": plain_dwr, "SK": plain_sk}
