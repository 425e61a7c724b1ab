"""Arithmetic formulas as text: a small part of Python's grammar, walked and never executed, over named numbers."""

import ast
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from nas_attn.errors import SpaceError

Value = bool | int | float
"""What a formula reads and gives."""

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


def names_of(formula: str) -> tuple[str, ...]:
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
        case ast.BoolOp(op=op, values=parts):
            return (all if isinstance(op, ast.And) else any)(visit(part) for part in parts)
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
        f"A formula may use numbers, known names, + - * / // % **, comparisons, `in`, `and`, `or`, `not`, if-else, min, max and ceil, "
        f"but got {ast.unparse(node)!r} with names {sorted(names)}; correct the record."
    )


def evaluate(formula: str, names: Mapping[str, Value]) -> Value:
    """The value of an arithmetic formula over `names`: a small part of Python's grammar, walked and never executed.

    Raises SpaceError for anything else, an unknown name included.
    """
    result: Value = _compute(_parse(formula), names)
    return result
