"""Cached roots of four entries, ``pae_roots=cached``: what E017 forbids, by the rules of 4-level roots (E001-E032, F-10)."""

import pytest
from tests.behaviour.guest import USED, GuestMaker, P
from tests.behaviour.narrow import (
    CR0,
    CR0_OFF,
    DATA,
    PAE,
    PGE,
    map32,
    narrow,
    pae_map,
    pae_root,
    reached,
    set32,
)

from shadow_mmu.model.constants import (
    CR4_PSE,
    DUMMY_ROOT,
    INVALID_ROOT,
    PAE_ROOT,
    REQ_MMU_SYNC,
    REQ_TLB_FLUSH_CURRENT,
    REQ_TRIPLE_FAULT,
)
from shadow_mmu.types import OpKind, OutcomeCode

CACHED = ["seed,pae_roots=cached", "lru:1,pae_roots=cached", "lru:3,pae_roots=cached"]
WIDTHS = ["PAE", "32-bit"]
GVA, WINDOW = 0x1000, 0x40_0000
PAGE = 0x1000


class Narrow:
    """A PAE or 32-bit guest whose roots map ``GVA`` to a frame of their own and ``WINDOW`` to the table behind it."""

    def __init__(self, guest: GuestMaker, policy: str, width: str, roots: int = 2, *, vcpus: int = 1) -> None:
        self.pae = width == "PAE"
        self.one = narrow(guest, policy, PAE if self.pae else CR4_PSE, vcpus=vcpus)
        self.size = 8 if self.pae else 4
        self.entries: list[int] = []
        self.roots = [self._root(number) for number in range(roots)]

    def _root(self, number: int) -> int:
        one, frame = self.one, DATA + number * PAGE
        if self.pae:
            directory = one.table()
            root = pae_root(one, directory)
            entry = pae_map(one, directory, GVA, frame)
            pae_map(one, directory, WINDOW, entry & ~0xFFF)
        else:
            root = one.table()
            entry = map32(one, root, GVA, frame)
            map32(one, root, WINDOW, entry & ~0xFFF)
        self.entries.append(entry)
        return root

    def visit(self, *numbers: int) -> None:
        """Switch to each root in turn and read its page."""
        for number in numbers:
            assert self.one.cr3(self.roots[number]).code == OutcomeCode.OK
            assert self.one.read(GVA) == reached(DATA + number * PAGE), number

    def edit(self, number: int, frame: int) -> None:
        """Let the guest, on this root, map its page elsewhere, without a flush."""
        at = WINDOW | self.entries[number] & 0xFFF
        assert self.one.store(at, frame | USED, self.size).code == OutcomeCode.OK

    def directory(self, number: int) -> int:
        """The page directory of a root."""
        root = self.roots[number]
        return self.one.peek(root) & ~0xFFF if self.pae else root


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("policy", CACHED)
def test_e017_e001_a_clean_switch_back_takes_no_lock_and_each_is_counted(
    guest: GuestMaker, policy: str, width: str
) -> None:
    it = Narrow(guest, policy, width)
    it.visit(0, 1)
    before = it.one.locks()
    it.visit(0, 1, 0)
    assert it.one.locks() == before
    cr3 = it.one.machine.stats()["cr3"]
    assert (cr3["writes"], cr3["lockless"], cr3["locked_miss"]) == (4, 3, 1)
    it.one.audit()


@pytest.mark.parametrize("width", WIDTHS)
def test_e017_locked_has_no_cache_to_put_them_into(guest: GuestMaker, width: str) -> None:
    states = []
    for policy in ("locked", "locked,pae_roots=cached"):
        it = Narrow(guest, policy, width, vcpus=2)
        it.visit(0, 1, 0)
        it.one.vcpu = 1
        it.visit(1)
        it.one.run(OpKind.ZAP_GFN, it.directory(1) >> 12)
        it.one.vcpu = 0
        with it.one.moved() as moved:
            it.one.enter()
        assert (moved["lock.free"], moved["lock.load"]) == (1, 1), "whose page was zapped, nobody can tell (E151)"
        assert it.one.machine.stats()["cr3"]["lockless"] == 0
        states.append(it.one.machine.state_words())
    assert states[0] == states[1]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("policy", CACHED)
