"""The contract of attention modules over the whole table, and that each of its checks can fail."""

import importlib
import itertools
import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_attn import contract, records
from nas_attn.attention.gate import Gated
from nas_attn.contract import CHECKS, SLOW, Case
from nas_attn.custom import mechanism
from nas_attn.records import MODULES, record

MORE: list[tuple[str, dict[str, object]]] = [
    ("LSKA", {"k_size": 53, "use_proj": True}),
    ("CloAttention", {"n_local": 0}),
    ("CloAttention", {"n_local": 8}),
    ("DoubleAttention", {"c_m": 5, "c_n": 3}),
    ("HaloAttention", {"block_size": 5, "halo_size": 6, "dim_head": 8}),
]
"""Legal beyond the choices of the records."""

DEFAULTS = [(name, {}) for name in MODULES]
VARIANTS = [(name, params) for name in MODULES for params in contract.variants(record(name)) if params] + MORE


def _ids(cases):
    return [f"{name}-{','.join(f'{k}={v}' for k, v in params.items())}" for name, params in cases]


def holds(check, name, params) -> None:
    assert list(check(Case(name, params))) == []


def test_every_mechanism_has_a_slow_form_and_a_plain_form():
    slowly, plain = {}, {}
    for family in ("seed", "channel", "spatial", "wide", "windowed", "block"):
        slowly |= importlib.import_module(f"test_attention_{family}").SLOWLY
        plain |= runpy.run_path(str(Path(__file__).parent / "benchmarks" / f"plain_{family}.py"))["PLAIN"]
    assert slowly.keys() == plain.keys() == MODULES.keys()


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize(("name", "params"), DEFAULTS, ids=_ids(DEFAULTS))
def test_every_mechanism_holds_the_contract(check, name, params):
    holds(check, name, params)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=_ids(VARIANTS))
def test_every_variant_holds_the_contract(check, name, params):
    holds(check, name, params)


@pytest.mark.slow
@pytest.mark.parametrize("check", SLOW.values(), ids=SLOW)
@pytest.mark.parametrize(("name", "params"), DEFAULTS, ids=_ids(DEFAULTS))
def test_every_mechanism_compiles_and_exports(check, name, params):
    holds(check, name, params)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_every_combination_starts_as_the_identity(name):
    for params, channels in itertools.product(contract.combinations(record(name)), (32, 64)):
        if not record(name).violations(channels, params):
            assert list(contract.identity(Case(name, params, channels))) == [], (params, channels)


# --- each check catches what it is for ----------------------------------------------------------------------------------------------


class Plain(Gated):
    """A mechanism that holds the whole contract: a 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.mix = nn.Conv2d(channels, channels, 1)

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        return self.mix(x_BCHW)


class Rounded(Plain):
    """Drops the rows that a window of four does not divide."""

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        height, width = (max(side // 4 * 4, 1) for side in x_BCHW.shape[2:])
        return self.mix(x_BCHW)[..., :height, :width]


class Dormant(Plain):
    """Starts at zero behind a gate that is zero."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)


class Leaky(Plain):
    """Adds to its input behind the gate's back."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW) + 1e-7


class Batched(Plain):
    """A softmax over the batch, as in circulating copies of DoubleAttention."""

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        return self.mix(x_BCHW).float().softmax(0).to(x_BCHW.dtype)


class Overflowing(Plain):
    """exp of plain values."""

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        z = self.mix(x_BCHW).float().exp()
        return (z / z.sum(1, keepdim=True)).to(x_BCHW.dtype)


class Detached(Plain):
    """Cuts its weights off from the loss."""

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        return functional.conv2d(x_BCHW, self.mix.weight.detach(), self.mix.bias)


class Unpicklable(Plain):
    """Keeps a function."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.activation = lambda x: x

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        return self.activation(self.mix(x_BCHW))


class Doubled(Plain):
    """Its branch is not what its record says."""

    def branch(self, x_BCHW: Tensor) -> Tensor:
        return 2 * self.mechanism(x_BCHW)


