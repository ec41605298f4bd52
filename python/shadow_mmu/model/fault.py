"""Page faults: the guest walk, then the shadow path, under the lock, down to one leaf (C.4; ``docs/machine.md`` §7)."""

from dataclasses import dataclass

from .constants import (
    ACC_U,
    ACC_W,
    ACC_X,
    INDEX,
    PAGE_SHIFT,
    PF_P,
    REQ_FREE_OBSOLETE_ROOTS,
)
from .leaf import FaultResult, set_spte
from .lookup import get_child, link
from .pae_roots import is_pae
from .pages import ShadowPage
from .permissions import Access
from .role import key_of as role_key
from .roots import has_page, root_page
from .sync import sync_children
from .vcpu import Vcpu
from .vm import SharedState
from .walk import GuestWalk, entry_gpa, read_entry, walk


@dataclass(frozen=True, slots=True)
class GuestFault:
    """The guest's own tables refuse the access: #PF with this error code."""

    code: int


@dataclass(frozen=True, slots=True)
class Mmio:
    """The access reaches a frame in no memslot, or writes to a read-only one."""

    gfn: int


@dataclass(frozen=True, slots=True)
class Emulate:
    """The instruction is emulated: it writes to a guest table that may not be written, or the hardware may not set A and D."""

    gfn: int


Resolution = FaultResult | GuestFault | Mmio | Emulate


def handle_page_fault(vm: SharedState, vcpu: Vcpu, gva: int, access: Access, code: int) -> Resolution:
    """Resolve one exit of the hardware walk; ``code`` is its error code. RETRY, FIXED and SPURIOUS try the access again."""
    counters = vcpu.counters
    counters["pf_taken"] += 1
    guest = walk(vm.memory, vcpu.context, vcpu.first_table(gva), gva, access)
    if isinstance(guest, int):
        counters["pf_guest"] += 1
        return GuestFault(guest)
    if access.write and code & PF_P and guest.gfn in vm.books.write_track:
        _clear_flooding_on_path(vm, vcpu, gva)
        counters["pf_emulate"] += 1
        return Emulate(guest.gfn)
    if not reaches_memory(vm, guest.gfn, access):
        counters["mmio_exits"] += 1
        return Mmio(guest.gfn)
    if _must_emulate(vcpu, guest, access):
        counters["pf_emulate"] += 1
        return Emulate(guest.gfn)
    pte_access = _access_without_write_protect(vcpu, guest.access, access)
    with vm.lock.take(vcpu, "fault"):
        result = map_walk(vm, vcpu, gva, guest._replace(access=pte_access), write=access.write)
    count(vcpu, result)
    return Emulate(guest.gfn) if result is FaultResult.EMULATE else result


def reaches_memory(vm: SharedState, gfn: int, access: Access) -> bool:
    """Whether an access is one to memory: there is a memslot, and a write is allowed in it (E107)."""
    return vm.memory.has(gfn) and not (access.write and vm.memory.is_read_only(gfn))


def count(vcpu: Vcpu, result: FaultResult) -> None:
    """Count how a fault was resolved. One that has to be tried again counts nothing."""
    if result is not FaultResult.RETRY:
        vcpu.counters[f"pf_{result.value}"] += 1


def _clear_flooding_on_path(vm: SharedState, vcpu: Vcpu, gva: int) -> None:
    """Zero the flooding count of the pages that the access goes through: they are in use as tables (no lock)."""
    page = root_page(vm, vcpu.root, gva)
    while page is not None:
        page.flooding = 0
        page = vm.books.child(page, _index(gva, page.level)) if page.level > 1 else None


def _must_emulate(vcpu: Vcpu, guest: GuestWalk, access: Access) -> bool:
    """Whether a write that CR0.WP=0 permits is done for the guest, because of protection keys.

    A user page that is read-only or whose key disables writes: the hardware runs with WP=1 and would refuse it, and a page made
    a supervisor page would have no key any more.
    """
    context = vcpu.context
    if not context.keys or context.wp or not access.write or access.user or not guest.access & ACC_U:
        return False
    return not guest.access & ACC_W or bool(context.pkru >> 2 * guest.key & 2)


