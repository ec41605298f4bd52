"""Writes to guest memory that the MMU sees: emulated guest stores and the hypervisor's own (C.6; §9)."""

from collections.abc import Iterable

from .constants import CR4_PAE, FLOODING_LIMIT, PAGE_OFFSET, PAGE_SHIFT
from .pages import ShadowPage
from .role import FOUR_BYTE, spte_indices
from .vcpu import Vcpu
from .vm import SharedState
from .zap import ZapList, commit_or_flush, prepare_zap


def emulate_store(vm: SharedState, vcpu: Vcpu, gpa: int, value: int, size: int) -> None:
    """Store for the guest, which may not do it itself, then zap what was made from the old bytes (E143)."""
    vm.memory.store(gpa, value, size)
    _track_write(vm, vcpu, gpa, size, stores=True)


def emulate_translation(vm: SharedState, vcpu: Vcpu, gpa: int) -> None:
    """Do what an emulated store does, without its bytes: no entry changes, but it counts for flooding (kind WRITE)."""
    _track_write(vm, vcpu, gpa & ~7, 8, stores=False)


def _track_write(vm: SharedState, vcpu: Vcpu, gpa: int, size: int, *, stores: bool) -> None:
    if not vm.books.indirect_shadow_pages:
        return
    vcpu.counters["mmu_pte_write"] += 1
    gfn = gpa >> PAGE_SHIFT
    if vm.lock.readers and gfn not in vm.books.write_track:
        with vm.lock.take(vcpu, "pte_write", looks=True):
            if not vm.books.indirect_pages(gfn):
                return
    with vm.lock.take(vcpu, "pte_write"):
        zap_list: ZapList = []
        flush = False
        if size == 4 and gpa & 7 <= 4 and vcpu.registers.cr4 & CR4_PAE:
            gpa, size = gpa & ~7, 8  # such a guest writes its 8-byte entries in halves
        for page in vm.books.indirect_pages(gfn):
            if page.invalid:  # zapped by an earlier turn of this loop
                continue
            misaligned = stores and _is_misaligned(page, gpa, size)
            if _is_flooded(page) or misaligned:
                prepare_zap(vm, vcpu, page, zap_list)
                vcpu.counters["mmu_flooded"] += 1
            elif stores:
                # KVM reads the new entry back after writes of 4 and 8 bytes only.
                new_gpte = vm.memory.load(gpa, size) if size >= 4 else 0
                for index in spte_indices(page.role, gpa & PAGE_OFFSET):
                    if new_gpte and page.level > 1:
                        vcpu.counters["mmu_pde_zapped"] += 1
                    flush = vm.books.drop_entry(page, index) or flush
        commit_or_flush(vm, vcpu, zap_list, flush=flush)


def _is_misaligned(page: ShadowPage, gpa: int, size: int) -> bool:
    """Whether a write looks like anything but an update of one entry: this is no page table any more (E144).

    One byte at the start of an entry is allowed: that is how guests set and clear status bits.
    """
    width = 4 if page.role & FOUR_BYTE else 8
    offset = gpa & width - 1
    if size == 1 and not offset:
        return False
    return size < 4 or offset + size > width


def _is_flooded(page: ShadowPage) -> bool:
    """Count a write to an upper-level table and say whether it was the third without any use of it as a table."""
    if page.level == 1:
        return False
    page.flooding += 1
    return page.flooding >= FLOODING_LIMIT


def host_write(vm: SharedState, vcpu: Vcpu, words: Iterable[tuple[int, int]]) -> None:
    """Write aligned words on the hypervisor's behalf; entries made from words that change are dropped (E143)."""
    with vm.lock.take(vcpu, "host"):
        flush = False
        for gpa, word in words:
            changed = vm.memory.word(gpa) ^ word
            if not changed:
                continue
            vm.memory.set_word(gpa, word)
            for page in vm.books.indirect_pages(gpa >> PAGE_SHIFT):
                halves = (
                    [gpa]
                    if not page.role & FOUR_BYTE
                    else [gpa + at for at in (0, 4) if changed >> 8 * at & 0xFFFFFFFF]
                )
                for half in halves:
                    for index in spte_indices(page.role, half & PAGE_OFFSET):
                        flush = vm.books.drop_entry(page, index) or flush
        if flush:
            vm.remote_flush(vcpu)
