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
    REQ_TLB_FLUSH_GUEST,
    REQ_TRIPLE_FAULT,
    WORD,
)
from .lookup import get_page
from .pae_roots import free_table, is_pae, read_pdptrs, serves, table_of
from .pages import ShadowPage
from .registers import PagingMode
from .role import pae_root_role
from .sync import sync_children
from .vcpu import NO_ENTRIES, Root, Vcpu
from .vm import SharedState
from .zap import ZapList, commit_zap, prepare_zap


def has_page(root: Root) -> bool:
    """Whether a shadow page stands behind the root: it is neither invalid, nor the dummy, nor a PAE root."""
    return root.hpa not in (INVALID_ROOT, DUMMY_ROOT) and not is_pae(root)


def may_be_cached(vm: SharedState, vcpu: Vcpu) -> bool:
    """Whether roots of the vCPU's mode enter the cache: 4- and 5-level ones, others if the policy says so (E017, E042)."""
    narrow = vcpu.context.mode is not PagingMode.NONE and vm.policy.caches_pae_roots
    return vcpu.context.long or narrow


def root_pages(vm: SharedState, root: Root) -> list[ShadowPage]:
    """Return the shadow pages that the root holds: one, under a PAE root up to four."""
    if is_pae(root):
        return [vm.books.page_at(hpa) for hpa in root.entries if hpa]
    return [vm.books.page_at(root.hpa)] if has_page(root) else []


def root_page(vm: SharedState, root: Root, gva: int) -> ShadowPage | None:
    """Return the shadow page in which the hardware walk of ``gva`` begins, if there is one."""
    if is_pae(root):
        return vm.books.page_at(root.entries[gva >> 30]) if root.entries[gva >> 30] else None
    return vm.books.page_at(root.hpa) if has_page(root) else None


def is_unsync_root(vm: SharedState, root: Root) -> bool:
    """Test the root's flags, those of each of its pages, without the lock (E050)."""
    return any(page.unsync or page.unsync_children for page in root_pages(vm, root))


def is_clean_root(vm: SharedState, root: Root) -> bool:
    """Whether the flags of a root with a page say that nothing below is unsync. For a PAE root no lock is ever shared (E052)."""
    return has_page(root) and not is_unsync_root(vm, root)


def sync_roots(vm: SharedState, vcpu: Vcpu) -> None:
    """Bring everything below the current root in line with the guest's tables.

    Without the lock if the root's flags are clear; ``locked``, the kernel before the patch, always takes it, and so does every
    policy for a PAE root that is never cached. The pages of such a root are synced one by one (E052). Without paging there is
    nothing to sync, nor below a direct root.
    """
    if vcpu.tdp or vcpu.root.hpa in (INVALID_ROOT, DUMMY_ROOT) or vcpu.context.mode is PagingMode.NONE:
        return
    looks_at_flags = vm.policy.kind != "locked" and may_be_cached(vm, vcpu)
    if looks_at_flags and not is_unsync_root(vm, vcpu.root):
        return
    with vm.lock.take(vcpu, "sync", looks=is_clean_root(vm, vcpu.root)):
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
            root.hpa, root.entries, root.pdptrs = INVALID_ROOT, NO_ENTRIES, NO_ENTRIES
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
    if vcpu.tdp:
        # The one direct root of the machine: CR3 has no part in it, so its tag is 0 (E028).
        with vm.lock.take(vcpu, "load"):
            vcpu.root.hpa, vcpu.root.pgd = _take_root(vm, vcpu, 0, vcpu.root_role), 0
        vcpu.tlb.flush()
        return True
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
                vcpu.root.entries, vcpu.root.pdptrs = _pae_entries(vm, vcpu, gfn), vcpu.made_of
                vcpu.root.hpa = free_table(vcpu)
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
            frame = table_of(vm, vcpu.pdptrs[i])
        entries.append(0 if frame is None else _take_root(vm, vcpu, frame, pae_root_role(vcpu.root_role, i)))
    return tuple(entries)


def load_pdptrs(vm: SharedState, vcpu: Vcpu, cr3: int) -> bool:
    """Load the four PDPTRs of PAE paging from guest memory (B.3); false if they must not be loaded."""
    pdptrs = read_pdptrs(vm, vcpu, cr3)
    if pdptrs is None:
        return False
    use_pdptrs(vm, vcpu, pdptrs)
    return True


def use_pdptrs(vm: SharedState, vcpu: Vcpu, pdptrs: tuple[int, ...]) -> None:
    """Take over PDPTRs for the CR3 that there is; a root that was made from other ones goes (F-10).

    Parked roots of this CR3 go with it: one of them may be what the next entry makes, and the cache holds nothing twice (I17).
    """
    if pdptrs == vcpu.pdptrs:
        return
    if vcpu.tdp:
        # A direct root is made from none: what goes is the TLB's.
        vcpu.tlb.flush()
        vcpu.pdptrs = pdptrs
        return
    searched = vm.policy.kind == "lru" and vm.policy.caches_pae_roots
    twins = (i for i, root in enumerate(vcpu.previous) if searched and root.pgd == vcpu.registers.cr3)
    free_roots(vm, vcpu, current=True, previous=tuple(twins))
    vcpu.pdptrs = pdptrs


