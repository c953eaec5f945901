"""Formulas of the methods table: one expression over sizes of a module and fields of a configuration.

Numbers, texts, names, arithmetic, comparisons, `and`, `or`, `not`, `if … else`, dictionaries, indexes and the functions
of `FUNCTIONS`. Formulas come from registry/adapters/methods.py only, never from an adapter.

>>> evaluate("outputs // r, r, max(r, 2)", {"outputs": 64, "r": 8})
(8, 8, 8)
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

ANY = -1
"""The value of `any`: a size that headers do not show."""

_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Is: operator.is_,
    ast.IsNot: operator.is_not, ast.Not: operator.not_,
}  # fmt: skip


def factors(size: int, factor: int) -> tuple[int, int]:
    """LoKr's two factors of a size, the smaller one first: near `factor`, or near the square root for -1."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = size if factor == -1 else factor
    best = (1, size)
    for small in range(2, min(limit, math.isqrt(size)) + 1):
        if size % small == 0:
            best = (small, size // small)
    return best


def nearest_divisor(size: int, number: int) -> int:
    """OFT's replacement of a number that does not divide the size: the nearest divisor, the lower one first."""
    if number < 1:
        raise ValueError("a number of blocks is at least 1")
    if number >= size:
        return size
    lower = next(n for n in range(number, 0, -1) if size % n == 0)
    higher = next(n for n in range(number, size + 1) if size % n == 0)
    return lower if number - lower <= higher - number else higher


def unfrozen(size: int, frozen: float | None) -> int:
    """OSF's directions of a size without the frozen ones: a number or a fraction of them; a half for none given."""
    if frozen is None:
        return size - size // 2
    count = int(size * frozen) if isinstance(frozen, float) and frozen <= 1 else int(frozen)
    return size - max(min(size, count), 0)


def sparse_entries(size: int, rate: float) -> int:
    """How many entries of a square matrix FRoD trains beside its diagonal."""
    off_diagonal = size * size - size
    count = min(int(size * size * rate), off_diagonal)
    return max(1, count) if rate > 0 and off_diagonal else count


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": min, "max": max, "int": int, "round": round, "length": len,
    "ceil": lambda size, part: -(-size // part), "factors": factors, "nearest_divisor": nearest_divisor,
    "sparse_entries": sparse_entries, "unfrozen": unfrozen,
}  # fmt: skip


@cache
def _parsed(formula: str) -> ast.expr:
    return ast.parse(formula, mode="eval").body


def evaluate(formula: str, names: Mapping[str, Any]) -> Any:
    """The value of a formula. Errors are Python's: ArithmeticError, LookupError, TypeError, ValueError."""
    return _value(_parsed(formula), names)


def _value(node: ast.AST, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return ANY if name == "any" else names[name]
        case ast.Tuple(elts=parts):
            return tuple(_value(part, names) for part in parts)
        case ast.Dict(keys=keys, values=values):
            return {_value(k, names): _value(v, names) for k, v in zip(keys, values, strict=True) if k is not None}
        case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
            return _OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_value(operand, names))
        case ast.BoolOp(op=op, values=parts):
            result: Any = None
            for part in parts:
                result = _value(part, names)
                if bool(result) is isinstance(op, ast.Or):
                    break
            return result
        case ast.IfExp(test=test, body=body, orelse=otherwise):
            return _value(body if _value(test, names) else otherwise, names)
        case ast.Subscript(value=holder, slice=key):
            return _value(holder, names)[_value(key, names)]
        case ast.Call(func=ast.Name(id=function), args=arguments):
            return FUNCTIONS[function](*(_value(argument, names) for argument in arguments))
    raise ValueError(f"a formula cannot hold {type(node).__name__}")
