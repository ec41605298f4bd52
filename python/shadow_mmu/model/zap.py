"""Removing shadow pages: prepare under the lock, flush once, free (C.7; ``docs/machine.md`` §10)."""

from . import role as roles
from .constants import EVENT_PREPARE_ZAP_PAGE, EVENT_SYNC_PAGE, REQ_FREE_OBSOLETE_ROOTS
from .pages import ShadowPage
from .unsync import UnsyncBatch, clear_path, clear_unsync
from .vcpu import Vcpu
from .vm import SharedState

ZapList = list[ShadowPage]


def prepare_zap(vm: SharedState, vcpu: Vcpu, page: ShadowPage, zap_list: ZapList) -> None:
    """Take a page out of use, with the unsync pages below it; it is freed when the list is committed.

    A page that is still someone's root stays alive, invalid, until the last reference is put (E035).
    """
    if page.doomed:
        return
    books = vm.books
    vm.event(vcpu, EVENT_PREPARE_ZAP_PAGE, page)
    vcpu.counters["mmu_shadow_zapped"] += 1
    if page.level > 1:
        while batch := UnsyncBatch(vm, page):
            for leaf, path in batch:
                prepare_zap(vm, vcpu, leaf, zap_list)
                clear_path(path)
    for index in sorted(page.sptes):
        books.drop_entry(page, index)
    for parent, index in page.parents:
        del parent.sptes[index]
    page.parents.clear()
    if not page.direct and not page.invalid:
        books.unaccount(page)
    if page.unsync:
        vm.event(vcpu, EVENT_SYNC_PAGE, page)
        clear_unsync(vcpu, page)
    was_valid = not page.invalid
    page.role |= roles.INVALID
    if page.root_count == 0:
        page.doomed = True
        zap_list.append(page)
    elif was_valid:
        # After the flag is set: whoever takes the request must find the page invalid (D.3).
        for other in vm.vcpus:
            other.requests |= REQ_FREE_OBSOLETE_ROOTS


def commit_zap(vm: SharedState, vcpu: Vcpu, zap_list: ZapList) -> None:
    """Flush, so that nobody walks the pages any more, and free them in the order of the list."""
    if not zap_list:
        return
    vm.remote_flush(vcpu)
    for page in zap_list:
        vm.books.free_page(page)
    zap_list.clear()


def commit_or_flush(vm: SharedState, vcpu: Vcpu, zap_list: ZapList, *, flush: bool) -> None:
    """Commit, which flushes; with nothing to commit flush if wanted."""
    if zap_list:
        commit_zap(vm, vcpu, zap_list)
    elif flush:
        vm.remote_flush(vcpu)


def zap_gfn(vm: SharedState, vcpu: Vcpu, gfn: int) -> None:
    """Zap every valid page that shadows the table at ``gfn``; where there are only direct ones, whatever maps it (a host operation)."""
    with vm.lock.take(vcpu, "zap"):
        if vcpu.tdp:
            if gfn in vm.books.rmaps:
                vm.books.drop_all_leaves(gfn)
                vm.remote_flush(vcpu)
            return
        zap_list: ZapList = []
        for page in vm.books.indirect_pages(gfn):
            if not page.invalid:
                prepare_zap(vm, vcpu, page, zap_list)
        commit_zap(vm, vcpu, zap_list)
