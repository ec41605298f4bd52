"""Read-only memslots: what the guest reads and cannot write, and page tables in them (E107, E153)."""

import pytest
from tests.behaviour.guest import PAGE, PS, ROM, USED, A, D, Guest, GuestMaker, P, U, W
from tests.behaviour.machines import AnyMachine
from tests.behaviour.narrow import CR0, NXE, PAE, USER, get32, pae_map, reached, set32

from shadow_mmu.model.constants import CR0_WP
from shadow_mmu.model.spte import HOST_WRITABLE, MMU_WRITABLE
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

SHADOW = ["locked", "seed", "lru:0", "lru:3"]
TDP = ["seed,mmu=tdp", "lru:3,mmu=tdp"]
ALL = SHADOW + TDP
DATA = 0x400000


def mmio(gpa: int) -> tuple[OutcomeCode, int, int]:
    return OutcomeCode.MMIO, gpa, 0


def with_rom_page(guest: GuestMaker, policy: str, bits: int = USED) -> tuple[Guest[AnyMachine], int]:
    """Return a guest whose ``PAGE`` is the first of the ROM, and its root."""
    one = guest.bare(policy, rom=True)
    root = one.table()
    one.map(root, PAGE, ROM, bits)
    one.poke(ROM, 0x1122)
    one.cr3(root)
    return one, root


def with_rom_tables(
    guest: GuestMaker, policy: str, *levels: int, bits: int = P | W | U
) -> tuple[Guest[AnyMachine], dict[int, int]]:
    """Return a guest whose ``PAGE`` is ``DATA``, the tables of some levels in ROM, and the gpa of the entry at each level."""
    one = guest.bare(policy, rom=True)
    tables = {level: ROM + 0x1000 * level if level in levels else one.table() for level in range(1, 5)}
    places = {level: table | (PAGE >> (3 + 9 * level) & 511) << 3 for level, table in tables.items()}
    for level in range(4, 0, -1):
        one.poke(places[level], (tables[level - 1] if level > 1 else DATA) | bits)
    one.cr3(tables[4])
    return one, places


def test_e153_a_rom_is_read_and_fetched_like_memory(guest: GuestMaker) -> None:
    for policy in ALL:
        one, _ = with_rom_page(guest, policy)
        assert one.load(PAGE) == 0x1122
        assert one.fetch(PAGE + 8) == reached(ROM + 8)
        with one.moved() as moved:
            assert one.load(PAGE) == 0x1122
        assert moved == {}
        one.poke(ROM, 0x3344)  # the host writes it as any memory
        assert one.load(PAGE) == 0x3344
        one.audit()


@pytest.mark.parametrize("policy", ALL)
def test_e107_a_write_to_rom_leaves_for_the_device_model_and_changes_nothing(guest: GuestMaker, policy: str) -> None:
    one, _ = with_rom_page(guest, policy)
    assert one.load(PAGE) == 0x1122
    for again in range(3):
        with one.moved() as moved:
            assert one.store(PAGE + 4, 7, size=4) == mmio(ROM + 4)
        # Before the lock: KVM_PFN_ERR_RO_FAULT.
        assert moved == {"pf_taken": 1, "mmio_exits": 1}, again
        assert one.write(PAGE) == mmio(ROM)
        assert one.load(PAGE) == 0x1122
    with one.moved() as moved:
        assert one.read(PAGE + 16) == reached(ROM + 16)
    assert moved == {}, "the page's reads stay mapped"
    one.audit()


@pytest.mark.parametrize("policy", ALL)
def test_e107_a_write_that_comes_first_maps_nothing(guest: GuestMaker, policy: str) -> None:
    one, _ = with_rom_page(guest, policy)
    one.enter()
    with one.moved() as moved:
        assert one.write(PAGE) == mmio(ROM)
    # In two dimensions each of the four guest tables is mapped first.
    assert moved.get("pf_fixed", 0) == (4 if policy in TDP else 0)
    assert moved["mmio_exits"] == 1
    with one.moved() as moved:
        assert one.read(PAGE).code == OutcomeCode.OK
    assert moved["pf_fixed"] == 1


