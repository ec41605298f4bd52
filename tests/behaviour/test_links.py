"""How a page that the guest writes without faults comes under another root (docs/machine.md, 13; D.3, P12)."""

import pytest
from tests.behaviour.guest import PAGE, RWU, USED, Guest, GuestMaker
from tests.behaviour.machines import AnyMachine

from shadow_mmu.policy import LINK_ORDERS

OLD, NEW, NEWER = 0x400000, 0x500000, 0x600000
REGION = 1 << 30


def linked(guest: GuestMaker, link: str) -> tuple[Guest[AnyMachine], int, int, int]:
    """Let vCPU 1 store into a table of root A while vCPU 0 brings that table under root B."""
    one, (a, b) = guest(f"lru:3,link={link}", vcpus=2)
    entry = one.entry(a, PAGE)
    window = one.window(a, entry)
    one.poke(one.entry(b, REGION, 2), entry & ~0xFFF | RWU)
    one.vcpu = 1
    one.visit(a)
    one.store(window, NEW | USED)
    assert one.page(entry)["unsync"]
    one.vcpu = 0
    one.cr3(b)
    assert one.read(REGION + PAGE).value == NEW
    return one, b, entry, window


@pytest.mark.parametrize("link", LINK_ORDERS)
def test_p12_a_linked_page_is_unsync_and_marked_or_neither(guest: GuestMaker, link: str) -> None:
    one, b, entry, _ = linked(guest, link)
    stays = link != "full-sync"
    assert one.page(entry)["unsync"] == stays
    assert (one.page(b, level=4)["unsync_children"] != 0) == stays
    one.audit()


@pytest.mark.parametrize("link", LINK_ORDERS)
def test_p12_a_store_after_the_link_faults_once_if_the_page_was_synced_for_good(guest: GuestMaker, link: str) -> None:
    one, b, _, window = linked(guest, link)
    one.vcpu = 1
    with one.moved() as moved:
        one.store(window, NEWER | USED)
    assert moved.get("pf_fixed", 0) == moved.get("mmu_unsync", 0) == (link == "full-sync")
    one.vcpu = 0
    one.cr3(b)
    assert one.read(REGION + PAGE).value == NEWER
    one.audit()


def test_on_one_thread_kvms_order_and_mark_first_come_to_the_same_state(guest: GuestMaker) -> None:
    words = {link: linked(guest, link)[0].machine.state_words() for link in LINK_ORDERS}
    assert words["kvm"] == words["mark-first"] != words["full-sync"]
