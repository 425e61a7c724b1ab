"""HSMSSD: hidden state mixer of EfficientViM.

Shapes: x_BCHW with B images, C channels, H rows, W columns, N = H * W; S states, D = inner channels.
"""

import torch
from torch import Tensor, nn

from nas_attn.attention.gate import Gated, saturate
from nas_attn.records import record


class ChannelNorm(nn.LayerNorm):
    """Layer normalization of every position over its channels."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW -> the same shape, channels last in memory; the kernel's statistics are in single precision."""
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class HSMSSD(Gated):
    """Gathers the map in a few hidden states, mixes channels there, where it is cheap, and hands the states out to every position.

    Rule: z = LN(x) over channels; B, C, t = dw3(conv1(z)), S channels each; h = z (softmax_N(t + a) * B)^T, of C channels and S states;
    u, v = conv1(h), and h' = conv1(u * SiLU(v) + s u); m(x) = h' C. No biases. A(x) = m(x) - x, so that the gate is the block's mixing
    weight, y = (1 - g) x + g m(x).
    Shapes: x_BCHW -> y_BCHW, any B, H, W >= 1; time and memory linear in N.
    Hyperparameters: state_dim = 16 (>= 1; paper's models 9 to 64, fewer on smaller maps; searched 9, 16, 25, 49), ssd_expand = 1.0 (inner
    channels as a multiple of C, > 0; searched 0.5, 1, 2), norm = True (the block's normalization in front).
    Raises SpaceError where the record's constraints do not hold.
    Source: EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality, CVPR 2025, arXiv 2411.15241;
    mlvlab/EfficientViM@304340c, MIT.
    Differs from the paper in: an identity gate, one a channel, in place of the sigmoid of a parameter; maps need not be square; softmax in
    single precision; neither the block's depthwise convolutions and feed-forward network nor the states as a second output. The
    offset a is kept, though a softmax over positions does not see it.
    Checked: equal to loops over positions and states within 1e-5; parameters and MACs equal to the published counts without norm; ONNX by
    both exporters equal to eager at other sizes than the exported one. Without norm the output grows with the fifth power of the input,
    which half precision saturates.
    """

    replaces = True

    def __init__(self, channels: int, state_dim: int = 16, ssd_expand: float = 1.0, norm: bool = True) -> None:
        values = record("HSMSSD").resolve(channels, {"state_dim": state_dim, "ssd_expand": ssd_expand, "norm": norm})
        super().__init__(channels)
        inner = int(values["inner"])
        self.norm = ChannelNorm(channels) if norm else nn.Identity()
        self.to_states = nn.Conv2d(channels, 3 * state_dim, 1, bias=False)
        self.local = nn.Conv2d(3 * state_dim, 3 * state_dim, 3, padding=1, groups=3 * state_dim, bias=False)
        self.mix_in = nn.Conv1d(channels, 2 * inner, 1, bias=False)
        self.mix_out = nn.Conv1d(inner, channels, 1, bias=False)
        self.offset = nn.Parameter(torch.empty(state_dim).uniform_(1, 16))
        self.skip_bias = nn.Parameter(torch.ones(1))  # by its name free of weight decay, as in the reference

    def mixed(self, h_BCS: Tensor) -> Tensor:
        """The states after the mixer, (B, C, S)."""
        u, v = saturate(self.mix_in(h_BCS)).chunk(2, dim=1)
        return saturate(self.mix_out(saturate(u * (nn.functional.silu(v) + self.skip_bias))))

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        """Gather, mix, hand out."""
        z = self.norm(x_BCHW)
        gather, hand_out, step = saturate(self.local(self.to_states(z))).flatten(2).chunk(3, dim=1)
        wide = torch.promote_types(step.dtype, torch.float32)
        weight_BSN = ((step.to(wide) + self.offset.unsqueeze(1)).softmax(-1) * gather).to(z.dtype)
        h_BCS = saturate(z.flatten(2) @ weight_BSN.transpose(1, 2))
        return (self.mixed(h_BCS) @ hand_out).reshape(x_BCHW.shape)
