"""The table of attention mechanisms, as frozen records of strings and numbers: no tensor library is needed to read it.

The search space, the command line's list and the conformance tests iterate over `MODULES`; a constructor and a space ask the same
predicate, `ModuleRecord.violations`, so that what a space admits is what can be built.

Formulas are written over `C` (channels), `H` and `W` (the map), `N = H * W`, and the names of hyperparameters and derived values.
"""

import ast
import functools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from nas_attn.errors import SpaceError, nearest

Value = bool | int | float
"""A hyperparameter's value. A float below 1 is a fraction of the site's channels."""

_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, items: item in items,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {"min": min, "max": max, "ceil": math.ceil}


@functools.lru_cache(maxsize=256)
def _parse(formula: str) -> ast.expr:
    try:
        return ast.parse(formula, mode="eval").body
    except SyntaxError as error:
        raise SpaceError(f"A formula must be an arithmetic expression, but got {formula!r} ({error.msg}); correct the record.") from error


def _names(formula: str) -> tuple[str, ...]:
    """The variables of a formula, sorted."""
    return tuple(sorted({node.id for node in ast.walk(_parse(formula)) if isinstance(node, ast.Name)} - set(_FUNCTIONS)))


def _compute(node: ast.expr, names: Mapping[str, Value]) -> Any:
    def visit(child: ast.expr) -> Any:
        return _compute(child, names)

    match node:
        case ast.Constant(value=bool() | int() | float()):
            return node.value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.Tuple(elts=items):
            return tuple(map(visit, items))
        case ast.IfExp(test=test, body=then, orelse=otherwise):
            return visit(then) if visit(test) else visit(otherwise)
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(visit(part) for part in parts)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](visit(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](visit(left), visit(right))
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(op) in _OPERATORS for op in ops):
            values = [visit(left), *map(visit, rest)]
            return all(_OPERATORS[type(op)](a, b) for op, a, b in zip(ops, values, values[1:], strict=False))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(visit, args))
    raise SpaceError(
        f"A formula may use numbers, known names, + - * / // % **, comparisons, `in`, `and`, `not`, if-else, min, max and ceil, "
        f"but got {ast.unparse(node)!r} with names {sorted(names)}; correct the record."
    )


