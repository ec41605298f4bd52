"""Entering the guest: pending requests in their order, then a root (``docs/machine.md`` §6, E074)."""

from .constants import (
    DUMMY_ROOT,
    INVALID_ROOT,
    REQ_FREE_OBSOLETE_ROOTS,
    REQ_LOAD_MMU_PGD,
    REQ_MMU_SYNC,
    REQ_TLB_FLUSH,
    REQ_TLB_FLUSH_CURRENT,
    REQ_TLB_FLUSH_GUEST,
    REQ_TRIPLE_FAULT,
)
from .pae_roots import is_pae, lacks_page
from .roots import free_roots, has_page, is_unsync_root, load_root, root_pages, sync_roots
from .vcpu import Root, Vcpu
from .vm import SharedState


def enter_guest(vm: SharedState, vcpu: Vcpu) -> bool:
    """Service every request and make sure that a root is loaded; false if the vCPU is shut down.

    A request that comes up on the way (a zap while a root is loaded) is serviced before the entry too.
    """
    locks = vcpu.lock_count
    loaded = False
    while vcpu.requests or vcpu.root.hpa == INVALID_ROOT:
        if not _service(vm, vcpu):
            return False
        if vcpu.root.hpa == INVALID_ROOT:
            loaded = True
            if not load_root(vm, vcpu):
                vcpu.shut_down = True
                return False
    if vcpu.cr3_unsettled is not None:
        vcpu.cr3_unsettled.locks += vcpu.lock_count - locks
        vcpu.cr3_unsettled.missed |= loaded
        vcpu.settle_cr3_write()
    return True


def _service(vm: SharedState, vcpu: Vcpu) -> bool:
    """Service the requests once, in order. Each bit is cleared before it is acted on."""
    if _take(vcpu, REQ_TRIPLE_FAULT):
        vcpu.shut_down = True
        return False
    if _take(vcpu, REQ_FREE_OBSOLETE_ROOTS):
        _free_obsolete_roots(vm, vcpu)
    if _take(vcpu, REQ_MMU_SYNC):
        sync_roots(vm, vcpu)
    _take(vcpu, REQ_LOAD_MMU_PGD)  # the hardware's CR3 is loaded here; the model walks from the root itself (E022)
    if _take(vcpu, REQ_TLB_FLUSH):
        _take(vcpu, REQ_TLB_FLUSH_CURRENT)
        _flush(vcpu)
    if _take(vcpu, REQ_TLB_FLUSH_CURRENT):
        _flush(vcpu)
    if _take(vcpu, REQ_TLB_FLUSH_GUEST):
        sync_roots(vm, vcpu)
        unsync = tuple(i for i, root in enumerate(vcpu.previous) if is_unsync_root(vm, root))
        free_roots(vm, vcpu, previous=unsync)
        _flush(vcpu)
    return True


def _take(vcpu: Vcpu, request: int) -> bool:
    pending = bool(vcpu.requests & request)
    vcpu.requests &= ~request
    return pending


def _flush(vcpu: Vcpu) -> None:
    vcpu.tlb.flush()
    vcpu.counters["tlb_flush"] += 1


def _free_obsolete_roots(vm: SharedState, vcpu: Vcpu) -> None:
    """Free the roots whose page was zapped, and those without a page: nobody can tell whether they are (E151).

    Where PAE roots are cached, their pages tell.
    """

    def obsolete(root: Root) -> bool:
        if is_pae(root) and vm.policy.caches_pae_roots:
            return any(page.invalid for page in root_pages(vm, root)) or lacks_page(vm, root)
        return root.hpa == DUMMY_ROOT or is_pae(root) or (has_page(root) and vm.books.page_at(root.hpa).invalid)

    free_roots(
        vm,
        vcpu,
        current=obsolete(vcpu.root),
        previous=tuple(i for i, root in enumerate(vcpu.previous) if obsolete(root)),
    )