def write_same_cr3(vm: SharedState, vcpu: Vcpu) -> None:
    """MOV to CR3 of the value that is there: a sync and a flush, no switch (E008)."""
    if vm.policy.kind == "lru":
        request_cr3_flush(vcpu)
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
        eligible = may_be_cached(vm, vcpu)
        if eligible and value == vcpu.registers.cr3:
            # Its PDPTRs changed, so the root is gone already (F-10): no switch, and the tag stays (E047).
            return False
        hit = eligible and _seed_switch(vm, vcpu, value)
        if not hit:
            free_roots(vm, vcpu, current=True)
        vcpu.previous[0].pgd = vcpu.registers.cr3  # in both cases, and that is defect S1 (E006, E007)
        return hit
    hit = fast_pgd_switch(vm, vcpu, value)
    if hit:
        vcpu.requests |= REQ_LOAD_MMU_PGD
        _clear_flooding(vm, vcpu.root)
    # With PCID off the cached roots are outside the guest's TLB: every switch flushes and syncs (A.7, E057).
    request_cr3_flush(vcpu)
    return hit


def request_cr3_flush(vcpu: Vcpu) -> None:
    """Ask for what the modern kernel owes a CR3 write (KVM: kvm_invalidate_pcid).

    Where the hardware walks the guest's tables, only its own TLB has anything of the old CR3 (F-47).
    """
    vcpu.requests |= REQ_TLB_FLUSH_GUEST if vcpu.tdp else REQ_MMU_SYNC | REQ_TLB_FLUSH_CURRENT


def _seed_switch(vm: SharedState, vcpu: Vcpu, value: int) -> bool:
    """Switch as the 2018 patch does: one previous root, swapped in also on a miss (A.1)."""
    if not vm.memory.has((value & PFN_MASK) >> PAGE_SHIFT):
        vcpu.requests |= REQ_TRIPLE_FAULT
        return False
    cached = vcpu.previous[0]
    # The roots change places, the tags stay: prev_cr3 is apart from prev_root_hpa.
    vcpu.root, vcpu.previous[0] = cached, vcpu.root
    vcpu.root.pgd, vcpu.previous[0].pgd = vcpu.previous[0].pgd, cached.pgd
    if value != vcpu.previous[0].pgd or vcpu.root.hpa == INVALID_ROOT:
        return False
    # Of a 4-level root the seed does not ask the role (S3); of four pages it does, so that what was zapped is not hit.
    if is_pae(vcpu.root) and not serves(vm, vcpu.root, vcpu.root_role, vcpu.made_of):
        return False
    sync_roots(vm, vcpu)
    _clear_flooding(vm, vcpu.root)
    vcpu.tlb.flush()
    vcpu.counters["tlb_flush"] += 1
    return True


def _clear_flooding(vm: SharedState, root: Root) -> None:
    """Zero the flooding count of each page of the root (E020)."""
    for page in root_pages(vm, root):
        page.flooding = 0


def is_usable(vm: SharedState, vcpu: Vcpu, root: Root, pgd: int) -> bool:
    """Whether a root may serve this CR3 in this mode: same tag, and the page's whole role word is the wanted one (E024).

    A direct root serves every CR3 (E028).
    """
    if root.pgd != pgd and not vcpu.tdp:
        return False
    if is_pae(root):
        return serves(vm, root, vcpu.root_role, vcpu.made_of)
    return has_page(root) and vm.books.page_at(root.hpa).role == vcpu.root_role


def fast_pgd_switch(vm: SharedState, vcpu: Vcpu, pgd: int) -> bool:
    """Find ``pgd`` among the current and the previous roots, as the modern kernel does (A.5).

    The cache is kept in the order of use: after a miss the old current root is the first of the previous ones, and the last
    of them was freed.
    """
    if vcpu.root.hpa == DUMMY_ROOT or (is_pae(vcpu.root) and not may_be_cached(vm, vcpu)):
        free_roots(vm, vcpu, current=True)
    if vcpu.root.hpa != INVALID_ROOT:
        return _find_keeping_current(vm, vcpu, pgd)
    return _find_without_current(vm, vcpu, pgd)


def _find_keeping_current(vm: SharedState, vcpu: Vcpu, pgd: int) -> bool:
    if is_usable(vm, vcpu, vcpu.root, pgd):
        return True
    for i, cached in enumerate(vcpu.previous):
        vcpu.root, vcpu.previous[i] = cached, vcpu.root
        if is_usable(vm, vcpu, vcpu.root, pgd):
            return True
    free_roots(vm, vcpu, current=True)
    vcpu.root.pgd = 0
    return False


def _find_without_current(vm: SharedState, vcpu: Vcpu, pgd: int) -> bool:
    for i, cached in enumerate(vcpu.previous):
        if is_usable(vm, vcpu, cached, pgd):
            unused, vcpu.root = vcpu.root, cached
            vcpu.previous[i:] = [*vcpu.previous[i + 1 :], unused]
            # KVM swaps the empty current root in and moves the later ones up: the last keeps the tag it had (E029).
            unused.pgd = vcpu.previous[-2].pgd if i + 1 < len(vcpu.previous) else unused.pgd
            return True
    return False
