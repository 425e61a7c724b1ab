"""The five mechanisms that the search began with."""

from nas_attn.blueprint import Hyperparameter, ModuleRecord

_LIA = ModuleRecord(
    name="LIA",
    target="nas_attn.attention.lia:LIA",
    family="spatial",
    hyperparameters=(Hyperparameter(name="f", default=16, choices=(8, 16, 32), meaning="channels of the squeezed branch"),),
    gate="m(x) - x",
    constraints=(("f >= 1", "give at least one channel, such as 16"),),
    params="C*f + f + 9*f**2 + f + 9*f*C + C",
    # A map is pooled 7/3 and convolved with stride 2: floor((floor((H - 7) / 3) + 1 - 1) / 2) + 1 rows are left.
    macs="C*f*N + 9*f*(f + C) * ((max(H, 7) - 7) // 6 + 1) * ((max(W, 7) - 7) // 6 + 1)",
    paper="PlainUSR: Chasing Faster ConvNet for Efficient Super-Resolution",
    venue="ACCV 2024",
    arxiv="2409.13435",
    reference="icandle/PlainUSR@d7ff11a",
    licence="MIT",
    note="Local importance from soft pooling over 25 x 25 cells; cheap at every stride.",
)

_HALO = ModuleRecord(
    name="HaloAttention",
    target="nas_attn.attention.halo:HaloAttention",
    family="local",
    hyperparameters=(
        Hyperparameter(name="block_size", default=8, choices=(4, 8), meaning="side of a block of queries, in cells"),
        Hyperparameter(name="halo_size", default=3, choices=(1, 2, 3), meaning="cells around a block that its queries also see"),
        Hyperparameter(name="dim_head", default=16, choices=(16,), meaning="channels of a head"),
    ),
    gate="m(x)",
    constraints=(
        ("1 <= block_size <= 32", "give a side of 1 to 32 cells, such as 8"),
        ("1 <= halo_size <= 32", "give a halo of 1 to 32 cells, such as 3"),
        ("dim_head >= 1", "give at least one channel a head, such as 16"),
        ("inner <= 2 * C", "choose a dim_head of at most twice the channels"),
    ),
    derived=(
        ("heads", "max(1, C // max(1, dim_head))"),
        ("inner", "heads * dim_head"),
        ("win", "block_size + 2*halo_size"),
    ),
    params="4*C*inner + C + 2*(2*win - 1)*dim_head",
    macs="4*C*inner*N + 2*inner*win*(win + 1) * block_size**2 * ceil(H / block_size) * ceil(W / block_size)",
    paper="Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
    venue="CVPR 2021",
    arxiv="2103.12731",
    reference="lucidrains/halonet-pytorch@ff0eb71",
    licence="MIT",
    note="Self-attention of blocks over their halo with relative positions; linear in the map, memory grows with (block + 2 halo)^2.",
)

_DOUBLE = ModuleRecord(
    name="DoubleAttention",
    target="nas_attn.attention.double:DoubleAttention",
    family="global",
    hyperparameters=(
        Hyperparameter(name="c_m", default=0.25, choices=(0.125, 0.25, 0.5), meaning="channels of the gathered features", fraction=True),
        Hyperparameter(name="c_n", default=0.25, choices=(0.125, 0.25, 0.5), meaning="number of attention maps", fraction=True),
    ),
    gate="m(x)",
    constraints=(),
    params="C*c_m + c_m + 2*(C*c_n + c_n) + c_m*C + C",
    macs="2*N*(C*c_m + C*c_n + c_m*c_n)",
    paper="A^2-Nets: Double Attention Networks",
    venue="NeurIPS 2018",
    arxiv="1810.11579",
    reference="xmu-xiaoma666/External-Attention-pytorch@d75848e",
    licence="MIT",
    unseen=("gather.bias",),  # a softmax over positions does not see what is added to all of them
    note="Gathers c_n global descriptors and hands them out to every position; the lightest global attention here.",
)

