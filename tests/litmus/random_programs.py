"""Small random programs: every sort of access, order and fence, on two or three locations."""

import random

from shadow_mmu.litmus.expr import as_expr, value
from shadow_mmu.litmus.order import ACQ, ACQ_REL, F_ACQ, F_ACQ_REL, F_REL, F_SC, REL, RLX, SCQ
from shadow_mmu.litmus.program import Await, Cas, Program, Rmw, Stmt, Thread, fence, load, store, when

_LOADS, _STORES, _BOTH = (RLX, ACQ, SCQ), (RLX, REL, SCQ), (RLX, ACQ, REL, ACQ_REL, SCQ)
_KINDS = ("load", "store") * 4 + ("fence",) * 3 + ("rmw", "cas", "await", "lock", "if")
_FENCES = (F_ACQ, F_REL, F_ACQ_REL, F_SC, F_SC)


def program(seed: int) -> Program:
    """Return a program of two threads of up to four statements or three of up to three."""
    choose = random.Random(seed)  # noqa: S311  not for secrets
    locations = ("x", "y", "z")[: choose.choice((2, 2, 3))]
    threads, length = choose.choice(((2, 3), (2, 4), (3, 2), (3, 3)))
    return Program(
        tuple(
            Thread(f"P{number}", tuple(_statement(choose, locations, f"r{place}") for place in range(length)))
            for number in range(threads)
        )
    )


def _statement(choose: random.Random, locations: tuple[str, ...], register: str) -> Stmt:
    location, number = choose.choice(locations), choose.randrange(1, 3)
    match choose.choice(_KINDS):
        case "load":
            return load(register, location, choose.choice(_LOADS))
        case "store":
            return store(location, number, choose.choice(_STORES))
        case "fence":
            return fence(choose.choice(_FENCES))
        case "rmw":
            return Rmw(register, location, choose.choice(("xchg", "add")), as_expr(number), choose.choice(_BOTH))
        case "cas":
            return Cas(register, location, as_expr(number - 1), as_expr(2), choose.choice(_BOTH))
        case "await":
            return Await(location, choose.randrange(2), choose.choice(_LOADS))
        case "lock":
            return Await(location, 0, choose.choice(_BOTH), 1)
        case _:
            return when(value("r0").eq(0), store(location, number, choose.choice(_STORES)))
