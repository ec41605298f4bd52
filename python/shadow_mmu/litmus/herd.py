"""Export to a C litmus test for herd7 (``herd7 -model rc11.cat FILE``), to have a second opinion.

- An await becomes one read and a condition around the rest of the thread: herd's C has no loops. ``done`` tells that the thread
  came to its end; the outcome at the end asks for it.
- Taking a lock becomes an exchange: it writes what was there if the lock was taken, so nothing else changes.
- A claim becomes the register ``bad``.
- Accesses that are not atomic are plain; herd then reports races by its flag, which counts as a bad outcome too. Freeing writes
  a value that nothing else writes, and a read that returns it sets ``bad``.

The outcome at the end is written with herd's comparisons; what they cannot say is spelled out value by value, over all values
that have no more bits than the numbers in the program.
"""

import re
from collections.abc import Iterator
from itertools import product
from typing import Final

from shadow_mmu.litmus.expr import Binary, Const, Expr, Value, constants, evaluate, names, render
from shadow_mmu.litmus.order import NA, RLX, Order
from shadow_mmu.litmus.program import (
    Alloc,
    Await,
    Block,
    Cas,
    Check,
    FenceOp,
    Free,
    If,
    Load,
    Program,
    Rmw,
    Set,
    Store,
    Thread,
    statements,
)

__all__ = ["FREED", "export"]

FREED: Final = 99
"""What a freed location holds."""

_FUNCTIONS: Final = {"xchg": "exchange", "add": "fetch_add", "and": "fetch_and", "or": "fetch_or"}


def export(title: str, program: Program) -> str:
    """Return a program as the text of a C litmus test."""
    freed = frozenset(
        one.location for thread in program.threads for one in statements(thread.body) if isinstance(one, Free)
    )
    threads = [_Writer(number, thread, freed) for number, thread in enumerate(program.threads)]
    bodies = [thread.text() for thread in threads]
    first = {location: program.initial.get(location, 0) for location in program.locations}
    first |= {name: 0 for thread in threads for name in thread.extra}
    initial = " ".join(f"[{name}]={number};" for name, number in first.items())
    return "\n\n".join(
        [f"C {_identifier(title)}", f"{{ {initial} }}", *bodies, f"exists ({_condition(program, threads)})\n"]
    )


