"""A bad execution as a timeline: one row a step, one column a CPU.

An execution of a weak model is no sequence, and no order of its steps explains it in full. The rows keep the order of each CPU
and put every write before the reads that return it (``sb`` and ``rf``: the models here always allow that). Among such orders one
is chosen in which as few steps as possible look old. Where a read still returns a value that a row above has replaced, or a
write goes under one above, the row says so: there the execution is weak. Under SC no row ever does.
"""

from dataclasses import dataclass
from typing import Final, Literal

from shadow_mmu.litmus.coherence import newer
from shadow_mmu.litmus.explore import Bad, outcome
from shadow_mmu.litmus.expr import names
from shadow_mmu.litmus.graph import INITIAL, Event, Graph
from shadow_mmu.litmus.order import Order
from shadow_mmu.litmus.program import Program
from shadow_mmu.litmus.relations import bits
from shadow_mmu.litmus.thread import Failed, Read

__all__ = ["Step", "Timeline", "timeline"]

_SHOWN_ORDER: Final = {Order.RLX: "", Order.NA: " plain"}


@dataclass(frozen=True, slots=True)
class Step:
    """One row.

    Attributes
    ----------
    number : int
        From 1.
    cpu : int
        The column.
    text : str
        What the CPU does.
    source : int, optional
        The step whose write is read here.
    note : str
        Where the value comes from, and if it is old, which step had replaced it.
    kind : {"step", "weak", "bad"}
        ``weak``: this would not happen if memory were one place that all CPUs see. ``bad``: what must not be.

    """

    number: int
    cpu: int
    text: str
    source: int | None = None
    note: str = ""
    kind: Literal["step", "weak", "bad"] = "step"


@dataclass(frozen=True, slots=True)
class Timeline:
    """The rows, the names of the columns, the first values, and what is wrong at the end."""

    cpus: tuple[str, ...]
    initial: str
    steps: tuple[Step, ...]
    verdict: str

    def as_dict(self) -> dict[str, object]:
        """Return the timeline as plain values for JSON."""
        steps = [
            {"step": one.number, "cpu": self.cpus[one.cpu], "text": one.text, "note": one.note, "kind": one.kind}
            for one in self.steps
        ]
        return {"cpus": list(self.cpus), "initial": self.initial, "steps": steps, "verdict": self.verdict}


def timeline(program: Program, bad: Bad) -> Timeline:
    """Return a bad execution as a timeline."""
    graph = bad.graph
    rows = _Rows(graph)
    steps = [rows.step(number, group) for number, group in enumerate(rows.ordered(), 1)]
    for thread in range(len(graph.counts)):
        action = graph.point(thread).action
        if bad.kind == "claim" and isinstance(action, Failed):
            steps.append(Step(len(steps) + 1, thread, "the claim fails", note=action.text, kind="bad"))
    first = [f"{location} = {number}" for location, number in program.initial.items() if number]
    return Timeline(
        cpus=tuple(thread.name for thread in program.threads),
        initial=", ".join([*first, "all else 0" if first else "all 0"]),
        steps=tuple(steps),
        verdict=_verdict(program, bad),
    )


def _verdict(program: Program, bad: Bad) -> str:
    if bad.kind != "outcome" or program.exists is None:
        return bad.text
    values = outcome(bad.graph)
    shown = ", ".join(f"{name} = {values.get(name, 0)}" for name in sorted(names(program.exists)))
    return f"{bad.text}: {shown} at the end"


# The halves of an atomic step are one row.
_Group = tuple[Event, ...]


class _Rows:
    """The rows of a timeline in the making."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.groups = _groups(graph)
        self.number: dict[int, int] = {}

    def ordered(self) -> list[_Group]:
        """Return the rows in an order that keeps ``sb`` and ``rf``, and ``mo`` and ``fr`` as far as that is possible."""
        left, done, order = list(self.groups), self.graph.initial, []
        cpu = 0
        while left:
            ready = [group for group in left if not self._missing(group, done)]
            # A row that makes another one look old waits as long as something else can go; stay on one CPU while it can.
            chosen = min(
                ready, key=lambda group: (self._made_old(group, done), group[0].thread != cpu, group[0].thread)
            )
            left.remove(chosen)
            order.append(chosen)
            cpu = chosen[0].thread
            for event in chosen:
                done |= 1 << event.id
        return order

    def _missing(self, group: _Group, done: int) -> int:
        own = sum(1 << event.id for event in group)
        return (group[0].porf | group[-1].porf) & ~done & ~own

    def _made_old(self, group: _Group, done: int) -> int:
        """Return how many rows still to come would look old behind this one."""
        write = group[-1]
        if write.kind != "W":
            return 0
        writes = self.graph.mo[write.location]
        before, own = 0, sum(1 << event.id for event in group)
        for older in writes[: writes.index(write.id)]:
            before |= 1 << older | self.graph.readers[older]
        return (before & ~done & ~own).bit_count()

    def step(self, number: int, group: _Group) -> Step:
        """Return the row of a group; the rows must be asked for in their order."""
        for event in group:
            self.number[event.id] = number
        old = self._replaced_by(group)
        source, notes = None, []
        read = group[0]
        if read.source is not None and self.graph.events[read.source].thread not in {INITIAL, read.thread}:
            source = self.number[read.source]
            notes.append(f"from step {source}")
        if old is not None:
            what = f"step {self.number[old.id]} ({old.location} = {old.value})"
            notes.append(f"older than {what}" if group[-1].kind == "R" else f"goes under {what}")
        return Step(
            number, read.thread, _text(self.graph, group), source, ", ".join(notes), "step" if old is None else "weak"
        )

    def _replaced_by(self, group: _Group) -> Event | None:
        """Return the write of an earlier row that comes after this one in ``mo``."""
        event = group[-1]
        if event.kind == "F" or event.waits:
            return None
        write = event if event.source is None else self.graph.events[event.source]
        own = {one.id for one in group}
        return next(
            (self.graph.events[late] for late in newer(self.graph, write) if late in self.number and late not in own),
            None,
        )


def _groups(graph: Graph) -> list[_Group]:
    groups: list[_Group] = []
    for thread in range(len(graph.counts)):
        first = graph.last(thread)
        mask = 0 if first is None else (first.sb | 1 << first.id) & ~graph.initial
        events = sorted((graph.events[number] for number in bits(mask)), key=lambda event: event.index)
        for event in events:
            if event.kind == "W" and event.locked:
                groups[-1] = (*groups[-1], event)
            else:
                groups.append((event,))
    return groups


def _text(graph: Graph, group: _Group) -> str:
    event, last = group[0], group[-1]
    if event.fence is not None:
        return f"fence {event.fence.value.removeprefix('F_')}"
    if event.life:
        return f"{event.life} {event.location}"
    assert event.order is not None
    order = _SHOWN_ORDER.get(event.order, f" {event.order.value}")
    action = None if event.at is None else event.at.action
    awaited = action.accepts if isinstance(action, Read) else None
    if event.waits:
        return f"waits for {event.location} = {awaited}"
    if len(group) > 1:
        return f"{event.location}: {event.value} -> {last.value}{order}"
    if event.kind == "W":
        return f"{event.location} = {event.value}{order}"
    freed = event.source is not None and graph.events[event.source].life == "free"
    return f"{event.location} is {'freed' if freed else event.value}{order}"
