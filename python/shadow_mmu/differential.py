"""Running two machines in lock step, and making a difference between them small.

Any two things that satisfy :class:`Subject` can be compared: the compiled core with the model, either with a mutant of itself.
After each operation the outcomes must be equal, and after every few the whole state word for word, the events since the last
look, and the audits, which must find nothing. The model's oracle (D.5) may judge each outcome besides.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from shadow_mmu.cpu import CpuModel
from shadow_mmu.errors import ConfigError, ShadowMmuError
from shadow_mmu.model import LegalTranslations, Machine, Outcome
from shadow_mmu.model.ops import OP_RECORD
from shadow_mmu.ops import Op, Pages
from shadow_mmu.policy import Policy
from shadow_mmu.types import OpKind
from shadow_mmu.workloads.random import Stream, random_stream
from shadow_mmu.workloads.world import MachineConfig

# An outcome is (code, value, error code), or the name of the exception that the operation raised.
Result = tuple[int, int, int] | str
_WORD: Final = np.dtype("<u8")
DEFAULT_STREAM: Final = 2000


class Subject(Protocol):
    """A machine that can be compared."""

    def execute(self, op: Op, pages: Pages, /) -> Result:
        """Run one operation."""

    def state_words(self) -> bytes:
        """Return the state (``docs/machine.md`` §11)."""

    def take_trace(self) -> bytes:
        """Return the events since the last call."""

    def audit(self) -> list[str]:
        """Check the invariants."""


Maker = Callable[[MachineConfig], Subject]


def _with_its_page(op: Op, pages: Pages) -> tuple[Op, memoryview | None]:
    """Return the operation with the one page that it refers to, if any: a call looks at everything that it is given."""
    if op.kind != OpKind.HOST_PAGE:
        return op, None
    return op._replace(aux=0), pages[op.aux : op.aux + 1].reshape(-1).view(np.uint8).data


class ModelSubject:
    """The reference model as a subject; ``kind`` may be a subclass with a planted difference."""

    def __init__(self, config: MachineConfig, kind: type[Machine] = Machine) -> None:
        self.machine = kind(config.slots, config.vcpus, config.policy, config.tlb_entries, config.cpu, trace=True)
        self.state_words, self.take_trace, self.audit = (
            self.machine.state_words,
            self.machine.take_trace,
            self.machine.audit,
        )

    def execute(self, op: Op, pages: Pages, /) -> Result:
        """Run one operation."""
        try:
            code, value, error_code = self.machine.execute(*_with_its_page(op, pages))
        except ShadowMmuError as error:
            return type(error).__name__
        return code, value, error_code


class NativeSubject:
    """The compiled core as a subject; ``mutant`` names a planted defect of a test build."""

    def __init__(self, config: MachineConfig, mutant: str | None = None) -> None:
        from shadow_mmu import _native  # noqa: PLC0415  two models can be compared without the core

        policy = Policy.parse(config.policy)
        self.vm = _native.Vm(
            slots=list(config.slots),
            vcpus=config.vcpus,
            policy=policy.name,
            **policy.options,
            tlb_entries=config.tlb_entries,
            cpu=config.cpu,
            trace=True,
            lock_times=False,
            cr3_times=False,
            mutant=mutant,
        )
        self.state_words, self.take_trace, self.audit = self.vm.state_words, self.vm.take_trace, self.vm.audit

    def execute(self, op: Op, pages: Pages, /) -> Result:
        """Run one operation."""
        try:
            one, page = _with_its_page(op, pages)
            return self.vm.execute(OP_RECORD.pack(*one), page)
        except ShadowMmuError as error:
            return type(error).__name__


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where two machines part.

    Attributes
    ----------
    index : int
        The operation after which it showed.
    what : str
        ``outcome``, ``state``, ``trace``, ``audit`` or ``oracle``.
    text : str
        What differs.

    """

    index: int
    what: str
    text: str

    def __str__(self) -> str:
        return f"operation {self.index}: {self.what}: {self.text}"