def test_e050_e052_an_unsync_page_of_a_cached_root_is_synced_by_one_lock_at_the_switch_back(
    guest: GuestMaker, policy: str, width: str
) -> None:
    it = Narrow(guest, policy, width)
    it.visit(0, 1, 0)
    it.edit(0, DATA + 0x9000)
    assert it.one.counters()["mmu_unsync"] == 1
    it.visit(1)
    with it.one.moved() as moved:
        it.one.cr3(it.roots[0])
        it.one.enter()
    assert {name: count for name, count in moved.items() if name.startswith("lock.")} == {"lock.sync": 1}
    assert it.one.read(GVA) == reached(DATA + 0x9000)
    assert it.one.machine.stats()["cr3"]["locked_unsync"] == 1
    with it.one.moved() as clean:
        it.one.cr3(it.roots[0])
        it.one.enter()
    assert not [name for name in clean if name.startswith("lock.")], "the same value, and nothing to sync"
    it.one.audit()


@pytest.mark.parametrize("gib", range(4))
@pytest.mark.parametrize("policy", CACHED)
def test_e052_the_flags_of_each_of_the_four_pages_are_looked_at(guest: GuestMaker, policy: str, gib: int) -> None:
    one = narrow(guest, policy, PAE)
    directories = [one.table() for _ in range(4)]
    gva = (gib << 30) + GVA
    entry = pae_map(one, directories[gib], gva, DATA)
    pae_map(one, directories[gib], (gib << 30) + WINDOW, entry & ~0xFFF)
    root, other = pae_root(one, *directories), pae_root(one)
    one.cr3(other)
    one.enter()
    one.cr3(root)
    assert one.read(gva) == reached(DATA)
    one.store((gib << 30) + WINDOW | entry & 0xFFF, DATA + 0x5000 | USED)
    one.cr3(other)
    one.enter()
    one.cr3(root)
    assert one.read(gva) == reached(DATA + 0x5000)
    assert one.lock_reasons()["sync"] == 1
    one.audit()


@pytest.mark.parametrize("policy", CACHED)
def test_f10_a_root_parked_before_its_pdptr_changed_is_not_used_again(guest: GuestMaker, policy: str) -> None:
    it = Narrow(guest, policy, "PAE")
    new = it.one.table()
    pae_map(it.one, new, GVA, DATA + 0x7000)
    it.visit(0, 1)
    old = it.one.peek(it.roots[0])
    it.one.poke(it.roots[0], new | P)
    it.one.cr3(it.roots[0])
    with it.one.moved() as moved:
        assert it.one.read(GVA) == reached(DATA + 0x7000)
    assert moved["lock.load"] == 1
    assert it.one.state().made_of[0] == (new | P, 0, 0, 0)
    it.visit(1)
    it.one.poke(it.roots[0], old)
    it.visit(0)
    it.one.audit()


@pytest.mark.parametrize("policy", CACHED)
def test_f10_a_reload_of_the_pdptrs_frees_the_roots_of_this_cr3_and_keeps_the_others(
    guest: GuestMaker, policy: str
) -> None:
    it = Narrow(guest, policy, "PAE")
    new = it.one.table()
    pae_map(it.one, new, GVA, DATA + 0x7000)
    first = it.one.peek(it.roots[0])
    it.visit(1, 0)
    parked = it.one.roots()[1]
    for number, pdptr in enumerate((new | P, first, new | P)):
        it.one.poke(it.roots[0], pdptr)
        # By the same value (E010), by CR4, by CR0.
        done = (
            it.one.cr3(it.roots[0]),
            it.one.run(OpKind.WRITE_CR4, PAE | (PGE if number == 1 else 0)),
            it.one.run(OpKind.WRITE_CR0, CR0 | (1 << 30 if number == 2 else 0)),
        )
        assert {outcome.code for outcome in done} == {OutcomeCode.OK}
        assert it.one.read(GVA) == reached(DATA if pdptr == first else DATA + 0x7000)
        it.one.audit()
    if (
        it.one.state().cr4 == PAE
    ):  # CR4.PGE asks for a flush of the guest's TLB, which leaves clean roots where they are
        assert parked in it.one.roots()
    before = it.one.locks()
    it.one.cr3(it.roots[1])
    assert it.one.read(GVA) == reached(DATA + PAGE)
    assert it.one.locks() == before


