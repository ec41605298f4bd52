"""Roots: loading and freeing them, and what a CR3 write does under each of the three policies (A.1, A.5; §8)."""

from .constants import (
    DUMMY_ROOT,
    GPTE_P,
    INVALID_ROOT,
    PAE_ROOT,
    PAGE_OFFSET,
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
from .permissions import pdptr_is_reserved
from .registers import PagingMode
from .role import pae_root_role
from .sync import sync_children
from .vcpu import NO_ENTRIES, Root, Vcpu
from .vm import SharedState
from .zap import ZapList, commit_zap, prepare_zap


def has_page(root: Root) -> bool:
    """Whether a shadow page stands behind the root: it is neither invalid, nor the dummy, nor a PAE root."""
    return root.hpa not in (INVALID_ROOT, DUMMY_ROOT, PAE_ROOT)


def root_pages(vm: SharedState, root: Root) -> list[ShadowPage]:
    """Return the shadow pages that the root holds: one, under a PAE root up to four."""
    if root.hpa == PAE_ROOT:
        return [vm.books.page_at(hpa) for hpa in root.entries if hpa]
    return [vm.books.page_at(root.hpa)] if has_page(root) else []


def root_page(vm: SharedState, root: Root, gva: int) -> ShadowPage | None:
    """Return the shadow page in which the hardware walk of ``gva`` begins, if there is one."""
    if root.hpa == PAE_ROOT:
        return vm.books.page_at(root.entries[gva >> 30]) if root.entries[gva >> 30] else None
    return vm.books.page_at(root.hpa) if has_page(root) else None


def is_unsync_root(vm: SharedState, root: Root) -> bool:
    """Test the root's flags, without the lock (E050)."""
    if not has_page(root):
        return False
    page = vm.books.page_at(root.hpa)
    return page.unsync or page.unsync_children > 0


def is_clean_root(vm: SharedState, root: Root) -> bool:
    """Whether the flags say that nothing below is unsync. Of a PAE root nobody looks at them without the lock (E052)."""
    return has_page(root) and not is_unsync_root(vm, root)


def sync_roots(vm: SharedState, vcpu: Vcpu) -> None:
    """Bring everything below the current root in line with the guest's tables.

    Without the lock if the root's flags are clear; ``locked``, the kernel before the patch, always takes it, and so does
    every policy for a PAE root, whose pages are synced one by one (E052). Without paging there is nothing to sync.
    """
    if vcpu.root.hpa in (INVALID_ROOT, DUMMY_ROOT) or vcpu.context.mode is PagingMode.NONE:
        return
    clean = is_clean_root(vm, vcpu.root)
    if clean and vm.policy.kind != "locked":
        return
    with vm.lock.take(vcpu, "sync", looks=clean):
        for page in root_pages(vm, vcpu.root):
            sync_children(vm, vcpu, page)


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
            for page in root_pages(vm, root):
                _put(vm, vcpu, page, zap_list)
            root.hpa, root.entries = INVALID_ROOT, NO_ENTRIES
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
    direct = vcpu.context.mode is PagingMode.NONE
    if not direct and not vm.memory.has(gfn):
        if not lru:
            return False
        vcpu.root.hpa = DUMMY_ROOT  # every access will fault as not present (E016)
    else:
        with vm.lock.take(vcpu, "load"):
            if vcpu.context.long:
                vcpu.root.hpa = _take_root(vm, vcpu, gfn, vcpu.root_role)
            else:
                vcpu.root.entries = _pae_entries(vm, vcpu, gfn)
                vcpu.root.hpa = PAE_ROOT
    vcpu.root.pgd = cr3 if lru and not direct else 0
    sync_roots(vm, vcpu)
    vcpu.tlb.flush()
    return True


def _take_root(vm: SharedState, vcpu: Vcpu, gfn: int, role: int) -> int:
    """Find or make the page of a root, and count a reference to it."""
    page = get_page(vm, vcpu, gfn, role)
    page.root_count += 1
    return page.hpa


def _pae_entries(vm: SharedState, vcpu: Vcpu, gfn: int) -> tuple[int, ...]:
    """Make the four pages of a PAE root (E040, E042, E043).

    Without paging each maps its GiB directly; of a 32-bit guest each shadows a quarter of the page directory; of a PAE guest
    the directory that its PDPTR leads to, where that is present and in memory.
    """
    entries = []
    for i in range(4):
        frame: int | None = gfn
        if vcpu.context.mode is PagingMode.NONE:
            frame = i << 30 - PAGE_SHIFT
        elif vcpu.context.mode is PagingMode.PAE:
            pdptr = vcpu.pdptrs[i]
            frame = (pdptr & PFN_MASK) >> PAGE_SHIFT
            if not pdptr & GPTE_P or not vm.memory.has(frame):
                frame = None
        entries.append(0 if frame is None else _take_root(vm, vcpu, frame, pae_root_role(vcpu.root_role, i)))
    return tuple(entries)


def load_pdptrs(vm: SharedState, vcpu: Vcpu, cr3: int) -> bool:
    """Load the four PDPTRs of PAE paging from guest memory (B.3); false if they must not be loaded.

    A root that was made from other ones goes (F-10).
    """
    pdptrs = read_pdptrs(vm, vcpu, cr3)
    if pdptrs is None:
        return False
    if pdptrs != vcpu.pdptrs:
        free_roots(vm, vcpu, current=True)
        vcpu.pdptrs = pdptrs
    return True


def read_pdptrs(vm: SharedState, vcpu: Vcpu, cr3: int) -> tuple[int, ...] | None:
    """Read the four PDPTRs; ``None`` if they are in no memslot or a present one has a reserved bit set."""
    gpa = cr3 & PFN_MASK | cr3 & PAGE_OFFSET & ~0x1F
    if not vm.memory.has(gpa >> PAGE_SHIFT):
        return None
    pdptrs = tuple(vm.memory.word(gpa + 8 * i) for i in range(4))
    bad = any(pdptr & GPTE_P and pdptr_is_reserved(pdptr, vcpu.cpu.maxphyaddr) for pdptr in pdptrs)
    return None if bad else pdptrs


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
        # Eligible are 4- and 5-level roots only (E017).
        hit = vcpu.context.long and _seed_switch(vm, vcpu, value)
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
    if vcpu.root.hpa in (DUMMY_ROOT, PAE_ROOT):
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
