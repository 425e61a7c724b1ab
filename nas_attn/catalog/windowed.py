"""Mechanisms that attend within windows, to chosen windows or to displaced samples."""

from nas_attn.blueprint import Hyperparameter, ModuleRecord

_IRMB = ModuleRecord(
    name="iRMB",
    target="nas_attn.attention.irmb:iRMB",
    family="local",
    hyperparameters=(
        Hyperparameter(name="dim_head", default=16, choices=(8, 16, 32), meaning="channels of a head, at least"),
        Hyperparameter(name="window_size", default=7, choices=(5, 7, 10), meaning="side of a window, in cells a stride apart"),
        Hyperparameter(name="exp_ratio", default=1, choices=(1, 2), meaning="channels of the values, as a multiple of the map's"),
        Hyperparameter(name="dw_ks", default=3, choices=(3, 5), meaning="side of the depthwise kernel"),
        Hyperparameter(name="attn_pre", default=False, choices=(False,), meaning="attend before the values are projected"),
    ),
    gate="m(x) - x",
    constraints=(
        ("dim_head >= 1", "give at least one channel a head, such as 16"),
        ("C % heads == 0", "choose a dim_head that divides the channels"),
        ("window_size >= 1", "give a side of at least one cell, such as 7"),
        ("exp_ratio >= 1", "give a multiple of at least 1"),
        ("dw_ks >= 1 and dw_ks % 2 == 1", "give an odd side, such as 3"),
    ),
    derived=(
        ("heads", "max(1, C // max(1, dim_head))"),
        ("middle", "C * exp_ratio"),
    ),
    params="2*C + 2*C**2 + 2*C*middle + (dw_ks**2 + 2)*middle",
    # Padded to whole windows: q and k, attention, and the values unless they come after it.
    macs="window_size**2 * ceil(H / window_size) * ceil(W / window_size)"
    " * (2*C**2 + window_size**2 * (2*C if attn_pre else C + middle) + (0 if attn_pre else C*middle))"
    " + N*middle*(dw_ks**2 + C + (C if attn_pre else 0))",
    paper="Rethinking Mobile Block for Efficient Attention-based Models",
    venue="ICCV 2023",
    arxiv="2301.01146",
    reference="zhangzjn/EMO@27d9b40",
    licence="none",
    note="Attention in dilated windows inside an inverted residual block; every window spans the map, the cost grows with window_size^2.",
)

_CASCADED = ModuleRecord(
    name="CascadedGroupAttention",
    target="nas_attn.attention.cascaded:CascadedGroupAttention",
    family="local",
    hyperparameters=(
        Hyperparameter(name="key_dim", default=16, choices=(8, 16, 32), meaning="channels of a head's queries and keys"),
        Hyperparameter(name="num_heads", default=4, choices=(2, 4, 8), meaning="heads, one after the other"),
        Hyperparameter(name="window_size", default=7, choices=(5, 7, 10), meaning="side of a window, in cells"),
        Hyperparameter(name="kernel_size", default=5, choices=(3, 5), meaning="side of the depthwise kernel over queries"),
    ),
    gate="m(x)",
    constraints=(
        ("key_dim >= 1", "give at least one channel, such as 16"),
        ("num_heads >= 1 and C % num_heads == 0", "choose a number of heads that divides the channels"),
        ("window_size >= 1", "give a side of at least one cell, such as 7"),
        ("kernel_size >= 1 and kernel_size % 2 == 1", "give an odd side, such as 5"),
    ),
    derived=(
        ("width", "C // max(1, num_heads)"),
        ("features", "2*key_dim + width"),
    ),
    params="num_heads * ((width + 2)*features + (kernel_size**2 + 2)*key_dim + window_size**2) + C**2 + 2*C",
    macs="num_heads * window_size**2 * ceil(H / window_size) * ceil(W / window_size)"
    " * (width*features + kernel_size**2 * key_dim + window_size**2 * (key_dim + width)) + N*C**2",
    paper="EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention",
    venue="CVPR 2023",
    arxiv="2305.07027",
    reference="microsoft/Cream@4a13c40",
    licence="MIT",
    note="Heads in windows, one after the other on slices of the channels; cheap in parameters, sequential in time.",
)

