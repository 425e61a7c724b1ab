"""Mechanisms in which every position can see the whole map."""

from nas_attn.blueprint import Hyperparameter, ModuleRecord

_QUADRATIC = (("N <= 1600", "place it on a map of at most 1600 cells, such as 40 x 40: its time grows with the square of them"),)
_HEADS = ("num_heads >= 1 and C % num_heads == 0", "choose a number of heads that divides the channels")

_NON_LOCAL = ModuleRecord(
    name="NonLocal",
    target="nas_attn.attention.non_local:NonLocal",
    family="global",
    hyperparameters=(
        Hyperparameter(name="rd_ratio", default=0.125, choices=(0.125, 0.25, 0.5), meaning="channels of the embedding", fraction=True),
        Hyperparameter(name="sub_sample", default=False, choices=(False, True), meaning="max-pool keys and values by 2"),
    ),
    gate="m(x)",
    constraints=(),
    map_constraints=(
        (
            "N * (ceil(H / 2) * ceil(W / 2) if sub_sample else N) <= 1600**2",
            "place it on a map of at most 1600 cells, such as 40 x 40, or 3200 with sub_sample: its time grows with the square of them",
        ),
    ),
    params="4*C*rd_ratio + 3*rd_ratio + 3*C",
    macs="2*N*C*rd_ratio + 2*rd_ratio*(C + N) * (ceil(H / 2) * ceil(W / 2) if sub_sample else N)",
    paper="Non-local Neural Networks",
    venue="CVPR 2018",
    arxiv="1711.07971",
    reference="facebookresearch/video-nonlocal-net@4b5d2dd",
    licence="CC-BY-NC-4.0",
    unseen=("leave.conv.bias",),  # the normalization cancels it
    note="One head of attention over the whole map, in an embedding of few channels; quadratic in the map.",
)

_MHSA = ModuleRecord(
    name="MHSA",
    target="nas_attn.attention.mhsa:MHSA",
    family="global",
    hyperparameters=(
        Hyperparameter(name="num_heads", default=4, choices=(2, 4, 8), meaning="heads"),
        Hyperparameter(name="attn_ratio", default=0.5, choices=(0.25, 0.5, 1.0), meaning="channels of a key as a part of a value's"),
    ),
    gate="m(x)",
    constraints=(_HEADS, ("0 < attn_ratio <= 1", "give a part in (0, 1], such as 0.5")),
    map_constraints=_QUADRATIC,
    derived=(
        ("head_dim", "C // max(1, num_heads)"),
        ("key_dim", "max(1, head_dim * attn_ratio // 1)"),
        ("inner", "num_heads * key_dim"),
    ),
    params="2*C**2 + 2*inner*C + 15*C + 4*inner",
    macs="N*(2*C**2 + 2*inner*C + 9*C) + (C + inner)*N**2",
    paper="YOLOv10: Real-Time End-to-End Object Detection",
    venue="NeurIPS 2024",
    arxiv="2405.14458",
    reference="ultralytics/ultralytics",
    licence="AGPL-3.0",
    note="Multi-head self-attention over the whole map with a convolution for the positions; quadratic in the map.",
)

_AREA = ModuleRecord(
    name="AreaAttention",
    target="nas_attn.attention.area:AreaAttention",
    family="global",
    hyperparameters=(
        Hyperparameter(name="num_heads", default=4, choices=(2, 4, 8), meaning="heads"),
        Hyperparameter(name="area", default=4, choices=(1, 4), meaning="strips that the map is cut into"),
        Hyperparameter(name="mlp_ratio", default=0.0, choices=(0.0, 2.0), meaning="hidden channels of a network behind, times C; 0: none"),
    ),
    gate="m(x) - x",
    constraints=(
        _HEADS,
        ("area >= 1", "give at least one area, such as 4"),
        ("mlp_ratio >= 0", "give no network (0) or one of some multiple of the channels, such as 2.0"),
    ),
    map_constraints=(
        ("N <= 1600 * area", "choose more areas or a map of at most 1600 cells an area: time grows with the square of an area's cells"),
    ),
    derived=(("hidden", "C * mlp_ratio // 1"),),
    params="4*C**2 + 59*C + (2*C*hidden + 2*hidden + 2*C if hidden else 0)",
    macs="N*(4*C**2 + 49*C + 2*C*hidden) + 2*C * ceil(N / area)**2 * ceil(N / ceil(N / area))",
    paper="YOLOv12: Attention-Centric Real-Time Object Detectors",
    venue="NeurIPS 2025",
    arxiv="2502.12524",
    reference="ultralytics/ultralytics",
    licence="AGPL-3.0",
    note="Self-attention within horizontal strips of the map: a fourth of the quadratic cost with four of them.",
)

