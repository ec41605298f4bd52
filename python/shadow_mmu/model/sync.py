"""Bringing shadow entries in line with the guest's tables (C.5; ``docs/machine.md`` §10)."""

from enum import Enum

from . import spte as sptes
from .constants import EVENT_SYNC_PAGE, GPTE_A, GPTE_P, PAGE_SHIFT, PFN_MASK
from .leaf import make_spte
from .pages import ShadowPage
from .permissions import has_reserved_bits, key_of, leaf_access
from .role import gpte_gpa, may_sync
from .unsync import UnsyncBatch, clear_path, clear_unsync
from .vcpu import Vcpu
from .vm import SharedState
from .walk import read_entry
from .zap import ZapList, commit_or_flush, prepare_zap


class SpteSync(Enum):
    """What a sync did to one entry."""

    KEPT = 0
    REWRITTEN = 1
    """Changed so that no TLB can hold more than the new entry grants."""
    FLUSH = 2
    """Dropped, or lost its write permission: TLBs may hold the old one."""


def sync_spte(vm: SharedState, vcpu: Vcpu, page: ShadowPage, index: int) -> SpteSync:
    """Sync one entry of a level-1 page. An empty entry stays empty."""
    old = page.sptes.get(index, 0)
    if not old:
        return SpteSync.KEPT
    gpte = read_entry(vm.memory, vcpu.context, gpte_gpa(page.role, page.gfn, index))
    gfn, access = page.translations[index]
    if (
        not gpte & GPTE_P
        or not gpte & GPTE_A
        or has_reserved_bits(vcpu.context, gpte, 1)
        or (gpte & PFN_MASK) >> PAGE_SHIFT != gfn
    ):
        vm.books.drop_leaf(page, index)
        return SpteSync.FLUSH
    wanted = leaf_access(page.access, gpte)
    key = key_of(vcpu.context, gpte)
    if wanted == access and key == sptes.key_of(old):
        return SpteSync.KEPT
    page.translations[index] = (gfn, wanted)
    new, _ = make_spte(vm, vcpu, wanted, gfn, key=key, old=old, prefetch=True, synchronizing=True)
    if new == old:
        return SpteSync.KEPT
    page.sptes[index] = new
    return SpteSync.FLUSH if sptes.loses_write(old, new) else SpteSync.REWRITTEN


def sync_page(vm: SharedState, vcpu: Vcpu, page: ShadowPage, zap_list: ZapList) -> SpteSync | None:
    """Sync every entry of a page; ``None`` if the page was zapped instead (built for another mode, F-37)."""
    if not may_sync(page.role, vcpu.root_role):
        prepare_zap(vm, vcpu, page, zap_list)
        return None
    done = {sync_spte(vm, vcpu, page, index) for index in sorted(page.sptes)}
    vcpu.sync_pages += 1
    if SpteSync.FLUSH in done:
        return SpteSync.FLUSH
    if SpteSync.REWRITTEN in done:
        return SpteSync.REWRITTEN
    vcpu.sync_pages_unchanged += 1
    return SpteSync.KEPT


def sync_children(vm: SharedState, vcpu: Vcpu, parent: ShadowPage) -> None:
    """Sync every unsync page below ``parent``, in batches.

    Each batch is write-protected and flushed before a gpte is read, so that no later guest write is missed (E140), and the
    marks above are cleared after the entries are right (D.2).
    """
    while batch := UnsyncBatch(vm, parent):
        protected = False
        for leaf, _ in batch:
            protected = vm.books.write_protect(leaf.gfn) or protected
        if protected:
            vm.remote_flush(vcpu)
        zap_list: ZapList = []
        flush = False
        for leaf, path in batch:
            vm.event(vcpu, EVENT_SYNC_PAGE, leaf)
            clear_unsync(vcpu, leaf)
            flush = sync_page(vm, vcpu, leaf, zap_list) is SpteSync.FLUSH or flush
            clear_path(path)
        commit_or_flush(vm, vcpu, zap_list, flush=flush)
