"""Making and installing leaf entries (C.4: make_spte, mmu_set_spte; ``docs/machine.md`` §7)."""

from enum import Enum

from . import spte as sptes
from .constants import ACC_W, EVENT_SET_SPTE, RMAP_RECYCLE
from .pages import ShadowPage
from .unsync import try_to_unsync
from .vcpu import Vcpu
from .vm import SharedState


class FaultResult(Enum):
    """How a page fault was resolved (KVM: RET_PF_*)."""

    RETRY = "retry"
    FIXED = "fixed"
    SPURIOUS = "spurious"
    EMULATE = "emulate"


def make_spte(
    vm: SharedState,
    vcpu: Vcpu,
    access: int,
    gfn: int,
    *,
    key: int,
    old: int,
    prefetch: bool,
    synchronizing: bool = False,
) -> tuple[int, bool]:
    """Return the leaf for these rights, and whether W was refused because the frame holds a guest table."""
    spte = sptes.read_only_leaf(gfn, access, key, accessed=not prefetch or synchronizing)
    if vm.memory.is_read_only(gfn):
        return spte & ~sptes.HOST_WRITABLE, False  # and what no entry lets the guest write never goes unsync (E107)
    if not access & ACC_W:
        return spte, False
    # Over a writable leaf nothing needs to be looked up: whatever shadows this frame is unsync already.
    if old & sptes.W or try_to_unsync(vm, vcpu, gfn, synchronizing=synchronizing, prefetch=prefetch):
        return spte | sptes.WRITABLE, False
    return spte, True


def set_spte(
    vm: SharedState,
    vcpu: Vcpu,
    page: ShadowPage,
    index: int,
    *,
    access: int,
    gfn: int,
    key: int,
    write_fault: bool = False,
    prefetch: bool = False,
) -> FaultResult:
    """Install the leaf that maps ``gfn`` with ``access`` at a level-1 entry."""
    books = vm.books
    old = page.sptes.get(index, 0)
    flush = False
    if old:
        if sptes.leaf_gfn(old) != gfn:
            books.drop_leaf(page, index)
            old, flush = 0, True
        elif prefetch:
            return FaultResult.SPURIOUS
    new, write_protected = make_spte(vm, vcpu, access, gfn, key=key, old=old, prefetch=prefetch)
    if new == old:
        result = FaultResult.SPURIOUS
    else:
        page.sptes[index] = new
        vm.set_spte_event(vcpu, EVENT_SET_SPTE, page, gfn, new)
        flush = flush or sptes.loses_write(old, new)
        result = FaultResult.FIXED
    if write_protected and write_fault:
        result = FaultResult.EMULATE
    if flush:
        vm.remote_flush(vcpu)
    if old:
        page.translations[index] = (gfn, access)
    elif books.add_leaf(page, index, gfn, access) > RMAP_RECYCLE:
        books.drop_all_leaves(gfn)
        vcpu.counters["mmu_recycled"] += 1
        vm.remote_flush(vcpu)
    return result