def test_i17_a_root_that_is_parked_is_not_made_a_second_time(guest: GuestMaker) -> None:
    it = Narrow(guest, "lru:3,pae_roots=cached", "PAE")
    new = it.one.table()
    pae_map(it.one, new, GVA, DATA + 0x7000)
    first = it.one.peek(it.roots[0])
    it.visit(0, 1)
    it.one.poke(it.roots[0], new | P)
    it.one.cr3(it.roots[0])
    it.one.enter()
    it.one.poke(it.roots[0], first)
    it.one.cr3(it.roots[0])  # what this root is to be made of, a parked one is made of already
    assert it.one.read(GVA) == reached(DATA)
    assert it.one.cached().count(it.roots[0]) == 0
    it.one.audit()


@pytest.mark.parametrize("policy", CACHED)
def test_b3_a_cached_root_does_not_excuse_pdptrs_that_must_not_be_loaded(guest: GuestMaker, policy: str) -> None:
    it = Narrow(guest, policy, "PAE")
    it.visit(0, 1)
    it.one.poke(it.roots[0] + 8, P | 1 << 5)
    state = it.one.machine.state_words()
    assert it.one.cr3(it.roots[0]) == (OutcomeCode.GP, 0, 0)
    assert it.one.machine.state_words() == state


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("policy", CACHED)
def test_e024_e149_a_root_of_which_one_page_was_zapped_is_no_hit(guest: GuestMaker, policy: str, width: str) -> None:
    it = Narrow(guest, policy, width)
    it.visit(0, 1)
    it.one.run(OpKind.ZAP_GFN, it.directory(0) >> 12)
    it.one.cr3(it.roots[0])  # the request to free it is pending still
    assert it.one.roots()[0][1] == INVALID_ROOT
    with it.one.moved() as moved:
        assert it.one.read(GVA) == reached(DATA)
    assert moved["lock.load"] == 1
    it.one.audit()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("policy", CACHED)
def test_e151_a_zap_frees_the_root_whose_page_it_was_and_leaves_the_others(
    guest: GuestMaker, policy: str, width: str
) -> None:
    it = Narrow(guest, policy, width)
    it.visit(0, 1)
    it.one.run(OpKind.ZAP_GFN, it.directory(0) >> 12)
    current = it.one.roots()[0]
    it.one.enter()
    assert it.one.roots()[0] == current
    assert it.one.roots()[1][1] == INVALID_ROOT
    assert it.one.state().pae[1] == (0, 0, 0, 0)
    it.visit(0)
    it.one.run(OpKind.ZAP_GFN, it.directory(0) >> 12)
    it.one.enter()
    before = it.one.locks()
    it.visit(1)
    assert it.one.locks() == before
    it.one.audit()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("policy", CACHED)
def test_e005_e006_a_miss_parks_the_outgoing_root_with_its_tag_and_its_entries(
    guest: GuestMaker, policy: str, width: str
) -> None:
    it = Narrow(guest, policy, width, 3)
    it.visit(0, 1)
    state = it.one.state()
    it.visit(2)
    after = it.one.state()
    assert (after.roots[1][0], after.roots[1][1]) == (it.roots[1], state.roots[0][1])
    assert (after.pae[1], after.made_of[1]) == (state.pae[0], state.made_of[0])
    tables = [hpa for _, hpa in after.roots if hpa != INVALID_ROOT]
    assert len(set(tables)) == len(tables)
    assert set(tables) <= {PAE_ROOT - 0x1000 * table for table in range(len(after.roots))}
    it.one.audit()


