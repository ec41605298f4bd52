"""Functions of the model by themselves, where the operations do not lead to every case."""

import pytest
from tests.model.support import CACHING, PAGE, POLICIES, guest, visit

from shadow_mmu.cpu import CpuModel
from shadow_mmu.model.constants import INVALID_ROOT
from shadow_mmu.model.memory import GuestMemory
from shadow_mmu.model.permissions import make_context
from shadow_mmu.model.registers import Registers
from shadow_mmu.model.roots import fast_pgd_switch, free_all_roots, free_roots, is_usable
from shadow_mmu.model.unsync import try_to_unsync
from shadow_mmu.model.walk import compare_exchange


@pytest.mark.parametrize("policy", CACHING)
def test_e003_roots_are_freed_selectively(policy: str) -> None:
    one, (a, b) = guest(policy)
    visit(one, a, b)
    vm, vcpu = one.machine.vm, one.machine.vm.vcpus[0]
    current = vcpu.root.hpa
    free_roots(vm, vcpu, previous=(0,))
    assert (vcpu.root.hpa, vcpu.previous[0].hpa) == (current, INVALID_ROOT)
    one.audit()
    free_roots(vm, vcpu, current=True)
    assert vcpu.root.hpa == INVALID_ROOT
    one.audit()


def test_e024_every_bit_of_the_role_word_must_match() -> None:
    one, (a, b) = guest("lru:3")
    visit(one, a, b)
    vm, vcpu = one.machine.vm, one.machine.vm.vcpus[0]
    role = vcpu.root_role
    assert is_usable(vm, vcpu, vcpu.previous[0], a)
    for bit in range(32):
        vcpu.root_role = role ^ 1 << bit
        assert not is_usable(vm, vcpu, vcpu.previous[0], a)
    vcpu.root_role = role
    assert not is_usable(vm, vcpu, vcpu.previous[0], a | 8)
    vcpu.root_role ^= 1 << 13
    assert not fast_pgd_switch(vm, vcpu, a)


@pytest.mark.parametrize("current", [0, 1, 2])
def test_e026_a_hit_without_a_current_root_closes_the_gap(current: int) -> None:
    one, tables = guest("lru:3", 4)
    visit(one, *tables)
    vcpu = one.machine.vm.vcpus[0]
    free_roots(one.machine.vm, vcpu, current=True)
    cached = [pgd for pgd, _ in one.roots()[1:]]
    assert fast_pgd_switch(one.machine.vm, vcpu, cached[current])
    assert one.roots()[0][0] == cached[current]
    assert one.cached() == [pgd for at, pgd in enumerate(cached) if at != current] + [None]
    assert not fast_pgd_switch(one.machine.vm, vcpu, 0x9000)


@pytest.mark.parametrize("policy", [*POLICIES, *CACHING])
def test_e046_unload_leaves_no_valid_root(policy: str) -> None:
    one, (a, b) = guest(policy)
    visit(one, a, b, a)
    free_all_roots(one.machine.vm, one.machine.vm.vcpus[0])
    assert all(hpa == INVALID_ROOT for _, hpa in one.roots())
    one.audit()


def test_e105_a_changed_entry_is_not_overwritten() -> None:
    memory = GuestMemory([(0, 0x1000)], 1 << 46)
    memory.set_word(8, 5)
    context = make_context(Registers(), CpuModel())
    assert not compare_exchange(memory, context, 8, 4, 0x24)
    assert memory.word(8) == 5
    assert compare_exchange(memory, context, 8, 5, 0x25)
    assert memory.word(8) == 0x25


def test_e137_unsync_is_refused_for_a_tracked_gfn_while_syncing_and_on_prefetch() -> None:
    one, (a, _) = guest("lru:3")
    entry = one.entry(a, PAGE)
    visit(one, a)
    vm, vcpu = one.machine.vm, one.machine.vm.vcpus[0]
    table, root = entry >> 12, a >> 12
    assert not try_to_unsync(vm, vcpu, root, synchronizing=False, prefetch=False)
    assert not try_to_unsync(vm, vcpu, table, synchronizing=True, prefetch=False)
    assert not try_to_unsync(vm, vcpu, table, synchronizing=False, prefetch=True)
    assert not one.page(entry & ~0xFFF)["unsync"]
    assert try_to_unsync(vm, vcpu, 0x400, synchronizing=True, prefetch=True)  # no table
    assert try_to_unsync(vm, vcpu, table, synchronizing=False, prefetch=False)
    assert one.page(entry & ~0xFFF)["unsync"]
    one.audit()