_LSKA = ModuleRecord(
    name="LSKA",
    target="nas_attn.attention.lska:LSKA",
    family="kernel",
    hyperparameters=(
        Hyperparameter(name="k_size", default=7, choices=(7, 11, 23, 35), meaning="side of the receptive field, in cells"),
        Hyperparameter(name="use_proj", default=False, choices=(False,), meaning="VAN's 1x1-GELU-LSKA-1x1 with shortcut around it"),
    ),
    gate="m(x) - x",
    constraints=(("k_size in (7, 11, 23, 35, 41, 53)", "choose one of these sides"),),
    map_constraints=(("k_size <= 2 * min(H, W)", "choose a smaller kernel or a larger map: the kernel would reach past both edges"),),
    derived=(
        ("dilation", "2 if k_size <= 11 else 3"),
        ("k0", "2*dilation - 1"),
        ("k1", "k_size // dilation"),
    ),
    params="C*(2*k0 + 2*k1 + 4) + C**2 + C + (2*(C**2 + C) if use_proj else 0)",
    macs="N*(C*(2*k0 + 2*k1) + C**2) + (2*C**2*N if use_proj else 0)",
    paper="Large Separable Kernel Attention: Rethinking the Large Kernel Attention Design in CNN",
    venue="Expert Systems with Applications 236 (2024) 121352",
    arxiv="2309.01439",
    reference="StevenLauHKHK/Large-Separable-Kernel-Attention@bb2a8d2",
    licence="Apache-2.0",
    note="A k x k receptive field from four depthwise lines; cost grows with k, not with its square.",
)

_CLO = ModuleRecord(
    name="CloAttention",
    target="nas_attn.attention.clo:CloAttention",
    family="local",
    hyperparameters=(
        Hyperparameter(name="window_size", default=4, choices=(1, 2, 4, 8), meaning="side of the pooling window of keys and values"),
        Hyperparameter(name="kernel_size", default=5, choices=(3, 5, 7), meaning="side of the local branch's depthwise kernel"),
        Hyperparameter(name="num_heads", default=8, choices=(8,), meaning="heads of both branches together"),
        Hyperparameter(name="n_local", default=4, choices=(4,), meaning="heads of the local branch; the rest attend globally"),
    ),
    gate="m(x)",
    constraints=(
        ("window_size >= 1", "give a side of at least one cell, such as 4"),
        ("kernel_size >= 1 and kernel_size % 2 == 1", "give an odd side, such as 5"),
        ("num_heads >= 1 and C % num_heads == 0", "choose a number of heads that divides the channels"),
        ("0 <= n_local <= num_heads", "give between none and all of the heads to the local branch"),
    ),
    map_constraints=(
        (
            "pooled == 0 or N * ceil(H / window_size) * ceil(W / window_size) <= 800000",
            "choose a larger window or a smaller map: attention over the pooled map would take most of the time",
        ),
    ),
    derived=(
        ("dim_head", "C // max(1, num_heads)"),
        ("local", "n_local * dim_head"),
        ("pooled", "(num_heads - n_local) * dim_head"),
    ),
    params="3*local*(C + 2 + kernel_size**2) + 2*(local**2 + local) + 3*pooled*(C + 1) + C**2 + C",
    macs="N*(3*local*(C + kernel_size**2) + 2*local**2 + C*pooled + C**2)"
    " + 2*pooled*(C + N) * ceil(H / window_size) * ceil(W / window_size)",
    paper="Rethinking Local Perception in Lightweight Vision Transformer",
    venue="arXiv 2023",
    arxiv="2303.17803",
    reference="qhfan/CloFormer@9181f69",
    licence="MIT",
    note="Context-aware local weights beside attention over pooled keys; quadratic in the map over window_size^2: use 4 at stride 8.",
)

RECORDS = (_LIA, _HALO, _DOUBLE, _LSKA, _CLO)
