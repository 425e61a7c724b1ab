"""DoubleAttention: gather global descriptors, hand them out to every position.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W; m channels of the descriptors, n descriptors.
"""

from torch import Tensor, nn

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 1)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class DoubleAttention(Gated):
    """Gathers c_n descriptors of the whole map by attention, and mixes them anew for every position by a second attention.

    Rule: m(x) = conv1((A softmax_N(B)^T) softmax_n(V)), with A, B, V 1x1 convolutions of x to c_m, c_n and c_n channels; the first
    softmax runs over the positions, the second over the descriptors, and neither over the batch. A(x) = m(x).
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; equivariant to any permutation of the positions.
    Hyperparameters: c_m = 0.25 and c_n = 0.25 (a fraction in (0, 1) of the channels, at least 8, or a whole number >= 1;
    searched 1/8, 1/4, 1/2).
    Raises SpaceError where a hyperparameter is neither.
    Source: A^2-Nets: Double Attention Networks, NeurIPS 2018, arXiv 1810.11579 (no official PyTorch code);
    xmu-xiaoma666/External-Attention-pytorch@d75848e, MIT, whose softmaxes run over the batch.
    Differs from the paper in: an identity gate on the residual form; softmaxes in single precision.
    Checked: equal to a loop over positions within 1e-5; independent of batch-mates; parameters and MACs equal to the record's
    formulas; ONNX (torch.export) equal to eager at other sizes than the exported one.
    """

    def __init__(self, channels: int, c_m: float = 0.25, c_n: float = 0.25) -> None:
        values = record("DoubleAttention").resolve(channels, {"c_m": c_m, "c_n": c_n})
        super().__init__(channels)
        width, maps = int(values["c_m"]), int(values["c_n"])
        self.features = _convolution(channels, width)
        self.gather = _convolution(channels, maps)
        self.distribute = _convolution(channels, maps)
        self.reconstruct = _convolution(width, channels)

    def attentions(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The attention maps, summing to one over positions, and vectors, summing to one over descriptors; (B, n, N), float32."""
        maps = saturate(self.gather(x_BCHW)).flatten(2).float().softmax(2)
        vectors = saturate(self.distribute(x_BCHW)).flatten(2).float().softmax(1)
        return maps, vectors

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Gather, distribute, reconstruct."""
        features = self.features(x_BCHW)
        maps, vectors = self.attentions(x_BCHW)
        descriptors_Bmn = features.flatten(2) @ maps.to(features.dtype).transpose(-2, -1)
        mixed_BmN = descriptors_Bmn @ vectors.to(features.dtype)
        out: Tensor = self.reconstruct(mixed_BmN.reshape(features.shape))
        return out