def _access_without_write_protect(vcpu: Vcpu, acc: int, access: Access) -> int:
    """Rights of a leaf that a supervisor writes with CR0.WP=0 (B.5).

    The hardware has no "writable for the supervisor only": the page becomes a supervisor page, not executable under SMEP.
    """
    context = vcpu.context
    if not access.write or access.user or acc & ACC_W or context.wp:
        return acc
    acc = (acc | ACC_W) & ~ACC_U
    return acc & ~ACC_X if context.smep else acc


def map_walk(vm: SharedState, vcpu: Vcpu, gva: int, guest: GuestWalk, *, write: bool) -> FaultResult:
    """Build the shadow path of a successful guest walk (KVM: fetch)."""
    if is_pae(vcpu.root) and vcpu.requests & REQ_FREE_OBSOLETE_ROOTS:
        return FaultResult.RETRY  # a root without a page of its own is as obsolete as the request says
    page = root_page(vm, vcpu.root, gva)
    if page is None:
        # The dummy root, or a PDPTR whose table was in no slot: it may exist by now, so the root is loaded anew (E016).
        vcpu.requests |= REQ_FREE_OBSOLETE_ROOTS
        return FaultResult.RETRY
    if (page.invalid and has_page(vcpu.root)) or _gpte_changed(vm, vcpu, guest, gva, page.level):
        return FaultResult.RETRY
    while page.level > guest.level:
        page.flooding = 0
        index, below = _index(gva, page.level), page.level - 1
        table, rights = guest.table_gfn[below], guest.parent_access[below]
        child = get_child(vm, vcpu, page, index, gfn=table, direct=False, access=rights)
        if child is not None and child.unsync_children:
            # The guest need not flush after non-present -> present: stale entries must not come into reach (E142, F-14).
            sync_children(vm, vcpu, child)
        # The table is write-protected or unsync-tracked from here on: what it holds now counts.
        if _gpte_changed(vm, vcpu, guest, gva, below):
            return FaultResult.RETRY
        page = _descend(vm, vcpu, page, index, child)
    while page.level > 1:
        # A large guest leaf over 4 KiB host pages: direct pages split it (E132).
        page.flooding = 0
        index = _index(gva, page.level)
        linked = vm.books.child(page, index)
        if linked is not None and linked.direct and (linked.access, role_key(linked.role)) != (guest.access, guest.key):
            vm.books.drop_link(page, index)  # validate_direct_spte (E133)
            vm.remote_flush(vcpu)
        base = guest.gfn & ~((1 << 9 * (page.level - 1)) - 1)
        child = get_child(vm, vcpu, page, index, gfn=base, direct=True, access=guest.access, key=guest.key)
        page = _descend(vm, vcpu, page, index, child)
    return set_spte(
        vm, vcpu, page, _index(gva, 1), access=guest.access, gfn=guest.gfn, key=guest.key, write_fault=write
    )


def _descend(vm: SharedState, vcpu: Vcpu, page: ShadowPage, index: int, child: ShadowPage | None) -> ShadowPage:
    """Link a child that is not linked yet, and go down to it."""
    if child is None:
        child = vm.books.child(page, index)
        assert child is not None
    else:
        link(vm, vcpu, page, index, child)
    return child


def _gpte_changed(vm: SharedState, vcpu: Vcpu, guest: GuestWalk, gva: int, level: int) -> bool:
    """Whether an entry that the walk used holds something else by now."""
    if level not in guest.gptes:
        return False  # without paging there is none
    gpa = entry_gpa(vcpu.context, guest.table_gfn[level], gva, level)
    return read_entry(vm.memory, vcpu.context, gpa) != guest.gptes[level]


def _index(gva: int, level: int) -> int:
    return gva >> (3 + 9 * level) & INDEX


assert PAGE_SHIFT == 3 + 9
