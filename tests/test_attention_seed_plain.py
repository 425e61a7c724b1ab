"""The first five mechanisms against their plain batched forms: what their speed is compared to computes the same."""

from typing import Any

import pytest
import torch
from attention_tools import Params, build, draw
from benchmarks.plain_seed import PLAIN, relative_to_absolute

CASES: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("LIA", {}, (20, 20)),
    ("LIA", {"f": 8}, (7, 33)),
    ("HaloAttention", {}, (16, 24)),
    ("HaloAttention", {"block_size": 4, "halo_size": 1}, (12, 8)),
    ("HaloAttention", {"block_size": 2, "halo_size": 4, "dim_head": 32}, (6, 4)),
    ("HaloAttention", {"block_size": 1, "halo_size": 2, "dim_head": 8}, (3, 5)),
    ("DoubleAttention", {}, (20, 20)),
    ("DoubleAttention", {"c_m": 5, "c_n": 0.5}, (13, 9)),
    *[("LSKA", {"k_size": k, "use_proj": use_proj}, (20, 24)) for k in (7, 35) for use_proj in (False, True)],
    ("CloAttention", {}, (20, 24)),
    ("CloAttention", {"window_size": 2, "kernel_size": 3, "n_local": 2}, (13, 9)),
    ("CloAttention", {"window_size": 1, "n_local": 0}, (8, 8)),
    ("CloAttention", {"n_local": 8}, (8, 8)),
]


@pytest.mark.parametrize(("name", "params", "size"), CASES)
def test_each_plain_form_equals_the_mechanism(name: str, params: Params, size: tuple[int, int]) -> None:
    module, x = build(name, params), draw(2, *size).requires_grad_()
    outputs = PLAIN[name](module)(x), module.mechanism(x)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    weights = [x, *(p for key, p in module.named_parameters() if key != "gate_bias")]
    for plain, ours in zip(*(torch.autograd.grad(y.square().sum(), weights) for y in outputs), strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-3, atol=1e-3)
    assert outputs[0].std() > 1e-3


def test_padding_and_reshaping_shifts_each_row_by_one() -> None:
    """Row i of v keys starts at the column v - 1 - i of its 2v - 1 relative positions, whether there are as many rows as keys or fewer."""
    for rows, keys in ((4, 4), (3, 7), (1, 5)):
        logits = torch.arange(2.0 * keys - 1).expand(2, rows, -1)
        expected = torch.stack([torch.arange(keys - 1.0 - i, 2.0 * keys - 1 - i) for i in range(rows)])
        assert torch.equal(relative_to_absolute(logits), expected.expand(2, -1, -1))
