"""Protection keys of user pages, under shadow page tables as on the processor (E111; SDM vol. 3A, 4.6.2 and 4.7)."""

from dataclasses import replace

import pytest
from tests.behaviour.guest import PS, USED, Guest, GuestMaker, U, W
from tests.behaviour.machines import AnyMachine
from tests.behaviour.narrow import CR0, DATA, NXE, PAE, POLICIES, USER, narrow, pae_map, pae_root, reached

from shadow_mmu.cpu import DEFAULT_CPU
from shadow_mmu.model.constants import CR0_WP, CR4_PKE
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode

EVERY = [*POLICIES, "seed,mmu=tdp", "lru:3,mmu=tdp"]
BOTH = ["lru:3", "lru:3,mmu=tdp"]
KEYED = replace(DEFAULT_CPU, pku=True)
PAGE = 0x1000
AD, WD = 1, 2
HOST = int(OpFlag.HOST)


def key(number: int) -> int:
    """Return the bits of a leaf with this key."""
    return number << 59


def rights(number: int, bits: int) -> int:
    """Return a PKRU that says this of one key, and denies nothing else."""
    return bits << 2 * number


def keyed(guest: GuestMaker, policy: str = "lru:3", bits: int = USED | key(5), level: int = 1) -> Guest[AnyMachine]:
    """Return a guest with CR4.PKE whose one page, at ``PAGE`` or from 0 on if it is large, has key 5."""
    one = guest.bare(policy, cpu=KEYED)
    root = one.table()
    one.map(root, PAGE if level == 1 else 0, DATA if level == 1 else 0, bits, level=level)
    assert one.run(OpKind.WRITE_CR4, PAE | CR4_PKE).code == OutcomeCode.OK
    one.go(root)
    return one


def pkru(one: Guest[AnyMachine], value: int) -> None:
    """Let the guest write PKRU."""
    assert one.run(OpKind.WRITE_PKRU, value).code == OutcomeCode.OK
    assert one.state().pkru == value


def denied(one: Guest[AnyMachine]) -> dict[str, bool]:
    """Return which accesses to the page PKRU denies; a fault says so by P and PK, beside W and U."""
    found = {}
    for name, access, flags, told in (
        ("read", one.read, 0, 0),
        ("write", one.write, 0, 2),
        ("user read", one.read, USER, 4),
        ("user write", one.write, USER, 6),
    ):
        outcome = access(PAGE, flags)
        if outcome.code == OutcomeCode.PAGE_FAULT:
            assert outcome.error == told | 33
        else:
            assert outcome.code == OutcomeCode.OK
        found[name] = outcome.code == OutcomeCode.PAGE_FAULT
    return found


def test_wrpkru_is_no_instruction_without_pke_and_takes_32_bits(guest: GuestMaker) -> None:
    one = guest.bare(cpu=KEYED)
    assert one.run(OpKind.WRITE_PKRU, 5).code == OutcomeCode.UD
    assert one.run(OpKind.WRITE_PKRU, 6, flags=HOST).code == OutcomeCode.OK
    one.run(OpKind.WRITE_CR4, PAE | CR4_PKE)
    assert one.run(OpKind.WRITE_PKRU, 1 << 32).code == OutcomeCode.GP
    assert one.state().pkru == 6
    pkru(one, 0xFFFF_FFFF)


def test_a_processor_without_keys_has_neither_pke_nor_pkru(guest: GuestMaker) -> None:
    one = guest.bare()
    for flags in (0, HOST):
        assert one.run(OpKind.WRITE_CR4, PAE | CR4_PKE, flags=flags).code == OutcomeCode.GP
    assert one.run(OpKind.WRITE_PKRU, 0).code == OutcomeCode.UD
    assert one.run(OpKind.WRITE_PKRU, 0, flags=HOST).code == OutcomeCode.GP


@pytest.mark.parametrize("policy", EVERY)
def test_e111_pkru_takes_effect_at_once_on_what_the_tlb_holds_too(guest: GuestMaker, policy: str) -> None:
    one = keyed(guest, policy)
    every = dict.fromkeys(("read", "write", "user read", "user write"), False)
    writes = {"write": True, "user write": True}
    assert denied(one) == every
    pkru(one, rights(5, AD))
    assert denied(one) == dict.fromkeys(every, True)
    pkru(one, rights(5, WD))
    assert denied(one) == every | writes
    pkru(one, 0xFFFF_FFFF & ~rights(5, AD | WD))
    assert denied(one) == every
    one.audit()


@pytest.mark.parametrize("policy", BOTH)
def test_e111_fetches_and_supervisor_pages_have_no_key(guest: GuestMaker, policy: str) -> None:
    one = keyed(guest, policy)
    pkru(one, 0xFFFF_FFFF)
    assert one.fetch(PAGE, USER) == reached(DATA)
    supervisor = keyed(guest, policy, bits=USED & ~U | key(5))
    pkru(supervisor, 0xFFFF_FFFF)
    assert supervisor.write(PAGE) == reached(DATA)


