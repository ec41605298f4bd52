"""Two-dimensional paging: the hardware walks the guest's tables through one direct root (E018, E028, E042, E044, F-47)."""

from typing import Any

import pytest
from tests.behaviour.guest import MEMORY, PAGE, RWU, USED, A, D, Guest, GuestMaker, P, U, W
from tests.behaviour.machines import AnyMachine
from tests.behaviour.narrow import (
    CR0,
    CR0_OFF,
    DATA,
    LME,
    NXE,
    PAE,
    SMAP,
    SMEP,
    USER,
    map32,
    narrow,
    pae_map,
    pae_root,
    reached,
)

from shadow_mmu.cpu import CpuModel
from shadow_mmu.model.constants import (
    CR0_WP,
    CR4_LA57,
    CR4_PGE,
    INVALID_ROOT,
    REQ_LOAD_MMU_PGD,
    REQ_MMU_SYNC,
    REQ_TLB_FLUSH_CURRENT,
    REQ_TLB_FLUSH_GUEST,
    WORD,
)
from shadow_mmu.model.role import TDP_ROLE
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

TDP = [f"{name},mmu=tdp" for name in ("locked", "seed", "lru:0", "lru:3")]
CACHING = TDP[2:]
OUTSIDE = MEMORY << 4


def locks(moved: dict[str, int]) -> dict[str, int]:
    """The acquisitions among what moved, by reason."""
    return {name.removeprefix("lock."): count for name, count in moved.items() if name.startswith("lock.")}


def root_page(one: Guest[AnyMachine], vcpu: int | None = None) -> int:
    """The shadow page that a vCPU has as its root."""
    hpa = one.roots(vcpu)[0][1]
    (page,) = (page["id"] for page in one.machine.shadow_pages() if page["hpa"] == hpa)
    assert isinstance(page, int)
    return page


@pytest.mark.parametrize("policy", CACHING)
def test_e018_any_cr3_value_hits_without_a_lock_or_a_new_shadow_page(guest: GuestMaker, policy: str) -> None:
    one, (a, b, c) = guest(policy, 3)
    one.visit(a, b, c)
    pages = one.machine.shadow_pages()
    with one.moved() as moved:
        one.visit(a, c, b)
        for value in (OUTSIDE, 0, c | 0x18):
            assert one.cr3(value).code == OutcomeCode.OK
    assert locks(moved) == {}
    assert "mmu_cache_miss" not in moved
    assert one.machine.shadow_pages() == pages
    assert one.cached() == [None] * len(one.cached())
    one.audit()


def test_e018_before_the_patch_a_switch_frees_and_loads_and_syncs_nothing(guest: GuestMaker) -> None:
    one, (a, b) = guest("locked,mmu=tdp")
    one.visit(a, b)
    with one.moved() as moved:
        one.visit(a)
    # E001 has three: the sync of a direct root is none.
    assert locks(moved) == {"free": 1, "load": 1}
    assert "mmu_cache_miss" not in moved
    with one.moved() as same:
        one.visit(a)
    assert same == {"tlb_flush": 1}
    one.audit()


def test_e018_the_seed_goes_by_its_tag_and_finds_the_same_page_on_a_miss(guest: GuestMaker) -> None:
    one, (a, b, c) = guest("seed,mmu=tdp", 3)
    one.visit(a, b, c)
    root = root_page(one)
    with one.moved() as hit:
        one.visit(b)
    assert (locks(hit), hit["tlb_flush"]) == ({}, 1)
    with one.moved() as miss:
        one.visit(a)
    assert locks(miss) == {"free": 1, "load": 1}
    assert "mmu_cache_miss" not in hit | miss
    assert root_page(one) == root
    assert one.roots()[1][0] == b
    one.audit()


def test_e018_the_seed_switches_only_64_bit_guests_fast(guest: GuestMaker) -> None:
    one = narrow(guest, "seed,mmu=tdp", PAE)
    roots = [pae_root(one, one.table()) for _ in range(2)]
    for root in roots * 2:
        one.cr3(root)
        one.enter()
    with one.moved() as moved:
        one.cr3(roots[0])
        one.enter()
    assert locks(moved) == {"free": 1, "load": 1}
    one.audit()


