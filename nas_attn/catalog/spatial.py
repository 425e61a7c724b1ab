"""Mechanisms that weigh positions, and channels with them, and large kernels."""

from nas_attn.blueprint import Hyperparameter, ModuleRecord

_ESA = ModuleRecord(
    name="ESA",
    target="nas_attn.attention.esa:ESA",
    family="spatial",
    hyperparameters=(
        Hyperparameter(name="f", default=16, choices=(8, 16, 32), meaning="channels of the squeezed branch", fraction=True),
        Hyperparameter(name="rfa", default=False, choices=(False,), meaning="RFANet's three convolutions of the pooled map, not one"),
    ),
    gate="m(x) - x",
    constraints=(),
    derived=(("refinements", "3 if rfa else 1"),),
    params="2*C*f + f + C + f**2 + f + (1 + refinements)*(9*f**2 + f)",
    # A side below 15 is extended to 15; the strided convolution leaves (side - 3) // 2 + 1 cells, the pool (side - 15) // 6 + 1 of them.
    macs="2*C*f*N + f**2*N"
    " + 9*f**2 * ((max(H, 15) - 3)//2 + 1) * ((max(W, 15) - 3)//2 + 1)"
    " + 9*f**2 * refinements * ((max(H, 15) - 15)//6 + 1) * ((max(W, 15) - 15)//6 + 1)",
    paper="Residual Local Feature Network for Efficient Super-Resolution",
    venue="CVPR Workshops 2022",
    arxiv="2205.07514",
    reference="bytedance/RLFN@bccfde9",
    licence="Apache-2.0",
    note="Weighs every cell and channel by a strongly pooled view of its surroundings; cheap at every stride.",
)

_MLCA = ModuleRecord(
    name="MLCA",
    target="nas_attn.attention.mlca:MLCA",
    family="spatial",
    hyperparameters=(
        Hyperparameter(name="local_size", default=5, choices=(3, 5, 7), meaning="cells a side into which the map is pooled"),
        Hyperparameter(name="local_weight", default=0.5, choices=(0.25, 0.5, 0.75), meaning="share of the local weights"),
        Hyperparameter(name="gamma", default=2, choices=(2,), meaning="divisor in the rule for the kernel's size"),
        Hyperparameter(name="b", default=1, choices=(1,), meaning="addend in the rule for the kernel's size"),
    ),
    gate="m(x) - x",
    constraints=(
        ("1 <= local_size <= 32", "give a side of 1 to 32 cells, such as 5"),
        ("0 < local_weight < 1", "give a share between none and all, such as 0.5"),
        ("1 <= gamma <= 8", "give a divisor of 1 to 8, such as 2"),
        ("0 <= b <= 4", "give an addend of 0 to 4, such as 1"),
    ),
    # t = int((log2(C) + b) / gamma), made odd upwards: two more for each even number that t reaches. No logarithm is needed.
    derived=(("k_size", "1 + 2*(" + " + ".join(f"(C >= 2**({even}*gamma - b))" for even in range(2, 22, 2)) + ")"),),
    params="2*k_size",
    # Where the cells do not divide the map, the weights are spread over it by two products with averaging matrices.
    macs="k_size * (local_size**2 + 1) * C + (0 if H % local_size == 0 and W % local_size == 0 else C*local_size*H*(local_size + W))",
    paper="Mixed Local Channel Attention for Object Detection",
    venue="Engineering Applications of Artificial Intelligence 123 (2023) 106442",
    arxiv="",
    reference="wandahangFY/MLCA@afbeb47",
    licence="GPL-3.0",
    note="ECA's channel weights for each of a few large cells, mixed with those of the whole map; next to free.",
)

_EMA = ModuleRecord(
    name="EMA",
    target="nas_attn.attention.ema:EMA",
    family="spatial",
    hyperparameters=(
        Hyperparameter(name="factor", default=8, choices=(4, 8, 16, 32), meaning="groups of channels that share the weights"),
    ),
    gate="m(x) - x",
    constraints=(("factor >= 1 and C % factor == 0", "choose a number of groups that divides the channels"),),
    derived=(("width", "C // max(1, factor)"),),
    params="10*width**2 + 4*width",
    # The 3x3 convolution is only needed summed over its outputs and averaged over the map: one kernel and one matrix product instead.
    macs="C*width*(H + W) + 10*C*N + 9*C*width + 9*width**2 + width",
    paper="Efficient Multi-Scale Attention Module with Cross-Spatial Learning",
    venue="ICASSP 2023",
    arxiv="2305.13563",
    reference="YOLOonMe/EMA-attention-module",
    licence="none",
    note="Rows, columns and 3x3 neighbourhoods of each channel group weigh its cells; cheap at every stride.",
)

_SHUFFLE = ModuleRecord(
    name="ShuffleAttention",
    target="nas_attn.attention.shuffle:ShuffleAttention",
    family="spatial",
    hyperparameters=(
        Hyperparameter(name="groups", default=8, choices=(4, 8, 16, 32), meaning="groups of channels that share the weights"),
    ),
    gate="m(x) - x",
    constraints=(("groups >= 1 and C % (2*groups) == 0", "choose a number of groups whose double divides the channels"),),
    derived=(("width", "C // (2*max(1, groups))"),),
    params="6*width",
    macs="0",
    paper="SA-Net: Shuffle Attention for Deep Convolutional Neural Networks",
    venue="ICASSP 2021",
    arxiv="2102.00240",
    reference="wofmanaf/SA-Net",
    licence="none",
    note="Half of each channel group is weighed by its mean, half by its normalized cells, then channels are shuffled; no products at all.",
)