@pytest.mark.parametrize("policy", SHADOW)
def test_e107_the_leaf_of_a_rom_is_neither_host_nor_mmu_writable(guest: GuestMaker, policy: str) -> None:
    one, root = with_rom_page(guest, policy)
    one.map(root, PAGE + 0x1000, DATA, USED)
    one.trace()
    one.read(PAGE)
    one.read(PAGE + 0x1000)
    rom, ram = [event[5] for event in one.trace() if event[4] in (ROM >> 12, DATA >> 12)]
    assert rom & (HOST_WRITABLE | MMU_WRITABLE | W) == 0
    assert ram & (HOST_WRITABLE | MMU_WRITABLE | W) == HOST_WRITABLE | MMU_WRITABLE | W


@pytest.mark.parametrize("policy", ALL)
def test_e107_the_guests_tables_decide_before_the_memslot(guest: GuestMaker, policy: str) -> None:
    one, root = with_rom_page(guest, policy, P | U | A | D)
    assert one.write(PAGE) == (OutcomeCode.PAGE_FAULT, PAGE, 3)
    assert one.write(PAGE, USER) == (OutcomeCode.PAGE_FAULT, PAGE, 7)
    # E110: without WP a supervisor's write is allowed, and goes where a write to this memory goes; the page stays the user's.
    one.host_cr(OpKind.WRITE_CR0, CR0 & ~CR0_WP)
    assert one.read(PAGE, USER) == reached(ROM)
    assert one.write(PAGE) == mmio(ROM)
    assert one.write(PAGE) == mmio(ROM)
    with one.moved() as moved:
        assert one.read(PAGE, USER) == reached(ROM)
    assert moved == {}
    del root
    one.audit()


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("levels", [(1,), (2,), (4,), (1, 2), (1, 2, 3, 4)])
def test_e107_a_walk_leaves_a_and_d_of_tables_in_rom_and_goes_on(
    guest: GuestMaker, policy: str, levels: tuple[int, ...]
) -> None:
    one, places = with_rom_tables(guest, policy, *levels)
    before = {level: one.peek(gpa) for level, gpa in places.items()}
    one.poke(DATA, 0x55)
    assert one.load(PAGE) == 0x55
    assert {at: one.peek(gpa) for at, gpa in places.items()} == {
        at: before[at] | (0 if at in levels else A) for at in before
    }
    assert one.store(PAGE, 0x66) == reached(DATA)
    assert one.peek(DATA) == 0x66
    assert {at: one.peek(gpa) for at, gpa in places.items()} == {
        at: before[at] | (0 if at in levels else A | (D if at == 1 else 0)) for at in before
    }
    assert one.fetch(PAGE) == reached(DATA)
    one.audit()


@pytest.mark.parametrize("policy", SHADOW)
def test_e107_a_shadow_of_tables_in_rom_serves_without_exits(guest: GuestMaker, policy: str) -> None:
    one, places = with_rom_tables(guest, policy, 1, 2, 3, 4)
    one.read(PAGE)
    with one.moved() as moved:
        one.store(PAGE, 1)
    # The leaf was made without W, because its D was clear; the write has W, and no D to set.
    assert (moved["pf_taken"], moved["pf_fixed"]) == (1, 1)
    with one.moved() as moved:
        one.store(PAGE + 8, 2)
        one.read(PAGE)
    assert moved == {}
    assert not any(one.peek(gpa) & (A | D) for gpa in places.values())
    one.audit()