@pytest.mark.parametrize("policy", TDP)
def test_e018_a_cr3_outside_memory_is_the_guests_own_fault_but_for_the_seeds_check(
    guest: GuestMaker, policy: str
) -> None:
    one, (a,) = guest(policy, 1)
    one.visit(a)
    assert one.cr3(OUTSIDE).code == OutcomeCode.OK
    outcome = one.read(PAGE)
    if policy.startswith("seed"):
        assert outcome.code == OutcomeCode.TRIPLE_FAULT  # A.1 step 3
        return
    assert outcome == (OutcomeCode.PAGE_FAULT, PAGE, 0)
    one.visit(a)
    one.audit()


@pytest.mark.parametrize("policy", CACHING)
def test_e028_a_direct_root_is_tagged_0_and_serves_every_pgd(guest: GuestMaker, policy: str) -> None:
    one, (a, b) = guest(policy)
    one.go(a)
    one.enter()
    (tag, root), *_ = one.roots()
    assert tag == 0
    one.cr3(b)
    assert one.roots()[0] == (0, root)
    assert one.state().requests == REQ_LOAD_MMU_PGD | REQ_TLB_FLUSH_GUEST
    assert one.fetch(PAGE).value == 0x401000


def test_e037_a_reset_of_the_context_frees_the_direct_root_though_its_role_stays(guest: GuestMaker) -> None:
    one, (a, b) = guest("lru:3,mmu=tdp")
    one.visit(a)
    one.run(OpKind.WRITE_CR4, PAE | SMEP)  # resets the context
    assert one.roots()[0] == (0, INVALID_ROOT)
    one.cr3(b)
    assert one.roots()[0] == (0, INVALID_ROOT)  # nothing cached that could hit
    with one.moved() as moved:
        one.enter()
    assert locks(moved) == {"load": 1}


@pytest.mark.parametrize("policy", TDP)
def test_e044_e042_in_every_mode_the_guest_has_the_same_root_of_four_levels(guest: GuestMaker, policy: str) -> None:
    one = guest.bare(policy, vcpus=2)
    long4 = one.table()
    one.map(long4, PAGE, DATA, USED)
    directory = one.table()
    pae = pae_root(one, directory)
    pae_map(one, directory, PAGE, DATA + 0x1000)
    bits32 = one.table()
    map32(one, bits32, PAGE, DATA + 0x2000)
    top = one.table()
    one.poke(top, long4 | RWU)
    modes = [
        (CR0, PAE, LME | NXE, long4, DATA),
        (CR0, PAE, NXE, pae, DATA + 0x1000),
        (CR0, 0, NXE, bits32, DATA + 0x2000),
        (CR0_OFF, 0, NXE, 0, PAGE),
        (CR0, PAE | CR4_LA57, LME | NXE, top, DATA),
        (CR0, PAE, LME | NXE, long4, DATA),
    ]
    seen = set()
    for cr0, cr4, efer, cr3, target in modes:
        for kind, value in (
            (OpKind.WRITE_CR0, CR0_OFF),
            (OpKind.WRITE_CR4, cr4),
            (OpKind.WRITE_EFER, efer),
            (OpKind.WRITE_CR3, cr3),
            (OpKind.WRITE_CR0, cr0),
        ):
            one.host_cr(kind, value)
        assert one.read(PAGE | 8) == reached(target | 8)
        assert one.write(PAGE | 8) == reached(target | 8)
        seen.add(root_page(one))
        one.audit()
    assert len(seen) == 1
    (root,) = (page for page in one.machine.shadow_pages() if page["id"] in seen)
    assert (root["gfn"], root["role"], root["root_count"]) == (0, TDP_ROLE, 1)
    # The page hash gives the other vCPU the same root and all that is below it.
    one.vcpu = 1
    one.set_cr3_by_host(long4)
    with one.moved() as moved:
        assert one.read(PAGE) == reached(DATA)
    assert moved == {"lock.load": 1}
    assert root_page(one) in seen