def _identifier(title: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", title).strip("-")


class _Writer:
    """One thread as C."""

    def __init__(self, number: int, thread: Thread, freed: frozenset[str]) -> None:
        self.number = number
        self.thread = thread
        self.freed = freed
        self.extra: list[str] = []
        self.registers: dict[str, None] = {}
        self.waits = any(isinstance(one, Await) for one in statements(thread.body))
        self.claims = any(
            isinstance(one, Check) or (isinstance(one, Load) and one.location in freed)
            for one in statements(thread.body)
        )

    def text(self) -> str:
        """Return the function of the thread."""
        ending = ["done = 1;"] if self.waits else []
        lines = list(_indented([*self._lines(self.thread.body, ending)]))
        if self.waits:
            self.registers["done"] = None
        if self.claims:
            self.registers["bad"] = None
        shared = dict.fromkeys(
            one.location
            for one in statements(self.thread.body)
            if isinstance(one, Load | Store | Rmw | Cas | Await | Alloc | Free)
        )
        parameters = ", ".join([*(f"atomic_int* {name}" for name in shared), *(f"int* {name}" for name in self.extra)])
        declared = [f"  int {name} = 0;" for name in self.registers]
        return "\n".join([f"P{self.number} ({parameters}) {{", *declared, *lines, "}"])

    def _lines(self, body: Block, ending: list[str]) -> Iterator[str]:
        """Yield the lines of a block and of what comes behind it."""
        for place, one in enumerate(body):
            if isinstance(one, Await):
                register = self._register(f"wait{sum(name.startswith('wait') for name in self.registers)}")
                yield f"{register} = {self._awaited(one)};"
                yield f"if ({register} == {one.until}) {{"
                yield from self._lines(body[place + 1 :], ending)
                yield "}"
                return
            if isinstance(one, If) and any(isinstance(inner, Await) for inner in statements((one,))):
                # What comes behind is only reached if the await in a branch is: it moves into the branches.
                rest = body[place + 1 :]
                yield f"if ({render(one.condition)}) {{"
                yield from self._lines((*one.then, *rest), ending)
                yield "} else {"
                yield from self._lines((*one.otherwise, *rest), ending)
                yield "}"
                return
            yield from self._line(one)
        yield from ending

    def _line(self, one: object) -> Iterator[str]:
        match one:
            case Load(reg, location, order):
                read = f"*{location}" if order is NA else f"atomic_load_explicit({location}, {order.c11})"
                yield f"{self._register(reg)} = {read};"
                if location in self.freed:
                    yield f"if ({reg} == {FREED}) {{"
                    yield "bad = 1;"
                    yield "}"
            case Store(location, expr, order):
                yield _store(location, render(expr), order)
            case Rmw(reg, location, operator, expr, order):
                function = f"atomic_{_FUNCTIONS[operator]}_explicit"
                yield f"{self._register(reg)} = {function}({location}, {render(expr)}, {order.c11});"
            case Cas(reg, location, expected, desired, order):
                wanted = f"expected{self.number}_{len(self.extra)}"
                self.extra.append(wanted)
                yield f"*{wanted} = {render(expected)};"
                yield (
                    f"{self._register(f'swapped_{reg}')} = atomic_compare_exchange_strong_explicit("
                    f"{location}, {wanted}, {render(desired)}, {order.c11}, {RLX.c11});"
                )
                # C leaves in it what was there: if it succeeded that is what was expected.
                yield f"{self._register(reg)} = *{wanted};"
            case FenceOp(order):
                yield f"atomic_thread_fence({order.c11});"
            case Alloc(location):
                yield f"*{location} = 0;"
            case Free(location):
                yield f"*{location} = {FREED};"
            case Set(reg, expr):
                yield f"{self._register(reg)} = {render(expr)};"
            case If(condition, then, otherwise):
                yield f"if ({render(condition)}) {{"
                yield from self._lines(then, [])
                if otherwise:
                    yield "} else {"
                    yield from self._lines(otherwise, [])
                yield "}"
            case Check(condition, _):
                yield f"if ({render(condition)}) {{"
                yield "} else {"
                yield "bad = 1;"
                yield "}"

    def _awaited(self, one: Await) -> str:
        if one.then is None:
            return f"atomic_load_explicit({one.location}, {one.order.c11})"
        return f"atomic_exchange_explicit({one.location}, {one.then}, {one.order.c11})"

    def _register(self, name: str) -> str:
        self.registers[name] = None
        return name


def _store(location: str, what: str, order: Order) -> str:
    return f"*{location} = {what};" if order is NA else f"atomic_store_explicit({location}, {what}, {order.c11});"


def _indented(lines: list[str]) -> Iterator[str]:
    depth = 1
    for line in lines:
        depth -= line.startswith("}")
        yield f"{'  ' * depth}{line}"
        depth += line.endswith("{")


def _condition(program: Program, threads: list[_Writer]) -> str:
    """Return the bad outcomes: a claim that failed, or the outcome at the end of all threads."""
    bad = [f"{thread.number}:bad=1" for thread in threads if thread.claims]
    if program.exists is not None:
        done = [f"{thread.number}:done=1" for thread in threads if thread.waits]
        bad.append(" /\\ ".join([*done, f"({_outcome(program, program.exists)})"]))
    # Only races can be bad: herd reports them by itself.
    return " \\/ ".join(f"({one})" for one in bad) if bad else "false"


def _outcome(program: Program, expr: Expr) -> str:
    match expr:
        case Binary("&&", left, right):
            return f"({_outcome(program, left)}) /\\ ({_outcome(program, right)})"
        case Binary("||", left, right):
            return f"({_outcome(program, left)}) \\/ ({_outcome(program, right)})"
        case Binary("==", Value(name), Const(number)):
            return f"{_location(name)}={number}"
        case Binary("!=", Value(name), Const(number)):
            return f"~({_location(name)}={number})"
        case _:
            return _spelled_out(program, expr)


def _spelled_out(program: Program, expr: Expr) -> str:
    used = sorted(names(expr))
    values = range(1 << max(_constants(program)).bit_length())
    cases = [dict(zip(used, combination, strict=True)) for combination in product(values, repeat=len(used))]
    true = [case for case in cases if evaluate(expr, case)]
    spelled = (" /\\ ".join(f"{_location(name)}={number}" for name, number in case.items()) for case in true)
    return " \\/ ".join(f"({one})" for one in spelled) if true else "false"


def _constants(program: Program) -> Iterator[int]:
    yield 1
    yield from program.initial.values()
    for thread in program.threads:
        for one in statements(thread.body):
            yield from constants(getattr(one, "expr", Const(0)))
            yield from constants(getattr(one, "desired", Const(0)))


def _location(name: str) -> str:
    return name if ":" in name else f"[{name}]"
