"""Expressions over the registers of a thread, or over registers and memory in a final condition.

They are trees, not Python functions, so that the same program can be run, printed and exported to herd's C.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Binary", "Const", "Expr", "Value", "as_expr", "constants", "evaluate", "names", "render", "value"]


class Expr:
    """Base of expressions; the operators build larger ones. ``==`` and ``!=`` are the methods ``eq`` and ``ne``."""

    def eq(self, other: "Expr | int") -> "Binary":
        """Return the test for equality."""
        return Binary("==", self, _expr(other))

    def ne(self, other: "Expr | int") -> "Binary":
        """Return the test for inequality."""
        return Binary("!=", self, _expr(other))

    def both(self, other: "Expr | int") -> "Binary":
        """Return the conjunction."""
        return Binary("&&", self, _expr(other))

    def either(self, other: "Expr | int") -> "Binary":
        """Return the disjunction."""
        return Binary("||", self, _expr(other))

    def __add__(self, other: "Expr | int") -> "Binary":
        return Binary("+", self, _expr(other))

    def __sub__(self, other: "Expr | int") -> "Binary":
        return Binary("-", self, _expr(other))

    def __and__(self, other: "Expr | int") -> "Binary":
        return Binary("&", self, _expr(other))

    def __or__(self, other: "Expr | int") -> "Binary":
        return Binary("|", self, _expr(other))


@dataclass(frozen=True, slots=True)
class Const(Expr):
    """A number."""

    number: int


@dataclass(frozen=True, slots=True)
class Value(Expr):
    """A register (``"r0"``); in a final condition also a register of a thread (``"0:r0"``) or a location (``"x"``)."""

    name: str


@dataclass(frozen=True, slots=True)
class Binary(Expr):
    """Two expressions and an operator of C."""

    operator: str
    left: Expr
    right: Expr


_OPERATORS: Final[Mapping[str, Callable[[int, int], int]]] = {
    "==": lambda a, b: int(a == b),
    "!=": lambda a, b: int(a != b),
    "&&": lambda a, b: int(bool(a) and bool(b)),
    "||": lambda a, b: int(bool(a) or bool(b)),
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
}


def value(name: str) -> Value:
    """Return the value of a register or location."""
    return Value(name)


def _expr(something: Expr | int) -> Expr:
    return Const(something) if isinstance(something, int) else something


def as_expr(something: Expr | int | str) -> Expr:
    """Return the expression that a number, a register name or an expression stands for."""
    return Value(something) if isinstance(something, str) else _expr(something)


def evaluate(expr: Expr, environment: Mapping[str, int]) -> int:
    """Return the number that an expression comes to; a register that was never written is 0, as in herd."""
    match expr:
        case Const(number):
            return number
        case Value(name):
            return environment.get(name, 0)
        case Binary(operator, left, right):
            return _OPERATORS[operator](evaluate(left, environment), evaluate(right, environment))
        case _:
            raise TypeError(f"{expr!r} is no expression")


def names(expr: Expr) -> frozenset[str]:
    """Return the registers and locations that an expression reads."""
    match expr:
        case Value(name):
            return frozenset({name})
        case Binary(_, left, right):
            return names(left) | names(right)
        case _:
            return frozenset()


def constants(expr: Expr) -> frozenset[int]:
    """Return the numbers in an expression."""
    match expr:
        case Const(number):
            return frozenset({number})
        case Binary(_, left, right):
            return constants(left) | constants(right)
        case _:
            return frozenset()


def render(expr: Expr) -> str:
    """Return the expression as C."""
    match expr:
        case Const(number):
            return str(number)
        case Value(name):
            return name
        case Binary(operator, left, right):
            return f"{_operand(left)} {operator} {_operand(right)}"
        case _:
            raise TypeError(f"{expr!r} is no expression")


def _operand(expr: Expr) -> str:
    return f"({render(expr)})" if isinstance(expr, Binary) else render(expr)