class Claiming(Plain):
    """Uses a name that the parser sets."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.np = 3


class Costly(Plain):
    """Multiplies more than its formula says."""

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        return self.mix(self.mix(x_BCHW))


class Breaking(Plain):
    """Looks at values to decide what to compute."""

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        y = self.mix(x_BCHW)
        return y if float(y.sum()) > 1e9 else 2 * y


class Frozen(Plain):
    """Remembers the size that it was exported at."""

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        size = [int(side) for side in x_BCHW.shape[2:]]
        return functional.interpolate(self.mix(x_BCHW), size=size if torch.jit.is_tracing() else x_BCHW.shape[2:])


class Shifted(Plain):
    """Has another default than its record."""

    def __init__(self, channels: int, scale: int = 2) -> None:
        super().__init__(channels)
        self.scale = scale

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        return self.scale * self.mix(x_BCHW)


class Untyped(Plain):
    """Gives single precision whatever it gets."""

    def mechanism(self, x_BCHW: Tensor) -> Tensor:
        return self.mix(x_BCHW).float()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.gate_bias.float().view(1, -1, 1, 1) * self.branch(x_BCHW)


@pytest.fixture
def own():
    """Puts a class into the table for one test."""
    before = set(records.MODULES)

    def enter(cls, **given) -> Case:
        mechanism(**{"params": "C**2 + C", "macs": "C**2*N", **given})(cls)
        return Case(cls.__name__)

    yield enter
    for name in set(records.MODULES) - before:
        del records._TABLE[name]


def test_a_sound_mechanism_holds_everything(own):
    assert contract.run(own(Plain)) == {name: [] for name in contract.all_checks()}


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (Rounded, contract.shape, r"\(1, 32, 21, 13\) in evaluation gives \(1, 32, 20, 12\)"),
        (Dormant, contract.shape, "zero everywhere at the start"),
        (Leaky, contract.identity, "is changed"),
        (Untyped, contract.identity, "changed in torch.bfloat16"),
        (Batched, contract.batch, "alone differs"),
        (Overflowing, contract.gradients, "magnitude 1000, the gradient of .* is not finite"),
        (Detached, contract.gradients, "mix.weight gets no gradient"),
        (Overflowing, contract.half, "not finite"),
        (Unpicklable, contract.copies, "raised"),
        (Doubled, contract.form, r"differs from the recorded form 'm\(x\)'"),
        (Dormant, contract.learning, "the gate gets no gradient"),
        (Detached, contract.learning, "mix.weight gets no gradient at the second step"),
        (Claiming, contract.names, r"sets \['np'\] itself"),
        (Costly, contract.costs, "MACs at 32 x 20 x 20, but the formula says"),
        (Breaking, contract.compiles, "raised"),
        (Frozen, contract.onnx_traced, "ONNX Runtime differs|raised"),
        (Breaking, contract.onnx_captured, "raised"),
    ],
)
def test_each_check_catches_what_it_is_for(cls, check, message, own):
    (findings,) = contract.run(own(cls), {"it": check}).values()
    assert any(re.search(message, finding) for finding in findings), findings


def test_a_wrong_formula_is_noticed(own):
    (finding, *_) = contract.costs(own(Plain, params="C**2"))
    assert finding == "1088 parameters at 32 channels, but the formula says 1056"


def test_a_module_that_replaces_its_input_says_so(own):
    case = own(Plain, gate="m(x) - x")
    assert list(contract.form(case)) == []
    Plain.replaces = False  # what the decorator set is not what the class does
    assert list(contract.names(case)) == ["`replaces` is False, but the record's gate is 'm(x) - x'"]
    assert "differs from the recorded form" in next(contract.form(case))


def test_another_default_than_the_records_is_noticed(own):
    case = own(Shifted)
    assert list(contract.constructor(case)) == []
    wrapped = Shifted.__init__
    Shifted.__init__ = lambda self, channels, scale=3: wrapped(self, channels, scale)
    try:
        assert "the constructor's defaults differ from the record's" in list(contract.constructor(case))
    finally:
        Shifted.__init__ = wrapped


def test_a_parameter_that_no_loss_sees_must_be_named(own):
    assert list(contract.learning(own(Detached, unseen=("mix.weight",)))) == []
