"""Two-dimensional paging: the hardware walks the guest's own tables, each address in them through direct ones (§15; E018, E044).

No guest table is shadowed, so nothing is write-protected, unsync or stale, and what the guest does to its tables, its registers
and its TLB costs no exit. What costs one is a guest-physical address without a direct entry (KVM: an EPT violation).
"""

from typing import NamedTuple

from . import spte as sptes
from .constants import (
    ACC_ALL,
    CR0_WP,
    GPTE_D,
    INDEX,
    PAGE_OFFSET,
    PAGE_SHIFT,
)
from .fault import Emulate, GuestFault, Mmio, count, map_walk, reaches_memory
from .leaf import FaultResult
from .permissions import Access
from .registers import Registers
from .roots import root_page
from .vcpu import Vcpu
from .vm import SharedState
from .walk import GuestWalk, walk


class Violation(NamedTuple):
    """An address that the direct tables do not map, or not for writing."""

    gpa: int
    table: int | None
    """An entry of a guest table is there: the guest's error code if that table is in no memslot. ``None``: the page itself is."""
    marks: bool = False
    """The hardware wanted to set A or D in that entry, and may not write it (E107; SDM vol. 3C, "EPT Violations")."""


class NestedMemory:
    """Guest memory as the hardware's walk of the guest's tables sees it: through the direct tables.

    Parameters
    ----------
    vm, vcpu : SharedState, Vcpu
        Where, and whose direct root.

    """

    __slots__ = ("_vcpu", "_vm", "missing", "unmarked")

    def __init__(self, vm: SharedState, vcpu: Vcpu) -> None:
        self._vm = vm
        self._vcpu = vcpu
        self.missing: int | None = None
        """The first address that was not mapped."""
        self.unmarked: int | None = None
        """The first entry in which A or D could not be set."""

    def leaf(self, gpa: int) -> int:
        """Return the direct leaf of a guest-physical address: all rights, W where the guest may write; 0 if there is none."""
        page = root_page(self._vm, self._vcpu.root, gpa)
        # Four levels translate 48 bits.
        while page is not None and not gpa >> 48:
            index = gpa >> (3 + 9 * page.level) & INDEX
            if page.level == 1:
                if index in page.sptes:
                    return page.sptes[index]
                break
            page = self._vm.books.child(page, index)
        if self.missing is None:
            self.missing = gpa
        return 0

    def translate(self, gpa: int) -> int | None:
        """Return the memory behind a guest-physical address; ``None`` if no direct entry maps it."""
        leaf = self.leaf(gpa)
        return sptes.leaf_gfn(leaf) << PAGE_SHIFT | gpa & PAGE_OFFSET if leaf else None

    def may_mark(self, gpa: int) -> bool:
        """Whether the hardware may set A and D in an entry; the first in which it may not is kept."""
        if self.leaf(gpa) & sptes.W:
            return True
        if self.unmarked is None:
            self.unmarked = gpa
        return False

    def has(self, gfn: int) -> bool:
        """Whether the frame of a guest table is mapped."""
        return self.translate(gfn << PAGE_SHIFT) is not None

    def load(self, gpa: int, size: int) -> int:
        """Read an entry of a table that is mapped."""
        return self._vm.memory.load(self._reach(gpa), size)

    def word(self, gpa: int) -> int:
        """Read an entry of 8 bytes of a table that is mapped."""
        return self._vm.memory.word(self._reach(gpa))

    def store(self, gpa: int, value: int, size: int) -> None:
        """Write an entry of a table that is mapped."""
        self._vm.memory.store(self._reach(gpa), value, size)

    def _reach(self, gpa: int) -> int:
        reached = self.translate(gpa)
        assert reached is not None, f"gpa {gpa:#x} is not mapped"
        return reached


def walk_in_two_dimensions(vm: SharedState, vcpu: Vcpu, gva: int, access: Access) -> int | GuestFault | Violation:
    """Translate inside the guest: what the TLB keeps, the guest's own fault, which is no exit, or the exit."""
    memory = NestedMemory(vm, vcpu)
    guest = walk(memory, vcpu.context, vcpu.first_table(gva), gva, access)
    if isinstance(guest, int):
        return GuestFault(guest) if memory.missing is None else Violation(memory.missing, guest)
    if memory.unmarked is not None:
        return Violation(memory.unmarked, None, marks=True)
    gpa = guest.gfn << PAGE_SHIFT | gva & PAGE_OFFSET
    leaf = memory.leaf(gpa)
    if not leaf or (access.write and not leaf & sptes.W):
        return Violation(gpa, None)
    # Without paging there is no D: as if it were set. Without D no write hits, whatever CR0.WP lets a supervisor do: a page that the
    # guest may not write has none (E107).
    dirty = bool(leaf & sptes.W) and (not guest.gptes or bool(guest.gptes[guest.level] & GPTE_D))
    return sptes.combined(sptes.leaf_gfn(leaf), guest.access, guest.key, dirty=dirty)


def handle_violation(
    vm: SharedState, vcpu: Vcpu, violation: Violation, gva: int, access: Access
) -> FaultResult | GuestFault | Mmio | Emulate:
    """Resolve one exit: a direct entry is made, under the lock, if there is memory behind the address and it may be done."""
    vcpu.counters["pf_taken"] += 1
    if violation.marks:
        return _emulate_unmarked(vm, vcpu, gva, access)
    gfn = violation.gpa >> PAGE_SHIFT
    if violation.table is not None and not vm.memory.has(gfn):
        vcpu.counters["pf_guest"] += 1
        return GuestFault(violation.table)
    if violation.table is None and not reaches_memory(vm, gfn, access):
        vcpu.counters["mmio_exits"] += 1
        return Mmio(gfn)
    with vm.lock.take(vcpu, "fault"):
        # No guest entry led here: a walk whose leaf is above the root leaves the whole path to direct pages.
        walked = GuestWalk(4, gfn, ACC_ALL, {}, {}, {}, 0)
        result = map_walk(vm, vcpu, violation.gpa, walked, write=access.write)
    count(vcpu, result)
    return result


def _emulate_unmarked(vm: SharedState, vcpu: Vcpu, gva: int, access: Access) -> GuestFault | Emulate:
    """Make an access for the guest, by a walk of the hypervisor's own, which leaves the A and D that it may not set (E107)."""
    guest = walk(vm.memory, vcpu.context, vcpu.first_table(gva), gva, access)
    if isinstance(guest, int):
        vcpu.counters["pf_guest"] += 1
        return GuestFault(guest)
    vcpu.counters["pf_emulate"] += 1
    return Emulate(guest.gfn)


def keeps_root(vcpu: Vcpu, old: Registers) -> bool:
    """Whether a register write leaves the roots: since 6.4 a change of CR0.WP alone does, which a direct role does not have."""
    return vcpu.tdp and vcpu.policy.kind == "lru" and old.cr0 ^ vcpu.registers.cr0 == CR0_WP
