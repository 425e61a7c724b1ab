"""ODConv: a convolution whose kernel each image mixes for itself.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W; n kernels of O = C filters over I = C channels and k * k = t taps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn.attention.conv import ConvNorm
from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class ODConv(Gated):
    """Convolves each image with a kernel of its own: a mixture of n kernels, weighted along all four of their dimensions.

    Rule: m(x) = a_f * conv(a_c * x, a_s * sum_i a_w[i] K_i), with h = ReLU(BN(conv1(mean(x)))) of max(16, C // reduction) channels and
    heads a_c (C channels), a_f (C filters), a_s (k x k taps; none for k = 1) of sigmoids and a_w (n kernels; none for n = 1) of a softmax,
    1x1 convolutions of h, all logits divided by the temperature; no bias. A(x) = m(x) - x.
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1.
    Hyperparameters: kernel_num = 4 (>= 1; searched 1, 2, 4), kernel_size = 3 (odd; searched 1, 3), reduction = 16 (>= 1; searched 16),
    temperature = 1.0 (> 0; searched 1.0).
    Raises SpaceError where the record's constraints do not hold.
    Source: Omni-Dimensional Dynamic Convolution, ICLR 2022, arXiv 2209.07947; OSVAI/ODConv@0901cc1, Apache-2.0.
    Differs from the paper in: an identity gate around a stride-1 convolution without groups; a temperature that stays (the reference lowers
    it in the first epochs); the pooled branch also trains at batch 1, where the reference's batch normalization raises; the heads are one
    convolution, and a_s and a_c meet the mixed kernel in one product. In an export the convolution is a matrix product with the unfolded
    map, because the grouped one, with the batch in its number of groups, would fix the batch.
    Checked: equal to sums over kernels written as loops within 1e-5; the exported form equal to the grouped one; equal to a plain
    convolution where all attentions are constant; parameters and MACs equal to the record's formulas; ONNX (both exporters) equal to eager
    at other sizes and batches than the exported one.
    """

    replaces = True

    def __init__(self, channels: int, kernel_num: int = 4, kernel_size: int = 3, reduction: int = 16, temperature: float = 1.0) -> None:
        given = {"kernel_num": kernel_num, "kernel_size": kernel_size, "reduction": reduction, "temperature": temperature}
        values = record("ODConv").resolve(channels, given)
        super().__init__(channels)
        self.kernel_size, self.temperature = kernel_size, temperature
        self.parts = [channels, channels, int(values["taps"]), int(values["mixed"])]
        self.squeeze = ConvNorm(channels, int(values["squeezed"]), act=nn.ReLU())
        self.heads = nn.Conv2d(int(values["squeezed"]), sum(self.parts), 1)
        # Three dimensions: optimizers that orthogonalize matrices and filters, and layouts for filters, leave them alone.
        self.kernels = nn.Parameter(torch.empty(kernel_num, channels, channels * kernel_size**2))
        nn.init.normal_(self.kernels, std=(2.0 / (channels * kernel_size**2)) ** 0.5)
        nn.init.kaiming_normal_(self.heads.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.heads.bias)  # type: ignore[arg-type]

    def attentions(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """a_c (B, C), a_f (B, C), a_s (B, t), a_w (B, n); None for those that do not exist."""
        wide = torch.promote_types(x_BCHW.dtype, torch.float32)
        mean = saturate(x_BCHW.mean((2, 3), keepdim=True, dtype=wide), x_BCHW.dtype)
        logits = saturate(self.heads(self.squeeze(mean)), wide).flatten(1) / self.temperature
        channel, filters, taps, kernels = torch.split(logits, self.parts, 1)
        a_s = taps.sigmoid().to(x_BCHW.dtype) if self.parts[2] else None
        a_w = kernels.softmax(1).to(x_BCHW.dtype) if self.parts[3] else None
        return channel.sigmoid().to(x_BCHW.dtype), filters.sigmoid().to(x_BCHW.dtype), a_s, a_w

    def mixed(self, a_c: Tensor, a_s: Tensor | None, a_w: Tensor | None) -> Tensor:
        """The kernel of each image with the weights of its channels and taps, (B, O, I * t)."""
        kernel_BOJ = self.kernels if a_w is None else (a_w @ self.kernels.flatten(1)).reshape(-1, *self.kernels.shape[1:])
        weight = a_c if a_s is None else (a_c.unsqueeze(2) * a_s.unsqueeze(1)).flatten(1)
        return kernel_BOJ * weight.unsqueeze(1).to(kernel_BOJ.dtype)

    def convolved(self, x_BCHW: Tensor, kernel_BOJ: Tensor) -> Tensor:
        """Every image with its own kernel, as one convolution whose groups are the images; (B, O, H, W)."""
        B, C, H, W = x_BCHW.shape
        side = self.kernel_size
        images = x_BCHW.reshape(1, B * C, H, W)
        y = functional.conv2d(images, kernel_BOJ.reshape(B * C, C, side, side), padding=side // 2, groups=B)
        return y.reshape(B, C, H, W)

    def unfolded(self, x_BCHW: Tensor, kernel_BOJ: Tensor) -> Tensor:
        """The same as a matrix product with the map's windows, several times slower; the batch stays open in an export."""
        windows_BJN = functional.unfold(x_BCHW, self.kernel_size, padding=self.kernel_size // 2)
        return (kernel_BOJ @ windows_BJN).reshape(x_BCHW.shape)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Attentions, the mixed kernel, its convolution, and the weights of the filters."""
        a_c, a_f, a_s, a_w = self.attentions(x_BCHW)
        exported = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined,no-untyped-call]
        y = (self.unfolded if exported else self.convolved)(x_BCHW, self.mixed(a_c, a_s, a_w))
        return y * a_f[:, :, None, None]