@pytest.mark.parametrize("policy", TDP)
def test_e044_each_table_and_the_page_itself_costs_one_exit_and_no_other_does(guest: GuestMaker, policy: str) -> None:
    one, (a,) = guest(policy, 1)
    one.go(a)
    one.enter()
    with one.moved() as moved:
        one.visit(a)
    assert (moved["pf_taken"], moved["pf_fixed"], moved["lock.fault"]) == (5, 5, 5)
    sptes = {page["gfn"] + at: spte for page in leaves(one) for at, spte in page["sptes"].items()}
    assert len(sptes) == 5
    # All rights, accessed, dirty, writable for host and MMU: whatever the guest's entries say.
    assert {spte & (WORD ^ ((1 << 52) - 0x1000)) for spte in sptes.values()} == {0xE67}
    with one.moved() as again:
        assert one.run(OpKind.READ, PAGE).code == OutcomeCode.OK
    assert again == {}


def leaves(one: Guest[AnyMachine]) -> list[dict[str, Any]]:
    """The direct pages of level 1."""
    pages = one.machine.shadow_pages()
    assert all(page["direct"] and not page["unsync"] for page in pages)
    return [page for page in pages if page["level"] == 1]


@pytest.mark.parametrize("policy", TDP)
def test_e044_a_guests_fault_is_no_exit(guest: GuestMaker, policy: str) -> None:
    one, (a,) = guest(policy, 1)
    one.map(a, 0x2000, DATA + 0x3000, P | A)
    one.visit(a)
    one.read(0x2000)
    with one.moved() as moved:
        assert one.write(0x2000) == (OutcomeCode.PAGE_FAULT, 0x2000, 3)
        assert one.read(0x2000, USER) == (OutcomeCode.PAGE_FAULT, 0x2000, 5)
        assert one.read(0x3000, USER) == (OutcomeCode.PAGE_FAULT, 0x3000, 4)
    assert moved == {}


@pytest.mark.parametrize("policy", TDP)
def test_e044_no_guest_table_is_write_protected_unsync_or_zapped(guest: GuestMaker, policy: str) -> None:
    one, (a,) = guest(policy, 1)
    gpte = one.entry(a, PAGE)
    through = [one.window(a, gpa, USED) for gpa in (gpte, a)]
    one.visit(a)
    for gva in through:
        one.load(gva)
    pages = one.machine.shadow_pages()
    with one.moved() as moved:
        for number in range(5):  # four of them would flood a shadowed table (E144)
            assert one.store(through[0], DATA + 0x7000 + number * 0x1000 | USED).code == OutcomeCode.OK
            assert one.store(through[1], one.load(through[1])).code == OutcomeCode.OK
        one.poke(gpte, DATA + 0x5000 | USED)  # nor does the hypervisor's write drop anything
    assert moved == {"lock.host": 1}
    assert one.machine.shadow_pages() == pages
    one.audit()


@pytest.mark.parametrize("policy", TDP)
def test_e044_the_hardware_sets_a_and_d_of_the_guests_entries(guest: GuestMaker, policy: str) -> None:
    one, (a,) = guest(policy, 1)
    gpte = one.map(a, 0x5000, DATA, RWU)
    upper = one.entry(a, 0x5000, 2)
    one.visit(a)
    one.poke(upper, one.peek(upper) & ~A)
    one.run(OpKind.WRITE_CR4, PAE | CR4_PGE)  # flush
    one.read(0x5000)
    assert (one.peek(gpte), one.peek(upper) & (A | D)) == (DATA | RWU | A, A)
    with one.moved() as moved:
        one.write(0x5000)
    assert one.peek(gpte) == DATA | RWU | A | D
    assert moved == {}  # the TLB's entry knew that D was clear: a walk, no exit
    assert one.state().tlb[5] & (W | D) == W | D