def evaluate(formula: str, names: Mapping[str, Value]) -> Value:
    """The value of an arithmetic formula over `names`: a small part of Python's grammar, walked and never executed.

    Raises SpaceError for anything else, an unknown name included.
    """
    result: Value = _compute(_parse(formula), names)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """One argument of a module's constructor.

    `choices` is what a space searches by default; other values of the same kind are legal where the record's constraints allow them.
    A `fraction` may be given as a part of the channels in (0, 1), which stays right at another scale of the detector.
    """

    name: str
    default: Value
    choices: tuple[Value, ...]
    meaning: str
    fraction: bool = False

    def __post_init__(self) -> None:
        for value in (self.default, *self.choices):
            if problem := self.problem(value):
                raise SpaceError(problem)

    def problem(self, value: object) -> str | None:
        """What is wrong with the kind of `value`, or None."""
        given = f"but got {self.name}={value!r}"
        if isinstance(self.default, bool):
            return None if isinstance(value, bool) else f"`{self.name}` must be true or false, {given}; write one of the two."
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not self.fraction:
            return None if whole else f"`{self.name}` must be a whole number, {given}; write one such as {self.default}."
        if (isinstance(value, float) and 0 < value < 1) or (whole and value >= 1):  # type: ignore[operator]
            return None
        return f"`{self.name}` must be a fraction of the channels in (0, 1) or a whole number >= 1, {given}; write 1/4 or 64."

    def resolve(self, channels: int, value: Value) -> Value:
        """The number that a module of `channels` channels gets: a fraction becomes `max(8, round(channels * value))`."""
        return max(8, round(channels * value)) if self.fraction and isinstance(value, float) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRecord:
    """One attention mechanism: where its class is, what it takes, what it costs, where it comes from.

    `gate` says what the identity gate multiplies: `m(x)` where the mechanism's output is added to its input (self-attention),
    `m(x) - x` where it replaces it (products with weights), so that an open gate gives the published form.
    `constraints` holds pairs of a formula that must be true and the remedy where it is not. `derived` names what follows from the
    channels and the hyperparameters, in order. `params` counts the bare mechanism's parameters, without the gate; `macs` its
    multiply-accumulates for one image of H x W, element-wise operations not counted.
    """

    name: str
    target: str
    hyperparameters: tuple[Hyperparameter, ...]
    gate: Literal["m(x)", "m(x) - x"]
    constraints: tuple[tuple[str, str], ...]
    params: str
    macs: str
    paper: str
    venue: str
    arxiv: str
    reference: str
    licence: str
    note: str
    derived: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        known = {"C", *(hyper.name for hyper in self.hyperparameters)}
        for name, formula in self.derived:
            self._require_known(formula, known)
            known.add(name)
        for formula, _ in self.constraints:
            self._require_known(formula, known)
        self._require_known(self.params, known)
        self._require_known(self.macs, known | {"H", "W", "N"})

    def _require_known(self, formula: str, known: set[str]) -> None:
        unknown = set(_names(formula)) - known
        if unknown:
            raise SpaceError(f"{self.name}: a formula may use {sorted(known)}, but `{formula}` uses {sorted(unknown)}; correct the record.")

    def _read(self, params: Mapping[str, Value]) -> tuple[dict[str, Value], list[str]]:
        """Every hyperparameter in the constructor's order, defaults filled, and what is wrong with `params`."""
        known = {hyper.name for hyper in self.hyperparameters}
        problems = [
            f"{self.name}: every hyperparameter must be known, but got {name!r}; {nearest(name, known)}"
            for name in params
            if name not in known
        ]
        values = {hyper.name: params.get(hyper.name, hyper.default) for hyper in self.hyperparameters}
        kinds = (hyper.problem(values[hyper.name]) for hyper in self.hyperparameters)
        return values, problems + [f"{self.name}: {problem}" for problem in kinds if problem]

    def _broken(self, scope: Mapping[str, Value]) -> list[str]:
        """A message for each constraint that is false in `scope`; one that needs a name outside of it is passed over."""
        messages = []
        for formula, remedy in self.constraints:
            names = _names(formula)
            if scope.keys() >= set(names) and not evaluate(formula, scope):
                given = ", ".join(f"{name}={scope[name]}" for name in names)
                messages.append(f"{self.name}: `{formula}` must hold, but got {given}; {remedy}.")
        return messages

    def _scope(self, channels: int, values: Mapping[str, Value]) -> dict[str, Value]:
        scope: dict[str, Value] = {"C": channels}
        scope |= {hyper.name: hyper.resolve(channels, values[hyper.name]) for hyper in self.hyperparameters}
        for name, formula in self.derived:
            scope[name] = evaluate(formula, scope)
        return scope

    def _legal_scope(self, channels: int, params: Mapping[str, Value]) -> dict[str, Value]:
        if problems := self.violations(channels, params):
            raise SpaceError(" ".join(problems))
        return self._scope(channels, self._read(params)[0])

    def complete(self, params: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
        """Every hyperparameter with its value, defaults filled, sorted by name.

        Raises SpaceError for an unknown name, a value of the wrong kind, and a constraint that is broken whatever the channels are.
        """
        values, problems = self._read(params)
        relative = {hyper.name for hyper in self.hyperparameters if hyper.fraction}
        if problems := problems or self._broken({name: value for name, value in values.items() if name not in relative}):
            raise SpaceError(" ".join(problems))
        return tuple(sorted(values.items()))

    def violations(self, channels: int, params: Mapping[str, Value]) -> list[str]:
        """Why this module cannot be built for `channels` channels with `params`: invariant, values, remedy; empty if it can."""
        values, problems = self._read(params)
        if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
            problems.append(
                f"{self.name}: `C >= 1` must hold for a whole number of channels, but got C={channels!r}; give the row's channels."
            )
        return problems or self._broken(self._scope(channels, values))

    def resolve(self, channels: int, params: Mapping[str, Value]) -> dict[str, Value]:
        """The numbers that the module is built from: fractions turned into widths, derived values (such as heads) added.

        Two `params` that resolve to the same numbers build the same module. Raises SpaceError where `violations` finds any.
        """
        scope = self._legal_scope(channels, params)
        del scope["C"]
        return scope

    def args(self, params: Mapping[str, Value]) -> list[Value]:
        """The constructor's arguments after the channels, in order, defaults filled. Raises SpaceError as `complete` does."""
        values = dict(self.complete(params))
        return [values[hyper.name] for hyper in self.hyperparameters]

    def parameters(self, channels: int, params: Mapping[str, Value]) -> int:
        """The number of parameters of the gated module: the mechanism's, and one a channel for the gate."""
        return int(evaluate(self.params, self._legal_scope(channels, params))) + channels

    def macs_count(self, channels: int, height: int, width: int, params: Mapping[str, Value]) -> int:
        """Multiply-accumulates for one image of `height` x `width` cells; an operation of two FLOPs counts once."""
        scope = self._legal_scope(channels, params) | {"H": height, "W": width, "N": height * width}
        return int(evaluate(self.macs, scope))


_LIA = ModuleRecord(
    name="LIA",
    target="lia:LIA",
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
    target="halo:HaloAttention",
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
    target="double:DoubleAttention",
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
    note="Gathers c_n global descriptors and hands them out to every position; the lightest global attention here.",
)

_LSKA = ModuleRecord(
    name="LSKA",
    target="lska:LSKA",
    hyperparameters=(
        Hyperparameter(name="k_size", default=7, choices=(7, 11, 23, 35), meaning="side of the receptive field, in cells"),
        Hyperparameter(name="use_proj", default=False, choices=(False,), meaning="VAN's 1x1-GELU-LSKA-1x1 with shortcut around it"),
    ),
    gate="m(x) - x",
    constraints=(("k_size in (7, 11, 23, 35, 41, 53)", "choose one of these sides"),),
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
    target="clo:CloAttention",
    hyperparameters=(
        Hyperparameter(name="window_size", default=4, choices=(1, 2, 4), meaning="side of the pooling window of keys and values"),
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


def _table(*records: ModuleRecord) -> Mapping[str, ModuleRecord]:
    """The records by name; two of one name would hide each other."""
    table = {entry.name: entry for entry in records}
    if len(table) != len(records):
        raise SpaceError(f"Every record must have a name of its own, but got {[entry.name for entry in records]}; rename one.")
    return MappingProxyType(table)


MODULES: Mapping[str, ModuleRecord] = _table(_LIA, _HALO, _DOUBLE, _LSKA, _CLO)
"""Every mechanism by its name."""


def record(name: str) -> ModuleRecord:
    """The record of that name. Raises SpaceError with the nearest known names."""
    if name not in MODULES:
        raise SpaceError(f"A module must be in the table, but got {name!r}; {nearest(name, MODULES)}")
    return MODULES[name]
