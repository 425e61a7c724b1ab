"""The table of mechanisms: its evaluator, its predicate and its formulas, without any tensor."""

import dataclasses
import math
import re
import subprocess
import sys

import pytest

from nas_attn.blueprint import Hyperparameter, ModuleRecord
from nas_attn.errors import SpaceError
from nas_attn.formula import evaluate
from nas_attn.records import MODULES, record

# Parameters of the bare mechanisms as their reference implementations have them: name, channels, hyperparameters, count.
REFERENCE_PARAMETERS = [
    ("LIA", 64, {"f": 16}, 12_640),
    ("LIA", 128, {"f": 16}, 22_944),
    ("LIA", 256, {"f": 32}, 91_456),
    ("HaloAttention", 64, {"block_size": 4, "halo_size": 2, "dim_head": 16}, 16_928),
    ("DoubleAttention", 64, {"c_m": 32, "c_n": 16}, 6_272),
    *[("LSKA", 64, {"k_size": k}, n) for k, n in zip((7, 11, 23, 35, 41, 53), (5_184, 5_440, 5_952, 6_464, 6_720, 7_232), strict=True)],
    *[("LSKA", 64, {"k_size": k, "use_proj": True}, n + 8_320) for k, n in ((7, 5_184), (23, 5_952), (53, 7_232))],
    ("CloAttention", 64, {"num_heads": 8, "n_local": 4, "kernel_size": 5, "window_size": 4}, 21_248),
    ("CloAttention", 256, {"num_heads": 16, "n_local": 4, "kernel_size": 9}, 287_232),
]

# Multiply-accumulates at 128 channels on a map of 40 x 48, in millions, to the digits that were published with them.
REFERENCE_MMACS = [
    ("LIA", {"f": 16}, 4.803, 3),
    ("DoubleAttention", {"c_m": 64, "c_n": 32}, 55.05, 2),
    ("LSKA", {"k_size": 23}, 37.356, 3),
    ("LSKA", {"k_size": 23, "use_proj": True}, 100.27, 2),
    ("HaloAttention", {"block_size": 8, "halo_size": 3, "dim_head": 16}, 229.05, 2),
    ("CloAttention", {"num_heads": 8, "n_local": 4, "kernel_size": 5, "window_size": 4}, 150.77, 2),
]


def test_table_holds_the_first_five() -> None:
    assert set(MODULES) >= {"LIA", "HaloAttention", "DoubleAttention", "LSKA", "CloAttention"}
    assert all(entry.name == name and entry.target.endswith(f":{name}") for name, entry in MODULES.items())