@pytest.mark.parametrize("policy", TDP)
def test_e044_the_tlb_keeps_the_guests_rights(guest: GuestMaker, policy: str) -> None:
    one, (a,) = guest(policy, 1)
    one.map(a, 0x2000, DATA, P | U | A | D)
    one.visit(a)
    assert one.read(0x2000, USER) == reached(DATA)
    assert one.state().tlb[2] & (P | W | U | A | D) == P | U | A | D
    assert one.write(0x2000, USER).error == 7
    one.run(OpKind.WRITE_CR4, PAE | SMAP | SMEP)
    assert one.read(0x2000).error == 1
    assert one.read(0x2000, int(OpFlag.AC)) == reached(DATA)
    assert one.fetch(0x2000).error == 0x11


@pytest.mark.parametrize("policy", TDP)
def test_e112_a_toggle_of_wp_alone_keeps_the_direct_root_since_6_4_and_no_stale_right_survives(
    guest: GuestMaker, policy: str
) -> None:
    one, (a,) = guest(policy, 1)
    gpte = one.map(a, 0x2000, DATA, P | A)
    one.visit(a)
    one.read(0x2000)
    with one.moved() as moved:
        assert one.write(0x2000).error == 3
        one.run(OpKind.WRITE_CR0, CR0 & ~CR0_WP)
        assert one.read(0x2000) == reached(DATA)  # a TLB entry without W and D
        assert one.write(0x2000) == reached(DATA)
        assert one.peek(gpte) & D
        one.poke(gpte, DATA + 0x1000 | P | A)
        assert one.write(0x2000) == reached(DATA)  # through the entry with D, still without W
        one.run(OpKind.WRITE_CR0, CR0)
        assert one.write(0x2000).error == 3
    assert locks(moved) == {"host": 1} | ({} if policy.startswith("lru") else {"free": 2, "load": 2})
    one.run(OpKind.WRITE_CR4, PAE | SMEP)  # the others reset the context
    assert one.roots()[0] == (0, INVALID_ROOT)
    one.audit()


@pytest.mark.parametrize("policy", TDP)
def test_f47_a_cr3_write_flushes_what_the_hardware_has_of_the_guests_tables(guest: GuestMaker, policy: str) -> None:
    one, (a, b) = guest(policy)
    one.visit(b, a)
    gpte = one.entry(a, PAGE)
    for number, values in enumerate(([a], [b, a])):
        target = DATA + 0x10000 + number * 0x1000
        one.poke(gpte, target | USED)
        assert one.fetch(PAGE).value != target  # the guest owes the flush
        for value in values:
            one.cr3(value)
        if policy in CACHING:
            assert one.state().requests & (REQ_TLB_FLUSH_GUEST | REQ_TLB_FLUSH_CURRENT | REQ_MMU_SYNC) == (
                REQ_TLB_FLUSH_GUEST
            )
        assert one.fetch(PAGE).value == target
    one.audit()


@pytest.mark.parametrize("policy", TDP)
def test_e063_invlpg_drops_the_page_from_the_tlb_and_takes_no_lock(guest: GuestMaker, policy: str) -> None:
    one, (a,) = guest(policy, 1)
    one.visit(a)
    one.poke(one.entry(a, PAGE), DATA + 0x10000 | USED)
    assert one.fetch(PAGE).value != DATA + 0x10000
    with one.moved() as moved:
        one.invlpg(PAGE)
    assert moved == {"invlpg": 1}
    assert one.fetch(PAGE).value == DATA + 0x10000


@pytest.mark.parametrize("policy", TDP)
def test_e044_an_address_outside_memory_is_mmio_for_a_page_and_a_fault_for_a_table(
    guest: GuestMaker, policy: str
) -> None:
    one, (a,) = guest(policy, 1)
    one.map(a, 0x2000, OUTSIDE, USED)
    one.poke(one.entry(a, 0x20_0000, 2), OUTSIDE | RWU)
    one.map(a, 0x3000, 1 << 45 | 0x1000, USED)
    one.visit(a)
    for gva, gpa in ((0x2008, OUTSIDE | 8), (0x3010, 1 << 45 | 0x1010)):
        with one.moved() as moved:
            assert one.write(gva) == (OutcomeCode.MMIO, gpa, 0)
        assert moved == {"pf_taken": 1, "mmio_exits": 1}
    with one.moved() as moved:
        assert one.write(0x20_0000, USER) == (OutcomeCode.PAGE_FAULT, 0x20_0000, 6)
    assert moved == {"pf_taken": 1, "pf_guest": 1}
    one.machine.add_memslot(OUTSIDE, 0x1000)
    one.poke(OUTSIDE, DATA | USED)
    assert one.read(0x2008) == reached(OUTSIDE | 8)
    assert one.write(0x20_0000) == reached(DATA)
    one.audit()


