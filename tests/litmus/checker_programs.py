"""The litmus programs for the checker of the Rust code: what its tests run, and what the explorer finds for each.

``python -m tests.litmus.checker_programs N`` prints N random programs in the same form, for ``make soak-model``. Without N it writes ``rust/sync/src/explored/tests/programs.json``, a line for each case of the
catalogue under RC11. A location that is allocated or freed becomes two: the value, and a flag that is not atomic and that each access reads first.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.litmus import random_programs

from shadow_mmu.litmus import CATALOGUE, MODELS
from shadow_mmu.litmus.explore import explore
from shadow_mmu.litmus.expr import Binary, Const, Expr, Value
from shadow_mmu.litmus.order import NA
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
    Stmt,
    Store,
    statements,
)

__all__ = ["PROGRAMS", "lines"]

PROGRAMS: Final = Path(__file__).parents[2] / "rust/sync/src/explored/tests/programs.json"

Json = int | str | None | list["Json"] | dict[str, "Json"]


def lines() -> Iterator[str]:
    """Yield the lines of the file."""
    for test in CATALOGUE.values():
        for case in test.cases:
            program = test.program(case.setting)
            yield json.dumps(_case(f"{test.name} | {case.setting}", program), separators=(",", ":"))


def _case(name: str, program: Program) -> Json:
    found = explore(program, MODELS["rc11"], to_the_end=True)
    every = [one for thread in program.threads for one in statements(thread.body)]
    mortal = {one.location for one in every if isinstance(one, Alloc | Free)}
    born = {one.location for one in every if isinstance(one, Alloc)}
    plain = sorted(
        {one.location for one in every if isinstance(one, Load | Store) and one.order is NA}
        | {_life(x) for x in mortal}
    )
    places = [*dict.fromkeys((*program.locations, *plain))]
    stopped = found.bad is not None and found.bad.kind != "outcome"
    return {
        "name": name,
        "bad": None if found.bad is None else found.bad.kind,
        # An execution that fails is not gone on with, so how many there are depends on the order of the search.
        "executions": None if stopped else found.executions,
        "blocked": None if stopped else found.blocked,
        "places": [*places],
        "plain": [*plain],
        "initial": {**dict(program.initial), **{_life(x): 1 for x in sorted(mortal - born)}},
        "threads": [_block(thread.body, mortal) for thread in program.threads],
        "exists": None if program.exists is None else _expr(program.exists),
    }


def _life(location: str) -> str:
    return f"{location}.life"


def _block(body: Block, mortal: set[str]) -> Json:
    return [step for one in body for step in _steps(one, mortal)]


def _steps(one: Stmt, mortal: set[str]) -> Iterator[Json]:
    location = getattr(one, "location", None)
    if location in mortal and not isinstance(one, Alloc | Free):
        yield ["load", "alive", _life(location), "NA"]
        yield ["check", "alive", f"{location} is used before its time or after it"]
    match one:
        case Load(reg, _, order):
            yield ["load", reg, location, order.name]
        case Store(_, expr, order):
            yield ["store", location, _expr(expr), order.name]
        case Rmw(reg, _, operator, expr, order):
            yield ["rmw", reg, location, operator, _expr(expr), order.name]
        case Cas(reg, _, expected, desired, order):
            yield ["cas", reg, location, _expr(expected), _expr(desired), order.name]
        case Await(_, until, order, then):
            yield ["await", location, until, order.name, then]
        case FenceOp(order):
            yield ["fence", order.name]
        case Alloc() | Free():
            yield ["store", _life(one.location), int(isinstance(one, Alloc)), "NA"]
        case Set(reg, expr):
            yield ["set", reg, _expr(expr)]
        case If(condition, then_, otherwise):
            yield ["if", _expr(condition), _block(then_, mortal), _block(otherwise, mortal)]
        case Check(condition, text):
            yield ["check", _expr(condition), text]


def _expr(expr: Expr) -> Json:
    match expr:
        case Const(number):
            return number
        case Value(name):
            return name
        case Binary(operator, left, right):
            return [operator, _expr(left), _expr(right)]
        case _:
            raise TypeError(f"{expr!r} is no expression")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for seed in range(int(sys.argv[1])):
            print(json.dumps(_case(f"random {seed}", random_programs.program(seed)), separators=(",", ":")))
    else:
        PROGRAMS.write_text("\n".join(lines()) + "\n")
