"""The state of one vCPU: registers, roots, requests, TLB, statistics. No behaviour but what keeps it consistent."""

from dataclasses import dataclass, field, replace
from typing import Final

from shadow_mmu.cpu import CpuModel
from shadow_mmu.policy import Policy

from .constants import (
    ACC_U,
    ACCESS_FLAGS,
    COUNTERS,
    FETCH,
    GPTE_P,
    INVALID_ROOT,
    LOCK_REASONS,
    PAGE_SHIFT,
    PFN_MASK,
    READ,
    WORD,
    WRITE,
)
from .permissions import Access, Context, access_code, key_denies, make_access, make_context
from .registers import PagingMode, Registers
from .role import TDP_ROLE, root_role
from .spte import NX, D, P, U, W
from .tlb import Tlb

_KIND_COUNT: Final = 16


NO_ENTRIES: Final = (0, 0, 0, 0)


@dataclass(slots=True)
class Root:
    """A root and the CR3 value that it was loaded for. Only ``hpa`` tells whether it is valid (A.5)."""

    pgd: int = 0
    hpa: int = INVALID_ROOT
    entries: tuple[int, ...] = NO_ENTRIES
    """Under a PAE root the pages of the four GiB as host-physical addresses, 0 where there is none (KVM: pae_root)."""
    pdptrs: tuple[int, ...] = NO_ENTRIES
    """What a PAE root was made of: the PDPTRs of a PAE guest, zeroes for another."""


@dataclass(slots=True)
class Cr3Stats:
    """CR3 writes after a vCPU's first, by class (``docs/machine.md`` §8)."""

    same: int = 0
    same_locked: int = 0
    lockless: int = 0
    locked_miss: int = 0
    locked_unsync: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the classes and their sums."""
        locked = self.locked_miss + self.locked_unsync
        return {
            "writes": self.same + self.lockless + locked,
            "same": self.same,
            "same_locked": self.same_locked,
            "lockless": self.lockless,
            "locked": locked,
            "locked_miss": self.locked_miss,
            "locked_unsync": self.locked_unsync,
        }


@dataclass(slots=True)
class UnsettledCr3Write:
    """A CR3 write whose class is not known yet: the next guest entry may still take the lock for it."""

    same: bool
    missed: bool
    locks: int

    def settle(self, stats: Cr3Stats) -> None:
        """Count the write in its class."""
        if self.same:
            stats.same += 1
            stats.same_locked += bool(self.locks)
        elif not self.locks:
            stats.lockless += 1
        elif self.missed:
            stats.locked_miss += 1
        else:
            stats.locked_unsync += 1


@dataclass(slots=True)
class AccessRights:
    """What one kind of access needs of a leaf SPTE, worked out once for the registers as they are."""

    need: int
    """Bits that must be set."""
    forbid: int
    """Bits that must be clear."""
    denied_keys: int
    """Protection keys, a bit each, whose user pages PKRU denies."""
    access: Access
    code: int
    """The error-code bits of the access itself."""


@dataclass(slots=True)
class Vcpu:
    """One virtual CPU."""

    index: int
    policy: Policy
    cpu: CpuModel
    tlb: Tlb
    registers: Registers = field(init=False)
    pdptrs: tuple[int, ...] = NO_ENTRIES
    """The four entries that PAE paging starts from, as they were when they were loaded (E101)."""
    requests: int = 0
    shut_down: bool = False
    root: Root = field(default_factory=Root)
    previous: list[Root] = field(default_factory=list)
    """The cached roots, most recent first. Under ``seed`` the tag of the only one is ``prev_cr3`` (A.1)."""
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    locks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LOCK_REASONS, 0))
    lock_count: int = 0
    shared_locks: int = 0
    cr3_written: bool = False
    cr3_unsettled: UnsettledCr3Write | None = None
    cr3_stats: Cr3Stats = field(default_factory=Cr3Stats)
    unsync_marks: int = 0
    sync_pages: int = 0
    sync_pages_unchanged: int = 0
    context: Context = field(init=False)
    root_role: int = field(init=False, default=0)
    canonical: int = field(init=False, default=0)
    """Highest lower-half address."""
    rights: list[AccessRights | None] = field(init=False, default_factory=list)
    """By access kind << 3 | flags, filled on first use."""

    def __post_init__(self) -> None:
        self.registers = Registers.booted(self.cpu)
        self.previous = [Root(WORD, INVALID_ROOT) for _ in range(self.policy.previous)]
        self.update_context()

    def update_context(self) -> None:
        """Derive from the registers what depends on them."""
        self.context = make_context(self.registers, self.cpu)
        self.root_role = TDP_ROLE if self.tdp else root_role(self.context)
        # Without long mode there are no other addresses: what a 32-bit instruction cannot form does not get here.
        self.canonical = (1 << self.context.address_bits - (1 if self.context.long else 0)) - 1
        self.rights = [None] * (_KIND_COUNT << 3)

    @property
    def tdp(self) -> bool:
        """Whether the guest's tables are walked by the hardware, and the roots are direct (:mod:`.tdp`)."""
        return self.policy.mmu == "tdp"

    def first_table(self, gva: int) -> int | None:
        """Return the frame of the first table that a guest walk reads; ``None`` if its PDPTR is not present (B.2 step 1)."""
        if self.context.mode is not PagingMode.PAE:
            return (self.registers.cr3 & PFN_MASK) >> PAGE_SHIFT
        pdptr = self.pdptrs[gva >> 30]
        return (pdptr & PFN_MASK) >> PAGE_SHIFT if pdptr & GPTE_P else None

    @property
    def made_of(self) -> tuple[int, ...]:
        """The PDPTRs that a root of four entries is made of: those loaded, zeroes where the mode has none."""
        return self.pdptrs if self.context.mode is PagingMode.PAE else NO_ENTRIES

    def set_cr3(self, value: int) -> None:
        """Store CR3; nothing of the context depends on it."""
        self.registers = replace(self.registers, cr3=value)

    def rights_of(self, kind: int, flags: int) -> AccessRights:
        """Return what an access of this kind (READ, WRITE or FETCH) and these flags needs."""
        key = kind << 3 | flags & ACCESS_FLAGS
        rights = self.rights[key]
        if rights is None:
            rights = self.rights[key] = self._make_rights(kind, flags)
        return rights

    def _make_rights(self, kind: int, flags: int) -> AccessRights:
        """Work out the rule of ``docs/machine.md`` §5 step 3 as two masks."""
        assert kind in (READ, WRITE, FETCH)
        access = make_access(kind, flags)
        need, forbid = P, 0
        if access.write and self.tdp:
            # The guest's own rights and its own D: without CR0.WP a supervisor writes through an entry without W.
            need |= D | (W if access.user or self.context.wp else 0)
        elif access.write:
            need |= W
        if access.fetch:
            forbid |= NX
        if access.user:
            need |= U
        elif access.fetch:
            forbid |= U if self.context.smep else 0
        elif not access.override:
            forbid |= U if self.context.smap else 0
        # Over shadow tables the hardware runs with CR0.WP=1, so that a write-disabled key stops the supervisor too.
        hardware = self.context if self.tdp else replace(self.context, wp=True)
        denied = sum(1 << key for key in range(16) if key_denies(hardware, ACC_U, key, access))
        return AccessRights(need, forbid, denied, access, access_code(access))

    def settle_cr3_write(self) -> None:
        """Class the last CR3 write: no lock that is taken from here on is on its account."""
        if self.cr3_unsettled is not None:
            self.cr3_unsettled.settle(self.cr3_stats)
            self.cr3_unsettled = None