@pytest.mark.parametrize(("target", "after"), [(0, "C210"), (1, "2C10"), (2, "1C20"), (3, "0C21"), (4, "4C21")])
@pytest.mark.parametrize("width", WIDTHS)
def test_e026_rotation_order_of_a_hit_at_each_position_and_of_a_miss(
    guest: GuestMaker, target: int, after: str, width: str
) -> None:
    it = Narrow(guest, "lru:3,pae_roots=cached", width, 5)
    names = dict(zip(it.roots, "012C4", strict=True))
    it.visit(0, 1, 2, 3)
    entries = {pgd: it.one.state().pae[at] for at, (pgd, _) in enumerate(it.one.roots())}
    it.visit({0: 3, 1: 2, 2: 1, 3: 0, 4: 4}[target])
    state = it.one.state()
    assert "".join(names[pgd] for pgd, _ in state.roots) == after
    assert all(entries.get(pgd, state.pae[at]) == state.pae[at] for at, (pgd, _) in enumerate(state.roots))
    it.one.audit()


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_e029_a_switch_without_a_current_root_closes_the_gap(guest: GuestMaker, wanted: int) -> None:
    it = Narrow(guest, "lru:3,pae_roots=cached", "32-bit", 4)
    it.visit(0, 1, 2, 3)
    it.one.cr3(0x700_0000)
    it.one.enter()
    assert it.one.roots()[0][1] == DUMMY_ROOT
    cached = [pgd for pgd, _ in it.one.roots()[1:]]
    it.one.cr3(cached[wanted] or 0)
    assert it.one.roots()[0][0] == cached[wanted]
    assert it.one.cached() == [pgd for at, pgd in enumerate(cached) if at != wanted] + [None]
    it.one.enter()
    it.one.audit()


@pytest.mark.parametrize("size", [0, 1, 2, 5, 16])
def test_e032_the_cache_holds_n_roots_of_four_entries(guest: GuestMaker, size: int) -> None:
    it = Narrow(guest, f"lru:{size},pae_roots=cached", "PAE", size + 2)
    it.visit(*range(size + 2))
    with it.one.moved() as moved:
        it.visit(*range(size + 1, 0, -1))
    assert "lock.load" not in moved
    with it.one.moved() as moved:
        it.visit(0)
    assert moved["lock.load"] == 1
    it.one.audit()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("policy", CACHED)
def test_e020_a_hit_clears_the_flooding_count_of_every_page_of_the_root(
    guest: GuestMaker, policy: str, width: str
) -> None:
    it = Narrow(guest, policy, width)
    directory = it.directory(0)
    if it.pae:
        pae_map(it.one, directory, 2 * WINDOW, directory)
    else:
        map32(it.one, it.roots[0], 2 * WINDOW, directory)
    it.visit(1, 0)
    it.one.store(2 * WINDOW + 0xC00, 0, it.size)
    it.one.store(2 * WINDOW + 0xC08, 0, it.size)
    counts = [page["flooding"] for page in it.one.pages(directory, level=2)]
    # As a PAE guest's count, zeroed by the fault on its own path before the second write; the other quadrants count both.
    assert sorted(counts) == ([1] if it.pae else [1, 2, 2, 2])
    it.one.cr3(it.roots[1])
    assert [page["flooding"] for page in it.one.pages(directory, level=2)] == counts
    it.one.cr3(it.roots[0])
    assert {page["flooding"] for page in it.one.pages(directory, level=2)} == {0}


def test_e019_a_hit_syncs_in_the_switch_under_seed_and_requests_it_under_lru(guest: GuestMaker) -> None:
    for policy in ("seed", "lru:3"):
        it = Narrow(guest, f"{policy},pae_roots=cached", "PAE")
        it.visit(1, 0)
        it.edit(0, DATA + 0x9000)
        it.visit(1)
        with it.one.moved() as switch:
            it.one.cr3(it.roots[0])
        assert ("lock.sync" in switch) is (policy == "seed")
        if policy == "lru:3":
            assert it.one.state().requests & (REQ_MMU_SYNC | REQ_TLB_FLUSH_CURRENT) == (
                REQ_MMU_SYNC | REQ_TLB_FLUSH_CURRENT
            )
        assert it.one.read(GVA) == reached(DATA + 0x9000)