_BRA = ModuleRecord(
    name="BRA",
    target="nas_attn.attention.bra:BRA",
    family="global",
    hyperparameters=(
        Hyperparameter(name="num_heads", default=8, choices=(8,), meaning="heads"),
        Hyperparameter(name="n_win", default=7, choices=(5, 7, 8), meaning="windows a side, whatever the size of the map"),
        Hyperparameter(name="topk", default=4, choices=(1, 4, 8), meaning="windows that each window attends to"),
        Hyperparameter(name="side_dwconv", default=3, choices=(3, 5), meaning="side of the values' depthwise kernel"),
    ),
    gate="m(x)",
    constraints=(
        ("num_heads >= 1 and C % num_heads == 0", "choose a number of heads that divides the channels"),
        ("n_win >= 1", "give at least one window a side, such as 7"),
        ("1 <= topk <= n_win**2", "choose between one and all of the windows"),
        ("side_dwconv >= 1 and side_dwconv % 2 == 1", "give an odd side, such as 3"),
    ),
    map_constraints=(
        (
            "N * topk * ceil(H / max(1, n_win)) * ceil(W / max(1, n_win)) <= 2000000",
            "take a smaller map, more windows or fewer chosen ones",
        ),
    ),
    params="4*(C**2 + C) + (side_dwconv**2 + 1)*C",
    # All cells' projections; mean queries by mean keys; padded queries by the padded keys of topk windows.
    macs="N*(4*C**2 + side_dwconv**2 * C) + n_win**4 * C + 2*topk*C * n_win**2 * (ceil(H / n_win) * ceil(W / n_win))**2",
    paper="BiFormer: Vision Transformer with Bi-Level Routing Attention",
    venue="CVPR 2023",
    arxiv="2303.08810",
    reference="rayleizhu/BiFormer@1697bbb",
    licence="MIT",
    note="Windows attend to the few that suit them best; quadratic in the map over n_win^2, so better at strides 16 and 32.",
)

_DEFORMABLE = ModuleRecord(
    name="DAttention",
    target="nas_attn.attention.deformable:DAttention",
    family="global",
    hyperparameters=(
        Hyperparameter(name="n_heads", default=8, choices=(8,), meaning="heads"),
        Hyperparameter(name="n_groups", default=4, choices=(2, 4), meaning="groups of channels that sample at places of their own"),
        Hyperparameter(name="stride", default=2, choices=(1, 2, 4, 8), meaning="cells from one sample to the next before they move"),
        Hyperparameter(name="ksize", default=3, choices=(3, 5), meaning="side of the offsets' depthwise kernel"),
        Hyperparameter(name="offset_range_factor", default=4, choices=(4, -1), meaning="reach of offsets in half samples; -1: anywhere"),
        Hyperparameter(name="half_pixel", default=False, choices=(False,), meaning="the repository's grid, shifted by half a cell"),
    ),
    gate="m(x)",
    constraints=(
        ("n_heads >= 1 and C % n_heads == 0", "choose a number of heads that divides the channels"),
        ("n_groups >= 1 and n_heads % n_groups == 0", "choose a number of groups that divides the heads"),
        ("stride >= 1", "give at least one cell, such as 2"),
        ("ksize >= 1 and ksize % 2 == 1", "give an odd side, such as 3"),
        ("offset_range_factor != 0", "give a reach such as 4, or -1 for none"),
    ),
    derived=(("width", "C // max(1, n_groups)"),),
    map_constraints=(
        (
            "N * ceil(H / max(1, stride)) * ceil(W / max(1, stride)) <= 2000000",
            "choose a larger stride or a smaller map: attention to the samples would take most of the time",
        ),
    ),
    params="4*(C**2 + C) + (ksize**2 + 5)*width + 10*C",
    # Queries, output and their convolution on the map; keys, values and offsets on the samples; attention between the two.
    macs="N*(2*C**2 + 9*C) + ceil(H / stride) * ceil(W / stride) * (2*C**2 + (ksize**2 + 2)*C + 2*C*N)",
    paper="Vision Transformer with Deformable Attention",
    venue="CVPR 2022",
    arxiv="2201.00520",
    reference="LeapLabTHU/DAT@32173fc",
    licence="Apache-2.0",
    note="Attends to samples at learned places; quadratic in the map over stride^2: stride 4 or 8 on large maps.",
)

RECORDS: tuple[ModuleRecord, ...] = (_IRMB, _CASCADED, _BRA, _DEFORMABLE)
