"""Blocks of convolutions that follow a layer as a whole."""

from nas_attn.blueprint import Hyperparameter, ModuleRecord

_RCSOSA = ModuleRecord(
    name="RCSOSA",
    target="nas_attn.attention.rcs_osa:RCSOSA",
    family="block",
    hyperparameters=(
        Hyperparameter(name="n", default=2, choices=(2, 4), meaning="shuffled blocks of both stages together, at least one a stage"),
        Hyperparameter(name="se", default=False, choices=(False, True), meaning="squeeze-and-excitation of the output"),
        Hyperparameter(name="e", default=0.5, choices=(0.5,), meaning="width of the stages, as a part of the channels"),
    ),
    gate="m(x) - x",
    constraints=(
        ("n >= 1", "give at least one block, such as 2"),
        ("e > 0", "give a positive part of the channels, such as 0.5"),
        ("e <= 1", "give at most all of the channels, such as 0.5"),
    ),
    derived=(
        ("blocks", "max(1, n // 2)"),
        ("width", "ceil(C * e / 8) * 8"),
        ("half", "width // 2"),
        ("squeezed", "max(1, C // 8)"),
    ),
    # A block of i and o channels has 10io + 4o parameters, and 2i more for the normalization of its shortcut where i = o.
    params="10*C*width + 4*width + (2*C if C == width else 0) + 2*blocks*(10*half**2 + 6*half)"
    " + 30*width*C + 4*C + (2*C if C == 3*width else 0) + (2*C*squeezed + squeezed + C if se else 0)",
    macs="10*N*(4*C*width + 2*blocks*half**2) + (2*C*squeezed if se else 0)",
    paper="RCS-YOLO: A Fast and High-Accuracy Object Detector for Brain Tumor Detection",
    venue="MICCAI 2023",
    arxiv="2307.16412",
    reference="mkang315/RCS-YOLO@7670277",
    licence="GPL-3.0",
    note="Re-parameterized 3x3 convolutions with channel shuffle, aggregated once; fused, a tenth of its products goes. A whole block.",
)

_ODCONV = ModuleRecord(
    name="ODConv",
    target="nas_attn.attention.odconv:ODConv",
    family="block",
    hyperparameters=(
        Hyperparameter(name="kernel_num", default=4, choices=(1, 2, 4), meaning="kernels that are mixed for each image"),
        Hyperparameter(name="kernel_size", default=3, choices=(1, 3), meaning="side of the kernels, in cells"),
        Hyperparameter(name="reduction", default=16, choices=(16,), meaning="what the pooled channels are divided by, to no less than 16"),
        Hyperparameter(name="temperature", default=1.0, choices=(1.0,), meaning="what the attentions' logits are divided by"),
    ),
    gate="m(x) - x",
    constraints=(
        ("kernel_num >= 1", "give at least one kernel, such as 4"),
        ("kernel_size >= 1", "give a side of at least one cell, such as 3"),
        ("kernel_size % 2 == 1", "give an odd side, such as 3"),
        ("reduction >= 1", "divide by at least 1, such as 16"),
        ("temperature > 0", "give a positive number, such as 1.0"),
    ),
    derived=(
        ("squeezed", "max(16, C // max(1, reduction))"),
        # An attention over one kernel or one tap would be a constant or a second gain; there is none.
        ("taps", "kernel_size**2 if kernel_size > 1 else 0"),
        ("mixed", "kernel_num if kernel_num > 1 else 0"),
    ),
    params="kernel_num*(C*kernel_size)**2 + C*squeezed + 2*squeezed + (squeezed + 1)*(2*C + taps + mixed)",
    macs="N*(C*kernel_size)**2 + mixed*(C*kernel_size)**2 + squeezed*(3*C + taps + mixed)",
    paper="Omni-Dimensional Dynamic Convolution",
    venue="ICLR 2022",
    arxiv="2209.07947",
    reference="OSVAI/ODConv@0901cc1",
    licence="Apache-2.0",
    note="A convolution whose kernel every image mixes for itself; the cost of one convolution, the parameters of kernel_num.",
)

_DWR = ModuleRecord(
    name="DWR",
    target="nas_attn.attention.dwr:DWR",
    family="block",
    hyperparameters=(
        Hyperparameter(
            name="community",
            default=False,
            choices=(False, True),
            meaning="full dilated convolutions with SiLU, as detectors' copies have them",
        ),
    ),
    gate="m(x) - x",
    constraints=(("C % 2 == 0", "place it on an even number of channels"),),
    derived=(("half", "C // 2"),),
    params="9*C*half + 2*half + ((36*half**2 + 4*C) + 2*C**2 + 2*C if community else 9*2*C + 4*C + 2*C**2 + C)",
    macs="N*(9*C*half + (36*half**2 if community else 18*C) + 2*C**2)",
    paper="DWRSeg: Rethinking Efficient Acquisition of Multi-scale Contextual Information for Real-time Semantic Segmentation",
    venue="arXiv 2022",
    arxiv="2212.01173",
    reference="",
    licence="",
    note="A 3x3 convolution, then depthwise dilations 1, 3 and 5 side by side: three ranges of context. A residual block.",
)

_SK = ModuleRecord(
    name="SK",
    target="nas_attn.attention.sk:SK",
    family="block",
    hyperparameters=(
        Hyperparameter(name="M", default=2, choices=(2, 3), meaning="branches, of dilation 1 to M"),
        Hyperparameter(
            name="G", default=32, choices=(32,), meaning="groups of a branch, halved up to twice until they divide the channels"
        ),
        Hyperparameter(name="r", default=16, choices=(16,), meaning="what the pooled channels are divided by, to no less than L"),
        Hyperparameter(name="L", default=32, choices=(32,), meaning="the least pooled channels"),
    ),
    gate="m(x) - x",
    constraints=(
        ("M >= 2", "give at least two branches to choose from"),
        ("G >= 1", "give at least one group, such as 32"),
        ("r >= 1", "divide by at least 1, such as 16"),
        ("L >= 1", "give at least one channel, such as 32"),
    ),
    derived=(
        ("groups", "G if C % max(1, G) == 0 else (G // 2 if C % max(1, G // 2) == 0 else (G // 4 if C % max(1, G // 4) == 0 else 1))"),
        ("squeezed", "max(C // max(1, r), L)"),
    ),
    params="M*(9*C**2 // groups + 2*C) + C*squeezed + 2*squeezed + M*(squeezed*C + C)",
    macs="N*M*(9*C**2 // groups) + (1 + M)*C*squeezed",
    paper="Selective Kernel Networks",
    venue="CVPR 2019",
    arxiv="1903.06586",
    reference="implus/SKNet",
    licence="none",
    note="Grouped 3x3 branches of growing dilation; each channel of each image chooses among them. Grouped: cheap, slower than it counts.",
)

RECORDS = (_RCSOSA, _ODCONV, _DWR, _SK)