@pytest.mark.parametrize("width", WIDTHS)
def test_e063_invlpg_under_lru_syncs_the_entry_below_every_cached_root(guest: GuestMaker, width: str) -> None:
    """Two roots share a table. On one the guest edits it, and INVLPG there must leave no unsync entry under the other."""
    it = Narrow(guest, "lru:3,pae_roots=cached", width, 1)
    if it.pae:
        it.roots.append(pae_root(it.one, it.directory(0)))
    else:
        it.roots.append(it.one.table())
        set32(it.one, it.roots[1], int.from_bytes(it.one.machine.memory.read(it.roots[0], 4), "little"))
        set32(it.one, it.roots[1] + 4, int.from_bytes(it.one.machine.memory.read(it.roots[0] + 4, 4), "little"))
    for root in (it.roots[1], it.roots[0]):
        it.one.cr3(root)
        assert it.one.read(GVA) == reached(DATA)
    it.edit(0, DATA + 0x9000)
    with it.one.moved() as moved:
        it.one.invlpg(GVA)
    assert moved["lock.invlpg"] == 2
    it.one.audit()


@pytest.mark.parametrize("width", WIDTHS)
def test_e076_a_flush_of_the_guests_tlb_frees_the_parked_roots_that_are_unsync_and_only_those(
    guest: GuestMaker, width: str
) -> None:
    it = Narrow(guest, "lru:3,pae_roots=cached", width, 3)
    it.visit(0, 1, 2, 0)
    it.edit(0, DATA + 0x9000)
    it.visit(1)
    cr4 = it.one.state().cr4
    assert it.one.cached() == [it.roots[0], it.roots[2], None]
    assert it.one.run(OpKind.WRITE_CR4, cr4 ^ PGE).code == OutcomeCode.OK
    it.one.enter()
    assert it.one.cached() == [None, it.roots[2], None]
    it.one.audit()


@pytest.mark.parametrize("policy", CACHED)
def test_e042_without_paging_nothing_is_cached(guest: GuestMaker, policy: str) -> None:
    it = Narrow(guest, policy, "32-bit")
    it.visit(0, 1)
    it.one.host_cr(OpKind.WRITE_CR0, CR0_OFF)
    assert set(it.one.cached()) == {None}, "a change of mode drops every root (E037)"
    for root in (*it.roots, *it.roots):
        with it.one.moved() as moved:
            it.one.cr3(root)
            assert it.one.read(0x3000) == reached(0x3000)
        assert set(it.one.cached()) == {None}
        assert moved["lock.load"] == 1
    it.one.audit()


@pytest.mark.parametrize("policy", CACHED)
def test_e016_a_cached_root_that_lacks_a_page_gets_it_once_its_slot_is_there(guest: GuestMaker, policy: str) -> None:
    it = Narrow(guest, policy, "PAE", 1)
    far = 0x4000_0000
    root = pae_root(it.one, far)
    it.one.cr3(root)
    assert it.one.read(GVA) == (OutcomeCode.PAGE_FAULT, GVA, 0)
    it.visit(0)
    it.one.machine.add_memslot(far, 0x10000)
    it.one.poke(far, far + 0x1000 | USED)
    it.one.poke(far + 0x1008, DATA + 0x3000 | USED)
    before = it.one.locks()
    it.one.cr3(root)
    it.one.enter()
    assert it.one.locks() == before, "it is a hit as it is"
    assert it.one.read(GVA) == reached(DATA + 0x3000)
    it.visit(0)
    it.one.audit()


def test_e015_under_seed_a_32_bit_root_outside_memory_is_a_triple_fault_asked_for_in_the_switch(
    guest: GuestMaker,
) -> None:
    it = Narrow(guest, "seed,pae_roots=cached", "32-bit")
    it.visit(1, 0)
    parked = it.one.roots()[1][1]
    it.one.cr3(0x700_0000)
    assert it.one.state().requests == REQ_TRIPLE_FAULT
    assert it.one.roots() == [(0, INVALID_ROOT), (it.roots[0], parked)], "no swap, and S1's tag"
    assert it.one.read(GVA).code == OutcomeCode.TRIPLE_FAULT