def test_e044_addresses_of_more_than_48_bits_lead_to_no_direct_entry(guest: GuestMaker) -> None:
    one = guest.bare("lru:3,mmu=tdp", cpu=CpuModel(maxphyaddr=52))
    root = one.table()
    one.map(root, PAGE, DATA, USED)
    one.map(root, 0x2000, 1 << 50 | DATA, USED)  # the low 48 bits are a page that is mapped
    one.visit(root)
    assert one.read(0x2000) == (OutcomeCode.MMIO, 1 << 50 | DATA, 0)
    assert one.cr3(1 << 49 | root).code == OutcomeCode.OK
    assert one.read(PAGE) == (OutcomeCode.PAGE_FAULT, PAGE, 0)


@pytest.mark.parametrize("policy", TDP)
def test_e044_the_host_unmaps_a_frame_by_its_reverse_map_and_flushes_every_vcpu(guest: GuestMaker, policy: str) -> None:
    one, (a,) = guest(policy, 1, vcpus=2)
    for vcpu in (1, 0):
        one.vcpu = vcpu
        one.visit(a)
    gfn = 0x400000 >> 12
    with one.moved() as moved:
        one.run(OpKind.ZAP_GFN, gfn)
        one.run(OpKind.ZAP_GFN, gfn)  # nothing is mapped any more
    assert moved == {"lock.zap": 2, "remote_tlb_flush_requests": 1}
    assert all(gfn - page["gfn"] not in page["sptes"] for page in leaves(one))
    one.audit()
    for vcpu, exits in ((0, 1), (1, 0)):
        one.vcpu = vcpu
        with one.moved() as moved:
            assert one.fetch(PAGE).value == 0x400000
        assert (moved.get("pf_fixed", 0), moved["tlb_flush"]) == (exits, 1)
    one.audit()


@pytest.mark.parametrize("policy", TDP)
def test_e101_other_pdptrs_leave_the_direct_root_and_flush(guest: GuestMaker, policy: str) -> None:
    one = narrow(guest, policy, PAE)
    old, new = one.table(), one.table()
    root = pae_root(one, old)
    pae_map(one, old, PAGE, DATA)
    pae_map(one, new, PAGE, DATA + 0x1000)
    one.cr3(root)
    assert one.read(PAGE) == reached(DATA)
    one.poke(root, new | P)
    one.invlpg(PAGE)
    assert one.read(PAGE) == reached(DATA)  # they were loaded with CR3
    with one.moved() as moved:
        one.run(OpKind.WRITE_CR0, CR0 | 1 << 30)  # CD, one of the writes that load them
        assert one.read(PAGE) == reached(DATA + 0x1000)
    assert "lock.free" not in moved
    one.poke(root + 8, 1 << 5 | P)
    assert one.cr3(root).code == OutcomeCode.GP
    one.audit()


def test_e044_a_table_that_is_its_own_child_is_walked_to_an_end(guest: GuestMaker) -> None:
    one = guest.bare("lru:3,mmu=tdp")
    root = one.table()
    one.poke(root + 8 * 8, root | RWU)
    one.go(root)
    gva = sum(8 << shift for shift in (12, 21, 30, 39))
    assert one.read(gva) == reached(root)
    assert one.peek(root + 64) == root | RWU | A
    assert one.write(gva) == reached(root)
    assert one.peek(root + 64) == root | RWU | A | D
    one.audit()