def compare(
    stream: Stream, left: Maker, right: Maker, *, every: int = 1, audit_every: int = 0, oracle: bool = False
) -> Divergence | None:
    """Run a stream on two machines; returns the first difference.

    Parameters
    ----------
    stream : Stream
    left, right : callable
        Make a machine from a configuration; texts call what they make "left" and "right".
    every : int
        State and events are compared after so many operations, and at the end.
    audit_every : int
        Both audit after so many operations; 0 is never.
    oracle : bool
        Let the model's oracle judge the left machine's outcomes.

    """
    one, two = left(stream.config), right(stream.config)
    config = stream.config
    legal = LegalTranslations(config.slots, config.vcpus, config.cpu, policy=config.policy) if oracle else None
    pages = np.array(stream.pages, _WORD).reshape(-1, 512)
    last = len(stream.ops) - 1
    for index, op in enumerate(stream.ops):
        first, second = one.execute(op, pages), two.execute(op, pages)
        if first != second:
            return Divergence(index, "outcome", f"{op!r}: {_shown(first)} left, {_shown(second)} right")
        if legal is not None and not isinstance(first, str):
            verdict = legal.judge(op, Outcome(*first))
            if verdict is not None:
                return Divergence(index, "oracle", f"{op!r}: {verdict}")
            legal.observe(op, Outcome(*first), pages)
        if (index + 1) % every == 0 or index == last:
            found = _compare_state(one, two)
            if found is not None:
                return Divergence(index, *found)
        if audit_every and (index + 1) % audit_every == 0:
            violations = [*one.audit(), *two.audit()]
            if violations:
                return Divergence(index, "audit", violations[0])
    return None


def _shown(result: Result) -> str:
    return result if isinstance(result, str) else f"code {result[0]} value {result[1]:#x} error {result[2]:#x}"


def _compare_state(one: Subject, two: Subject) -> tuple[str, str] | None:
    events = one.take_trace(), two.take_trace()
    if events[0] != events[1]:
        return "trace", f"{_events(events[0])} left, {_events(events[1])} right"
    states = one.state_words(), two.state_words()
    if states[0] != states[1]:
        words = [np.frombuffer(state, _WORD) for state in states]
        shared = min(map(len, words))
        differing = np.flatnonzero(words[0][:shared] != words[1][:shared])
        if not differing.size:
            return "state", f"{len(words[0])} words left, {len(words[1])} right"
        at = int(differing[0])
        return "state", f"word {at} is {int(words[0][at]):#x} left, {int(words[1][at]):#x} right"
    return None


def _events(trace: bytes) -> str:
    from shadow_mmu.ops import TRACE  # noqa: PLC0415  only when there is something to tell

    return str(np.frombuffer(trace, TRACE).tolist())


