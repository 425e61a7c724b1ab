"""Mechanisms that weigh whole channels, or values by what their channels say."""

from nas_attn.blueprint import Hyperparameter, ModuleRecord

_SE = ModuleRecord(
    name="SE",
    target="nas_attn.attention.se:SE",
    family="channel",
    hyperparameters=(Hyperparameter(name="r", default=16, choices=(4, 8, 16), meaning="channels over hidden channels", through="hidden"),),
    gate="m(x) - x",
    constraints=(("r >= 1", "give a reduction of at least 1, such as 16"),),
    derived=(("hidden", "max(4, C // max(1, r))"),),
    params="2*C*hidden + hidden + C",
    macs="2*C*hidden",
    paper="Squeeze-and-Excitation Networks",
    venue="CVPR 2018",
    arxiv="1709.01507",
    reference="huggingface/pytorch-image-models",
    licence="Apache-2.0",
    note="Channel weights from the means of all channels; next to free on every map.",
)

_ECA = ModuleRecord(
    name="ECA",
    target="nas_attn.attention.eca:ECA",
    family="channel",
    hyperparameters=(
        Hyperparameter(
            name="k_size", default=0, choices=(0, 3, 7), meaning="neighbouring channels that count; 0: from the channels", through="k"
        ),
    ),
    gate="m(x) - x",
    constraints=(("k_size == 0 if k_size < 1 else k_size % 2 == 1", "give an odd number of taps, such as 3, or 0"),),
    # |log2(C) + 1| / 2 rounded down, the next odd number if that is even, at least 3.
    derived=(("k", "k_size if k_size >= 1 else 3 if C < 128 else 5 if C < 2048 else 7 if C < 32768 else 9"),),
    params="k",
    macs="C*k",
    paper="ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
    venue="CVPR 2020",
    arxiv="1910.03151",
    reference="BangguWu/ECANet",
    licence="MIT",
    note="Channel weights from the means of a few neighbouring channels; a handful of parameters.",
)

_GLOBAL_CONTEXT = ModuleRecord(
    name="GlobalContext",
    target="nas_attn.attention.global_context:GlobalContext",
    family="channel",
    hyperparameters=(
        Hyperparameter(name="ratio", default=0.0625, choices=(0.0625, 0.125, 0.25), meaning="squeezed channels", fraction=True),
        Hyperparameter(name="channel_mul", default=False, choices=(False,), meaning="multiply by a sigmoid instead of adding"),
    ),
    gate="m(x) - x",
    constraints=(("ratio >= 2", "give at least two squeezed channels, such as 1/16"),),
    params="C + 1 + 2*C*ratio + 3*ratio + C",
    macs="2*C*N + 2*C*ratio",
    paper="GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
    venue="ICCV Workshops 2019",
    arxiv="1904.11492",
    reference="xvjiarui/GCNet",
    licence="Apache-2.0",
    unseen=("layer.conv_attn.bias",),  # a softmax over positions does not see what is added to all of them
    note="One attention-weighted mean of the map, transformed and added everywhere; non-local attention at the price of SE.",
)

_SENETV2 = ModuleRecord(
    name="SENetV2",
    target="nas_attn.attention.senetv2:SENetV2",
    family="channel",
    hyperparameters=(
        Hyperparameter(name="reduction", default=32, choices=(8, 16, 32), meaning="channels over a branch's channels", through="hidden"),
        Hyperparameter(name="cardinality", default=4, choices=(4,), meaning="branches side by side"),
        Hyperparameter(name="residual", default=True, choices=(True,), meaning="add the weighted input to the input"),
    ),
    gate="m(x) - x",
    constraints=(
        ("reduction >= 1", "give a reduction of at least 1, such as 32"),
        ("cardinality >= 1", "give at least one branch, such as 4"),
    ),
    derived=(("hidden", "cardinality * max(4, C // max(1, reduction))"),),
    params="2*C*hidden + hidden + C",
    macs="2*C*hidden",
    paper="SENetV2: Aggregated dense layer for channelwise and global representations",
    venue="arXiv 2023",
    arxiv="2311.10807",
    reference="mahendran-narayanan/SENetV2-Aggregated-dense-layer-for-channelwise-and-global-representations@e4d57c5",
    licence="MIT",
    note="SE with several squeezes side by side, and its input added; next to free on every map.",
)

