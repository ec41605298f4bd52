"""Roots: loading and freeing them, and what a CR3 write does under each of the three policies (A.1, A.5; §8)."""

from .constants import (
    DUMMY_ROOT,
    INVALID_ROOT,
    PAGE_SHIFT,
    PFN_MASK,
    REQ_LOAD_MMU_PGD,
    REQ_MMU_SYNC,
    REQ_TLB_FLUSH,
    REQ_TLB_FLUSH_CURRENT,
    REQ_TRIPLE_FAULT,
    WORD,
)
from .lookup import get_page
from .pages import ShadowPage
from .sync import sync_children
from .vcpu import Root, Vcpu
from .vm import SharedState
from .zap import ZapList, commit_zap, prepare_zap


def has_page(root: Root) -> bool:
    """Whether a shadow page stands behind the root: it is neither invalid nor the dummy."""
    return root.hpa not in (INVALID_ROOT, DUMMY_ROOT)


def is_unsync_root(vm: SharedState, root: Root) -> bool:
    """Test the root's flags, without the lock (E050)."""
    if not has_page(root):
        return False
    page = vm.books.page_at(root.hpa)
    return page.unsync or page.unsync_children > 0


def sync_roots(vm: SharedState, vcpu: Vcpu) -> None:
    """Bring everything below the current root in line with the guest's tables.

    Without the lock if the root's flags are clear; ``locked``, the kernel before the patch, always takes it.
    """
    unsync = is_unsync_root(vm, vcpu.root)
    if not has_page(vcpu.root) or (vm.policy.kind != "locked" and not unsync):
        return
    with vm.lock.take(vcpu, "sync", looks=not unsync):
        sync_children(vm, vcpu, vm.books.page_at(vcpu.root.hpa))


def free_roots(vm: SharedState, vcpu: Vcpu, *, current: bool = False, previous: tuple[int, ...] = ()) -> None:
    """Drop this vCPU's references to the selected roots; without the lock if none of them is valid (E003, E004).

    A page whose count falls to 0 stays in the books as an ordinary cached page, unless it was zapped meanwhile.
    """
    freed = [vcpu.previous[i] for i in previous if vcpu.previous[i].hpa != INVALID_ROOT]
    if current and vcpu.root.hpa != INVALID_ROOT:
        freed.append(vcpu.root)
    if not freed:
        return
    with vm.lock.take(vcpu, "free"):
        zap_list: ZapList = []
        for root in freed:
            if has_page(root):
                _put(vm, vcpu, vm.books.page_at(root.hpa), zap_list)
            root.hpa = INVALID_ROOT
            if root is vcpu.root:
                root.pgd = 0
        commit_zap(vm, vcpu, zap_list)


def _put(vm: SharedState, vcpu: Vcpu, page: ShadowPage, zap_list: ZapList) -> None:
    page.root_count -= 1
    if page.root_count == 0 and page.invalid:
        prepare_zap(vm, vcpu, page, zap_list)


def free_all_roots(vm: SharedState, vcpu: Vcpu) -> None:
    """Free ROOTS_ALL; none is left (E046)."""
    free_roots(vm, vcpu, current=True, previous=tuple(range(len(vcpu.previous))))
    assert all(root.hpa == INVALID_ROOT for root in (vcpu.root, *vcpu.previous))


def reset_context(vm: SharedState, vcpu: Vcpu) -> None:
    """Forget all roots and derive the MMU context anew, after a change of mode (E037)."""
    free_all_roots(vm, vcpu)
    vcpu.update_context()
    vcpu.tlb.flush()
    if vm.policy.kind == "seed":
        vcpu.previous[0].pgd = WORD  # every context init forgets prev_cr3 (E002)


def load_root(vm: SharedState, vcpu: Vcpu) -> bool:
    """Give the vCPU a root for its CR3, synced, its TLB flushed (E036); false if that is a triple fault (E015)."""
    cr3 = vcpu.registers.cr3
    gfn = (cr3 & PFN_MASK) >> PAGE_SHIFT
    lru = vm.policy.kind == "lru"
    if not vm.memory.has(gfn):
        if not lru:
            return False
        vcpu.root.hpa = DUMMY_ROOT  # every access will fault as not present (E016)
    else:
        with vm.lock.take(vcpu, "load"):
            page = get_page(vm, vcpu, gfn, vcpu.root_role)
            page.root_count += 1
            vcpu.root.hpa = page.hpa
    vcpu.root.pgd = cr3 if lru else 0
    sync_roots(vm, vcpu)
    vcpu.tlb.flush()
    return True