@pytest.mark.parametrize("policy", BOTH)
def test_e111_without_pke_the_key_and_pkru_mean_nothing(guest: GuestMaker, policy: str) -> None:
    one = keyed(guest, policy)
    pkru(one, 0xFFFF_FFFF)
    one.run(OpKind.WRITE_CR4, PAE)
    assert not any(denied(one).values())
    one.run(OpKind.WRITE_CR4, PAE | CR4_PKE)
    assert all(denied(one).values())


@pytest.mark.parametrize("policy", EVERY)
def test_e139_a_sync_brings_the_new_key_of_an_entry(guest: GuestMaker, policy: str) -> None:
    """The table is unsync when the key changes: rights are the same, and yet the entry is not."""
    one = keyed(guest, policy)
    root = one.state().cr3
    entry = one.entry(root, PAGE)
    window = one.window(root, entry)
    pkru(one, rights(6, AD))
    assert not any(denied(one).values())
    one.store(window, one.peek(entry) & ~key(15) | key(6))
    one.invlpg(PAGE)
    assert all(denied(one).values())
    one.audit()


@pytest.mark.parametrize("policy", BOTH)
def test_two_large_pages_over_the_same_frames_keep_their_keys_apart(guest: GuestMaker, policy: str) -> None:
    """Both are split into direct pages of one frame and one set of rights: the role tells their keys apart."""
    one = keyed(guest, policy, bits=USED | PS | key(5), level=2)
    root = one.state().cr3
    one.map(root, 2 << 20, 0, USED | PS | key(6), level=2)
    pkru(one, rights(6, AD))
    for _ in range(2):
        assert one.read(PAGE, USER) == reached(PAGE)
        assert one.read(PAGE | 2 << 20, USER).error == 37
    pkru(one, rights(5, AD))
    assert one.read(PAGE, USER).error == 37
    assert one.read(PAGE | 2 << 20, USER) == reached(PAGE)
    one.audit()


@pytest.mark.parametrize("policy", BOTH)
def test_e133_a_large_page_that_changes_its_key_gets_other_direct_pages(guest: GuestMaker, policy: str) -> None:
    one = keyed(guest, policy, bits=USED | PS | key(5), level=2)
    entry = one.entry(one.state().cr3, PAGE, 2)
    assert one.read(PAGE, USER) == reached(PAGE)
    one.poke(entry, one.peek(entry) & ~key(15) | key(6))
    one.invlpg(PAGE)
    pkru(one, rights(6, AD))
    assert one.read(PAGE, USER).error == 37
    one.audit()


@pytest.mark.parametrize("policy", BOTH)
@pytest.mark.parametrize("bits", [USED | key(5), USED & ~W | key(5)])
def test_e112_a_supervisor_write_under_wp_0_keeps_the_page_a_user_page_with_its_key(
    guest: GuestMaker, bits: int, policy: str
) -> None:
    """KVM would make it a supervisor page, which has no key; with keys in force the write is emulated instead."""
    one = keyed(guest, policy, bits=bits)
    one.run(OpKind.WRITE_CR0, CR0 & ~CR0_WP)
    pkru(one, rights(5, WD))
    one.store(PAGE, 0x1122)
    assert one.load(PAGE) == 0x1122
    assert one.write(PAGE, USER).error & ~32 == 7
    pkru(one, rights(5, AD))
    assert one.read(PAGE).error == 33
    assert one.write(PAGE).error == 35
    one.audit()


def test_what_wp_0_converted_before_pke_was_set_is_not_used_after_it(guest: GuestMaker) -> None:
    one = guest.bare(cpu=KEYED)
    root = one.table()
    one.map(root, PAGE, DATA, USED & ~W | key(5))
    one.run(OpKind.WRITE_CR0, CR0 & ~CR0_WP)
    one.go(root)
    assert one.write(PAGE) == reached(DATA)
    one.run(OpKind.WRITE_CR4, PAE | CR4_PKE)
    pkru(one, rights(5, AD))
    assert one.read(PAGE).error == 33
    one.audit()


def test_e108_pae_has_no_keys_its_bits_62_to_59_are_reserved(guest: GuestMaker) -> None:
    one = narrow(guest, "lru:3", PAE, cpu=KEYED)
    assert one.run(OpKind.WRITE_CR4, PAE | CR4_PKE).code == OutcomeCode.OK
    directory = one.table()
    pae_map(one, directory, PAGE, DATA)
    pae_map(one, directory, 2 * PAGE, DATA, USED | key(1))
    one.host_cr(OpKind.WRITE_EFER, NXE)
    one.cr3(pae_root(one, directory))
    pkru(one, 0xFFFF_FFFF)
    assert one.write(PAGE, USER) == reached(DATA)
    assert one.read(2 * PAGE).error == 9