_NAM = ModuleRecord(
    name="NAM",
    target="nas_attn.attention.nam:NAM",
    family="channel",
    hyperparameters=(),
    gate="m(x) - x",
    constraints=(),
    params="2*C",
    macs="0",
    paper="NAM: Normalization-based Attention Module",
    venue="NeurIPS 2021 workshop",
    arxiv="2111.12419",
    reference="Christian-lyc/NAM@6e8d3e3",
    licence="none",
    note="Weights from a batch normalization and the relative size of its scales; its work is element-wise.",
)

_SIMAM = ModuleRecord(
    name="SimAM",
    target="nas_attn.attention.simam:SimAM",
    family="channel",
    hyperparameters=(
        Hyperparameter(name="e_lambda", default=1e-4, choices=(1e-5, 1e-4, 1e-3), meaning="added to the variance of a channel"),
    ),
    gate="m(x) - x",
    constraints=(("e_lambda > 0", "give a small positive number, such as 1e-4"),),
    params="0",
    macs="0",
    paper="SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks",
    venue="ICML 2021",
    arxiv="",
    reference="ZjjConan/SimAM",
    licence="none",
    note="Weights each value by its distance from its channel's mean; no parameters, element-wise work.",
)

_CBAM = ModuleRecord(
    name="CBAM",
    target="nas_attn.attention.cbam:CBAM",
    family="channel",
    hyperparameters=(
        Hyperparameter(name="r", default=16, choices=(8, 16), meaning="channels over hidden channels", through="hidden"),
        Hyperparameter(name="k_size", default=7, choices=(3, 7), meaning="side of the kernel over positions, in cells"),
    ),
    gate="m(x) - x",
    constraints=(
        ("r >= 1", "give a reduction of at least 1, such as 16"),
        ("k_size >= 1 and k_size % 2 == 1", "give an odd side, such as 7"),
    ),
    derived=(("hidden", "max(4, C // max(1, r))"),),
    params="2*C*hidden + hidden + C + 2*k_size**2 + 2",
    macs="4*C*hidden + 2*k_size**2*N",
    paper="CBAM: Convolutional Block Attention Module",
    venue="ECCV 2018",
    arxiv="1807.06521",
    reference="Jongchan/attention-module",
    licence="MIT",
    note="Channel weights, then position weights, both from means and maxima.",
)

_COORD = ModuleRecord(
    name="CoordAtt",
    target="nas_attn.attention.coord:CoordAtt",
    family="channel",
    hyperparameters=(
        Hyperparameter(
            name="reduction",
            default=32,
            choices=(8, 16, 32),
            meaning="channels over hidden channels, of which 8 are the least",
            through="hidden",
        ),
    ),
    gate="m(x) - x",
    constraints=(("reduction >= 1", "give a reduction of at least 1, such as 32"),),
    derived=(("hidden", "max(8, C // max(1, reduction))"),),
    params="3*C*hidden + 3*hidden + 2*C",
    macs="2*(H + W)*C*hidden",
    paper="Coordinate Attention for Efficient Mobile Network Design",
    venue="CVPR 2021",
    arxiv="2103.02907",
    reference="houqb/CoordAttention",
    licence="MIT",
    unseen=("squeeze.conv.bias",),  # the normalization cancels it
    note="Weights each value by its row and its column; tells where, at the price of SE.",
)

RECORDS: tuple[ModuleRecord, ...] = (_SE, _ECA, _GLOBAL_CONTEXT, _SENETV2, _NAM, _SIMAM, _CBAM, _COORD)
