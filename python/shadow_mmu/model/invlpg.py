"""INVLPG: one page out of the TLB and in sync in the shadow tables (A.6; ``docs/machine.md`` §9)."""

from .constants import DUMMY_ROOT, GPTE_A, GPTE_P, INDEX, INVALID_ROOT, PAGE_SHIFT, PFN_MASK
from .leaf import set_spte
from .pages import ShadowPage
from .permissions import has_reserved_bits, key_of, leaf_access
from .registers import PagingMode
from .role import gpte_gpa
from .roots import is_clean_root, root_page
from .sync import SpteSync, sync_spte
from .vcpu import Root, Vcpu
from .vm import SharedState
from .walk import read_entry


def invlpg(vm: SharedState, vcpu: Vcpu, gva: int) -> None:
    """Do the INVLPG of a canonical address under this machine's policy."""
    vcpu.counters["invlpg"] += 1
    vcpu.tlb.drop(gva >> PAGE_SHIFT)
    if vcpu.tdp:
        return  # nothing below a direct root is made from guest tables, and KVM has no sync_spte then
    if vm.policy.kind == "lru":
        for root in (vcpu.root, *vcpu.previous):
            invalidate_address(vm, vcpu, root, gva)
    else:
        _zap_and_refill(vm, vcpu, gva)


def invalidate_address(vm: SharedState, vcpu: Vcpu, root: Root, gva: int) -> None:
    """Sync the one entry that maps ``gva`` below a root, if it may be stale (E063, since 6.4)."""
    if root.hpa in (INVALID_ROOT, DUMMY_ROOT) or vcpu.tdp or vcpu.context.mode is PagingMode.NONE:
        return
    with vm.lock.take(vcpu, "invlpg", looks=is_clean_root(vm, root)):
        page = _last_page(vm, root, gva)
        if page is not None and page.unsync and sync_spte(vm, vcpu, page, gva >> PAGE_SHIFT & INDEX) is SpteSync.FLUSH:
            vm.remote_flush(vcpu)


def _last_page(vm: SharedState, root: Root, gva: int) -> ShadowPage | None:
    """Go down from the root as long as something below is unsync; ``None`` where an entry on the way is empty."""
    page = root_page(vm, root, gva)
    while page is not None and page.unsync_children:
        page = vm.books.child(page, gva >> (3 + 9 * page.level) & INDEX)
    return page


def _zap_and_refill(vm: SharedState, vcpu: Vcpu, gva: int) -> None:
    """Zap the entry and make it anew at once, as a prefetch would (E063, 4.19 to 6.3); the current root only."""
    if vcpu.root.hpa in (INVALID_ROOT, DUMMY_ROOT) or vcpu.context.mode is PagingMode.NONE:
        return
    with vm.lock.take(vcpu, "invlpg", looks=is_clean_root(vm, vcpu.root)):
        page = _last_page(vm, vcpu.root, gva)
        if page is None or not page.unsync:
            return
        index = gva >> PAGE_SHIFT & INDEX
        if vm.books.drop_entry(page, index):
            vm.remote_flush(vcpu)
        gpte = read_entry(vm.memory, vcpu.context, gpte_gpa(page.role, page.gfn, index))
        gfn = (gpte & PFN_MASK) >> PAGE_SHIFT
        # What is fetched ahead must be writable for the host: nothing of a read-only memslot is.
        there = vm.memory.has(gfn) and not vm.memory.is_read_only(gfn)
        if there and gpte & GPTE_P and gpte & GPTE_A and not has_reserved_bits(vcpu.context, gpte, 1):
            key = key_of(vcpu.context, gpte)
            set_spte(vm, vcpu, page, index, access=leaf_access(page.access, gpte), gfn=gfn, key=key, prefetch=True)
