"""Reads C litmus tests of the sort that herd7 takes: enough of them for herd's own verdicts and for what we export."""

import re
from collections.abc import Iterator

from shadow_mmu.litmus.expr import Binary, Const, Expr, Value
from shadow_mmu.litmus.order import NA, Fence, Order
from shadow_mmu.litmus.program import Block, Cas, FenceOp, If, Load, Program, Rmw, Set, Stmt, Store, Thread

_TOKEN = re.compile(r"\s+|/\\|\\/|&&|\|\||[=!]=|[A-Za-z_][A-Za-z0-9_]*|-?\d+|[^\s]")
_HEAD = re.compile(r"P(\d+)\s*\(([^)]*)\)\s*\{")
_PRECEDENCE = (("||",), ("&&",), ("==", "!="), ("|",), ("&",), ("+", "-"))
_RMW = {"exchange": "xchg", "fetch_add": "add", "fetch_and": "and", "fetch_or": "or"}
_ORDERS = {order.c11: order for order in Order if order is not NA}
_FENCES = {fence.c11: fence for fence in Fence if fence is not Fence.NONE}


def read(text: str) -> Program:
    """Return the program of a C litmus test."""
    initial = {name: int(number) for name, number in re.findall(r"\[(\w+)\]\s*=\s*(\d+)\s*;", text)}
    threads = []
    for head in _HEAD.finditer(text):
        private = set(re.findall(r"(?<!atomic_)int\s*\*\s*(\w+)", head[2]))
        body = _Body(_tokens(text[head.end() :]), private)
        threads.append(Thread(f"P{head[1]}", body.block()))
    exists = re.search(r"exists\s*(\(.*\))\s*$", text, re.DOTALL)
    assert exists
    shared = {name: number for name, number in initial.items() if not name.startswith("expected")}
    return Program(tuple(threads), _Condition(_tokens(exists[1])).either(), shared)


def _tokens(text: str) -> Iterator[str]:
    return (found[0] for found in _TOKEN.finditer(text) if not found[0].isspace())


class _Stream:
    def __init__(self, tokens: Iterator[str]) -> None:
        self._tokens = tokens
        self.ahead = next(tokens, "")

    def take(self, *wanted: str) -> str:
        found, self.ahead = self.ahead, next(self._tokens, "")
        assert not wanted or found in wanted, f"{found!r} instead of {wanted}"
        return found

    def skip(self, token: str) -> bool:
        if self.ahead != token:
            return False
        self.take()
        return True


class _Body(_Stream):
    """The statements of a function, up to the brace that closes it."""

    def __init__(self, tokens: Iterator[str], private: set[str]) -> None:
        super().__init__(tokens)
        self.private = private

    def block(self) -> Block:
        found: list[Stmt] = []
        while not self.skip("}"):
            found.extend(self._statement())
        return tuple(found)

    def _statement(self) -> Iterator[Stmt]:
        if self.skip("if"):
            self.take("(")
            condition = self._expr()
            self.take(")")
            self.take("{")
            then = self.block()
            otherwise: Block = ()
            if self.skip("else"):
                self.take("{")
                otherwise = self.block()
            yield If(condition, then, otherwise)
            return
        if self.skip("*"):
            location = self.take()
            self.take("=")
            what = self._expr()
            yield Set(location, what) if location in self.private else Store(location, what, NA)
        elif self.ahead.startswith("atomic_"):
            yield self._call(self.take(), "")
        else:
            self.skip("int")
            register = self.take()
            self.take("=")
            if self.ahead.startswith("atomic_"):
                yield self._call(self.take(), register)
            elif self.skip("*"):
                location = self.take()
                yield Set(register, Value(location)) if location in self.private else Load(register, location, NA)
            else:
                yield Set(register, self._expr())
        self.take(";")

    def _call(self, function: str, register: str) -> Stmt:
        self.take("(")
        arguments = [self._expr()]
        while self.skip(","):
            arguments.append(self._expr())
        self.take(")")
        location, order = (
            argument.name if isinstance(argument, Value) else "" for argument in (arguments[0], arguments[-1])
        )
        match function.removeprefix("atomic_").removesuffix("_explicit"):
            case "thread_fence":
                return FenceOp(_FENCES[order])
            case "load":
                return Load(register, location, _ORDERS[order])
            case "store":
                return Store(location, arguments[1], _ORDERS[order])
            case "compare_exchange_strong":
                # What was there comes back in the private location that held what was expected.
                wanted, strong = arguments[1], arguments[3]
                assert isinstance(wanted, Value)
                assert isinstance(strong, Value)
                return Cas(wanted.name, location, wanted, arguments[2], _ORDERS[strong.name])
            case name:
                operator = _RMW[name]
                assert operator in {"xchg", "add", "and", "or"}
                return Rmw(register, location, operator, arguments[1], _ORDERS[order])  # type: ignore[arg-type]

    def _expr(self, level: int = 0) -> Expr:
        if level == len(_PRECEDENCE):
            return self._atom()
        left = self._expr(level + 1)
        while self.ahead in _PRECEDENCE[level]:
            left = Binary(self.take(), left, self._expr(level + 1))
        return left

    def _atom(self) -> Expr:
        if self.skip("("):
            inner = self._expr()
            self.take(")")
            return inner
        token = self.take()
        return Const(int(token)) if re.fullmatch(r"-?\d+", token) else Value(token)


class _Condition(_Stream):
    r"""The condition of ``exists``: ``0:r0=1``, ``[x]=1``, ``~``, ``/\``, ``\/``."""

    def either(self) -> Expr:
        found = self._both()
        while self.skip("\\/"):
            found = Binary("||", found, self._both())
        return found

    def _both(self) -> Expr:
        found = self._one()
        while self.skip("/\\"):
            found = Binary("&&", found, self._one())
        return found

    def _one(self) -> Expr:
        if self.skip("~"):
            return Binary("==", self._one(), Const(0))
        if self.skip("("):
            inner = self.either()
            self.take(")")
            return inner
        if self.skip("false"):
            return Const(0)
        name = self.take()
        if name == "[":
            name = self.take()
            self.take("]")
        elif self.skip(":"):
            name = f"{name}:{self.take()}"
        self.take("=")
        return Binary("==", Value(name), Const(int(self.take())))
