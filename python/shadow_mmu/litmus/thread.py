"""What a thread does next: a tree whose nodes are the points of its run, whose branches are the values that it reads.

A thread is deterministic once the values of its reads are known. So the explorer, which decides what each read returns,
walks down this tree: :attr:`Point.action` is the next memory access, :meth:`Point.after` where its result leads.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from shadow_mmu.litmus.expr import evaluate
from shadow_mmu.litmus.order import NA, RLX, Fence, Order
from shadow_mmu.litmus.program import Alloc, Await, Block, Cas, Check, FenceOp, Free, If, Load, Rmw, Set, Store

__all__ = ["Action", "Done", "Failed", "FenceAction", "Point", "Read", "Write"]


@dataclass(frozen=True, slots=True)
class Read:
    """A read is next.

    Attributes
    ----------
    accepts : int, optional
        The only value that an await goes on with.
    expected : int, optional
        The value at which a compare-exchange writes; at any other it is a relaxed load.
    locked : bool
        The read half of an atomic read-modify-write.

    """

    location: str
    order: Order
    accepts: int | None = None
    expected: int | None = None
    locked: bool = False

    def order_at(self, value: int) -> Order:
        """Return the order of the read given the value that it returns."""
        return RLX if self.expected is not None and value != self.expected else self.order


@dataclass(frozen=True, slots=True)
class Write:
    """A write is next; ``locked`` if it is the write half of an atomic step, ``life`` if it begins or ends the location."""

    location: str
    value: int
    order: Order
    locked: bool = False
    life: Literal["alloc", "free"] | None = None


@dataclass(frozen=True, slots=True)
class FenceAction:
    """A fence is next."""

    order: Fence


@dataclass(frozen=True, slots=True)
class Failed:
    """A claim of the thread is false here."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The thread is at its end, with these registers."""

    registers: Mapping[str, int]


Action = Read | Write | FenceAction | Failed | Done
# The values that the run so far was answered with: the value of each read, 0 for writes and fences.
_Path = tuple[int, ...]
_Run = Generator[Read | Write | FenceAction | Failed, int, None]


class Point:
    """A point in the run of a thread."""

    __slots__ = ("_body", "_next", "_path", "action")

    def __init__(self, body: Block, path: _Path = ()) -> None:
        self._body: Final = body
        self._path: Final = path
        self._next: Final[dict[int, Point]] = {}
        self.action: Final = _replay(body, path)

    def after(self, value: int = 0) -> "Point":
        """Return the next point, ``value`` being what the read returned."""
        found = self._next.get(value)
        if found is None:
            found = self._next[value] = Point(self._body, (*self._path, value))
        return found


def _replay(body: Block, path: _Path) -> Action:
    """Run the thread from its start with the given answers and return what it wants next."""
    registers: dict[str, int] = {}
    run = _run(body, registers)
    try:
        action = next(run)
        for answer in path:
            action = run.send(answer)
    except StopIteration:
        return Done(registers)
    return action


def _run(body: Block, registers: dict[str, int]) -> _Run:
    for one in body:
        match one:
            case Load(reg, location, order):
                registers[reg] = yield Read(location, order)
            case Store(location, expr, order):
                yield Write(location, evaluate(expr, registers), order)
            case Rmw(reg, location, operator, expr, order):
                old = registers[reg] = yield Read(location, order, locked=True)
                yield Write(location, _combine(operator, old, evaluate(expr, registers)), order, locked=True)
            case Cas(reg, location, expected, desired, order):
                compare, new = evaluate(expected, registers), evaluate(desired, registers)
                old = registers[reg] = yield Read(location, order, expected=compare, locked=True)
                if old == compare:
                    yield Write(location, new, order, locked=True)
            case Await(location, until, order, then):
                yield Read(location, order, accepts=until, locked=then is not None)
                if then is not None:
                    yield Write(location, then, order, locked=True)
            case FenceOp(order):
                yield FenceAction(order)
            case Alloc(location):
                yield Write(location, 0, NA, life="alloc")
            case Free(location):
                yield Write(location, 0, NA, life="free")
            case Set(reg, expr):
                registers[reg] = evaluate(expr, registers)
            case If(condition, then, otherwise):
                yield from _run(then if evaluate(condition, registers) else otherwise, registers)
            case Check(condition, text):
                if not evaluate(condition, registers):
                    yield Failed(text)


def _combine(operator: Literal["xchg", "add", "and", "or"], old: int, operand: int) -> int:
    match operator:
        case "xchg":
            return operand
        case "add":
            return old + operand
        case "and":
            return old & operand
        case "or":
            return old | operand