def test_table_is_frozen() -> None:
    with pytest.raises(TypeError):
        MODULES["mine"] = MODULES["LIA"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODULES["LIA"].name = "mine"  # type: ignore[misc]
    assert len({hash(entry) for entry in MODULES.values()}) == len(MODULES)


def test_a_map_can_be_too_large_or_too_small() -> None:
    lska, clo = record("LSKA"), record("CloAttention")
    assert lska.violations(64, {"k_size": 11}) == lska.violations(64, {"k_size": 11}, (6, 9)) == []
    (problem,) = lska.violations(64, {"k_size": 11}, (5, 9))
    assert problem.startswith("LSKA: `k_size <= 2 * min(H, W)` must hold, but got H=5, W=9, k_size=11; choose a smaller kernel")
    assert clo.violations(64, {"window_size": 4}, (40, 40)) == clo.violations(64, {"window_size": 8}, (80, 80)) == []
    assert "N=6400" in clo.violations(64, {"window_size": 4}, (80, 80))[0]
    assert clo.violations(64, {"window_size": 4, "n_local": 8}, (80, 80)) == []


def test_reading_the_table_imports_no_heavy_library() -> None:
    code = "import sys, nas_attn.records; print(*({'torch', 'ray', 'optuna', 'ultralytics'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.mark.parametrize("name", MODULES)
def test_records_say_where_they_come_from(name: str) -> None:
    entry = record(name)
    assert all((entry.paper, entry.venue, entry.note))
    assert re.fullmatch(r"|[\w.-]+/[\w.-]+(@[0-9a-f]{7})?", entry.reference)
    assert bool(entry.reference) == bool(entry.licence)
    assert re.fullmatch(r"|\d{4}\.\d{5}", entry.arxiv)
    assert all(hyper.default in hyper.choices and hyper.meaning for hyper in entry.hyperparameters)


@pytest.mark.parametrize("name", MODULES)
def test_defaults_are_legal_at_every_common_width_and_choices_from_64_channels_on(name: str) -> None:
    for channels in (16, 32, 48, 64, 128, 256, 512, 1024):
        assert record(name).violations(channels, {}) == []
        for hyper in record(name).hyperparameters if channels >= 64 else ():
            for choice in hyper.choices:
                assert record(name).violations(channels, {hyper.name: choice}) == []


def test_unknown_module_names_the_nearest() -> None:
    with pytest.raises(SpaceError, match=r"'lska'; Did you mean 'LSKA'\? Known: AIFI, "):
        record("lska")


def test_complete_fills_defaults_and_sorts() -> None:
    assert record("HaloAttention").complete({"halo_size": 1}) == (("block_size", 8), ("dim_head", 16), ("halo_size", 1))


def test_args_follow_the_constructor() -> None:
    assert record("HaloAttention").args({"halo_size": 1}) == [8, 1, 16]
    assert record("LSKA").args({}) == [7, False]


def test_fractions_resolve_to_widths_with_a_floor_of_eight() -> None:
    double = record("DoubleAttention")
    assert double.resolve(64, {"c_m": 0.5}) == {"c_m": 32, "c_n": 16}
    assert double.resolve(16, {"c_m": 1 / 8, "c_n": 0.25}) == double.resolve(16, {"c_m": 8, "c_n": 0.5})
    assert double.resolve(100, {"c_m": 1 / 8, "c_n": 3}) == {"c_m": 12, "c_n": 3}
    assert dict(double.complete({"c_m": 1 / 8}))["c_m"] == 1 / 8


def test_resolve_adds_what_follows_from_the_channels() -> None:
    assert record("HaloAttention").resolve(64, {}) | {"heads": 4, "inner": 64, "win": 14} == record("HaloAttention").resolve(64, {})
    assert record("HaloAttention").resolve(8, {})["heads"] == 1
    for k, near, far, dilation in [(7, 3, 3, 2), (11, 3, 5, 2), (23, 5, 7, 3), (35, 5, 11, 3), (41, 5, 13, 3), (53, 5, 17, 3)]:
        values = record("LSKA").resolve(64, {"k_size": k})
        assert (values["k0"], values["k1"], values["dilation"]) == (near, far, dilation)
        assert near + (far - 1) * dilation == k


@pytest.mark.parametrize(
    ("name", "channels", "params", "message"),
    [
        ("LSKA", 64, {"k_size": 9}, r"LSKA: `k_size in \(7, 11, 23, 35, 41, 53\)` must hold, but got k_size=9; choose one"),
        ("LSKA", 64, {"kernel": 7}, r"'kernel'; (Did you mean 'k_size'\? )?Known: k_size, use_proj"),
        ("LSKA", 64, {"use_proj": 1}, "`use_proj` must be true or false, but got use_proj=1"),
        ("LSKA", 0, {}, r"`C >= 1` must hold .* C=0"),
        ("LSKA", True, {}, r"`C >= 1` must hold .* C=True"),
        ("LIA", 64, {"f": 0}, "`f >= 1` must hold, but got f=0; give at least one"),
        ("LIA", 64, {"f": 0.25}, "`f` must be a whole number, but got f=0.25"),
        ("LIA", 64, {"f": True}, "`f` must be a whole number, but got f=True"),
        ("HaloAttention", 64, {"block_size": 0}, "1 <= block_size <= 32"),
        ("HaloAttention", 64, {"halo_size": 0}, "1 <= halo_size <= 32"),
        ("HaloAttention", 64, {"dim_head": 0}, "dim_head >= 1"),
        ("HaloAttention", 64, {"dim_head": 256}, r"`inner <= 2 \* C` must hold, but got C=64, inner=256; choose"),
        ("DoubleAttention", 64, {"c_m": 1.5}, r"`c_m` must be a fraction .* but got c_m=1.5; write 1/4 or 64"),
        ("DoubleAttention", 64, {"c_n": 0}, "`c_n` must be a fraction"),
        ("DoubleAttention", 64, {"c_n": math.nan}, "`c_n` must be a fraction"),
        ("CloAttention", 20, {}, r"C % num_heads == 0` must hold, but got C=20, num_heads=8; choose a number of heads"),
        ("CloAttention", 64, {"num_heads": 0, "n_local": 0}, "num_heads >= 1"),
        ("CloAttention", 64, {"n_local": 9}, "0 <= n_local <= num_heads` must hold, but got n_local=9, num_heads=8"),
        ("CloAttention", 64, {"kernel_size": 4}, "kernel_size % 2 == 1` must hold, but got kernel_size=4; give an odd side"),
        ("CloAttention", 64, {"window_size": 0}, "window_size >= 1"),
    ],
)
def test_violations_state_invariant_values_and_remedy(name: str, channels: int, params: dict[str, object], message: str) -> None:
    (problem,) = record(name).violations(channels, params)  # type: ignore[arg-type]
    with pytest.raises(SpaceError, match=message):
        raise SpaceError(problem)
    for use in (record(name).resolve, record(name).parameters):
        with pytest.raises(SpaceError, match=message):
            use(channels, params)  # type: ignore[arg-type]


def test_complete_refuses_what_no_channels_could_allow() -> None:
    with pytest.raises(SpaceError, match="k_size=9"):
        record("LSKA").complete({"k_size": 9})
    with pytest.raises(SpaceError, match="n_local=9"):
        record("CloAttention").args({"n_local": 9})
    assert record("CloAttention").complete({"num_heads": 6})  # 48 channels would do


def test_several_problems_are_told_at_once() -> None:
    assert len(record("CloAttention").violations(20, {"kernel_size": 2, "n_local": -1})) == 3


@pytest.mark.parametrize(("name", "channels", "params", "count"), REFERENCE_PARAMETERS)
def test_parameters_match_the_references(name: str, channels: int, params: dict[str, int], count: int) -> None:
    assert record(name).parameters(channels, params) == count + channels


@pytest.mark.parametrize(("name", "params", "mmacs", "digits"), REFERENCE_MMACS)
def test_macs_match_the_references(name: str, params: dict[str, int], mmacs: float, digits: int) -> None:
    assert record(name).macs_count(128, 40, 48, params) / 1e6 == pytest.approx(mmacs, abs=0.51 * 10**-digits)


def test_evaluate_computes() -> None:
    names = {"a": 7, "b": 2, "yes": True}
    for formula in [
        "a + b*3 - 1",
        "a // b % 3",
        "-a**b",
        "a / b",
        "1 < b <= 2 < a",
        "a if yes else b",
        "not yes",
        "a in (1, 7)",
        "yes and a > b",
        "a == b or not yes",
    ]:
        assert evaluate(formula, names) == eval(formula, {}, dict(names))
    assert evaluate("max(a, b, ceil(a / b)) + min(1, a)", names) == 8
    assert evaluate("b >= 1 and a % b == 0", {"a": 1, "b": 0}) is False


@pytest.mark.parametrize(
    "formula", ["c + 1", "a.real", "__import__('os')", "[a]", "'text'", "a[0]", "max(a, key=a)", "lambda: a", "abs(a)", "a << 1"]
)
def test_evaluate_refuses_all_else(formula: str) -> None:
    with pytest.raises(SpaceError, match="A formula may use"):
        evaluate(formula, {"a": 7})


def test_evaluate_refuses_what_is_no_expression() -> None:
    with pytest.raises(SpaceError, match="must be an arithmetic expression"):
        evaluate("a = 1", {"a": 7})


def test_a_record_is_checked_when_it_is_made() -> None:
    with pytest.raises(SpaceError, match=r"LSKA: a formula may use .* uses \['depth'\]"):
        dataclasses.replace(record("LSKA"), macs="N * depth")
    with pytest.raises(SpaceError, match=r"uses \['N'\]"):
        dataclasses.replace(record("LSKA"), params="N")
    with pytest.raises(SpaceError, match=r"`size` must be a whole number, but got size=0.5"):
        Hyperparameter(name="size", default=4, choices=(4, 0.5), meaning="a side")


def test_two_records_of_one_name_are_refused() -> None:
    from nas_attn import records

    with pytest.raises(SpaceError, match="must have a name of its own"):
        records._table([record("LIA"), record("LIA")])


def test_macs_do_not_depend_on_defaults_being_written_out() -> None:
    for entry in MODULES.values():
        assert isinstance(entry, ModuleRecord)
        assert entry.macs_count(64, 21, 13, {}) == entry.macs_count(64, 21, 13, dict(entry.complete({}))) >= 0
