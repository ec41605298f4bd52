"""Finding the shadow page for a guest table, or making it (C.3; ``docs/machine.md`` §7: get_child, find, alloc, link)."""

from .constants import EVENT_GET_PAGE, EVENT_SYNC_PAGE
from .pages import ShadowPage
from .role import LEVEL_MASK, child_role
from .sync import SpteSync, sync_page
from .unsync import clear_unsync, mark_unsync
from .vcpu import Vcpu
from .vm import SharedState
from .zap import ZapList, commit_zap, prepare_zap


def get_child(
    vm: SharedState, vcpu: Vcpu, parent: ShadowPage, index: int, *, gfn: int, direct: bool, access: int, key: int = 0
) -> ShadowPage | None:
    """Return the page to link at an entry; ``None`` if the right one is linked there already.

    The linked child is right only if both its gfn and its whole role are the wanted ones (F-02, F-03).
    """
    role = child_role(parent.role, access, direct=direct, index=index, key=key)
    linked = vm.books.child(parent, index)
    if linked is not None and linked.gfn == gfn and linked.role == role:
        return None
    return get_page(vm, vcpu, gfn, role, (parent, index))


def get_page(
    vm: SharedState, vcpu: Vcpu, gfn: int, role: int, slot: tuple[ShadowPage, int] | None = None
) -> ShadowPage:
    """Find or make the page of this gfn and role; ``slot`` is the entry that will link to it (none for a root)."""
    page = _find(vm, vcpu, gfn, role, slot)
    if page is None:
        page = _alloc(vm, vcpu, gfn, role)
        vm.event(vcpu, EVENT_GET_PAGE, page, 1)
    else:
        vm.event(vcpu, EVENT_GET_PAGE, page, 0)
    return page


def _find(vm: SharedState, vcpu: Vcpu, gfn: int, role: int, slot: tuple[ShadowPage, int] | None) -> ShadowPage | None:
    zap_list: ZapList = []
    found = None
    for page in vm.books.valid_pages(gfn):
        if page.invalid:  # zapped by an earlier turn of this loop
            continue
        if page.role != role:
            # A gfn that becomes an upper-level table must be write-protected: unsync pages of it cannot stay.
            if role & LEVEL_MASK > 1 and page.unsync:
                prepare_zap(vm, vcpu, page, zap_list)
            continue
        if not page.direct:
            if page.unsync and not _refresh(vm, vcpu, page, slot, zap_list):
                break
            page.flooding = 0
        found = page
        break
    commit_zap(vm, vcpu, zap_list)
    return found


def _refresh(
    vm: SharedState, vcpu: Vcpu, page: ShadowPage, slot: tuple[ShadowPage, int] | None, zap_list: ZapList
) -> bool:
    """Sync an unsync page that gets a new parent, by the steps of the policy (``docs/machine.md`` §13).

    By default it stays unsync, and the new parent is marked first: a vCPU that runs below it and tests the root's flags
    without the lock must not find them clear while the entry is already reachable (D.3).
    """
    if vm.policy.link == "mark-first" and slot is not None:
        mark_unsync(*slot)
    elif vm.policy.link == "full-sync":
        if vm.books.write_protect(page.gfn):
            vm.remote_flush(vcpu)
        vm.event(vcpu, EVENT_SYNC_PAGE, page)
        clear_unsync(vcpu, page)
    done = sync_page(vm, vcpu, page, zap_list)
    if done is SpteSync.FLUSH:
        vm.remote_flush(vcpu)
    return done is not None


def _alloc(vm: SharedState, vcpu: Vcpu, gfn: int, role: int) -> ShadowPage:
    """Make a page: synced, and its table write-protected from now on."""
    page = vm.books.new_page(gfn, role)
    vcpu.counters["mmu_cache_miss"] += 1
    if not page.direct:
        vm.books.account(page)
        if vm.books.write_protect(gfn):
            vm.remote_flush(vcpu)
    return page


def link(vm: SharedState, vcpu: Vcpu, parent: ShadowPage, index: int, child: ShadowPage) -> None:
    """Link a page at an entry above level 1; what was there is unlinked first."""
    if vm.books.drop_entry(parent, index):
        vm.remote_flush(vcpu)
    vm.books.add_link(parent, index, child)
    if child.unsync or child.unsync_children:
        mark_unsync(parent, index)