_TRIPLET = ModuleRecord(
    name="TripletAttention",
    target="nas_attn.attention.triplet:TripletAttention",
    family="spatial",
    hyperparameters=(
        Hyperparameter(name="k_size", default=7, choices=(3, 5, 7), meaning="side of the three kernels"),
        Hyperparameter(name="no_spatial", default=False, choices=(False,), meaning="leave out the plane of rows and columns"),
    ),
    gate="m(x) - x",
    constraints=(("k_size >= 1 and k_size % 2 == 1", "give an odd side, such as 7"),),
    params="(2 if no_spatial else 3) * (2*k_size**2 + 2)",
    macs="2*k_size**2 * (C*(H + W) + (0 if no_spatial else N))",
    paper="Rotate to Attend: Convolutional Triplet Attention Module",
    venue="WACV 2021",
    arxiv="2010.03045",
    reference="LandskapeAI/triplet-attention",
    licence="MIT",
    note="Three small convolutions over the planes of channels, rows and columns; a few hundred parameters at any width.",
)

_GAM = ModuleRecord(
    name="GAM",
    target="nas_attn.attention.gam:GAM",
    family="spatial",
    hyperparameters=(
        Hyperparameter(name="rate", default=4, choices=(4, 8, 16), meaning="reduction of channels in both halves"),
        Hyperparameter(name="group", default=False, choices=(False, True), meaning="cut the 7x7 convolutions into rate groups"),
        Hyperparameter(name="channel_sigmoid", default=True, choices=(True,), meaning="squash the channel weights into (0, 1)"),
    ),
    gate="m(x) - x",
    constraints=(
        ("rate >= 1", "give a reduction of at least one, such as 4"),
        ("not group or (C % rate == 0 and C // rate % rate == 0)", "choose a rate whose square divides the channels, or no groups"),
    ),
    derived=(
        ("width", "max(1, C // max(1, rate))"),
        ("groups", "rate if group else 1"),
    ),
    params="2*C*width + width + C + 98*C*width//max(1, groups) + 3*width + 3*C",
    macs="2*C*width*N + 98*C*width*N//max(1, groups)",
    paper="Global Attention Mechanism: Retain Information to Enhance Channel-Spatial Interactions",
    venue="arXiv 2021",
    arxiv="2112.05561",
    reference="dengbuqi/GAM_Pytorch",
    licence="none",
    unseen=("gather.conv.bias", "spread.conv.bias"),  # the normalizations cancel them
    note="Channel weights of every cell, then a 7x7 bottleneck; the heaviest here: prefer rate 8 or groups at strides 8 and 32.",
)

_CONTEXT = ModuleRecord(
    name="ContextAggregation",
    target="nas_attn.attention.context_aggregation:ContextAggregation",
    family="spatial",
    hyperparameters=(Hyperparameter(name="reduction", default=1, choices=(1, 2, 4, 8), meaning="reduction of channels of the context"),),
    gate="m(x) - x",
    constraints=(("reduction >= 1", "give a reduction of at least one, such as 1"),),
    derived=(("width", "max(1, C // max(1, reduction))"),),
    params="2*(C + 1) + C*width + width + width*C + C",
    macs="3*C*N + 2*C*width",  # values are summed before they are projected, which N*(2*C + C*width) + width*N + C*width would do after
    paper="Learning to Aggregate Multi-Scale Context for Instance Segmentation in Remote Sensing Images",
    venue="IEEE TNNLS 2024",
    arxiv="2111.11057",
    reference="yeliudev/CATNet@64775d0",
    licence="GPL-3.0",
    note="One context of the whole map, added to every cell as far as the cell wants it; the cheapest view of the whole map.",
)

_LKA = ModuleRecord(
    name="LKA",
    target="nas_attn.attention.lka:LKA",
    family="kernel",
    hyperparameters=(
        Hyperparameter(name="use_proj", default=False, choices=(False,), meaning="VAN's 1x1-GELU-LKA-1x1 with shortcut around it"),
    ),
    gate="m(x) - x",
    constraints=(),
    map_constraints=(("23 <= 2 * min(H, W)", "choose LSKA with a smaller kernel, or a larger map"),),
    params="C**2 + 77*C + (2*(C**2 + C) if use_proj else 0)",
    macs="N*(74*C + C**2) + (2*C**2*N if use_proj else 0)",
    paper="Visual Attention Network",
    venue="Computational Visual Media 9 (2023)",
    arxiv="2202.09741",
    reference="Visual-Attention-Network/VAN-Classification",
    licence="Apache-2.0",
    note="A 23 x 23 receptive field from two depthwise kernels; LSKA draws the same from lines.",
)

RECORDS = (_ESA, _MLCA, _EMA, _SHUFFLE, _TRIPLET, _GAM, _CONTEXT, _LKA)