@pytest.mark.parametrize("policy", TDP)
def test_e107_in_two_dimensions_tables_in_rom_work_by_themselves_if_a_and_d_are_set(
    guest: GuestMaker, policy: str
) -> None:
    one, _ = with_rom_tables(guest, policy, 1, 2, 3, 4, bits=USED)
    one.read(PAGE)
    with one.moved() as moved:
        assert one.store(PAGE, 7) == reached(DATA)
        assert one.store(PAGE, 8) == reached(DATA)
    assert moved == {}
    # Else the hardware may not set them, and each access is made for the guest.
    one, places = with_rom_tables(guest, policy, 1, 2, 3, 4, bits=P | W | U)
    one.read(PAGE)
    for number in range(3):
        with one.moved() as moved:
            assert one.store(PAGE, number) == reached(DATA)
        assert moved == {"pf_taken": 1, "pf_emulate": 1}
        assert one.load(PAGE) == number
    assert one.fetch(PAGE) == reached(DATA)
    # D alone is missing: reads need it not.
    one.poke(places[1], DATA | P | W | U | A)
    for level in (2, 3, 4):
        one.poke(places[level], one.peek(places[level]) | A)
    one.read(PAGE)
    with one.moved() as moved:
        one.read(PAGE)
    assert moved == {}
    with one.moved() as moved:
        assert one.store(PAGE, 9) == reached(DATA)
    assert moved == {"pf_taken": 1, "pf_emulate": 1}
    assert one.peek(places[1]) == DATA | P | W | U | A
    one.audit()


@pytest.mark.parametrize("policy", TDP)
def test_e107_an_access_made_for_the_guest_ends_as_any_other(guest: GuestMaker, policy: str) -> None:
    one, places = with_rom_tables(guest, policy, 1, 2, 3, 4)
    one.read(PAGE)
    # To a ROM, to nothing, and where the guest's tables refuse.
    one.poke(places[1], ROM | P | W | U)
    assert one.read(PAGE) == reached(ROM)
    assert one.write(PAGE) == mmio(ROM)
    one.poke(places[1], ROM << 1 | P | W | U)
    with one.moved() as moved:
        assert one.read(PAGE + 5) == mmio((ROM << 1) + 5)
    assert moved["mmio_exits"] == 1
    one.poke(places[1], DATA | P)
    assert one.write(PAGE, USER) == (OutcomeCode.PAGE_FAULT, PAGE, 7)
    one.poke(places[1], 0)
    assert one.read(PAGE) == (OutcomeCode.PAGE_FAULT, PAGE, 0)
    one.audit()


@pytest.mark.parametrize("policy", SHADOW)
def test_e107_a_table_in_rom_is_never_unsync_and_a_guests_store_to_it_zaps_nothing(
    guest: GuestMaker, policy: str
) -> None:
    one, places = with_rom_tables(guest, policy, 1, 2, bits=USED)
    root = one.state().cr3
    leaf, directory = (one.window(root, places[level], USED) for level in (1, 2))
    one.read(PAGE)
    for gva, level in ((leaf, 1), (directory, 2)):
        before = one.peek(places[level])
        assert one.load(gva) == before
        with one.moved() as moved:
            assert one.store(gva, 0) == mmio(places[level])
        # The directory is write-tracked: KVM emulates the write, and its store finds the memslot read-only.
        assert moved == {"pf_taken": 1, "mmio_exits": 1} | ({"pf_emulate": 1} if level == 2 else {})
        assert one.peek(places[level]) == before
    with one.moved() as moved:
        assert one.read(PAGE) == reached(DATA)
    assert moved == {}
    assert not any(one.page(places[level])["unsync"] for level in (1, 2))
    # What the host writes there is seen at once.
    one.poke(places[1], DATA + 0x1000 | USED)
    assert one.read(PAGE) == reached(DATA + 0x1000)
    one.audit()


@pytest.mark.parametrize("policy", SHADOW)
def test_e063_an_invlpg_that_refills_fetches_nothing_of_a_rom_ahead(guest: GuestMaker, policy: str) -> None:
    one, root = with_rom_page(guest, policy)
    entry = one.entry(root, PAGE)
    gva = one.window(root, entry, USED)
    one.read(PAGE)
    for target in (DATA, ROM):
        assert one.store(gva, target | USED).code == OutcomeCode.OK  # the table goes unsync
        one.invlpg(PAGE)
        with one.moved() as moved:
            assert one.read(PAGE) == reached(target)
        refills = policy in ("locked", "seed") and target == DATA
        assert moved.get("pf_fixed", 0) == (0 if refills else 1), (policy, target)
    one.audit()