def write_same_cr3(vm: SharedState, vcpu: Vcpu) -> None:
    """MOV to CR3 of the value that is there: a sync and a flush, no switch (E008)."""
    if vm.policy.kind == "lru":
        vcpu.requests |= REQ_MMU_SYNC | REQ_TLB_FLUSH_CURRENT
    else:
        sync_roots(vm, vcpu)
        vcpu.requests |= REQ_TLB_FLUSH


def switch_cr3(vm: SharedState, vcpu: Vcpu, value: int) -> bool:
    """MOV to CR3 of another value; true if a cached root could be used.

    ``vcpu.registers`` still hold the outgoing value, and :mod:`.machine` stores the new one (E048).
    """
    if vm.policy.kind == "locked":
        free_roots(vm, vcpu, current=True)
        return False
    if vm.policy.kind == "seed":
        hit = _seed_switch(vm, vcpu, value)
        if not hit:
            free_roots(vm, vcpu, current=True)
        vcpu.previous[0].pgd = vcpu.registers.cr3  # in both cases, and that is defect S1 (E006, E007)
        return hit
    hit = fast_pgd_switch(vm, vcpu, value)
    if hit:
        vcpu.requests |= REQ_LOAD_MMU_PGD
        vm.books.page_at(vcpu.root.hpa).flooding = 0
    # With PCID off the cached roots are outside the guest's TLB: every switch flushes and syncs (A.7, E057).
    vcpu.requests |= REQ_MMU_SYNC | REQ_TLB_FLUSH_CURRENT
    return hit


def _seed_switch(vm: SharedState, vcpu: Vcpu, value: int) -> bool:
    """Switch as the 2018 patch does: one previous root, swapped in also on a miss (A.1)."""
    if not vm.memory.has((value & PFN_MASK) >> PAGE_SHIFT):
        vcpu.requests |= REQ_TRIPLE_FAULT
        return False
    cached = vcpu.previous[0]
    vcpu.root.hpa, cached.hpa = cached.hpa, vcpu.root.hpa
    if value != cached.pgd or vcpu.root.hpa == INVALID_ROOT:
        return False
    sync_roots(vm, vcpu)
    vm.books.page_at(vcpu.root.hpa).flooding = 0
    vcpu.tlb.flush()
    vcpu.counters["tlb_flush"] += 1
    return True


def is_usable(vm: SharedState, root: Root, pgd: int, role: int) -> bool:
    """Whether a root may serve this CR3 in this mode: same tag, and the page's whole role word is the wanted one (E024)."""
    return has_page(root) and root.pgd == pgd and vm.books.page_at(root.hpa).role == role


def fast_pgd_switch(vm: SharedState, vcpu: Vcpu, pgd: int) -> bool:
    """Find ``pgd`` among the current and the previous roots, as the modern kernel does (A.5).

    The cache is kept in the order of use: after a miss the old current root is the first of the previous ones, and the last
    of them was freed.
    """
    if vcpu.root.hpa == DUMMY_ROOT:
        free_roots(vm, vcpu, current=True)
    if vcpu.root.hpa != INVALID_ROOT:
        return _find_keeping_current(vm, vcpu, pgd)
    return _find_without_current(vm, vcpu, pgd)


def _find_keeping_current(vm: SharedState, vcpu: Vcpu, pgd: int) -> bool:
    if is_usable(vm, vcpu.root, pgd, vcpu.root_role):
        return True
    for i, cached in enumerate(vcpu.previous):
        vcpu.root, vcpu.previous[i] = cached, vcpu.root
        if is_usable(vm, vcpu.root, pgd, vcpu.root_role):
            return True
    free_roots(vm, vcpu, current=True)
    vcpu.root.pgd = 0
    return False


def _find_without_current(vm: SharedState, vcpu: Vcpu, pgd: int) -> bool:
    for i, cached in enumerate(vcpu.previous):
        if is_usable(vm, cached, pgd, vcpu.root_role):
            unused, vcpu.root = vcpu.root, cached
            vcpu.previous[i:] = [*vcpu.previous[i + 1 :], unused]
            # KVM swaps the empty current root in and moves the later ones up: the last keeps the tag it had (E029).
            unused.pgd = vcpu.previous[-2].pgd if i + 1 < len(vcpu.previous) else unused.pgd
            return True
    return False