def shrink(stream: Stream, diverges: Callable[[Stream], Divergence | None]) -> Stream:
    """Drop operations for as long as the stream still diverges (delta debugging).

    Parameters
    ----------
    stream : Stream
        One that diverges.
    diverges : callable
        Runs a stream; returns what it finds.

    Raises
    ------
    ConfigError
        The stream does not diverge.

    """
    found = diverges(stream)
    if found is None:
        raise ConfigError("a stream that does not diverge cannot be made smaller")
    ops = stream.ops[: found.index + 1]
    chunk = max(len(ops) // 2, 1)
    while True:
        start = 0
        while start < len(ops):
            shorter = (*ops[:start], *ops[start + chunk :])
            found = diverges(Stream(stream.config, shorter, stream.pages)) if shorter else None
            if found is None:
                start += chunk
            else:
                # What follows the difference is not needed either.
                ops = shorter[: found.index + 1]
        if chunk == 1:
            return _without_unused_pages(Stream(stream.config, ops, stream.pages))
        chunk = max(chunk // 2, 1)


def _without_unused_pages(stream: Stream) -> Stream:
    rows = sorted({op.aux for op in stream.ops if op.kind == OpKind.HOST_PAGE and op.aux < len(stream.pages)})
    number = {row: position for position, row in enumerate(rows)}
    ops = tuple(op._replace(aux=number.get(op.aux, 0)) if op.kind == OpKind.HOST_PAGE else op for op in stream.ops)
    return Stream(stream.config, ops, tuple(stream.pages[row] for row in rows))


def dump_stream(stream: Stream, found: str) -> str:
    """Return a stream as JSON text: what was found, the machine, the operations (one a line), the pages without zeroes."""
    ops = ",\n  ".join(json.dumps([OpKind(op.kind).name, *map(int, op[1:])]) for op in stream.ops)
    pages = ",\n  ".join(json.dumps([pair for pair in enumerate(page) if pair[1]]) for page in stream.pages)
    return (
        f'{{"found": {json.dumps(found)},\n "config": {json.dumps(asdict(stream.config))},\n'
        f' "ops": [\n  {ops}\n ],\n "pages": [\n  {pages}\n ]\n}}'
    )


def load_stream(path: Path) -> Stream:
    """Read what :func:`dump_stream` wrote.

    Raises
    ------
    ConfigError
        The file holds something else.

    """
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
        config = raw["config"]
        config["slots"] = tuple((gpa, length, any(flags)) for gpa, length, *flags in config["slots"])
        ops = tuple(Op(OpKind[name], *fields) for name, *fields in raw["ops"])
        config["cpu"] = CpuModel(**config["cpu"])
        return Stream(MachineConfig(**config), ops, tuple(map(_dense, raw["pages"])))
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"{path}: not a stream of operations ({error})") from error


def _dense(sparse: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    page = [0] * 512
    for index, word in sparse:
        page[index] = word
    return tuple(page)


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference, made small."""

    seed: int
    stream: Stream
    divergence: Divergence

    def __str__(self) -> str:
        ops = "\n".join(f"  {op!r}" for op in self.stream.ops)
        return f"seed {self.seed}: {self.divergence}\n{self.stream.config}\n{ops}"


def hunt(
    operations: int,
    *,
    seed: int = 0,
    left: Maker = NativeSubject,
    right: Maker = ModelSubject,
    every: int = 1,
    stream_length: int = DEFAULT_STREAM,
    progress: Callable[[int], object] | None = None,
) -> Finding | None:
    """Run random streams until two machines differ or so many operations are done; returns the shrunk difference.

    Parameters
    ----------
    operations : int
        How many in all, in streams of ``stream_length``.
    seed : int
        Of the first stream; the next has the next number.
    left, right : callable
        What to compare: the core and the model unless told otherwise.
    every : int
        State and events are compared after so many operations.
    stream_length : int
    progress : callable, optional
        Called after each stream with the number of operations done.

    """
    done = number = 0
    while done < operations:
        length = min(stream_length, operations - done)
        stream = random_stream(seed + number, length)
        found = compare(
            stream, left, right, every=every, audit_every=max(length // 4, 1), oracle=not stream.mixes_widths
        )
        if found is not None:
            return _finding(seed + number, stream, found, left, right)
        done, number = done + length, number + 1
        if progress is not None:
            progress(done)
    return None


def _finding(seed: int, stream: Stream, found: Divergence, left: Maker, right: Maker) -> Finding:
    cut = Stream(stream.config, stream.ops[: found.index + 1], stream.pages)
    audits = found.what == "audit"

    def diverges(shorter: Stream) -> Divergence | None:
        return compare(shorter, left, right, every=64, audit_every=1 if audits else 0, oracle=found.what == "oracle")

    small = shrink(cut, diverges)
    again = compare(small, left, right, audit_every=1 if audits else 0, oracle=found.what == "oracle")
    return Finding(seed, small, again or found)