def test_e107_large_pages_of_rom(guest: GuestMaker) -> None:
    for policy in ALL:
        one = guest.bare(policy, rom=True)
        root = one.table()
        one.map(root, 0, ROM, USED, level=2)
        one.cr3(root)
        one.poke(ROM + 0x5008, 9)
        assert one.load(0x5008) == 9
        assert one.store(0x5008, 1) == mmio(ROM + 0x5008)
        # The ROM ends within the large page.
        assert one.read(0x100000) == mmio(ROM + 0x100000)
        one.audit()


@pytest.mark.parametrize(
    "policy", ["locked", "seed", "lru:3", "lru:3,pae_roots=cached", "lru:3,host=pae", "lru:3,mmu=tdp"]
)
def test_e107_pdptrs_and_tables_of_pae_in_rom(guest: GuestMaker, policy: str) -> None:
    one = guest.bare(policy, rom=True)
    one.host_cr(OpKind.WRITE_CR4, PAE)
    one.host_cr(OpKind.WRITE_EFER, NXE)
    directory = ROM + 0x2000
    one.poke(ROM, directory | P)
    one.poke(directory, ROM + 0x3000 | P | W | U)
    entry = pae_map(one, directory, PAGE, DATA, P | W | U)
    assert one.cr3(ROM).code == OutcomeCode.OK
    assert one.store(PAGE, 7) == reached(DATA)
    assert (one.peek(ROM), one.peek(directory), one.peek(entry)) == (
        directory | P, ROM + 0x3000 | P | W | U, DATA | P | W | U
    )  # fmt: skip
    one.audit()


@pytest.mark.parametrize("policy", ["locked", "seed", "lru:3", "lru:3,host=pae", "lru:3,mmu=tdp"])
def test_e107_tables_of_4_byte_entries_in_rom(guest: GuestMaker, policy: str) -> None:
    one = guest.bare(policy, rom=True)
    one.host_cr(OpKind.WRITE_CR4, 0x10)
    one.host_cr(OpKind.WRITE_EFER, 0)
    set32(one, ROM, ROM + 0x1000 | P | W | U)
    set32(one, ROM + 0x1004, DATA | P | W | U)
    set32(one, ROM + 4, DATA | P | W | U | PS)
    one.cr3(ROM)
    assert one.store(PAGE, 7) == reached(DATA)
    assert one.store(0x400000, 8) == reached(DATA)
    assert [get32(one, ROM + at) for at in (0, 4, 0x1004)] == [
        ROM + 0x1000 | P | W | U, DATA | P | W | U | PS, DATA | P | W | U
    ]  # fmt: skip
    one.audit()


def test_e107_without_paging_a_write_to_rom_leaves_too(guest: GuestMaker) -> None:
    for policy in ALL:
        one = guest.bare(policy, rom=True)
        one.run(OpKind.WRITE_CR0, CR0 & ~(1 << 31), flags=OpFlag.HOST)
        assert one.read(ROM) == reached(ROM)
        assert one.write(ROM) == mmio(ROM)
        assert one.write(DATA) == reached(DATA)
        one.audit()


def test_e153_a_rom_that_is_added_later(guest: GuestMaker) -> None:
    for policy in ALL:
        one = guest.bare(policy)
        root = one.table()
        one.map(root, PAGE, ROM, USED)
        one.cr3(root)
        assert one.read(PAGE) == mmio(ROM)
        one.machine.add_memslot(ROM, 0x1000, read_only=True)
        assert one.read(PAGE) == reached(ROM)
        assert one.write(PAGE) == mmio(ROM)
        one.audit()
