"""What the vCPUs share: memory, shadow pages, the mmu_lock, remote flushes, the trace.

The model runs one operation at a time, so the lock is never contended and a flush never waits; what is kept of both is
*that* they happen, and that the lock is never taken twice.
"""

import struct
from types import TracebackType
from typing import Final

from shadow_mmu.policy import Policy

from .constants import REQ_TLB_FLUSH
from .memory import GuestMemory
from .pages import PageBooks, ShadowPage
from .vcpu import Vcpu

TRACE_RECORD: Final = struct.Struct("<BBHIQQ")


class MmuLock:
    """The mmu_lock as a context manager: counts acquisitions on a vCPU, by reason."""

    __slots__ = ("held", "readers")

    def __init__(self, *, readers: bool) -> None:
        self.held = False
        self.readers = readers
        """Whether several could hold it at once to look (§12)."""

    def take(self, vcpu: Vcpu, reason: str, *, looks: bool = False) -> "MmuLock":
        """Acquire the lock for ``reason``; the result is what ``with`` releases.

        ``looks``: nothing will be changed, so a lock that has readers is shared.
        """
        assert not self.held, f"mmu_lock taken for {reason} while it is held"
        self.held = True
        vcpu.locks[reason] += 1
        vcpu.lock_count += 1
        vcpu.shared_locks += looks and self.readers
        return self

    def __enter__(self) -> None:
        assert self.held

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.held = False


class SharedState:
    """One virtual machine, without its operations."""

    __slots__ = ("books", "lock", "memory", "policy", "trace", "vcpus")

    def __init__(self, memory: GuestMemory, policy: Policy, vcpus: list[Vcpu], *, trace: bool) -> None:
        self.memory = memory
        self.policy = policy
        self.vcpus = vcpus
        self.books = PageBooks()
        self.lock = MmuLock(readers=policy.lock == "rwlock")
        self.trace: list[bytes] | None = [] if trace else None

    def remote_flush(self, vcpu: Vcpu) -> None:
        """Ask every vCPU, the caller's too, to flush its TLB before its next guest access (§6).

        Nobody is inside a guest access here, so nobody is waited for and ``remote_tlb_flush`` stays 0.
        """
        vcpu.counters["remote_tlb_flush_requests"] += 1
        for other in self.vcpus:
            other.requests |= REQ_TLB_FLUSH

    def event(self, vcpu: Vcpu, kind: int, page: ShadowPage, value: int = 0) -> None:
        """Record what happened to a shadow page (§11)."""
        if self.trace is not None:
            self.trace.append(TRACE_RECORD.pack(kind, vcpu.index & 0xFF, page.level, page.role, page.gfn, value))

    def set_spte_event(self, vcpu: Vcpu, kind: int, page: ShadowPage, gfn: int, spte: int) -> None:
        """Record that a leaf was installed for ``gfn``."""
        if self.trace is not None:
            self.trace.append(TRACE_RECORD.pack(kind, vcpu.index & 0xFF, page.level, page.role, gfn, spte))
