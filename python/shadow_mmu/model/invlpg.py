"""INVLPG: one page out of the TLB and in sync in the shadow tables (A.6; ``docs/machine.md`` §9)."""

from .constants import GPTE_A, GPTE_P, INDEX, PAGE_SHIFT, PFN_MASK
from .leaf import set_spte
from .permissions import has_reserved_bits, leaf_access
from .roots import has_page, is_unsync_root
from .sync import SpteSync, sync_spte
from .vcpu import Root, Vcpu
from .vm import SharedState


def invlpg(vm: SharedState, vcpu: Vcpu, gva: int) -> None:
    """Do the INVLPG of a canonical address under this machine's policy."""
    vcpu.counters["invlpg"] += 1
    vcpu.tlb.drop(gva >> PAGE_SHIFT)
    if vm.policy.kind == "lru":
        for root in (vcpu.root, *vcpu.previous):
            invalidate_address(vm, vcpu, root, gva)
    else:
        _zap_and_refill(vm, vcpu, gva)


def invalidate_address(vm: SharedState, vcpu: Vcpu, root: Root, gva: int) -> None:
    """Sync the one entry that maps ``gva`` below a root, if it may be stale (E063, since 6.4)."""
    if not has_page(root):
        return
    with vm.lock.take(vcpu, "invlpg", looks=not is_unsync_root(vm, root)):
        page = vm.books.page_at(root.hpa)
        while page.unsync_children:
            child = vm.books.child(page, gva >> (3 + 9 * page.level) & INDEX)
            if child is None:
                return
            page = child
        if page.unsync and sync_spte(vm, vcpu, page, gva >> PAGE_SHIFT & INDEX) is SpteSync.FLUSH:
            vm.remote_flush(vcpu)


def _zap_and_refill(vm: SharedState, vcpu: Vcpu, gva: int) -> None:
    """Zap the entry and make it anew at once, as a prefetch would (E063, 4.19 to 6.3); the current root only."""
    if not has_page(vcpu.root):
        return
    with vm.lock.take(vcpu, "invlpg", looks=not is_unsync_root(vm, vcpu.root)):
        page = vm.books.page_at(vcpu.root.hpa)
        while page.unsync_children:
            child = vm.books.child(page, gva >> (3 + 9 * page.level) & INDEX)
            if child is None:
                return
            page = child
        if not page.unsync:
            return
        index = gva >> PAGE_SHIFT & INDEX
        if vm.books.drop_entry(page, index):
            vm.remote_flush(vcpu)
        gpte = vm.memory.word(page.gfn << PAGE_SHIFT | index << 3)
        gfn = (gpte & PFN_MASK) >> PAGE_SHIFT
        if gpte & GPTE_P and gpte & GPTE_A and not has_reserved_bits(vcpu.context, gpte, 1) and vm.memory.has(gfn):
            set_spte(vm, vcpu, page, index, access=leaf_access(page.access, gpte), gfn=gfn, prefetch=True)
