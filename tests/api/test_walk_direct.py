"""`Vm.walk` in two-dimensional paging: the guest's own tables, and direct tables for each gpa in them (§15)."""

import json
from collections.abc import Iterator

import pytest

from shadow_mmu import Vm
from shadow_mmu.pagewalk import EntryKind, Verdict

SIZE, GVA = 8 << 20, 0x123
USED = 0x67


@pytest.fixture
def vm() -> Iterator[Vm]:
    """PML4 at 0x1000 -> PDPT -> PD -> PT at 0x4000 -> the page at 0x5000."""
    with Vm(SIZE, vcpus=1, policy="lru:3,mmu=tdp") as machine:
        for level in range(1, 5):
            machine.memory.write(level << 12, (level + 1 << 12 | USED).to_bytes(8, "little"))
        machine.vcpus[0].write_cr3(0x1000)
        yield machine


def test_before_the_first_access_nothing_is_mapped_directly(vm: Vm) -> None:
    walk = vm.walk(GVA)
    assert (walk.guest.address, walk.verdict) == (0x5123, Verdict.MISSING)
    assert walk.shadow is not None
    assert (walk.shadow.name, walk.shadow.start, walk.shadow.end) == ("direct", 0x5123, EntryKind.NO_ROOT)
    assert "the direct tables do not map the page yet" in "\n".join(walk.notes)
    tables = "0x1000 (level 4), 0x2000 (level 3), 0x3000 (level 2), 0x4000 (level 1)"
    assert f"guest tables that are not mapped directly yet, an exit each: {tables}" in walk.notes
    assert "0x5123 through the direct tables: no root is loaded" in repr(walk)


def test_after_an_access_the_direct_tables_map_the_gpa(vm: Vm) -> None:
    before = vm.stats.counters["pf_taken"]
    vm.vcpus[0].access(GVA, "read")
    assert vm.stats.counters["pf_taken"] - before == 5  # as many exits as the walk told
    walk = vm.walk(GVA, kind="write", user=True)
    assert walk.verdict is Verdict.AGREE
    assert walk.shadow is not None
    assert (walk.shadow.address, walk.shadow.levels) == (0x5123, 4)
    assert walk.tlb is not None
    assert (walk.tlb.address, walk.tlb.agrees) == (0x5123, True)
    assert str(walk.access) == "user write: allowed: gpa 0x5123"
    assert "0x5123 through the direct 4-level tables: 0x5123, in a page of 4 KiB, rwx u" in repr(walk)
    assert "direct rwx u" in repr(walk)
    assert not any("an exit each" in note for note in walk.notes)
    found = json.loads(json.dumps(walk.as_dict()))
    assert (found["direct"]["start"], found["verdict"]) == ("0x5123", "agree")


def test_a_tlb_entry_that_the_guest_has_not_invalidated(vm: Vm) -> None:
    vm.vcpus[0].access(GVA, "read")
    vm.memory.write(0x4000, (0x6000 | USED).to_bytes(8, "little"))
    walk = vm.walk(GVA)
    assert (walk.guest.address, walk.verdict) == (0x6123, Verdict.MISSING)
    assert walk.tlb is not None
    assert (walk.tlb.address, walk.tlb.agrees) == (0x5123, False)
    assert "the TLB has 0x5123, rwx u, and the guest tables say otherwise" in walk.notes


def test_a_fault_of_the_guest_has_no_second_dimension(vm: Vm) -> None:
    walk = vm.walk(1 << 30, kind="read")
    assert (walk.guest.end, walk.shadow, walk.verdict) == (EntryKind.NOT_PRESENT, None, Verdict.UNMAPPED)
    assert "the fault is the guest's own, and no exit" in "\n".join(walk.notes)
    assert str(walk.access).endswith("error code 0x0: level 3 (PDPT): not present")
    assert walk._repr_html_()


def test_a_gpa_in_no_memslot_is_mmio(vm: Vm) -> None:
    vm.memory.write(0x4000, (SIZE | USED).to_bytes(8, "little"))
    vm.vcpus[0].access(GVA)
    walk = vm.walk(GVA, kind="read")
    assert walk.verdict is Verdict.MMIO
    assert walk.access is not None
    assert walk.access.outcome == "MMIO"
