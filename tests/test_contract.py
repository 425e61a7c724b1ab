"""The contract of attention modules over the whole table, and that each of its checks can fail."""

import itertools

import pytest

from nas_attn import contract
from nas_attn.contract import CHECKS, SLOW, Case
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
