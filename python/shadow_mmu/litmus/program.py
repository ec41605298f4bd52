"""A litmus program: what each thread does, statement by statement, and the outcome that must not happen.

There are no loops. A loop that waits is an :class:`Await`, a read that happens when its condition holds; taking a lock is an
await that also writes. Nothing is lost by this: a round of a waiting loop that fails changes nothing that another thread
could see, so an execution with such rounds is bad exactly if the one without them is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from shadow_mmu.litmus.expr import Expr, as_expr
from shadow_mmu.litmus.order import ACQ, NA, REL, RLX, Fence, Order

__all__ = [
    "Alloc",
    "Await",
    "Block",
    "Cas",
    "Check",
    "FenceOp",
    "Free",
    "If",
    "Load",
    "Program",
    "Rmw",
    "Set",
    "Stmt",
    "Store",
    "Thread",
]

MMU_LOCK: Final = "mmu_lock"
LOCKED: Final = 1


@dataclass(frozen=True, slots=True)
class Load:
    """``reg = location``."""

    reg: str
    location: str
    order: Order


@dataclass(frozen=True, slots=True)
class Store:
    """``location = expr``."""

    location: str
    expr: Expr
    order: Order


@dataclass(frozen=True, slots=True)
class Rmw:
    """``reg = location; location = reg OP expr``, in one atomic step. ``xchg`` stores the operand itself."""

    reg: str
    location: str
    operator: Literal["xchg", "add", "and", "or"]
    expr: Expr
    order: Order


@dataclass(frozen=True, slots=True)
class Cas:
    """``reg = location; if (reg == expected) location = desired``, in one step; if it fails it is a relaxed load."""

    reg: str
    location: str
    expected: Expr
    desired: Expr
    order: Order


@dataclass(frozen=True, slots=True)
class Await:
    """Read the location until it holds ``until``; with ``then`` also replace it, in the same atomic step."""

    location: str
    until: int
    order: Order
    then: int | None = None


@dataclass(frozen=True, slots=True)
class FenceOp:
    """A fence."""

    order: Fence


@dataclass(frozen=True, slots=True)
class Alloc:
    """The location comes to life, uninitialised: an access that does not happen after this is a bug."""

    location: str


@dataclass(frozen=True, slots=True)
class Free:
    """The location is given back: an access that does not happen before this is a bug."""

    location: str


@dataclass(frozen=True, slots=True)
class Set:
    """``reg = expr``: no memory access."""

    reg: str
    expr: Expr


@dataclass(frozen=True, slots=True)
class If:
    """The two branches of a condition over registers."""

    condition: Expr
    then: "Block"
    otherwise: "Block" = ()


@dataclass(frozen=True, slots=True)
class Check:
    """A claim over registers at this point of the thread; an execution in which it is false is bad."""

    condition: Expr
    text: str


Stmt = Load | Store | Rmw | Cas | Await | FenceOp | Alloc | Free | Set | If | Check
Block = tuple[Stmt, ...]
Part = Stmt | Block | None


def block(*parts: Part) -> Block:
    """Return the statements in order; ``None`` and fences of no order leave no trace, blocks are spliced in."""
    flat: list[Stmt] = []
    for part in parts:
        if part is None or (isinstance(part, FenceOp) and part.order is Fence.NONE):
            continue
        if isinstance(part, tuple):
            flat.extend(part)
        else:
            flat.append(part)
    return tuple(flat)


def load(reg: str, location: str, order: Order = RLX) -> Load:
    """Return a load."""
    return Load(reg, location, order)


def store(location: str, what: Expr | int | str, order: Order = RLX) -> Store:
    """Return a store of a number, a register or an expression."""
    return Store(location, as_expr(what), order)


def fence(order: Fence) -> FenceOp:
    """Return a fence."""
    return FenceOp(order)


def when(condition: Expr | str, *parts: Part) -> If:
    """Return the statements that are done if the condition (or register) is not 0."""
    return If(as_expr(condition), block(*parts))


def either(condition: Expr | str, then: Part, otherwise: Part) -> If:
    """Return the two branches of a condition."""
    return If(as_expr(condition), block(then), block(otherwise))


def check(condition: Expr | str, text: str) -> Check:
    """Return a claim and what its failure means."""
    return Check(as_expr(condition), text)


def lock(name: str = MMU_LOCK, order: Order = ACQ) -> Await:
    """Return the acquisition of a lock: wait until it is free and take it, in one atomic step."""
    return Await(name, 0, order, LOCKED)


def unlock(name: str = MMU_LOCK, order: Order = REL) -> Store:
    """Return the release of a lock."""
    return Store(name, as_expr(0), order)


@dataclass(frozen=True, slots=True)
class Thread:
    """The statements of one CPU and the name that heads its column."""

    name: str
    body: Block


@dataclass(frozen=True, slots=True)
class Program:
    """Threads over shared locations that hold 0 unless ``initial`` says otherwise.

    ``exists`` is the bad outcome over final memory (``"x"``) and registers (``"0:r0"``), ``None`` if only the claims inside
    the threads, races and lifetimes are checked.
    """

    threads: tuple[Thread, ...]
    exists: Expr | None = None
    initial: Mapping[str, int] = field(default_factory=dict)

    @property
    def locations(self) -> tuple[str, ...]:
        """The shared locations, in order of first use."""
        return tuple(dict.fromkeys(_locations(self)))

    @property
    def plain(self) -> bool:
        """Whether there is something that can race: accesses that are not atomic, memory that is allocated or freed."""
        return any(
            isinstance(one, Alloc | Free) or getattr(one, "order", None) is NA
            for thread in self.threads
            for one in statements(thread.body)
        )


def statements(body: Block) -> Iterator[Stmt]:
    """Yield all statements of a block, those of both branches of a condition too."""
    for one in body:
        yield one
        if isinstance(one, If):
            yield from statements(one.then)
            yield from statements(one.otherwise)


def _locations(program: Program) -> Iterator[str]:
    yield from program.initial
    for thread in program.threads:
        for one in statements(thread.body):
            if isinstance(one, Load | Store | Rmw | Cas | Await | Alloc | Free):
                yield one.location
