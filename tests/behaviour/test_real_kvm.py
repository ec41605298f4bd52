"""The micro guest of a recorded KVM: its counters, reproduced (pingpong: recorded; ptewrite under the v6.19 rules: derived).

4 MiB of memory; table set k at 0x100000 + k * 0x10000: root A maps the first 2 MiB 1:1, root B their first 32 pages. The code
lies at 0x1000. An iteration is MOV CR3 B, MOV CR3 A; in mode 1 the guest then flips one page of A's table, does INVLPG, and reads.
"""

from collections import Counter

import pytest
from tests.behaviour.guest import RWU, Guest, GuestMaker
from tests.behaviour.machines import AnyMachine

from shadow_mmu.model.constants import EVENT_GET_PAGE, EVENT_SET_SPTE, EVENT_SYNC_PAGE, EVENT_UNSYNC_PAGE
from shadow_mmu.types import OpKind

CODE, TARGET = 0x1000, 0x180000


def micro_guest(
    guest: GuestMaker, vcpus: int, iterations: int, *, edit: bool, policy: str = "lru:3"
) -> Guest[AnyMachine]:
    """Run the guest program on each vCPU in turn, one table set each."""
    one = guest.bare(policy, vcpus=vcpus, memory=4 << 20)
    for base in range(0x100000, 0x140000, 0x10000):
        for half, pages in ((0, 512), (0x1000, 32)):
            for table in (0, 0x2000, 0x4000):
                one.poke(base + table + half, base + table + 0x2000 + half | RWU)
            for index in range(pages):
                one.poke(base + 0x6000 + half + 8 * index, index << 12 | RWU)
    for one.vcpu in range(vcpus):
        base = 0x100000 + one.vcpu * 0x10000
        for kind, value in ((OpKind.WRITE_CR0, 0x80010033), (OpKind.WRITE_EFER, 0x500), (OpKind.WRITE_CR4, 0x20)):
            one.host_cr(kind, value)
        one.set_cr3_by_host(base)
        one.fetch(CODE)
        for _ in range(iterations):
            for root in (base + 0x1000, base):
                one.cr3(root)
                assert one.fetch(CODE).value == CODE
            if edit:
                entry = base + 0x6000 + 8 * (TARGET >> 12)
                flipped = one.load(entry) ^ 0x1000
                one.store(entry, flipped)
                one.invlpg(TARGET)
                assert one.read(TARGET).value == flipped & ~0xFFF
    return one


def events(one: Guest[AnyMachine]) -> Counter[int]:
    """Count the trace events by kind."""
    return Counter(record[0] for record in one.trace())


@pytest.mark.parametrize("vcpus", [1, 2])
def test_e164_pingpong_counts_are_those_of_the_recorded_kernel(guest: GuestMaker, vcpus: int) -> None:
    one = micro_guest(guest, vcpus, 50, edit=False)
    counters = {name: count for name, count in one.counters().items() if count}
    assert counters == {
        "pf_taken": 2 * vcpus,
        "pf_fixed": 2 * vcpus,
        "mmu_cache_miss": 8 * vcpus,
        "tlb_flush": 100 * vcpus,
    }
    assert events(one) == {EVENT_GET_PAGE: 8 * vcpus, EVENT_SET_SPTE: 2 * vcpus}
    one.audit()


def test_e164_ptewrite_counts_are_those_derived_for_v6_19(guest: GuestMaker) -> None:
    one = micro_guest(guest, 1, 30, edit=True)
    counters = {name: count for name, count in one.counters().items() if count}
    assert counters == {
        "pf_taken": 63,
        "pf_fixed": 63,
        "mmu_cache_miss": 8,
        "mmu_unsync": 1,
        "remote_tlb_flush_requests": 58,
        "tlb_flush": 89,
        "invlpg": 30,
    }
    assert events(one) == {EVENT_GET_PAGE: 8, EVENT_SET_SPTE: 63, EVENT_UNSYNC_PAGE: 30, EVENT_SYNC_PAGE: 29}
    one.audit()


def test_e164_the_recorded_leaf_values_come_out(guest: GuestMaker) -> None:
    one = micro_guest(guest, 1, 1, edit=True)
    low = [record[5] & 0xFFF for record in one.trace() if record[0] == EVENT_SET_SPTE]
    # Two fetches of the code; the table page read (D clear: no W), then written (unsync); the edited page read.
    assert low == [0xA25, 0xA25, 0xA25, 0xE67, 0xA25]