_PSA = ModuleRecord(
    name="PSA",
    target="nas_attn.attention.psa:PSA",
    family="global",
    hyperparameters=(
        Hyperparameter(name="n", default=1, choices=(1, 2), meaning="blocks of attention and feed-forward network"),
        Hyperparameter(name="e", default=0.5, choices=(0.25, 0.5), meaning="part of the channels that goes through them"),
    ),
    gate="m(x) - x",
    constraints=(
        ("n >= 1", "give at least one block"),
        ("0 < e <= 1", "give a part in (0, 1], such as 0.5"),
        ("hidden >= 2", "choose a larger e: at least two channels must go through the blocks"),
        ("hidden % heads == 0", "choose an e that makes hidden channels a multiple of 64, or fewer than 128 of them"),
    ),
    map_constraints=_QUADRATIC,
    derived=(
        ("hidden", "C * e // 1"),
        ("heads", "max(1, hidden // 64)"),
        ("keys", "heads * (hidden // heads // 2)"),
    ),
    params="2*C*2*hidden + 4*hidden + 2*C + n * (6*hidden**2 + 2*keys*hidden + 21*hidden + 4*keys)",
    macs="4*C*hidden*N + n * (N*(6*hidden**2 + 2*keys*hidden + 9*hidden) + (hidden + keys)*N**2)",
    paper="YOLOv10: Real-Time End-to-End Object Detection",
    venue="NeurIPS 2024",
    arxiv="2405.14458",
    reference="ultralytics/ultralytics",
    licence="AGPL-3.0",
    note="YOLO11's C2PSA: half of the channels go through self-attention and a feed-forward network; quadratic in the map.",
)

_AIFI = ModuleRecord(
    name="AIFI",
    target="nas_attn.attention.aifi:AIFI",
    family="global",
    hyperparameters=(
        Hyperparameter(name="num_heads", default=8, choices=(4, 8), meaning="heads"),
        Hyperparameter(name="mlp_ratio", default=2.0, choices=(1.0, 2.0, 4.0), meaning="hidden channels of the network, times C"),
    ),
    gate="m(x) - x",
    constraints=(
        _HEADS,
        ("C % 4 == 0", "give a number of channels that 4 divides: rows and columns have sines and cosines of a fourth each"),
        ("mlp_ratio > 0", "give a multiple of the channels, such as 2.0"),
    ),
    map_constraints=_QUADRATIC,
    derived=(("hidden", "max(1, C * mlp_ratio // 1)"),),
    params="4*C**2 + 9*C + 2*C*hidden + hidden",
    macs="N*(4*C**2 + 2*C*hidden) + 2*C*N**2",
    paper="DETRs Beat YOLOs on Real-time Object Detection",
    venue="CVPR 2024",
    arxiv="2304.08069",
    reference="ultralytics/ultralytics",
    licence="AGPL-3.0",
    note="RT-DETR's encoder layer: attention with sine positions and a feed-forward network; quadratic in the map.",
)

_HSM_SSD = ModuleRecord(
    name="HSMSSD",
    target="nas_attn.attention.hsm_ssd:HSMSSD",
    family="global",
    hyperparameters=(
        Hyperparameter(name="state_dim", default=16, choices=(9, 16, 25, 49), meaning="hidden states that the map is gathered in"),
        Hyperparameter(name="ssd_expand", default=1.0, choices=(0.5, 1.0, 2.0), meaning="channels of the mixer, times C"),
        Hyperparameter(name="norm", default=True, choices=(True,), meaning="layer normalization over channels in front"),
    ),
    gate="m(x) - x",
    constraints=(
        ("state_dim >= 1", "give at least one state, such as 16"),
        ("ssd_expand > 0", "give a multiple of the channels, such as 1.0"),
    ),
    derived=(("inner", "max(1, C * ssd_expand // 1)"),),
    params="3*C*state_dim + 28*state_dim + 3*C*inner + 1 + (2*C if norm else 0)",
    macs="N*(5*C*state_dim + 27*state_dim) + 3*C*inner*state_dim",
    paper="EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality",
    venue="CVPR 2025",
    arxiv="2411.15241",
    reference="mlvlab/EfficientViM@304340c",
    licence="MIT",
    unseen=("offset",),  # a softmax over positions does not see what is added to all of them
    note="Gathers the map in a few states and mixes channels there; linear in the map, cheap at every stride.",
)

RECORDS: tuple[ModuleRecord, ...] = (_NON_LOCAL, _MHSA, _AREA, _PSA, _AIFI, _HSM_SSD)
